"""`from dist_train import ...`: light to import, the same whatever was imported before."""

import subprocess
import sys
from pathlib import Path

import pytest

import dist_train
from dist_train.config import Config, DataConfig
from tests.conftest import REPOSITORY


def python(code: str, cwd: Path = REPOSITORY) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


def test_every_name_is_there_and_importing_the_package_is_light() -> None:
    for name in dist_train.__all__:
        module = f"dist_train.{dist_train.MODULES.get(name, 'config')}"
        assert getattr(dist_train, name) is vars(sys.modules[module])[name]
    assert python("import sys, dist_train; print('torch' in sys.modules)").strip() == "False"


@pytest.mark.parametrize("before", ["", "import dist_train.train", "import dist_train.cli"])
def test_train_is_the_function(before: str) -> None:
    code = f"{before}\nfrom dist_train import train, Config\nprint(train.__module__)"
    assert python(code).strip() == "dist_train.train"
    with pytest.raises(ImportError, match="nothing"):
        from dist_train import nothing  # type: ignore[attr-defined] # noqa: F401


def test_the_documented_example_runs(small: Config, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    example = page.split("```python title=from_python.py\n")[1].split("```")[0]
    assert "config: Config = quickstart()" in example
    data = DataConfig(dataset="shapes", train_samples=500, cache=small.data.cache, batch_size=64)
    there = "config: Config = quickstart()"
    here = (
        f"{there}\nfrom dist_train import *\n"
        f"config = replace(config, data={data!r}, tracking=TrackingConfig(wandb='off'))"
    )
    printed = python(example.replace(there, here), cwd=tmp_path)
    assert 0 <= float(printed.splitlines()[-1]) <= 1
    assert (tmp_path / "runs" / "mine" / "summary.json").exists()
