"""Optimizers, their parameter groups, and schedules."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close

from dist_train import optim
from dist_train.config import OptimConfig
from dist_train.optim.losses import LOSSES, probabilities
from dist_train.optim.muon import Muon, Orthogonalize, orthogonalize, shared_out
from dist_train.optim.schedules import factor, reduce_on_plateau
from dist_train.optim.update import load, set_learning_rates


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 10)
    )


def built(network: nn.Module, optimizer: object, **more: Any) -> list[torch.optim.Optimizer]:
    head, recorded = more.pop("head", ()), more.pop("recorded", False)
    settings = OptimConfig(
        optimizer=optimizer,  # type: ignore[arg-type]
        learning_rate=0.1,
        bias_learning_rate=0.02,
        weight_decay=0.01,
        muon_learning_rate=0.05,
        **more,
    )
    return optim.build(network, settings, head=head, recorded=recorded)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "muon"])
def test_every_trained_parameter_is_in_one_group(optimizer: str) -> None:
    network = model()
    frozen = network[0].bias  # type: ignore[index]
    frozen.requires_grad_(False)
    groups = [g for o in built(network, optimizer) for g in o.param_groups]
    seen = [id(p) for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in network.parameters() if p is not frozen)


def test_a_network_of_filters_alone_has_no_other_optimizer_than_muon() -> None:
    (only,) = built(nn.Conv2d(3, 10, 3, bias=False), "muon")
    assert isinstance(only, Muon)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "muon"])
def test_weights_decay_and_biases_do_not(optimizer: str) -> None:
    for group in (g for o in built(model(), optimizer) for g in o.param_groups):
        dimensions = {parameter.ndim for parameter in group["params"]}
        if dimensions == {1}:
            assert (group["peak_lr"], group["weight_decay"]) == (0.02, 0.0)
        elif "weight_decay" in group:
            assert (group["peak_lr"], group["weight_decay"]) == (0.1, 0.01)
        else:
            assert dimensions == {4}
            assert group["peak_lr"] == 0.05


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 16, 16)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(*shape, generator=generator)
    values = torch.linalg.svdvals(orthogonalize(matrices, steps=5))
    assert values.min() > 0.3
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    alignment = (orthogonalize(matrices, steps=5) * (u @ v)).sum((1, 2)) / values.sum(1)
    assert alignment.min() > 0.9


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_out_the_matrices(ranks: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(  # type: ignore[no-untyped-call]
        assert_shared_out, (ranks, str(tmp_path / "store")), nprocs=ranks
    )


def assert_shared_out(rank: int, ranks: int, store: str) -> None:
    """Any number of matrices, more than ranks or fewer, wide or tall."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for count in range(1, 8):
        shapes = ((count, 8, 20), (count, 20, 8))
        stacks = [torch.randn(*shape, generator=generator) for shape in shapes]
        for found, stack in zip(shared_out(Orthogonalize(), stacks), stacks, strict=True):
            # Matrices by themselves, so that no two are multiplied in another order.
            alone = torch.cat([orthogonalize(matrix[None]) for matrix in stack])
            torch.testing.assert_close(found, alone, rtol=1e-2, atol=1e-2)
    dist.destroy_process_group()


def test_muon_keeps_filters_at_their_norm_before_it_moves_them() -> None:
    torch.manual_seed(0)
    filters = nn.Parameter(3 * torch.randn(8, 4, 3, 3))
    filters.grad = torch.randn(8, 4, 3, 3)
    before = filters.detach().clone() * math.sqrt(8) / filters.detach().norm()
    Muon([filters], lr=0.5, momentum=0.0).step()
    moved = orthogonalize(filters.grad.reshape(1, 8, -1)).view_as(filters)
    torch.testing.assert_close(filters.detach(), before - 0.5 * moved)


def test_muon_does_the_same_for_a_stack_as_for_each_filter_alone() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(8, 4, 3, 3) for _ in range(3)]
    together = [nn.Parameter(weight.clone()) for weight in weights]
    alone = [nn.Parameter(weight.clone()) for weight in weights]
    optimizers = [Muon(together, lr=0.1, momentum=0.6)]
    optimizers += [Muon([p], lr=0.1, momentum=0.6) for p in alone]
    for step in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = b.grad = torch.full_like(a, step + 1.0) + a.detach()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
        assert a.norm().item() == pytest.approx(math.sqrt(8), rel=0.5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "muon"])
def test_every_optimizer_lowers_the_loss(optimizer: str) -> None:
    network = model()
    optimizers = built(network, optimizer)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, 5, 5, generator=generator)
    y = torch.randint(0, 10, (32,), generator=generator)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_rate_falls_when_the_loss_does_not() -> None:
    groups: list[dict[str, Any]] = [{"peak_lr": 1.0}, {"peak_lr": 2.0}]
    rates = []
    for loss in (3.0, 2.0, 2.5, 2.0, 2.1, 1.9, 2.0, math.nan, 2.0, 2.0, 2.0, 2.0):
        reduce_on_plateau(groups, loss, decay=0.5, patience=2)
        rates.append(groups[0]["peak_lr"])
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    assert groups[1]["peak_lr"] == 0.25


def test_the_backbone_has_a_rate_of_its_own() -> None:
    network = model()
    for optimizer in ("sgd", "muon"):
        optimizers = built(
            network, optimizer, backbone_learning_rate=0.05, head=("4.weight", "4.bias")
        )
        rates = {
            id(p): group["peak_lr"]
            for each in optimizers
            for group in each.param_groups
            for p in group["params"]
        }
        of_name = {name: rates[id(p)] for name, p in network.named_parameters()}
        filters = 0.025 if optimizer == "muon" else 0.05
        expected = {"0.weight": filters, "0.bias": 0.01, "1.weight": 0.01, "1.bias": 0.01}
        assert of_name == pytest.approx({**expected, "4.weight": 0.1, "4.bias": 0.02})


def test_losses_are_those_of_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    for smoothing in (0.0, 0.2):
        target = torch.full((6, 4), smoothing / 4)
        target[torch.arange(6), labels] += 1 - smoothing
        probability = torch.sigmoid(logits)
        expected = {
            "cross_entropy": -(target * logits.log_softmax(1)).sum(1),
            "mse": ((logits - target) ** 2).mean(1),
            "bce": -(target * probability.log() + (1 - target) * (1 - probability).log()).mean(1),
        }
        assert expected.keys() == LOSSES.keys()
        for name, loss in LOSSES.items():
            torch.testing.assert_close(loss(logits, labels, smoothing), expected[name])


def test_probabilities_belong_to_the_loss() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    assert_close(probabilities(logits, "cross_entropy"), logits.softmax(1))
    assert_close(probabilities(logits, "mse"), torch.tensor([[1.0, 0.0, 0.0]]), atol=1e-5, rtol=0)
    assert_close(probabilities(logits, "bce"), logits.sigmoid() / logits.sigmoid().sum())


def test_schedules_at_their_landmarks() -> None:
    def at(step: int, schedule: str, **options: float) -> float:
        settings = OptimConfig(schedule=schedule, **options)  # type: ignore[arg-type]
        return factor(step, 100, settings)

    assert [at(s, "constant") for s in (0, 50, 99)] == [1, 1, 1]
    assert [at(s, "linear") for s in (0, 50, 100)] == [1, 0.5, 0]
    assert at(100, "linear", final_fraction=0.1) == pytest.approx(0.1)
    assert [at(s, "cosine") for s in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert at(75, "cosine", final_fraction=0.2) == pytest.approx(
        0.2 + 0.8 * (1 - math.cos(math.pi / 4)) / 2
    )
    assert at(99, "exponential") == pytest.approx(0.01**0.99)
    assert at(51, "exponential") / at(50, "exponential") == pytest.approx(0.01**0.01)
    steps = [at(s, "step", milestones=(0.5, 0.75), decay=0.2) for s in (0, 49, 50, 74, 75, 99)]
    assert steps == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])
    assert at(80, "plateau") == 1
    for schedule, half in (("triangle", 0.5), ("one_cycle", 0.5)):
        curve = [at(s, schedule, start_fraction=0.2, final_fraction=0.07) for s in range(101)]
        assert curve.index(max(curve)) == 30  # unless told otherwise
        assert max(curve) == 1
        assert curve[0] == pytest.approx(0.2, abs=0.03)
        assert curve[15] == pytest.approx(0.2 + 0.8 * half, abs=0.05)
        assert curve[65] == pytest.approx(0.07 + 0.93 * half)
        assert curve[100] == pytest.approx(0.07)
    assert at(5, "one_cycle") < at(5, "triangle")
    warm = [at(s, "cosine", warmup=0.1) for s in range(12)]
    assert warm[:10] == pytest.approx([(s + 1) / 11 for s in range(10)])
    assert warm[10] == max(warm) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])  # those of torch that a CPU has as well
@pytest.mark.parametrize("first", [False, True])
def test_optimizers_whose_steps_are_recorded_step_alike_and_hand_over(
    optimizer: str, first: bool
) -> None:
    """Three steps with one kind, and three with the other from the first one's checkpoint."""
    settings = OptimConfig(schedule="linear")
    images = torch.randn(64, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 10

    def step(network: nn.Module, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
        for number in steps:
            set_learning_rates(optimizers, settings, number, total_steps=6)
            nn.functional.cross_entropy(network(images), labels).backward()
            for each in optimizers:
                each.step()
                each.zero_grad()

    expected, network = model(), model()
    step(expected, built(expected, optimizer), range(6))
    before = built(network, optimizer, recorded=first)
    step(network, before, range(3))
    after = built(network, optimizer, recorded=not first)
    for own, theirs in zip(after, before, strict=True):
        load(own, theirs.state_dict())
    for group, other in zip(after[0].param_groups, before[0].param_groups, strict=True):
        assert torch.is_tensor(group["lr"]) == bool(group["fused"]) == (not first)
        assert float(group["lr"]) == pytest.approx(float(other["lr"]))
        assert float(group["lr"]) < group["peak_lr"]
    step(network, after, range(3, 6))
    for parameter, other in zip(network.parameters(), expected.parameters(), strict=True):
        assert_close(parameter, other)
