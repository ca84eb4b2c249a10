"""Two processes against one, through the command that people use."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dist_train import runs, runtime
from dist_train.bench.timing import Measurements, Settings, alternate, note
from dist_train.data.prepare import prepare_dataset

SECONDS, REPEATS = 8.0, 3
BATCH_SIZE = 512


def measure(settings: Settings) -> Measurements:
    """two_ranks_vs_one_resnet9: images/s of all processes over those of one with all the cores.

    With several GPUs, a process on each over as many times what one does alone, at 512 images
    each. Otherwise two processes on the CPU, which share out the cores and the 512 images.
    """
    prepare_dataset(settings.data)
    gpus = torch.cuda.device_count()
    device, ranks = ("cuda", gpus) if gpus > 1 else ("cpu", 2)
    ideal = ranks if device == "cuda" else 1
    cores = len(os.sched_getaffinity(0))
    precision = runtime.resolve_precision("auto", cpu=device == "cpu")
    rate = partial(images_per_second, settings=settings, device=device, precision=precision)

    seconds = settings.seconds or SECONDS
    first_guess = rate(ranks=1, threads=cores, steps=2, batch_size=BATCH_SIZE)
    steps = max(2, round(seconds * first_guess / BATCH_SIZE))
    note(f"scaling: {steps} steps of {BATCH_SIZE} images on {device}, {precision}")
    one, many = "images_per_second_one_rank_resnet9", f"images_per_second_{ranks}_ranks_resnet9"
    threads = max(1, cores // ranks)
    rates = alternate(
        {
            one: partial(rate, ranks=1, threads=cores, steps=steps, batch_size=BATCH_SIZE),
            many: partial(
                rate, ranks=ranks, threads=threads, steps=steps, batch_size=BATCH_SIZE * ideal
            ),
        },
        settings.repeats or REPEATS,
    )
    found = Measurements()
    task = f"recipe resnet9 by torchrun on {device}, {precision}, {steps} steps"
    found.add(one, f"{task} of {BATCH_SIZE} images, 1 process of {cores} threads", rates[one])
    found.add(
        many,
        f"{task} of {BATCH_SIZE * ideal} images, {ranks} processes of {threads} threads",
        rates[many],
    )
    found.ratios["two_ranks_vs_one_resnet9"] = found.paired(many, over=one) / ideal
    return found


def images_per_second(
    *,
    settings: Settings,
    device: str,
    precision: str,
    ranks: int,
    threads: int,
    steps: int,
    batch_size: int,
) -> float:
    """Throughput over the training seconds of a short run, from its summary."""
    with TemporaryDirectory() as folder:
        flags = {
            "name": "bench",
            "output": folder,
            "data.root": settings.data.root,
            "data.cache": settings.data.cache,
            "data.batch_size": batch_size,
            "data.validation": BATCH_SIZE,  # few images: the evaluation is not timed
            "train.epochs": 1e6,
            "train.max_steps": steps,
            "train.eval_every": 0,
            "runtime.device": device,
            "runtime.precision": precision,
            "runtime.threads": threads,
            "tracking.wandb": "off",
        }
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}")
        recipe = ("-m", "dist_train.main", "resnet9")
        given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        done = subprocess.run(
            [sys.executable, *launcher, *recipe, *given], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(done.args)} failed:\n{done.stdout}{done.stderr}")
        return float(runs.read_json(Path(folder) / "bench" / "summary.json")["images_per_second"])
