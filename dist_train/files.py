"""Writing files that are never half there."""

import os
from contextlib import suppress
from pathlib import Path

from dist_train.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Either the old file stays or the new one is there whole, also after a power cut.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space, or choose another folder"
        ) from error


def link_atomically(path: Path, target: str) -> None:
    """Makes `path` a link to a neighbour, in place of what it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def remove_leftovers(folder: Path) -> None:
    """Deletes what a process that was killed while writing left in a folder and those in it."""
    for pattern in (".*.tmp", "*/.*.tmp"):
        for temporary in folder.glob(pattern):
            temporary.unlink(missing_ok=True)
