"""Accuracy against seconds of all runs that records hold: makes a PNG, a panel for each machine."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import NullLocator

from dist_train.figures import COLOURS, as_png, new_figure, styled
from dist_train.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
MACHINES = {  # by the names of folders, behind the date: title, range of seconds, of accuracy
    "h200": ("one NVIDIA H200", (0.7, 40), (0.93, 0.965)),
    "h100": ("one NVIDIA H100", (0.7, 40), (0.95, 0.965)),
    "two-cpu-cores": ("two cores, AMD EPYC", (0.3, 2e4), (0.4, 0.975)),
    "two-amx-cores": ("two cores, Intel Xeon with AMX", (0.3, 2e4), (0.4, 0.975)),
}


def programs(machine: str) -> dict[tuple[str, bool], list[dict[str, Any]]]:
    """Runs on a machine by the name of what was run, and whether it is a rival."""
    found = defaultdict(list)
    for path in sorted(HERE.glob(f"*-{machine}/*/runs.jsonl")):
        for run in map(json.loads, path.read_text().splitlines()):
            rival = not run["who"].startswith("seed")
            found[run["who"] if rival else path.parent.name, rival].append(run)
    return found


def picture() -> bytes:
    """One point a run: circles for ours, squares for rivals, whose names are below."""
    with styled():
        figure, panels = new_figure(len(MACHINES), 1, (7, 12), height_ratios=(2, 1, 3, 3))
        for panel, (machine, (title, seconds, accuracies)) in zip(
            panels[:, 0], MACHINES.items(), strict=True
        ):
            draw(panel, programs(machine))
            panel.set(xlim=seconds, ylim=accuracies, xlabel="seconds")
            panel.set_title(title, loc="left")
        return as_png(figure)


def draw(panel: "Axes", found: dict[tuple[str, bool], list[dict[str, Any]]]) -> None:
    """The runs of a machine."""
    for (name, rival), runs in found.items():
        seconds = [run["seconds"] for run in runs]
        accuracies = [run["accuracy"] for run in runs]
        panel.plot(seconds, accuracies, "s" if rival else "o", color=COLOURS[rival])
        if rival or name == "quickstart":  # on its left is quickstart_wider
            at, offset, side = (fmean(seconds), min(accuracies)), (0, -18), "center"
        elif min(accuracies) > 0.96:  # on its left are others
            at, offset, side = (max(seconds), max(accuracies)), (6, 7), "right"
        else:
            at, offset, side = (min(seconds), fmean(accuracies)), (-8, -4), "right"
        panel.annotate(
            f"{name}, n = {len(runs)}",
            at,
            xytext=offset,
            textcoords="offset points",
            ha=side,
            color=COLOURS[rival],
        )
    panel.set(xscale="log", yscale="logit")  # the last points are the hardest
    panel.set(yticks=[0.5, 0.6, 0.7, 0.8, 0.9, 0.94, 0.95, 0.96])
    panel.set(xticks=[1, 2, 5, 10, 20, 100, 1000, 10_000])
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.set(ylabel="test accuracy")
    panel.yaxis.set_major_formatter("{x:.0%}")


if __name__ == "__main__":
    write_atomically(HERE / "accuracy_against_seconds.png", picture())
