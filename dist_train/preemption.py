"""Signals and a stop file become one decision that all ranks take at the same step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from dist_train.runtime import Runtime

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command, run again, goes on


class Preempted(Exception):
    """The run was asked to stop, and has saved what it needs to go on."""


class StopRequest:
    """Whether any rank has been asked to stop, by a signal or by the stop file.

    Args:
        stop_file: its existence is a request; whoever made it removes it.
    """

    def __init__(self, stop_file: Path, runtime: Runtime) -> None:
        self._stop_file = stop_file
        self._runtime = runtime
        self._asked = False
        self._vote: tuple[torch.Tensor, dist.Work] | None = None
        # Votes are host memory over gloo: no wait for the device, and none for the network
        # either, since a vote is counted one step after it was cast.
        self._group: Any = dist.new_group(backend="gloo") if runtime.world_size > 1 else None

    def __call__(self) -> bool:
        """Asked once after each step, by every rank; the answer is the same on all of them."""
        asked = self._asked or (self._runtime.is_main and self._stop_file.exists())
        if self._group is None:
            return asked
        decided = False
        if self._vote is not None:
            votes, work = self._vote
            work.wait()
            decided = bool(votes.item())
        votes = torch.tensor(int(asked))
        work = dist.all_reduce(votes, group=self._group, async_op=True)
        assert work is not None
        self._vote = votes, work
        return decided

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: sets a flag, nothing else. A second SIGINT quits at once."""
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True


@contextmanager
def watch(stop_file: Path, runtime: Runtime) -> Iterator[StopRequest]:
    """Turns the signals that launchers and schedulers send into a `StopRequest`."""
    request = StopRequest(stop_file, runtime)
    before = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
