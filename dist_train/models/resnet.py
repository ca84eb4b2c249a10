"""Residual networks: ResNet-9, and the family of He et al. with torchvision's names of weights."""

from collections.abc import Sequence

from torch import Tensor, nn

from dist_train.models.inputs import Inputs, Norm, Widths
from dist_train.models.layers import GlobalMaxPool, HalvingMaxPool, Residual


def resnet9(inputs: Inputs, widths: Widths, _: Widths) -> nn.Module:
    """The nine-layer network of David Page's "How to train your ResNet" (2018).

    Args:
        widths: channels of the stem and of the three stages.
    """
    norm = inputs.norm()

    def block(channels_in: int, channels_out: int, pool: bool) -> nn.Sequential:
        conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        parts = [conv, norm(channels_out), nn.ReLU(inplace=True)]
        return nn.Sequential(*parts, *([HalvingMaxPool()] if pool else []))

    def residual(channels: int) -> nn.Module:
        return Residual(block(channels, channels, False), block(channels, channels, False))

    stem, first, second, third = widths
    return nn.Sequential(
        block(inputs.image_shape[-1], stem, pool=False),
        block(stem, first, pool=True),
        residual(first),
        block(first, second, pool=True),
        block(second, third, pool=True),
        residual(third),
        GlobalMaxPool(),
        nn.Flatten(),
        nn.Linear(third, inputs.num_classes),
    )


class ResNet(nn.Module):
    """Four stages of residual blocks (He et al., 2015); weights are named as in torchvision.

    Images of up to 64 pixels get the stem that is usual for CIFAR, a 3x3 convolution without
    stride or pooling; larger ones that of the paper.

    Args:
        widths: channels of each stage (a fourth of its output in bottlenecks).
        block: BasicBlock or Bottleneck.
        depths: blocks of each stage.
    """

    def __init__(
        self,
        inputs: Inputs,
        widths: Widths,
        _: Widths,
        *,
        block: "type[BasicBlock | Bottleneck]",
        depths: Sequence[int],
    ) -> None:
        super().__init__()
        image_shape, norm = inputs.image_shape, inputs.norm()
        channels, small = widths[0], max(image_shape[:2]) <= 64
        self.conv1 = (
            nn.Conv2d(image_shape[-1], channels, 3, padding=1, bias=False)
            if small
            else nn.Conv2d(image_shape[-1], channels, 7, stride=2, padding=3, bias=False)
        )
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks: list[nn.Module] = []
            for i in range(depth):
                blocks.append(block(channels, width, stride=2 if stage and not i else 1, norm=norm))
                channels = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, inputs.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2015, figure 5 left)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (figure 5 right).

    The stride is that of the 3x3 convolution, as in torchvision ("ResNet v1.5").
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        wide = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.bn3 = norm(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, wide, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 4 width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


def shortcut(channels: int, channels_out: int, stride: int, norm: Norm) -> nn.Module:
    """The identity where shapes agree, else a projection."""
    if stride == 1 and channels == channels_out:
        return nn.Identity()
    projection = nn.Conv2d(channels, channels_out, 1, stride, bias=False)
    return nn.Sequential(projection, norm(channels_out))
