"""`dist-train bench`: this machine's figures against rivals timed in the same sitting."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from dist_train.bench.timing import Measurements, Settings, note
from dist_train.checks import at_least, require
from dist_train.config import DataConfig
from dist_train.errors import UserError
from dist_train.options import Parser

SUBJECTS = ("loader", "overhead", "scaling", "tracking")  # each a module here

# What the project promises itself; reported, never asserted.
TARGETS = {
    "stream_vs_ffcv_raw": ">= 0.80",
    "stream_vs_torchvision": ">= 50",
    "augmented_vs_ffcv_augmented": ">= 4",
    "first_batch_seconds": "<= 1.5",
    "loop_vs_bare_resnet9": "<= 1.03",
    "loop_vs_bare_lenet": "<= 1.10",
    "ranks_2_vs_1_resnet9": ">= 0.95",
    "trackers_vs_json_lines": "<= 1.005",
}


def main(arguments: Sequence[str]) -> None:
    """Measures one subject or all, and prints a table or one JSON object.

    Raises:
        UserError: wrong arguments, no data, or no FFCV to compare with.
    """
    if arguments and arguments[0] == "speed":
        from dist_train.bench.speed import main as measure_speed

        measure_speed(arguments[1:])
        return
    parser = Parser(
        prog="dist-train bench",
        description="loader: against FFCV and torchvision. overhead: the training loop against a "
        "bare one. scaling: several processes against one, and what all-reduce takes. "
        "tracking: all trackers against metrics.jsonl alone. speed RECIPE: seconds and accuracy "
        "over seeds, also against another program (bench speed --help).",
        allow_abbrev=False,
    )
    defaults = DataConfig()
    parser.add_argument("subject", nargs="?", choices=SUBJECTS, help="unset: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, help="length of each timing")
    parser.add_argument("--repeats", type=int, help="rounds of timings")
    parser.add_argument("--data.root", dest="root", help="folder that holds CIFAR-10")
    parser.add_argument(
        "--data.cache", dest="cache", default=defaults.cache, help="folder of prepared files"
    )
    given = parser.parse_args(arguments)
    if given.repeats is not None:
        at_least("--repeats", given.repeats, 1)
    if given.seconds is not None:
        require(
            0 < given.seconds < float("inf"), f"--seconds {given.seconds}: expected more than 0"
        )
    settings = Settings(
        seconds=given.seconds,
        repeats=given.repeats,
        data=DataConfig(dataset="cifar10", root=given.root, cache=given.cache),
    )
    with redirect_stdout(sys.stderr):  # what runs and libraries print is progress here
        report = collect([given.subject] if given.subject else SUBJECTS, settings)
    print(json.dumps(report) if given.json else table(report))


def collect(subjects: Sequence[str], settings: Settings) -> dict[str, Any]:
    """The figures, and what they were measured on."""
    from dist_train import hardware, runs

    load = os.getloadavg()[0]
    if load > 0.5:
        note(
            f"{load:.1f} processes were busy here in the last minute: nothing is exact among others"
        )
    ratios: dict[str, float] = {}
    measured: dict[str, Any] = {}
    for subject in subjects:
        found = measure(subject, settings)
        ratios |= found.ratios
        measured |= found.measured
    return {
        "ratios": ratios,
        "measured": measured,
        "hardware": hardware.facts() | {"load_before": load},
        "versions": runs.versions(),
        "git_commit": runs.git_commit(),
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'':<50}{'figure':>13}  target"]
    for name, value in report["ratios"].items():
        lines.append(f"{name:<50}{value:>13.3f}  {TARGETS.get(name, '')}".rstrip())
    lines.append(f"\n{'':<50}{'median':>13}{'min':>13}{'max':>13}")
    for name, figure in report["measured"].items():
        numbers = (figure["median"], figure["min"], figure["max"])
        lines.append(f"{name:<50}" + "".join(f"{number:>13,.6g}" for number in numbers))
    machine = report["hardware"]
    lines.append(
        f"\n{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} torch threads, "
        f"GPU: {', '.join(machine['gpu'] or ['none'])}; load average before: "
        f"{machine['load_before']:.1f}"
    )
    return "\n".join(lines)


def measure(subject: str, settings: Settings) -> Measurements:
    """See the module of that name.

    Raises:
        UserError: no data, or FFCV is not installed.
    """
    if subject == "loader" and find_spec("ffcv") is None:
        raise UserError("bench loader compares with FFCV, which is missing: run launch/setup.sh")
    found: Measurements = import_module(f"dist_train.bench.{subject}").measure(settings)
    return found
