"""Pictures from run directories."""

import json
from pathlib import Path

import pytest

from dist_train.errors import UserError
from dist_train.report import plot_runs


def make_run(folder: Path, steps: int) -> Path:
    folder.mkdir()
    lines = [
        {"step": s, "epoch": s / 10, "train/accuracy": s / 100, "train/loss": 1 - s / 100}
        | ({"test/accuracy": s / 120, "test/loss": 1.1 - s / 100} if s % 10 == 0 else {})
        for s in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_are_drawn_into_one_picture(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "first", 50), make_run(tmp_path / "half", 7)]
    plot_runs(runs, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for expected in ("first, test", "first, train", "half, train", "epoch"):
        assert f"<!-- {expected} -->" in text
    assert "half, test" not in text
    plot_runs(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_metrics_and_a_wrong_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no metrics yet"):
        plot_runs([tmp_path / "nothing"], tmp_path / "plot.png")
    with pytest.raises(UserError, match=r"plot\.xyz.*--out"):
        plot_runs([make_run(tmp_path / "run", 10)], tmp_path / "plot.xyz")
