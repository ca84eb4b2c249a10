"""What a run measures of itself: sums on the device, and where the seconds went."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor

from dist_train.flops import TRAINING_FLOPS, peak_flops
from dist_train.runtime import Runtime

T = TypeVar("T")

PHASES = ("setup", "prepare", "initialise", "compile", "train", "evaluate", "checkpoint")


class Clock:
    """Seconds spent in each phase.

    Phases never overlap: an inner one stops the outer one's clock. `data_wait` is the part of
    `train` spent waiting for batches.

    Args:
        before: seconds of `setup` that are over.
    """

    def __init__(self, before: float = 0.0) -> None:
        self.seconds = dict.fromkeys((*PHASES, "data_wait"), 0.0)
        self._phase = "setup"
        self._since = time.perf_counter() - before

    @classmethod
    def of_process(cls) -> "Clock":
        """Started with the process, which is there for one run."""
        return cls(time.time() - psutil.Process().create_time())

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
    """The first step whose loss, or gradient where its norm was computed, was not finite."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step tells of itself."""

    loss: Tensor
    """Mean over this rank's samples times its share, float32 ()."""
    correct: Tensor
    """This rank's right answers, int64 ()."""
    gradient_norm: Tensor | None
    """float32 (), if it was computed."""
    share: float
    """This rank's part of the samples times the world size."""
    samples: int
    """That all ranks trained on."""
    seen: int
    """Images of all ranks they were chosen from; what throughput counts."""


class Progress:
    """Training loss and right answers, kept on the device between two lines of metrics.

    Args:
        flops: of an image's forward pass; None where images change their size.
    """

    def __init__(self, runtime: Runtime, clock: Clock, flops: int | None) -> None:
        self._runtime = runtime
        self._clock = clock
        self._flops = flops
        self._peak = peak_flops(runtime.device_name(), runtime.precision)
        self.restart()

    def restart(self, carried: Window | None = None) -> None:
        """Forgets the steps so far, and the time they took.

        Args:
            carried: the window in the middle of which a resumed run had been saved.
        """
        self._carried = carried or Window()
        self._steps: list[int] = []
        self._results: list[StepResult] = []
        self._before = self._clock.read()
        self._times = StepTimes(self._runtime)
        self._rank_seconds: list[float] = []
        self._norm = math.nan

    def forward(self) -> AbstractContextManager[None]:
        """Around what a rank computes before it waits for the others: the forward pass."""
        return self._times.forward()

    def add(self, step: int, result: StepResult) -> None:
        """One step; nothing is computed and nothing waits for the device.

        Args:
            step: steps done before it.
        """
        self._steps.append(step)
        self._results.append(result)
        self._times.step()

    def window(self) -> Window:
        """Sums over all ranks, by step: the one wait for the device."""
        steps = self._results
        if not steps:
            return self._carried
        device, world_size = self._runtime.device, self._runtime.world_size
        sizes = torch.tensor([step.samples for step in steps], device=device) / world_size
        losses = torch.stack([step.loss for step in steps]).double() * sizes
        # Without a share a sample stood in for none.
        own = torch.tensor([step.share > 0 for step in steps], device=device)
        correct = (torch.stack([step.correct for step in steps]) * own).double()
        # What is no sum travels along: each rank's seconds in a place of their own.
        seconds = torch.zeros(world_size, dtype=torch.float64)
        seconds[self._runtime.rank] = self._own_seconds()
        unknown = torch.zeros((), device=device)
        norms = [unknown if step.gradient_norm is None else step.gradient_norm for step in steps]
        rows = [losses, correct, torch.stack(norms).double() / world_size, seconds.to(device)]
        values = self._runtime.sum(torch.cat(rows)).tolist()
        count = len(steps)
        loss_of_steps, correct_of_steps = values[:count], values[count : 2 * count]
        norm_of_steps, self._rank_seconds = values[2 * count : 3 * count], values[3 * count :]
        self._norm = math.nan if steps[-1].gradient_norm is None else norm_of_steps[-1]
        # Added step by step, so that a window in which a run was resumed has the same sum.
        loss_sum = self._carried.loss_sum
        for value in loss_of_steps:
            loss_sum += value
        if self._runtime.precision == "fp16":  # whose scaler leaves out steps of such gradients
            norm_of_steps = [0.0] * count
        found = zip(self._steps, loss_of_steps, norm_of_steps, strict=True)
        bad = [step for step, *values in found if not all(map(math.isfinite, values))]
        return Window(
            loss_sum=loss_sum,
            correct=self._carried.correct + round(sum(correct_of_steps)),
            samples=self._carried.samples + sum(step.samples for step in steps),
            bad_step=bad[0] if bad else None,
        )

    def _own_seconds(self) -> float:
        """Spent by this rank on what it does without the others: data and forward pass."""
        waited = self._clock.seconds["data_wait"] - self._before["data_wait"]
        return waited + self._times.forward_seconds()

    def line(self, window: Window) -> dict[str, float]:
        """The window as metrics; throughput is that of this process's part of it."""
        learnt = {}
        if window.samples:
            learnt["train/loss"] = window.loss_sum / window.samples
            learnt["train/accuracy"] = window.correct / window.samples
        if not self._steps:  # all were skipped, or trained by an earlier process
            return learnt
        now, before = self._clock.read(), self._before
        seconds = now["train"] - before["train"]
        seen, world_size = sum(step.seen for step in self._results), self._runtime.world_size
        rate = seen / seconds
        line = learnt | {
            "perf/images_per_second": rate,
            "perf/images_per_second_per_device": rate / world_size,
            "perf/data_wait": (now["data_wait"] - before["data_wait"]) / seconds,
            "perf/train_seconds": now["train"],
            "perf/memory_bytes": self._runtime.peak_memory_bytes(),
            **self._times.percentiles(),
        }
        if math.isfinite(self._norm):
            line["optim/gradient_norm"] = self._norm
        if self._flops is not None and self._peak is not None:
            line["perf/mfu"] = TRAINING_FLOPS * self._flops * rate / world_size / self._peak
        if world_size > 1:
            line["perf/slowest_rank"] = self._rank_seconds.index(max(self._rank_seconds))
            for rank, spent in enumerate(self._rank_seconds):
                line[f"rank/{rank}/images_per_second"] = seen / world_size / spent
        return line


class StepTimes:
    """When steps and forward passes began and ended, by the device's clock, without waiting."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._marks = [runtime.mark()]
        self._forward: list[tuple[Any, Any]] = []

    def step(self) -> None:
        """A step is over."""
        self._marks.append(self._runtime.mark())

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward pass."""
        start = self._runtime.mark()
        yield
        self._forward.append((start, self._runtime.mark()))

    def forward_seconds(self) -> float:
        """Of all forward passes; waits for the device."""
        self._runtime.synchronize()
        return sum(self._runtime.seconds_between(start, end) for start, end in self._forward)

    def percentiles(self) -> dict[str, float]:
        """Of the seconds a step takes with everything between it and the one before."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        seconds = sorted(self._runtime.seconds_between(start, end) for start, end in pairs)
        chosen = {"p50": 0.5, "p95": 0.95, "max": 1.0}
        return {
            f"perf/step_seconds_{name}": seconds[round(share * (len(seconds) - 1))]
            for name, share in chosen.items()
        }
