"""Checks of all ranks together: do they meet, how fast is the network, which link is slowest.

Every wait has an end. When a stage fails, the ranks call the roll in the store where they met,
which names those that hang. Ranks other than 0 speak only if rank 0 is gone.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from datetime import timedelta
from functools import partial
from statistics import median
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from dist_train.config import RuntimeConfig
from dist_train.doctor.finding import Finding, failed, ok
from dist_train.doctor.launch import Launch

T = TypeVar("T")

LONGEST_WAIT_SECONDS = 60
MACHINE_SECONDS = 180  # in which rank 0 has looked at its machine
ROLL_CALL_SECONDS = 5
TEST_SECONDS = 2.0
MESSAGE_BYTES = 16 << 20
REPEATS = 3


def checks(
    launch: Launch, settings: RuntimeConfig, failures_here: Sequence[Finding]
) -> Iterator[Finding]:
    """Meets the other ranks, hears what failed on their nodes, and measures the network.

    Yields what this rank has to say: on rank 0 everything, else nothing unless rank 0 is gone.
    """
    wait = min(settings.timeout_seconds, LONGEST_WAIT_SECONDS)
    # The others wait for rank 0, which looks at its machine first.
    patience = timedelta(seconds=wait + MACHINE_SECONDS if launch.rank else wait)
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    present = {"host": socket.gethostname(), "failures": [astuple(f) for f in failures_here]}
    try:
        store, *_ = next(rendezvous("env://", timeout=patience))
        store.set(f"present/{launch.rank}", json.dumps(present))
        if launch.rank:
            store.wait(["begin"], patience)
    except (RuntimeError, ValueError) as error:
        remedy = "choose a free port that no firewall closes (--main_process_port, --master_port)"
        yield failed("port", f"cannot meet at {where}: {first_line(error)}", remedy)
        return
    if launch.rank == 0:
        yield ok("port", f"{where} answers")
        missing = absent(store, "present", launch.world_size, wait)
        if missing:
            found = f"{ranks(missing)} of {launch.world_size} did not come within {wait} s"
            yield failed("ranks", found, "see what their nodes and logs say")
            return
        store.set("begin", "")
    nodes = [json.loads(store.get(f"present/{rank}")) for rank in range(launch.world_size)]
    hosts = [node["host"] for node in nodes]
    if launch.rank == 0:
        yield ok("ranks", f"{launch.world_size} on {', '.join(dict.fromkeys(hosts))}")
        for node in nodes[1:]:
            for verdict, name, found in node["failures"]:
                yield Finding(verdict, name, f"on {node['host']}: {found}")
    try:
        for finding in network(store.clone(), launch, settings, wait, hosts):
            if launch.rank == 0:
                yield finding
    except (RuntimeError, TimeoutError) as error:
        store.set(f"alive/{launch.rank}", "")
        missing = absent(store, "alive", launch.world_size, ROLL_CALL_SECONDS)
        if launch.rank == min(set(range(launch.world_size)) - missing):
            hung = f"{ranks(missing, hosts)} hung" if missing else "no rank hung"
            yield failed(
                "network",
                f"{hung}: {first_line(error)}",
                "see that node's processes; else its firewall, and GLOO_SOCKET_IFNAME or "
                "NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO",
            )


def network(
    store: Store, launch: Launch, settings: RuntimeConfig, wait: int, hosts: Sequence[str]
) -> Iterator[Finding]:
    """All-reduce bandwidth over all ranks, then one link after the other around the ring.

    Raises:
        RuntimeError: an operation failed, or gave a wrong result.
        TimeoutError: an operation did not end.
    """
    cuda = settings.device != "cpu" and torch.cuda.is_available()
    # A cluster may show each process a GPU of its own.
    gpu = launch.local_rank % torch.cuda.device_count() if cuda else 0
    device = torch.device("cuda", gpu) if cuda else torch.device("cpu")
    # NCCL shall raise when a wait is over, as gloo does, and not end the process.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    size = launch.world_size
    limit = wait + TEST_SECONDS + 5

    def join() -> None:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=PrefixStore("network", store),
            rank=launch.rank,
            world_size=size,
            timeout=timedelta(seconds=wait),
        )

    within(limit, join)
    speed = within(limit, partial(all_reduce_speed, device))
    found = f"{rate(speed)} bus bandwidth over {size} ranks ({dist.get_backend()})"
    yield ok("all-reduce", f"{found}, {MESSAGE_BYTES >> 20} MiB at a time")
    links = [(sender, (sender + 1) % size) for sender in range(size)]
    speeds = [within(limit, partial(link_speed, *link, device)) for link in links]
    slowest = speeds.index(min(speeds))
    sender, receiver = (f"rank {rank} on {hosts[rank]}" for rank in links[slowest])
    usual = f"median of {size} links {rate(median(speeds))}"
    yield ok("links", f"slowest: {sender} to {receiver}, {rate(speeds[slowest])} ({usual})")
    within(limit, dist.destroy_process_group)


def all_reduce_speed(device: torch.device) -> float:
    """Bytes/s that each rank sends and receives in the best case (NCCL's "bus bandwidth").

    https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
    """
    size = dist.get_world_size()
    tensor = torch.ones(MESSAGE_BYTES // 4, device=device)
    dist.all_reduce(tensor)
    if not bool((tensor == size).all()):
        raise RuntimeError(f"all-reduce of ones over {size} ranks gave up to {float(tensor.max())}")
    tensor.zero_()  # sums of sums would overflow

    def seconds_for(repeats: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            dist.all_reduce(tensor)
        synchronize(device)
        return time.perf_counter() - start

    repeats = torch.tensor(max(1, int(TEST_SECONDS / seconds_for(2) * 2)), device=device)
    dist.broadcast(repeats, 0)
    count = int(repeats)
    return 2 * (size - 1) / size * MESSAGE_BYTES * count / seconds_for(count)


def link_speed(sender: int, receiver: int, device: torch.device) -> float:
    """Bytes/s from one rank to another while all others are silent; the same figure on all."""
    rank = dist.get_rank()
    payload = torch.full((MESSAGE_BYTES // 4,), float(rank), device=device)
    answer = torch.zeros(1, device=device)
    seconds = []
    if rank in (sender, receiver):
        for _ in range(1 + REPEATS):  # the first one connects
            synchronize(device)
            start = time.perf_counter()
            if rank == sender:
                dist.send(payload, receiver)
                dist.recv(answer, receiver)
            else:
                dist.recv(payload, sender)
                dist.send(answer, sender)
            synchronize(device)
            seconds.append(time.perf_counter() - start)
    if rank == receiver and not bool((payload == sender).all()):
        raise RuntimeError(f"what rank {sender} sent to rank {receiver} arrived changed")
    speed = torch.zeros(1, device=device)
    if rank == sender:
        speed += MESSAGE_BYTES / min(seconds[1:])
    dist.broadcast(speed, sender)
    return float(speed)


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def absent(store: Store, word: str, world_size: int, seconds: float) -> set[int]:
    """The ranks that have not set `word` when the time is up."""
    missing = set(range(world_size))
    deadline = time.monotonic() + seconds
    while True:
        missing = {rank for rank in missing if not store.check([f"{word}/{rank}"])}
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.1)


def within(seconds: float, work: Callable[[], T]) -> T:
    """What the work returns, or its exception; TimeoutError if it hangs, and it is left behind."""
    results: list[T] = []
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no end after {seconds:.0f} s")
    return results[0]


def ranks(numbers: set[int], hosts: Sequence[str] = ()) -> str:
    """`rank 1 on n0, rank 3 on n1`."""
    where = {rank: f" on {hosts[rank]}" if hosts else "" for rank in sorted(numbers)}
    return ", ".join(f"rank {rank}{host}" for rank, host in where.items())


def rate(bytes_per_second: float) -> str:
    """A speed for people."""
    return f"{bytes_per_second / 1e6:,.0f} MB/s"


def first_line(error: Exception) -> str:
    """The start of an error's text: torch's go on for pages."""
    return str(error).strip().splitlines()[0]
