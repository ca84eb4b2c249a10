"""What trackers show of an evaluation: which classes are hard, and which images fool the model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

# Pictures and tables cost tens of milliseconds: once a minute is under a thousandth of the time.
SECONDS_BETWEEN_PICTURES = 60.0
# So many curves fit one chart; of more classes there is a table at the end.
MOST_CURVES = 20


class Mistake(NamedTuple):
    """A wrong answer."""

    row: int
    """The image's place in the evaluation."""
    label: str
    guess: str
    confidence: float
    """Probability that the model gave to its guess."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What runs are judged by."""

    split: str
    """`test` or `validation`."""
    classes: tuple[str, ...]
    """Their names."""
    images: Callable[[Sequence[int]], np.ndarray[Any, np.dtype[np.uint8]]]
    """uint8 (n, H, W, C) of rows of the evaluation."""

    def curves(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Accuracy of each class by the name of its curve; none of very many classes."""
        if len(self.classes) > MOST_CURVES:
            return {}
        shares = self.accuracies(logits, labels)
        return {f"{self.split}/accuracy/{name}": share for name, share in shares.items()}

    def accuracies(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Share of right answers by class; classes without an image are left out."""
        table = self.confusion(logits, labels)
        right, all_ = table.diagonal().tolist(), table.sum(1).tolist()
        return {
            name: good / total
            for name, good, total in zip(self.classes, right, all_, strict=True)
            if total
        }

    def confusion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Images of each class (row) that were taken for each class (column): int64 (C, C)."""
        count = len(self.classes)
        pairs = labels * count + logits.argmax(1)
        return pairs.bincount(minlength=count**2).view(count, count)

    def worst(self, logits: Tensor, labels: Tensor, count: int = 16) -> list[Mistake]:
        """The wrong answers that the model was surest of, the surest first."""
        confidence, guess = logits.softmax(1).max(1)
        wrong = confidence.where(guess != labels, -1.0)
        values, rows = wrong.topk(min(count, len(labels)))
        return [
            Mistake(row, self.classes[int(labels[row])], self.classes[int(guess[row])], value)
            for value, row in zip(values.tolist(), rows.tolist(), strict=True)
            if value >= 0
        ]


class Occasions:
    """When pictures are due: now and then, and at the end.

    Args:
        total_steps: the end.
    """

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to show pictures of this step's evaluation."""
        now = time.monotonic()
        if step < self._total_steps and now - self._last < SECONDS_BETWEEN_PICTURES:
            return False
        self._last = now
        return True


def pixels(image: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image as picture formats want it: (H, W, 3), or (H, W) of a single channel."""
    return image[..., 0] if image.shape[-1] == 1 else image
