"""Layers that several families share: activations by name, dropout, a pool."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softmax": partial(nn.Softmax, dim=1),  # over channels, or over the units of a layer
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class GlobalMaxPool(nn.Module):
    """AdaptiveMaxPool2d(1), whose gradient on a GPU is neither compiled nor deterministic."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C, 1, 1)."""
        # Channels last, so that its gradient is, too. By place, not by amax, whose gradient goes to
        # the values that equal the largest: compiled, only one side of that is rounded to bfloat16.
        return x.permute(0, 2, 3, 1).flatten(1, 2).max(1).values[:, :, None, None]


class HalvingMaxPool(nn.MaxPool2d):
    """MaxPool2d(2); compiled to train, its gradient keeps the memory format, scatters nothing."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C, H // 2, W // 2)."""
        if not (self.training and torch.compiler.is_compiling()):
            return super().forward(x)  # type: ignore[no-any-return]
        # Channels last: the gradient of a part of a tensor is laid out as that tensor's dimensions.
        pixels = x.permute(0, 2, 3, 1)
        samples, height, width, channels = pixels.shape
        rows, columns = height // 2, width // 2
        windows = pixels[:, : 2 * rows, : 2 * columns]
        windows = windows.reshape(samples, rows, 2, columns, 2, channels)
        corner = torch.arange(4, device=x.device).view(2, 1, 2, 1)
        largest = windows.detach().permute(0, 1, 3, 5, 2, 4).flatten(4).argmax(4)
        chosen = largest[:, :, None, :, None] == corner
        pooled = torch.where(chosen, windows, 0).sum((2, 4), dtype=x.dtype)
        return pooled.permute(0, 3, 1, 2)


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) whose choices are a function of the sample, not a state.

    Which units of a sample are dropped follows from its key, which the training step draws from
    seed, epoch and sample id and hands over in `keys`: the same on any rank, in any batch, after
    any resume.

    Args:
        share: of the units that are dropped in training.
        layer: tells the dropout layers of a network apart.
    """

    def __init__(self, share: float, layer: int = 0) -> None:
        super().__init__()
        self.share = share
        self.layer = layer
        self.keys: Tensor | None = None
        """Whole numbers below 2**24, (n,), of the samples in the batch; set before `forward`."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) to the same shape; the units that stay are scaled up by as much as is lost.

        Raises:
            RuntimeError: in training, when nobody has set `keys`.
        """
        if not self.training or self.share == 0:
            return x
        if self.keys is None:
            raise RuntimeError("Dropout draws from `keys`: set them, or call eval()")
        units = torch.arange(x[0].numel(), device=x.device) + (self.layer << 24)
        bits = mix(self.keys.long()[:, None] + (mix(units) << 24))
        kept = ((bits & 0xFFFFFF) >= round(self.share * 2**24)).view(x.shape)
        return x * kept / (1 - self.share)


def mix(x: Tensor) -> Tensor:
    """Hashes int64 to 32 well-mixed bits (source: murmur3's finaliser, Appleby, 2011)."""
    x = (x ^ (x >> 32)) & 0xFFFFFFFF
    x = (x ^ (x >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ (x >> 16)


def dropouts(model: nn.Module) -> list[Dropout]:
    """The layers whose `keys` have to be set before each training step."""
    return [m for m in model.modules() if isinstance(m, Dropout) and m.share > 0]


class Residual(nn.Sequential):
    """Adds its input to what its layers make of it."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that the layers keep."""
        return x + super().forward(x)  # type: ignore[no-untyped-call,no-any-return]
