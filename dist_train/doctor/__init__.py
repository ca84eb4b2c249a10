"""`dist-train doctor`: what would go wrong, told before anyone waits in a queue for it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dist_train.config import Config
from dist_train.doctor import launch, machine
from dist_train.doctor.finding import Finding, skipped
from dist_train.doctor.launch import Launch


def examine(config: Config) -> int:
    """Checks this machine, then all ranks together when there are several.

    The first rank of each node checks its node. Rank 0 prints: its own lines, and of the other
    nodes those that failed.

    Returns:
        The exit code: 0, or 2 when a check failed.
    """
    here = Launch.from_environment()
    sick: list[Finding] = []
    if here.local_rank == 0:
        for finding in of_this_machine(config, here):
            if here.rank == 0:
                print(finding, flush=True)
            if finding.verdict == "FAIL":
                sick.append(finding)
    if here.world_size == 1:
        print(skipped("network", "one process: torchrun and accelerate launch start several"))
        return 2 if sick else 0
    if any(finding.name == "torch" for finding in sick):
        print(skipped("network", "torch cannot be imported"))
        return 2

    from dist_train.doctor import peers

    for finding in peers.checks(here, config.runtime, sick):
        print(finding, flush=True)
        if finding.verdict == "FAIL":
            sick.append(finding)
    if sick:  # what hangs would also keep this process from ending
        sys.stdout.flush()
        os._exit(2)
    return 0


def of_this_machine(config: Config, here: Launch) -> Iterator[Finding]:
    """Software, GPUs, data, disks, W&B, and how the processes were started."""
    yield machine.python()
    probed = machine.probed()
    optional = {}
    if config.data.loader != "stream":
        optional["ffcv"] = "the resident loader is used"
    if config.tracking.wandb in ("auto", "off"):
        optional["wandb"] = "runs are not logged to W&B"
    yield from machine.packages(probed, optional=optional)
    gpus = probed.get("gpus")
    yield machine.gpus(gpus, device=config.runtime.device)
    yield machine.data(config.data)
    yield from machine.disk("cache", Path(config.data.cache), flag="--data.cache")
    yield from machine.disk("output", Path(config.output), flag="--output")
    yield machine.wandb(config.tracking.wandb)
    yield launch.geometry(
        here, gpus=len(gpus["names"]) if gpus else 0, device=config.runtime.device
    )
    yield from launch.address(here)
