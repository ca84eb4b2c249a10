"""Means with what is known of them: Student's t, for samples that are small."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from scipy import stats


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval (Student's t) of the mean.

    There is no deviation of one value, and no interval where all are equal: null.
    """
    mean, std = fmean(values), stdev(values) if len(values) > 1 else None
    if not std:
        return {"mean": mean, "std": std, "interval": None}
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return {"mean": mean, "std": std, "interval": [float(interval.low), float(interval.high)]}


def p_value(accuracies: Sequence[float], target: float | None) -> float | None:
    """How probable a mean as high as this is, or higher, if the true one is the target.

    Student's t test of one sample, one-sided; null for one value, or equal ones.
    """
    if target is None or len(set(accuracies)) < 2:
        return None
    return float(stats.ttest_1samp(accuracies, target, alternative="greater").pvalue)


def ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Values over others of the same round: geometric mean and its 95 % interval."""
    logs = [math.log(value / other) for value, other in zip(values, others, strict=True)]
    found = spread(logs)
    interval = found["interval"]
    return {
        "mean": math.exp(found["mean"]),
        "interval": interval and [math.exp(value) for value in interval],
    }
