"""Who is told about a run: one interface, a dict of names to numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("dist_train")


class Tracker:
    """Hears what happens in a run, on rank 0. Here it hears and says nothing."""

    def log(self, metrics: Mapping[str, float]) -> None:
        """One line; `step` and `epoch` are among the metrics."""

    def evaluated(self, step: int, logits: Tensor, labels: Tensor) -> None:
        """Every answer of an evaluation.

        Args:
            step: optimizer steps done.
            logits: float32 (N, classes), on the CPU.
            labels: int64 (N,), on the CPU.
        """

    def checkpointed(self, step: int, path: Path, *, best: bool) -> None:
        """A checkpoint of this step is being written to `path`; `best`: the best so far."""

    def warn(self, title: str, text: str) -> None:
        """Something a person should know of: a stop asked for, a loss that is not finite."""

    def rewind(self, step: int) -> None:
        """Training goes on from here: what was logged for later steps will be logged again."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The process ends; `summary` is what summary.json holds, empty for an unfinished run."""


class Trackers(Tracker):
    """Several trackers as one; none at all on ranks other than 0.

    One that fails is reported once and not asked again: it may not cost a run.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def _tell(self, what: str, *arguments: Any, **options: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, what)(*arguments, **options)
            except Exception as error:
                self._trackers.remove(tracker)
                name = type(tracker).__name__
                log.warning("%s failed and is left out from now on: %r", name, error)

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        self._tell("log", metrics)

    def evaluated(self, step: int, logits: Tensor, labels: Tensor) -> None:
        """See Tracker."""
        self._tell("evaluated", step, logits, labels)

    def checkpointed(self, step: int, path: Path, *, best: bool) -> None:
        """See Tracker."""
        self._tell("checkpointed", step, path, best=best)

    def warn(self, title: str, text: str) -> None:
        """See Tracker."""
        self._tell("warn", title, text)

    def rewind(self, step: int) -> None:
        """See Tracker."""
        self._tell("rewind", step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker; nothing is told to them afterwards."""
        self._tell("finish", summary)
        self._trackers = []
