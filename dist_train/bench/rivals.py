"""What the loaders are compared with: FFCV alone, and torchvision's usual example."""

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from dist_train.data import catalog
from dist_train.data.prepare import Manifest
from dist_train.data.streaming import ffcv_contained
from dist_train.runtime import Runtime

with ffcv_contained():
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import (
        Convert,
        Cutout,
        RandomHorizontalFlip,
        RandomTranslate,
        Squeeze,
        ToDevice,
        ToTensor,
        ToTorchImage,
    )

BATCH_SIZE = 512
PADDING, CUTOUT = 4, 8
WORKERS = (0, 2)  # of torchvision's loader
FIRST_BATCHES = 3  # torchvision's workers start and fill their queues meanwhile

# Forks of a process that has imported torch, but not FFCV: once numba has started TBB's threads, a
# process that forks hangs when it ends.
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["dist_train.build", "torchvision.datasets"])

# Asks for batches for at least so many seconds; returns images/s.
Rate = Callable[[float], float]


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0))


def raw_pipeline(runtime: Runtime) -> list[Any]:
    """FFCV's decoder alone."""
    return [SimpleRGBImageDecoder(), ToTensor(), *to_device(runtime)]


def augmented_pipeline(manifest: Manifest, runtime: Runtime) -> list[Any]:
    """FFCV's CIFAR-10 example, with the sizes that ours has and in float32."""
    mean, std = ([255 * value for value in values] for values in (manifest.mean, manifest.std))
    fill = tuple(round(value) for value in mean)
    return [
        SimpleRGBImageDecoder(),
        RandomHorizontalFlip(),
        RandomTranslate(padding=PADDING, fill=fill),
        Cutout(CUTOUT, fill),
        ToTensor(),
        *to_device(runtime),
        ToTorchImage(),
        Convert(torch.float32),
        v2.Normalize(mean, std),
    ]


def to_device(runtime: Runtime) -> list[Any]:
    """FFCV's copy to the GPU, where there is one."""
    return [] if runtime.device.type == "cpu" else [ToDevice(runtime.device, non_blocking=True)]


def ffcv_loader(path: Path, images: list[Any], workers: int, runtime: Runtime) -> Any:
    """FFCV's Loader in random order, with labels."""
    return Loader(
        str(path),
        batch_size=BATCH_SIZE,
        num_workers=workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={
            "image": images,
            "label": [IntDecoder(), ToTensor(), *to_device(runtime), Squeeze()],
        },
    )


def ffcv_rate(loader: Any, runtime: Runtime) -> Rate:
    """Whole epochs only: FFCV leaks the thread and the buffers of one that is left."""

    def rate(seconds: float) -> float:
        threads = torch.get_num_threads()
        images, start = 0, time.perf_counter()
        while not images or time.perf_counter() - start < seconds:
            for batch, _ in loader:
                images += len(batch)
        runtime.synchronize()
        spent = time.perf_counter() - start
        torch.set_num_threads(threads)  # FFCV sets it to its number of workers
        return images / spent

    return rate


def torchvision_loaders(
    data_root: str | None, manifest: Manifest, runtime: Runtime, resources: ExitStack
) -> dict[str, tuple[str, Rate]]:
    """The usual example: Pillow images, torchvision's transforms, without and with workers."""
    # Wherever the files are, torchvision looks for them in a folder of this name.
    root = resources.enter_context(TemporaryDirectory())
    folder = catalog.locate("cifar10", root=data_root).resolve()
    Path(root, CIFAR10.base_folder).symlink_to(folder)
    transforms = {
        "uint8": v2.PILToTensor(),
        "ready": v2.Compose(
            [
                v2.RandomCrop(32, padding=PADDING),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(manifest.mean, manifest.std),
            ]
        ),
    }
    what = {"uint8": "uint8 NCHW", "ready": "normalised float32 NCHW: crop, flip"}
    contestants = {}
    for kind, workers in product(transforms, WORKERS):
        loader = DataLoader(
            CIFAR10(root, transform=transforms[kind]),
            BATCH_SIZE,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            pin_memory=runtime.device.type == "cuda",
            multiprocessing_context=FRESH if workers else None,
        )
        contestants[f"torchvision_{kind}_{workers}_workers"] = (
            f"{what[kind]}; DataLoader with {workers} workers",
            torchvision_rate(loader, runtime),
        )
    return contestants


def torchvision_rate(loader: Any, runtime: Runtime) -> Rate:
    """Within an epoch: from a few batches after its start on."""

    def rate(seconds: float) -> float:
        batches = iter(loader)
        for _ in islice(batches, FIRST_BATCHES):
            pass
        images, start = 0, time.perf_counter()
        for batch, _ in batches:
            images += len(batch.to(runtime.device, non_blocking=True))
            # Three times as long as others: its batches take long, and come several at a time.
            if time.perf_counter() - start >= 3 * seconds:
                break
        runtime.synchronize()
        return images / (time.perf_counter() - start)

    return rate
