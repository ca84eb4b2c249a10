"""Optimizers by name, over parameter groups that are split by the number of dimensions."""

from typing import Literal

import torch
from torch import nn

from dist_train.optim.muon import Muon


def build(
    model: nn.Module,
    *,
    optimizer: Literal["sgd", "adam", "adamw", "muon"],
    learning_rate: float,
    bias_learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    muon_learning_rate: float,
    muon_momentum: float,
) -> list[torch.optim.Optimizer]:
    """The optimizers of a model; each group's `peak_lr` is what schedules scale.

    The arguments are explained in config.OptimConfig.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    filters = [p for p in trained if optimizer == "muon" and p.ndim == 4]
    weights = [p for p in trained if p.ndim >= 2 and not (optimizer == "muon" and p.ndim == 4)]
    groups = [
        {"params": weights, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "lr": bias_learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    chosen: list[torch.optim.Optimizer]
    if optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
        chosen = [kind(groups, betas=(momentum, 0.999), weight_decay=0.0)]
    else:
        chosen = [torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov)]
    if filters:
        chosen.append(Muon(filters, lr=muon_learning_rate, momentum=muon_momentum))
    for group in (group for each in chosen for group in each.param_groups):
        group["peak_lr"] = group["lr"]
    return chosen
