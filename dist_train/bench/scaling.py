"""Several processes against one, through the command that people use."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dist_train.bench.timing import Measurements, Settings, alternate, note
from dist_train.data.prepare import prepare_dataset
from dist_train.hardware import resolve_precision
from dist_train.tracking import json_lines

SECONDS, REPEATS = 8.0, 3
BATCH_SIZE = 512
CPU_RANKS = (2, 4)


def measure(settings: Settings) -> Measurements:
    """Throughput of several ranks over that of one, and how much of it all-reduce takes away.

    On GPUs each rank has one of its own and 512 images a step, so that the ideal is as many times
    the throughput of one. On the CPU the ranks share out cores and images, and the ideal is 1.

    - ranks_N_vs_1_resnet9: images/s of all ranks over those of one, and over the ideal.
    - all_reduce_share_N_ranks: the share of a step for which gradients are waited for, from the
      same steps without them (local SGD whose ranks do not meet before the last step, which is
      not timed).
    """
    prepare_dataset(settings.data)
    gpus = torch.cuda.device_count()
    device, counts = ("cuda", up_to(gpus)) if gpus > 1 else ("cpu", CPU_RANKS)
    cores = len(os.sched_getaffinity(0))
    precision = resolve_precision("auto", cpu=device == "cpu")
    if precision == "fp16":
        precision = "fp32"  # local SGD, which is how all-reduce is left out, has no fp16
    rate = partial(images_per_second, settings=settings, device=device, precision=precision)

    seconds = settings.seconds or SECONDS
    first_guess = rate(ranks=1, threads=cores, timed_steps=1, batch_size=BATCH_SIZE)
    steps = max(1, round(seconds * first_guess / BATCH_SIZE))
    note(f"scaling: {steps} steps of {BATCH_SIZE} images on {device}, {precision}")

    def ideal(ranks: int) -> int:
        return ranks if device == "cuda" else 1

    def contestant(ranks: int, *, all_reduce: bool = True) -> partial[float]:
        return partial(
            rate,
            ranks=ranks,
            threads=max(1, cores // ranks),
            timed_steps=steps,
            batch_size=BATCH_SIZE * ideal(ranks),
            all_reduce=all_reduce,
        )

    one = "images_per_second_1_ranks"
    contestants = {one: contestant(1)}
    for ranks in counts:
        contestants[f"images_per_second_{ranks}_ranks"] = contestant(ranks)
        alone = contestant(ranks, all_reduce=False)
        contestants[f"images_per_second_{ranks}_ranks_alone"] = alone
    rates = alternate(contestants, settings.repeats or REPEATS)

    found = Measurements()
    for name, timed in contestants.items():
        task = (
            f"resnet9 by torchrun on {device}, {precision}, {{timed_steps}} steps, after as many "
            "untimed ones, of {batch_size} images, {ranks} ranks of {threads} threads, "
            "all-reduce: {all_reduce}"
        )
        found.add(name, task.format(**timed.keywords), rates[name])
    for ranks in counts:
        together = f"images_per_second_{ranks}_ranks"
        found.ratios[f"ranks_{ranks}_vs_1_resnet9"] = found.paired(together, one) / ideal(ranks)
        share = 1 - found.paired(together, f"{together}_alone")
        found.ratios[f"all_reduce_share_{ranks}_ranks"] = share
    return found


def up_to(gpus: int) -> list[int]:
    """2, 4, 8 and so on, and all of them."""
    return [*(2**n for n in range(1, gpus.bit_length()) if 2**n < gpus), gpus]


def images_per_second(
    *,
    settings: Settings,
    device: str,
    precision: str,
    ranks: int,
    threads: int,
    timed_steps: int,
    batch_size: int,
    all_reduce: bool = True,
) -> float:
    """Throughput of a short run, from its middle to the last step but one.

    A process's first steps load and allocate; at the last one ranks meet and save.
    """
    steps = 2 * timed_steps + 1
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
            "train.log_every": timed_steps,
            "train.local_steps": 1 if all_reduce else steps,
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
        second_half = json_lines.read(Path(folder) / "bench" / "metrics.jsonl")[1]
        return float(second_half["perf/images_per_second"])
