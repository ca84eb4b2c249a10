"""Weights & Biases: the same names as in metrics.jsonl, one run across resumes."""

import logging
import os
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from dist_train.errors import UserError
from dist_train.tracking import Tracker

log = logging.getLogger("dist_train")

Mode = Literal["auto", "online", "offline", "off"]


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
        logged_in = netrc.exists() and "api.wandb.ai" in netrc.read_text(errors="replace")
    return "online" if logged_in else "offline"


class WandB(Tracker):
    """A W&B run whose id is kept in the run's directory, so that a resumed run goes on in it.

    Args:
        folder: the run's directory; W&B's files go below it.
        config: nested plain values.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        project: str,
        mode: Literal["online", "offline"],
        config: Mapping[str, Any],
    ) -> None:
        import wandb  # seconds; not paid by runs without it

        self._mode = mode
        id_file = folder / "wandb-id"
        run_id = id_file.read_text().strip() if id_file.exists() else secrets.token_hex(4)
        id_file.write_text(run_id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", project),
            name=name,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(silent=True),
        )
        # W&B's own step may not go back after a resume: ours is a metric like any other.
        self._run.define_metric("train/step")
        self._run.define_metric("*", step_metric="train/step")
        self._run.define_metric("test/accuracy", step_metric="train/step", summary="max,last")
        self._run.define_metric("test/loss", step_metric="train/step", summary="min,last")

    def log(self, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        values = {name: value for name, value in metrics.items() if name != "step"}
        self._run.log(values | {"train/step": metrics["step"]})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._run.summary.update(dict(summary))
        folder = self._run.dir
        self._run.finish()
        if self._mode == "offline":
            print(f"W&B: wandb sync {Path(folder).parent}", flush=True)
