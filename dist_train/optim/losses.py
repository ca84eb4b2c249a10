"""Losses by name: logits and labels to one value a sample. To add one: a function, a dict line."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor, float], Tensor]
"""float32 logits (n, classes), int64 labels (n,), label smoothing -> float32 (n,)"""


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The usual one: minus the logarithm of the right class's softmax probability."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def mse(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Squared distance of the outputs to the one-hot label, the mean over the classes."""
    return (logits - targets(logits, labels, smoothing)).square().mean(1)


def bce(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """A yes-or-no question for each class (sigmoid cross-entropy), the mean over the classes."""
    target = targets(logits, labels, smoothing)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


def targets(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """One-hot labels, with `smoothing` of their mass spread evenly: float32 (n, classes)."""
    classes = logits.shape[1]
    return F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def probabilities(logits: Tensor, loss: str) -> Tensor:
    """What a model trained by the named loss says of each class: float (n, classes), summing to 1.

    With `mse` the outputs are the probabilities, but for what lies below 0; with `bce` the sigmoids
    of independent questions are scaled to sum to 1.
    """
    if loss == "cross_entropy":
        return logits.softmax(1)
    shares = logits.clamp(min=1e-6) if loss == "mse" else logits.sigmoid()
    return shares / shares.sum(1, keepdim=True)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse, "bce": bce}
