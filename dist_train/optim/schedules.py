"""Learning-rate schedules: pure functions of the step."""

import math
from typing import Literal


def factor(
    step: int,
    total_steps: int,
    *,
    schedule: Literal["constant", "linear", "cosine"],
    warmup: float = 0.0,
    final: float = 0.0,
) -> float:
    """The learning rate of a step as a share of its peak.

    Args:
        step: optimizer steps done, from 0.
        total_steps: steps of the whole run.
        warmup: share of the steps in which the rate rises linearly.
        final: what the rate falls to at the end.
    """
    warmup_steps = warmup * total_steps
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 + (final - 1) * progress
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
