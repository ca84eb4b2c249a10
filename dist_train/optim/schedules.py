"""Learning-rate schedules: pure functions of the step, and one that looks at the results."""

import math
from collections.abc import Iterable
from typing import Any

from dist_train.config import OptimConfig


def factor(step: int, total_steps: int, settings: OptimConfig) -> float:
    """The learning rate of a step as a share of its peak.

    It rises first, in a straight line (one_cycle: half a cosine), then does what the schedule
    says: `linear` and `triangle` fall in a straight line, `cosine` and `one_cycle` along half a
    cosine, `exponential` by the same factor each step, `step` at milestones. `constant` stays, and
    so does `plateau`, whose peak is lowered by `reduce_on_plateau`.

    Args:
        step: optimizer steps done, from 0.
        total_steps: steps of the whole run.
    """
    schedule, warmup, final = settings.schedule, settings.warmup, settings.final_fraction
    if warmup is None:  # Smith and Topin, "Super-convergence", 2018
        warmup = 0.3 if schedule in ("triangle", "one_cycle") else 0.0
    if final is None:
        final = 0.01 if schedule == "exponential" else 0.0
    warmup_steps = warmup * total_steps
    if step < warmup_steps:
        risen = (step + 1) / (warmup_steps + 1)
        risen = half_cosine(risen) if schedule == "one_cycle" else risen
        return settings.start_fraction + (1 - settings.start_fraction) * risen
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule in ("linear", "triangle"):
        return 1 + (final - 1) * progress
    if schedule in ("cosine", "one_cycle"):
        return final + (1 - final) * half_cosine(1 - progress)
    if schedule == "exponential":
        return float(final**progress)
    if schedule == "step":
        passed = sum(step >= share * total_steps for share in settings.milestones)
        return float(settings.decay**passed)
    return 1.0


def half_cosine(x: float) -> float:
    """From 0 at 0 to 1 at 1, level at both ends."""
    return (1 - math.cos(math.pi * x)) / 2


def reduce_on_plateau(
    groups: Iterable[dict[str, Any]], loss: float, *, decay: float, patience: int
) -> None:
    """Lowers the peak learning rate when the loss of evaluations no longer falls.

    To be called after each evaluation. What is remembered lives in the optimizers' parameter
    groups, which checkpoints hold: a resumed run goes on exactly.

    Args:
        groups: parameter groups with their `peak_lr`.
        loss: of this evaluation.
        decay: what the rate is multiplied by.
        patience: evaluations in a row without a new lowest loss that are borne.
    """
    for group in groups:
        better = loss < group.get("lowest_loss", math.inf)
        group["lowest_loss"] = loss if better else group.get("lowest_loss", math.inf)
        group["fruitless"] = 0 if better else group.get("fruitless", 0) + 1
        if group["fruitless"] > patience:
            group["peak_lr"] *= decay
            group["fruitless"] = 0
