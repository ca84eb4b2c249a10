"""What a step does to the weights: learning rates, gradients, optimizers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dist_train.config import OptimConfig
from dist_train.optim.schedules import factor

COMPUTED = ("lr", "fused", "capturable")
"""How a group's steps are computed, not what was learnt; `lr` by being a number or a tensor."""


def set_learning_rates(
    optimizers: Iterable[torch.optim.Optimizer], settings: OptimConfig, step: int, total_steps: int
) -> None:
    """Every group's learning rate is the same share of its peak."""
    share = factor(step, total_steps, settings)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            set_learning_rate(group, group["peak_lr"] * share)


def set_learning_rate(group: dict[str, Any], rate: float) -> None:
    """Of a group of parameters."""
    if torch.is_tensor(group["lr"]):  # recorded steps read it from where it is
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def learning_rates(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, float]:
    """`optim/lr` of the first group of parameters, `optim/lr_1` of the next and so on."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {
        f"optim/lr_{i}" if i else "optim/lr": float(group["lr"]) for i, group in enumerate(groups)
    }


def update(
    optimizers: Iterable[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    model: nn.Module,
    gradient_clip: float,
    *,
    with_norm: bool = False,
) -> torch.Tensor | None:
    """One step of all optimizers; float16's too large gradients skip it.

    Returns:
        The gradient's norm before it was clipped, where it is wanted.
    """
    norm = None
    if gradient_clip or with_norm:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if gradient_clip:
            # What is no number would spread to optimizers whose step the scaler does not skip.
            nn.utils.clip_grads_with_norm_(trained, gradient_clip, norm.nan_to_num(torch.inf))
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    for optimizer in optimizers:
        optimizer.zero_grad()
    return norm if with_norm else None


def load(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes over what was learnt; how steps are computed stays as it is here."""
    saved = state["param_groups"]
    groups = [
        theirs | {name: ours[name] for name in COMPUTED if name in ours}
        for theirs, ours in zip(saved, optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, theirs in zip(optimizer.param_groups, saved, strict=True):
        set_learning_rate(group, float(theirs["lr"]))


@contextmanager
def undone(
    networks: Iterable[nn.Module],
    optimizers: Iterable[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
) -> Iterator[None]:
    """Puts back what steps inside change; momenta that they make begin at zero."""
    weights = [tensor.detach().to("cpu", copy=True) for tensor in tensors(networks)]
    remembered = {tensor: tensor.to("cpu", copy=True) for tensor in memory(optimizers)}
    scaling = scaler.state_dict()
    yield
    with torch.no_grad():
        for tensor, before in zip(tensors(networks), weights, strict=True):
            tensor.copy_(before)
        for tensor in memory(optimizers):
            if tensor in remembered:
                tensor.copy_(remembered[tensor])
            else:
                tensor.zero_()
    if scaling:
        scaler.load_state_dict(scaling)


def tensors(networks: Iterable[nn.Module]) -> list[torch.Tensor]:
    """Weights and buffers."""
    return [tensor for each in networks for tensor in (*each.parameters(), *each.buffers())]


def memory(optimizers: Iterable[torch.optim.Optimizer]) -> list[torch.Tensor]:
    """Momenta, and what else optimizers remember of each parameter."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return [value for state in states for value in state.values() if torch.is_tensor(value)]


def not_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """How many tensors have an element that is infinite or not a number: int64 ()."""
    return torch.stack([~tensor.isfinite().all() for tensor in tensors]).sum()
