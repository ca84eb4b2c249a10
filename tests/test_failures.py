"""Processes that die or hang, at any instant: the job ends, says who it was, and goes on."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from torch.distributed import HashStore

from dist_train.heartbeat import Heartbeat
from tests.conftest import (
    REPOSITORY,
    SMALL,
    assert_same_weights,
    dist_train,
    free_port,
    lines_so_far,
    metrics,
    stopped_after,
    summary,
    torchrun,
    until,
)

pytestmark = pytest.mark.slow

RUN = [
    *("cnn2", *SMALL, "--name", "run", "--train.epochs", "40", "--train.log_every", "1"),
    *("--checkpoint.every_steps", "10", "--runtime.timeout_seconds", "20"),
    # Of two threads each waits for the other one: fifteen times slower where cores are busy.
    *("--runtime.threads", "1"),
]
STEPS = 40 * 7
# For each of the three victims; 10 where there is time, as there is not after each change.
KILLS = int(os.environ.get("DIST_TRAIN_TEST_KILLS", "3"))


class Job:
    """A launcher and its ranks, started in a folder."""

    def __init__(self, folder: Path, *command: str, **environment: str) -> None:
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = psutil.Popen(
                command,
                cwd=folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )

    def ranks(self) -> dict[int, psutil.Process]:
        """The trainers that live, by rank."""
        found = {}
        with suppress(psutil.NoSuchProcess):
            for child in self.process.children(recursive=True):
                with suppress(psutil.NoSuchProcess, KeyError):
                    if "train" in child.cmdline() and "torch.distributed.run" not in str(
                        child.cmdline()
                    ):
                        found[int(child.environ()["RANK"])] = child
        return found

    def kill(self) -> None:
        """The launcher and all that it started, at once."""
        with suppress(psutil.NoSuchProcess):
            for process in [*self.process.children(recursive=True), self.process]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(30)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def launch(folder: Path, *flags: str, processes: int = 2, agent: tuple[str, ...] = ()) -> Job:
    return Job(
        folder,
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)),
        *(agent or ("--master_port", str(free_port()))),
        *("-m", "dist_train", "train", *flags),
    )


def wait_for_step(job: Job, run_folder: Path, step: int) -> None:
    def reached() -> bool:
        if lines_so_far(run_folder) >= step:
            return True
        assert job.process.poll() is None, job.said()
        return False

    until(reached, f"step {step}", 120, job.said)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert torchrun(2, "train", *RUN, "--data.cache", "cache", cwd=folder).returncode == 0
    return folder / "runs" / "run"


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """After the test no process of it lives, and there is no temporary file or held lock."""
    yield
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            assert process.cwd() != str(tmp_path), process.cmdline()
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


def assert_same_end(run_folder: Path, expected: Path) -> None:
    assert_same_weights(run_folder, expected)
    lines = metrics(run_folder)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [a["train/loss"] for a in lines] == [b["train/loss"] for b in metrics(expected)]
    assert summary(run_folder)["test_accuracy"] == summary(expected)["test_accuracy"]


@pytest.mark.parametrize("victim", ["0", "1", "all"])
def test_killed_at_any_instant(
    victim: str, tmp_path: Path, uninterrupted: Path, nothing_left: None
) -> None:
    """During start-up, conversion, training, evaluation, the last write."""
    chance = random.Random(victim)
    longest = summary(uninterrupted)["seconds"]["total"] + 3  # and the launcher's start
    kills = finished = 0
    while kills < KILLS:
        folder = tmp_path / str(finished)
        folder.mkdir(exist_ok=True)
        job = launch(folder, *RUN, "--data.cache", "cache")
        instant = chance.uniform(0, longest)
        print(f"kill {kills} after {instant:.2f} s")
        try:
            job.process.wait(instant)
        except psutil.TimeoutExpired:
            kills += 1
            ranks = job.ranks()
            if victim != "all" and int(victim) in ranks:
                ranks[int(victim)].kill()
                assert job.process.wait(60) != 0, job.said()  # the launcher ends the others
            else:
                job.kill()
        else:
            assert job.process.returncode == 0, job.said()
        if (folder / "runs" / "run" / "summary.json").exists():
            assert_same_end(folder / "runs" / "run", uninterrupted)
            finished += 1
    folder = tmp_path / str(finished)
    folder.mkdir(exist_ok=True)
    done = torchrun(2, "train", *RUN, "--data.cache", "cache", cwd=folder)
    assert done.returncode == 0
    assert_same_end(folder / "runs" / "run", uninterrupted)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_named(
    victim: int, tmp_path: Path, cache: Path, uninterrupted: Path
) -> None:
    flags = [*RUN, "--data.cache", str(cache)]
    flags += ["--runtime.timeout_seconds", "8"]
    job = launch(tmp_path, *flags)
    run_folder = tmp_path / "runs" / "run"
    try:
        wait_for_step(job, run_folder, 20)
        ranks = job.ranks()
        ranks[victim].send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        # The agent kills the stopped process after a grace time of its own, 30 s by default.
        assert ranks[1 - victim].wait(40) != 0
        assert time.monotonic() - stopped < 25
        assert f"rank {victim} (" in job.said()
        assert "is dead or stopped" in job.said()
    finally:
        job.kill()
    assert torchrun(2, "train", *flags, cwd=tmp_path).returncode == 0
    assert_same_end(run_folder, uninterrupted)


@pytest.mark.parametrize(
    "error",
    [
        "Application timeout caused pair closure",
        "[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:29358.",
    ],
)
def test_whichever_way_gloo_fails_the_rank_is_named(
    error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    heartbeat = Heartbeat(HashStore(), rank=0, world_size=2, timeout=60)
    with pytest.raises(RuntimeError), heartbeat.beating():
        raise RuntimeError(error)
    assert "rank 1 (never seen: no beat) is dead or stopped" in capsys.readouterr().err


def test_torchrun_starts_a_dead_rank_again(
    tmp_path: Path, cache: Path, uninterrupted: Path
) -> None:
    flags = [*RUN, "--data.cache", str(cache)]
    job = launch(tmp_path, *flags, agent=("--standalone", "--max-restarts", "2"))
    run_folder = tmp_path / "runs" / "run"
    try:
        for step, victim in ((25, 1), (60, 0)):
            wait_for_step(job, run_folder, step)
            job.ranks()[victim].kill()
            time.sleep(3)
        assert job.process.wait(120) == 0, job.said()
    finally:
        job.kill()
    assert len(summary(run_folder)["resumed_from_step"]) == 2
    assert_same_end(run_folder, uninterrupted)


def test_a_lost_node_leaves_a_smaller_job(tmp_path: Path, cache: Path) -> None:
    port = free_port()
    flags = [*RUN, "--data.cache", str(cache)]
    flags += ["--train.epochs", "80"]
    agent = (
        *("--nnodes", "1:2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"),
        *("--rdzv-id", "job", "--max-restarts", "3", "--rdzv-conf"),
    )
    # On one machine either node could be the host of the meeting, which must not be lost.
    meetings = [f"last_call_timeout=10,is_host={host}" for host in (1, 0)]
    nodes = [launch(tmp_path, *flags, processes=1, agent=(*agent, each)) for each in meetings]
    run_folder = tmp_path / "runs" / "run"
    try:
        wait_for_step(nodes[0], run_folder, 20)
        nodes[1].kill()
        assert nodes[0].process.wait(180) == 0, nodes[0].said()
    finally:
        for node in nodes:
            node.kill()
    assert summary(run_folder)["world_size"] == 1
    assert summary(run_folder)["resumed_from_step"]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_launchers_pass_signals_on(
    launcher: str, number: signal.Signals, tmp_path: Path, cache: Path, uninterrupted: Path
) -> None:
    flags = [*RUN, "--data.cache", str(cache)]
    environment = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1"}
    port = str(free_port())
    commands = {
        "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port],
        "accelerate": [
            *("accelerate.commands.launch", "--main_process_port", port, "--num_processes", "2"),
            *("--config_file", str(REPOSITORY / "launch" / "cpu.yaml")),
        ],
    }
    main = str(REPOSITORY / "dist_train" / "main.py")
    command = [sys.executable, "-m", *commands[launcher], main, *flags]
    job = Job(tmp_path, *command, **environment)
    run_folder = tmp_path / "runs" / "run"
    try:
        wait_for_step(job, run_folder, 20)
        job.process.send_signal(number)
        assert job.process.wait(60) != 0, job.said()
    finally:
        job.kill()
    assert "run again to go on" in job.said()
    reached = stopped_after(job.said())
    # A line less, if the evaluation at that step was given up.
    assert len(metrics(run_folder)) in (reached, reached - 1)
    assert torchrun(2, "train", *flags, cwd=tmp_path).returncode == 0
    assert summary(run_folder)["resumed_from_step"] == [reached]
    assert_same_end(run_folder, uninterrupted)


def test_a_full_disk_costs_checkpoints_only(tmp_path: Path, cache: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small tmpfs here (needs root)")
    try:
        filler = disk / "filler"
        filler.write_bytes(bytes(8 * 2**20 - 16 * 1024))
        flags = [*RUN, "--data.cache", str(cache)]
        flags += ["--output", str(disk)]
        with (tmp_path / "log").open("wb") as log:
            job = subprocess.Popen(
                [sys.executable, "-m", "dist_train", "train", *flags], stderr=log, cwd=tmp_path
            )
        deadline = time.monotonic() + 60
        while "no checkpoint at step" not in (tmp_path / "log").read_text():
            assert job.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        filler.unlink()
        assert job.wait(120) == 0, (tmp_path / "log").read_text()
        assert summary(disk / "run")["steps"] == STEPS
        assert [line["step"] for line in metrics(disk / "run")] == list(range(1, STEPS + 1))
        assert list((disk / "run" / "checkpoints").glob("step-*"))
        done = dist_train("eval", str(disk / "run"), cwd=tmp_path)
        assert done.returncode == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
