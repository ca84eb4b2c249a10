"""Optimizers by name, over parameter groups that are split by the number of dimensions."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from dist_train.config import OptimConfig
from dist_train.optim.muon import Muon


def build(
    model: nn.Module,
    settings: OptimConfig,
    *,
    head: Collection[str] = (),
    same_gradients: bool = True,
    compile: Callable[[nn.Module], None] = lambda _: None,
    recorded: bool = False,
) -> list[torch.optim.Optimizer]:
    """The optimizers of a model; each group's `peak_lr` is what schedules scale.

    Args:
        head: names of the head's parameters; the others have the backbone's learning rate.
        same_gradients: whether all ranks hold the same ones; see muon.Muon.
        compile: compiles a module in place.
        recorded: their steps will be, as CUDA graphs: learning rates are tensors on the device.
    """
    name, rate, bias_rate = settings.optimizer, settings.learning_rate, settings.bias_learning_rate
    bias_rate = rate if bias_rate is None else bias_rate
    backbone = settings.backbone_learning_rate
    trained = {path: p for path, p in model.named_parameters() if p.requires_grad}
    parts = [(list(trained.values()), 1.0)]
    if backbone is not None and backbone != rate:
        parts = [([p for path, p in trained.items() if path in head], 1.0)]
        parts.append(([p for path, p in trained.items() if path not in head], backbone / rate))
    groups: list[dict[str, Any]] = []
    muon_groups: list[dict[str, Any]] = []
    for parameters, factor in parts:
        filters = [p for p in parameters if name == "muon" and p.ndim == 4]
        weights = [p for p in parameters if p.ndim >= 2 and not (name == "muon" and p.ndim == 4)]
        biases = [p for p in parameters if p.ndim < 2]
        muon_groups.append({"params": filters, "lr": settings.muon_learning_rate * factor})
        decay = settings.weight_decay
        groups.append({"params": weights, "lr": rate * factor, "weight_decay": decay})
        groups.append({"params": biases, "lr": bias_rate * factor})
    groups = [group for group in groups if group["params"]]
    muon_groups = [group for group in muon_groups if group["params"]]
    chosen = [usual(groups, settings, recorded)] if groups else []  # Muon may have them all
    if muon_groups:
        rate, momentum = settings.muon_learning_rate, settings.muon_momentum
        muon = Muon(muon_groups, lr=rate, momentum=momentum, shared=same_gradients)
        compile(muon.orthogonalize)
        chosen.append(muon)
    for group in (group for each in chosen for group in each.param_groups):
        group["peak_lr"] = group["lr"]
        if recorded:
            group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
    return chosen


def usual(
    groups: list[dict[str, Any]], settings: OptimConfig, recorded: bool
) -> torch.optim.Optimizer:
    """The optimizer that torch has by this name; SGD for what Muon leaves."""
    name, momentum = settings.optimizer, settings.momentum
    if name in ("adam", "adamw"):
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        return kind(groups, betas=(momentum, 0.999), weight_decay=0.0, capturable=recorded)
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, momentum=momentum, capturable=recorded)
    # Only the fused one takes a learning rate from the device.
    fused = True if recorded else None
    return torch.optim.SGD(groups, momentum=momentum, nesterov=settings.nesterov, fused=fused)
