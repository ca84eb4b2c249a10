"""Files in launch/: a sweep and a dashboard for W&B, and a wire as slow as one likes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SMALL, run, summary


def test_the_sweep_starts_runs_that_our_command_line_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb.env
    import yaml
    from wandb.wandb_agent import Agent

    sweep = yaml.safe_load((REPOSITORY / "launch" / "sweep.yaml").read_text())
    # What `wandb agent` runs, but for the interpreter, which shows the config instead.
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$1" = dist_train/main.py ] || exit 1\nshift\n'
        f'exec {sys.executable} -m dist_train show "$@" > {tmp_path}/shown\n'
    )
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=":")
    monkeypatch.chdir(tmp_path)
    for name in (wandb.env.RUN_ID, wandb.env.SWEEP_PARAM_PATH):
        monkeypatch.setenv(name, "")
    agent = Agent(api=None, queue=None)
    agent._sweep_command = sweep["command"]
    values = {"optim.learning_rate": 0.05, "train.label_smoothing": 0.1}
    agent._command_run(
        {
            "run_id": "abc",
            "program": sweep["program"],
            "args": {name: {"value": value} for name, value in values.items()},
        }
    )
    assert agent._run_processes["abc"].wait() == 0
    shown = (tmp_path / "shown").read_text().splitlines()
    found = {line.split()[0]: line.split(maxsplit=2)[1:] for line in shown}
    for name, value in values.items():
        assert found[name] == [str(value), "command line"]
    assert found["data.validation"][0] == "5000"
    assert set(sweep["parameters"]) <= found.keys()
    # What it is judged by is what a run with held-out images logs.
    assert sweep["metric"]["name"] == "validation/best_accuracy"


def namespaces() -> set[str]:
    """The names of the network namespaces of this machine."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines()}


@pytest.mark.slow
def test_two_machines_train_over_a_slow_wire(tmp_path: Path, cache: Path) -> None:
    if not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("needs iproute2")
    namespace = f"probe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", namespace]).returncode:
        pytest.skip("needs root")
    subprocess.run(["ip", "netns", "del", namespace], check=True)
    before = namespaces()
    flags = ["cnn2", *SMALL, "--data.cache", str(cache), "--train.max_steps", "4"]
    where = ["--output", str(tmp_path), "--name", "run"]
    done = run("launch/slow_link.sh", "100mbit", *flags, *where, cwd=REPOSITORY)
    assert done.returncode == 0
    assert summary(tmp_path / "run")["world_size"] == 2
    # Not "none is left": one killed with -9, or another at work now, has its own.
    assert namespaces() <= before
    assert run("launch/slow_link.sh", cwd=REPOSITORY).returncode == 2


def test_the_dashboard_shows_what_runs_log() -> None:
    script = str(REPOSITORY / "launch" / "wandb_dashboard.py")
    done = run(sys.executable, script, "--dry_run", cwd=REPOSITORY)
    assert done.returncode == 0
    built = json.loads(done.stdout)
    text = json.dumps(built["workspace"])
    assert built["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    names = [
        *("test/accuracy", "train/loss", "perf/images_per_second", "perf/data_wait"),
        *("perf/train_seconds", "perf/step_seconds_p95", "perf/mfu", "perf/slowest_rank"),
        *("^rank/.*", "^optim/lr.*", "optim/gradient_norm", "_runtime"),
    ]
    for name in names:
        assert f'"{name}"' in text, name
    assert "test/mistakes" in json.dumps(built["report"])
