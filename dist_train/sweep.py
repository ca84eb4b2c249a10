"""A grid of runs, each an ordinary run directory, and what came of it: a table and a plot."""

import fcntl
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from types import UnionType
from typing import IO, Any, get_args, get_origin

from dist_train import options
from dist_train.config import Config
from dist_train.errors import UserError
from dist_train.files import write_atomically

SLURM_SCRIPT = Path("slurm/sweep.sh")
ONCE = ("name", "output", "seed")  # of the whole sweep
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the grid."""

    varied: dict[str, str]
    """What distinguishes its configuration from the others of the grid: field -> text."""
    arguments: tuple[str, ...]
    """Of `dist-train train`."""
    folder: Path
    config: Config

    @property
    def is_finished(self) -> bool:
        """Whether it has been run to its end."""
        return (self.folder / "summary.json").exists()


@dataclass(frozen=True, slots=True)
class Sweep:
    """A folder of runs."""

    folder: Path
    runs: tuple[Run, ...]


def plan(arguments: Sequence[str], *, seeds: int, sample: int | None) -> Sweep:
    """The runs that a command line asks for.

    `--section.field a,b,c` are three values; those of fields that are text or lists themselves are
    separated by semicolons. The recipe may be several, too.

    Raises:
        UserError: a wrong flag or value, in any of the configurations.
    """
    recipes, given = options.as_given(arguments, "dist-train sweep")
    once = {name: given.pop(name) for name in ONCE if name in given}
    of_text = {option.path for option in options.all_options() if is_text(option.type)}
    axes = {"recipe": recipes.split(",")} | {
        path: text.split(";" if path in of_text else ",") for path, text in given.items()
    }
    varied = [path for path, values in axes.items() if len(values) > 1]
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if sample is not None and sample < len(grid):
        grid = random.Random(0).sample(grid, sample)
    about = [recipes.replace(",", "-"), *(tail(path) for path in varied if path != "recipe")]
    name = once.get("name") or "sweep-" + "-".join(about)
    folder = Path(once.get("output", Config().output)) / name
    runs = []
    for settings, seed in itertools.product(grid, range(seeds)):
        distinct = {path: settings[path] for path in varied}
        label = [f"{tail(path)}={value}" for path, value in distinct.items()]
        seed += int(once.get("seed", 0))
        run_name = re.sub(r"[^\w.,=+-]", "-", "_".join([*label, f"seed={seed}"]))
        flags = [f"--{path}={value}" for path, value in settings.items() if path != "recipe"]
        own = (f"--seed={seed}", f"--output={folder}", f"--name={run_name}")
        line = (settings["recipe"], *flags, *own)
        config, _ = options.parse(line, "dist-train sweep")
        runs.append(Run(distinct, line, folder / run_name, config))
    if len({run.folder for run in runs}) < len(runs):
        raise UserError(f"--{varied[0]}: a value is given twice, or two of them look the same")
    return Sweep(folder, tuple(runs))


def tail(path: str) -> str:
    """A field's name without its section."""
    return path.rpartition(".")[2]


def is_text(type_: Any) -> bool:
    """Whether values of a field may hold commas themselves."""
    kinds = get_args(type_) if isinstance(type_, UnionType) else (type_,)
    return str in kinds or any(get_origin(kind) is tuple for kind in kinds)


def check_finished(sweep: Sweep) -> None:
    """Raises UserError when a run of that name was made with other settings."""
    from dist_train.runs import check_same, read_json  # imports torch

    for run in sweep.runs:
        path = run.folder / "config.json"
        if path.exists():
            check_same(read_json(path), run.config, run.folder)


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
    try:
        listed = subprocess.run(("nvidia-smi", "-L"), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(n) for n, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU")]


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
    path = sweep.folder / "runs.txt"
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    tasks = ",".join(str(n) for n, run in enumerate(sweep.runs, 1) if not run.is_finished)
    command = ("sbatch", f"--array={tasks}", f"--job-name={sweep.folder.name}", SLURM_SCRIPT, path)
    environment = {"WANDB_RUN_GROUP": sweep.folder.name, **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--slurm: sbatch refused {path}: {done.stderr.strip()}")
    return done.stdout.strip()


def results(sweep: Sweep) -> list[dict[str, Any]]:
    """A row a configuration, over the seeds that are finished."""
    rows = []
    for _, group in itertools.groupby(sweep.runs, key=lambda run: run.varied):
        runs = list(group)
        summaries = [
            json.loads((run.folder / "summary.json").read_text()) for run in runs if run.is_finished
        ]
        split = "test" if all(s["test_accuracy"] is not None for s in summaries) else "validation"
        accuracies = [summary[f"{split}_accuracy"] for summary in summaries]
        rows.append(
            {
                **runs[0].varied,
                "accuracy_of": split,
                "accuracy_mean": mean(accuracies) if accuracies else None,
                "accuracy_std": stdev(accuracies) if len(accuracies) > 1 else None,
                "train_seconds_mean": mean(s["seconds"]["train"] for s in summaries)
                if summaries
                else None,
                "n": len(accuracies),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> str:
    """The rows in Markdown; the standard deviation is the sample's."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    columns = [*varied, f"{rows[0]['accuracy_of']} accuracy", "std", "training", "n"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [
            *(row[path] for path in varied),
            number(row["accuracy_mean"], ".2%"),
            number(row["accuracy_std"], ".2%"),
            number(row["train_seconds_mean"], ".1f") + " s",
            str(row["n"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], varied: Sequence[str], path: Path) -> None:
    """Mean accuracy with its deviation against the first field, a line for each of the rest."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    first, others = varied[:1], varied[1:]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["n"]:
            lines.setdefault(", ".join(f"{tail(o)} {row[o]}" for o in others), []).append(row)
    for label, points in lines.items():
        axis.errorbar(
            [row[first[0]] if first else "" for row in points],
            [row["accuracy_mean"] for row in points],
            [row["accuracy_std"] or 0 for row in points],
            marker="o",
            capsize=3,
            label=label,
        )
    axis.set(xlabel=first[0] if first else "", ylabel=f"{rows[0]['accuracy_of']} accuracy")
    axis.yaxis.set_major_formatter("{x:.1%}")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if others:
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def sweep(
    arguments: Sequence[str], *, seeds: int, sample: int | None, parallel: int, slurm: bool
) -> None:
    """Runs what is not finished, then writes `table.md`, `results.json` and `plot.png`.

    Raises:
        UserError: a setting is wrong, or runs did not finish.
    """
    planned = plan(arguments, seeds=seeds, sample=sample)
    check_finished(planned)
    unfinished = []
    if not all(run.is_finished for run in planned.runs):
        if slurm:
            print(submit(planned))
            print("when it is done, the same command makes the table and the plot")
            return
        unfinished = run_here(planned, parallel=parallel)
    rows, varied = results(planned), list(planned.runs[0].varied)
    if any(row["n"] for row in rows):
        text = table(rows, varied)
        write_atomically(planned.folder / "table.md", text.encode())
        write_atomically(
            planned.folder / "results.json", (json.dumps(rows, indent=2) + "\n").encode()
        )
        plot(rows, varied, planned.folder / "plot.png")
        print(f"{text}\n{planned.folder / 'plot.png'}")
    if unfinished:
        raise UserError(
            f"{len(unfinished)} of {len(planned.runs)} runs did not finish: see "
            f"{unfinished[0].folder}.log; the same command goes on"
        )
