"""Which classes were taken for which, and the wrong answers a model was surest of: in NumPy.

Not in torch, although it would be a line shorter: these are looked at beside training, and a second
thread that calls torch on a CPU starts a pool of threads of its own, which gets into the way of the
first one's (a tenth of the speed, docs/log.md).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.floating[Any]]
"""Probabilities of each class for each image: float (N, classes)."""


def confusion(probabilities: Shares, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images of each class (row) that were taken for each class (column): int64 (C, C)."""
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def surest_mistakes(
    probabilities: Shares, labels: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Rows of the wrong answers, at most `count`, the one that was surest first."""
    said = probabilities.argmax(1)
    wrong = np.flatnonzero(said != labels)
    sure = probabilities[wrong, said[wrong]]
    return wrong[np.argsort(-sure, kind="stable")][:count]
