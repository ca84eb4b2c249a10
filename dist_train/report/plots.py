"""Curves and bars over runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dist_train.errors import UserError
from dist_train.figures import COLOURS, in_legend, new_figure, percent, styled, with_legend
from dist_train.report.groups import Axis, Group, curve
from dist_train.report.reading import Run, is_number, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = (
    "setup", "prepare", "initialise", "compile", "train", "data_wait", "evaluate", "checkpoint"
)  # fmt: skip


def draw_curves(groups: Sequence[Group], quantity: str, axes: Sequence[Axis]) -> "Figure | None":
    """Accuracy or loss along some axes; training is dashed, the band spans all runs of a group."""
    figure, panels = new_figure(1, len(axes), (3.7 * len(axes) + 0.3, 3.6), sharey=True)
    for panel, axis in zip(panels[0], axes, strict=True):
        draw_runs(panel, groups, quantity, axis)
    panels[0, 0].set_ylabel(quantity)
    if quantity == "accuracy":
        panels[0, 0].yaxis.set_major_formatter(percent)
    return with_legend(figure, panels[0])


def draw_runs(panel: "Axes", groups: Sequence[Group], quantity: str, axis: Axis) -> None:
    """Training and evaluation of all groups in one panel, a colour each."""
    for number, group in enumerate(groups):
        colour = COLOURS[number % len(COLOURS)]
        for split in ("train", *dict.fromkeys(run.split for run in group.runs)):
            name = f"{group.label}, {split}"
            draw_curve(panel, group, f"{split}/{quantity}", axis, colour, label=name)
    panel.set_xlabel("seconds of training" if axis == "seconds" else axis)


def draw_curve(
    panel: "Axes", group: Group, metric: str, axis: Axis, colour: str, *, label: str
) -> None:
    """One line and its band, where the metric was measured."""
    values = curve(group, metric, axis)
    if values is None:
        return
    training = metric.startswith("train/")
    panel.plot(
        values.x,
        values.mean,
        linestyle="--" if training else "-",
        linewidth=1.2 if training else 1.8,
        # A few evaluations are points; a line between them would be all there is to see.
        marker="" if training or len(values.x) > 40 else "o",
        markersize=3.5,
        color=colour,
        label=in_legend(label),
    )
    if len(group.runs) > 1:
        panel.fill_between(values.x, values.low, values.high, color=colour, alpha=0.18, linewidth=0)


def draw_progress(groups: Sequence[Group]) -> "Figure | None":
    """Throughput, share of time spent waiting for data, and learning rate against steps."""
    metrics = {
        "perf/images_per_second": "images/s",
        "perf/data_wait": "waiting for data",
        "optim/lr": "learning rate",
    }
    figure, panels = new_figure(1, len(metrics), (11.4, 3.2))
    for panel, (metric, name) in zip(panels[0], metrics.items(), strict=True):
        for number, group in enumerate(groups):
            values = curve(group, metric, "step")
            if values is None:
                continue
            colour = COLOURS[number % len(COLOURS)]
            label = in_legend(group.label)
            panel.plot(values.x, values.mean, color=colour, linewidth=1.5, label=label)
            if len(group.runs) > 1:
                panel.fill_between(
                    values.x, values.low, values.high, color=colour, alpha=0.18, lw=0
                )
        panel.set(xlabel="step", title=name)
        panel.set_ylim(bottom=0)
    panels[0, 0].yaxis.set_major_formatter("{x:,.0f}")
    panels[0, 1].yaxis.set_major_formatter(percent)
    return with_legend(figure, panels[0])


def draw_seconds(runs: Sequence[Run]) -> "Figure | None":
    """Where the time of finished runs went: a stacked bar for each."""
    known = [run for run in runs if run.seconds]
    if not known:
        return None
    figure, panels = new_figure(1, 1, (11.4, 1.3 + 0.36 * len(known)))
    panel = panels[0, 0]
    left = np.zeros(len(known))
    for number, part in enumerate(PARTS):
        seconds = np.array([seconds_of(run, part) for run in known])
        if seconds.any():
            name = {"data_wait": "waiting for data"}.get(part, part)
            panel.barh(
                range(len(known)), seconds, 0.7, left, color=COLOURS[number], label=name, lw=0
            )
            left += seconds
    for row, total in enumerate(left):
        panel.annotate(
            f"{total:,.0f} s", (total, row), (4, 0), textcoords="offset points", va="center"
        )
    panel.set_yticks(range(len(known)), [run.name for run in known])
    panel.set(xlabel="seconds", xlim=(0, max(left.max() * 1.07, 1e-9)))
    panel.invert_yaxis()
    panel.grid(visible=False, axis="y")
    return with_legend(figure, [panel])


def seconds_of(run: Run, part: str) -> float:
    """Seconds of a part; waiting for data is taken out of training."""
    value, wait = (
        s if is_number(s := run.seconds.get(name)) else 0.0 for name in (part, "data_wait")
    )
    return max(0.0, value - wait) if part == "train" else float(value)


def plot_runs(folders: Sequence[Path], path: Path) -> None:
    """Draws accuracy and loss of runs against epochs; the file's ending says which kind of picture.

    Training curves are dashed.

    Raises:
        UserError: a folder holds no metrics, or the picture cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if not run.lines:
            raise UserError(f"{run.folder} has no metrics yet: expected {run.folder}/metrics.jsonl")
    with styled(**{"svg.fonttype": "path"}):
        figure, panels = new_figure(1, 2, (10, 4))
        for panel, quantity in zip(panels[0], ("accuracy", "loss"), strict=True):
            draw_runs(panel, [Group(run.name, [run]) for run in runs], quantity, "epoch")
            panel.set_ylabel(quantity)
        panels[0, 0].yaxis.set_major_formatter(percent)
        panels[0, 0].legend(loc="lower right")
        try:
            figure.savefig(path, dpi=120)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot write {path}: {error}; choose another --out") from error
