"""Grids of runs: what they mean, that they go on, and what they end with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_train import options
from dist_train.errors import UserError
from dist_train.sweep.execute import submit
from dist_train.sweep.plan import plan
from dist_train.sweep.study import results, table
from tests.conftest import REPOSITORY, SMALL, dist_train, summary


def test_a_grid() -> None:
    flags = ["cnn2,cnn3", "--train.epochs", "1,2", "--model.widths", "4,8;8,16", "--data.cutout=3"]
    sweep = plan([*flags, "--output", "out"], seeds=2, sample=None)
    assert sweep.folder == Path("out/sweep-cnn2-cnn3-epochs-widths")
    assert len(sweep.runs) == 2 * 2 * 2 * 2
    run = sweep.runs[-1]
    assert run.varied == {"recipe": "cnn3", "train.epochs": "2", "model.widths": "8,16"}
    assert (run.config.recipe, run.config.train.epochs, run.config.seed) == ("cnn3", 2.0, 1)
    assert run.config.model.widths == (8, 16)
    assert {r.config.data.cutout for r in sweep.runs} == {3}
    assert run.folder == Path(run.config.output, str(run.config.name))
    assert len(plan(flags, seeds=2, sample=3).runs) == 3 * 2
    assert plan(["cnn2", "--name", "mine", "--seed", "7"], seeds=1, sample=None).runs[
        0
    ].folder == Path("runs/mine/seed=7")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("cnn2 --train.epochs 1,many", "--train.epochs many"),
        ("cnn2,cnn22", "cnn22"),
        ("cnn2 --train.epochs 1,1", "--train.epochs"),
        ("cnn2 --seed 0,1", "--seed 0,1"),
        ("cnn2 --train.epoch 1,2", "--train.epochs"),
    ],
)
def test_a_wrong_grid(flags: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        plan(flags.split(), seeds=1, sample=None)


def test_rows_over_seeds(tmp_path: Path) -> None:
    sweep = plan(["cnn2", "--train.epochs", "1,2", "--output", str(tmp_path)], seeds=3, sample=None)
    for run, accuracy in zip(sweep.runs, (0.5, 0.6, 0.7, 0.8), strict=False):
        run.folder.mkdir(parents=True)
        seconds = {"train": 2.0, "total": 3.0}
        values = {"test_accuracy": accuracy, "seconds": seconds, "images_per_second": 100.0}
        (run.folder / "summary.json").write_text(json.dumps(values))
    rows = results(sweep)
    assert [row["n"] for row in rows] == [3, 1]
    assert rows[0]["accuracy_mean"] == pytest.approx(0.6)
    assert rows[0]["accuracy_std"] == pytest.approx(0.1)
    assert rows[1]["accuracy_std"] is None
    text = table(rows, ["train.epochs"])
    assert "| 1 | 60.00% | 10.00% | 2.0 s | 3 |" in text
    assert "| test accuracy |" in text
    varied = ["cnn2", "--data.validation", "0,500", "--output", str(tmp_path / "other")]
    rows = results(plan(varied, seeds=1, sample=None))
    assert [row["accuracy_of"] for row in rows] == ["test", "validation"]
    assert "| accuracy |" in table(rows, ["data.validation"])


TINY = ["sweep", "cnn2", *SMALL, "--train.max_steps", "30", "--optim.learning_rate", "0.1,0.01"]


def test_a_sweep_goes_on_after_kill_9(tmp_path: Path, cache: Path) -> None:
    flags = [*TINY, "--data.cache", str(cache), "--name", "s"]
    folder = tmp_path / "runs" / "s"
    with subprocess.Popen(
        [sys.executable, "-m", "dist_train", *flags], cwd=tmp_path, start_new_session=True
    ) as first:
        while not (done := list(folder.glob("*/summary.json"))):
            assert first.poll() is None
            time.sleep(0.1)
        first.kill()
    before = {path: path.stat().st_mtime_ns for path in done}
    assert len(before) == 1
    assert not (folder / "table.md").exists()

    again = dist_train(*flags, cwd=tmp_path)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished ones stay"
    names = [f"learning_rate={rate}_seed=0" for rate in ("0.1", "0.01")]
    rows = json.loads((folder / "results.json").read_text())
    assert [row["n"] for row in rows] == [1, 1]
    for name, row in zip(names, rows, strict=True):
        assert row["accuracy_mean"] == summary(folder / name)["test_accuracy"]
        assert name in (folder / f"{name}.log").read_text()
    assert (folder / "table.md").read_text() in again.stdout
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")

    # Finished: nothing is left to run. Other settings under the same name are refused.
    other = dist_train(*flags, "--train.label_smoothing", "0.1", cwd=tmp_path)
    assert other.returncode == 2
    assert "--train.label_smoothing" in other.stderr


def test_runs_end_with_the_sweep_and_the_log_is_theirs(tmp_path: Path) -> None:
    # A stand-in for python: tells its environment, then holds the log until it is told to end.
    (run,) = plan(["cnn2", "--output", str(tmp_path)], seeds=1, sample=None).runs
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho $WANDB_RUN_GROUP $CUDA_VISIBLE_DEVICES\nexec sleep 60\n")
    script.chmod(0o755)
    parent = (
        "import sys, time; from pathlib import Path; from dist_train.sweep.plan import plan;"
        "from dist_train.sweep.execute import start;"
        f"(run,) = plan(['cnn2', '--output', {str(tmp_path)!r}], seeds=1, sample=None).runs;"
        f"sys.executable = {str(script)!r};"
        "print(start(run, 'group', 3, 4).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "4,6"},
    ) as sweep:
        assert sweep.stdout
        child = int(sweep.stdout.readline())
        log = run.folder.with_name(f"{run.folder.name}.log")
        while log.read_text() != "group 6\n":
            time.sleep(0.05)
        locked = ["flock", "--nonblock", str(log), "true"]
        assert subprocess.run(locked).returncode == 1
        sweep.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while subprocess.run(locked).returncode and time.monotonic() < deadline:
        time.sleep(0.05)
    assert subprocess.run(locked).returncode == 0, f"process {child} lives on"


def test_a_job_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$@" "group $WANDB_RUN_GROUP"\n')
    fake.chmod(0o755)
    monkeypatch.chdir(REPOSITORY)
    flags = ["cnn2", "--train.epochs", "1,2", "--model.widths", "4,8", "--name", "mine"]
    sweep = plan([*flags, "--output", str(tmp_path)], seeds=2, sample=None)
    monkeypatch.setenv("PATH", "/usr/bin-of-nobody")
    with pytest.raises(UserError, match="--slurm: expected sbatch"):
        submit(sweep)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    sweep.runs[1].folder.mkdir(parents=True)
    (sweep.runs[1].folder / "summary.json").touch()
    said = submit(sweep)
    (path,) = (tmp_path / "mine").glob("runs-*.txt")
    assert said == f"--array=1,3,4 --job-name=mine slurm/sweep.sh {path} group mine"
    for line, run in zip(path.read_text().splitlines(), sweep.runs, strict=True):
        assert options.parse(line.split(), "test")[0] == run.config
    # Another sweep of that name leaves the file alone that this array may still have to read.
    before = path.read_bytes()
    submit(
        plan([*flags, "--train.max_steps", "9", "--output", str(tmp_path)], seeds=2, sample=None)
    )
    assert path.read_bytes() == before
    assert len(list(path.parent.glob("runs-*.txt"))) == 2
