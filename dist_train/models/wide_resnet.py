"""Wide residual networks (Zagoruyko and Komodakis, 2016): few blocks, many channels."""

from torch import Tensor, nn

from dist_train.models.inputs import Inputs, Norm, Widths


def wide_resnet(inputs: Inputs, widths: Widths, _: Widths, *, blocks: int = 4) -> nn.Module:
    """Normalisation and ReLU come before each convolution; 6 * blocks + 4 layers.

    Args:
        widths: channels of the stem and of the three stages; 16,160,320,640 is WRN-28-10.
        blocks: in each stage.
    """
    norm = inputs.norm()
    channels, *stages = widths
    stem = nn.Conv2d(inputs.image_shape[-1], channels, 3, padding=1, bias=False)
    layers: list[nn.Module] = [stem]
    for stage, width in enumerate(stages):
        for i in range(blocks):
            layers.append(PreActivationBlock(channels, width, 2 if stage and not i else 1, norm))
            channels = width
    tail = [norm(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, *tail, nn.Linear(channels, inputs.num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that starts behind the first activation."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels == width
            else nn.Conv2d(channels, width, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, width, H / stride, W / stride)."""
        same = isinstance(self.shortcut, nn.Identity)
        active = self.relu(self.norm(x))
        y: Tensor = self.branch(active) + (x if same else self.shortcut(active))
        return y
