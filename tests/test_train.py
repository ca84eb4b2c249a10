"""The loop, end to end: what it leaves, with any loader, after any resume."""

import json
import math
import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dist_train import build, models
from dist_train.checkpoint import Checkpoints
from dist_train.config import (
    CheckpointConfig,
    Config,
    ModelConfig,
    OptimConfig,
)
from dist_train.data.prepare import prepare_dataset
from dist_train.errors import UserError
from dist_train.evaluate_run import evaluate_run
from dist_train.export import export
from dist_train.train import train
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

GOLDEN = Path(__file__).parent / "golden_losses.json"


def test_a_run_leaves_its_whole_story_in_its_directory(small: Config) -> None:
    start = time.perf_counter()
    result = train(small)
    elapsed = time.perf_counter() - start
    assert result == summary(folder(small))
    lines = metrics(folder(small))
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert [line["step"] for line in lines if "test/accuracy" in line] == [8, 16]
    assert result["steps"] == 16
    assert result["epochs"] == 2
    assert result["test_accuracy"] == lines[-1]["test/accuracy"]
    assert result["test_accuracy_tta"] is None
    assert result["validation_accuracy"] is None
    assert result["world_size"] == 1
    assert result["parameters"] == sum(w.numel() for w in weights(small).values())
    phases = result["seconds"]
    assert phases["total"] == pytest.approx(
        sum(v for k, v in phases.items() if k not in ("total", "data_wait")), abs=0.01
    )
    # Nothing of what this process did before is counted.
    assert phases["total"] <= elapsed
    assert json.loads((folder(small) / "config.json").read_text())["train"]["epochs"] == 2
    assert not [p for p in folder(small).rglob("*") if p.name.endswith(".tmp")]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(small: Config) -> None:
    again, other = replace(small, name="again"), replace(small, name="other", seed=1)
    for config in (small, again, other):
        train(config)
    assert_same_weights(small, again)
    assert not torch.equal(weights(small)["0.weight"], weights(other)["0.weight"])


def test_loaders_give_the_same_run(small: Config) -> None:
    pytest.importorskip("ffcv")
    streamed = replace(small, name="streamed", data=replace(small.data, loader="stream"))
    train(small)
    train(streamed)
    assert_same_weights(small, streamed)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_a_run_cut_short_goes_on_to_the_same_weights(small: Config, optimizer: Any) -> None:
    # Cut in mid-epoch: the state that is left is the checkpoint of step 5.
    small = replace(
        small,
        model=ModelConfig(name="whitened", widths=(8, 8, 8)),
        optim=OptimConfig(optimizer=optimizer, learning_rate=0.01, momentum=0.8),
        checkpoint=CheckpointConfig(every_steps=5, keep=10),
    )
    train(small)
    resumed = cut_after(small, step=5)
    result = train(resumed)
    assert result["resumed_from_step"] == [5]
    assert_same_weights(small, resumed)
    assert losses(resumed) == losses(small)
    assert [line["step"] for line in metrics(folder(resumed))] == list(range(1, 17))


def test_the_last_weights_are_averaged_with_their_neighbours(small: Config) -> None:
    small = replace(small, optim=replace(small.optim, schedule="constant", warmup=0.0))

    def after(steps: int, average_tail: float = 0.0) -> dict[str, torch.Tensor]:
        settings = replace(small.train, max_steps=steps, average_tail=average_tail)
        config = replace(small, name=f"{steps}-{average_tail}", train=settings)
        result = train(config)
        assert result["test_accuracy"] == metrics(folder(config))[-1]["test/accuracy"]
        return weights(config)

    averaged, before, last = after(10, 0.2), after(9), after(10)
    for name, mean in averaged.items():
        if mean.is_floating_point() and "running" not in name:
            torch.testing.assert_close(mean, (before[name] + last[name]) / 2)


def test_filters_are_learnt_from_jpeg_as_well(small: Config) -> None:
    def strongest(storage: Literal["raw", "jpeg"]) -> torch.Tensor:
        config = replace(small, data=replace(small.data, storage=storage, loader="auto"))
        prepared = prepare_dataset(config.data)
        augment = build.augmentation(config.data, prepared.manifest)
        network = build.network(config, prepared, augment)
        return network.state_dict()["0.weight"][0].flatten()

    small = replace(small, model=ModelConfig(name="whitened", widths=(8, 8, 8)))
    of_raw, of_jpeg = strongest("raw"), strongest("jpeg")
    assert not torch.equal(of_raw, of_jpeg)
    alike = torch.cosine_similarity(of_raw, of_jpeg, dim=0)
    assert alike.abs() > 0.99  # an eigenvector has either sign


def test_a_run_on_the_hardest_samples_goes_on_exactly(small: Config) -> None:
    small = replace(
        small,
        data=replace(small.data, drop_last=True),
        model=ModelConfig(name="whitened", widths=(8, 8, 8)),
        checkpoint=CheckpointConfig(every_steps=5, keep=10),
        train=replace(
            small.train, select=0.5, select_group=32, proxy_widths=(4, 4, 4), average_tail=0.5,
            tta="shift", tta_share=0.25,
        ),
    )  # fmt: skip
    whole = train(small)
    resumed = cut_after(small, step=10)
    assert train(resumed)["resumed_from_step"] == [10]
    assert_same_weights(small, resumed)
    assert losses(resumed) == losses(small)
    assert whole["test_accuracy_tta"] is not None
    evaluated = evaluate_run(folder(small))
    assert evaluated["test_accuracy_tta"] == whole["test_accuracy_tta"]


def test_the_proxy_learns_every_so_many_steps(small: Config) -> None:
    small = replace(
        small,
        data=replace(small.data, drop_last=True),
        model=ModelConfig(name="whitened", widths=(8, 8, 8)),
        optim=replace(small.optim, schedule="constant", warmup=0.0),
        checkpoint=CheckpointConfig(every_steps=1, keep=10),
        train=replace(
            small.train, max_steps=7, select=0.5, select_group=32, proxy_widths=(4, 4, 4),
            proxy_every=3,
        ),
    )  # fmt: skip
    train(small)
    heads = []
    checkpoints = Checkpoints(folder(small) / "checkpoints", keep=10)
    while (state := checkpoints.load_latest()) is not None:
        heads.insert(0, state.proxy["model"]["26.weight"])
        (checkpoints.folder / f"step-{state.step:09d}.pt").unlink()
    learnt = [not torch.equal(a, b) for a, b in pairwise(heads)]
    assert learnt == [False, False, True, False, False, True]  # steps 2 to 7; the first is before


def test_a_proxy_that_does_not_fit_is_named_by_its_own_flag(small: Config) -> None:
    small = replace(
        small,
        data=replace(small.data, drop_last=True),
        model=ModelConfig(name="resnet18", widths=(8, 8, 8, 8)),
        train=replace(small.train, select=0.5, select_group=32, proxy_widths=(4, 4, 4)),
    )
    with pytest.raises(UserError, match=r"--train\.proxy_widths 4,4,4: resnet18 takes 4 widths"):
        train(small)


def test_a_rate_that_looks_at_the_results_goes_on_exactly(small: Config) -> None:
    small = replace(
        small,
        model=ModelConfig(name="mlp", hidden=(64,), dropout=0.25),
        optim=OptimConfig(
            optimizer="adam", learning_rate=0.003, schedule="plateau", patience=0, decay=0.5
        ),
        train=replace(small.train, epochs=9),
        checkpoint=CheckpointConfig(every_steps=51, keep=10),
    )
    train(small)
    lines = metrics(folder(small))
    rates = [line["optim/lr"] for line in lines]
    # Lowered after each evaluation, of which there is one in 8 steps, that was no better.
    rate, lowest = 0.003, math.inf
    for step, line in enumerate(lines):
        assert line["optim/lr"] == pytest.approx(rate), step
        loss = line.get("test/loss", -math.inf)
        rate = rate / 2 if loss >= lowest else rate
        lowest = min(lowest, line.get("test/loss", math.inf))
    # The first time after the checkpoint, because of what was seen before it.
    assert rates[51] == 0.003
    assert rates[56] == 0.0015
    resumed = replace(small, name="resumed")
    there = folder(resumed) / "checkpoints"
    there.mkdir(parents=True)
    shutil.copy(folder(small) / "checkpoints" / "step-000000051.pt", there)
    shutil.copy(folder(small) / "metrics.jsonl", folder(resumed))
    assert train(resumed)["resumed_from_step"] == [51]
    assert_same_weights(small, resumed)
    assert [line["optim/lr"] for line in metrics(folder(resumed))] == rates


def test_options_of_model_and_loss_change_what_is_trained(small: Config) -> None:
    small = replace(small, train=replace(small.train, max_steps=2))
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "activation": {"model": ModelConfig(name="cnn2", activation="tanh")},
        "dropout": {"model": ModelConfig(name="cnn2", dropout=0.5)},
        "mse": {"train": replace(small.train, loss="mse")},
        "bce": {"train": replace(small.train, loss="bce")},
        "rmsprop": {"optim": OptimConfig(optimizer="rmsprop", learning_rate=0.001)},
        "nesterov": {"optim": replace(small.optim, nesterov=True)},
        "no_momentum": {"optim": replace(small.optim, momentum=0.0)},
    }
    configs = {name: replace(small, name=name, **change) for name, change in variants.items()}
    curves = {}
    for name, config in configs.items():
        train(config)
        curves[name] = tuple(losses(config)) + tuple(weights(config)["0.weight"].flatten().tolist())
    assert len(set(curves.values())) == len(variants)
    # At the first step ten classes are a guess, whatever the loss.
    guesses = {"plain": 2.303, "bce": 0.693, "mse": 0.1}
    for name, guess in guesses.items():
        assert losses(configs[name])[0] == pytest.approx(guess, rel=0.1), name


def test_a_fraction_of_the_labels_makes_shorter_epochs(small: Config) -> None:
    result = train(replace(small, data=replace(small.data, fraction=0.2)))
    assert result["steps"] == 4  # 100 images in steps of 64, twice


def test_a_damaged_checkpoint_is_passed_over(
    small: Config, caplog: pytest.LogCaptureFixture
) -> None:
    small = replace(small, checkpoint=CheckpointConfig(every_steps=5, keep=10))
    train(small)
    resumed = replace(small, name="resumed")
    shutil.copytree(folder(small), folder(resumed))
    (folder(resumed) / "summary.json").unlink()
    for path, content in zip(
        sorted((folder(resumed) / "checkpoints").glob("step-*"), reverse=True),
        (b"", b"x" * 10_000),
        strict=False,
    ):
        path.write_bytes(content)
    result = train(resumed)
    assert result["resumed_from_step"] == [10]
    assert caplog.text.count("is damaged") == 2
    assert_same_weights(small, resumed)


def test_a_finished_run_is_not_run_again(small: Config) -> None:
    first = train(small)
    before = (folder(small) / "metrics.jsonl").stat().st_mtime_ns
    assert train(small) == first
    assert (folder(small) / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("model", "data", "size"),
    [
        ({"name": "vit", "widths": (200,)}, {}, 32),
        ({"name": "cnn4"}, {"image_size": 8}, 8),
        ({"name": "whitened"}, {"resolutions": (4,), "resolution_until": (0.5,)}, 4),
    ],
)
def test_sizes_that_a_network_cannot_take_are_found_before_the_run(
    small: Config, model: dict[str, Any], data: dict[str, Any], size: int
) -> None:
    impossible = replace(
        small, model=ModelConfig(**model), data=replace(small.data, crop_padding=0, **data)
    )
    with pytest.raises(UserError, match=f"cannot take images of {size}x{size} pixels"):
        train(impossible)
    assert train(small)["steps"] == 16  # nothing stands in the way of the corrected command


def test_ranks_on_their_own_do_not_skip_steps_of_their_own(small: Config) -> None:
    alone = replace(
        small,
        train=replace(small.train, local_steps=2),
        runtime=replace(small.runtime, precision="fp16"),
    )
    with pytest.raises(UserError, match=r"--train\.local_steps 2: .* fp16"):
        train(alone)


def test_layers_of_ones_own_may_share_their_weights(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared_layers.py").write_text(
        "from torch import nn\n"
        "def build(num_classes, image_shape):\n"
        "    block = nn.Linear(16, 16)\n"
        "    first, last = nn.Linear(3072, 16), nn.Linear(16, num_classes)\n"
        "    return nn.Sequential(nn.Flatten(), first, block, nn.ReLU(), block, last)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = replace(small, model=ModelConfig(target="shared_layers:build"))
    accuracy = train(own)["test_accuracy"]
    assert torch.equal(weights(own)["2.weight"], weights(own)["4.weight"])
    assert evaluate_run(folder(own))["test_accuracy"] == accuracy
    export(folder(own), "safetensors")


def test_another_config_under_the_same_name_is_refused(small: Config) -> None:
    train(small)
    other = replace(small, train=replace(small.train, epochs=3))
    with pytest.raises(UserError, match=r"--train.epochs 3 \(was 2\)"):
        train(other)
    # What changes no number may change.
    train(replace(small, train=replace(small.train, log_every=3)))


def test_validation_keeps_the_test_set_out_of_it(small: Config) -> None:
    small = replace(small, data=replace(small.data, validation=100))
    result = train(small)
    assert result["test_accuracy"] is None
    assert result["validation_accuracy"] == metrics(folder(small))[-1]["validation/accuracy"]
    assert result["steps"] == 14  # 400 images left, in steps of 64


def test_losses_are_those_of_the_committed_file(small: Config) -> None:
    # Guards refactorings: 20 steps of a network with all that is special about them.
    small = replace(
        small,
        data=replace(
            small.data, cutout=6, brightness=0.1, resolutions=(24,), resolution_until=(0.5,)
        ),
        model=ModelConfig(name="resnet9", widths=(8, 8, 8, 8), batch_norm_group=16),
        optim=OptimConfig(
            optimizer="muon", learning_rate=0.02, muon_learning_rate=0.005, nesterov=True,
            schedule="linear", warmup=0.2, weight_decay=1e-3,
        ),
        train=replace(small.train, epochs=2.5, label_smoothing=0.1),
    )  # fmt: skip
    train(small)
    # To make it anew after a change that is meant to change it: losses(small), written as JSON.
    assert losses(small) == pytest.approx(json.loads(GOLDEN.read_text()), rel=2e-3)


@pytest.mark.slow
def test_runs_of_one_process_compile_once(small: Config) -> None:
    from torch._dynamo.utils import counters

    def losses_of(seed: int, *, compile: bool) -> list[float]:
        config = replace(
            small,
            name=f"seed{seed}-{compile}",
            seed=seed,
            model=ModelConfig(name="resnet9", widths=(8, 8, 8, 8)),
            optim=OptimConfig(learning_rate=0.0001),
            train=replace(small.train, max_steps=5, log_every=1),
            runtime=replace(small.runtime, compile=compile),
        )
        train(config)
        return losses(config)

    first = losses_of(0, compile=True)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    second = losses_of(1, compile=True)
    assert counters["stats"]["unique_graphs"] == graphs
    # The code is the first run's, the weights and images are not.
    assert second != pytest.approx(first, rel=1e-4)
    assert second == pytest.approx(losses_of(1, compile=False), rel=1e-4)


# Recipe, flags, and how close the losses are.
COMPILED = {
    "narrow": (
        "resnet9",
        [
            *("--model.widths", "8,8,8,8", "--train.max_steps", "10", "--data.drop_last", "false"),
            *("--data.resolutions", "24", "--data.resolution_until", "0.5"),
        ],
        1e-4,
    ),
    # Its gradients fill several of DDP's buckets, at which its graph is cut, under autocast.
    "as_it_is": ("resnet9", ["--runtime.precision", "bf16", "--train.max_steps", "4"], 2e-3),
    # What is written in another way for compilers: BatchNorm's groups, and pools of odd sizes; and
    # Muon, whose products are compiled by themselves, and shared out.
    "whitened": (
        "cifar10_94",
        [
            *("--model.widths", "8,16,16", "--model.batch_norm_group", "16"),
            *("--data.resolutions", "none", "--data.resolution_until", "none"),
            *("--optim.learning_rate", "0.01", "--optim.bias_learning_rate", "0.01"),
            *("--optim.muon_learning_rate", "0.001", "--train.max_steps", "10"),
        ],
        1e-3,
    ),
}


class Counting(nn.Module):
    """A network that counts its steps, in a buffer that it replaces."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps = self.steps + 1
        out: Tensor = self.network(x)
        return out


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop", "muon"])
def test_the_step_that_is_tried_before_the_first_leaves_no_trace(
    optimizer: Literal["sgd", "adamw", "rmsprop", "muon"],
    small: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    architecture = models.Architecture(lambda given, *_: Counting(models.build("cnn2", given)))
    monkeypatch.setitem(models.MODELS, "counting", architecture)
    small = replace(
        small,
        model=replace(small.model, name="counting"),  # type: ignore[arg-type]
        optim=OptimConfig(optimizer=optimizer, learning_rate=0.001),
    )
    train(small)
    tried = replace(small, name="tried", runtime=replace(small.runtime, compile=True))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    assert train(tried)["seconds"]["compile"] > 0
    assert weights(tried)["steps"] == 16
    assert_same_weights(tried, small)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("network", COMPILED)
def test_a_compiled_run_draws_the_eager_curve(
    network: str, processes: int, tmp_path: Path, cache: Path
) -> None:
    recipe, own, close = COMPILED[network]
    flags = [
        *("train", recipe, *SMALL, "--data.cache", str(cache), "--train.log_every", "1"),
        *("--optim.learning_rate", "0.0001", "--optim.warmup", "0", *own),
    ]
    for name in ("eager", "compiled"):
        more = ["--name", name, "--runtime.compile", str(name == "compiled")]
        assert torchrun(processes, *flags, *more, cwd=tmp_path).returncode == 0
    eager, compiled = (tmp_path / "runs" / name for name in ("eager", "compiled"))
    for a, b in zip(metrics(eager), metrics(compiled), strict=True):
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=close)
    assert summary(eager)["seconds"]["compile"] == 0
    assert summary(compiled)["seconds"]["compile"] > 1
    assert summary(compiled)["compile"] == "inductor"
    # The names of the weights are those of the bare model.
    names = [load_file(run / "model.safetensors").keys() for run in (eager, compiled)]
    assert names[0] == names[1]
    assert not any("_orig_mod" in name or "module." in name for name in names[1])
