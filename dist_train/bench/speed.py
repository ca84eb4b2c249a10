"""`dist-train bench speed RECIPE`: seconds and accuracy over seeds, and against another program.

The clock covers what depends on the data: whitening, training, and the last evaluation with its
test-time augmentation. Reading the data, compiling, checkpoints and a warm-up are told apart.
Nothing is evaluated before the end.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from dist_train import hardware, options, runs
from dist_train.bench.intervals import p_value, ratio, spread
from dist_train.bench.timing import note
from dist_train.bench.turns import ON_THE_CLOCK, Rival, Run, in_turn, of_summary, rivals_turn
from dist_train.bench.work import work
from dist_train.checks import at_least, require, within
from dist_train.figures import COLOURS, as_png, new_figure, percent, styled
from dist_train.files import write_atomically
from dist_train.sweep.execute import require_finished, run_here
from dist_train.sweep.plan import Run as PlannedRun
from dist_train.sweep.plan import Sweep
from dist_train.train import train

NO_TRACKERS = ("--tracking.wandb=off", "--tracking.tensorboard=false")


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Trains with one seed after the other, in turn with a rival if there is one.

    Every run is an ordinary run directory in <output>/speed-<recipe>, and a rival's is a file
    there; finished ones are not run again. The report is written there, too.

    Returns:
        The report: per run and with means, intervals and the ratio to the rival.

    Raises:
        UserError: wrong arguments, or the rival failed.
    """
    parser = options.Parser(
        prog="dist-train bench speed",
        usage="%(prog)s RECIPE [--section.field value ...] [options]",
        allow_abbrev=False,
    )
    parser.add_argument("--runs", type=int, default=5, help="seeds (%(default)s)")
    parser.add_argument("--target", type=float, help="accuracy to test against, for example 0.94")
    parser.add_argument(
        "--rival", metavar="CMD", help="a program to time in turn with ours; its clock is `seconds`"
        " of a JSON object in its last line, with `accuracy`, or else its whole run"
    )  # fmt: skip
    parser.add_argument(
        "--keep_rival", action="store_true", help="start the rival once: it does a run, and prints"
        " its line, for each line on its standard input"
    )  # fmt: skip
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, a GPU each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    own, rest = parser.parse_known_args(arguments)
    at_least("--runs", own.runs, 1)
    at_least("--parallel", own.parallel, 1)
    if own.target is not None:
        within("--target", own.target, 0, 1)
    require(
        own.rival is None or own.rival.strip() != "",
        f"--rival {own.rival!r}: expected a command; name one, or leave this out",
    )
    require(
        own.parallel == 1 or own.rival is None,
        f"--parallel {own.parallel} and --rival: a rival is timed alone; leave one of them out",
    )
    require(
        own.rival is not None or not own.keep_rival,
        "--keep_rival: there is no rival to keep; name one by --rival, or leave this out",
    )
    planned = plan(rest, own.runs)
    folder = planned.folder
    rival = None if own.rival is None else Rival(own.rival, kept=own.keep_rival)
    # What runs and libraries print is progress here.
    with redirect_stdout(sys.stderr), nullcontext() if rival is None else closing(rival):
        if own.parallel > 1:  # in processes of their own, which share out cores and GPUs
            require_finished(planned, run_here(planned, parallel=own.parallel))
        else:
            note("warming up")
            train(planned.runs[0].config, dry_run=True)
        report = measure(planned, target=own.target, rival=rival)
    runs.write_json(folder / "speed.json", report)
    lines = (json.dumps(line) + "\n" for line in [*report["runs"], *report["rival_runs"]])
    write_atomically(folder / "runs.jsonl", "".join(lines).encode())
    write_atomically(folder / "speed.png", picture(report))
    print(json.dumps(report) if own.json else describe(report))
    return report


def plan(arguments: Sequence[str], seeds: int) -> Sweep:
    """A run for each seed, with nothing but what the clock is for.

    Raises:
        UserError: a wrong flag or value.
    """
    given, _ = options.parse(arguments, "dist-train bench speed")
    folder = Path(given.output) / f"speed-{given.recipe}"
    planned = []
    for seed in range(given.seed, given.seed + seeds):
        own = (f"--name=seed{seed}", f"--seed={seed}", f"--output={folder}")
        line = (*arguments, *own, "--train.eval_every=0", *NO_TRACKERS)
        config, _ = options.parse(line, "dist-train bench speed")
        planned.append(PlannedRun({}, line, folder / f"seed{seed}", config))
    return Sweep(folder, tuple(planned))


def measure(planned: Sweep, *, target: float | None, rival: Rival | None) -> dict[str, Any]:
    """The report of these runs, each after one of the rival's."""
    rival_runs: list[Run] = []
    own_runs, steps = [], 0
    first = planned.runs[0]
    for run in planned.runs:
        if rival is not None:  # first: one that stays may have to get ready still, while we wait
            place = planned.folder / f"rival{run.config.seed}.json"
            rival_runs.append(rivals_turn(rival, place))
            note(f"rival: {rival_runs[-1].said()}")
        summary = train(run.config)
        own_runs.append(of_summary(summary, run.folder))
        steps = summary["steps"]
        note(f"{own_runs[-1].who}: {own_runs[-1].said()}")
    over_rivals = ratio(seconds_of(own_runs), seconds_of(rival_runs)) if rival_runs else None
    return {
        "recipe": first.config.recipe,
        "clock": " + ".join(ON_THE_CLOCK),
        **statistics(own_runs, target),
        "arguments_of_first": first.arguments,
        "rival": rival and rival.command,
        "rival_statistics": statistics(rival_runs, target) if rival_runs else None,
        "in_turn": in_turn(own_runs, rival_runs) if rival_runs else None,
        "seconds_over_rivals": over_rivals,
        "work": work(first.config, steps, [run.parts for run in own_runs]),
        "hardware": hardware.facts(),
        "versions": runs.versions(),
        "git_commit": runs.git_commit(),
        "runs": [vars(run) for run in own_runs],
        "rival_runs": [vars(run) for run in rival_runs],
    }


# Figures


def seconds_of(found: Sequence[Run]) -> list[float]:
    """By the clock."""
    return [run.seconds for run in found]


def statistics(found: Sequence[Run], target: float | None) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval of seconds and accuracy.

    `p_value` is that of accuracies as high as these where the true mean is the target.
    """
    accuracies = [run.accuracy for run in found if run.accuracy is not None]
    figures: dict[str, Any] = {"n": len(found), "seconds": spread(seconds_of(found))}
    figures["accuracy"] = spread(accuracies) if accuracies else None
    figures["target"] = target
    figures["p_value"] = p_value(accuracies, target)
    return figures


def picture(report: dict[str, Any]) -> bytes:
    """Accuracy against seconds of every run, as a PNG."""
    with styled():
        figure, panels = new_figure(1, 1, (6, 4))
        panel = panels[0, 0]
        own, rivals = report["runs"], report["rival_runs"]
        for colour, name, found in ((0, report["recipe"], own), (1, "rival", rivals)):
            known = [run for run in found if run["accuracy"] is not None]
            places = ([run["seconds"] for run in known], [run["accuracy"] for run in known])
            if known:
                panel.plot(*places, "o", color=COLOURS[colour], label=name)
        if report["target"] is not None:
            panel.axhline(report["target"], color=COLOURS[2], linestyle="--", label="target")
        panel.set(xlabel="seconds", ylabel="test accuracy", xlim=(0, None))
        panel.yaxis.set_major_formatter(percent)
        panel.legend()
        return as_png(figure)


def describe(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'':<10}{'accuracy':>10}{'seconds':>10}"]
    for run in [*report["runs"], *report["rival_runs"]]:
        accuracy = "-" if run["accuracy"] is None else f"{run['accuracy']:.2%}"
        lines.append(f"{run['who']:<10}{accuracy:>10}{run['seconds']:>10.2f}")
    for who, figures in {"ours": report, "rival": report["rival_statistics"]}.items():
        if figures is not None:
            lines.append(f"{who}: {summed_up(figures)}")
    if report["seconds_over_rivals"] is not None:
        found = report["seconds_over_rivals"]
        but = "" if report["in_turn"] else "; but not in turn, so of other hours"
        lines.append(f"seconds over the rival's: {found['mean']:.3f}{between(found, '.3f')}{but}")
    used = report["work"]
    peak = f"{used['matmul_flops_per_second']:.3g}"
    lines.append(
        f"training: {used['training_flops']:.3g} operations, {used['flops_per_second']:.3g} a "
        f"second, {used['mfu']:.1%} of the {peak} in matrix products; waiting "
        f"for data {used['data_wait_fraction']:.1%} of the time"
    )
    return "\n".join(lines)


def summed_up(figures: dict[str, Any]) -> str:
    """Means and intervals in a line."""
    seconds, accuracy = figures["seconds"], figures["accuracy"]
    line = f"n = {figures['n']}, {seconds['mean']:.2f} s{between(seconds, '.2f')}"
    if accuracy is not None:
        line += f", {accuracy['mean']:.3%}{between(accuracy, '.3%')}"
    if figures["p_value"] is not None:
        line += f"; p = {figures['p_value']:.2g} if {figures['target']:.1%} were the mean"
    return line


def between(found: dict[str, Any], style: str) -> str:
    """A 95 % interval."""
    low_high = found["interval"]
    return "" if low_high is None else f" ({low_high[0]:{style}} to {low_high[1]:{style}})"
