"""Who is told about a run: one interface, a dict of names to numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tracker(Protocol):
    """Hears every line of metrics, and how the run ended."""

    def log(self, metrics: Mapping[str, float]) -> None:
        """One line; `step` and `epoch` are among the metrics."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over; `summary` is what summary.json holds."""
        ...


class Trackers:
    """Several trackers as one; none at all on ranks other than 0."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.log(metrics)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.finish(summary)
