"""Residual networks for small images."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def resnet9(
    num_classes: int, image_shape: Sequence[int], widths: Sequence[int], norm: Norm
) -> nn.Module:
    """The nine-layer network of David Page's "How to train your ResNet" (2018).

    Args:
        widths: channels of the stem and of the three stages.
    """

    def block(channels_in: int, channels_out: int, pool: bool) -> nn.Sequential:
        conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        parts = [conv, norm(channels_out), nn.ReLU(inplace=True)]
        return nn.Sequential(*parts, *([nn.MaxPool2d(2)] if pool else []))

    def residual(channels: int) -> nn.Module:
        return Residual(
            nn.Sequential(block(channels, channels, False), block(channels, channels, False))
        )

    stem, first, second, third = widths
    return nn.Sequential(
        block(image_shape[-1], stem, pool=False),
        block(stem, first, pool=True),
        residual(first),
        block(first, second, pool=True),
        block(second, third, pool=True),
        residual(third),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(third, num_classes),
    )


def resnet18(
    num_classes: int, image_shape: Sequence[int], widths: Sequence[int], norm: Norm
) -> nn.Module:
    """ResNet-18 with the CIFAR stem: a 3x3 convolution, no stride, no pooling (He et al., 2015).

    Args:
        widths: channels of the four stages of two basic blocks.
    """
    channels = widths[0]
    layers: list[nn.Module] = [
        nn.Conv2d(image_shape[-1], channels, 3, padding=1, bias=False),
        norm(channels),
        nn.ReLU(inplace=True),
    ]
    for stage, width in enumerate(widths):
        layers.append(BasicBlock(channels, width, stride=1 if stage == 0 else 2, norm=norm))
        layers.append(BasicBlock(width, width, stride=1, norm=norm))
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers, *head)


class Residual(nn.Module):
    """Adds a branch to its input."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        y: Tensor = self.branch(x)
        return x + y


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2015, figure 5 left)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            norm(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            norm(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, norm(channels_out))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        y: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return y
