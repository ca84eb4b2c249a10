"""Who is told about a run: one interface, a dict of names to numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_train.mistakes import Shares

log = logging.getLogger("dist_train")

STOPPED = "Stopped"
"""Title of the warning before a run that was asked to stop ends."""


class Tracker:
    """Hears what happens in a run, on rank 0. Here it hears and says nothing."""

    def __str__(self) -> str:
        """What people call it."""
        return type(self).__name__

    def log(self, metrics: Mapping[str, float]) -> None:
        """One line; `step` and `epoch` are among the metrics."""

    def evaluated(self, step: int, probabilities: Shares, labels: NDArray[np.int64]) -> None:
        """Every answer of an evaluation; the line of this step follows.

        Args:
            step: optimizer steps done.
            probabilities: float32 (N, classes).
            labels: int64 (N,).
        """

    def checkpointed(self, step: int, path: Path, *, best: bool) -> None:
        """A checkpoint of this step is being written to `path`; `best`: the best so far."""

    def warn(self, title: str, text: str) -> None:
        """Something a person should know of: a stop asked for, a loss that is not finite."""

    def rewind(self, step: int) -> None:
        """Training goes on from here: what was logged for later steps will be logged again."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The process ends; `summary` is what summary.json holds, empty for an unfinished run."""

    def abandon(self) -> None:
        """It failed and will not be told anything more: it lets go of what it holds."""


class Relay(Tracker):
    """A tracker that passes on whatever it hears by `tell`."""

    def tell(self, what: str, *arguments: Any, **options: Any) -> None:
        """Passes on a call: the name of one of Tracker's methods, and what it is called with."""
        raise NotImplementedError

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        self.tell("log", metrics)

    def evaluated(self, step: int, probabilities: Shares, labels: NDArray[np.int64]) -> None:
        """See Tracker."""
        self.tell("evaluated", step, probabilities, labels)

    def checkpointed(self, step: int, path: Path, *, best: bool) -> None:
        """See Tracker."""
        self.tell("checkpointed", step, path, best=best)

    def warn(self, title: str, text: str) -> None:
        """See Tracker."""
        self.tell("warn", title, text)

    def rewind(self, step: int) -> None:
        """See Tracker."""
        self.tell("rewind", step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker."""
        self.tell("finish", summary)


class Trackers(Relay):
    """Several trackers as one; none at all on ranks other than 0.

    One that fails is reported once and not asked again: it may not cost a run.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def tell(self, what: str, *arguments: Any, **options: Any) -> None:
        """See Relay."""
        for tracker in list(self._trackers):
            try:
                getattr(tracker, what)(*arguments, **options)
            except Exception as error:
                self._trackers.remove(tracker)
                reason = str(error).partition("\n")[0] or type(error).__name__
                log.warning(
                    "%s failed and is left out from now on, metrics.jsonl has everything: %s",
                    tracker,
                    reason,
                )

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker; nothing is told to them afterwards."""
        self.tell("finish", summary)
        self._trackers = []
