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
    rate = partial(images_per_second, settings=settings, device=device, precision=precision)

    seconds = settings.seconds or SECONDS
    first_guess = rate(ranks=1, threads=cores, steps=2, batch_size=BATCH_SIZE)
    steps = 1 + max(2, round(seconds * first_guess / BATCH_SIZE))
    note(f"scaling: {steps - 1} steps of {BATCH_SIZE} images on {device}, {precision}")

    def ideal(ranks: int) -> int:
        return ranks if device == "cuda" else 1

    def contestant(ranks: int, *, local_steps: int = 1) -> partial[float]:
        return partial(
            rate,
            ranks=ranks,
            threads=max(1, cores // ranks),
            steps=steps,
            batch_size=BATCH_SIZE * ideal(ranks),
            local_steps=local_steps,
        )

    one = "images_per_second_1_ranks"
    contestants = {one: contestant(1)}
    for ranks in counts:
        contestants[f"images_per_second_{ranks}_ranks"] = contestant(ranks)
        alone = contestant(ranks, local_steps=steps)
        contestants[f"images_per_second_{ranks}_ranks_alone"] = alone
    rates = alternate(contestants, settings.repeats or REPEATS)

    found = Measurements()
    for name, timed in contestants.items():
        task = (
            f"resnet9 by torchrun on {device}, {precision}, {{steps}} steps, the last one untimed, "
            "of {batch_size} images, {ranks} ranks of {threads} threads, which meet every "
            "{local_steps}"
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
    steps: int,
    batch_size: int,
    local_steps: int = 1,
) -> float:
    """Throughput of a short run, but for its last step, at which ranks meet and save."""
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
            "train.log_every": steps - 1,
            "train.local_steps": local_steps,
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
        before_last = json_lines.read(Path(folder) / "bench" / "metrics.jsonl")[0]
        return float(before_last["perf/images_per_second"])
