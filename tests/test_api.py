"""What docs/extending.md says of use from Python."""

import subprocess
import sys
from pathlib import Path

from dist_train.config import Config, DataConfig
from tests.conftest import REPOSITORY


def test_the_documented_example_runs(small: Config, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    example = page.split("```python title=from_python.py\n")[1].split("```")[0]
    assert "config: Config = quickstart()" in example
    data = DataConfig(dataset="shapes", train_samples=500, cache=small.data.cache, batch_size=64)
    there = "config: Config = quickstart()"
    here = (
        f"{there}\nfrom dist_train.config import *\n"
        f"config = replace(config, data={data!r}, tracking=TrackingConfig(wandb='off'))"
    )
    command = [sys.executable, "-c", example.replace(there, here)]
    printed = subprocess.check_output(command, cwd=tmp_path, text=True)
    assert 0 <= float(printed.splitlines()[-1]) <= 1
    assert (tmp_path / "runs" / "mine" / "summary.json").exists()
