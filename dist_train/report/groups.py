"""Runs that differ in their seed only are one experiment: their mean, and how far they spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_train.report.reading import Run, differing, is_number
from dist_train.runs import FREE_SETTINGS, ROUNDING

Axis = Literal["step", "epoch", "seconds"]
Floats = NDArray[np.float64]

_NAMED_FIELDS = 3  # more settings make no name


@dataclass(frozen=True)
class Group:
    """Runs with the same settings, the seed and what changes no result apart."""

    label: str
    runs: Sequence[Run]


@dataclass(frozen=True)
class Curve:
    """A metric over all runs of a group, float64 (n,) each."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The experiments among the runs, in the order of their first runs.

    Only finished runs of known settings are taken together: others would cut the mean short.
    The same settings with other images are another experiment.
    """
    groups: dict[str, list[Run]] = {}
    for number, run in enumerate(runs):
        settings = sorted((name, value) for name, value in run.config.items() if decides(name))
        together = settings and run.state == "finished"
        key = repr((settings, run.manifest.get("train"))) if together else f"{number}"
        groups.setdefault(key, []).append(run)
    return [Group(label(members, runs), members) for members in groups.values()]


def decides(field: str) -> bool:
    """Whether a config field makes another experiment."""
    return field in ROUNDING or (field != "seed" and not field.startswith(FREE_SETTINGS))


def label(members: Sequence[Run], runs: Sequence[Run]) -> str:
    """What a group is called: a single run's name, else the recipe and what sets it apart."""
    first = members[0]
    if len(members) == 1:
        same = [run for run in runs if run.name == first.name]
        return first.name if len(same) == 1 else str(first.folder)
    of_recipe = [run for run in runs if run.config and run.recipe == first.recipe]
    fields = [name for name in differing(of_recipe) if decides(name)]
    if len(fields) > _NAMED_FIELDS:
        return f"{first.name} and {len(members) - 1} like it"
    parts = [first.recipe, *(f"{name.split('.')[-1]} {first.config.get(name)}" for name in fields)]
    return f"{', '.join(parts)} ({len(members)} runs)"


def curve(group: Group, metric: str, axis: Axis) -> Curve | None:
    """A metric along an axis, as far as all runs that have it go; None where none has.

    Runs are compared step by step, also along other axes: there, x is the mean of theirs.
    """
    members = [points for run in group.runs if len(points := curve_points(run, metric, axis))]
    if not members:
        return None
    first, last = (pick(p[i, 0] for p in members) for pick, i in ((max, 0), (min, -1)))
    steps = np.unique(np.concatenate([points[:, 0] for points in members]))
    steps = steps[(first <= steps) & (steps <= last)]
    if not len(steps):
        return None
    x, y = (
        np.stack([np.interp(steps, points[:, 0], points[:, column]) for points in members])
        for column in (1, 2)
    )
    return Curve(x.mean(0), y.mean(0), y.min(0), y.max(0))


def curve_points(run: Run, metric: str, axis: Axis) -> Floats:
    """Step, place on the axis, and value, where the metric was measured: float64 (n, 3)."""
    seconds = run.training_seconds
    rows = []
    for number, value in run.series(metric):
        line: Any = run.lines[number]
        x = line.get(axis) if axis != "seconds" else seconds[number] if seconds else None
        if is_number(x):
            rows.append((line["step"], x, value))
    return np.array(rows, np.float64).reshape(-1, 3)
