"""What a network of any family is built from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from dist_train.models.norm import BatchNorm

Widths = Sequence[int]
Norm = Callable[[int], nn.Module]
"""Channels -> normalisation layer."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a network is built for, and what of it can be chosen."""

    num_classes: int
    image_shape: tuple[int, int, int]
    """(H, W, C)"""
    sample_images: Callable[[], Tensor]
    """Reads normalised training images, float32 (n, C, H, W), for layers learnt from the data."""
    batch_norm_group: int = 0
    """Samples over which BatchNorm takes its statistics; 0: a rank's batch."""
    activation: str = "relu"
    """Of the simple networks; see layers.ACTIVATIONS."""
    dropout: float = 0.0
    """Share of the simple networks' hidden units dropped in training."""
    cell: str = "lstm"
    """Of the recurrent network; see simple.CELLS."""

    def norm(self) -> Norm:
        """The normalisation layer that was asked for."""
        return partial(BatchNorm, group=self.batch_norm_group)
