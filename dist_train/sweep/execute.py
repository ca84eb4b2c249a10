"""Runs of a sweep: processes on this machine, or a SLURM job array."""

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from ctypes import CDLL
from pathlib import Path
from typing import IO

from dist_train import nvidia
from dist_train.errors import UserError
from dist_train.files import write_atomically
from dist_train.sweep.plan import Run, Sweep

SLURM_SCRIPT = Path("slurm/sweep.sh")
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_here(sweep: Sweep, *, parallel: int) -> list[Run]:
    """Trains what is not finished, so many at a time; returns what failed or was stopped.

    The output of each goes to `<its folder>.log`. When this process ends, however it ends, the
    runs are asked to save themselves, and the same command goes on with them.
    """
    waiting = [run for run in sweep.runs if not run.is_finished]
    total, unfinished = len(waiting), list[Run]()
    print(
        f"{sweep.folder}: {len(sweep.runs)} runs, {total} to do, {parallel} at a time", flush=True
    )
    running: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            for slot in range(parallel):
                if waiting and slot not in running:
                    run = waiting.pop(0)
                    running[slot] = run, start(run, sweep.folder.name, slot, parallel)
            time.sleep(POLL_SECONDS)
            for slot, (run, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    if not run.is_finished:
                        unfinished.append(run)
                    state = "done" if run.is_finished else f"ended with code {process.returncode}"
                    left = len(waiting) + len(running)
                    print(f"{run.folder.name}: {state}; {left} of {total} left", flush=True)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return unfinished


def require_finished(sweep: Sweep, unfinished: Sequence[Run]) -> None:
    """Raises UserError, naming a log, when runs failed or were stopped."""
    if unfinished:
        raise UserError(
            f"{len(unfinished)} of {len(sweep.runs)} runs did not finish: see "
            f"{unfinished[0].folder}.log; the same command goes on"
        )


def start(run: Run, group: str, slot: int, parallel: int) -> subprocess.Popen[bytes]:
    """A process that trains; the cores and GPUs are shared out between the slots."""
    environment = {"WANDB_RUN_GROUP": group, **os.environ}
    cores = max(1, len(os.sched_getaffinity(0)) // parallel)
    environment.setdefault("OMP_NUM_THREADS", str(cores))
    if devices := visible_gpus():
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    libc = CDLL(None)
    with log_of(run) as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dist_train", "train", *run.arguments],
            env=environment,
            stdout=log,
            stderr=log,
            # Linux then tells the run when this process is gone, also after kill -9.
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )


def log_of(run: Run) -> IO[bytes]:
    """The run's log, locked.

    The lock is the child's as well, since it inherits the file: while an earlier sweep's run is
    still saving itself, this waits.
    """
    path = run.folder.with_name(f"{run.folder.name}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("ab")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose another --output"
        ) from error
    fcntl.flock(log, fcntl.LOCK_EX)
    return log


def visible_gpus() -> list[str]:
    """What $CUDA_VISIBLE_DEVICES names, else the numbers of all GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    return nvidia.ask("index")


def submit(sweep: Sweep) -> str:
    """Submits what is not finished as one job array; returns what sbatch said.

    Raises:
        UserError: there is no SLURM here, or a value does not fit into the file of a sweep.
    """
    if shutil.which("sbatch") is None or not SLURM_SCRIPT.exists():
        raise UserError(
            f"--slurm: expected sbatch, and {SLURM_SCRIPT} in {Path.cwd()}; submit from the "
            "repository's folder on a login node, or leave --slurm out"
        )
    lines = []
    for run in sweep.runs:
        if any(re.search(r"\s", argument) for argument in run.arguments):
            raise UserError(f"--slurm: {' '.join(run.arguments)}: expected values without spaces")
        lines.append(" ".join(run.arguments))
    content = ("\n".join(lines) + "\n").encode()
    # By its content: an array that waits still reads the file of its own.
    path = sweep.folder / f"runs-{hashlib.sha256(content).hexdigest()[:8]}.txt"
    write_atomically(path, content)
    tasks = ",".join(str(n) for n, run in enumerate(sweep.runs, 1) if not run.is_finished)
    command = ("sbatch", f"--array={tasks}", f"--job-name={sweep.folder.name}", SLURM_SCRIPT, path)
    environment = {"WANDB_RUN_GROUP": sweep.folder.name, **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--slurm: sbatch refused {path}: {done.stderr.strip()}")
    return done.stdout.strip()
