"""The `dist-train` command. Nothing heavy is imported before it is needed."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dist_train import __version__, options
from dist_train.checks import at_least
from dist_train.errors import Preempted, UserError

EXPORT_FORMATS = ("safetensors", "torchscript", "torch_export", "onnx")


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
        print(usage())
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
    except Preempted as preempted:
        from dist_train.preemption import EXIT_CODE

        logging.getLogger("dist_train").info("%s", preempted)
        return EXIT_CODE
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


def train(arguments: Sequence[str]) -> None:
    """Train a recipe, or go on with a run; accelerate launch does so on many devices."""
    dry_run, rest = split_dry_run(arguments)
    config, _ = options.parse(rest, "dist-train train", "[--dry_run]")
    from dist_train.metrics import Clock
    from dist_train.train import train as run

    run(config, dry_run=dry_run, clock=Clock.of_process())


def split_dry_run(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether the flag of `train` that is no setting was given, and the rest.

    `prepare` and `show` pass over it, so that job scripts can give all three the same flags.
    """
    parser = options.Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dry_run", action="store_true")
    own, rest = parser.parse_known_args(arguments)
    return own.dry_run, rest


def prepare(arguments: Sequence[str]) -> None:
    """Get and convert a recipe's data set, nothing more."""
    _, rest = split_dry_run(arguments)
    config, _ = options.parse(rest, "dist-train prepare")
    from dist_train.data.prepare import prepare_dataset  # no torch: `make train` waits for this

    prepared = prepare_dataset(config.data)
    manifest = prepared.manifest
    print(
        f"{prepared.folder}: {manifest.train.samples} training and {manifest.test.samples} test "
        f"images of {'x'.join(map(str, manifest.image_shape))}, {len(manifest.classes)} classes"
    )


def show(arguments: Sequence[str]) -> None:
    """Print a recipe's settings and who set them, or draw what the model will see."""
    parser = options.Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--images", metavar="FILE.png")
    _, rest = split_dry_run(arguments)
    own, rest = parser.parse_known_args(rest)
    config, sources = options.parse(rest, "dist-train show", "[--images FILE.png]")
    if own.images is None:
        print(options.show(config, sources))
        return
    from dist_train.pictures import augmented_samples

    augmented_samples(config, own.images)
    print(own.images)


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluate a finished run's weights again, on the test set."""
    parser = options.Parser(prog="dist-train eval", description=evaluate.__doc__)
    parser.add_argument("run", help="the run's directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--corruptions", action="store_true", help="also with noise, blur and less contrast"
    )
    parser.add_argument("--calibration", action="store_true", help="also draw RUN/reliability.png")
    add_data_folders(parser)
    given = parser.parse_args(arguments)
    from dist_train.evaluate_run import describe, evaluate_run

    result = evaluate_run(
        Path(given.run),
        corruptions=given.corruptions,
        calibration=given.calibration,
        root=given.root,
        cache=given.cache,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    print(json.dumps(result) if given.json else describe(result))


def add_data_folders(parser: options.Parser) -> None:
    """Flags for a run whose data lie somewhere else by now, or on another machine."""
    parser.add_argument("--data.root", dest="root", metavar="DIR", help="what holds the data sets")
    parser.add_argument("--data.cache", dest="cache", metavar="DIR", help="for prepared files")


def predict(arguments: Sequence[str]) -> None:
    """What a finished run says to image files and folders."""
    parser = options.Parser(
        prog="dist-train predict",
        description="What a finished run says to images. Files that cannot be read are named and "
        "skipped; the exit code is 0 if any was predicted, else 2.",
    )
    parser.add_argument("run", help="the run's directory")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, and folders of them"
    )
    parser.add_argument("--top", type=int, default=3, help="so many classes (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument(
        "--tta", action="store_true", help="average over mirrored and shifted views"
    )
    parser.add_argument(
        "--background", default="white", metavar="COLOUR",
        help="what shows through transparent images (%(default)s)",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    from dist_train.predict import predict_images, print_predictions

    predictions = predict_images(
        Path(given.run),
        [Path(image) for image in given.images],
        top=given.top,
        tta=given.tta,
        background=given.background,
    )
    print_predictions(predictions, as_json=given.json)


def export(arguments: Sequence[str]) -> None:
    """A finished run's model as one file, for use elsewhere."""
    parser = options.Parser(
        prog="dist-train export",
        description="A finished run's model as one file, with a model card: uint8 images in, "
        "probabilities out. It is checked on test images before it gets its name.",
    )
    parser.add_argument("run", help="the run's directory")
    parser.add_argument("--format", required=True, choices=EXPORT_FORMATS, help="of the file")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: in the run's directory")
    add_data_folders(parser)
    given = parser.parse_args(arguments)
    from dist_train.export import export as write

    path, difference = write(
        Path(given.run), given.format, given.out, root=given.root, cache=given.cache
    )
    print(f"{path}: probabilities within {difference:.1e} of the trained model's")


def sweep(arguments: Sequence[str]) -> None:
    """Train a grid of settings and seeds; then a table and a plot of it."""
    parser = options.Parser(
        prog="dist-train sweep",
        usage="%(prog)s RECIPE[,RECIPE] --section.field a,b,c ... [options]",
        description="Train every combination. Values of fields that are lists or text are "
        "separated by semicolons: --model.widths '16,32;32,64'. See docs/sweeps.md.",
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs a combination")
    parser.add_argument("--sample", type=int, metavar="N", help="N combinations by chance")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at a time")
    how.add_argument("--slurm", action="store_true", help="submit one job array instead")
    own, rest = parser.parse_known_args(arguments)
    for name in ("seeds", "sample", "parallel"):
        value = getattr(own, name)
        if value is not None:
            at_least(f"--{name}", value, 1)
    from dist_train.sweep import sweep as run

    run(rest, seeds=own.seeds, sample=own.sample, parallel=own.parallel, slurm=own.slurm)


def doctor(arguments: Sequence[str]) -> int:
    """Check software, GPUs, data, disks, W&B and SLURM; under torchrun also the network."""
    config, _ = options.parse(arguments, "dist-train doctor")
    from dist_train.doctor import examine

    return examine(config)


def bench(arguments: Sequence[str]) -> None:
    """Measure this machine, or a recipe, against rivals."""
    from dist_train.bench import main

    main(arguments)


def report(arguments: Sequence[str]) -> None:
    """A page on runs, or one plot of their accuracy and loss."""
    parser = options.Parser(prog="dist-train report", description=report.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory, in any state")
    parser.add_argument(
        "--out",
        default="report.html",
        help="a .html file (a .md file and PNGs go next to it), or one plot: .png, .svg or .pdf",
    )
    given = parser.parse_args(arguments)
    folders, path = [Path(run) for run in given.runs], Path(given.out)
    if path.suffix in (".html", ".htm"):
        from dist_train.report.page import write_report

        write_report(folders, path)
    else:
        from dist_train.report.plots import plot_runs

        plot_runs(folders, path)
    print(path)


def list_runs(arguments: Sequence[str]) -> None:
    """List runs: state, accuracy, images/s."""
    parser = options.Parser(prog="dist-train runs", description=list_runs.__doc__)
    parser.add_argument("folder", nargs="?", default="runs", help="what holds them (default: runs)")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    given = parser.parse_args(arguments)
    from dist_train.report.listing import as_records, listed
    from dist_train.report.reading import find_runs

    runs = find_runs(Path(given.folder))
    print(json.dumps(as_records(runs)) if given.json else listed(runs))


def compare(arguments: Sequence[str]) -> None:
    """What differs between two runs, in settings and results."""
    parser = options.Parser(prog="dist-train compare", description=compare.__doc__)
    parser.add_argument("runs", nargs=2, metavar="RUN", help="a run's directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    from dist_train.report.listing import compared, differences
    from dist_train.report.reading import read_run

    first, second = (read_run(Path(run)) for run in given.runs)
    print(json.dumps(differences(first, second)) if given.json else compared(first, second))


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": train,
    "prepare": prepare,
    "eval": evaluate,
    "predict": predict,
    "export": export,
    "runs": list_runs,
    "compare": compare,
    "report": report,
    "show": show,
    "sweep": sweep,
    "doctor": doctor,
    "bench": bench,
}


def usage() -> str:
    """All commands, by the first lines of their docstrings."""
    lines = [f"  {name:<9}{run.__doc__}" for name, run in COMMANDS.items()]
    return "\n".join(
        ["usage: dist-train COMMAND ...", "", *lines, "", "dist-train COMMAND --help tells more."]
    )
