"""A run that is told to stop saves itself, says "try again", and goes on to the same weights."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dist_train.preemption import EXIT_CODE
from tests.conftest import (
    REPOSITORY,
    SMALL,
    assert_same_weights,
    dist_train,
    lines_so_far,
    metrics,
    summary,
    torchrun,
    until,
)

LONG = ["cnn2", *SMALL, "--train.epochs", "60", "--train.log_every", "1", "--train.eval_every", "0"]
SIGNALS = [
    signal.SIGTERM,
    signal.SIGUSR1,
    pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    pytest.param(signal.SIGUSR2, marks=pytest.mark.slow),
]


def start(folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    """A run in the background; what it says on stderr is in the file `errors`."""
    with (folder / "errors").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "dist_train", "train", *flags],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def wait_for_steps(run_folder: Path, steps: int) -> None:
    until(lambda: lines_so_far(run_folder) >= steps, f"{run_folder} has {steps} steps", 120)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    flags = [*LONG, "--data.cache", str(cache), "--name", "run"]
    assert dist_train("train", *flags, cwd=folder).returncode == 0
    return folder / "runs" / "run"


def assert_same_end(run_folder: Path, expected: Path) -> None:
    assert_same_weights(run_folder, expected)
    steps = [line["step"] for line in metrics(run_folder)]
    assert steps == [line["step"] for line in metrics(expected)]
    assert summary(run_folder)["test_accuracy"] == summary(expected)["test_accuracy"]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signals(number: signal.Signals, tmp_path: Path, cache: Path, uninterrupted: Path) -> None:
    flags = [*LONG, "--data.cache", str(cache), "--name", "run"]
    process = start(tmp_path, *flags)
    run_folder = tmp_path / "runs" / "run"
    wait_for_steps(run_folder, 20)
    asked = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == EXIT_CODE
    assert time.monotonic() - asked < 10
    assert "run again to go on" in (tmp_path / "errors").read_text()
    assert not (run_folder / "summary.json").exists()
    assert dist_train("train", *flags, cwd=tmp_path).returncode == 0
    (resumed_from,) = summary(run_folder)["resumed_from_step"]
    assert resumed_from >= 20
    assert_same_end(run_folder, uninterrupted)


def test_the_stop_file(tmp_path: Path, cache: Path, uninterrupted: Path) -> None:
    flags = [*LONG, "--data.cache", str(cache), "--name", "run"]
    process = start(tmp_path, *flags)
    run_folder = tmp_path / "runs" / "run"
    wait_for_steps(run_folder, 20)
    (run_folder / "STOP").touch()
    assert process.wait(30) == EXIT_CODE
    (run_folder / "STOP").unlink()
    assert dist_train("train", *flags, cwd=tmp_path).returncode == 0
    assert_same_end(run_folder, uninterrupted)


def test_the_documented_loop_goes_on_after_anything(
    tmp_path: Path, cache: Path, uninterrupted: Path
) -> None:
    text = (REPOSITORY / "docs" / "distributed.md").read_text()
    loop = text.partition("```sh\n")[2].partition("```")[0]
    flags = [*LONG, "--data.cache", str(cache), "--checkpoint.every_steps", "16", "--name", "mine"]
    shown = "dist-train train resnet18 --name mine --checkpoint.every_steps 500"
    assert shown in loop
    script = loop.replace(shown, shlex.join([sys.executable, "-m", "dist_train", "train", *flags]))
    supervisor = subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    run_folder = tmp_path / "runs" / "mine"
    steps = 0
    for number in (signal.SIGUSR1, signal.SIGKILL):
        wait_for_steps(run_folder, steps + 40)  # far enough for a checkpoint of its own
        steps = lines_so_far(run_folder)
        (trainer,) = psutil.Process(supervisor.pid).children()
        trainer.send_signal(number)
        trainer.wait(30)
    assert supervisor.wait(200) == 0
    assert len(summary(run_folder)["resumed_from_step"]) == 2
    assert_same_end(run_folder, uninterrupted)


def test_ranks_leave_together_when_the_checkpoint_takes_its_time(
    tmp_path: Path, cache: Path
) -> None:
    """A launcher ends the other ranks as soon as one has left: rank 0 may still be writing."""
    (tmp_path / "slow_disk").mkdir()
    (tmp_path / "slow_disk" / "sitecustomize.py").write_text(
        "import atexit, os, pathlib, time\n"
        "fsync = os.fsync\n"
        "def slow(file):\n"
        "    if 'checkpoints' in os.readlink(f'/proc/self/fd/{file}'): time.sleep(4)\n"
        "    fsync(file)\n"
        "os.fsync = slow\n"
        # What the first rank to leave finds: then the launcher ends the others.
        "saved = pathlib.Path('runs/run/checkpoints/step-000000002.pt')\n"
        "if os.environ.get('RANK') == '1':\n"
        "    atexit.register(lambda: pathlib.Path('found').write_text(str(saved.exists())))\n"
    )
    run_folder = tmp_path / "runs" / "run"
    run_folder.mkdir(parents=True)
    (run_folder / "STOP").touch()
    flags = [*LONG, "--data.cache", str(cache), "--name", "run"]
    path = f"{tmp_path / 'slow_disk'}:{REPOSITORY}"
    done = torchrun(2, "train", *flags, cwd=tmp_path, PYTHONPATH=path)
    assert "stopped after step 2" in done.stderr
    assert (tmp_path / "found").read_text() == "True"


def test_test_time_augmentation_at_the_end_is_given_up(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(
        "import math, os, time\n"
        "from torch import nn\n"
        "class Slow(nn.Flatten):\n"
        "    def forward(self, x):\n"
        "        if not self.training: time.sleep(float(os.environ['SECONDS']))\n"
        "        return super().forward(x)\n"
        "def build(classes, shape):\n"
        "    return nn.Sequential(Slow(), nn.Linear(math.prod(shape), classes))\n"
    )
    flags = ["cnn2", *SMALL, "--data.cache", str(cache), "--name", "run", "--train.max_steps", "3"]
    flags += ["--model.target", "slow:build", "--train.eval_every", "0", "--train.tta", "shift"]
    flags += ["--data.eval_batch_size", "20"]  # five batches of six views
    monkeypatch.setenv("SECONDS", "0.5")
    process = start(tmp_path, *flags)
    run_folder = tmp_path / "runs" / "run"
    wait_for_steps(run_folder, 1)  # it comes with the plain evaluation
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == EXIT_CODE
    assert "stopped after step 3" in (tmp_path / "errors").read_text()
    assert not (run_folder / "summary.json").exists()
    assert dist_train("train", *flags, cwd=tmp_path, SECONDS="0").returncode == 0
    assert summary(run_folder)["resumed_from_step"] == [3]
    assert len(metrics(run_folder)) == 1


def test_all_ranks_stop_at_the_same_step(tmp_path: Path, cache: Path) -> None:
    # The stop file is seen by rank 0 alone; the ranks agree, or one of them would hang.
    flags = [*LONG, "--data.cache", str(cache), "--name", "run"]
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "STOP").touch()
    done = torchrun(2, "train", *flags, cwd=tmp_path)
    assert done.returncode != 0
    assert "stopped after step 2" in done.stderr
    (tmp_path / "runs" / "run" / "STOP").unlink()
    done = torchrun(2, "train", *flags, "--train.log_every", "7", cwd=tmp_path)
    assert done.returncode == 0
    assert summary(tmp_path / "runs" / "run")["resumed_from_step"] == [2]
