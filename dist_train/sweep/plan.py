"""Which runs a command line with several values a flag means."""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from dist_train import options
from dist_train.checks import require
from dist_train.config import Config

ONCE = ("name", "output", "seed")  # of the whole sweep


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
    first_seed = once.get("seed", "0")
    require(
        first_seed.isdecimal(), f"--seed {first_seed}: expected the first one; --seeds N for more"
    )
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
        seed += int(first_seed)
        run_name = re.sub(r"[^\w.,=+-]", "-", "_".join([*label, f"seed={seed}"]))
        flags = [f"--{path}={value}" for path, value in settings.items() if path != "recipe"]
        own = (f"--seed={seed}", f"--output={folder}", f"--name={run_name}")
        line = (settings["recipe"], *flags, *own)
        config, _ = options.parse(line, "dist-train sweep")
        runs.append(Run(distinct, line, folder / run_name, config))
    require(
        len({run.folder for run in runs}) == len(runs),
        f"--{', --'.join(varied)}: a value is given twice, or two of them look the same",
    )
    return Sweep(folder, tuple(runs))


def tail(path: str) -> str:
    """A field's name without its section."""
    return path.rpartition(".")[2]


def is_text(type_: Any) -> bool:
    """Whether values of a field may hold commas themselves."""
    kinds = get_args(type_) if isinstance(type_, UnionType) else (type_,)
    return str in kinds or any(get_origin(kind) is tuple for kind in kinds)
