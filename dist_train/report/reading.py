"""A run's directory as it is found: finished, in progress, cut off or damaged. Imports no torch."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeGuard

from dist_train.config import flatten
from dist_train.errors import UserError

State = Literal["finished", "running", "stopped", "failed"]
Line = Mapping[str, Any]

_PATIENCE = 60.0  # seconds of silence that any run may take between two lines


@dataclass(frozen=True)
class Run:
    """What can be read of a run; absent files leave empty fields and a note."""

    folder: Path
    config: Mapping[str, Any]
    """config.json by dotted names."""
    lines: Sequence[Line]
    """metrics.jsonl, without what is no whole line."""
    summary: Mapping[str, Any]
    """summary.json; empty for an unfinished run."""
    manifest: Mapping[str, Any]
    """Of the data: class names, image shape."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, for people."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def recipe(self) -> str:
        """The recipe, or `?`."""
        return str(self.config.get("recipe") or self.summary.get("recipe") or "?")

    @cached_property
    def state(self) -> State:
        """Judged by the files: what is written rarely may look silent, and a copy looks young.

        `running`: a sign of life within three times the longest pause so far. `stopped`: silent,
        and nothing is lost, for the newest checkpoint is as new as the last line. Else `failed`.
        """
        if self.summary:
            return "finished"
        limit = float(self.config.get("runtime.timeout_seconds") or 600)
        times = [line["time"] for line in self.lines if is_number(line.get("time"))]
        pauses = [after - before for before, after in pairwise(times)]
        patience = min(limit, max(_PATIENCE, 3 * max(pauses[-50:]))) if pauses else limit
        if time.time() - self.changed < patience:
            return "running"
        return "stopped" if self.saved_step and self.saved_step >= self.step else "failed"

    @property
    def step(self) -> int:
        """Optimizer steps done, as far as is known."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint; 0 without one."""
        names = [path.name for path in (self.folder / "checkpoints").glob("step-*")]
        steps = [int(found[1]) for name in names if (found := re.match(r"step-(\d+)", name))]
        return max(steps, default=0)

    @property
    def changed(self) -> float:
        """When a file of the run was last written, in seconds since 1970."""
        paths = [self.folder, *self.folder.glob("*.json*"), self.folder / "checkpoints"]
        return max(path.stat().st_mtime for path in paths if path.exists())

    @property
    def seen(self) -> float:
        """The last sign of life, in seconds since 1970: of the last line, else of the files."""
        last = self.lines[-1].get("time") if self.lines else None
        return last if is_number(last) else self.changed

    @property
    def when(self) -> str:
        """Date and time of the last sign of life."""
        return f"{datetime.fromtimestamp(self.seen):%Y-%m-%d %H:%M}"

    @property
    def split(self) -> str:
        """The images a run is judged by: `test` or `validation`."""
        return "validation" if self.config.get("data.validation") else "test"

    @property
    def accuracy(self) -> float | None:
        """Of the final, or else of the last evaluation, 0 to 1."""
        return self.result("accuracy")

    @property
    def loss(self) -> float | None:
        """Of the final, or else of the last evaluation."""
        return self.result("loss")

    def result(self, quantity: str) -> float | None:
        """A quantity of the last evaluation."""
        final = self.summary.get(f"{self.split}_{quantity}")
        if is_number(final):
            return float(final)
        values = [value for _, value in self.series(f"{self.split}/{quantity}")]
        return values[-1] if values else None

    @property
    def images_per_second(self) -> float | None:
        """Over the whole training, or the median of an unfinished run's lines."""
        final = self.summary.get("images_per_second")
        if is_number(final):
            return float(final)
        values = [value for _, value in self.series("perf/images_per_second")]
        return median(values) if values else None

    @property
    def epochs(self) -> float | None:
        """Passes over the training set so far."""
        values = [value for _, value in self.series("epoch")]
        return values[-1] if values else self.summary.get("epochs")

    @property
    def seconds(self) -> Mapping[str, Any]:
        """Of each phase; empty for an unfinished run."""
        seconds = self.summary.get("seconds")
        return seconds if isinstance(seconds, dict) else {}

    def series(self, metric: str) -> list[tuple[int, float]]:
        """Indices of the lines that have this metric as a finite number, and the numbers."""
        return [
            (number, float(line[metric]))
            for number, line in enumerate(self.lines)
            if is_number(line.get(metric))
        ]

    @cached_property
    def training_seconds(self) -> list[float]:
        """Seconds of training until each line: without evaluation, without the time between two
        processes of a resumed run. A line that says nothing of it has those of the one before."""
        said = (line.get("perf/train_seconds") for line in self.lines)
        return list(accumulate((float(s) if is_number(s) else 0.0 for s in said), max))


def read_run(folder: Path) -> Run:
    """Reads what is there.

    Raises:
        UserError: nothing of a run is.
    """
    if not is_run(folder):
        raise UserError(
            f"{folder} is no run: it has no metrics yet and no config; expected "
            f"{folder / 'metrics.jsonl'}; `dist-train runs` lists runs"
        )
    notes: list[str] = []
    config = read_object(folder / "config.json", notes)
    run = Run(
        folder=folder,
        config=dict(flatten(config)),
        lines=read_lines(folder / "metrics.jsonl", notes),
        summary=read_object(folder / "summary.json", notes, expected=False),
        manifest=read_object(folder / "manifest.json", notes),
        notes=notes,
    )
    if run.state != "finished":
        total = f" after step {run.step}" if run.step else " before its first line of metrics"
        notes.insert(0, f"{run.state}{total}: no summary yet")
    return run


def is_run(folder: Path) -> bool:
    """Whether there is anything of a run in a folder."""
    return any((folder / name).exists() for name in ("config.json", "metrics.jsonl"))


def find_runs(folder: Path) -> list[Run]:
    """The runs in a folder, oldest first.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one that holds run directories")
    found = [path for path in folder.iterdir() if is_run(path)]
    if not found:
        raise UserError(f"{folder} holds no runs; `dist-train train` makes one in runs/")
    return sorted((read_run(path) for path in found), key=lambda run: run.seen)


def read_object(path: Path, notes: list[str], *, expected: bool = True) -> dict[str, Any]:
    """A JSON object from a file; empty, with a note, where there is none."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        if expected:
            notes.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(values, dict):
        notes.append(f"{path.name} holds no JSON object")
        return {}
    return values


def read_lines(path: Path, notes: list[str]) -> list[Line]:
    """The whole lines of a metrics file, in rising order of steps."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:  # the run's state tells
        return []
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}")
        return []
    lines: list[Line] = []
    damaged = 0
    rows = text.split("\n")
    if not rows[-1].endswith("}"):
        rows.pop()  # nothing, or a line that is still being written
    for row in rows:
        try:
            line = json.loads(row)
            good = is_number(line["step"]) and (not lines or line["step"] >= lines[-1]["step"])
        except (ValueError, TypeError, KeyError):
            good = False
        if good:
            lines.append(line)
        else:
            damaged += 1
    if damaged:
        notes.append(f"{path.name}: {damaged} damaged lines are left out")
    return lines


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a JSON file is a finite number."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < float("inf")  # false for NaN
    )


def differing(runs: Sequence[Run]) -> list[str]:
    """The config fields, but for the name, in which runs differ, in the config's order."""
    fields = dict.fromkeys(field for run in runs for field in run.config if field != "name")
    return [name for name in fields if len({repr(run.config.get(name)) for run in runs}) > 1]
