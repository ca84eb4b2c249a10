"""What a run measures of itself: sums on the device, and where the seconds went."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dist_train.data.batches import Batch
from dist_train.runtime import Runtime

T = TypeVar("T")

PHASES = ("setup", "prepare", "compile", "train", "evaluate", "checkpoint")


class Clock:
    """Seconds spent in each phase, from the start of the process on.

    Phases never overlap: an inner one stops the outer one's clock. `data_wait` is the part of
    `train` spent waiting for batches.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*PHASES, "data_wait"), 0.0)
        self._phase = "setup"
        self._since = time.perf_counter() - (time.time() - psutil.Process().create_time())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside towards a phase."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str) -> str:
        now, outer = time.perf_counter(), self._phase
        self.seconds[outer] += now - self._since
        self._phase, self._since = name, now
        return outer

    def resume(self, seconds: Mapping[str, float]) -> None:
        """Adds what earlier processes of the same run had spent."""
        for name in self.seconds:
            self.seconds[name] += seconds[name]

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, while counting how long each is waited for."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.seconds["data_wait"] += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def read(self) -> dict[str, float]:
        """Seconds of each phase until now, of data_wait, and their total."""
        self._switch(self._phase)
        return self.seconds | {"total": sum(self.seconds[phase] for phase in PHASES)}


class Progress:
    """Sums of training loss and right answers, kept on the device between two lines of metrics."""

    def __init__(self, runtime: Runtime, clock: Clock) -> None:
        self._runtime = runtime
        self._clock = clock
        self._sums = torch.zeros(2, dtype=torch.float64, device=runtime.device)
        self.restart()

    def restart(self) -> None:
        """Forgets the steps so far, and what was done since they were taken."""
        self._sums.zero_()
        self._samples = 0
        self._before = self._clock.read()

    def add(self, loss: Tensor, correct: Tensor, batch: Batch) -> None:
        """One step; nothing waits for the device.

        Args:
            loss: mean over this rank's samples times its share, float32 ().
            correct: this rank's right answers, int64 ().
        """
        self._sums[0] += loss * (batch.global_size / self._runtime.world_size)
        if batch.share > 0:
            self._sums[1] += correct
        self._samples += batch.global_size

    def take(self) -> dict[str, float]:
        """Means since the last call, over all ranks: the one wait for the device."""
        loss, correct = self._runtime.sum(self._sums).tolist()
        now, before = self._clock.read(), self._before
        seconds = now["train"] - before["train"]
        return {
            "train/loss": loss / self._samples,
            "train/accuracy": correct / self._samples,
            "perf/images_per_second": self._samples / seconds,
            "perf/data_wait": (now["data_wait"] - before["data_wait"]) / seconds,
        }


def forward_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image's forward pass (a multiply-add counts as two)."""
    height, width, channels = image_shape
    device = next(model.parameters()).device
    was_training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, channels, height, width, device=device))
    model.train(was_training)
    return int(counter.get_total_flops())
