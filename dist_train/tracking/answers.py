"""What trackers show of an evaluation: which classes are hard, and which images fool the model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_train.mistakes import Shares, confusion, surest_mistakes

Labels = NDArray[np.int64]

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

    def curves(self, probabilities: Shares, labels: Labels) -> dict[str, float]:
        """Accuracy of each class by the name of its curve; none of very many classes."""
        if len(self.classes) > MOST_CURVES:
            return {}
        shares = self.accuracies(probabilities, labels)
        return {f"{self.split}/accuracy/{name}": share for name, share in shares.items()}

    def accuracies(self, probabilities: Shares, labels: Labels) -> dict[str, float]:
        """Share of right answers by class; classes without an image are left out."""
        table = confusion(probabilities, labels)
        right, all_ = table.diagonal().tolist(), table.sum(1).tolist()
        return {
            name: good / total
            for name, good, total in zip(self.classes, right, all_, strict=True)
            if total
        }

    def worst(self, probabilities: Shares, labels: Labels, count: int = 16) -> list[Mistake]:
        """The wrong answers that the model was surest of, the surest first."""
        rows = surest_mistakes(probabilities, labels, count)
        found = zip(rows.tolist(), labels[rows], probabilities[rows], strict=True)
        return [
            Mistake(row, self.classes[label], self.classes[shares.argmax()], float(shares.max()))
            for row, label, shares in found
        ]


class PictureSchedule:
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
