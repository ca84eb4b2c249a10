"""Networks: shapes, and BatchNorm over groups."""

import pytest
import torch
from torch import nn

from dist_train import models
from dist_train.config import ModelName
from dist_train.errors import UserError
from dist_train.models.norm import BatchNorm, grouped_norms
from dist_train.models.whitened import whitening_convolution


def inputs(shape: tuple[int, int, int] = (32, 32, 3), group: int = 0) -> models.Inputs:
    height, width, channels = shape

    def sample() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(200, channels, height, width, generator=generator).cumsum(-1)

    return models.Inputs(10, shape, sample, group)


def test_names_are_those_of_the_config() -> None:
    assert set(ModelName.__args__) == set(models.MODELS)


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1)], ids=str)
@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_maps_images_to_logits_and_learns(
    name: str, shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    height, width, channels = shape
    model = models.build(name, inputs(shape))
    x = torch.randn(4, channels, height, width)
    logits = model(x)
    assert logits.shape == (4, 10)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name


@pytest.mark.parametrize(
    ("name", "parameters"), [("lenet", 62_006), ("resnet18", 11_173_962), ("resnet9", 6_573_130)]
)
def test_well_known_models_have_their_well_known_size(name: str, parameters: int) -> None:
    model = models.build(name, inputs())
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_widths_must_fit_the_architecture() -> None:
    assert models.build("cnn2", inputs(), (4, 8))(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(UserError, match=r"--model.widths 4,8,16: cnn2 takes 2 widths"):
        models.build("cnn2", inputs(), (4, 8, 16))


def test_whitening_makes_patches_uncorrelated() -> None:
    images = inputs().sample_images()
    conv = whitening_convolution(images)
    outputs = conv(images)[:, :12].detach().permute(0, 2, 3, 1).reshape(-1, 12).double()
    covariance = outputs.T @ outputs / len(outputs)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    assert off_diagonal.abs().max() < 1e-3
    assert covariance.diagonal().max() <= 1 + 1e-3


def test_batch_norm_over_groups_normalizes_each_group_on_its_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 5, 4, 4) * 3 + 1
    grouped = BatchNorm(5, group=4)
    out = grouped(x)
    parts = [nn.BatchNorm2d(5)(part) for part in x.split(4)]
    torch.testing.assert_close(out, torch.cat(parts))


def test_one_group_is_torchs_own_batch_norm_also_in_what_it_remembers() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 5, 4, 4) * 3 + 1
    grouped, plain = BatchNorm(5, group=8), nn.BatchNorm2d(5)
    for _ in range(3):
        torch.testing.assert_close(grouped(x), plain(x))
    torch.testing.assert_close(grouped.running_mean, plain.running_mean)
    torch.testing.assert_close(grouped.running_var, plain.running_var)
    torch.testing.assert_close(grouped.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("slices", [(4, 8), (0, 12), (8, 4)])
def test_the_mean_of_the_ranks_memories_is_that_of_one_process(slices: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 5, 4, 4) * 3 + 1
    one = BatchNorm(5, group=4)
    one(x)
    ranks = [BatchNorm(5, group=4), BatchNorm(5, group=4)]
    for rank, part, size in zip(ranks, x.split(slices), slices, strict=True):
        (norm,) = grouped_norms(rank)
        norm.rank_share = size * 2 / 12
        rank(part if size else x[:1])  # an empty slice is stood in for by a sample of share 0
    for name, expected in one.named_buffers():
        if expected.is_floating_point():
            mean = torch.stack([dict(rank.named_buffers())[name] for rank in ranks]).mean(0)
            torch.testing.assert_close(mean, expected)
