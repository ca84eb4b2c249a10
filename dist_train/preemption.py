"""Signals, a stop file and the clock become decisions that all ranks take at the same step."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from dist_train.runtime import Runtime

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command, run again, goes on


class Interrupted(Exception):
    """An evaluation was given up, as the run is asked to stop."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a step; the same on all ranks."""

    stop: bool
    """A rank got a signal, or rank 0 saw the stop file."""
    save: bool
    """It is time for a checkpoint, by rank 0's clock."""


class Requests:
    """What any rank has been asked for.

    Args:
        stop_file: its existence is a request to stop; whoever made it removes it.
        save_seconds: between checkpoints; 0: none are asked for.
    """

    def __init__(self, stop_file: Path, runtime: Runtime, save_seconds: float) -> None:
        self._stop_file = stop_file
        self._runtime = runtime
        self._save_seconds = save_seconds
        self._saved_at = time.monotonic()
        self._asked = False
        self._looks_at, self._saw_stop_file = 0.0, False
        self._just_saved = False
        self._vote: tuple[torch.Tensor, dist.Work] | None = None
        # Votes are host memory over gloo: no wait for the device, and none for the network
        # either, since a vote is counted one step after it was cast.
        self._group: Any = runtime.host_group()

    def saved(self) -> None:
        """A checkpoint was made: the next one is due so many seconds from now."""
        self._saved_at = time.monotonic()
        self._just_saved = True

    def __call__(self) -> Decision:
        """Asked once after each step, by every rank; the answer is the same on all of them."""
        stop = self._asked or self._sees_stop_file()
        save = False
        if self._save_seconds and self._runtime.is_main:
            save = time.monotonic() - self._saved_at >= self._save_seconds
        if self._group is None:
            return Decision(stop, save)
        decided = Decision(stop=False, save=False)
        if self._vote is not None:
            votes, work = self._vote
            work.wait()
            asked_to_stop, asked_to_save = (count > 0 for count in votes.tolist())
            # A vote that was cast before the save, and is counted after it, asks for the same one.
            decided = Decision(asked_to_stop, asked_to_save and not self._just_saved)
            self._just_saved = False
        votes = torch.tensor([stop, save], dtype=torch.int32)
        work = dist.all_reduce(votes, group=self._group, async_op=True)
        assert work is not None
        self._vote = votes, work
        return decided

    def _sees_stop_file(self) -> bool:
        """Rank 0 looks once a second: on a cluster's file system a look may be a message."""
        if self._runtime.is_main and time.monotonic() >= self._looks_at:
            self._looks_at = time.monotonic() + 1
            with suppress(OSError):  # the file system is away for a moment
                self._saw_stop_file = self._stop_file.exists()
        return self._saw_stop_file

    def interrupt(self) -> None:
        """Asked after each batch of an evaluation, as often by every rank.

        Raises:
            Interrupted: on all ranks alike.
        """
        if self().stop:
            raise Interrupted

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: sets a flag, nothing else. A second SIGINT quits at once."""
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True


@contextmanager
def watch(stop_file: Path, runtime: Runtime, save_seconds: float) -> Iterator[Requests]:
    """Turns the signals that launchers and schedulers send into `Requests`."""
    requests = Requests(stop_file, runtime, save_seconds)
    before = {number: signal.signal(number, requests.handle) for number in SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
