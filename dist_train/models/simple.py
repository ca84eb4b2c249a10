"""The networks of a beginner's text: fully connected, convolutional, recurrent."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from dist_train.errors import UserError
from dist_train.models.inputs import Inputs, Widths
from dist_train.models.layers import ACTIVATIONS, Dropout


def mlp(inputs: Inputs, _: Widths, hidden: Widths) -> nn.Module:
    """The pixels of an image as one vector, then fully connected layers."""
    return nn.Sequential(nn.Flatten(), *head(prod(inputs.image_shape), hidden, inputs))


def cnn(
    inputs: Inputs, widths: Widths, hidden: Widths, *, kernel: int = 3, padding: int = 1
) -> nn.Module:
    """A convolution, activation and max-pool a stage, then fully connected layers.

    Args:
        widths: channels of each stage, which halves the image.
        hidden: units of each hidden layer behind them.
        kernel, padding: of the convolutions, in pixels.

    Raises:
        UserError: nothing would be left of an image.
    """
    height, width, channels = inputs.image_shape
    layers: list[nn.Module] = []
    lost = kernel - 1 - 2 * padding
    for out_channels in widths:
        conv = nn.Conv2d(channels, out_channels, kernel, padding=padding)
        layers += [conv, ACTIVATIONS[inputs.activation](), nn.MaxPool2d(2)]
        channels, height, width = out_channels, (height - lost) // 2, (width - lost) // 2
    if min(height, width) < 1:
        raise UserError(
            f"{len(widths)} convolutions of {kernel}x{kernel} pixels, each with a pool, cannot "
            f"take images of {inputs.image_shape[0]}x{inputs.image_shape[1]} pixels; choose a "
            "larger --data.image_size"
        )
    return nn.Sequential(*layers, nn.Flatten(), *head(channels * height * width, hidden, inputs))


# The network of PyTorch's CIFAR-10 tutorial (6-16-120-84), after LeCun et al., 1998.
lenet = partial(cnn, kernel=5, padding=0)


class RNN(nn.Module):
    """Reads an image row by row, from the top; its last state goes through connected layers.

    An image is H steps of W * C inputs.

    Args:
        widths: units of the state, a single number.
        hidden: units of each hidden layer behind it; activation and dropout are theirs alone.
    """

    def __init__(self, inputs: Inputs, widths: Widths, hidden: Widths) -> None:
        super().__init__()
        _, width, channels = inputs.image_shape
        (state,) = widths
        self.cell = CELLS[inputs.cell](width * channels, state, batch_first=True)
        self.head = nn.Sequential(*head(state, hidden, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        rows = x.permute(0, 2, 3, 1).flatten(2)
        # On a GPU autocast to any type makes the cell float16, for which bf16 scales no loss.
        with torch.autocast("cuda", enabled=False):
            states, _ = self.cell(rows)
        logits: Tensor = self.head(states[:, -1])
        return logits


# Hochreiter and Schmidhuber, 1997; Cho et al., 2014.
CELLS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}


def head(features: int, hidden: Widths, inputs: Inputs) -> Sequence[nn.Module]:
    """Linear, activation and dropout for each of `hidden`, then the last linear layer.

    There is a dropout layer also where its share is 0: the names of the weights do not depend on
    it.

    Args:
        features: of its input, (n, features).
        hidden: units of each hidden layer, any number of them.
    """
    layers: list[nn.Module] = []
    for depth, units in enumerate(hidden):
        activation, dropout = ACTIVATIONS[inputs.activation](), Dropout(inputs.dropout, depth)
        layers += [nn.Linear(features, units), activation, dropout]
        features = units
    return [*layers, nn.Linear(features, inputs.num_classes)]
