"""Every recipe builds, trains and evaluates; here on small images and with narrow networks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train.config import Config
from dist_train.errors import UserError
from dist_train.options import parse
from dist_train.recipes import RECIPES
from dist_train.train import train
from tests.conftest import SMALL, dist_train, summary, torchrun

NARROW = {
    "resnet18": ["--model.widths", "8,8,8,8", "--model.batch_norm_group", "0"],
    "resnet34": ["--model.widths", "8,8,8,8"],
    "resnet50": ["--model.widths", "8,8,8,8"],
    "wide_resnet28_10": ["--model.widths", "8,8,8,8"],
    "vit": ["--model.widths", "64"],
    "whitened": ["--model.widths", "8,8,8", "--model.batch_norm_group", "0"],
    "whitened_residual": [
        *("--model.widths", "8,8,8", "--model.batch_norm_group", "5"),
        *("--train.select_group", "10", "--train.proxy_widths", "4,4,4"),
    ],
}
COURSE = (
    "cnn2 cnn3 cnn4 lenet lenet_fast mnist_mlp mnist_mlp_500_300 mnist_cnn mnist_rnn resnet18 "
    "resnet34 resnet50 wide_resnet28_10 vit transfer_features transfer_finetune"
)
RECORDS = "cifar10_94 cifar10_95 cifar10_96 resnet18_95"
OF_EACH_KIND = (
    "quickstart cifar10_94 cifar10_96 lenet_fast cnn2 mnist_rnn resnet18_95 resnet50 "
    "wide_resnet28_10 vit transfer_features transfer_finetune"
)


def small(recipe: str, cache: Path, *more: str) -> list[str]:
    """Flags of two steps and an evaluation."""
    config, _ = parse([recipe], "train")
    return [
        *(recipe, *SMALL, *NARROW.get(config.model.name, []), "--data.cache", str(cache)),
        *("--data.train_samples", "200", "--data.batch_size", "50"),
        *("--train.max_steps", "2", "--train.log_every", "1", "--name", recipe, *more),
    ]


@pytest.fixture(scope="session")
def pretrained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the recipes for transfer learning begin from."""
    output = tmp_path_factory.mktemp("pretrained")
    config, _ = parse([*small("quickstart", cache, "--output", str(output))], "train")
    train(replace(config, data=replace(config.data, resolutions=(), resolution_until=())))
    return output / "quickstart"


def test_the_recipes_that_others_rely_on_are_there() -> None:
    assert set(f"{COURSE} {RECORDS}".split()) <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_two_steps_and_is_evaluated(
    recipe: str, tmp_path: Path, cache: Path, pretrained: Path
) -> None:
    more = ["--model.pretrained", str(pretrained)] if recipe.startswith("transfer") else []
    config, _ = parse([*small(recipe, cache, "--output", str(tmp_path), *more)], "train")
    result = train(config)
    assert (result["recipe"], result["steps"]) == (recipe, 2)
    assert 0 <= result["test_accuracy"] <= 1
    assert result["flops_per_image"] > 2 * 10 * 8  # at least those of the smallest head


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OF_EACH_KIND.split())
def test_recipes_of_each_kind_run_on_two_ranks(
    recipe: str, tmp_path: Path, cache: Path, pretrained: Path
) -> None:
    more = ["--model.pretrained", str(pretrained)] if recipe.startswith("transfer") else []
    done = torchrun(2, "train", *small(recipe, cache, *more), cwd=tmp_path)
    assert done.returncode == 0
    assert summary(tmp_path / "runs" / recipe)["world_size"] == 2


def test_a_network_of_ones_own_needs_no_change_of_the_package(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "mynet.py").write_text(documented_network())
    flags = small("cnn2", cache, "--model.target", "mypkg.mynet:build")
    done = dist_train("train", *flags, cwd=tmp_path)
    assert done.returncode == 0
    result = summary(tmp_path / "runs" / "cnn2")
    assert result["parameters"] == 16 * 3 * 9 + 16 + 16 * 10 + 10
    evaluated = dist_train("eval", "runs/cnn2", "--json", cwd=tmp_path)
    assert json.loads(evaluated.stdout)["test_accuracy"] == result["test_accuracy"]


def documented_network() -> str:
    """The example of docs/extending.md, as it stands there."""
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    return page.split("```python title=mypkg/mynet.py\n")[1].split("```")[0]


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("mypkg.absent:build", "no module mypkg.absent"),
        ("mypkg.net:absent", "has no attribute 'absent'"),
        ("mypkg.net:number", "expected a torch.nn.Module, got int"),
        ("mypkg.net", "expected package.module:function"),
    ],
)
def test_targets_that_are_none(
    target: str, complaint: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "net.py").write_text("def number(*_): return 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=complaint) as error:
        train(made(small("cnn2", cache, "--model.target", target)))
    assert f"--model.target {target}" in str(error.value)
    # Nothing is left of it that would stand in the way of the corrected command.
    assert train(made(small("cnn2", cache)))["steps"] == 2


def made(flags: list[str]) -> Config:
    return parse(flags, "train")[0]
