"""Test-time augmentation: which views, of which images."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dist_train.config import DataConfig, RuntimeConfig
from dist_train.data.augment import Augment
from dist_train.data.batches import EvaluationData
from dist_train.data.resident import ResidentLoader
from dist_train.evaluate import (
    Evaluation,
    batch_shapes,
    evaluate,
    evaluate_with_tta,
    predict,
    views,
)
from dist_train.runtime import start_runtime

NOWHERE = Path("not-read")


def some_pixels(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(number, 3, 6, 6, generator=generator)


def test_views_are_shifted_and_mirrored_and_the_centred_ones_count_twice() -> None:
    x = some_pixels(2)
    weights, shown = zip(*views(x, "shift"), strict=True)
    assert weights == (0.25, 0.25, 0.125, 0.125, 0.125, 0.125)
    plain, mirrored, down, down_mirrored, up, up_mirrored = shown
    assert torch.equal(plain, x)
    assert torch.equal(mirrored, x.flip(-1))
    assert torch.equal(down[..., 1:, 1:], x[..., :-1, :-1])
    assert torch.equal(up[..., :-1, :-1], x[..., 1:, 1:])
    assert torch.equal(down[..., 0, 1:], x[..., 1, :-1])  # what comes in is a reflection
    assert torch.equal(down_mirrored, down.flip(-1))
    assert torch.equal(up_mirrored, up.flip(-1))
    assert [weight for weight, _ in views(x, "mirror")] == [0.5, 0.5]


class Corner(nn.Module):
    """Says the colour of the first pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 0, 0]


def test_predictions_are_the_weighted_mean_over_the_views() -> None:
    x = some_pixels(5)
    torch.testing.assert_close(predict(Corner(), x), x[:, :, 0, 0])
    torch.testing.assert_close(
        predict(Corner(), x, tta="mirror"), (x[..., 0, 0] + x[..., 0, 5]) / 2
    )
    seen = (x[..., 0, 0] + x[..., 0, 5]) / 4
    seen = seen + (x[..., 1, 1] + x[..., 1, 4]) / 4  # by both shifts, one of them a reflection
    torch.testing.assert_close(predict(Corner(), x, tta="shift"), seen)


class Always(nn.Module):
    """The same answer to every image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 0.0, 9.0]).repeat(len(x), 1)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.3, [1, 4, 7]), (0.21, [1, 4, 7]), (1.0, list(range(10)))]
)
def test_only_the_least_sure_images_are_looked_at_again(share: float, expected: list[int]) -> None:
    images = np.zeros((12, 6, 6, 3), np.uint8)
    augment = Augment(DataConfig(), mean=(0.5,) * 3, std=(0.5,) * 3, image_shape=(6, 6, 3))
    with start_runtime(RuntimeConfig(device="cpu", precision="fp32")) as runtime:
        data = EvaluationData(
            "test",
            NOWHERE,
            ResidentLoader(images, batch_size=4, device=runtime.device),
            torch.zeros(12, dtype=torch.int64),
            np.arange(2, 12),  # ten of the twelve
            4,
        )
        sure = torch.tensor([5.0, 0.0, 0.0])
        logits = sure.repeat(10, 1)
        logits[[1, 4, 7]] = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.1, 0.1], [0.3, 0.0, 0.1]])
        plain = Evaluation(logits, data.labels[2:])
        again = evaluate_with_tta(
            plain, Always(), augment, data, runtime, tta="mirror", share=share
        )
        changed = (again.logits[:, 2] == 9).nonzero().flatten().tolist()
        assert changed == expected
        assert torch.equal(again.logits[0], sure) or share == 1
        whole = evaluate(Always(), augment, data, runtime, tta="mirror")
        assert whole.samples == 10
        assert whole.accuracy == 0


def batch_sizes(data: EvaluationData, world_size: int) -> set[int]:
    """Of all ranks, in an evaluation of all these images."""
    shares = np.array_split(data.ids, world_size)
    first = range(0, len(data.ids), data.batch_size)
    return {len(own[start : start + data.batch_size]) for own in shares for start in first} - {0}


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_a_few_images_have_batches_of_all_sizes(world_size: int, share: float) -> None:
    loader = ResidentLoader(
        np.zeros((1, 6, 6, 3), np.uint8), batch_size=4, device=torch.device("cpu")
    )
    for images in range(1, 80):
        data = EvaluationData("test", NOWHERE, loader, torch.zeros(80), np.arange(images), 4)
        again = data.first(math.ceil(share * images))
        few = batch_shapes(data, world_size, share=share)
        tried = set[int]().union(*(batch_sizes(some, world_size) for some in few))
        assert tried == batch_sizes(data, world_size) | batch_sizes(again, world_size), images
        assert all(len(some.ids) <= 4 * world_size for some in few)
