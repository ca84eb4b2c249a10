"""TensorBoard: the same names as in metrics.jsonl, in `<run>/tensorboard`."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dist_train.errors import UserError
from dist_train.mistakes import Shares
from dist_train.tracking import Tracker
from dist_train.tracking.answers import Labels, PictureSchedule, Subject


def require_installed() -> None:
    """Raises UserError where tensorboard is missing."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "--tracking.tensorboard true: tensorboard is not installed; run launch/setup.sh, or "
            "leave it out"
        )


class TensorBoard(Tracker):
    """Event files; those of steps that are logged again are hidden by TensorBoard itself.

    Args:
        folder: the run's directory; the event files go to a folder below it.
        config: nested plain values, shown as text.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        resumed_step: int,
        total_steps: int,
        subject: Subject,
    ) -> None:
        self._folder = folder / "tensorboard"
        self._config = config
        self._subject, self._picture_schedule = subject, PictureSchedule(total_steps)
        self._open(resumed_step)

    def _open(self, last_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second; not paid by others

        self._writer = SummaryWriter(str(self._folder), purge_step=last_step + 1)
        self._file: Any = self._writer.file_writer
        if not last_step:
            text = f"```\n{json.dumps(self._config, indent=2)}\n```"
            self._writer.add_text("config", text, 0)

    def rewind(self, step: int) -> None:
        """See Tracker."""
        self._writer.close()
        self._open(step)

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        step = int(metrics["step"])
        self._add({k: v for k, v in metrics.items() if k not in ("step", "time")}, step)

    def _add(self, values: Mapping[str, float], step: int) -> None:
        """All at once: one event costs as much as one number in it."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self._file.add_summary(Summary(value=summary), step)

    def evaluated(self, step: int, probabilities: Shares, labels: Labels) -> None:
        """See Tracker."""
        self._add(self._subject.curves(probabilities, labels), step)
        if not self._picture_schedule.due(step):
            return
        worst = self._subject.worst(probabilities, labels)
        if worst:
            images = self._subject.images([mistake.row for mistake in worst])
            split = self._subject.split
            self._writer.add_images(f"{split}/mistakes", images, step, dataformats="NHWC")
            lines = [f"| {m.row} | {m.label} | {m.guess} | {m.confidence:.1%} |" for m in worst]
            text = "\n".join(["| image | is | taken for | confidence |", "|-|-|-|-|", *lines])
            self._writer.add_text(f"{split}/mistakes", text, step)

    def warn(self, title: str, text: str) -> None:
        """See Tracker."""
        self._writer.add_text(title, text)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker."""
        if summary:
            text = f"```\n{json.dumps(dict(summary), indent=2)}\n```"
            self._writer.add_text("summary", text, summary["steps"])
        self._writer.close()
