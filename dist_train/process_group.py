"""Joining the processes that train together, and leaving them: the only import of accelerate."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from accelerate import PartialState

from dist_train.errors import Preempted, UserError


@contextmanager
def joined(*, cpu: bool, timeout: timedelta) -> Iterator[PartialState]:
    """The process group that accelerate, torchrun or nobody set up; left at the end.

    Raises:
        UserError: the others cannot be met.
    """
    try:
        rejoin("gloo" if cpu else "nccl", timeout)
        state = PartialState(cpu=cpu, timeout=timeout)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot meet the other processes at MASTER_ADDR:MASTER_PORT {address}: {reason}; "
            "choose a free port (accelerate launch --main_process_port, torchrun --master_port)"
        ) from error
    with leaving_group(state, cpu=cpu):
        yield state


@contextmanager
def leaving_group(state: PartialState, *, cpu: bool) -> Iterator[None]:
    """Leaves the process group at the end, also after an error that all ranks know of (UserError).

    After another error on GPUs the end of the process has to do: NCCL's own farewell would wait for
    kernels and ranks that may never come, and nobody would see the error.
    """
    together = True
    try:
        yield
    except (Preempted, UserError):
        raise
    except (Exception, KeyboardInterrupt):
        together = cpu
        raise
    finally:
        if together:
            state.destroy_process_group()
        PartialState._reset_state()  # or a second run in this process would find it destroyed


def rejoin(backend: str, timeout: timedelta) -> None:
    """Joins the process group under a new name after torchrun has started a node's job again.

    torch 2.15 keeps the store of the processes before, with their addresses, and the new ones
    would try to reach the dead. Restarts of several nodes are counted by each for itself: there
    is no such name for them.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if not attempt or world_size == 1 or os.environ["LOCAL_WORLD_SIZE"] != str(world_size):
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"attempt-{attempt}", store),  # type: ignore[attr-defined]
        rank=int(os.environ["RANK"]),
        world_size=world_size,
        timeout=timeout,
    )
