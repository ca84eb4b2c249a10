"""Accuracy on corrupted images: noise, blur and less contrast, at five strengths.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019): strengths are those of CIFAR-10-C. The images are made here from the
test set, so figures are close to, not the same as, those on the published files: noise differs,
bytes are rounded and not cut off, and the blur mirrors the image at its edges.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from math import ceil, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from dist_train.data.augment import Augment
from dist_train.data.batches import EvaluationData, Loader
from dist_train.data.order import NOISE, Ids, random_bits
from dist_train.evaluate import evaluate
from dist_train.runtime import Runtime

Corruption = Callable[[Tensor, Ids, float], Tensor]
"""uint8 (n, H, W, C) images, their ids and the strength to corrupted uint8 images."""


def add_noise(images: Tensor, ids: Ids, strength: float) -> Tensor:
    """Normal noise; `strength` is its standard deviation for pixels from 0 to 1.

    An image's noise is a function of its id, the same at all strengths but for its size.
    """
    noise = torch.from_numpy(normal(ids, prod(images.shape[1:]))).view(images.shape)
    return as_bytes(images.float() + noise.to(images.device) * (strength * 255))


def normal(ids: Ids, count: int) -> NDArray[np.float32]:
    """Standard normal numbers for each id, float32 (n, count), after Box and Muller (1958)."""
    bits = random_bits(0, 0, ids[:, None] * count + np.arange(count), NOISE)
    first = ((bits >> np.uint64(32)) + np.uint64(1)).astype(np.float32) * np.float32(2**-32)
    second = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2 * np.pi * 2**-32)
    values: NDArray[np.float32] = np.sqrt(-2 * np.log(first)) * np.cos(second)
    return values


def blur(images: Tensor, ids: Ids, strength: float) -> Tensor:
    """Gaussian blur; `strength` is its sigma in pixels of an image of 32 pixels."""
    sigma = strength * images.shape[1] / 32
    size = 2 * ceil(4 * sigma) + 1
    blurred: Tensor = transforms.gaussian_blur(
        images.permute(0, 3, 1, 2), [size, size], [sigma, sigma]
    )
    return blurred.permute(0, 2, 3, 1)


def reduce_contrast(images: Tensor, ids: Ids, strength: float) -> Tensor:
    """Each channel's distance to its mean over the image, times `strength`."""
    # A sum of integers is exact in any order, hence the same in every batch.
    total = images.sum((1, 2), dtype=torch.int32)[:, None, None]
    mean = total.float() / (images.shape[1] * images.shape[2])
    return as_bytes((images.float() - mean) * strength + mean)


def as_bytes(x: Tensor) -> Tensor:
    """Rounded to uint8, cut off at 0 and 255."""
    return x.round().clamp(0, 255).byte()


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "noise": (add_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "blur": (blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (reduce_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
}


@dataclass(frozen=True, slots=True)
class CorruptedLoader:
    """Another loader's images, corrupted."""

    loader: Loader
    corrupt: Corruption
    strength: float

    def epoch(self, ids: Ids) -> Generator[Tensor]:
        """See batches.Loader."""
        start = 0
        for images in self.loader.epoch(ids):
            end = start + len(images)
            yield self.corrupt(images, ids[start:end], self.strength)
            start = end

    def close(self) -> None:
        """See batches.Loader."""
        self.loader.close()


def corrupted_accuracies(
    model: nn.Module, augment: Augment, data: EvaluationData, runtime: Runtime
) -> dict[str, list[float]]:
    """Accuracy under each of CORRUPTIONS at each of its strengths, the weakest first."""
    passes = [
        (name, corrupt, strength)
        for name, (corrupt, strengths) in CORRUPTIONS.items()
        for strength in strengths
    ]
    found: dict[str, list[float]] = {name: [] for name in CORRUPTIONS}
    silent = None if runtime.is_main else True  # None: unless there is a terminal
    for name, corrupt, strength in tqdm(passes, "corruptions", leave=False, disable=silent):
        corrupted = replace(data, loader=CorruptedLoader(data.loader, corrupt, strength))
        found[name].append(evaluate(model, augment, corrupted, runtime).accuracy)
    return found
