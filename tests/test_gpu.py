"""What only a GPU can show: no step waits for it, and its numbers are those of the CPU."""

import os
import warnings
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Literal

import pytest
import torch

from dist_train.config import CheckpointConfig, Config, ModelConfig, OptimConfig
from dist_train.cuda_graphs import Recording
from dist_train.options import parse
from dist_train.train import train
from tests import test_recipes
from tests.conftest import (
    SMALL,
    assert_same_weights,
    cut_after,
    folder,
    losses,
    metrics,
    summary,
    torchrun,
    weights,
)

DEVICE = os.environ.get("DIST_TRAIN_TEST_DEVICE", "cuda")  # cpu: to try the tests themselves

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def on_gpu(small: Config) -> Config:
    """Ten steps of a network with all that is special about the fast ones, at small rates."""
    return replace(
        small,
        data=replace(
            small.data, cutout=8, resolutions=(24,), resolution_until=(0.5,), drop_last=True
        ),
        model=ModelConfig(name="whitened", widths=(8, 16, 16), batch_norm_group=16),
        optim=OptimConfig(
            optimizer="muon", learning_rate=0.01, bias_learning_rate=0.01,
            muon_learning_rate=0.001, nesterov=True, gradient_clip=10.0,
        ),
        train=replace(small.train, max_steps=10, average_tail=0.3),
        runtime=replace(small.runtime, device=DEVICE, compile=False),
    )  # fmt: skip


def share_of_the_way(one: Config, other: Config) -> float:
    """How far apart the weights of two runs are, in terms of how far the other one's have come."""
    begun = replace(other, name=f"{other.name}-begun", train=replace(other.train, max_steps=1))
    train(begun)
    there, start, here = (weights(config) for config in (other, begun, one))
    trained = [name for name in there if "running" not in name and "num_batches" not in name]

    def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return sum((a[name] - b[name]).square().sum().item() for name in trained) ** 0.5

    return distance(here, there) / distance(start, there)


def assert_learnt_the_same(one: Config, other: Config) -> None:
    """By their weights: ten small steps change losses less than a step too few would."""
    assert share_of_the_way(one, other) < 0.1


needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="a CPU has nothing that this is about")
recorded_or_not = pytest.mark.parametrize("graphs", [False, pytest.param(True, marks=needs_gpu)])


@needs_gpu
@recorded_or_not
@pytest.mark.parametrize("loader", ["resident", "stream"])
def test_no_step_waits_for_the_device(
    on_gpu: Config, loader: Literal["resident", "stream"], graphs: bool
) -> None:
    """Lines of metrics, epochs and evaluations may wait: as often in few steps as in many."""
    if loader == "stream":
        pytest.importorskip("ffcv")

    def waits(batch_size: int) -> list[str]:
        config = replace(
            on_gpu,
            name=f"batches-of-{batch_size}",
            runtime=replace(on_gpu.runtime, cuda_graphs=graphs),
            data=replace(on_gpu.data, loader=loader, batch_size=batch_size),
            train=replace(on_gpu.train, epochs=1, max_steps=None, log_every=1000),
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train(config)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return [
            f"{warning.filename}:{warning.lineno}"
            for warning in caught
            if "synchronizing CUDA operation" in str(warning.message)
        ]

    few, many = waits(96), waits(16)  # 5 steps and 31
    assert few, "torch tells of no wait at all: this test sees nothing"
    assert len(many) == len(few), sorted(set(many))


@pytest.mark.parametrize(
    ("precision", "close"),
    [("fp32", 5e-3), ("bf16", 3e-2), pytest.param("fp16", 1e-2, marks=needs_gpu)],
)
def test_the_curve_is_that_of_the_cpu(
    on_gpu: Config, precision: Literal["fp32", "bf16", "fp16"], close: float
) -> None:
    on_cpu = replace(on_gpu, name="cpu", runtime=replace(on_gpu.runtime, device="cpu"))
    config = replace(on_gpu, runtime=replace(on_gpu.runtime, precision=precision))
    train(on_cpu)
    result = train(config)
    assert result["precision"] == precision
    assert losses(config) == pytest.approx(losses(on_cpu), rel=close)


@recorded_or_not
def test_a_run_goes_on_bit_for_bit_where_that_is_asked_for(on_gpu: Config, graphs: bool) -> None:
    whole = replace(
        on_gpu,
        runtime=replace(on_gpu.runtime, deterministic=True, cuda_graphs=graphs),
        checkpoint=CheckpointConfig(every_steps=5, keep=10),
    )
    train(whole)
    resumed = cut_after(whole, step=5)
    assert train(resumed)["resumed_from_step"] == [5]
    assert_same_weights(whole, resumed)
    assert losses(resumed) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize("select", [1.0, 0.5])
@pytest.mark.parametrize(
    ("compile", "graphs"),
    [
        (True, False),
        pytest.param(False, True, marks=needs_gpu),
        pytest.param(True, True, marks=needs_gpu),
    ],
)
def test_compiled_and_recorded_runs_draw_the_eager_curve_on_a_gpu(
    on_gpu: Config, select: float, compile: bool, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if select < 1:  # as cifar10_95 does: a proxy, compiled too, chooses the images
        on_gpu = replace(
            on_gpu,
            model=replace(on_gpu.model, name="whitened_residual", batch_norm_group=8),
            train=replace(on_gpu.train, select=select, select_group=16, proxy_widths=(4, 8, 8)),
            # Which images are the hardest must not depend on the last bits.
            optim=replace(on_gpu.optim, muon_learning_rate=0.0001),
        )
    runtime = replace(on_gpu.runtime, compile=compile, cuda_graphs=graphs)
    faster = replace(on_gpu, name="faster", runtime=runtime)
    train(on_gpu)
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(
        torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph))
    )
    result = train(faster)
    assert len(replays) == (result["steps"] if graphs else 0)
    assert losses(faster) == pytest.approx(losses(on_gpu), rel=5e-3)
    assert_learnt_the_same(faster, on_gpu)


@needs_gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_a_recorded_step_of_each_optimizer_is_that_of_an_eager_one(
    on_gpu: Config, optimizer: Literal["sgd", "adam", "adamw", "rmsprop"]
) -> None:
    on_gpu = replace(on_gpu, optim=OptimConfig(optimizer=optimizer, learning_rate=0.001))
    recorded = replace(on_gpu, name="recorded", runtime=replace(on_gpu.runtime, cuda_graphs=True))
    train(on_gpu)
    train(recorded)
    assert_learnt_the_same(recorded, on_gpu)


@needs_gpu
def test_a_recorded_run_that_goes_back_goes_on(
    on_gpu: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        on_gpu,
        train=replace(on_gpu.train, non_finite="skip", log_every=2),
        runtime=replace(on_gpu.runtime, cuda_graphs=True),
        checkpoint=CheckpointConfig(every_steps=3),
    )
    launches = count()
    launch = Recording.__call__

    def without_a_loss_once(recording: Recording, *inputs: torch.Tensor) -> list[torch.Tensor]:
        loss, correct, norm = launch(recording, *inputs)
        return [loss * torch.nan if next(launches) == 6 else loss, correct, norm]

    monkeypatch.setattr(Recording, "__call__", without_a_loss_once)
    result = train(config)
    assert (result["skipped_steps"], result["steps"]) == ([6], 10)
    monkeypatch.undo()
    whole = replace(config, name="whole", train=replace(config.train, non_finite="stop"))
    train(whole)
    # One step of ten is missing.
    assert 0.01 < share_of_the_way(config, whole) < 0.5


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [r for r in test_recipes.OF_EACH_KIND.split() if "transfer" not in r]
)
def test_recipes_of_each_kind_can_be_recorded(recipe: str, tmp_path: Path, cache: Path) -> None:
    flags = ("--output", str(tmp_path), "--runtime.device", DEVICE, "--runtime.compile", "false")
    eager, _ = parse([*test_recipes.small(recipe, cache, *flags)], "train")
    recorded = replace(eager, name="recorded", runtime=replace(eager.runtime, cuda_graphs=True))
    train(eager)
    train(recorded)
    assert_learnt_the_same(recorded, eager)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("compile", ["false", "true"])
def test_processes_with_a_gpu_each(
    compile: str, processes: int, tmp_path: Path, cache: Path
) -> None:
    if DEVICE == "cuda" and torch.cuda.device_count() < processes:
        pytest.skip(f"fewer than {processes} GPUs")
    flags = [
        *("train", "cnn3", *SMALL, "--data.cache", str(cache), "--train.log_every", "1"),
        *("--train.max_steps", "10", "--optim.learning_rate", "0.02", "--optim.warmup", "0"),
        *("--runtime.device", DEVICE, "--runtime.compile", compile),
    ]
    for ranks in {1, processes}:
        assert torchrun(ranks, *flags, "--name", str(ranks), cwd=tmp_path).returncode == 0
    one, several = (tmp_path / "runs" / str(ranks) for ranks in (1, processes))
    assert summary(several)["world_size"] == processes
    for a, b in zip(metrics(one), metrics(several), strict=True):
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=5e-3)


def test_a_gpu_tells_its_memory_and_its_name(on_gpu: Config) -> None:
    result = train(on_gpu)
    assert result["peak_memory_bytes"] > 1e6
    assert result["device"] == (torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu")
    assert metrics(folder(on_gpu))[-1]["perf/memory_bytes"] > 1e6
