"""Accuracy against seconds of all runs that records hold: makes a PNG."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.ticker import NullLocator

from dist_train.figures import COLOURS, as_png, new_figure, styled
from dist_train.files import write_atomically

HERE = Path(__file__).parent


def programs() -> dict[tuple[str, bool], list[dict[str, Any]]]:
    """Runs by the name of what was run, and whether it is a rival."""
    found = defaultdict(list)
    for path in sorted(HERE.glob("*/*/runs.jsonl")):
        for run in map(json.loads, path.read_text().splitlines()):
            rival = not run["who"].startswith("seed")
            found[run["who"] if rival else path.parent.name, rival].append(run)
    return found


def picture() -> bytes:
    """One point a run: circles for ours, squares for rivals, whose names are below."""
    with styled():
        figure, panels = new_figure(1, 1, (7, 4.5))
        panel = panels[0, 0]
        for (name, rival), runs in programs().items():
            seconds = [run["seconds"] for run in runs]
            accuracies = [run["accuracy"] for run in runs]
            panel.plot(seconds, accuracies, "s" if rival else "o", color=COLOURS[rival])
            panel.annotate(
                f"{name}, n = {len(runs)}",
                (fmean(seconds), min(accuracies)) if rival else (min(seconds), fmean(accuracies)),
                xytext=(0, -18) if rival else (-8, -4),
                textcoords="offset points",
                ha="center" if rival else "right",
                color=COLOURS[rival],
            )
        panel.set(xscale="log", yscale="logit", ylim=(0.4, 0.97))  # the last points are the hardest
        panel.set(yticks=[0.5, 0.6, 0.7, 0.8, 0.9, 0.94, 0.96], xlim=(0.3, 2e4))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set(xlabel="seconds, two CPU cores", ylabel="CIFAR-10 test accuracy")
        panel.yaxis.set_major_formatter("{x:.0%}")
        return as_png(figure)


if __name__ == "__main__":
    write_atomically(HERE / "accuracy_against_seconds.png", picture())
