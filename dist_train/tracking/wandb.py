"""Weights & Biases: the same names as in metrics.jsonl, one run across resumes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from dist_train.config import TrackingConfig
from dist_train.errors import UserError
from dist_train.files import write_atomically
from dist_train.mistakes import Shares, confusion
from dist_train.preemption import EXIT_CODE
from dist_train.tracking import STOPPED, Tracker
from dist_train.tracking.answers import Labels, PictureSchedule, Subject, pixels
from dist_train.tracking.wandb_setup import start

if TYPE_CHECKING:
    import wandb

SUMMARIES = {"accuracy": "max,last", "loss": "min,last"}
SECONDS_FOR_A_CHECKPOINT = 60.0


class WandB(Tracker):
    """A W&B run whose id is kept in the run's directory, so that a resumed run goes on in it.

    Slow: to be told through `Background`.

    Args:
        folder: the run's directory; W&B's files go below it unless $WANDB_DIR is set.
        config: nested plain values.
        total_steps: the end.
        model: whose gradients or parameters are logged as histograms, if `settings.watch` says so,
            every `log_every` steps.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrackingConfig,
        *,
        mode: Literal["online", "offline"],
        config: Mapping[str, Any],
        total_steps: int,
        subject: Subject,
        model: nn.Module,
        log_every: int,
    ) -> None:
        self._folder = folder
        self._subject, self._picture_schedule = subject, PictureSchedule(total_steps)
        self._artifacts = settings.artifacts
        self._pending: dict[str, Any] = {}
        self._exit_code = 1
        self._run = start(folder, settings, mode, config)
        # W&B's own step may not go back, and it is ours: steps that were logged before a resume
        # are not logged again. That is noted after each line.
        self._noted = folder / "wandb-step"
        noted = self._noted.read_text() if self._noted.exists() else ""
        self._last_step = int(noted) if noted.isdecimal() else -1
        self._run.define_metric("train/step")
        self._run.define_metric("*", step_metric="train/step")
        for split in ("train", subject.split):
            for figure, summary in SUMMARIES.items():
                self._run.define_metric(
                    f"{split}/{figure}", step_metric="train/step", summary=summary
                )
        self._run.define_metric(
            "perf/images_per_second", step_metric="train/step", summary="max,mean,last"
        )
        if settings.watch != "none":
            self._run.watch(model, log=settings.watch, log_freq=log_every)
        manifest = folder / "manifest.json"
        if self._artifacts != "off" and not self._run.offline and manifest.exists():
            # The manifest holds the checksums of the data: equal data is an equal version.
            data = self._artifact(config["data"]["dataset"], "dataset", manifest, as_file=True)
            self._run.use_artifact(data)

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        step = int(metrics["step"])
        values = self._pending | {k: v for k, v in metrics.items() if k not in ("step", "time")}
        self._pending = {}
        if step > self._last_step:
            self._run.log(values | {"train/step": step}, step=step, commit=True)
            self._last_step = step
            with suppress(UserError):  # a full disk: the next line notes it
                write_atomically(self._noted, str(step).encode())

    def evaluated(self, step: int, probabilities: Shares, labels: Labels) -> None:
        """See Tracker."""
        if step <= self._last_step:
            return
        self._pending = dict(self._subject.curves(probabilities, labels))
        if self._picture_schedule.due(step):
            self._pending |= self._pictures(probabilities, labels)

    def _pictures(self, probabilities: Shares, labels: Labels) -> dict[str, Any]:
        import wandb

        subject, split = self._subject, self._subject.split
        worst = subject.worst(probabilities, labels)
        images = list(subject.images([mistake.row for mistake in worst])) if worst else []
        mistakes = wandb.Table(columns=["image", "is", "taken for", "confidence", "row"])
        for image, mistake in zip(images, worst, strict=True):
            _, label, guess, confidence = mistake
            mistakes.add_data(wandb.Image(pixels(image)), label, guess, confidence, mistake.row)
        shares = subject.accuracies(probabilities, labels)
        by_class = wandb.Table(columns=["class", "accuracy"], data=[*map(list, shares.items())])
        counts = confusion(probabilities, labels).tolist()
        pairs = [
            [actual, predicted, count]
            for actual, row in zip(subject.classes, counts, strict=True)
            for predicted, count in zip(subject.classes, row, strict=True)
        ]
        fields = ("Actual", "Predicted", "nPredictions")
        return {
            f"{split}/mistakes": mistakes,
            f"{split}/accuracy_by_class": wandb.plot.bar(
                by_class, "class", "accuracy", title=f"{split} accuracy by class"
            ),
            f"{split}/confusion": wandb.plot_table(  # as wandb.plot.confusion_matrix makes it
                "wandb/confusion_matrix/v1",
                wandb.Table(columns=list(fields), data=pairs),
                {field: field for field in fields},
                {"title": f"{split} confusion matrix"},
            ),
        }

    def checkpointed(self, step: int, path: Path, *, best: bool) -> None:
        """See Tracker."""
        if self._artifacts != "files":
            return
        deadline = time.monotonic() + SECONDS_FOR_A_CHECKPOINT
        while not path.exists():  # another thread writes it
            newer = any(other.name > path.name for other in path.parent.glob("step-*.pt"))
            if newer or time.monotonic() > deadline:  # it was not kept
                return
            time.sleep(0.05)
        self._log_artifact("checkpoint", path, best=best, step=step)

    def _log_artifact(self, kind: str, path: Path, *, best: bool, step: int) -> None:
        aliases = ["latest", f"step-{step}", *(["best"] if best else [])]
        artifact = self._artifact(f"{kind}-{self._run.id}", kind, path, step=step)
        self._run.log_artifact(artifact, aliases=aliases)

    def _artifact(
        self, name: str, kind: str, path: Path, *, as_file: bool = False, **metadata: Any
    ) -> wandb.Artifact:
        import wandb

        artifact = wandb.Artifact(name, kind, metadata=metadata)
        if as_file or self._artifacts == "files":
            artifact.add_file(str(path), skip_cache=True)
        else:
            artifact.add_reference(path.resolve().as_uri())
        return artifact

    def warn(self, title: str, text: str) -> None:
        """See Tracker."""
        if title == STOPPED:
            self._exit_code = EXIT_CODE  # anything but 0 tells it from a finished one
            if "WANDB_SWEEP_ID" not in os.environ:  # a sweep would start again what it has stopped
                self._run.mark_preempting()
        self._run.alert(title, text, level="WARN")

    def rewind(self, step: int) -> None:
        """See Tracker."""
        self._pending = {}

    def abandon(self) -> None:
        """See Tracker."""
        import wandb

        wandb.teardown()  # else it would try again to be heard when the process ends

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker."""
        if summary:
            self._run.summary.update(dict(summary))
            self._keep_weights(summary)
        files = Path(self._run.dir).parent
        offline = self._run.offline
        try:
            self._run.finish(exit_code=0 if summary else self._exit_code)
        except TimeoutError:
            offline = True
        if offline:
            print(f"W&B: wandb sync {files}", flush=True)

    def _keep_weights(self, summary: Mapping[str, Any]) -> None:
        if self._artifacts == "off":
            return
        step, split = summary["steps"], self._subject.split
        is_best = summary[f"{split}_accuracy"] == summary[f"best_{split}_accuracy"]
        if self._artifacts == "references":
            checkpoints = self._folder / "checkpoints"
            kept = {alias: (checkpoints / alias).resolve() for alias in ("best", "latest")}
            for alias, path in kept.items():
                if path.exists():
                    of_step = int(path.stem.removeprefix("step-"))
                    best = alias == "best" or path == kept["best"]
                    self._log_artifact("checkpoint", path, best=best, step=of_step)
        self._log_artifact("model", self._folder / "model.safetensors", best=is_best, step=step)
