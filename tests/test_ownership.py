"""One process at a time trains in a run's directory."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dist_train.config import Config
from dist_train.ownership import claim, release
from dist_train.train import train
from tests.conftest import SMALL, dist_train, folder, lines_so_far, until


def test_a_second_process_does_not_train_in_the_same_run(tmp_path: Path, cache: Path) -> None:
    flags = ["cnn2", *SMALL, "--data.cache", str(cache), "--name", "run"]
    flags += ["--train.epochs", "300", "--train.log_every", "1", "--runtime.threads", "1"]
    run_folder = tmp_path / "runs" / "run"
    command = [sys.executable, "-m", "dist_train", "train", *flags]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as first:
        until(lambda: lines_so_far(run_folder) > 0, "the first line", 120)
        unfinished = run_folder / ".metrics.jsonl.1.tmp"
        unfinished.touch()
        done = dist_train("train", *flags, cwd=tmp_path)
        assert done.returncode == 2
        assert f"process {first.pid} of this machine trains this run" in done.stderr
        assert unfinished.exists()  # another's files are left alone
        lines = lines_so_far(run_folder)
        until(lambda: lines_so_far(run_folder) > lines, "more lines of the first one")
        first.kill()
    (run_folder / "STOP").touch()
    assert dist_train("train", *flags, cwd=tmp_path).returncode == 75  # killed: nobody's
    assert not unfinished.exists()
    assert not list((tmp_path / "runs").rglob(".owner*"))


@pytest.mark.slow
def test_of_processes_that_start_together_one_trains(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from dist_train.ownership import claim\n"
        "time.sleep(float(sys.argv[1]) - time.time()); claim(Path(sys.argv[2]))\n"
        "print('claimed', flush=True); time.sleep(8)"
    )
    for attempt in range(3):
        command = [sys.executable, "-c", code, str(time.time() + 2), str(tmp_path / str(attempt))]
        starting = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            for _ in range(4)
        ]
        said = [process.communicate()[0] for process in starting]
        assert sorted(said) == [b"", b"", b"", b"claimed\n"]


def test_of_other_processes_nobody_is_kept_waiting(small: Config) -> None:
    """Neither by one that is gone, nor by a later one of its number, nor by other machines'."""
    me, parent = psutil.Process(), psutil.Process(os.getppid())
    here, started = socket.gethostname(), parent.create_time()
    owners = [
        {"host": here, "pid": parent.pid, "started": started - 1000},
        {"host": here, "pid": 2**22 + 1, "started": started},
        {"host": f"not-{here}", "pid": parent.pid, "started": started},
        {"host": here, "pid": me.pid, "started": me.create_time()},
        {"damaged": True},
    ]
    for number, owner in enumerate(owners):
        config = replace(small, name=f"run{number}", train=replace(small.train, max_steps=1))
        folder(config).mkdir(parents=True)
        (folder(config) / ".owner.json").write_text(json.dumps(owner))
        assert train(config)["steps"] == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_will_do(
    small: Config, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refused)
    small = replace(small, train=replace(small.train, max_steps=1))
    claim(folder(small))
    assert (folder(small) / ".owner.json").exists()
    release(folder(small))
    assert not list(folder(small).iterdir())
