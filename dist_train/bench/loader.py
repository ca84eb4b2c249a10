"""Our data path against FFCV's and torchvision's, on one data set, in one process, in turn."""

import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train import build
from dist_train.bench.rivals import (
    BATCH_SIZE,
    CUTOUT,
    FRESH,
    PADDING,
    WORKERS,
    Rate,
    augmented_pipeline,
    cores,
    ffcv_loader,
    ffcv_rate,
    raw_pipeline,
    torchvision_loaders,
)
from dist_train.bench.timing import Measurements, Settings, alternate, note
from dist_train.config import DataConfig, RuntimeConfig
from dist_train.data import beton
from dist_train.data.batches import TrainBatches
from dist_train.data.order import Order
from dist_train.data.prepare import Prepared, prepare_dataset
from dist_train.runtime import Runtime, start_runtime

SECONDS, REPEATS = 0.4, 3


def measure(settings: Settings) -> Measurements:
    """stream_vs_ffcv_raw, stream_vs_torchvision, augmented_vs_ffcv_augmented, first_batch_seconds.

    `stream_vs_torchvision` compares batches that are cropped, mirrored and normalised, ready for
    the model; `uint8_vs_torchvision_uint8` those without any transformation.

    Raises:
        UserError: there is no data.
    """
    found = Measurements()
    seconds, repeats = settings.seconds or SECONDS, settings.repeats or REPEATS
    data = replace(settings.data, batch_size=BATCH_SIZE)
    with start_runtime(RuntimeConfig()) as runtime, ExitStack() as resources:
        prepared = prepare_dataset(data)
        ffcv_augmented = first_batches(found, prepared, runtime, repeats)
        contestants = {
            **decoders(data, prepared, runtime, resources),
            **augmenters(data, prepared, runtime, resources),
            "ffcv_augmented": (
                f"normalised float32 NCHW: flip, translate, cutout; {cores()} workers",
                ffcv_rate(ffcv_augmented, runtime),
            ),
            **torchvision_loaders(data.root, prepared.manifest, runtime, resources),
        }
        for name, (_, rate) in contestants.items():
            note(f"warming up {name}")
            rate(0)
        timings = {name: partial(rate, seconds) for name, (_, rate) in contestants.items()}
        rates = alternate(timings, repeats)
        for name, (what, _) in contestants.items():
            found.add(f"images_per_second_{name}", f"batches of {BATCH_SIZE}: {what}", rates[name])

        def over(ours: str, rival: str) -> float:
            return found.paired(f"images_per_second_{ours}", over=f"images_per_second_{rival}")

        def over_torchvision(ours: str, kind: str) -> float:
            return min(over(ours, f"torchvision_{kind}_{workers}_workers") for workers in WORKERS)

        found.ratios["stream_vs_ffcv_raw"] = over("stream", "ffcv_raw")
        found.ratios["uint8_vs_torchvision_uint8"] = over_torchvision("stream", "uint8")
        # The names without a suffix are of the step as it is on a GPU: compiled.
        for suffix, how in {"": "compiled", "_eager": "eager"}.items():
            if f"stream_crop_flip_{how}" not in contestants:
                continue
            found.ratios["stream_vs_torchvision" + suffix] = over_torchvision(
                f"stream_crop_flip_{how}", "ready"
            )
            found.ratios["augmented_vs_ffcv_augmented" + suffix] = over(
                f"stream_augmented_{how}", "ffcv_augmented"
            )
    return found


# The first batch


def first_batches(found: Measurements, prepared: Prepared, runtime: Runtime, repeats: int) -> Any:
    """Adds the seconds until a first batch; returns FFCV's loader, which took the longer."""
    samples = prepared.manifest.train.samples
    seconds = []
    for _ in range(repeats):
        with ProcessPoolExecutor(1, FRESH) as process:
            seconds.append(
                process.submit(first_stream_batch, prepared.train, samples, runtime.device).result()
            )
        note(f"stream: first batch after {seconds[-1]:.2f} s")
    name = "seconds_first_batch_stream"
    found.add(name, "StreamLoader(...) to uint8 on the device; FFCV imported, new process", seconds)
    found.ratios["first_batch_seconds"] = found.measured[name]["median"]

    # Once is enough for what takes ten seconds; nothing of FFCV is compiled in this process yet.
    start = time.perf_counter()
    loader = ffcv_loader(
        prepared.train, augmented_pipeline(prepared.manifest, runtime), cores(), runtime
    )
    batches = iter(loader)
    next(batches)
    runtime.synchronize()
    first = time.perf_counter() - start
    note(f"FFCV with its augmentation: first batch after {first:.2f} s")
    for _ in batches:  # FFCV leaks the thread of an epoch that is left
        pass
    found.add(
        "seconds_first_batch_ffcv_augmented",
        "FFCV's Loader(...) to normalised float32 on the device; FFCV imported",
        [first],
    )
    return loader


def first_stream_batch(path: Path, samples: int, device: torch.device) -> float:
    """Seconds, in a process that has imported FFCV and touched the device."""
    torch.zeros(1, device=device)
    ids = np.random.default_rng(0).permutation(samples)
    start = time.perf_counter()
    loader = build.loader("stream", path, batch_size=BATCH_SIZE, device=device, threads=1)
    next(loader.epoch(ids)).sum().item()  # the copy to the device is over
    seconds = time.perf_counter() - start
    loader.close()
    return seconds


# Ours


def decoders(
    data: DataConfig, prepared: Prepared, runtime: Runtime, resources: ExitStack
) -> dict[str, tuple[str, Rate]]:
    """Bytes and labels, from us and from FFCV with as many threads."""
    contestants = {}
    for suffix, threads in {"": data.threads, "_all_cores": cores()}.items():
        ours = stream_rate(replace(data, threads=threads), prepared, runtime, resources)
        theirs = ffcv_loader(prepared.train, raw_pipeline(runtime), threads, runtime)
        contestants["stream" + suffix] = (
            f"uint8, labels, draws; decoding threads: {threads}",
            ours,
        )
        contestants["ffcv_raw" + suffix] = (
            f"uint8, labels; num_workers={threads}",
            ffcv_rate(theirs, runtime),
        )
    return contestants


def augmenters(
    data: DataConfig, prepared: Prepared, runtime: Runtime, resources: ExitStack
) -> dict[str, tuple[str, Rate]]:
    """Our batches, ready for the model; eager and, where there is a compiler, compiled."""
    crop_flip = replace(data, flip="random", crop_padding=PADDING)
    backends = {"eager": None, "compiled": runtime.compile_backend or "inductor"}
    if runtime.device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        note("no C++ compiler: compiled augmentation is left out")
        del backends["compiled"]
    contestants = {}
    for how, backend in backends.items():
        rate = partial(
            stream_rate,
            prepared=prepared,
            runtime=runtime,
            resources=resources,
            augmented=True,
            backend=backend,
        )
        ready = f"normalised float32 NCHW, channels last, {how}: reflected crop, flip"
        contestants[f"stream_crop_flip_{how}"] = (ready, rate(crop_flip))
        with_cutout = replace(crop_flip, cutout=CUTOUT)
        contestants[f"stream_augmented_{how}"] = (f"{ready}, cutout", rate(with_cutout))
    return contestants


def stream_rate(
    data: DataConfig,
    prepared: Prepared,
    runtime: Runtime,
    resources: ExitStack,
    *,
    augmented: bool = False,
    backend: str | None = None,
) -> Rate:
    """What train.py iterates over: order, images, labels and draws; then perhaps Augment."""
    labels = beton.read_labels(prepared.train)
    loader = build.loader(
        "stream",
        prepared.train,
        batch_size=BATCH_SIZE,
        device=runtime.device,
        threads=data.threads,
    )
    resources.callback(loader.close)
    batches = TrainBatches(
        loader=loader,
        labels=torch.from_numpy(labels).to(runtime.device),
        order=Order(np.arange(len(labels)), BATCH_SIZE, seed=0),
        settings=data,
        image_size=prepared.manifest.image_shape[:2],
        rank=0,
        world_size=1,
    )
    augment = build.augmentation(data, prepared.manifest).to(runtime.device)
    if backend is not None:
        augment.compile(backend=backend, dynamic=False)
    endless = batches.steps(0, 10**9)

    def rate(seconds: float) -> float:
        images, start = 0, time.perf_counter()
        for batch in endless:
            if augmented:
                augment(batch.images, batch.draws)
            images += len(batch.images)
            if time.perf_counter() - start >= seconds:
                break
        runtime.synchronize()
        return images / (time.perf_counter() - start)

    return rate
