"""Checks of how the processes were started: SLURM's geometry and the address to meet at."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from dist_train.doctor.finding import Finding, failed, ok, skipped


@dataclass(frozen=True, slots=True)
class Launch:
    """What torchrun or accelerate launch told this process; alone, if nobody did."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    master: str | None

    @classmethod
    def from_environment(cls) -> Self:
        """From the variables that both launchers set."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        rank, local_rank, world_size, local_world_size = (
            int(os.environ.get(name, name.endswith("SIZE"))) for name in names
        )
        return cls(rank, local_rank, world_size, local_world_size, os.environ.get("MASTER_ADDR"))

    @property
    def launched(self) -> bool:
        """Whether a launcher started this process."""
        return self.master is not None

    @property
    def nodes(self) -> int:
        """How many nodes the processes are on."""
        return self.world_size // self.local_world_size


def slurm(name: str) -> int | None:
    """A number among SLURM's variables."""
    text = os.environ.get(f"SLURM_{name}", "")
    return int(text) if text.isdigit() else None


def geometry(launch: Launch, *, gpus: int, device: str) -> Finding:
    """Whether there are as many processes as the machines and GPUs that were given ask for."""
    in_job = "SLURM_JOB_ID" in os.environ
    tasks = slurm("STEP_NUM_TASKS") or 1
    if not launch.launched:
        if in_job and tasks > 1:
            return failed(
                "launch",
                f"srun started {tasks} tasks that do not know of each other",
                "start one task a node, and in it accelerate launch or torchrun (slurm/cifar.sh)",
            )
        where = "in a SLURM job: see docs/slurm.md to test all of it" if in_job else "outside SLURM"
        return skipped("launch", f"one process, {where}")
    found = f"{launch.world_size} processes, {launch.local_world_size} on this node"
    nodes = slurm("NNODES") or launch.nodes
    if nodes * launch.local_world_size != launch.world_size:
        wanted = nodes * launch.local_world_size
        remedy = f"--num_machines {nodes} --num_processes {wanted}"
        return failed("launch", f"{found}, in a SLURM job of {nodes} nodes", remedy)
    if device != "cpu":
        gpus = slurm("GPUS_ON_NODE") or gpus
        # Fewer processes than GPUs may be meant, but not of GPUs that a job has reserved.
        if launch.local_world_size > gpus > 0 or (in_job and launch.local_world_size < gpus):
            remedy = f"--num_processes {nodes * gpus} (slurm/cifar.sh: PROCESSES_PER_NODE={gpus})"
            return failed("launch", f"{found}, which has {gpus} GPUs", remedy)
    return ok("launch", f"{found}, {nodes} nodes" if nodes > 1 else found)


def address(launch: Launch) -> Iterator[Finding]:
    """Whether the names of the meeting point and of this node lead where the others find them."""
    if launch.master is None:
        yield skipped("MASTER_ADDR", "one process meets nobody")
        return
    remedy = "see getent hosts, /etc/hosts and DNS, or give the node's IP address"
    for name, variable in ((launch.master, "MASTER_ADDR"), (socket.gethostname(), "host name")):
        try:
            found = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            yield failed(variable, f"{name} has no address ({error.strerror})", remedy)
            continue
        # The master's own name may mean itself; a node's own name is what it tells the others.
        loopback = ip_address(found.split("%")[0]).is_loopback
        elsewhere = variable == "host name" or launch.rank > 0
        if launch.nodes > 1 and loopback and elsewhere and "GLOO_SOCKET_IFNAME" not in os.environ:
            yield failed(
                variable,
                f"{name} is {found} on {socket.gethostname()}, and there are {launch.nodes} nodes",
                "correct /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the "
                "network interface",
            )
        else:
            yield ok(variable, f"{name} is {found}")
