"""The run on a terminal: a progress bar there, plain lines in a log file."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dist_train.tracking import Tracker


class Console(Tracker):
    """Progress with images/s, time left and the latest figures.

    Args:
        first_step, total_steps: where the run begins (later when resumed) and ends.
    """

    def __init__(self, *, first_step: int, total_steps: int) -> None:
        self._console = RichConsole(highlight=False)
        self._width = len(str(total_steps))
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task("", total=total_steps, completed=first_step)
            self._progress.start()

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        parts = [f"epoch {metrics['epoch']:6.2f}", f"step {metrics['step']:{self._width}.0f}"]
        if "train/loss" in metrics:
            parts += [
                f"loss {metrics['train/loss']:.4f}",
                f"train {metrics['train/accuracy']:6.2%}",
                f"{metrics['perf/images_per_second']:,.0f} images/s",
                f"wait {metrics['perf/data_wait']:.1%}",
            ]
        if "test/accuracy" in metrics:
            parts.append(f"test {metrics['test/accuracy']:.2%} (loss {metrics['test/loss']:.4f})")
        line = "  ".join(parts)
        if self._progress is None:
            print(line, flush=True)
            return
        self._progress.update(
            self._task, completed=metrics["step"], description="  ".join(parts[2:5])
        )
        if "test/accuracy" in metrics:
            self._console.print(line)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker."""
        if self._progress is not None:
            self._progress.stop()
