"""What the subjects share: settings, rounds of alternating timings, figures with their spread.

A machine's speed drifts, with its temperature and its other users. So rivals take turns, and what
is compared are two timings of the same round.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypedDict

from dist_train.config import DataConfig


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asked for."""

    seconds: float | None
    """Length of each timing; None: the subject's own."""
    repeats: int | None
    """Rounds; None: the subject's own."""
    data: DataConfig


class Figure(TypedDict):
    """Timings of one thing."""

    what: str
    median: float
    min: float
    max: float
    repeats: list[float]


@dataclass(frozen=True, slots=True)
class Measurements:
    """What a subject found."""

    ratios: dict[str, float] = field(default_factory=dict)
    measured: dict[str, Figure] = field(default_factory=dict)
    """Their units are in their names."""

    def add(self, name: str, what: str, values: Sequence[float]) -> None:
        """Adds a figure."""
        self.measured[name] = Figure(
            what=what,
            median=median(values),
            min=min(values),
            max=max(values),
            repeats=list(values),
        )

    def paired(self, name: str, over: str) -> float:
        """The median over the rounds of one figure as a multiple of another."""
        pairs = zip(self.measured[name]["repeats"], self.measured[over]["repeats"], strict=True)
        return median(value / other for value, other in pairs)


def alternate(
    contestants: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Every contestant's result of each round; in a round each has its turn."""
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, contestant in contestants.items():
            results[name].append(contestant())
            note(f"round {number} of {rounds}: {name} {results[name][-1]:,.5g}")
    return results


def note(line: str) -> None:
    """Progress, for people."""
    print(f"bench: {line}", file=sys.stderr, flush=True)
