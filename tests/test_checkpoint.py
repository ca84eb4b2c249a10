"""Which checkpoints stay, where files cannot be linked or removed, and whose they are."""

import errno
import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.checkpoint import Checkpoints, TrainState
from dist_train.config import CheckpointConfig, Config
from dist_train.errors import UserError
from dist_train.train import train
from tests.conftest import cut_after, folder


def saved(checkpoints: Checkpoints, steps: Iterable[int], *, best: int) -> list[int]:
    """The steps whose checkpoints are left after one was written for each of these."""
    nothing: dict[str, Any] = {field.name: {} for field in fields(TrainState)}
    for step in steps:
        checkpoints.save(TrainState(**{**nothing, "step": step}), best=step == best)
    checkpoints.wait()
    return sorted(int(path.stem[5:]) for path in checkpoints.folder.glob("step-*"))


def test_the_newest_checkpoints_and_the_best_stay_without_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert saved(Checkpoints(tmp_path / "a", keep=2), range(1, 7), best=2) == [2, 5, 6]
    assert (tmp_path / "a" / "latest").readlink() == Path("step-000000006.pt")

    def refused(path: Path, _: str) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    with monkeypatch.context() as without_links:
        without_links.setattr(Path, "symlink_to", refused)
        checkpoints = Checkpoints(tmp_path / "b", keep=2)
        assert saved(checkpoints, range(1, 7), best=2) == [2, 5, 6]
    assert caplog.text.count("latest and best: Operation not supported") == 1
    assert "no checkpoint at" not in caplog.text
    saved(checkpoints, [7], best=0)  # one failure is not the end of links
    assert (tmp_path / "b" / "latest").readlink() == Path("step-000000007.pt")
    state = Checkpoints(tmp_path / "b", keep=2).load_latest()
    assert state is not None
    assert state.step == 7


def test_a_checkpoint_that_cannot_be_removed_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(path: Path, **_: bool) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    checkpoints = Checkpoints(tmp_path / "a", keep=2)
    saved(checkpoints, [1, 2], best=0)
    with monkeypatch.context() as kept:
        kept.setattr(Path, "unlink", refused)
        assert 3 in saved(checkpoints, [3], best=0)
    assert "old checkpoints stay" in caplog.text
    assert saved(checkpoints, [4], best=0) == [3, 4]


def test_a_checkpoint_of_another_network_is_refused(small: Config) -> None:
    small = replace(small, checkpoint=CheckpointConfig(every_steps=5))
    train(small)
    resumed = cut_after(small, step=15)
    (path,) = (folder(resumed) / "checkpoints").glob("step-*15.pt")
    content = torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)
    content["model"] = {f"old.{name}": value for name, value in content["model"].items()}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    with pytest.raises(UserError, match=r"after step 15 is not of this cnn2 .*another --name"):
        train(resumed)
