"""Augmentation: what it does to pixels, and that a sample never depends on its company."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dist_train.config import DataConfig
from dist_train.data.augment import (
    BOX_X,
    BOX_Y,
    BRIGHTNESS,
    CONTRAST,
    CROP_X,
    CROP_Y,
    FLIP,
    MIX,
    Augment,
    draw,
    resize,
)
from dist_train.data.order import AUGMENT, random_bits

SHAPE = (32, 32, 3)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
ALL = DataConfig(flip="random", crop_padding=4, cutout=8, brightness=0.2, contrast=0.3)


def some_images(number: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (number, *shape), dtype=torch.uint8, generator=generator)


def augment(settings: DataConfig, shape: tuple[int, int, int] = SHAPE) -> Augment:
    channels = shape[-1]
    return Augment(settings, mean=MEAN[:channels], std=STD[:channels], image_shape=shape)


def drawn(settings: DataConfig, ids: Any, epoch: int = 0, seed: int = 0) -> Tensor:
    ids = np.asarray(ids)
    return torch.from_numpy(draw(settings, ids, seed=seed, epoch=epoch, image_size=SHAPE[:2]))


def normalized(images: Tensor) -> Tensor:
    x = images.double().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def assert_same_pixels(x: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(x.double(), expected.double(), rtol=0, atol=2e-5)


def test_a_channel_without_content_stays_so() -> None:
    images = some_images(4)
    images[..., 2] = 0
    module = Augment(DataConfig(), mean=(*MEAN[:2], 0.0), std=(*STD[:2], 0.0), image_shape=SHAPE)
    x = module(images)
    assert (x[:, 2] == 0).all()
    assert x.isfinite().all()


def test_evaluation_only_normalizes() -> None:
    images = some_images(16)
    x = augment(ALL)(images)
    assert_same_pixels(x, normalized(images))
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("mode", "padding"), [("reflect", 4), ("zero", 4), ("zero", 200)])
def test_flip_and_crop_are_those_of_a_padded_image(mode: Any, padding: int) -> None:
    settings = DataConfig(flip="random", crop_padding=padding, crop_mode=mode)
    images, draws = some_images(64), drawn(settings, range(64))
    x = augment(settings)(images, draws)
    padded = F.pad(
        images.permute(0, 3, 1, 2).float(),
        (padding, padding, padding, padding),
        mode="reflect" if mode == "reflect" else "constant",
    ).to(torch.uint8)
    assert draws[:, FLIP].unique().tolist() == [0, 1]
    for i in range(64):
        y, left = int(draws[i, CROP_Y]), int(draws[i, CROP_X])
        crop = padded[i, :, y : y + 32, left : left + 32].permute(1, 2, 0)
        expected = crop.flip(1) if draws[i, FLIP] else crop
        assert_same_pixels(x[i : i + 1], normalized(expected[None]))


def test_every_shift_is_drawn_equally_often() -> None:
    draws = drawn(ALL, range(20_000))
    for column in (CROP_Y, CROP_X):
        counts = torch.bincount(draws[:, column].long(), minlength=9)
        assert len(counts) == 9
        assert counts.min() > 20_000 / 9 * 0.9


def test_alternating_flip_shows_each_image_from_both_sides_in_turn() -> None:
    settings = DataConfig(flip="alternating")
    flips = [drawn(settings, range(1000), epoch)[:, FLIP] for epoch in range(4)]
    assert flips[0].mean() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(flips[1], 1 - flips[0])
    torch.testing.assert_close(flips[2], flips[0])
    torch.testing.assert_close(flips[3], flips[1])


def test_cutout_is_a_square_of_the_mean_colour() -> None:
    settings = DataConfig(cutout=8)
    images = some_images(64)
    x, plain = augment(settings)(images, drawn(settings, range(64))), normalized(images)
    hidden = (x.abs() < 1e-6).all(1)
    for i in range(64):
        rows, columns = hidden[i].nonzero(as_tuple=True)
        height, width = (int(v.max() - v.min() + 1) for v in (rows, columns))
        assert len(rows) == height * width <= 64
        assert max(height, width) <= 8
    assert (hidden.sum((1, 2)) == 64).any()
    shown = (~hidden)[:, None].expand_as(x)
    assert_same_pixels(x[shown], plain[shown])


def test_brightness_and_contrast_scale_about_zero_and_the_mean() -> None:
    images = some_images(8)
    bright, contrast = DataConfig(brightness=0.5), DataConfig(contrast=0.5)
    draws = drawn(bright, range(8))
    assert (draws[:, BRIGHTNESS] - 1).abs().max() <= 0.5
    pixels = images.double() * draws[:, BRIGHTNESS].double().view(-1, 1, 1, 1)
    assert_same_pixels(augment(bright)(images, draws), normalized(pixels))
    draws = drawn(contrast, range(8))
    mean = images.double().mean((1, 2, 3), keepdim=True)
    pixels = (images - mean) * draws[:, CONTRAST].double().view(-1, 1, 1, 1) + mean
    assert_same_pixels(augment(contrast)(images, draws), normalized(pixels))


def test_mixup_averages_images_and_labels_alike() -> None:
    settings = DataConfig(mixup=0.4)
    images, draws = some_images(16), drawn(settings, range(16))
    module = augment(settings)
    share = module.own_share(draws)
    torch.testing.assert_close(share, draws[:8, MIX])
    own, partner = normalized(images).chunk(2)
    weight = share.double().view(-1, 1, 1, 1)
    assert_same_pixels(module(images, draws), weight * own + (1 - weight) * partner)


def test_cutmix_counts_the_pixels_it_pastes() -> None:
    settings = DataConfig(cutmix=1.0)
    images = torch.cat([torch.zeros(200, *SHAPE), torch.full((200, *SHAPE), 255)]).byte()
    draws = drawn(settings, range(400))
    module = augment(settings)
    pasted = (module(images, draws) > 0).all(1).double().mean((1, 2))
    torch.testing.assert_close(module.own_share(draws).double(), 1 - pasted)
    assert pasted.mean() == pytest.approx(0.4, abs=0.1)  # less than half: boxes are clipped
    assert draws[:, [BOX_Y, BOX_X]].min() >= 0


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixing_shares_have_the_moments_of_beta(alpha: float) -> None:
    """Integrated over the random bits that they are the quantiles of: exact, not by chance."""
    ids = np.arange(100_000)
    shares = drawn(DataConfig(cutmix=alpha), ids)[:, MIX].double().numpy()
    order = np.argsort(bits := random_bits(0, 0, ids, AUGMENT + MIX))
    at = np.concatenate([[0], bits[order] * 2.0**-64, [1]])
    values = np.concatenate([[0], shares[order], [1]])
    mean = np.trapezoid(values, at)
    assert mean == pytest.approx(0.5, abs=1e-6)
    variance = np.trapezoid((values - mean) ** 2, at)
    assert variance == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=2e-3)


@pytest.mark.parametrize(
    "settings",
    [ALL, replace(ALL, flip="alternating", crop_mode="zero")],
    ids=["reflect", "zero"],
)
def test_a_sample_looks_the_same_in_any_batch_bit_for_bit(settings: DataConfig) -> None:
    images, ids = some_images(300), np.arange(1000, 1300)
    module = augment(settings)
    whole = module(images, drawn(settings, ids, epoch=3))
    for size in (1, 7, 64, 299):
        for start in range(0, 300, size):
            part = slice(start, start + size)
            alone = module(images[part], drawn(settings, ids[part], epoch=3))
            assert torch.equal(alone, whole[part]), (size, start)
    backwards = module(images.flip(0), drawn(settings, ids[::-1], epoch=3))
    assert torch.equal(backwards.flip(0), whole)


def test_epochs_and_seeds_draw_differently() -> None:
    a, b, c = (drawn(ALL, range(1000), epoch, seed) for epoch, seed in ((0, 0), (1, 0), (0, 1)))
    for first, second in ((a, b), (a, c), (b, c)):
        assert (first[:, CROP_Y] == second[:, CROP_Y]).float().mean() < 0.2


def test_compiled_is_equal_to_eager_bit_for_bit() -> None:
    module = augment(ALL)
    images, draws = some_images(64), drawn(ALL, range(64))
    eager = module(images, draws)
    assert torch.equal(torch.compile(module)(images, draws), eager)


def test_one_channel() -> None:
    shape = (28, 28, 1)
    module = augment(ALL, shape)
    x = module(some_images(5, shape), drawn(ALL, range(5)))
    assert x.shape == (5, 1, 28, 28)


def test_resize_keeps_what_fits_and_averages_what_does_not() -> None:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert resize(x, 32) is x
    small = resize(x, 16)
    assert small.shape == (2, 3, 16, 16)
    assert small.var() < x.var() / 2
