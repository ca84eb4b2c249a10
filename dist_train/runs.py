"""A run is a directory: what is in it, and who may use it.

torch is imported where it is used: reading a run's files does without it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from platform import python_version
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from dist_train.checks import as_typed
from dist_train.config import Config, flatten, from_values
from dist_train.data.prepare import Prepared
from dist_train.errors import UserError
from dist_train.files import remove_leftovers, write_atomically
from dist_train.ownership import claim

if TYPE_CHECKING:
    from torch import Tensor

    from dist_train.runtime import Runtime

# What a resumed run may change.
FREE_SETTINGS = (
    "name",
    "output",
    "data.root",
    "data.cache",
    "data.loader",
    "data.threads",
    "data.eval_batch_size",
    "train.log_every",
    "train.profile",
    "runtime.",
    "checkpoint.",
    "tracking.",
)
# Of these, what changes the numbers all the same.
ROUNDING = ("runtime.precision", "runtime.gradient_compression")


def new_name(output: Path, recipe: str) -> str:
    """A name for a run that was given none; its directory is made, so that no other run takes it.

    Raises:
        UserError: the directory cannot be made.
    """
    name = first = f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    others = count(2)
    while True:
        try:
            (output / name).mkdir(parents=True)
            return name
        except FileExistsError:
            name = f"{first}-{next(others)}"
        except OSError as error:
            raise UserError(
                f"cannot make {output / name}: {error.strerror}; choose another --output"
            ) from error


def open_folder(folder: Path, config: Config) -> dict[str, Any] | None:
    """Makes the run's directory, or checks that it is this run's, and claims it.

    Returns:
        The summary, if the run is finished.

    Raises:
        UserError: the directory is another run's, another process trains in it, or it cannot be
            written.
    """
    path = folder / "config.json"
    if path.exists():
        if config.checkpoint.resume == "never":
            raise UserError(f"{folder} exists: choose another --name, or --checkpoint.resume auto")
        check_same(read_json(path), config, folder)
        if summary := read_summary(folder):
            return summary
    claim(folder)
    remove_leftovers(folder)
    return None


def keep_settings(folder: Path, config: Config, prepared: Path) -> None:
    """Writes a copy of the data's manifest, and config.json, which makes the folder this run's.

    A resumed run's may have changed: what counts is where its data are now.
    """
    write_atomically(folder / "manifest.json", (prepared / "manifest.json").read_bytes())
    write_json(folder / "config.json", config.as_dict())


def as_rehearsal(config: Config, output: Path) -> Config:
    """The same run for two steps, seen by nobody."""
    return replace(
        config,
        output=str(output),
        train=replace(config.train, max_steps=2),
        tracking=replace(config.tracking, wandb="off"),
    )


@contextmanager
def scratch_folder(runtime: Runtime) -> Iterator[Path]:
    """A folder of rank 0 that is removed afterwards."""
    folder = Path(runtime.on_main(lambda: mkdtemp(prefix="dist-train-")))
    try:
        yield folder
    finally:
        if runtime.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def check_data(folder: Path, checksum: str, prepared: Prepared) -> None:
    """Raises UserError when a run was trained on other data so far."""
    now = prepared.manifest.train.sha256
    if now != checksum:
        raise UserError(
            f"{folder} was trained on other data (checksum {checksum[:12]}) than is in "
            f"{prepared.folder} ({now[:12]}): bring that back, or choose another --name"
        )


def result_line(folder: Path, summary: Mapping[str, Any]) -> str:
    """How a run ended, in a line."""
    split = "test" if summary["test_accuracy"] is not None else "validation"
    accuracy, with_tta = summary[f"{split}_accuracy"], summary.get(f"{split}_accuracy_tta")
    more = "" if with_tta is None else f" ({with_tta:.2%} with test-time augmentation)"
    seconds = summary["seconds"]
    return (
        f"{folder}: {split} accuracy {accuracy:.2%}{more}; {summary['images_per_second']:,.0f} "
        f"images/s; {seconds['train']:.0f} s of training in {seconds['total']:.0f} s"
    )


def finish(
    folder: Path,
    weights: Mapping[str, Tensor],
    answers: Mapping[str, Tensor],
    summary: Mapping[str, Any],
) -> None:
    """Writes weights and answers, then the summary that marks the run as finished."""
    from safetensors.torch import save

    for name, tensors in {"model": weights, "predictions": answers}.items():
        write_atomically(folder / f"{name}.safetensors", save(apart(tensors)))
    write_json(folder / "summary.json", summary)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, each with memory of its own, as safetensors wants them.

    Layers of a network may share theirs.
    """
    from torch import contiguous_format

    return {
        name: tensor.cpu().clone(memory_format=contiguous_format)
        for name, tensor in tensors.items()
    }


def check_same(stored: Mapping[str, Any], config: Config, folder: Path) -> None:
    """Raises UserError, naming the fields, when a run was made with other settings."""
    before, now = dict(flatten(stored)), dict(flatten(as_json(config.as_dict())))
    differing = [
        f"--{field} {as_typed(now.get(field))} (was {as_typed(before.get(field))})"
        for field in {**before, **now}
        if before.get(field) != now.get(field) and not field.startswith(FREE_SETTINGS)
    ]
    if differing:
        raise UserError(
            f"{folder} was made with other settings: {', '.join(differing)}; "
            "choose another --name, or give the same settings to go on"
        )


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What a finished run left; None for one that is not finished.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "summary.json"
    if not path.exists():
        return None
    summary = read_json(path)
    try:
        result_line(folder, summary)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    return summary


def read_config(folder: Path) -> Config:
    """The config a run was made with.

    Raises:
        UserError: there is no such run, or its config is of another version.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} is no run: expected {path}; see the folders in runs/")
    try:
        config: Config = from_values(Config, read_json(path))
    except TypeError as error:
        raise UserError(f"{path} is of another version of dist_train: {error}") from error
    return config


def as_json(values: Any) -> Any:
    """Plain values as they come back from a JSON file: tuples become lists."""
    return json.loads(json.dumps(values))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        values = json.loads(path.read_text())
        if isinstance(values, dict):
            return values
        raise ValueError("no object")
    except ValueError as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """What to say of a file that other parts of a run can replace."""
    return UserError(
        f"{path} is damaged ({error!r}): remove that file, and run the same command again"
    )


def write_json(path: Path, values: Any) -> None:
    """Plain values to a JSON file, atomically."""
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def versions() -> dict[str, str | None]:
    """Of the packages that decide a run's numbers; null where one is not installed."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("torch", "torchvision", "ffcv", "accelerate", "wandb")
    return {package: installed(package) for package in packages} | {"python": python_version()}


def git_commit() -> str | None:
    """The commit of the source in use, `+` behind it with uncommitted changes; null outside git."""
    folder = Path(__file__).parent
    command = ("git", "-C", os.fspath(folder), "describe", "--always", "--abbrev=40", "--dirty=+")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
