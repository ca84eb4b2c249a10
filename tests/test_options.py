"""The command line and `dist-train show`: what is set, and by whom."""

import subprocess
import sys
from pathlib import Path

import pytest

from dist_train import options
from dist_train.errors import UserError
from dist_train.options import parse
from dist_train.recipes import RECIPES
from tests.conftest import SMALL, dist_train


def test_later_sources_win() -> None:
    config, sources = parse(["lenet", "--train.epochs", "3", "--seed=7"], "train")
    assert (config.recipe, config.train.epochs, config.seed) == ("lenet", 3.0, 7)
    assert config.data.batch_size == 4
    assert sources["train.epochs"] == sources["seed"] == "command line"
    assert sources["data.batch_size"] == "recipe lenet"
    assert "data.cutout" not in sources


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--runtime.compile"], True),
        (["--runtime.compile", "off"], False),
        (["--runtime.compile", "auto"], None),
        (["--runtime.threads", "3"], 3),
        (["--runtime.threads", "auto"], None),
    ],
)
def test_optional_values(flags: list[str], value: object) -> None:
    config, _ = parse(["lenet", *flags], "train")
    assert getattr(config.runtime, flags[0].removeprefix("--runtime.")) is value or (
        getattr(config.runtime, flags[0].removeprefix("--runtime.")) == value
    )


def test_a_switch_with_more_to_it_is_also_a_switch() -> None:
    for flags, expected in (
        (["--tracking.wandb"], "auto"),
        (["--tracking.wandb", "false"], "off"),
        (["--tracking.wandb", "offline"], "offline"),
    ):
        assert parse(["lenet", *flags], "train")[0].tracking.wandb == expected


def test_lists_are_comma_separated() -> None:
    flags = ["--data.resolutions", "24,28", "--data.resolution_until", "0.5,0.75"]
    config, _ = parse(["resnet9", *flags, "--model.widths", "8,16,32,64"], "train")
    assert config.data.resolutions == (24, 28)
    assert config.data.resolution_until == (0.5, 0.75)
    assert config.model.widths == (8, 16, 32, 64)
    with pytest.raises(UserError, match="one end to each"):
        parse(["resnet9", "--data.resolutions", "24,28"], "train")
    with pytest.raises(UserError, match="lenet fits one size only"):
        parse(["lenet", *flags], "train")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_complete_and_documented(recipe: str) -> None:
    config, _ = parse([recipe], "train")
    assert config.recipe == recipe
    assert len((RECIPES[recipe].__doc__ or "").strip()) > 20


def test_show_prints_each_field_with_its_source_and_imports_no_torch(tmp_path: Path) -> None:
    done = dist_train("show", "lenet", "--train.epochs", "5", cwd=tmp_path)
    assert done.returncode == 0
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert ["train.epochs", "5.0", "command line"] in lines
    assert ["data.batch_size", "4", "recipe lenet"] in lines
    assert ["optim.momentum", "0.9", "default"] in lines
    code = (
        "import sys; from dist_train.cli import main; main(['show', 'lenet']); "
        "heavy = {'torch', 'numpy', 'ffcv', 'wandb', 'accelerate'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_help_explains_every_flag(tmp_path: Path) -> None:
    done = dist_train("train", "--help", cwd=tmp_path, COLUMNS="100")
    assert done.returncode == 0
    assert "--train.label_smoothing" in done.stdout
    assert "Probability mass spread evenly over all classes." in done.stdout
    for recipe in RECIPES:
        assert recipe in done.stdout


def test_a_list_of_the_recipe_can_be_taken_back() -> None:
    flags = "quickstart --model.widths none --data.resolutions=none --data.resolution_until none"
    config, sources = parse(flags.split(), "dist-train show")
    assert (config.model.widths, config.data.resolutions) == ((), ())
    (line,) = (x for x in options.show(config, sources).splitlines() if "model.widths" in x)
    assert line.split(maxsplit=1)[1].split() == ["none", "command", "line"]


def test_a_job_script_can_give_all_commands_the_flags_of_train(tmp_path: Path, cache: Path) -> None:
    flags = ["cnn2", *SMALL, "--data.cache", str(cache), "--dry_run"]
    for command in ("show", "prepare", "train"):
        assert dist_train(command, *flags, cwd=tmp_path).returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_show_images_draws_what_the_model_sees(storage: str, tmp_path: Path, cache: Path) -> None:
    from PIL import Image

    flags = ["--data.dataset", "shapes", "--data.train_samples", "500", "--data.cache", str(cache)]
    flags += ["--data.storage", storage]
    done = dist_train("show", "cnn2", *flags, "--images", "grid.png", cwd=tmp_path)
    assert done.returncode == 0
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size[0] > picture.size[1] > 200
        assert len(picture.getcolors(1 << 20) or ()) > 1000
