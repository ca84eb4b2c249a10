"""What tests share: small data, and running the real commands in real processes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dist_train.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    TrackingConfig,
    TrainConfig,
)
from dist_train.tracking import json_lines

# For tests that compute on a GPU before any run has set it, see hardware.choose_algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

REPOSITORY = Path(__file__).parent.parent

# Small enough for seconds, large enough for several steps with a short last batch.
SMALL = [
    *("--data.dataset", "shapes", "--data.train_samples", "500", "--data.batch_size", "64"),
    *("--runtime.precision", "fp32", "--tracking.wandb", "off"),
    *("--data.loader", "resident"),  # FFCV's import takes seconds, in each process
]


def real_data(name: str) -> Path:
    """The folder of data sets, if it holds the named one; else the test is skipped."""
    root = Path(os.environ.get("DIST_TRAIN_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"no {name} in {root}: set DIST_TRAIN_DATA")
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data sets, made once for all tests."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A finished run that knows some of 400 test shapes; its network was built from the data."""
    from dist_train.train import train

    config = Config(
        recipe="small",
        name="run",
        output=str(tmp_path_factory.mktemp("runs")),
        data=DataConfig(
            dataset="shapes", train_samples=2000, batch_size=50, loader="resident", cache=str(cache)
        ),
        model=ModelConfig(name="whitened", widths=(8, 16, 16)),
        optim=OptimConfig(learning_rate=0.05, nesterov=True),
        train=TrainConfig(epochs=3),
        runtime=RuntimeConfig(precision="fp32", device="cpu"),
        tracking=TrackingConfig(wandb="off"),
    )
    train(config)
    return Path(config.output) / "run"


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own; its output is shown when the test fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    print("$", *command, f"-> {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def dist_train(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`dist-train ...`."""
    return run(sys.executable, "-m", "dist_train", *arguments, cwd=cwd, **environment)


def torchrun(
    processes: int, *arguments: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`torchrun -m dist_train ...`: several ranks on CPU."""
    return run(
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)),
        *("--master_port", str(free_port())),
        *("-m", "dist_train"),
        *arguments,
        cwd=cwd,
        **environment,
    )


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def lines_so_far(run_folder: Path) -> int:
    """Whole lines in the metrics.jsonl of a run that may be writing the next one just now."""
    return len(json_lines.read(run_folder / "metrics.jsonl"))


def until(
    condition: Callable[[], bool],
    what: str,
    seconds: float = 60,
    story: Callable[[], str] = lambda: "",
) -> None:
    """Returns when the condition holds; fails when that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{story()}"
        time.sleep(0.05)


def stopped_after(said: str) -> int:
    """The step after which a run says it stopped, the last time."""
    return int(re.findall(r"stopped after step (\d+)", said)[-1])


def summary(run_folder: Path) -> dict[str, Any]:
    """summary.json."""
    values: dict[str, Any] = json.loads((run_folder / "summary.json").read_text())
    return values


@pytest.fixture
def small(tmp_path: Path, cache: Path) -> Config:
    """A run of seconds: 500 shapes, 8 steps an epoch, the last of 52 images."""
    return Config(
        recipe="small",
        name="run",
        output=str(tmp_path / "runs"),
        data=DataConfig(
            dataset="shapes",
            train_samples=500,
            batch_size=64,
            drop_last=False,
            cache=str(cache),
            loader="resident",
            flip="random",
            crop_padding=2,
        ),
        model=ModelConfig(name="cnn2"),
        optim=OptimConfig(learning_rate=0.05),
        train=TrainConfig(epochs=2, log_every=1),
        runtime=RuntimeConfig(precision="fp32", device="cpu", threads=1),
        tracking=TrackingConfig(wandb="off"),
    )


def folder(config: Config) -> Path:
    return Path(config.output) / str(config.name)


def losses(config: Config) -> list[float]:
    return [line["train/loss"] for line in metrics(folder(config))]


def weights(run: Config | Path) -> dict[str, Tensor]:
    return load_file((run if isinstance(run, Path) else folder(run)) / "model.safetensors")


def assert_same_weights(a: Config | Path, b: Config | Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def cut_after(config: Config, *, step: int) -> Config:
    """A copy of a finished run, as if it had been killed with this step's checkpoint the newest."""
    cut = replace(config, name="resumed")
    shutil.copytree(folder(config), folder(cut))
    (folder(cut) / "summary.json").unlink()
    for path in (folder(cut) / "checkpoints").glob("step-*"):
        if path.stem != f"step-{step:09d}":
            path.unlink()
    return cut
