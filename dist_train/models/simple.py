"""The networks of a beginner's text: fully connected, convolutional, recurrent."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from dist_train.errors import UserError
from dist_train.models.layers import ACTIVATIONS, fully_connected


def mlp(
    num_classes: int,
    image_shape: Sequence[int],
    *,
    hidden: Sequence[int],
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """The pixels of an image as one vector, then fully connected layers.

    Args:
        image_shape: (H, W, C).
        hidden: units of each hidden layer, any number of them.
        activation, dropout: see layers.fully_connected.
    """
    layers = fully_connected(prod(image_shape), hidden, num_classes, activation, dropout)
    return nn.Sequential(nn.Flatten(), *layers)


def cnn(
    num_classes: int,
    image_shape: Sequence[int],
    *,
    widths: Sequence[int],
    hidden: Sequence[int],
    activation: str = "relu",
    dropout: float = 0.0,
    kernel: int = 3,
    padding: int = 1,
) -> nn.Module:
    """A convolution, activation and max-pool a stage, then fully connected layers.

    Args:
        image_shape: (H, W, C); H and W are halved by each stage.
        widths: channels of each stage.
        hidden: units of each hidden layer behind them.
        activation, dropout: see layers.fully_connected.
        kernel, padding: of the convolutions, in pixels.

    Raises:
        UserError: nothing would be left of an image.
    """
    height, width, channels = image_shape
    layers: list[nn.Module] = []
    lost = kernel - 1 - 2 * padding
    for out_channels in widths:
        conv = nn.Conv2d(channels, out_channels, kernel, padding=padding)
        layers += [conv, ACTIVATIONS[activation](), nn.MaxPool2d(2)]
        channels, height, width = out_channels, (height - lost) // 2, (width - lost) // 2
    if min(height, width) < 1:
        raise UserError(
            f"{len(widths)} convolutions of {kernel}x{kernel} pixels, each with a pool, cannot "
            f"take images of {image_shape[0]}x{image_shape[1]} pixels; choose a larger "
            "--data.image_size"
        )
    inputs = channels * height * width
    head = fully_connected(inputs, hidden, num_classes, activation, dropout)
    return nn.Sequential(*layers, nn.Flatten(), *head)


# The network of PyTorch's CIFAR-10 tutorial (6-16-120-84), after LeCun et al., 1998.
lenet = partial(cnn, kernel=5, padding=0)


class RNN(nn.Module):
    """Reads an image row by row, from the top; its last state goes through connected layers.

    Args:
        image_shape: (H, W, C): H steps of W * C inputs.
        cell: `lstm` (Hochreiter and Schmidhuber, 1997) or `gru` (Cho et al., 2014).
        widths: units of the state, a single number.
        hidden: units of each hidden layer behind it.
        activation, dropout: of these layers; the cells have their own.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: Sequence[int],
        *,
        widths: Sequence[int],
        hidden: Sequence[int],
        cell: str = "lstm",
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _, width, channels = image_shape
        (state,) = widths
        self.cell = CELLS[cell](width * channels, state, batch_first=True)
        layers = fully_connected(state, hidden, num_classes, activation, dropout)
        self.head = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        rows = x.permute(0, 2, 3, 1).flatten(2)
        # On a GPU autocast to any type makes the cell float16, for which bf16 scales no loss.
        with torch.autocast("cuda", enabled=False):
            states, _ = self.cell(rows)
        logits: Tensor = self.head(states[:, -1])
        return logits


CELLS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}
