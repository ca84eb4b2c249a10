"""Who is told about a run: the trackers that its settings ask for, and what they are told of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dist_train.config import TrackingConfig
from dist_train.summary import circumstances
from dist_train.tracking import Tracker, Trackers, tensorboard, wandb, wandb_setup
from dist_train.tracking.answers import Subject
from dist_train.tracking.background import Background
from dist_train.tracking.console import Console
from dist_train.tracking.json_lines import JsonLines

if TYPE_CHECKING:
    from dist_train.train import Trainer


def check_installed(settings: TrackingConfig) -> None:
    """Raises UserError where a tracker was asked for that is not installed."""
    if settings.wandb != "auto":  # which takes what there is
        wandb_setup.choose_mode(settings.wandb)
    if settings.tensorboard:
        tensorboard.require_installed()


def start_trackers(trainer: Trainer) -> Trackers:
    """Everyone who is told about the run. What may be slow has a thread of its own."""
    config, folder, total_steps = trainer.config, trainer.folder, trainer.total_steps
    settings = config.tracking
    subject = Subject(
        split=trainer.evaluation_data.split,
        classes=trainer.prepared.manifest.classes,
        images=trainer.evaluation_data.images,
    )
    chosen: list[Tracker] = [
        JsonLines(folder / "metrics.jsonl", resumed_step=trainer.step),
        Console(
            first_step=trainer.step,
            total_steps=total_steps,
            steps_per_epoch=trainer.steps_per_epoch,
            split=trainer.evaluation_data.split,
        ),
    ]
    if settings.tensorboard:
        make = partial(
            tensorboard.TensorBoard,
            folder,
            config=config.as_dict(),
            resumed_step=trainer.step,
            total_steps=total_steps,
            subject=subject,
        )
        chosen.append(Background("TensorBoard", make))
    mode = wandb_setup.choose_mode(settings.wandb)
    if mode != "off":
        make_wandb = partial(
            wandb.WandB,
            folder,
            settings,
            mode=mode,
            config={
                **config.as_dict(),
                **circumstances(trainer),
                "data_checksum": trainer.prepared.manifest.train.sha256,
                "slurm": wandb_setup.slurm_job(),
            },
            total_steps=total_steps,
            subject=subject,
            model=trainer.learner.model,
            log_every=config.train.log_every,
        )
        chosen.append(Background("W&B", make_wandb))
    return Trackers(chosen)
