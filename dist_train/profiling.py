"""`--train.profile START:STOP`: a trace of some steps, and where their time went."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function, schedule

from dist_train.errors import UserError
from dist_train.files import write_atomically
from dist_train.metrics import Clock
from dist_train.runtime import Runtime

log = logging.getLogger("dist_train")

TOP = 12  # operators that are printed
_NOTHING = nullcontext()


class Profiler:
    """Traces some steps on rank 0; else it does nothing.

    Args:
        steps: `START:STOP`, the latter not included; None traces nothing. The step before START
            warms the tracer up.
        folder: gets `steps-START-STOP.pt.trace.json`, for Perfetto or TensorBoard, and
            `step_seconds.json`.
    """

    def __init__(self, steps: str | None, folder: Path, runtime: Runtime, clock: Clock) -> None:
        self._folder, self._runtime, self._clock = folder, runtime, clock
        wanted = steps if runtime.is_main else None
        self._start, self._stop = map(int, wanted.split(":")) if wanted else (-1, -1)
        self._profile: profile | None = None
        self._recording: _Recording | None = None

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Around the steps from this one on; what has been traced at the end is saved."""
        self.step(step)
        try:
            yield
        finally:
            if self._profile is not None:
                self._finish(self._recording.last if self._recording else self._start)

    def step(self, step: int) -> None:
        """So many steps are done; called once a step."""
        if step == self._start - 1:
            active = self._stop - self._start
            on_gpu = self._runtime.device.type == "cuda"
            self._profile = profile(
                activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu],
                schedule=schedule(wait=0, warmup=1, active=active),
            )
            self._profile.start()
        elif self._profile is None:
            return
        elif step == self._stop:
            self._finish(step)
        else:
            self._profile.step()
            if self._recording is None:
                self._recording = _Recording(self._runtime, self._clock)
            self._recording.last = step

    def part(self, name: str) -> AbstractContextManager[None]:
        """Names what is done inside, and takes its time on the device."""
        return _NOTHING if self._recording is None else self._recording.part(name)

    def _finish(self, stop: int) -> None:
        """Writes the trace and the times of the steps before `stop`, and prints what took most."""
        tracer, recording = self._profile, self._recording
        self._profile = self._recording = None
        assert tracer is not None
        steps = stop - self._start
        seconds = recording.seconds() if recording and steps > 0 else {}
        tracer.stop()
        if not seconds:  # the run ended while warming up
            return
        seconds["all_reduce"] = all_reduce_seconds(tracer)
        per_step = {name: value / steps for name, value in seconds.items()}
        heading = trace = str(self._folder / f"steps-{self._start}-{stop}.pt.trace.json")
        content = {"steps": steps, **{name: round(s, 9) for name, s in per_step.items()}}
        try:
            write_atomically(self._folder / "step_seconds.json", json.dumps(content).encode())
            tracer.export_chrome_trace(trace)
        except (UserError, OSError) as error:  # it may not cost the run
            log.warning("no trace of steps %d to %d: %s", self._start, stop, error)
            heading = f"steps {self._start} to {stop}"
        self._runtime.say(f"{heading}: {described(per_step)}\n{top_operators(tracer, steps)}")


class _Recording:
    """The times of the parts of the steps that are traced."""

    def __init__(self, runtime: Runtime, clock: Clock) -> None:
        self._runtime, self._clock = runtime, clock
        self._spans: list[tuple[str, Any, Any]] = []
        self.last = 0
        """Steps done."""
        runtime.synchronize()
        self._before = clock.read()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        with record_function(name):
            begin = self._runtime.mark()
            yield
            self._spans.append((name, begin, self._runtime.mark()))

    def seconds(self) -> dict[str, float]:
        """Of all steps: `step` is all of training; waiting for data and the parts are in it."""
        self._runtime.synchronize()
        now = self._clock.read()
        seconds = {"step": now["train"] - self._before["train"]}
        seconds["data"] = now["data_wait"] - self._before["data_wait"]
        for name, begin, end in self._spans:
            span = self._runtime.seconds_between(begin, end)
            seconds[name] = seconds.get(name, 0.0) + span
        return seconds


def all_reduce_seconds(tracer: profile) -> float:
    """How long gradients were on their way; they travel during the backward pass.

    Of a GPU, its kernels count. What starts outside of backward are votes, not gradients.
    """
    events = tracer.events() or []  # type: ignore[no-untyped-call]
    found = [event for event in events if re.search("all_?reduce", event.name, re.IGNORECASE)]
    kernels = [event for event in found if event.device_type.name == "CUDA"]
    passes = [event.time_range for event in events if event.name == "backward"]
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in kernels or found
        if kernels or any(p.start <= event.time_range.start <= p.end for p in passes)
    )
    total, reached = 0.0, 0.0
    for start, end in spans:  # those of several buckets overlap
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def described(per_step: dict[str, float]) -> str:
    """A step's seconds in a line."""
    parts = ", ".join(
        f"{name.replace('_', '-')} {1000 * seconds:.2f}"
        for name, seconds in per_step.items()
        if name != "step"
    )
    return f"{1000 * per_step['step']:.2f} ms a step: {parts}"


def top_operators(tracer: profile, steps: int) -> str:
    """The operators that took most of the device's time, with those inside them left out."""
    on_device = any(event.self_device_time_total for event in tracer.key_averages())
    times = {
        event.key: (event.self_device_time_total if on_device else event.self_cpu_time_total, event)
        for event in tracer.key_averages()
        # On a GPU, operators of the host hold the time of their kernels, which are there as well.
        if not event.is_user_annotation and (not on_device or event.device_type.name == "CUDA")
    }
    total = sum(time for time, _ in times.values()) or 1.0
    lines = [f"{'ms a step':>10} {'share':>6} {'calls':>6}  operator"]
    for time_us, event in sorted(times.values(), key=lambda pair: -pair[0])[:TOP]:
        calls = event.count / steps
        lines.append(
            f"{time_us / 1000 / steps:10.3f} {time_us / total:6.1%} {calls:6.0f}  {event.key[:80]}"
        )
    return "\n".join(lines)


def step_seconds(folder: Path) -> dict[str, float] | None:
    """What a profiler of this run, maybe of a process before, has measured; null for nothing."""
    path = folder / "step_seconds.json"
    try:
        values: dict[str, float] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values
