"""uint8 images to augmented, normalised network input: batched, on the device, without a state.

Every random choice is a function of (seed, epoch, sample id), drawn on the host in NumPy by
`draw`; `Augment` only carries it out, so that a sample looks the same on any rank, in any batch,
from either loader and after any resume, bit for bit.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dist_train.config import DataConfig
from dist_train.data.order import AUGMENT, random_bits

# Columns of the table of draws.
FLIP, CROP_Y, CROP_X, CUT_Y, CUT_X, BRIGHTNESS, CONTRAST, MIX, BOX_Y, BOX_X, KEY = range(11)
NUM_DRAWS = 11


def draw(
    settings: DataConfig,
    ids: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    image_size: tuple[int, int],
) -> NDArray[np.float32]:
    """The random choices for each sample of an epoch: float32 (n, NUM_DRAWS).

    Args:
        ids: sample ids, int64 (n,).
        image_size: (H, W).
    """
    table = np.zeros((len(ids), NUM_DRAWS), np.float32)

    def uniform(column: int, epoch: int = epoch) -> NDArray[np.float64]:
        bits = random_bits(seed, epoch, ids, AUGMENT + column)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def whole(column: int, choices: int) -> NDArray[np.float64]:
        return np.floor(uniform(column) * choices)

    table[:, KEY] = whole(KEY, 2**24)  # what the network's own choices are made from: dropout
    if settings.flip == "random":
        table[:, FLIP] = whole(FLIP, 2)
    elif settings.flip == "alternating":
        table[:, FLIP] = (np.floor(uniform(FLIP, epoch=0) * 2) + epoch) % 2
    if settings.crop_padding:
        table[:, CROP_Y] = whole(CROP_Y, 2 * settings.crop_padding + 1)
        table[:, CROP_X] = whole(CROP_X, 2 * settings.crop_padding + 1)
    if settings.cutout:
        table[:, CUT_Y] = whole(CUT_Y, image_size[0])
        table[:, CUT_X] = whole(CUT_X, image_size[1])
    if settings.brightness:
        table[:, BRIGHTNESS] = 1 + settings.brightness * (2 * uniform(BRIGHTNESS) - 1)
    if settings.contrast:
        table[:, CONTRAST] = 1 + settings.contrast * (2 * uniform(CONTRAST) - 1)
    if settings.mixes:
        from scipy.special import betaincinv  # it takes its time, and few runs mix

        alpha = settings.mixup or settings.cutmix
        table[:, MIX] = betaincinv(alpha, alpha, uniform(MIX))
        table[:, BOX_Y] = whole(BOX_Y, image_size[0])
        table[:, BOX_X] = whole(BOX_X, image_size[1])
    return table


class Augment(nn.Module):
    """uint8 (n, H, W, C) and draws (n, NUM_DRAWS) to normalised float32 (n, C, H, W).

    The result is channels last in memory.

    With mix-up or CutMix, 2n images and draws go in, samples first and their partners behind, and
    n come out. Without draws (evaluation) images are only normalised.

    Args:
        settings: what is done to training images.
        mean, std: per channel, for pixels from 0 to 1.
        image_shape: (H, W, C).
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(
        self,
        settings: DataConfig,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.settings = settings
        self.image_shape = image_shape
        mean_bytes = torch.tensor(mean, dtype=torch.float64) * 255
        spread = torch.tensor(std, dtype=torch.float64) * 255
        inverse = torch.where(spread > 0, 1 / spread, 1.0)  # a channel may be empty
        self.register_buffer("mean", mean_bytes.float(), persistent=False)
        self.register_buffer("inverse_std", inverse.float(), persistent=False)

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """See the class."""
        if draws is not None and (self.settings.flip != "none" or self.settings.crop_padding):
            images = self._flip_and_crop(images, draws)
        x = images.float()
        if draws is not None:
            x = self._jitter(x, images, draws)
        x = self._normalise(x)
        if draws is not None:
            x = self._cutout(x, draws)
            x = self._mix(x, draws)
        return x.permute(0, 3, 1, 2)

    def _flip_and_crop(self, images: Tensor, draws: Tensor) -> Tensor:
        """One gather of whole pixels; reflection is part of the index."""
        height, width, channels = self.image_shape
        device, padding = images.device, self.settings.crop_padding
        top_left = draws[:, CROP_Y : CROP_X + 1].int() - padding
        y = torch.arange(height, device=device, dtype=torch.int32) + top_left[:, :1]
        x = torch.arange(width, device=device, dtype=torch.int32).expand(len(images), width)
        # The mirror image of the crop.
        x = torch.where(draws[:, FLIP, None] > 0, width - 1 - x, x) + top_left[:, 1:]
        n = torch.arange(len(images), device=device, dtype=torch.int32)[:, None, None]
        row, column = reflect(y, height)[:, :, None], reflect(x, width)[:, None, :]
        if torch.compiler.is_compiling():
            cropped = images[n, row, column]
        else:  # index_select copies pixel by pixel: three times as fast on CPU, when not compiled
            index = ((n * height + row) * width + column).view(-1)
            cropped = images.reshape(-1, channels).index_select(0, index).view(images.shape)
        if padding and self.settings.crop_mode == "zero":
            inside = inside_image(y, height)[:, :, None] & inside_image(x, width)[:, None, :]
            cropped = cropped * inside[..., None]
        return cropped

    def _jitter(self, x: Tensor, images: Tensor, draws: Tensor) -> Tensor:
        """Brightness, then contrast about each image's mean; values are not clamped."""
        if self.settings.contrast:
            # A sum of integers is exact in any order, hence the same in every batch.
            total = images.sum((1, 2, 3), dtype=torch.int32)
            mean = per_image(total.double() / x[0].numel()).float()
            x = (x - mean) * per_image(draws[:, CONTRAST]) + mean
        if self.settings.brightness:
            x = x * per_image(draws[:, BRIGHTNESS])
        return x

    def _normalise(self, x: Tensor) -> Tensor:
        mean, inverse_std = self.mean, self.inverse_std
        if not torch.compiler.is_compiling():  # then CPUs vectorise only what is contiguous
            width = self.image_shape[1]
            mean, inverse_std = mean.repeat(width, 1), inverse_std.repeat(width, 1)
        return x.sub_(mean).mul_(inverse_std)

    def _cutout(self, x: Tensor, draws: Tensor) -> Tensor:
        """A square about the drawn centre becomes the mean colour, which is 0 by now."""
        side = self.settings.cutout
        if not side:
            return x
        height, width, _ = self.image_shape
        n = torch.arange(len(x), device=x.device)[:, None, None]
        square = torch.arange(side, device=x.device) - side // 2
        # The centre is inside: clamping cuts the square off at the edges.
        y = (draws[:, CUT_Y, None].long() + square).clamp(0, height - 1)
        z = (draws[:, CUT_X, None].long() + square).clamp(0, width - 1)
        # A number would wait for the device in versions of torch before 2.15.
        return x.index_put_((n, y[:, :, None], z[:, None, :]), x.new_zeros(()))

    def _mix(self, x: Tensor, draws: Tensor) -> Tensor:
        """Samples with their partners: averaged (mix-up) or with a pasted box (CutMix)."""
        if not self.settings.mixes:
            return x
        samples, partners = x.chunk(2)
        draws = draws.chunk(2)[0]
        if self.settings.mixup:
            share = per_image(draws[:, MIX])
            return samples * share + partners * (1 - share)
        return torch.lerp(samples, partners, self._cutmix_box(draws))

    def own_share(self, draws: Tensor) -> Tensor:
        """How much of each mixed image is its own: float32 (n,), the weight of its label.

        Args:
            draws: float32 (2n, NUM_DRAWS), as given to `forward`.
        """
        draws = draws.chunk(2)[0]
        if self.settings.mixup:
            return draws[:, MIX]
        return 1 - self._cutmix_box(draws).mean((1, 2, 3))

    def _cutmix_box(self, draws: Tensor) -> Tensor:
        """1 within a box about each drawn centre, clipped to the image: float32 (n, H, W, 1)."""
        height, width, _ = self.image_shape
        scale = torch.sqrt(1 - draws[:, MIX])

        def within(size: int, centre: Tensor) -> Tensor:
            length = torch.floor(scale * size)
            start = centre - torch.floor(length / 2)
            i = torch.arange(size, device=draws.device)
            return ((i >= start[:, None]) & (i < (start + length)[:, None])).float()

        in_row, in_column = within(height, draws[:, BOX_Y]), within(width, draws[:, BOX_X])
        return (in_row[:, :, None] * in_column[:, None, :])[..., None]


def per_image(values: Tensor) -> Tensor:
    """(n,) to (n, 1, 1, 1)."""
    return values[:, None, None, None]


def reflect(index: Tensor, size: int) -> Tensor:
    """Indices beyond [0, size) mirrored back in, without repeating the edge.

    Those further off than a mirror image reaches end up at the edge: zero padding covers them.
    """
    index = index.abs()
    return torch.where(index < size, index, 2 * (size - 1) - index).clamp(min=0)


def inside_image(index: Tensor, size: int) -> Tensor:
    """Which indices need no padding: bool, same shape."""
    return (index >= 0) & (index < size)


def resize(images: Tensor, size: int) -> Tensor:
    """float (n, C, H, W) to (n, C, size, size), antialiased; as it is where the size fits."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
