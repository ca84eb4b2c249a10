"""`metrics.jsonl`: one JSON object a line, the source of truth."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_train.files import write_atomically
from dist_train.tracking import Tracker


class JsonLines(Tracker):
    """Appends to a file; each line is with the operating system when `log` returns.

    Args:
        path: made when missing.
        resumed_step: lines of later steps, which will be written again, are removed first.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        self._path = path
        self._open(resumed_step)

    def _open(self, last_step: int) -> None:
        kept = [line for line in read(self._path) if line["step"] <= last_step]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self._path.open("a", buffering=1)

    def rewind(self, step: int) -> None:
        """See Tracker."""
        self._file.close()
        self._open(step)

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        self._file.write(json.dumps(dict(metrics)) + "\n")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._file.close()


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
