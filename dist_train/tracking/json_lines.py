"""`metrics.jsonl`: one JSON object a line, the source of truth."""

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from typing import Any

from dist_train.files import write_atomically
from dist_train.tracking import Tracker

log = logging.getLogger("dist_train")


class JsonLines(Tracker):
    """Appends to a file; each line is with the operating system when `log` returns.

    On a full disk the lines wait for room.

    Args:
        path: made when missing.
        resumed_step: lines of later steps, which will be written again, are removed first.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        self._path = path
        self._waiting = b""
        self._open(resumed_step)

    def _open(self, last_step: int) -> None:
        kept = [line for line in read(self._path) if line["step"] <= last_step]
        write_atomically(self._path, b"".join(map(encode, kept)))
        self._file = self._path.open("ab", buffering=0)

    def rewind(self, step: int) -> None:
        """See Tracker."""
        self._file.close()
        self._open(step)

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        first_failure = not self._waiting
        self._waiting += encode(metrics)
        self._write(warn=first_failure)

    def _write(self, *, warn: bool) -> None:
        size = self._file.tell()
        try:
            if self._file.write(self._waiting) < len(self._waiting):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            self._waiting = b""
        except OSError as error:
            self._file.truncate(size)  # no half lines
            self._file.seek(size)
            if warn:
                log.warning("%s cannot be written: %s", self._path, error.strerror)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker."""
        if self._waiting:
            self._write(warn=True)
        self._file.close()


def encode(line: Mapping[str, float]) -> bytes:
    """A line of the file."""
    return (json.dumps(dict(line)) + "\n").encode()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; those that are cut short or damaged are left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(errors="replace").split("\n"):
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def last(path: Path, step: int) -> dict[str, Any]:
    """The last line of a metrics file up to a step; empty where there is none."""
    lines = [line for line in read(path) if line["step"] <= step]
    return lines[-1] if lines else {}
