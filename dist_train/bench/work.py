"""Where the time of training goes: operations, and how near they come to the device's best."""

import math
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from dist_train import build
from dist_train.config import Config
from dist_train.data.prepare import prepare_dataset
from dist_train.flops import TRAINING_FLOPS, forward_flops
from dist_train.hardware import DTYPES
from dist_train.runtime import Runtime, start_runtime


def work(config: Config, steps: int, phases: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Operations of a run's training, in a second, and of the device's best.

    The peak is that of a large matrix product in the run's precision, measured here and now.

    Args:
        steps: of each run.
        phases: seconds of each phase (metrics.Clock) of each run.
    """
    with start_runtime(config.runtime) as runtime:
        flops = training_flops(config, steps)
        peak = matmul_peak(runtime)
    seconds = fmean(run["train"] for run in phases)
    return {
        "training_flops": flops,
        "flops_per_second": flops / seconds,
        "matmul_flops_per_second": peak,
        "mfu": flops / seconds / peak,
        "data_wait_fraction": fmean(run["data_wait"] for run in phases) / seconds,
    }


def training_flops(config: Config, steps: int) -> int:
    """Floating-point operations of so many steps, the proxy's among them where there is one."""
    manifest = prepare_dataset(config.data).manifest
    height, _, channels = manifest.image_shape
    sizes = build.image_sizes(config.data, height, steps)

    def forward(of: Config) -> dict[int, int]:
        model = build.blank_network(of, manifest)
        return {size: forward_flops(model, (size, size, channels)) for size in set(sizes)}

    train, batch = config.train, config.data.batch_size
    network = forward(config)
    if train.select == 1:
        return TRAINING_FLOPS * batch * sum(network[size] for size in sizes)
    proxy = forward(build.proxy_config(config))
    learnt_from = batch // train.select_group * train.kept_of_group
    total = 0
    for step, size in enumerate(sizes):
        of_proxy = TRAINING_FLOPS if step % train.proxy_every == 0 else 1
        total += batch * of_proxy * proxy[size] + learnt_from * TRAINING_FLOPS * network[size]
    return total


def matmul_peak(runtime: Runtime, seconds: float = 1.0) -> float:
    """Operations a second of a matrix product, the best of several."""
    size = 8192 if runtime.device.type == "cuda" else 2048  # a GPU is done with less in no time
    # Of random numbers: constant ones heat a GPU less, which then runs faster than in training.
    a = torch.randn(size, size, device=runtime.device).to(DTYPES[runtime.precision])
    best, until = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        a @ a
        runtime.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
