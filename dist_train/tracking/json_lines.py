"""`metrics.jsonl`: one JSON object a line, the source of truth."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends to a file; each line is on disk when `log` returns to the operating system.

    Args:
        path: made when missing.
        resumed_step: lines of later steps, which will be written again, are removed first.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        kept = [line for line in read(path) if line["step"] <= resumed_step]
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._file = path.open("a", buffering=1)

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        self._file.write(json.dumps(dict(metrics)) + "\n")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
