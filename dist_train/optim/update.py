"""What a step does to the weights: learning rates, gradients, optimizers."""

from collections.abc import Iterable

import torch
from torch import nn

from dist_train.config import OptimConfig
from dist_train.optim.muon import Muon
from dist_train.optim.schedules import factor


def set_learning_rates(
    optimizers: Iterable[torch.optim.Optimizer], settings: OptimConfig, step: int, total_steps: int
) -> None:
    """Every group's learning rate is the same share of its peak."""
    share = factor(step, total_steps, settings)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share


def learning_rates(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, float]:
    """`optim/lr` of the first group of parameters, `optim/lr_1` of the next and so on."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {f"optim/lr_{i}" if i else "optim/lr": group["lr"] for i, group in enumerate(groups)}


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


def warm_up(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Compiles what steps on the gradients at hand need; changes nothing."""
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.warm_up()


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no element is infinite or not a number; waits for the device."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
