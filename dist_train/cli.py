"""The `dist-train` command. Nothing heavy is imported before it is needed."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dist_train import __version__, options
from dist_train.errors import UserError

USAGE = """usage: dist-train COMMAND ...

commands:
  train [RECIPE] [--section.field value ...]     train, or go on with a run (accelerate launch
                                                 dist_train/main.py does the same on many devices)
        [--dry_run]                              two steps and an evaluation; nothing is kept
  prepare [RECIPE] [--data.field value ...]      get and convert the data set, nothing more
  eval RUN                                       evaluate a finished run's weights again
  show [RECIPE] [--section.field value ...]      print the config and where each value came from
       [--images FILE.png]                       draw a grid of augmented training images
  report RUN... [--out FILE.png]                 plot accuracy and loss of runs
  bench loader|overhead|scaling|tracking [--json]  measure this machine against rivals

COMMAND --help tells more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0; 2 for what the user can mend; 75 for go on."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    rank = int(os.environ.get("RANK", 0))
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"
    )
    logging.getLogger("dist_train").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command == "--version":
        print(__version__)
        return 0
    try:
        if command not in COMMANDS:
            raise UserError(
                f"unknown command {command}: {options.nearest(command, list(COMMANDS))}"
            )
        return COMMANDS[command](rest) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        if rank:
            # All ranks meet the same mistake. Rank 0 reports it, and the launcher then ends the
            # others: one that lives on met one of its own.
            time.sleep(3)
        prefix = f"[rank {rank}] " if rank else ""
        print(f"{prefix}dist-train: error: {error}", file=sys.stderr)
        return 2


def train(arguments: Sequence[str]) -> int:
    """`dist-train train`."""
    parser = options.Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dry_run", action="store_true")
    own, rest = parser.parse_known_args(arguments)
    config, _ = options.parse(rest, "dist-train train")
    from dist_train.preemption import EXIT_CODE, Preempted
    from dist_train.train import train as run

    try:
        run(config, dry_run=own.dry_run)
    except Preempted as preempted:
        logging.getLogger("dist_train").info("%s", preempted)
        return EXIT_CODE
    return 0


def prepare(arguments: Sequence[str]) -> None:
    """`dist-train prepare`."""
    config, _ = options.parse(arguments, "dist-train prepare")
    from dist_train.data.prepare import prepare_dataset  # no torch: `make train` waits for this

    prepared = prepare_dataset(config.data)
    manifest = prepared.manifest
    print(
        f"{prepared.folder}: {manifest.train.samples} training and {manifest.test.samples} test "
        f"images of {'x'.join(map(str, manifest.image_shape))}, {len(manifest.classes)} classes"
    )


def show(arguments: Sequence[str]) -> None:
    """`dist-train show`."""
    parser = options.Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--images", metavar="FILE.png")
    own, rest = parser.parse_known_args(arguments)
    config, sources = options.parse(rest, "dist-train show")
    if own.images is None:
        print(options.show(config, sources))
        return
    from dist_train.pictures import augmented_samples

    augmented_samples(config, own.images)
    print(own.images)


def evaluate(arguments: Sequence[str]) -> None:
    """`dist-train eval`."""
    parser = options.Parser(
        prog="dist-train eval", description="Evaluate a finished run on the test set."
    )
    parser.add_argument("run", help="the run's directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    from dist_train.evaluate import evaluate_run

    result = evaluate_run(Path(given.run))
    if os.environ.get("RANK", "0") != "0":
        return
    if given.json:
        print(json.dumps(result))
    else:
        print(
            f"{given.run}: {result['samples']} test images, accuracy "
            f"{result['test_accuracy']:.2%} ({result['test_accuracy_tta']:.2%} with test-time "
            f"augmentation), loss {result['test_loss']:.4f}"
        )


def bench(arguments: Sequence[str]) -> None:
    """`dist-train bench`."""
    from dist_train.bench import main

    main(arguments)


def report(arguments: Sequence[str]) -> None:
    """`dist-train report`."""
    parser = options.Parser(prog="dist-train report", description="Plot runs against each other.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory")
    parser.add_argument("--out", default="report.png", help="a .png, .svg or .pdf file")
    given = parser.parse_args(arguments)
    from dist_train.report import plot_runs

    plot_runs([Path(run) for run in given.runs], Path(given.out))
    print(given.out)


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": train,
    "prepare": prepare,
    "eval": evaluate,
    "report": report,
    "show": show,
    "bench": bench,
}
