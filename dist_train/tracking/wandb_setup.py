"""Where a run stands in W&B, and how it is begun there or gone on with."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import sys
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from dist_train.config import TrackingConfig, WandbMode
from dist_train.errors import UserError
from dist_train.files import write_atomically

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("dist_train")

DEFAULT_PROJECT = "dist_train"


def choose_mode(mode: WandbMode) -> Literal["online", "offline", "off"]:
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
    return "offline" if api_key() is None else "online"


def server() -> str:
    """The address of W&B: $WANDB_BASE_URL, else where `wandb login --host` went."""
    folder = os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    settings = ConfigParser(interpolation=None)
    with suppress(OSError, ValueError, ConfigParserError):
        settings.read(Path(folder).expanduser() / "settings")
    known = settings.get("default", "base_url", fallback="https://api.wandb.ai")
    return os.environ.get("WANDB_BASE_URL", known).rstrip("/")


def api_key() -> str | None:
    """The key of a login there, from where W&B keeps it; None without one."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        login = netrc.netrc(path).authenticators(urlsplit(server()).hostname or "")
    except (OSError, ValueError, netrc.NetrcParseError):
        return None
    return login[2] if login else None


def init_arguments(settings: TrackingConfig, name: str) -> dict[str, Any]:
    """Of wandb.init: a flag first, then W&B's variable, then our default."""

    def default(variable: str, value: str | None) -> str | None:
        return None if os.environ.get(variable) else value

    return {
        "name": default("WANDB_NAME", name),
        "project": settings.project or default("WANDB_PROJECT", DEFAULT_PROJECT),
        "entity": settings.entity,
        "group": settings.group or default("WANDB_RUN_GROUP", array_job()),
        "job_type": settings.job_type or default("WANDB_JOB_TYPE", "train"),
        "tags": list(settings.tags) or None,
        "notes": settings.notes,
    }


def array_job() -> str | None:
    """The SLURM job array that this process is a task of: its runs belong together."""
    number = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{os.environ.get('SLURM_JOB_NAME', 'array')}-{number}" if number else None


def slurm_job() -> dict[str, str]:
    """The SLURM job that this process runs in, by the names of SLURM's variables."""
    names = "JOB_ID JOB_NAME JOB_NODELIST JOB_PARTITION JOB_NUM_NODES ARRAY_JOB_ID ARRAY_TASK_ID"
    values = {
        name.lower(): os.environ.get(f"SLURM_{name}") for name in (*names.split(), "RESTART_COUNT")
    }
    return {name: value for name, value in values.items() if value}


def start(
    folder: Path,
    settings: TrackingConfig,
    mode: Literal["online", "offline"],
    config: Mapping[str, Any],
) -> wandb.Run:
    """The run of this directory, new or gone on with; offline when the server is not to be had."""
    import wandb  # a second; in the thread of `Background`

    id_file = folder / "wandb-id"
    # `wandb agent` names the id of the run it asks for.
    given = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    run_id = id_file.read_text().strip() if id_file.exists() else ""
    if not run_id:
        run_id = given
        write_atomically(id_file, run_id.encode())
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
            **init_arguments(settings, folder.name),
            id=run_id,
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            dir=None if os.environ.get("WANDB_DIR") else str(folder),
            config=dict(config),
            settings=wandb.Settings(**own),
        )

    try:
        return quiet(init(mode))
    except wandb.Error as error:
        if mode == "offline":
            raise
        reason = str(error).partition("\n")[0]
        log.warning("W&B cannot be reached, this run is logged offline: %s", reason)
        with suppress(Exception):
            wandb.teardown()  # the process that still tries
        return quiet(init("offline"))


def quiet(run: wandb.Run) -> wandb.Run:
    """The same run; what W&B cannot write to its debug.log, on a full disk, is let go."""
    for handler in logging.getLogger("wandb").handlers:
        handler.handleError = lambda record: None  # type: ignore[method-assign]
    return run
