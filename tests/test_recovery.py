"""What a run does about damage: losses that are no numbers, full disks, spoilt files."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dist_train import models, runs
from dist_train.config import CheckpointConfig, Config, DataConfig
from dist_train.errors import Preempted, UserError
from dist_train.models.inputs import Inputs
from dist_train.train import train
from tests.conftest import (
    SMALL,
    assert_same_weights,
    cut_after,
    dist_train,
    folder,
    losses,
    metrics,
    summary,
    torchrun,
    weights,
)

# Losses that are no numbers


class Fragile(nn.Module):
    """A network that breaks at the batches whose numbers it is given, as they come."""

    def __init__(self, network: nn.Module, breaks_at: set[int]) -> None:
        super().__init__()
        self.network = network
        self.breaks_at = breaks_at
        self.seen: dict[float, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # the same batch, met again after going back, is the same step
            step = self.seen.setdefault(x.double().sum().item(), len(self.seen))
            if step in self.breaks_at:
                x = x * torch.nan
        out: Tensor = self.network(x)
        return out


@pytest.fixture
def fragile(small: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], Config]:
    """A run whose loss is no number after the given numbers of steps."""

    def configure(breaks_at: set[int]) -> Config:
        def build(inputs: Inputs, *_: tuple[int, ...]) -> nn.Module:
            return Fragile(models.build("cnn2", inputs), breaks_at)

        monkeypatch.setitem(models.MODELS, "fragile", models.Architecture(build))
        return replace(
            small,
            model=replace(small.model, name="fragile"),  # type: ignore[arg-type]
            train=replace(small.train, non_finite="skip", log_every=4),
            checkpoint=CheckpointConfig(every_steps=3),
        )

    return configure


def test_a_step_without_a_finite_loss_is_skipped(fragile: Callable[[set[int]], Config]) -> None:
    config = fragile({6, 10})
    result = train(config)
    assert result["skipped_steps"] == [6, 10]
    assert result["steps"] == 16
    assert all(weight.isfinite().all() for weight in weights(config).values())
    assert [line["step"] for line in metrics(folder(config))] == [4, 8, 12, 16]
    assert all(abs(loss) < 10 for loss in losses(config))


def test_too_many_such_steps_end_the_run(fragile: Callable[[set[int]], Config]) -> None:
    config = fragile({2, 5, 6, 9})
    with pytest.raises(
        UserError, match="loss of step 10 or its gradient is not finite, after 3 skipped steps"
    ):
        train(config)


def test_by_default_the_first_ends_the_run(fragile: Callable[[set[int]], Config]) -> None:
    config = fragile({6})
    config = replace(config, train=replace(config.train, non_finite="stop"))
    expected = (
        "loss of step 7 or its gradient is not finite; lower --optim.* --train.non_finite skip"
    )
    with pytest.raises(UserError, match=expected):
        train(config)
    # Nothing of it is kept: the newest checkpoint is from before.
    assert sorted(p.name for p in (folder(config) / "checkpoints").glob("step-*"))[-1] == (
        "step-000000006.pt"
    )


class Spoilt(Fragile):
    """A network whose loss stays finite at these batches, while its weights become no numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """See Fragile."""
        if self.training:
            step = self.seen.setdefault(x.double().sum().item(), len(self.seen))
            if step in self.breaks_at:
                weight = next(self.network.parameters())
                x = x + (weight.sum() * 0).sqrt()  # 0, with a gradient that is 0 times infinity
        out: Tensor = self.network(x)
        return out


def test_no_checkpoint_holds_weights_that_are_no_numbers(
    small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(inputs: Inputs, *_: tuple[int, ...]) -> nn.Module:
        return Spoilt(models.build("cnn2", inputs), {7})  # the last step of the first epoch

    monkeypatch.setitem(models.MODELS, "spoilt", models.Architecture(build))
    config = replace(
        small,
        model=replace(small.model, name="spoilt"),  # type: ignore[arg-type]
        checkpoint=CheckpointConfig(every_steps=100),  # only the best so far is kept before
    )
    with pytest.raises(UserError, match="loss of step 8 or its gradient is not finite"):
        train(config)
    assert not list((folder(config) / "checkpoints").glob("step-*"))


def test_the_step_that_spoils_the_weights_is_skipped_not_those_after_it(
    small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(inputs: Inputs, *_: tuple[int, ...]) -> nn.Module:
        return Spoilt(models.build("cnn2", inputs), {5})

    monkeypatch.setitem(models.MODELS, "spoilt", models.Architecture(build))
    config = replace(
        small,
        model=replace(small.model, name="spoilt"),  # type: ignore[arg-type]
        train=replace(small.train, non_finite="skip", log_every=4),
    )
    assert train(config)["skipped_steps"] == [5]


def test_nor_a_proxy_whose_weights_are_no_numbers(
    small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(inputs: Inputs, widths: Sequence[int], _: Sequence[int]) -> nn.Module:
        network = models.build("cnn2", inputs, widths)
        return Spoilt(network, {4}) if tuple(widths) == (4, 8) else network

    monkeypatch.setitem(models.MODELS, "spoilt", models.Architecture(build, widths=(8, 16)))
    config = replace(
        small,
        data=replace(small.data, drop_last=True),
        model=replace(small.model, name="spoilt"),  # type: ignore[arg-type]
        train=replace(small.train, select=0.5, select_group=16, proxy_widths=(4, 8)),
        checkpoint=CheckpointConfig(every_steps=6),
    )
    with pytest.raises(UserError, match="step 6 or its gradient is not finite"):
        train(config)
    assert not list((folder(config) / "checkpoints").glob("step-*"))


# Ways of stopping and going on


def test_lines_of_metrics_do_not_show_where_a_run_was_cut(small: Config) -> None:
    small = replace(
        small,
        train=replace(small.train, log_every=7, ema=0.9, accumulate=3),
        checkpoint=CheckpointConfig(every_steps=5, keep=10),
    )
    train(small)
    resumed = cut_after(small, step=5)
    assert train(resumed)["resumed_from_step"] == [5]
    assert losses(resumed) == losses(small)
    assert_same_weights(small, resumed)


@pytest.mark.parametrize("missing", ["tensorboard", "ffcv"])
def test_what_is_not_installed_is_missed_before_anything_else(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr("dist_train.tracking.tensorboard.find_spec", lambda name: None)
    monkeypatch.setattr("dist_train.data.streaming.find_spec", lambda name: None)
    data = replace(small.data, cache=str(tmp_path / "cache"))
    if missing == "ffcv":
        data = replace(data, storage="jpeg", loader="auto")
    tracking = replace(small.tracking, tensorboard=missing == "tensorboard")
    with pytest.raises(UserError, match=rf"(?i){missing}.* is not installed"):
        train(replace(small, data=data, tracking=tracking))
    assert not (folder(small) / "config.json").exists()
    assert not (tmp_path / "cache").exists()


def test_of_settings_that_may_change_the_last_are_kept(small: Config) -> None:
    small = replace(small, checkpoint=CheckpointConfig(every_steps=5))
    train(small)
    resumed = cut_after(small, step=15)
    resumed = replace(resumed, data=replace(resumed.data, eval_batch_size=77))
    train(resumed)
    assert runs.read_config(folder(resumed)) == resumed


def test_checkpoints_by_the_clock(small: Config) -> None:
    small = replace(
        small,
        train=replace(small.train, eval_every=0),
        checkpoint=CheckpointConfig(every_minutes=1e-6, keep=100),
    )
    train(small)
    saved = [int(p.stem[5:]) for p in (folder(small) / "checkpoints").glob("step-*")]
    assert sorted(saved) == list(range(1, 17))


def test_ranks_save_once_when_it_is_time(tmp_path: Path, cache: Path) -> None:
    flags = [
        *("cnn2", *SMALL, "--data.cache", str(cache), "--name", "timed", "--train.epochs", "1"),
        *("--train.eval_every", "0", "--checkpoint.keep", "100"),
        *("--checkpoint.every_minutes", "1e-6"),
    ]
    assert torchrun(2, "train", *flags, cwd=tmp_path).returncode == 0
    folder = tmp_path / "runs" / "timed"
    saved = sorted(int(path.stem[5:]) for path in (folder / "checkpoints").glob("step-*"))
    # A vote is counted a step later, and none that was cast before a checkpoint after it.
    last = summary(folder)["steps"]
    assert saved == [*range(2, last, 2), last]


def test_runs_without_a_name_have_folders_of_their_own(tmp_path: Path) -> None:
    names = {runs.new_name(tmp_path, "cnn2") for _ in range(20)}
    assert len(names) == 20
    assert names == {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_ranks(tmp_path: Path, cache: Path) -> None:
    flags = [
        *("cnn2", *SMALL, "--data.cache", str(cache), "--train.log_every", "1"),
        *("--train.epochs", "2", "--data.drop_last", "false", "--optim.learning_rate", "0.02"),
    ]
    assert torchrun(1, "train", *flags, "--name", "whole", cwd=tmp_path).returncode == 0
    parts = tmp_path / "runs" / "parts"
    parts.mkdir()
    (parts / "STOP").touch()
    for processes in (1, 2, 3):
        done = torchrun(processes, "train", *flags, "--name", "parts", cwd=tmp_path)
        assert "run again to go on" in done.stderr
    (parts / "STOP").unlink()
    assert torchrun(1, "train", *flags, "--name", "parts", cwd=tmp_path).returncode == 0
    assert summary(parts)["resumed_from_step"] == [1, 3, 5]
    for a, b in zip(metrics(tmp_path / "runs" / "whole"), metrics(parts), strict=True):
        assert a["step"] == b["step"]
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)


def test_a_dry_run_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    flags = ["cnn2", *SMALL, "--data.cache", str(cache)]
    done = dist_train("train", *flags, "--dry_run", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0
    assert "2 steps of 64 images" in done.stdout
    assert list(tmp_path.iterdir()) == []


# Damage


def test_a_checkpoint_that_cannot_be_written_costs_no_run(
    small: Config, caplog: pytest.LogCaptureFixture
) -> None:
    folder(small).mkdir(parents=True)
    (folder(small) / "checkpoints").write_text("no folder")
    small = replace(small, checkpoint=CheckpointConfig(every_steps=4))
    result = train(small)
    assert result["steps"] == 16
    assert caplog.text.count("no checkpoint at step") == 4


def test_a_profile_that_cannot_be_written_costs_no_run(
    small: Config, caplog: pytest.LogCaptureFixture
) -> None:
    folder(small).mkdir(parents=True)
    (folder(small) / "profile").write_text("no folder")
    result = train(replace(small, train=replace(small.train, profile="3:5")))
    assert result["steps"] == 16
    assert "no trace of steps 3 to 5" in caplog.text


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0b100
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = {"truncate": truncate, "flip": flip, "empty": empty, "delete": Path.unlink}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run that was stopped after 12 of 24 steps, with W&B's id and everything."""
    work = tmp_path_factory.mktemp("interrupted")
    flags = [
        *("cnn2", *SMALL, "--data.cache", str(cache), "--name", "run"),
        *("--train.log_every", "1", "--checkpoint.every_steps", "4", "--train.epochs", "3"),
        *("--tracking.wandb", "offline"),
    ]
    assert dist_train("train", *flags, cwd=work).returncode == 0
    whole = work / "runs" / "run"
    for path in whole.glob("checkpoints/step-*"):
        if int(path.stem[5:]) > 16:
            path.unlink()
    return whole


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_file_of_a_run_may_be_damaged(damage: str, interrupted: Path, tmp_path: Path) -> None:
    """Each either recovers, or says in a line what is wrong and what to do."""
    files = [p.relative_to(interrupted) for p in interrupted.rglob("*") if p.is_file()]
    files = [p for p in files if p.parts[0] != "wandb"]
    assert len(files) > 5
    for number, damaged in enumerate(files):
        run = tmp_path / "runs" / str(number)
        shutil.copytree(interrupted, run, symlinks=True)
        if damaged.name not in ("summary.json", "model.safetensors", "predictions.safetensors"):
            (run / "summary.json").unlink()
        DAMAGES[damage](run / damaged)
        config = _config_of(interrupted, run)
        try:
            result = train(config)
        except UserError as error:
            message = str(error)
            assert str(run) in message, (damaged, message)
            assert "\n" not in message, (damaged, message)
        else:
            assert result["steps"] == 21, damaged
            steps = [line["step"] for line in metrics(run)]
            assert steps == sorted(set(steps)), damaged


def _config_of(interrupted: Path, run: Path) -> Config:
    from dist_train import runs

    config = runs.read_config(interrupted)
    return replace(
        config,
        name=run.name,
        output=str(run.parent),
        tracking=replace(config.tracking, wandb="off"),
    )


def test_another_data_set_of_the_same_name_is_noticed(small: Config) -> None:
    small = replace(small, checkpoint=CheckpointConfig(every_steps=5))
    train(small)
    (folder(small) / "summary.json").unlink()
    config_file = folder(small) / "config.json"
    stored = json.loads(config_file.read_text())
    stored["data"]["train_samples"] = 600
    config_file.write_text(json.dumps(stored))
    other = replace(small, data=replace(small.data, train_samples=600))
    with pytest.raises(UserError, match="was trained on other data"):
        train(other)


def test_a_stop_file_stops_a_single_process_after_a_step(small: Config) -> None:
    folder(small).mkdir(parents=True)
    (folder(small) / "STOP").touch()
    with pytest.raises(Preempted, match="stopped after step 1"):
        train(small)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_stop_does_not_wait_for_an_evaluation(
    small: Config, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    # Every step ends an epoch; with `steps` 1 it is the last evaluation that is given up.
    settings = replace(small.train, epochs=steps)
    warming = replace(small.optim, warmup=0.9)  # no rate is the peak
    data = replace(small.data, batch_size=500)
    small = replace(small, data=data, train=settings, optim=warming)
    train(replace(small, name="whole"))
    run_folder = folder(small)
    run_folder.mkdir(parents=True)
    (run_folder / "STOP").touch()
    with pytest.raises(Preempted, match="stopped after step 1;"):
        train(small)
    assert metrics(run_folder) == []
    (run_folder / "STOP").unlink()
    assert train(small)["resumed_from_step"] == [1]
    assert "left out" not in caplog.text  # trackers get along with a line without throughput
    assert_same_weights(small, replace(small, name="whole"))
    for line, other in zip(metrics(run_folder), metrics(run_folder.parent / "whole"), strict=True):
        for name in (
            "step",
            "train/loss",
            "train/accuracy",
            "test/accuracy",
            "test/loss",
            "optim/lr",
        ):
            assert line[name] == other[name]


def test_parts_of_a_batch_train_like_the_whole(small: Config) -> None:
    mixing: DataConfig = replace(small.data, cutmix=1.0)
    for data in (small.data, mixing):
        whole = replace(small, name=f"whole{data.cutmix}", data=data)
        parts = replace(whole, name=f"parts{data.cutmix}", train=replace(small.train, accumulate=3))
        train(whole)
        train(parts)
        assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


def test_the_average_of_the_weights_is_what_is_kept(small: Config) -> None:
    averaged = replace(small, name="averaged", train=replace(small.train, ema=0.8))
    train(small)
    result = train(averaged)
    assert losses(averaged) == losses(small)  # training itself is the same
    assert any(
        not torch.equal(a, b)
        for a, b in zip(weights(small).values(), weights(averaged).values(), strict=True)
    )
    evaluated = dist_train("eval", str(folder(averaged)), "--json", cwd=folder(averaged))
    assert json.loads(evaluated.stdout)["test_accuracy"] == result["test_accuracy"]
