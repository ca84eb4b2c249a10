"""The networks of a beginner's text: a few convolutions and a fully connected head."""

from collections.abc import Sequence

from torch import nn


def cnn(num_classes: int, image_shape: Sequence[int], widths: Sequence[int]) -> nn.Module:
    """One 3x3 convolution, ReLU and max-pool a stage, then two fully connected layers.

    Args:
        image_shape: (H, W, C); H and W are halved by each stage.
        widths: channels of each stage.
    """
    height, width, channels = image_shape
    layers: list[nn.Module] = []
    for out_channels in widths:
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, height, width = out_channels, height // 2, width // 2
    head = [nn.Flatten(), nn.Linear(channels * height * width, 128), nn.ReLU()]
    return nn.Sequential(*layers, *head, nn.Linear(128, num_classes))


def lenet(num_classes: int, image_shape: Sequence[int], widths: Sequence[int]) -> nn.Module:
    """The network of PyTorch's CIFAR-10 tutorial (6-16-120-84), after LeCun et al., 1998.

    Args:
        image_shape: (H, W, C).
        widths: channels of the two convolutions, then units of the two hidden layers.
    """
    height, width, channels = image_shape
    conv1, conv2, hidden1, hidden2 = widths
    height, width = ((height - 4) // 2 - 4) // 2, ((width - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, conv1, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(conv1, conv2, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(conv2 * height * width, hidden1),
        nn.ReLU(),
        nn.Linear(hidden1, hidden2),
        nn.ReLU(),
        nn.Linear(hidden2, num_classes),
    )
