"""TensorBoard's real files, read back with its own reader."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_train.tracking.answers import Subject
from dist_train.tracking.tensorboard import TensorBoard


@pytest.mark.parametrize("resumed_step", [0, 2])
def test_a_run_gone_on_with_shows_each_step_once(tmp_path: Path, resumed_step: int) -> None:
    for first, last in ((1, 5), (resumed_step + 1, 3)):
        tracker = TensorBoard(
            tmp_path,
            config={},
            resumed_step=first - 1,
            total_steps=5,
            subject=Subject("test", ("a", "b"), lambda rows: None),  # type: ignore[arg-type, return-value]
        )
        for step in range(first, last + 1):
            tracker.log({"step": step, "train/loss": 1 / step})
        tracker.finish({})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
