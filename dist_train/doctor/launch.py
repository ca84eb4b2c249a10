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
        values = (int(os.environ.get(name, name.endswith("SIZE"))) for name in names)
        return cls(*values, master=os.environ.get("MASTER_ADDR"))

    @property
    def nodes(self) -> int:
        """How many nodes the processes are on."""
        return self.world_size // self.local_world_size


def slurm(name: str) -> int | None:
    """A number among SLURM's variables."""
    text = os.environ.get(f"SLURM_{name}", "")
    return int(text) if text.isdigit() else None


def geometry(launch: Launch, *, gpus: int, device: str) -> Finding:
    """Whether the processes are as many as the machines and GPUs they were given."""
    in_job = "SLURM_JOB_ID" in os.environ
    if launch.world_size == 1 and (slurm("STEP_NUM_TASKS") or 1) > 1 and launch.master is None:
        return failed(
            "launch",
            f"srun started {slurm('STEP_NUM_TASKS')} tasks that do not know of each other",
            "one task a node, running accelerate launch or torchrun: see slurm/cifar.sh",
        )
    if launch.world_size == 1 and not in_job:
        return skipped("launch", "one process, outside SLURM")
    here = f"{launch.world_size} processes, {launch.local_world_size} on this node"
    allocated = [f"{launch.nodes} nodes"]
    if in_job and launch.master is None:
        return skipped(
            "launch", "one process in a SLURM job: `srun slurm/doctor.sh` tests them all"
        )
    nodes = slurm("NNODES") if in_job else None
    if nodes and nodes * launch.local_world_size != launch.world_size:
        return failed(
            "launch",
            f"{here}, in a SLURM job of {nodes} nodes",
            f"--num_machines {nodes} --num_processes {nodes * launch.local_world_size}",
        )
    if in_job and device != "cpu":
        gpus = slurm("GPUS_ON_NODE") or gpus
    if device != "cpu" and gpus and gpus != launch.local_world_size:
        wanted = (nodes or launch.nodes) * gpus
        if in_job or launch.local_world_size > gpus:
            return failed(
                "launch",
                f"{here}, which has {gpus} GPUs",
                f"a process a GPU: --num_processes {wanted} (slurm/cifar.sh: PROCESSES_PER_NODE)",
            )
    return ok("launch", f"{here}, {', '.join(allocated)}")


def address(launch: Launch) -> Iterator[Finding]:
    """Whether the names of the meeting point and of this node lead where the others find them."""
    if launch.master is None:
        yield skipped("address", "no MASTER_ADDR: one process")
        return
    remedy = "see getent hosts, /etc/hosts and DNS, or give the node's IP address"
    for name, variable in ((launch.master, "MASTER_ADDR"), (socket.gethostname(), "host name")):
        try:
            found = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            yield failed("address", f"{variable} {name} has no address ({error.strerror})", remedy)
            continue
        # The master's own name may mean itself; a node's own name is what it tells the others.
        loopback = ip_address(found.split("%")[0]).is_loopback
        elsewhere = variable == "host name" or launch.rank > 0
        if launch.nodes > 1 and loopback and elsewhere and "GLOO_SOCKET_IFNAME" not in os.environ:
            yield failed(
                "address",
                f"{variable} {name} is {found} on {socket.gethostname()}, and there are "
                f"{launch.nodes} nodes",
                "correct /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the "
                "network interface",
            )
        else:
            yield ok("address", f"{variable} {name} is {found}")
