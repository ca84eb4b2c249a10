"""The run on a terminal: a live view there, plain lines in a log file."""

import atexit
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dist_train.tracking import Tracker

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_PICTURES = 1.0  # a picture costs milliseconds
LABELS = {
    "train/loss": ("loss", "{:.4f}"),
    "train/accuracy": ("train", "{:.2%}"),
    "accuracy": ("", "{:.2%}"),
    "best": ("best", "{:.2%}"),
    "optim/lr": ("lr", "{:.3g}"),
    "perf/images_per_second": ("", "{:,.0f} images/s"),
    "perf/data_wait": ("data wait", "{:.1%}"),
    "perf/memory_bytes": ("memory", "{}"),
}


class Console(Tracker):
    """Progress, time left and the latest figures; an evaluation leaves a line that stays.

    Args:
        first_step, total_steps: where the run begins (later when resumed) and ends.
        split: `test` or `validation`: what the accuracy is of.
    """

    def __init__(
        self, *, first_step: int, total_steps: int, steps_per_epoch: int, split: str
    ) -> None:
        self._split = split
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._start = (time.monotonic(), first_step)
        self._checkpoint: int | None = None
        self._warning = ""
        self._latest: dict[str, float] = {"step": first_step}
        self._printed = float("-inf")
        self._console = RichConsole(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        # $FORCE_COLOR and its like make rich take a log file for a terminal.
        if sys.stdout.isatty() and not self._console.is_dumb_terminal:
            self._live = Live(
                self._picture(), console=self._console, auto_refresh=False, transient=True
            )
            self._live.start(refresh=True)
            atexit.register(self._live.stop)  # else an error would leave no cursor

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        self._latest |= metrics
        accuracy = metrics.get(f"{self._split}/accuracy")
        if accuracy is not None:
            self._latest["accuracy"] = accuracy
            self._latest["best"] = metrics[f"{self._split}/best_accuracy"]
        now, evaluated = time.monotonic(), accuracy is not None
        if self._live is None:
            if evaluated or now - self._printed >= SECONDS_BETWEEN_LINES:
                self._printed = now
                print(self._line(metrics), flush=True)
            return
        if evaluated:
            self._console.print(self._line(metrics))
        if evaluated or now - self._printed >= SECONDS_BETWEEN_PICTURES:
            self._printed = now
            self._live.update(self._picture(), refresh=True)

    def checkpointed(self, step: int, path: Path, *, best: bool) -> None:
        """See Tracker."""
        self._checkpoint = step

    def warn(self, title: str, text: str) -> None:
        """See Tracker."""
        self._warning = f"{title}: {text}"
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)

    def rewind(self, step: int) -> None:
        """See Tracker."""
        self._latest["step"] = step
        self._start = (time.monotonic(), step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker."""
        if self._live is not None:
            self._live.stop()
            atexit.unregister(self._live.stop)

    def _line(self, metrics: Mapping[str, float]) -> str:
        width, split = len(str(self._total_steps)), self._split
        parts = [f"epoch {metrics['epoch']:6.2f}", f"step {metrics['step']:{width}.0f}"]
        if "train/loss" in metrics:
            parts += [
                f"loss {metrics['train/loss']:.4f}",
                f"train {metrics['train/accuracy']:6.2%}",
            ]
        if "perf/images_per_second" in metrics:  # not where an earlier process has trained
            parts += [
                f"{metrics['perf/images_per_second']:,.0f} images/s",
                f"wait {metrics['perf/data_wait']:.1%}",
            ]
        if f"{split}/accuracy" in metrics:
            accuracy, loss = metrics[f"{split}/accuracy"], metrics[f"{split}/loss"]
            parts.append(f"{split} {accuracy:.2%} (loss {loss:.4f})")
        elif (left := self._seconds_left()) is not None:
            parts.append(f"{clock(left)} left")
        return "  ".join(parts)

    def _seconds_left(self) -> float | None:
        seconds, steps = time.monotonic() - self._start[0], self._latest["step"] - self._start[1]
        return (self._total_steps - self._latest["step"]) * seconds / steps if steps > 0 else None

    def _picture(self) -> Group:
        """Four lines, or five with a warning, that fit into 80 columns."""
        step, latest = int(self._latest["step"]), self._latest
        epoch, done = divmod(max(step, 1) - 1, self._steps_per_epoch)
        bars = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None):
            bars.add_column(ratio=ratio, no_wrap=True)
        epochs = -(-self._total_steps // self._steps_per_epoch)
        left = self._seconds_left()
        bars.add_row(
            f"epoch {epoch + 1}/{epochs}",
            ProgressBar(self._steps_per_epoch, done + 1 if step else 0),
            f"{(done + 1 if step else 0) / self._steps_per_epoch:4.0%}",
        )
        bars.add_row(
            f"step {step}/{self._total_steps}",
            ProgressBar(self._total_steps, step),
            "" if left is None else f"{clock(left)} left",
        )
        values = {**latest, "perf/memory_bytes": in_bytes(latest.get("perf/memory_bytes", 0.0))}

        def figures(*names: str) -> str:
            found = [
                (*LABELS[name], values[name]) for name in names if latest.get(name) is not None
            ]
            return "   ".join(f"{label} {form.format(x)}".strip() for label, form, x in found)

        accuracies = figures("accuracy", "best")
        first = figures("train/loss", "train/accuracy", "optim/lr")
        second = figures("perf/images_per_second", "perf/data_wait", "perf/memory_bytes")
        if accuracies:
            first += f"   {self._split} {accuracies}"
        if self._checkpoint is not None:
            second += f"   checkpoint at step {self._checkpoint}"
        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in (first, second)]
        if self._warning:
            lines.append(Text(self._warning, "yellow", no_wrap=True, overflow="ellipsis"))
        return Group(bars, *lines)


@contextmanager
def working(what: str, *, visible: bool = True) -> Iterator[None]:
    """Says that something long is under way, and how long it took."""
    start = time.monotonic()
    if not visible:
        yield
    elif sys.stdout.isatty():
        with RichConsole(highlight=False).status(f"{what} ..."):
            yield
    else:
        print(f"{what} ...", flush=True)
        yield
    if visible:
        print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_bytes(count: float) -> str:
    """1.2 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
