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
LAUNCH_SECONDS = 2e-3
"""A step of compiled code takes as long on no image at all."""
BACKWARD = 2 / 3
"""Share of the compute during which gradients travel."""
BUCKET_BYTES = 25e6
"""DDP's; the last one has nothing left to hide behind."""


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


def gradient_bytes(recipe: str) -> float:
    """What a rank sends a step, in float32."""
    config = RECIPES[recipe]()
    inputs = models.Inputs(10, (32, 32, 3), lambda: torch.zeros(1, 3, 32, 32))
    network = models.build(config.model.name, inputs, config.model.widths, config.model.hidden)
    return 4.0 * sum(p.numel() for p in network.parameters() if p.requires_grad)


def step_seconds(
    recipe: str, images: float, gpus: int, network: Network, *, size: float, every: int = 1
) -> float:
    """A step of so many images on each of the GPUs.

    Args:
        size: bytes of the gradients.
        every: steps between two messages.
    """
    compute = SECONDS_PER_IMAGE[recipe] * images
    if gpus == 1:
        return max(compute, LAUNCH_SECONDS)
    hops = 2 * math.log2(gpus)  # a tree

    def send(count: float) -> float:
        return 2 * (gpus - 1) / gpus * count / network.bytes_per_second + hops * network.latency

    hidden = 0.0 if every > 1 else BACKWARD * compute
    exposed = max(send(size) - hidden, send(min(size, BUCKET_BYTES) / 4)) / every
    return max(compute, LAUNCH_SECONDS) + exposed


def table(recipe: str, *, weak: bool) -> str:
    """Speed-up over one GPU, by network and remedy."""
    batch, size = RECIPES[recipe]().data.batch_size, gradient_bytes(recipe)
    counts = (8, 64, 512)
    header = " | ".join(f"{n} GPUs" for n in counts)
    lines = [
        f"| {recipe}, {size / 1e6:.0f} MB of gradients | {header} |",
        f"|---|{'---|' * len(counts)}",
    ]
    remedies: dict[str, tuple[float, int]] = {
        "": (1, 1),
        ", bf16": (0.5, 1),
        ", 8 local steps": (2, 8),
    }
    one = batch / step_seconds(recipe, batch, 1, NETWORKS["NVLink"], size=size)
    for name, network in NETWORKS.items():
        for remedy, (factor, every) in remedies.items():
            cells = []
            for n in counts:
                images = batch if weak else batch / n
                seconds = step_seconds(recipe, images, n, network, size=factor * size, every=every)
                cells.append(f"{images * n / seconds / one:.1f}")
            lines.append(f"| {name}{remedy} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for recipe in SECONDS_PER_IMAGE:
        for weak in (False, True):
            batch = RECIPES[recipe]().data.batch_size
            kind = f"{batch} images on each GPU" if weak else f"{batch} images in all"
            print(
                f"{'Weak' if weak else 'Strong'} scaling, {kind}:\n\n{table(recipe, weak=weak)}\n"
            )
