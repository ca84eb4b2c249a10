"""Optimizers by name, over parameter groups that are split by the number of dimensions."""

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn

from dist_train.optim.muon import Muon


def build(
    model: nn.Module,
    *,
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "muon"],
    learning_rate: float,
    bias_learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    muon_learning_rate: float,
    muon_momentum: float,
    backbone_factor: float = 1.0,
    head: Collection[str] = (),
    same_gradients: bool = True,
) -> list[torch.optim.Optimizer]:
    """The optimizers of a model; each group's `peak_lr` is what schedules scale.

    Args:
        backbone_factor: by which learning rates of all that is not `head` are multiplied.
        head: names of the head's parameters.
        same_gradients: whether all ranks hold the same ones; see muon.Muon.

    The others are explained in config.OptimConfig.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parts = [(list(trained.values()), 1.0)]
    if backbone_factor != 1:
        backbone = [p for name, p in trained.items() if name not in head]
        parts = [([p for name, p in trained.items() if name in head], 1.0)]
        parts.append((backbone, backbone_factor))
    groups: list[dict[str, Any]] = []
    muon_groups: list[dict[str, Any]] = []
    for parameters, factor in parts:
        filters = [p for p in parameters if optimizer == "muon" and p.ndim == 4]
        weights = [
            p for p in parameters if p.ndim >= 2 and not (optimizer == "muon" and p.ndim == 4)
        ]
        biases = [p for p in parameters if p.ndim < 2]
        muon_groups.append({"params": filters, "lr": muon_learning_rate * factor})
        groups.append(
            {"params": weights, "lr": learning_rate * factor, "weight_decay": weight_decay}
        )
        groups.append({"params": biases, "lr": bias_learning_rate * factor})
    groups = [group for group in groups if group["params"]]
    muon_groups = [group for group in muon_groups if group["params"]]
    chosen: list[torch.optim.Optimizer] = []
    if not groups:  # Muon has it all
        pass
    elif optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
        chosen = [kind(groups, betas=(momentum, 0.999), weight_decay=0.0)]
    elif optimizer == "rmsprop":
        chosen = [torch.optim.RMSprop(groups, momentum=momentum)]
    else:
        chosen = [torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov)]
    if muon_groups:
        chosen.append(
            Muon(muon_groups, lr=muon_learning_rate, momentum=muon_momentum, shared=same_gradients)
        )
    for group in (group for each in chosen for group in each.param_groups):
        group["peak_lr"] = group["lr"]
    return chosen
