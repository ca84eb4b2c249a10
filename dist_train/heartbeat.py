"""Notices a rank that hangs or is gone, names it, and ends this process instead of waiting.

A collective operation waits for all ranks, and its own error, minutes later, names an address at
best. Here a thread of each rank beats once a second into the store the ranks met in. A rank whose
training stands still looks at the others' beats before it gives up.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

EXIT_CODE = 1
_PACKAGE = str(Path(__file__).parent)


class Heartbeat:
    """This rank's pulse, and what it knows of the others'.

    Args:
        store: a `torch.distributed.Store` of its own connection; None for a single process.
        timeout: seconds without a sign of progress after which this process ends.
    """

    def __init__(self, store: Any, *, rank: int, world_size: int, timeout: float) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._timeout = timeout
        self._progress = time.monotonic()
        self._main_thread = threading.get_ident()
        self._ended = threading.Event()

    def alive(self) -> None:
        """The main thread got somewhere."""
        self._progress = time.monotonic()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beats, and watches the main thread, until the end of the block."""
        if self._store is None:
            yield
            return
        self.alive()
        thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        except Exception as error:
            if _of_a_collective(error):
                self._explain(f"a collective operation failed: {str(error).splitlines()[0]}")
            raise
        finally:
            self._ended.set()
            thread.join()

    def _beat(self) -> None:
        beats = 0
        while not self._ended.wait(1):
            beats += 1
            with suppress(RuntimeError):  # without a store, the collective operations fail too
                self._store.set(f"beat/{self._rank}", f"{beats} on {socket.gethostname()}")
            still = time.monotonic() - self._progress
            if still > self._timeout:
                self._explain(f"no step for {still:.0f} s (--runtime.timeout_seconds)")
                faulthandler.dump_traceback(file=sys.stderr)
                sys.stderr.flush()
                os._exit(EXIT_CODE)

    def _explain(self, what: str) -> None:
        lines = [f"[rank {self._rank}] {what}; it stands at {self._where()}"]
        silent = self._silent()
        lines += [f"[rank {self._rank}] {gone}" for gone in silent]
        if not silent:
            lines.append(
                f"[rank {self._rank}] all ranks' processes live: the one that does not stand in a "
                "collective operation holds up the others"
            )
        print(*lines, sep="\n", file=sys.stderr, flush=True)

    def _silent(self) -> Sequence[str]:
        """The ranks whose beats do not change within a few seconds."""
        try:
            before = self._read()
            time.sleep(3)
            after = self._read()
        except RuntimeError:
            return ["rank 0, or whoever held the meeting point, is gone"]
        return [
            f"rank {rank} ({after[rank] or 'never seen: no beat'}) is dead or stopped"
            for rank in range(self._world_size)
            if rank != self._rank and before[rank] == after[rank]
        ]

    def _read(self) -> list[str]:
        keys = [f"beat/{rank}" for rank in range(self._world_size)]
        return [self._store.get(key).decode() if self._store.check([key]) else "" for key in keys]

    def _where(self) -> str:
        """The innermost line of our own that the main thread is in."""
        frame = sys._current_frames().get(self._main_thread)
        own = [f for f in traceback.extract_stack(frame) if f.filename.startswith(_PACKAGE)]
        return f"{Path(own[-1].filename).name}:{own[-1].lineno}, {own[-1].name}" if own else "start"


def _of_a_collective(error: Exception) -> bool:
    """Whether torch.distributed raised it: gloo and the store have no type of their own."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text
        for word in ("gloo", "nccl", "connection", "timed out", "timeout", "store", "peer")
    )
