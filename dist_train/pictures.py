"""Pictures of data, to look at."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dist_train import build
from dist_train.config import Config
from dist_train.data import beton
from dist_train.data.augment import Augment, draw
from dist_train.data.order import Order
from dist_train.data.prepare import prepare_dataset
from dist_train.files import write_atomically

ROWS, EPOCHS, SCALE, GAP = 8, 9, 2, 2


def augmented_samples(config: Config, path: str) -> None:
    """Draws a grid: a sample a row, as stored and then as the model sees it in nine epochs.

    Raises:
        UserError: the data is not to be had, or the file cannot be written.
    """
    prepared = prepare_dataset(config.data)
    shape = prepared.manifest.image_shape
    augment = build.augmentation(config.data, prepared.manifest)
    samples = np.arange(prepared.manifest.train.samples)
    first = Order(samples, ROWS, config.seed).epoch(0)[: 2 * ROWS]
    # With mix-up or CutMix, the second half are the partners of the first.
    ids = first if augment.settings.mixes else first[:ROWS]
    images = torch.from_numpy(beton.read_some(prepared.train, ids))
    columns = [images[:ROWS]]
    for epoch in range(EPOCHS):
        draws = draw(
            augment.settings, ids, seed=config.seed, epoch=epoch, image_size=(shape[0], shape[1])
        )
        columns.append(as_bytes(augment(images, torch.from_numpy(draws)), augment))
    write_png(columns, Path(path))


def as_bytes(x: Tensor, augment: Augment) -> Tensor:
    """Normalised float (n, C, H, W) back to uint8 (n, H, W, C)."""
    pixels = x.permute(0, 2, 3, 1) / augment.inverse_std + augment.mean
    return pixels.round().clamp(0, 255).byte()


def write_png(columns: Sequence[Tensor], path: Path) -> None:
    """A grid of uint8 (rows, H, W, C) columns, enlarged, on white."""
    cells = torch.stack(list(columns), 1).repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
    rows, number, height, width, channels = cells.shape
    grid = torch.full((rows, height + GAP, number, width + GAP, channels), 255, dtype=torch.uint8)
    grid[:, :height, :, :width] = cells.permute(0, 2, 1, 3, 4)
    picture = grid.reshape(rows * (height + GAP), number * (width + GAP), channels)
    image = Image.fromarray(picture.squeeze(-1).numpy())
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        write_atomically(path, buffer.getvalue())
