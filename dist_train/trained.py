"""A finished run's model, from the run's directory alone: the data set need not be there."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dist_train import build, runs
from dist_train.config import Config
from dist_train.data.augment import Augment
from dist_train.data.prepare import Manifest, parse_manifest
from dist_train.errors import UserError


@dataclass(frozen=True, slots=True)
class Trained:
    """A model with all that belongs to it, on the CPU, in evaluation mode."""

    config: Config
    manifest: Manifest
    """Of the data it was trained on: image shape, classes, mean and standard deviation."""
    augment: Augment
    """uint8 (n, H, W, C) to the model's input; called without draws it only normalises."""
    model: nn.Module
    """Normalised float32 (n, C, H, W) to logits (n, classes)."""


def wherever(config: Config, *, root: str | None = None, cache: str | None = None) -> Config:
    """To use a model with: what is here need not be what it was trained on.

    Args:
        root, cache: where data sets are, and prepared ones; None: where they were then.
    """
    runtime = replace(config.runtime, device="auto", compile=False, cuda_graphs=False)
    data = replace(config.data, loader="auto", threads=1)
    data = replace(data, root=root or data.root, cache=cache or data.cache)
    return replace(config, runtime=runtime, data=data)


def load_trained(folder: Path) -> Trained:
    """The model of a finished run, with its final weights.

    Raises:
        UserError: there is no such run, it is not finished, or a file of it is damaged.
    """
    config = runs.read_config(folder)
    weights, manifest_path = folder / "model.safetensors", folder / "manifest.json"
    again = "run the same command again"
    if (folder / "summary.json").exists():  # that is what marks a run as finished
        again = f"remove {folder / 'summary.json'} and {again}"
    if not weights.exists():
        raise UserError(f"{folder} is not finished: expected {weights}; {again}")
    try:
        manifest = parse_manifest(manifest_path.read_text())
    except OSError as error:
        raise UserError(
            f"{folder} does not say what data it was trained on: expected {manifest_path}; copy "
            "the manifest.json of the prepared data there (a folder in --data.cache)"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{manifest_path} is damaged: copy that of the prepared data there"
        ) from error
    try:
        return assemble(config, manifest, load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{weights} is damaged or no {config.model.target or config.model.name} ({reason}): "
            f"{again}"
        ) from error


def assemble(config: Config, manifest: Manifest, weights: dict[str, Any]) -> Trained:
    """Config, manifest and a state dict to a model that works.

    Raises:
        RuntimeError: the weights are not those of the config's model.
    """
    model = build.blank_network(config, manifest)
    model.load_state_dict(weights)
    model.eval().requires_grad_(False)
    return Trained(config, manifest, build.augmentation(config.data, manifest), model)
