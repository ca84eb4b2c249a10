"""Transfer learning: weights from elsewhere, a new head, parts that stay as they are.

The head of any network is its last linear layer, its stem the first convolution.
"""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dist_train.errors import UserError

Weights = Mapping[str, Tensor]


def read_weights(source: str, name: str) -> Weights:
    """Weights by name, on the CPU.

    Args:
        source: a run's directory, a .safetensors file, a file of torch.save (.pth, .pt), or
            `torchvision`.
        name: the architecture, for torchvision.

    Raises:
        UserError: there are none, or the file holds something else.
    """
    if source == "torchvision":
        return from_torchvision(name)
    path = Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError(
            f"--model.pretrained {source}: expected a finished run's directory, a .safetensors or "
            f".pth file, or torchvision; there is no {path}"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or "it ends too early").splitlines()[0]
        raise UserError(
            f"--model.pretrained {source}: expected weights by name ({reason}); save them with "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    for key in ("state_dict", "model"):  # what training scripts wrap them in
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise UserError(
            f"--model.pretrained {source}: expected tensors by name; save them with "
            "torch.save(model.state_dict(), FILE)"
        )
    return {key.removeprefix("module."): tensor for key, tensor in content.items()}


def from_torchvision(name: str) -> Weights:
    """torchvision's newest ImageNet weights of an architecture; downloaded once, then cached."""
    from torchvision.models import get_model_weights, list_models

    if name not in list_models() or not name.startswith("resnet"):
        raise UserError(
            f"--model.pretrained torchvision: has none for {name}; choose resnet18, resnet34 or "
            "resnet50, or give a file"
        )
    try:
        newest: Any = get_model_weights(name)["DEFAULT"]
        weights: Weights = newest.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"--model.pretrained torchvision: cannot download the weights of {name} ({error}); "
            "download them elsewhere and give the .pth file"
        ) from error
    return weights


def fit(model: nn.Module, weights: Weights) -> str:
    """Loads weights made for other classes: the head stays new, and a stem of another shape.

    Returns:
        What was taken and what was not, in a line.

    Raises:
        UserError: the weights are of another architecture.
    """
    own = model.state_dict()
    new = dict.fromkeys(head_names(model), "head")
    new |= {
        name: f"stem, {shape(weights[name])} there"
        for name in stem_names(model)
        if name in weights and weights[name].shape != own[name].shape
    }
    wanted = [name for name in own if name not in new and not name.endswith("num_batches_tracked")]
    misfits = [
        f"{name} {shape(own[name])} ({shape(weights[name]) if name in weights else 'absent'} there)"
        for name in wanted
        if name not in weights or weights[name].shape != own[name].shape
    ]
    if misfits:
        raise UserError(
            f"--model.pretrained: {len(misfits)} of {len(wanted)} tensors do not fit this model: "
            f"{', '.join(misfits[:3])}; choose the same --model.name and sizes"
        )
    taken = {name: tensor for name, tensor in weights.items() if name in own and name not in new}
    model.load_state_dict(taken, strict=False)
    unused = [name for name in weights if name not in own]
    made = ", ".join(f"{name} ({why})" for name, why in sorted(new.items()))
    said = f"{len(taken)} tensors loaded; new: {made}"
    return said + (f"; left out: {', '.join(unused[:3])}" if unused else "")


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Keeps parts of a model from training: their weights and their BatchNorm statistics.

    Args:
        parts: names of modules, or `backbone` for all but the head.

    Raises:
        UserError: there is no such part, or nothing is left to train.
    """
    names = [name for name, _ in model.named_modules() if name]
    for part in parts:
        if part != "backbone" and part not in names:
            top = ", ".join(name for name, _ in model.named_children())
            raise UserError(
                f"--model.freeze {part}: expected backbone or names of modules, which begin with "
                f"one of {top}"
            )
    head = head_names(model) if "backbone" in parts else set()

    def frozen(name: str) -> bool:
        within = any(name == part or name.startswith(f"{part}.") for part in parts)
        return within or ("backbone" in parts and name not in head)

    for name, parameter in model.named_parameters():
        if frozen(name):
            parameter.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and frozen(name):
            keep_in_evaluation(module)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--model.freeze {','.join(parts)}: leaves nothing to train")


def keep_in_evaluation(module: nn.Module) -> None:
    """The module no longer follows its network into training mode."""
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]


def head_names(model: nn.Module) -> set[str]:
    """The parameters of the last linear layer; none if there is no such layer."""
    return names_of(model, [m for m in model.modules() if isinstance(m, nn.Linear)][-1:])


def stem_names(model: nn.Module) -> set[str]:
    """The parameters of the first convolution; none if there is no such layer."""
    return names_of(model, [m for m in model.modules() if isinstance(m, nn.Conv2d)][:1])


def names_of(model: nn.Module, chosen: Iterable[nn.Module]) -> set[str]:
    """Names in the model of the chosen modules' parameters."""
    of_chosen = {id(parameter) for module in chosen for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in of_chosen}


def shape(tensor: Tensor) -> str:
    """As in 64x3x7x7."""
    return "x".join(map(str, tensor.shape)) or "()"
