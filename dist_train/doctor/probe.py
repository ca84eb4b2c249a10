"""Imports packages one after the other and tries the GPUs; a line of JSON each.

Run as a process of its own, since a broken package may do worse than raise: `machine.py` reads it.
"""

import importlib
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any


def package(name: str) -> dict[str, str | None]:
    """Its version (None: not installed) and the error that importing it gave."""
    try:
        found = version(name)
    except PackageNotFoundError:
        found = None
    if found is None and find_spec(name) is None:
        return {"version": None, "error": None}
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        return {"version": found or "?", "error": f"{type(error).__name__}: {error}"}
    return {"version": found or "?", "error": None}


def gpus() -> dict[str, Any]:
    """The GPUs torch sees, and whether each computes."""
    import torch

    found: dict[str, Any] = {"cuda": torch.version.cuda, "nccl": None, "names": [], "error": None}
    try:
        if torch.cuda.is_available():
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory
            found["names"].append(f"{torch.cuda.get_device_name(index)} {memory / 2**30:.0f} GiB")
            torch.ones(8, device=f"cuda:{index}").sum().item()
    except RuntimeError as error:
        found["error"] = str(error)
    return found


if __name__ == "__main__":
    lines, sys.stdout = sys.stdout, sys.stderr  # packages may print what they like
    for name in sys.argv[1:]:
        print(json.dumps({"package": name, **package(name)}), file=lines, flush=True)
    if "torch" in sys.modules:
        print(json.dumps({"package": "gpus", **gpus()}), file=lines, flush=True)
