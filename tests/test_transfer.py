"""Transfer learning: which weights are taken, which stay, which move."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_train import models, transfer
from dist_train.config import Config
from dist_train.errors import UserError
from dist_train.models.inputs import Inputs
from dist_train.options import parse
from dist_train.train import train
from tests.conftest import SMALL, weights


@pytest.fixture(scope="module")
def source(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run of a network with BatchNorm."""
    config = small(cache, tmp_path_factory.mktemp("source"), "--name", "source")
    train(config)
    return config


def small(cache: Path, output: Path, *more: str) -> Config:
    flags = [
        *("resnet9", *SMALL, "--data.cache", str(cache), "--model.widths", "4,4,8,8"),
        *("--optim.learning_rate", "0.05", "--train.max_steps", "3", "--train.log_every", "1"),
        *("--output", str(output), *more),
    ]
    return parse(flags, "train")[0]


def changed(config: Config, before: Config) -> set[str]:
    """Names of tensors that differ between two runs' final weights."""
    a, b = weights(config), weights(before)
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


def target(source: Config, cache: Path, output: Path, *more: str) -> Config:
    run = str(Path(source.output) / str(source.name))
    return small(cache, output, "--name", "target", "--model.pretrained", run, *more)


HEAD = {"8.weight", "8.bias"}


def test_a_frozen_backbone_stays_to_the_last_bit_and_the_head_is_new(
    source: Config, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = target(source, cache, tmp_path, "--model.freeze", "backbone")
    train(config)
    assert changed(config, source) == HEAD  # running statistics and counts of batches included
    assert "new: 8.bias (head), 8.weight (head)" in capsys.readouterr().out


def test_fine_tuning_moves_what_is_not_frozen(source: Config, cache: Path, tmp_path: Path) -> None:
    config = target(source, cache, tmp_path, "--model.freeze", "0,1")
    train(config)
    trained = {name for name in weights(source) if not name.startswith(("0.", "1."))}
    assert changed(config, source) == trained


def test_a_lower_rate_for_the_backbone(source: Config, cache: Path, tmp_path: Path) -> None:
    config = target(source, cache, tmp_path, "--optim.backbone_learning_rate", "0")
    train(config)
    moved = changed(config, source) - HEAD
    assert moved  # BatchNorm's statistics are no matter of rates
    assert not [name for name in moved if name.endswith(("weight", "bias"))]


def test_a_resumed_run_is_not_given_the_weights_again(
    source: Config, cache: Path, tmp_path: Path
) -> None:
    more = ["--model.freeze", "backbone", "--checkpoint.every_steps", "2"]
    whole = target(source, cache, tmp_path, *more)
    train(whole)
    resumed = replace(whole, name="resumed")
    first = Path(tmp_path) / "target" / "checkpoints"
    there = Path(tmp_path) / "resumed" / "checkpoints"
    there.mkdir(parents=True)
    (there / "step-000000002.pt").write_bytes((first / "step-000000002.pt").read_bytes())
    assert train(resumed)["resumed_from_step"] == [2]
    assert not changed(resumed, whole)


def inputs(shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10) -> Inputs:
    return Inputs(classes, shape, lambda: torch.zeros(()))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_weights_give_torchvisions_answers(name: str, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.get_model(name, num_classes=10).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "weights.pth")
    loaded = transfer.read_weights(str(tmp_path / "weights.pth"), name)
    ours = models.build(name, inputs((96, 96, 3))).eval()
    transfer.fit(ours, loaded)
    ours.fc.load_state_dict(theirs.fc.state_dict())  # type: ignore[union-attr]
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_stem_of_another_shape_stays_new_and_that_is_said() -> None:
    theirs = models.build("resnet18", inputs((96, 96, 3), 100), (4, 4, 4, 4)).state_dict()
    ours = models.build("resnet18", inputs(), (4, 4, 4, 4))
    stem = ours.conv1.weight.clone()  # type: ignore[union-attr, operator]
    said = transfer.fit(ours, theirs)
    assert "conv1.weight (stem, 4x3x7x7 there)" in said
    assert torch.equal(ours.conv1.weight, stem)  # type: ignore[union-attr, arg-type]
    for name, tensor in ours.state_dict().items():
        if not name.startswith(("conv1", "fc")) and "num_batches" not in name:
            assert torch.equal(tensor, theirs[name]), name


def test_weights_that_do_not_fit_or_are_none(tmp_path: Path) -> None:
    network = models.build("cnn2", inputs())
    other: dict[str, Any] = models.build("cnn2", inputs(), (16, 64)).state_dict()
    with pytest.raises(UserError, match=r"3 of 6 tensors do not fit.*3.weight 32x16x3x3 \(64x16"):
        transfer.fit(network, other)
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "code.pth")  # would run code when it is read
    for name in ("broken.pth", "empty.pth", "broken.safetensors", "list.pth", "code.pth"):
        with pytest.raises(UserError, match=r"--model.pretrained .*by name") as error:
            transfer.read_weights(str(tmp_path / name), "cnn2")
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="there is no"):
        transfer.read_weights(str(tmp_path / "absent"), "cnn2")
    with pytest.raises(UserError, match="has none for cnn2"):
        transfer.read_weights("torchvision", "cnn2")


def test_parts_that_are_none() -> None:
    network = models.build("resnet18", inputs(), (4, 4, 4, 4))
    with pytest.raises(UserError, match=r"--model.freeze layer9: .* conv1, bn1"):
        transfer.freeze(network, ["layer9"])
    with pytest.raises(UserError, match="nothing to train"):
        transfer.freeze(network, ["backbone", "fc"])
