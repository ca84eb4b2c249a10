"""W&B's real offline files, read back with its own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb")

from dist_train.tracking.wandb_setup import choose_mode
from tests.conftest import SMALL, dist_train, metrics, summary


def inspect(run_folder: Path, *flags: str) -> str:
    """What W&B's own reader finds in the offline files of a run, as JSON."""
    (offline,) = run_folder.glob("wandb/offline-run-*")
    command = (sys.executable, "-m", "wandb", "leet", "inspect", *flags, "--json", str(offline))
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_offline_run_holds_what_metrics_jsonl_holds(tmp_path: Path, cache: Path) -> None:
    flags = ["cnn2", *SMALL, "--tracking.wandb", "offline", "--data.cache", str(cache)]
    flags += ["--name", "run", "--train.epochs", "2", "--train.log_every", "2"]
    done = dist_train("train", *flags, cwd=tmp_path)
    assert done.returncode == 0
    folder = tmp_path / "runs" / "run"
    assert "wandb sync" in done.stdout
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    logged = [record["history"]["item"] for record in records if record["type"] == "history"]
    expected = metrics(folder)
    assert [line["train/step"] for line in logged] == [line["step"] for line in expected]
    for ours, theirs in zip(expected, logged, strict=True):
        for name in ours.keys() - {"step", "time"}:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-6), name
    state = json.loads(inspect(folder, "--summary"))
    assert state["run_id"] == (folder / "wandb-id").read_text()
    assert state["summary"]["test_accuracy"] == summary(folder)["test_accuracy"]
    assert state["summary"]["test/accuracy"]["max"] == max(
        line["test/accuracy"] for line in expected if "test/accuracy" in line
    )
    assert state["config"]["data"]["dataset"] == "shapes"


@pytest.mark.parametrize(
    ("environment", "mode", "expected"),
    [
        ({}, "auto", "offline"),
        ({"WANDB_API_KEY": "x" * 40}, "auto", "online"),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, "auto", "offline"),
        ({"WANDB_MODE": "disabled"}, "auto", "off"),
        ({"WANDB_MODE": "online"}, "off", "off"),
    ],
)
def test_without_a_login_runs_are_offline(
    environment: dict[str, str],
    mode: Any,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert choose_mode(mode) == expected
