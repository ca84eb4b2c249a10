"""What a run measures of itself: sums on the device, and where the seconds went."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Window:
    """Training since the last line of metrics, over all ranks."""

    loss_sum: float = 0.0
    """Sum over the samples."""
    correct: int = 0
    """Right answers."""
    samples: int = 0
    """Images seen."""
    bad_step: int | None = None
    """The first step whose loss was not finite."""


class Progress:
    """Training loss and right answers, kept on the device between two lines of metrics."""

    def __init__(self, runtime: Runtime, clock: Clock) -> None:
        self._runtime = runtime
        self._clock = clock
        self.restart()

    def restart(self, carried: Window | None = None) -> None:
        """Forgets the steps so far, and the time they took.

        Args:
            carried: the window in the middle of which a resumed run had been saved.
        """
        self._carried = carried or Window()
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._shares: list[float] = []
        self._correct: list[Tensor] = []
        self._samples: list[int] = []
        self._before = self._clock.read()

    def add(self, step: int, loss: Tensor, correct: Tensor, batch: Batch) -> None:
        """One step; nothing is computed and nothing waits for the device.

        Args:
            step: steps done before it.
            loss: mean over this rank's samples times its share, float32 ().
            correct: this rank's right answers, int64 ().
        """
        self._steps.append(step)
        self._losses.append(loss)
        self._correct.append(correct)
        self._shares.append(batch.share)
        self._samples.append(batch.global_size)

    def window(self) -> Window:
        """Sums over all ranks, by step: the one wait for the device."""
        if not self._losses:
            return self._carried
        device, world_size = self._runtime.device, self._runtime.world_size
        sizes = torch.tensor(self._samples, device=device) / world_size
        losses = torch.stack(self._losses).double() * sizes
        own = torch.tensor(self._shares, device=device) > 0  # else a stand-in for no sample
        correct = (torch.stack(self._correct) * own).double()
        sums = self._runtime.sum(torch.stack([losses, correct])).tolist()
        # Added step by step, so that a window in which a run was resumed has the same sum.
        loss_sum = self._carried.loss_sum
        for value in sums[0]:
            loss_sum += value
        steps = zip(self._steps, sums[0], strict=True)
        bad = [step for step, value in steps if not math.isfinite(value)]
        return Window(
            loss_sum=loss_sum,
            correct=self._carried.correct + round(sum(sums[1])),
            samples=self._carried.samples + sum(self._samples),
            bad_step=bad[0] if bad else None,
        )

    def line(self, window: Window) -> dict[str, float]:
        """The window as metrics; throughput is that of this process's part of it."""
        if not self._steps:  # all of them were skipped
            return {}
        now, before = self._clock.read(), self._before
        seconds = now["train"] - before["train"]
        return {
            "train/loss": window.loss_sum / window.samples,
            "train/accuracy": window.correct / window.samples,
            "perf/images_per_second": sum(self._samples) / seconds,
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
