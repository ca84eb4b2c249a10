"""The network of the fastest CIFAR-10 recipes: a whitening layer learnt from the data first.

After Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024), which builds on
David Page and tysam-code.
"""

import torch
from torch import Tensor, nn

from dist_train.models.inputs import Inputs, Widths
from dist_train.models.layers import GlobalMaxPool, HalvingMaxPool, Residual
from dist_train.models.norm import BatchNorm


def whitened(inputs: Inputs, widths: Widths, _: Widths, *, residual: bool = False) -> nn.Module:
    """Whitening convolution, then stages of two 3x3 convolutions, and a scaled linear head.

    Args:
        widths: channels of each stage; each halves the image.
        residual: a third convolution in each stage, and what the first gave is added to what the
            other two make of it (airbench96); BatchNorm's statistics then move more slowly.
    """
    group = inputs.batch_norm_group
    momentum = 0.1 if residual else 0.4

    def norm(width: int) -> nn.Module:
        return BatchNorm(width, group=group, momentum=momentum, eps=1e-12, scale=False)

    def second_part(width: int) -> list[nn.Module]:
        once = [dirac_convolution(width, width), norm(width)]
        if not residual:
            return once
        return [Residual(*once, nn.SiLU(), dirac_convolution(width, width), norm(width))]

    whitening = whitening_convolution(inputs.sample_images())
    channels = whitening.out_channels
    stages: list[nn.Module] = []
    for width in widths:
        stages += [
            dirac_convolution(channels, width),
            HalvingMaxPool(),
            norm(width),
            nn.SiLU(),
            *second_part(width),
            nn.SiLU(),
        ]
        channels = width
    head = nn.Linear(channels, inputs.num_classes, bias=False)
    nn.init.normal_(head.weight)
    return nn.Sequential(
        whitening,
        nn.SiLU(),
        *stages,
        GlobalMaxPool(),
        nn.Flatten(),
        Scale(1 / channels),
        head,
    )


def whitening_convolution(images: Tensor, patch: int = 2) -> nn.Conv2d:
    """A fixed convolution that makes its outputs uncorrelated on `images`; only its bias trains.

    Filters are the eigenvectors of the covariance of the patches, each over the square root of
    its eigenvalue, and their negatives: 2 * C * patch**2 of them.

    Args:
        images: float32 (n, C, H, W), normalised, on any device; the convolution is on the CPU.
    """
    channels = images.shape[1]
    size = channels * patch * patch
    total, count = torch.zeros(size, size, dtype=torch.float64, device=images.device), 0
    for part in torch.split(images, 250):  # patches are several times as large as the images
        patches = part.unfold(2, patch, 1).unfold(3, patch, 1)  # n, C, H', W', patch, patch
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, size).double()
        total += patches.T @ patches
        count += len(patches)
    eigenvalues, eigenvectors = torch.linalg.eigh(total.cpu() / count)
    filters = (eigenvectors / torch.sqrt(eigenvalues + 5e-4)).T.flip(0)
    filters = filters.reshape(-1, channels, patch, patch).float()
    conv = nn.Conv2d(channels, 2 * len(filters), patch)
    conv.weight.data.copy_(torch.cat([filters, -filters]))
    conv.weight.requires_grad_(False)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def dirac_convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution whose first filters start as the identity."""
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[: min(channels_in, channels_out)])
    return conv


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * self.factor
