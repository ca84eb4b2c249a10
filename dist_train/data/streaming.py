"""FFCV reads a `.beton`: raw bytes (or JPEG) become uint8 batches on the device, nothing more.

FFCV's compiled decoder runs in one thread of ours, some batches ahead of a GPU. FFCV's own
EpochIterator is not used: its consumer waits for ever when its thread dies, its thread when the
consumer leaves; it draws a new ring of buffers each epoch, changes torch's thread count, and with
a host that runs ahead of the GPU it overwrites pinned memory that is still being copied.
"""

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dist_train.data import beton
from dist_train.data.order import Ids
from dist_train.errors import UserError

Indices = NDArray[np.uint64]
"""Ids as FFCV's decoder takes them: it is compiled for one dtype."""

Decode = Callable[[Indices, int], torch.Tensor]

_decoding = Lock()  # numba's fallback for threads, `workqueue`, ends the process if entered twice
_SLOTS = 5  # batches in the ring: one with the consumer, four decoded ahead


def is_available() -> bool:
    """Whether FFCV is installed; told without importing it."""
    return find_spec("ffcv") is not None


class StreamLoader:
    """Batches of a `.beton` file in any order.

    On the CPU a batch is a view of a ring buffer: valid until the next one is asked for. On CUDA
    it has its own memory.

    One epoch runs at a time: beginning another ends the one before.
    """

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int,
        device: torch.device,
        threads: int = 1,
        background: bool = True,
    ) -> None:
        """Map the file and compile the decoder, which uses `threads` (for one channel, always 1).

        In the `background`, a thread decodes ahead of the consumer. Where the consumer's own
        computation has use for all cores, that thread only gets into its way.

        Raises UserError when FFCV is missing, the file is damaged, or there are too few cores.
        """
        self._path = path
        self._batch_size = batch_size
        self._device = device
        self._background = background
        self._copy_stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._used: list[torch.cuda.Event | None] = [None] * _SLOTS
        with ffcv_contained():
            begin_thread = _thread_beginning(threads, self._copy_stream)
            self._samples, self._decode = _decoder(path, batch_size, threads)
        self._executor = ThreadPoolExecutor(1, "stream", begin_thread)
        self._pending: deque[Future[torch.Tensor]] = deque()

    def epoch(self, ids: Ids) -> Generator[torch.Tensor]:
        """Images of the samples `ids` (N,), in that order: uint8 (batch_size, H, W, C), NHWC.

        The last batch may be shorter. Raises IndexError for ids outside the file, RuntimeError
        (its cause chained) when reading fails.
        """
        if len(ids) and not (ids.min() >= 0 and ids.max() < self._samples):
            raise IndexError(f"{self._path}: ids must lie in 0..{self._samples - 1}")
        # The decoder checks no bounds: hand it a copy that nobody changes.
        order = np.array(ids, np.uint64)
        starts = range(0, len(order), self._batch_size)
        batches: list[Indices] = [order[start : start + self._batch_size] for start in starts]
        return self._decode_ahead(batches) if self._background else self._decode_now(batches)

    def close(self) -> None:
        """End the epoch under way, join the thread, release the buffers and the file."""
        self._drain()
        self._executor.shutdown()
        self._decode = _closed

    def _decode_now(self, batches: list[Indices]) -> Generator[torch.Tensor]:
        for batch in batches:
            try:
                images = self._decode(batch, 0)
            except Exception as error:
                raise RuntimeError(f"{self._path}: reading failed: {error!r}") from error
            yield images.to(self._device)

    def _decode_ahead(self, batches: list[Indices]) -> Generator[torch.Tensor]:
        self._drain()
        pending = self._pending

        def submit(batch: int) -> None:
            if batch < len(batches):
                pending.append(self._executor.submit(self._read, batches[batch], batch % _SLOTS))

        try:
            for batch in range(_SLOTS - 1):
                submit(batch)
            for batch in range(len(batches)):
                if self._pending is not pending:
                    raise RuntimeError(f"{self._path}: a newer epoch or close() ended this one")
                # The batch before this one is used or being copied: its slot is the next to fill.
                submit(batch + _SLOTS - 1)
                future = pending.popleft()
                error = future.exception()
                if error is not None:
                    raise RuntimeError(f"{self._path}: reading failed: {error!r}") from error
                yield self._to_device(future.result(), batch % _SLOTS)
        finally:
            if self._pending is pending:
                self._drain()

    def _read(self, ids: Indices, slot: int) -> torch.Tensor:
        """In the thread: fill a slot of the ring once what was in it is on the device."""
        used = self._used[slot]
        if used is not None:
            used.synchronize()
        with _decoding:
            return self._decode(ids, slot)

    def _to_device(self, images: torch.Tensor, slot: int) -> torch.Tensor:
        if self._copy_stream is None:
            return images
        consumer = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copy_stream):
            batch = images.to(self._device, non_blocking=True)
            self._used[slot] = self._copy_stream.record_event()
        consumer.wait_stream(self._copy_stream)
        # Else the allocator would give the memory away while the consumer's stream still reads it.
        batch.record_stream(consumer)
        return batch

    def _drain(self) -> None:
        """Cancel what has not begun, wait for what has: the whole ring is free afterwards."""
        for future in self._pending:
            if not future.cancel():
                future.exception()
        self._pending = deque()
        if self._copy_stream is not None:
            self._copy_stream.synchronize()
        self._used = [None] * _SLOTS


def _closed(ids: Indices, slot: int) -> torch.Tensor:
    raise RuntimeError("the loader is closed")


@contextmanager
def ffcv_contained() -> Iterator[None]:
    """Keep to FFCV what it does to the process when it is imported and when it builds a Loader.

    It sets torch's intra-op threads as it sets its own, and uses deprecated modules.
    """
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


def _thread_beginning(threads: int, stream: torch.cuda.Stream | None) -> Callable[[], None]:
    """What the decoding thread does first; whether `threads` can be had is tried here and now."""
    try:
        import ffcv.loader  # noqa: F401
        import numba
    except ImportError as error:
        raise UserError(
            f"--data.loader stream needs FFCV ({error}): run launch/setup.sh, or use "
            "--data.loader resident"
        ) from error
    try:
        numba.set_num_threads(threads)
    except ValueError as error:
        raise UserError(
            f"--data.threads {threads}: expected at most the cores ({error})"
        ) from error

    def begin() -> None:
        numba.set_num_threads(threads)
        if stream is not None:  # a thread begins on GPU 0, and would claim memory there
            torch.cuda.set_device(stream.device)

    return begin


def _decoder(path: Path, batch_size: int, threads: int) -> tuple[int, Decode]:
    """The number of samples, and a function from ids and a slot of the ring to images in it."""
    from ffcv.loader import Loader

    beton.check(path)  # FFCV maps the file: a gap in it would kill the process
    # Labels are looked up by id elsewhere. Without a seed (unused here) FFCV draws one from NumPy's
    # global generator.
    loader = Loader(
        str(path), batch_size, num_workers=threads, os_cache=True, seed=0, pipelines={"label": None}
    )
    ring = loader.graph.allocate_memory(batch_size, _SLOTS)["operation"]
    mapped_file = loader.memory_manager.schedule_epoch([])
    mapped_file.__enter__()
    stages, (output,) = loader.code

    def decode(ids: Indices, slot: int) -> torch.Tensor:  # as EpochIterator.run_pipeline does
        values: dict[str, Any] = {
            "batch_indices": ids,
            "metadata": loader.reader.metadata,
            "storage_state": mapped_file.state,
        }
        for node, slots in ring.items():
            values[f"memory_{node}"] = None if slots is None else slots[slot][: len(ids)]
            values[f"shared_memory_{node}"] = None
        for stage, nodes in stages:
            results = stage(**values)
            values.update(zip((f"result_{node}" for node in nodes), results, strict=True))
        images: torch.Tensor = values[f"result_{output}"]
        return images

    decode(np.zeros(1, np.uint64), 0)  # compiles here, not in the first step
    return loader.reader.num_samples, decode
