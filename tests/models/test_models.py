"""Networks: shapes, and BatchNorm over groups."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from dist_train import models
from dist_train.checks import SIMPLE_MODELS
from dist_train.config import ModelName
from dist_train.errors import UserError
from dist_train.flops import forward_flops
from dist_train.models.inputs import Inputs
from dist_train.models.layers import ACTIVATIONS, Dropout, dropouts
from dist_train.models.norm import BatchNorm, grouped_norms
from dist_train.models.whitened import whitening_convolution


def inputs(shape: tuple[int, int, int] = (32, 32, 3), group: int = 0) -> Inputs:
    height, width, channels = shape

    def sample() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(200, channels, height, width, generator=generator).cumsum(-1)

    return Inputs(10, shape, sample, group)


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
    ("name", "parameters"),
    [
        ("lenet", 62_006),
        ("mlp", 3072 * 64 + 64 + 64 * 64 + 64 + 650),
        ("resnet9", 6_573_130),
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("wide_resnet28_10", 36_479_194),
    ],
)
def test_well_known_models_have_their_well_known_size(name: str, parameters: int) -> None:
    model = models.build(name, inputs())
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_widths_must_fit_the_architecture() -> None:
    assert models.build("cnn2", inputs(), (4, 8))(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(UserError, match=r"--model.widths 4,8,16: cnn2 takes 2 widths"):
        models.build("cnn2", inputs(), (4, 8, 16))


def test_hidden_layers_are_any_number() -> None:
    network = models.build("mlp", inputs((28, 28, 1)), hidden=(500, 300))
    assert [m.out_features for m in network.modules() if isinstance(m, nn.Linear)] == [500, 300, 10]
    cnn = models.build("cnn2", inputs(), hidden=(8, 8, 8))
    assert cnn(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(UserError, match=r"--model.hidden 8: resnet18 has no such layers"):
        models.build("resnet18", inputs(), hidden=(8,))


@pytest.mark.parametrize("name", SIMPLE_MODELS)
def test_every_simple_model_takes_every_activation_and_dropout(name: str) -> None:
    plain = models.build(name, inputs())
    for activation, layer in ACTIVATIONS.items():
        network = models.build(name, replace(inputs(), activation=activation, dropout=0.5))
        kind = type(layer())
        assert any(isinstance(m, kind) for m in network.modules()), activation
        if activation != "relu":
            assert not any(isinstance(m, nn.ReLU) for m in network.modules())
        assert len(dropouts(network)) == len(models.MODELS[name].hidden)
        # The names of the weights are the same, with every option.
        assert network.state_dict().keys() == plain.state_dict().keys()
    assert not dropouts(plain)


def test_cells_of_the_recurrent_network_and_what_they_cost() -> None:
    flops = {}
    for cell, kind, gates in (("lstm", nn.LSTM, 4), ("gru", nn.GRU, 3)):
        network = models.build("rnn", replace(inputs((28, 28, 1)), cell=cell))
        assert isinstance(network.cell, kind)
        flops[cell] = forward_flops(network, (28, 28, 1))
        head = 2 * (128 * 64 + 64 * 10)
        assert flops[cell] == 28 * 2 * gates * 128 * (28 + 128) + head


def test_dropout_is_a_function_of_the_sample() -> None:
    layer, other_layer = Dropout(0.25), Dropout(0.25, layer=1)
    keys = torch.randint(0, 2**24, (2000,), generator=torch.Generator().manual_seed(0)).float()
    x = torch.ones(2000, 256)
    layer.keys = other_layer.keys = keys
    out = layer(x)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.003)
    # Five standard deviations: neither units nor samples nor layers know of each other.
    dropped, other = (out == 0).double() - 0.25, (other_layer(x) == 0).double() - 0.25
    spread = 0.25 * 0.75
    assert (dropped.T @ dropped / 2000 / spread - torch.eye(256)).abs().max() < 0.16
    assert (dropped @ dropped.T / 256 / spread)[0, 1:].abs().max() < 5 / 16
    assert (dropped.T @ other / 2000 / spread).abs().max() < 5 / 2000**0.5 * 1.1
    # Any part of a batch, in any order, is treated as in the whole.
    layer.keys = keys[100:200].flip(0)
    assert torch.equal(layer(x[:100]), out[100:200].flip(0))
    assert torch.equal(layer.eval()(x), x)
    with pytest.raises(RuntimeError, match="keys"):
        Dropout(0.5)(x)


def test_whitening_makes_patches_uncorrelated() -> None:
    images = inputs().sample_images()
    conv = whitening_convolution(images)
    outputs = conv(images)[:, :12].detach().permute(0, 2, 3, 1).reshape(-1, 12).double()
    covariance = outputs.T @ outputs / len(outputs)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    assert off_diagonal.abs().max() < 1e-3
    assert covariance.diagonal().max() <= 1 + 1e-3
    torch.testing.assert_close(conv.weight[12:], -conv.weight[:12])


def test_the_whitened_network_begins_as_little_more_than_its_pooling() -> None:
    network = models.build("whitened", inputs(), widths=(64, 64, 64))
    first, *others = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert not first.weight.requires_grad
    assert first.bias is not None
    assert first.bias.requires_grad
    x = torch.randn(2, 64, 5, 5, generator=torch.Generator().manual_seed(0))
    for conv in others:  # as many channels come out unchanged as go in
        went_in = x[:, : conv.in_channels]
        torch.testing.assert_close(conv(went_in)[:, : conv.in_channels], went_in)
    norms = [m for m in network.modules() if isinstance(m, BatchNorm)]
    assert len(norms) == 6
    for norm in norms:
        assert not norm.weight.requires_grad
        assert torch.equal(norm.weight, torch.ones(64))
        assert norm.bias.requires_grad


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


@pytest.mark.parametrize("name", ["resnet9", "resnet18", "whitened_residual"])
def test_compiled_convolutions_get_their_gradients_channels_last(name: str) -> None:
    """Else a GPU first copies them into that format, which took a tenth of a step."""
    gradients: list[torch.Tensor] = []

    def gather(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        calls = graph.graph.find_nodes(
            op="call_function", target=torch.ops.aten.convolution_backward.default
        )
        gradients.extend(call.args[0].meta["val"] for call in calls)  # type: ignore[union-attr]
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=gather)  # of the gradient's part, too
    model = models.build(name, inputs(group=8)).to(memory_format=torch.channels_last)
    x = torch.randn(16, 3, 30, 30).to(memory_format=torch.channels_last)
    torch.compile(model, backend=backend)(x).sum().backward()
    assert len(gradients) >= 7
    for gradient in gradients:
        assert gradient.is_contiguous(memory_format=torch.channels_last), gradient.shape


@pytest.mark.parametrize("name", ["resnet9", "whitened_residual"])
def test_compiled_networks_have_the_gradients_of_eager_ones_in_bfloat16(name: str) -> None:
    """Compiled code rounds less often: what it compares need not be what was rounded and kept."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = models.build(name, inputs(group=8)).to(memory_format=torch.channels_last)
    x = torch.randn(16, 3, 30, 30).to(memory_format=torch.channels_last)

    def gradients(forward: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(x)
        logits.float().square().mean().backward()
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    for compiled, eager in zip(gradients(torch.compile(model)), gradients(model), strict=True):
        assert (compiled - eager).norm() < 0.4 * eager.norm()  # each is that far from float32's
