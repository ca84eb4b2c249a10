"""Accuracy against seconds of all that `dist-train bench speed` left in records: makes a PNG."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from dist_train.figures import COLOURS, as_png, new_figure, styled
from dist_train.files import write_atomically

HERE = Path(__file__).parent


def programs() -> Iterator[tuple[str, bool, list[dict[str, Any]]]]:
    """Name, whether it is a rival, and runs."""
    for path in sorted(HERE.glob("*/*/speed.json")):
        report = json.loads(path.read_text())
        yield report["recipe"], False, report["runs"]
        if report["rival_runs"]:
            script = re.search(r"(\w+)\.py", report["rival"])
            yield script[1] if script else report["rival"], True, report["rival_runs"]


def picture() -> bytes:
    """One point a run, circles for ours and squares for rivals."""
    with styled():
        figure, panels = new_figure(1, 1, (7, 4.5))
        panel = panels[0, 0]
        for number, (name, rival, runs) in enumerate(programs()):
            seconds = [run["seconds"] for run in runs]
            accuracies = [run["accuracy"] for run in runs]
            colour, marker = COLOURS[number // 2 % len(COLOURS)], "s" if rival else "o"
            fill = "none" if rival else colour
            panel.plot(seconds, accuracies, marker, color=colour, markerfacecolor=fill)
            panel.annotate(
                f"{name}, n = {len(runs)}",
                (fmean(seconds), fmean(accuracies)),
                xytext=(0, -16),
                textcoords="offset points",
                ha="center",
                color=colour,
            )
        panel.set(xscale="log", xlabel="seconds", ylabel="CIFAR-10 test accuracy")
        panel.yaxis.set_major_formatter("{x:.0%}")
        panel.margins(0.15)
        return as_png(figure)


if __name__ == "__main__":
    write_atomically(HERE / "accuracy_against_seconds.png", picture())
