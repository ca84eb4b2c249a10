"""A tracker in a thread of its own, so that a slow or dead one holds up nobody."""

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from dist_train.tracking import Relay, Tracker

# A tracker that is so many lines behind will not catch up. While W&B starts, a small network
# has thousands.
CAPACITY = 100_000
FINISH_SECONDS = 60  # the most a finished run waits for it
STOP_SECONDS = 10  # and one that was asked to stop, and may be killed soon


class Background(Relay):
    """Makes a tracker in a thread and passes on calls there; returns at once.

    What the tracker raises, while it is made or later, is raised by the next call.

    Args:
        name: what people call the tracker.
        make: makes it; may import heavy packages and wait for the network.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._make = make
        self._calls = queue.Queue[tuple[str, Any, Any]](CAPACITY)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        """What people call it."""
        return self._name

    def _work(self) -> None:
        tracker = Tracker()
        try:
            tracker, what = self._make(), ""
            while what != "finish":
                what, arguments, options = self._calls.get()
                getattr(tracker, what)(*arguments, **options)
        except Exception as error:
            self._error = error
            with suppress(Exception):
                tracker.abandon()

    def tell(self, what: str, *arguments: Any, **options: Any) -> None:
        """See Relay.

        Raises:
            Exception: what the tracker raised.
            TimeoutError: it is hopelessly behind.
        """
        if self._error is not None:
            raise self._error
        try:
            self._calls.put_nowait((what, arguments, options))
        except queue.Full:
            raise TimeoutError(f"it is {CAPACITY} lines behind") from None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker. Waits for the thread, but not for ever.

        Raises:
            Exception: what the tracker raised.
            TimeoutError: it did not come to an end.
        """
        self.tell("finish", summary)
        seconds = FINISH_SECONDS if summary else STOP_SECONDS
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            raise TimeoutError(f"it did not come to an end within {seconds} s")
