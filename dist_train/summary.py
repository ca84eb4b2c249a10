"""What a run says of itself: a line when it begins, summary.json when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dist_train import runs
from dist_train.evaluate import Evaluation
from dist_train.profiling import step_seconds

if TYPE_CHECKING:
    from dist_train.train import Trainer


def describe(trainer: Trainer) -> str:
    """What is about to happen, in a line or two."""
    config, runtime = trainer.config, trainer.runtime
    lines = [
        f"{trainer.folder}: {config.recipe} on {config.data.dataset} "
        f"({trainer.loader_kind} loader), {runtime.world_size} x {runtime.device_name()}, "
        f"{runtime.precision}, {runtime.compile_backend or 'eager'}, "
        f"{trainer.total_steps} steps of {config.data.batch_size} images"
    ]
    if trainer.step:
        lines.append(f"going on after step {trainer.step}")
    return "\n".join(lines)


def summarise(trainer: Trainer, result: Evaluation, with_tta: Evaluation | None) -> dict[str, Any]:
    """The fields of summary.json; what was not measured is null."""
    config, split = trainer.config, trainer.evaluation_data.split
    seconds = trainer.clock.read()
    parameters = trainer.learner.model.parameters()
    return {
        "recipe": config.recipe,
        "dataset": config.data.dataset,
        "model": config.model.target or config.model.name,
        "seed": config.seed,
        "epochs": trainer.total_steps / trainer.steps_per_epoch,
        **circumstances(trainer),
        **dict.fromkeys(("validation_accuracy", "test_accuracy", "test_accuracy_tta", "test_loss")),
        f"{split}_accuracy": result.accuracy,
        f"{split}_accuracy_tta": with_tta and with_tta.accuracy,
        f"{split}_loss": result.loss,
        "train_accuracy": trainer.last_line.get("train/accuracy"),
        f"best_{split}_accuracy": trainer.best_accuracy,
        "images_per_second": trainer.batches.samples(trainer.total_steps) / seconds["train"],
        "parameters": sum(parameter.numel() for parameter in parameters),
        "flops_per_image": trainer.learner.flops,
        "peak_memory_bytes": trainer.runtime.peak_memory_bytes(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "step_seconds": step_seconds(trainer.folder / "profile"),
        "data_wait_fraction": seconds["data_wait"] / seconds["train"],
        "resumed_from_step": trainer.resumed_from,
        "skipped_steps": sorted(trainer.skipped),
    }


def circumstances(trainer: Trainer) -> dict[str, Any]:
    """What no setting says, but the machine and the software that a run met."""
    runtime = trainer.runtime
    return {
        "steps": trainer.total_steps,
        "loader": trainer.loader_kind,
        "world_size": runtime.world_size,
        "device": runtime.device_name(),
        "precision": runtime.precision,
        "compile": runtime.compile_backend,
        "git_commit": runs.git_commit(),
        "versions": runs.versions(),
    }
