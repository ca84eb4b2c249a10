"""What people see: on a terminal of 80 columns, and in a log file."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from dist_train.tracking.console import Console, clock
from tests.conftest import REPOSITORY

# Twenty lines in no time, three of them with an evaluation.
SESSION = """
import pathlib, sys
from dist_train.tracking import console
console.SECONDS_BETWEEN_PICTURES = 0
with console.working("compiling"):
    pass
view = console.Console(
    first_step=0, total_steps=400, steps_per_epoch=200, split="test"
)
for step in range(20, 401, 20):
    line = {"step": step, "epoch": step / 200, "train/loss": 1 / step, "train/accuracy": 0.5}
    line |= {"perf/images_per_second": 1234567.8, "perf/data_wait": 0.01, "optim/lr": 0.012345}
    line |= {"perf/memory_bytes": 2.5e9}
    if step % 200 == 0:
        line |= {"test/accuracy": 0.7, "test/best_accuracy": 0.8, "test/loss": 0.9}
        view.checkpointed(step, pathlib.Path("x"), best=True)
    view.log(line)
    if step == 300:
        view.warn("Loss is not finite", "a warning " + "that is long " * 20)
if "fail" in sys.argv:
    raise SystemExit("it ended badly")
view.finish({})
"""


def on_terminal(*arguments: str, columns: int = 80, **environment: str) -> str:
    """What the session writes to a terminal."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION, *arguments],
        stdout=terminal,
        stderr=terminal,
        stdin=terminal,
        cwd=REPOSITORY,
        env=kept | {"TERM": "xterm-256color"} | environment,
    )
    os.close(terminal)
    written = b""
    while True:
        try:
            block = os.read(controller, 65536)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        written += block
    os.close(controller)
    process.wait()
    return written.decode()


def test_the_live_view_fits_a_terminal_and_leaves_it_as_it_was() -> None:
    written = on_terminal()
    for part in ("epoch 2/2", "step 400/400", "loss 0.0025", "1,234,568 images/s", "memory 2.5 GB"):
        assert part in written
    for part in ("test 70.00%", "best 80.00%", "checkpoint at step 200", "left", "compiling: 0 s"):
        assert part in written
    assert "Loss is not finite: a warning" in written
    pictures = [line for line in plain(written).splitlines() if not line.startswith("epoch   ")]
    assert max(map(len, pictures)) <= 80
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back
    assert "\x1b[3" in written  # in colour


def plain(written: str) -> str:
    """Without escape sequences; what overwrites a line is a line of its own."""
    import re

    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.replace("\r", "\n"))


def test_no_color_and_narrow_terminals_and_bad_ends() -> None:
    written = on_terminal("fail", columns=60, NO_COLOR="1")
    assert "\x1b[3" not in written
    pictures = [line for line in plain(written).splitlines() if not line.startswith("epoch   ")]
    assert max(map(len, pictures)) <= 60
    assert "it ended badly" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    dumb = on_terminal(TERM="dumb")
    assert "\x1b" not in dumb
    assert "test 70.00%" in dumb


def test_a_log_file_gets_plain_lines_at_a_sane_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a log file is no terminal for that
    exec(SESSION, {"__name__": "session"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "compiling ..."
    # The first line, and those with an evaluation: the others came within seconds.
    steps = [int(line.split("step")[1].split()[0]) for line in lines if "loss" in line]
    assert steps == [20, 200, 400]
    assert "\x1b" not in "".join(lines)


def test_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    view = Console(first_step=100, total_steps=200, steps_per_epoch=50, split="test")
    view.log({"step": 110, "epoch": 2.2})
    assert "0:00 left" in capsys.readouterr().out
    assert (clock(59.6), clock(3723)) == ("1:00", "1:02:03")


def test_only_rank_0_prints(tmp_path: Path, cache: Path) -> None:
    from tests.conftest import SMALL, torchrun

    flags = ["cnn2", *SMALL, "--data.cache", str(cache), "--name", "run", "--train.max_steps", "3"]
    done = torchrun(2, "train", *flags, "--train.log_every", "1", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("test ") == 2  # the evaluation, and the result
    from tests.conftest import metrics

    line = metrics(tmp_path / "runs" / "run")[-1]
    assert line["rank/0/images_per_second"] > 0
    assert line["rank/1/images_per_second"] > 0
    assert line["perf/slowest_rank"] in (0, 1)
    assert line["perf/images_per_second_per_device"] == line["perf/images_per_second"] / 2
