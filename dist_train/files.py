"""Writing files that are never half there."""

import os
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
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space, or choose another --output"
        ) from error
