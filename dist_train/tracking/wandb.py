"""Weights & Biases: the same names as in metrics.jsonl, one run across resumes."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from torch import Tensor, nn

from dist_train.errors import UserError
from dist_train.tracking import Tracker
from dist_train.tracking.answers import Occasions, Subject, pixels

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("dist_train")

Mode = Literal["auto", "online", "offline", "off"]

DEFAULT_PROJECT = "dist_train"
EXIT_CODE_STOPPED = 75  # anything but 0 lets W&B tell a preempted run from a finished one
SUMMARIES = {"accuracy": "max,last", "loss": "min,last"}
SECONDS_FOR_A_CHECKPOINT = 60.0


def choose_mode(mode: Mode) -> Literal["online", "offline", "off"]:
    """What `auto` means here: $WANDB_MODE, else online with a login, else offline.

    Raises:
        UserError: W&B was asked for and is not installed.
    """
    if find_spec("wandb") is None:
        if mode in ("online", "offline"):
            raise UserError(
                f"--tracking.wandb {mode}: wandb is not installed; run launch/setup.sh or use off"
            )
        if mode == "auto":
            log.warning("wandb is not installed: this run is not logged to W&B")
        return "off"
    if mode != "auto":
        return mode
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("disabled", "dryrun", "offline", "online"):
        return {"disabled": "off", "online": "online"}.get(asked, "offline")  # type: ignore[return-value]
    logged_in = bool(os.environ.get("WANDB_API_KEY"))
    if not logged_in:
        netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        logged_in = netrc.exists() and host in netrc.read_text(errors="replace").split()
    return "online" if logged_in else "offline"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a run stands in W&B; what is None is left to W&B's own environment variables."""

    name: str
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: Sequence[str] = ()
    notes: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Of wandb.init: a flag first, then W&B's variable, then our default."""

        def default(variable: str, value: str | None) -> str | None:
            return None if os.environ.get(variable) else value

        return {
            "name": default("WANDB_NAME", self.name),
            "project": self.project or default("WANDB_PROJECT", DEFAULT_PROJECT),
            "entity": self.entity,
            "group": self.group or default("WANDB_RUN_GROUP", array_job()),
            "job_type": self.job_type or default("WANDB_JOB_TYPE", "train"),
            "tags": list(self.tags) or None,
            "notes": self.notes,
        }


def array_job() -> str | None:
    """The SLURM job array that this process is a task of: its runs belong together."""
    number = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{os.environ.get('SLURM_JOB_NAME', 'array')}-{number}" if number else None


def slurm_job() -> dict[str, str]:
    """The SLURM job that this process runs in, by the names of SLURM's variables."""
    names = ("JOB_ID", "JOB_NAME", "JOB_NODELIST", "JOB_PARTITION", "JOB_NUM_NODES")
    names += ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT")
    values = {name.lower(): os.environ.get(f"SLURM_{name}") for name in names}
    return {name: value for name, value in values.items() if value}


class WandB(Tracker):
    """A W&B run whose id is kept in the run's directory, so that a resumed run goes on in it.

    Slow: to be told through `Background`.

    Args:
        folder: the run's directory; W&B's files go below it unless $WANDB_DIR is set.
        config: nested plain values.
        total_steps: the end.
        watched: a model whose gradients or parameters are logged as histograms, every so many
            steps.
        artifacts: `references` to the final weights and the checkpoints that are left at the end,
            or `files`, uploads of them all.
    """

    def __init__(
        self,
        folder: Path,
        *,
        place: Place,
        mode: Literal["online", "offline"],
        config: Mapping[str, Any],
        total_steps: int,
        subject: Subject,
        artifacts: Literal["off", "references", "files"] = "off",
        watched: tuple[nn.Module, Literal["gradients", "parameters", "all"], int] | None = None,
    ) -> None:
        self._folder = folder
        self._subject, self._occasions = subject, Occasions(total_steps)
        self._artifacts = artifacts
        self._pending: dict[str, Any] = {}
        self._run = start(folder, place, mode, config)
        # W&B's own step may not go back, and it is ours: steps that were logged before a resume
        # are not logged again. That is noted after each line.
        self._noted = folder / "wandb-step"
        self._last_step = int(self._noted.read_text()) if self._noted.exists() else -1
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
        if watched:
            model, what, every = watched
            self._run.watch(model, log=what, log_freq=every)
        manifest = folder / "manifest.json"
        if artifacts != "off" and not self._run.offline and manifest.exists():
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
            self._noted.write_text(str(step))

    def evaluated(self, step: int, logits: Tensor, labels: Tensor) -> None:
        """See Tracker."""
        if step <= self._last_step:
            return
        self._pending = dict(self._subject.curves(logits, labels))
        if self._occasions.due(step):
            self._pending |= self._pictures(logits, labels)

    def _pictures(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        import wandb

        subject, split = self._subject, self._subject.split
        worst = subject.worst(logits, labels)
        images = subject.images([mistake.row for mistake in worst]) if worst else []
        mistakes = wandb.Table(columns=["image", "is", "taken for", "confidence", "row"])
        for image, mistake in zip(images, worst, strict=True):
            _, label, guess, confidence = mistake
            mistakes.add_data(wandb.Image(pixels(image)), label, guess, confidence, mistake.row)
        shares = subject.accuracies(logits, labels)
        by_class = wandb.Table(columns=["class", "accuracy"], data=[*map(list, shares.items())])
        counts = subject.confusion(logits, labels).tolist()
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
        while not path.exists() and time.monotonic() < deadline:  # another thread writes it
            time.sleep(0.05)
        if path.exists():
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
        else:
            self._run.mark_preempting()
        files = Path(self._run.dir).parent
        offline = self._run.offline
        try:
            self._run.finish(exit_code=0 if summary else EXIT_CODE_STOPPED)
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


def start(
    folder: Path, place: Place, mode: Literal["online", "offline"], config: Mapping[str, Any]
) -> wandb.Run:
    """The run of this directory, new or gone on with; offline when the server is not to be had."""
    import wandb  # a second; in the thread of `Background`

    id_file = folder / "wandb-id"
    # `wandb agent` names the id of the run it asks for.
    given = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    run_id = id_file.read_text().strip() if id_file.exists() else given
    id_file.write_text(run_id)
    options: dict[str, Any] = {
        "silent": True,
        "git_root": str(Path(__file__).parent),
        "init_timeout": 30.0,
        "finish_timeout": 30.0,
        "finish_timeout_raises": True,
        "save_code": True,  # with it comes the diff to the commit
        # On a terminal a live view would fill the log with its every picture.
        "console": "off" if sys.stdout.isatty() else "wrap",
    }
    own = {name: x for name, x in options.items() if f"WANDB_{name.upper()}" not in os.environ}

    def init(mode: str) -> wandb.Run:
        return wandb.init(
            **place.arguments(),
            id=run_id,
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            dir=None if os.environ.get("WANDB_DIR") else str(folder),
            config=dict(config),
            settings=wandb.Settings(**own),
        )

    try:
        return init(mode)
    except wandb.Error as error:
        if mode == "offline":
            raise
        reason = str(error).partition("\n")[0]
        log.warning("W&B cannot be reached, this run is logged offline: %s", reason)
        with suppress(Exception):
            wandb.teardown()  # the process that still tries
        return init("offline")
