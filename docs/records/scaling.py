"""What to expect of more GPUs than there are here; prints the tables of scaling.md.

A step takes the longer of compute and kernel launches, and what of the all-reduce does not hide
behind the backward pass. What goes in is stated below; none of it was measured on a cluster.
"""

import math
from dataclasses import dataclass

import torch

from dist_train import models
from dist_train.recipes import RECIPES

# One A100: airbench94_muon 2.59 s for 200 steps of 2,000 images; ResNet-18 at 77 TFLOP/s of 3.3
# GFLOP an image (its authors' figures).
SECONDS_PER_IMAGE = {"cifar10_94": 2.59 / 200 / 2000, "resnet18": 3.3e9 / 77e12}
LAUNCH_SECONDS, GRAPH_SECONDS = 2e-3, 0.3e-3
"""A step of compiled code takes as long on no image at all: assumed, and assumed of CUDA graphs."""
BACKWARD = 2 / 3
"""Share of a step during which gradients travel."""
BUCKET_BYTES = (2**20, 25 * 2**20)
"""DDP's first bucket and the others: each takes gradients, the last layer's first, until full."""


@dataclass(frozen=True)
class Network:
    """Between GPUs."""

    bytes_per_second: float
    latency: float
    """Seconds a hop."""


NETWORKS = {
    "NVLink": Network(370e9, 5e-6),
    "200 Gb/s InfiniBand": Network(25e9, 8e-6),
    "25 Gb/s Ethernet": Network(3.1e9, 30e-6),
}


def bucket_bytes(recipe: str) -> list[int]:
    """What a rank sends a step, in float32, message by message."""
    config = RECIPES[recipe]()
    inputs = models.Inputs(10, (32, 32, 3), lambda: torch.zeros(1, 3, 32, 32))
    network = models.build(config.model.name, inputs, config.model.widths, config.model.hidden)
    sizes = [4 * p.numel() for p in reversed([*network.parameters()]) if p.requires_grad]
    buckets = [0]
    for size in sizes:
        if buckets[-1] >= BUCKET_BYTES[len(buckets) > 1]:
            buckets.append(0)
        buckets[-1] += size
    return buckets


@dataclass(frozen=True)
class Remedy:
    """What may be changed about a step."""

    share: float = 1.0
    """Of the gradients' bytes that is sent."""
    every: int = 1
    """Steps between two messages: then of weights and momenta, which hide behind nothing."""
    launch_seconds: float = LAUNCH_SECONDS
    batch: int = 1
    """Times as many images a step."""


REMEDIES = {
    "": Remedy(),
    ", bf16": Remedy(share=0.5),
    ", 8 local steps": Remedy(share=2, every=8),
    ", CUDA graphs": Remedy(launch_seconds=GRAPH_SECONDS),
    ", 4 times the batch": Remedy(batch=4),
}


def step_seconds(
    compute: float, buckets: list[int], gpus: int, network: Network, remedy: Remedy
) -> float:
    """A step of so many seconds of compute on each of the GPUs."""
    alone = max(compute, remedy.launch_seconds)
    hops = 2 * math.log2(gpus)  # a tree

    def send(size: float) -> float:
        wire = 2 * (gpus - 1) / gpus * size * remedy.share / network.bytes_per_second
        return wire + hops * network.latency

    if remedy.every > 1:
        return alone + send(sum(buckets)) / remedy.every
    # The last bucket is full when the backward pass is over.
    return alone + max(sum(map(send, buckets)) - BACKWARD * alone, send(buckets[-1]))


def table(recipe: str, *, weak: bool) -> str:
    """Speed-up over one GPU, by network and remedy."""
    batch, buckets = RECIPES[recipe]().data.batch_size, bucket_bytes(recipe)
    counts = (8, 64, 512)
    header = " | ".join(f"{n} GPUs" for n in counts)
    lines = [
        f"| {recipe}, {'+'.join(f'{size / 1e6:.0f}' for size in buckets)} MB of gradients "
        f"| {header} |",
        f"|---|{'---|' * len(counts)}",
    ]
    one = max(SECONDS_PER_IMAGE[recipe] * batch, LAUNCH_SECONDS)
    for name, network in NETWORKS.items():
        for said, remedy in REMEDIES.items():
            cells = []
            for n in counts:
                share = remedy.batch * (1.0 if weak else 1 / n)  # of the batch, on each GPU
                compute = SECONDS_PER_IMAGE[recipe] * batch * share
                seconds = step_seconds(compute, buckets, n, network, remedy)
                cells.append(f"{share * n * one / seconds:.1f}")
            lines.append(f"| {name}{said} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for recipe in SECONDS_PER_IMAGE:
        for weak in (False, True):
            batch = RECIPES[recipe]().data.batch_size
            kind = f"{batch} images on each GPU" if weak else f"{batch} images in all"
            print(
                f"{'Weak' if weak else 'Strong'} scaling, {kind}:\n\n{table(recipe, weak=weak)}\n"
            )
