"""One process at a time writes in a run's directory."""

import errno
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from dist_train.errors import UserError
from dist_train.files import write_atomically

FILE, LOCK = ".owner.json", ".owner.lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks say: two processes that start together are not told apart."""
PATIENCE = 5.0  # seconds


def claim(folder: Path) -> None:
    """Notes which process trains in a run's directory.

    Of another machine's process nobody here can tell whether it lives: one that starts a run again
    (after a lost node, say) has to trust that it does not.

    Raises:
        UserError: a process of this machine does so, or the directory cannot be written.
    """
    own, patience = psutil.Process(), time.monotonic() + PATIENCE
    me = {"host": socket.gethostname(), "pid": own.pid, "started": own.create_time()}
    while owner := _take(folder, me):
        if time.monotonic() > patience:  # one that was asked to end may be saving
            raise UserError(
                f"{folder}: process {owner['pid']} of this machine trains this run; stop it, or "
                "choose another --name"
            )
        time.sleep(0.1)


def _take(folder: Path, me: Mapping[str, Any]) -> dict[str, Any] | None:
    """Notes this process, unless another one that lives is noted: then returns that."""
    path, lock = folder / FILE, FileLock(folder / LOCK, timeout=PATIENCE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # between looking and noting
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UserError(
                f"cannot write {folder / LOCK}: {error.strerror or error}; free some space, or "
                "choose another folder"
            ) from error
    try:
        owner = read_owner(path)
        if owner and is_another_that_lives(owner):
            return owner
        write_atomically(path, json.dumps(me).encode())
    finally:
        lock.release()
    return None


def release(folder: Path) -> None:
    """This process does not train there any more."""
    for name in (FILE, LOCK):
        (folder / name).unlink(missing_ok=True)


def read_owner(path: Path) -> dict[str, Any] | None:
    """What `claim` noted; None if there is nothing that makes sense."""
    try:
        owner: dict[str, Any] = json.loads(path.read_text())
        return {"host": owner["host"], "pid": int(owner["pid"]), "started": float(owner["started"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_another_that_lives(owner: Mapping[str, Any]) -> bool:
    """Whether it is a process of this machine, not this one, and not a later one of its number."""
    if owner["host"] != socket.gethostname() or owner["pid"] == os.getpid():
        return False
    try:
        process = psutil.Process(owner["pid"])
        # The clock may have been set meanwhile; a killed process may wait for its parent.
        is_same = bool(abs(process.create_time() - owner["started"]) < 2)
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
