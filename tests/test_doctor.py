"""Broken things, and what the doctor says of them: one line each, and exit code 2."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from dist_train.doctor import machine
from dist_train.doctor.finding import Finding
from dist_train.doctor.launch import Launch, address, geometry
from tests.conftest import SMALL, dist_train, free_port, real_data, torchrun


def verdicts(output: str) -> dict[str, str]:
    """The line of each check, by its name."""
    lines = output.splitlines()
    assert all(line[:6] in ("ok    ", "FAIL  ", "skip  ") for line in lines), output
    return {line[6:18].strip(): line for line in lines}


def module(folder: Path, name: str, text: str = "") -> str:
    """Puts a module in front of the real one of that name; returns the PYTHONPATH for it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.fixture
def quick(tmp_path: Path) -> str:
    """A PYTHONPATH on which all packages but torch import in no time."""
    for name in ("torchvision", "ffcv", "accelerate", "wandb"):
        path = module(tmp_path / "site", name)
    return path


def test_a_healthy_machine(tmp_path: Path) -> None:
    done = dist_train("doctor", "cnn2", *SMALL, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0
    lines = verdicts(done.stdout)
    for name in ("python", "torch", "torchvision", "accelerate", "wandb", "data"):
        assert lines[name].startswith("ok"), name
    for name in ("cache write", "cache space", "output write", "output space"):
        assert lines[name].startswith("ok"), name
    for name in ("gpu", "W&B", "launch", "MASTER_ADDR", "network"):
        assert lines[name].startswith("skip"), name
        assert lines[name].endswith(")"), f"{name} says why"
    assert not list(tmp_path.iterdir())


def test_broken_software_data_and_disk(tmp_path: Path) -> None:
    shutil.copytree(real_data("mnist") / "mnist", tmp_path / "data" / "mnist")
    (damaged,) = (tmp_path / "data").rglob("t10k-images-idx3-ubyte")
    damaged.chmod(0o644)
    with damaged.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\0\1\2\3")
    path = module(tmp_path / "site", "torch", "raise ImportError('libcudart.so.13: not found')")
    module(tmp_path / "site", "torchvision", "import os; os.abort()")
    flags = ["--data.dataset", "mnist", "--data.root", "data", "--output", "data/file/runs"]
    (tmp_path / "data" / "file").touch()
    done = dist_train(
        *("doctor", "cnn2", *flags, "--tracking.wandb", "off"), cwd=tmp_path, PYTHONPATH=path
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    lines = verdicts(done.stdout)
    assert lines["torch"].startswith("FAIL")
    assert "libcudart.so.13" in lines["torch"]
    assert lines["torchvision"].startswith("FAIL")
    assert "crashed" in lines["torchvision"]
    assert "launch/setup.sh" in lines["torch"]
    assert lines["gpu"].startswith("skip")
    assert lines["data"].startswith("FAIL")
    assert "t10k-images-idx3-ubyte" in lines["data"]
    assert "md5" in lines["data"]
    assert lines["output write"].startswith("FAIL")
    assert "--output" in lines["output write"]
    assert lines["cache write"].startswith("ok")


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: {"version": "1", "error": None} for name in machine.PACKAGES}
    found["ffcv"] = found["wandb"] = {"version": None, "error": None}
    lines = {f.name: f for f in machine.packages(found, optional={"ffcv": "never mind"})}
    assert lines["ffcv"].verdict == "skip"
    assert lines["wandb"].verdict == "FAIL"
    assert lines["torch"].verdict == "ok"


def test_data_that_is_prepared_damaged_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dist_train.config import DataConfig
    from dist_train.data.prepare import prepare_dataset

    monkeypatch.chdir(tmp_path)
    shapes = DataConfig(dataset="shapes", train_samples=50)
    assert machine.data(shapes).verdict == "ok"
    prepared = prepare_dataset(shapes)
    assert str(prepared.folder) in machine.data(shapes).found
    with prepared.test.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\7")
    assert "test.beton fails its checksum" in machine.data(shapes).found

    monkeypatch.delenv("DIST_TRAIN_DATA", raising=False)
    monkeypatch.setenv("DIST_TRAIN_MIRROR", f"http://127.0.0.1:{free_port()}")
    nowhere = machine.data(DataConfig(dataset="cifar100"))
    assert nowhere.verdict == "FAIL"
    assert "cifar100 is not here" in nowhere.found
    assert "--data.root" in nowhere.found
    assert not (tmp_path / "data" / "cifar100").exists()


def test_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "FREE_BYTES", shutil.disk_usage(tmp_path).total + 1)
    (_, space) = machine.disk("output", tmp_path / "runs", flag="--output")
    assert space.verdict == "FAIL"
    assert "--output" in space.found


class WandB(BaseHTTPRequestHandler):
    """A W&B server that knows one login."""

    def do_POST(self) -> None:
        known = self.headers["Authorization"] == "Basic YXBpOnNlY3JldA=="  # api:secret
        self.send_response(200)
        self.end_headers()
        viewer = {"username": "somebody"} if known else None
        self.wfile.write(json.dumps({"data": {"viewer": viewer}}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def wandb_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), WandB) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("NETRC", "/nowhere")
        yield url
        server.shutdown()


def test_wandb_login(wandb_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.wandb("off").verdict == machine.wandb("offline").verdict == "skip"
    assert "no login" in machine.wandb("online").found
    assert machine.wandb("online").verdict == "FAIL"
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert machine.wandb("online") == Finding("ok", "W&B", f"logged in as somebody at {wandb_url}")
    # As `wandb login --host` leaves it.
    (tmp_path / "settings").write_text(f"[default]\nbase_url = {wandb_url}/\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_BASE_URL")
    assert machine.wandb("auto").found == f"logged in as somebody at {wandb_url}"
    monkeypatch.setenv("WANDB_API_KEY", "wrong")
    assert machine.wandb("online").verdict == "FAIL"
    assert "--relogin" in machine.wandb("online").found
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    assert "cannot reach" in machine.wandb("online").found
    assert "--tracking.wandb offline" in machine.wandb("online").found


TWO_NODES = {"SLURM_JOB_ID": "1", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}


@pytest.mark.parametrize(
    ("processes", "device", "environment", "expected"),
    [
        ((8, 4), "auto", TWO_NODES, "ok"),
        ((4, 2), "auto", TWO_NODES, "--num_processes 8"),
        ((4, 2), "cpu", TWO_NODES, "ok"),
        ((4, 4), "auto", TWO_NODES, "--num_machines 2 --num_processes 8"),
        ((1, 1), "auto", TWO_NODES, "skip"),
        ((1, 1), "auto", TWO_NODES | {"SLURM_STEP_NUM_TASKS": "8"}, "do not know of each other"),
        ((2, 2), "cpu", {}, "ok"),
        ((2, 2), "auto", {}, "1 GPUs"),
    ],
)
def test_geometry(
    processes: tuple[int, int],
    device: str,
    environment: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    world_size, local = processes
    here = Launch(0, 0, world_size, local, "n0" if world_size > 1 else None)
    finding = geometry(here, gpus=1, device=device)
    assert expected in str(finding)
    assert finding.verdict == (expected if expected in ("ok", "skip") else "FAIL")


def test_names_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    (missing, _) = address(Launch(0, 0, 2, 2, "no-such-host.invalid"))
    assert missing.verdict == "FAIL"
    assert "no-such-host.invalid" in missing.found
    (local, _) = address(Launch(0, 0, 2, 2, "localhost"))
    assert local.verdict == "ok"
    (elsewhere, _) = address(Launch(1, 0, 2, 1, "localhost"))
    assert elsewhere.verdict == "FAIL"
    assert "GLOO_SOCKET_IFNAME" in elsewhere.found


TWO_RANKS = ["doctor", "cnn2", *SMALL, "--runtime.device", "cpu"]


def test_the_network_between_two_ranks(tmp_path: Path, quick: str) -> None:
    done = torchrun(2, *TWO_RANKS, cwd=tmp_path, PYTHONPATH=quick)
    assert done.returncode == 0
    lines = verdicts(done.stdout)
    for name in ("launch", "MASTER_ADDR", "host name", "port", "ranks", "all-reduce", "links"):
        assert lines[name].startswith("ok"), name
    assert "slowest: rank " in lines["links"]
    assert "MB/s" in lines["links"]
    assert "MB/s" in lines["all-reduce"]
    assert len(lines) == len(set(done.stdout.splitlines())), "one rank speaks"


@pytest.mark.slow
def test_a_rank_that_does_not_come(tmp_path: Path, quick: str) -> None:
    late = "import os, time\nif os.environ.get('RANK') == '1': time.sleep(1000)"
    module(tmp_path / "site", "sitecustomize", late)
    flags = [*TWO_RANKS, "--runtime.timeout_seconds", "3"]
    done = torchrun(2, *flags, cwd=tmp_path, PYTHONPATH=quick)
    assert done.returncode != 0
    assert "rank 1 of 2 did not come within 3 s" in verdicts(done.stdout)["ranks"]
    assert verdicts(done.stdout)["ranks"].startswith("FAIL")


@pytest.mark.parametrize("hung", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_hangs_in_the_middle(hung: int, tmp_path: Path, quick: str) -> None:
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*torchrun, "--master_port", str(free_port()), "-m", "dist_train", *TWO_RANKS]
    printed = ""
    with subprocess.Popen(
        [sys.executable, *command, "--runtime.timeout_seconds", "3"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": quick},
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        assert launcher.stdout
        for line in launcher.stdout:
            printed += line
            if line[6:].startswith("ranks "):
                (rank,) = (
                    process
                    for process in psutil.Process(launcher.pid).children()
                    if process.environ().get("RANK") == str(hung)
                )
                rank.send_signal(signal.SIGSTOP)
            if line[6:].startswith("network "):
                rank.kill()  # or the launcher gives it half a minute to end
    assert launcher.returncode != 0
    line = verdicts(printed)["network"]
    assert line.startswith("FAIL")
    assert f"rank {hung} on " in line
    assert " hung: " in line
