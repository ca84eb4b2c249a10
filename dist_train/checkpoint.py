"""What a run needs to go on, written so that a kill at any instant leaves a valid file."""

import hashlib
import io
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from dist_train.errors import UserError
from dist_train.files import link_atomically, write_atomically

log = logging.getLogger("dist_train")


@dataclass(frozen=True, slots=True)
class TrainState:
    """A run between two steps. It holds no position in the data: that follows from the step."""

    step: int
    """Optimizer steps done."""
    model: dict[str, Any]
    optimizers: list[dict[str, Any]]
    scaler: dict[str, Any]
    buffers: list[dict[str, Any]]
    """BatchNorm's running statistics of each rank, which differ between evaluations."""
    best_accuracy: float
    seconds: dict[str, float]
    """See metrics.Clock."""
    resumed_from: list[int]
    """The steps at which the run was resumed so far."""
    window: dict[str, Any]
    """What was trained since the last line of metrics, see metrics.Window."""
    skipped: list[int]
    """Steps whose batches are not trained on, as their loss was not finite."""
    averaged: dict[str, Any]
    """Moving average of the weights; empty without one."""
    proxy: dict[str, Any]
    """See selection.Selector; empty without one."""
    data_checksum: str
    """Of the prepared training images."""


class Checkpoints:
    """The newest `keep` states of a run and its best one, `step-<n>.pt` each.

    They are written in a thread of their own. `latest` and `best` are links to two of them.

    Args:
        folder: made when the first one is written.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._linked = True
        self._best: Path | None = None
        """Of those written by this process."""

    def save(self, state: TrainState, *, best: bool) -> Path:
        """Copies the state to the host; the thread writes it while training goes on.

        What cannot be written is reported, and the next save tries again. Returns the path.
        """
        self.wait()
        values = {field.name: on_host(getattr(state, field.name)) for field in fields(state)}
        self._writing = self._writer.submit(self._write, values, best)
        return self._path(state.step)

    def wait(self) -> None:
        """Returns when everything is on disk."""
        if self._writing is not None:
            self._writing.result()

    def _write(self, values: dict[str, Any], best: bool) -> None:
        buffer = io.BytesIO()
        torch.save(values, buffer)
        payload = buffer.getvalue()
        path = self._path(values["step"])
        try:
            write_atomically(path, hashlib.sha256(payload).digest() + payload)
        except UserError as error:
            log.warning("no checkpoint at step %d: %s", values["step"], error)
            return
        if best:
            self._best = path
        self._link(path, best=best)
        try:
            best_path = (self._best or self.folder / "best").resolve()  # it may not be there yet
            for old in self._paths()[self.keep :]:
                if old != path and old.resolve() != best_path:
                    old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("old checkpoints stay: %s", error)

    def _link(self, path: Path, *, best: bool) -> None:
        """For people: nothing goes on from links, and not every file system has them."""
        try:
            for name in ("latest", "best") if best else ("latest",):
                link_atomically(self.folder / name, path.name)
            self._linked = True
        except OSError as error:
            if self._linked:
                log.warning("no links in %s to latest and best: %s", self.folder, error.strerror)
            self._linked = False

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.pt"

    def load_latest(self) -> TrainState | None:
        """The newest whole state; damaged files are reported and passed over.

        Raises:
            UserError: the state was written by another version of this code.
        """
        self.wait()
        for path in self._paths():
            try:
                content = path.read_bytes()
            except OSError as error:
                log.warning("%s cannot be read: %s", path, error.strerror)
                continue
            digest, payload = content[:32], content[32:]
            if hashlib.sha256(payload).digest() == digest:
                values = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
                try:
                    return TrainState(**values)
                except TypeError as error:
                    raise UserError(
                        f"{path} is of another version of dist_train ({error}): "
                        "go on with that one, or choose another --name"
                    ) from error
            log.warning("%s is damaged: going on from the checkpoint before it", path)
        return None

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)


def on_host(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples that shares no tensor with them, all on the CPU."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_host(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(on_host, value))
    return value
