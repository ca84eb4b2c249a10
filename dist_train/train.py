"""The training loop. Read this file first: it goes from top to bottom in the order of a run."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_train import build, runs, runtime
from dist_train.checkpoint import Checkpoints, TrainState
from dist_train.config import Config, OptimConfig
from dist_train.data.batches import Batch
from dist_train.data.prepare import prepare_dataset
from dist_train.evaluate import Evaluation, evaluate
from dist_train.metrics import Clock, Progress, forward_flops
from dist_train.models.norm import grouped_norms
from dist_train.optim.schedules import factor
from dist_train.preemption import Preempted, watch
from dist_train.runtime import Runtime
from dist_train.step import Step
from dist_train.tracking import Trackers


def train(config: Config) -> dict[str, Any]:
    """Trains as configured, or goes on where the run of that name stopped.

    Returns:
        What `<output>/<name>/summary.json` holds.

    Raises:
        UserError: the settings cannot be carried out here.
        Preempted: a signal or the stop file ended the run early.
    """
    clock = Clock()
    with runtime.start(config.runtime) as here:
        name = here.broadcast(config.name or runs.new_name(config.recipe))
        config = replace(config, name=name)
        folder = Path(config.output) / name
        finished = here.on_main(lambda: runs.open_folder(folder, config))
        if finished:
            here.say(f"{runs.result_line(folder, finished)} (finished before; nothing was done)")
            return finished
        return run(config, folder, here, clock)


def run(config: Config, folder: Path, here: Runtime, clock: Clock) -> dict[str, Any]:
    """One run in its folder; see `train`."""
    with clock.phase("prepare"):
        prepared = prepare_dataset(config.data)
        manifest = prepared.manifest
        loader = build.choose_loader(config.data, manifest, here)
        batches, judge = build.open_data(
            config.data, prepared, loader, here, config.seed, config.model.batch_norm_group
        )
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
    state = here.on_main(checkpoints.load_latest)

    # The order of building is a contract: the memory format before the optimizer sees the weights;
    # the weights before DDP copies rank 0's; DDP before compile, which cuts its graph where DDP's
    # buckets end; the optimizers' state last, when their weights are on the device.
    augment = build.augmentation(config.data, manifest)
    model = here.place(build.network(config, prepared, augment))
    flops = forward_flops(model, manifest.image_shape)
    if state:
        model.load_state_dict(state.model)
    norms = grouped_norms(model)
    optimizers = build.optimizers(config.optim, model)
    scaler = torch.amp.GradScaler(here.device.type, enabled=here.precision == "fp16")
    augment.to(here.device)
    objective = here.distribute(Step(model, augment, here, config.train.label_smoothing))
    here.compile(objective)

    steps_per_epoch = batches.order.steps_per_epoch
    total_steps = max(1, round(config.train.epochs * steps_per_epoch))
    total_steps = min(total_steps, config.train.max_steps or total_steps)
    sizes = build.image_sizes(config.data, manifest.image_shape[0], total_steps)
    step, best_accuracy, resumed_from = 0, 0.0, list[int]()
    if state:
        state.restore(model, optimizers, scaler, rank=here.rank, world_size=here.world_size)
        step, best_accuracy = state.step, state.best_accuracy
        resumed_from = [*state.resumed_from, step]
        clock.resume(state.seconds)
    if here.compile_backend is not None:
        with clock.phase("compile"):
            warm_up(objective, model, next(batches.epoch(0)), set(sizes[step:]))

    def judged(size: int | None = None, *, tta: bool = False) -> Evaluation:
        here.synchronize()  # what is still queued is training
        with clock.phase("evaluate"):
            here.average_buffers(model)
            return evaluate(
                model,
                augment,
                judge.loader,
                judge.labels,
                judge.ids,
                here,
                config.data.eval_batch_size,
                size=size,
                tta=tta,
            )

    def save(*, best: bool) -> None:
        with clock.phase("checkpoint"):
            buffers = here.gather({name: b.cpu() for name, b in model.named_buffers()})
            if here.is_main:
                checkpoints.save(
                    TrainState(
                        step=step,
                        model=model.state_dict(),
                        optimizers=[optimizer.state_dict() for optimizer in optimizers],
                        scaler=scaler.state_dict(),
                        buffers=list(buffers),
                        best_accuracy=best_accuracy,
                        seconds=clock.read(),
                        resumed_from=resumed_from,
                    ),
                    best=best,
                )

    trackers = Trackers([])
    if here.is_main:
        print(runs.describe(config, folder, here, loader, step, total_steps), flush=True)
        trackers = build.trackers(config, folder, first_step=step, total_steps=total_steps)
    eval_steps = config.train.eval_every * steps_per_epoch
    checkpoint_steps = config.checkpoint.every_steps or eval_steps
    result, metrics = None, dict[str, float]()
    with clock.phase("train"), watch(folder / "STOP", here) as stop_requested:
        progress = Progress(here, clock)
        for batch in clock.waiting(batches.steps(step, total_steps)):
            set_learning_rates(optimizers, config.optim, step, total_steps)
            for norm in norms:
                norm.rank_share = batch.share
            loss, correct = objective(batch.images, batch.labels, batch.draws, sizes[step])
            scaler.scale(loss * batch.share).backward()
            update(optimizers, scaler, model, config.optim.gradient_clip)
            progress.add(loss.detach() * batch.share, correct, batch)
            step += 1

            last = step == total_steps
            stop = stop_requested() and not last
            eval_due = last or is_due(step, eval_steps)
            improved = False
            if eval_due or is_due(step, config.train.log_every):
                metrics = {"step": step, "epoch": step / steps_per_epoch, "time": time.time()}
                metrics |= progress.take()
                metrics["optim/lr"] = optimizers[0].param_groups[0]["lr"]
                if eval_due:
                    # Before the end, at the size that is being trained: another one says little.
                    result = judged(None if last else sizes[step - 1])
                    improved = result.accuracy > best_accuracy
                    best_accuracy = max(best_accuracy, result.accuracy)
                    metrics[f"{judge.split}/accuracy"] = result.accuracy
                    metrics[f"{judge.split}/loss"] = result.loss
                trackers.log(metrics)
                progress.restart()
            if last or stop or improved or is_due(step, checkpoint_steps):
                save(best=improved)
            if stop:
                trackers.finish({})
                checkpoints.wait()
                raise Preempted(f"{folder} stopped after step {step}; run again to go on")

    result = result or judged()
    with_tta = judged(tta=True) if config.train.tta else None
    batches.loader.close()
    judge.loader.close()
    seconds = clock.read()
    summary = {
        "recipe": config.recipe,
        "dataset": config.data.dataset,
        "model": config.model.name,
        "world_size": here.world_size,
        "device": here.device_name(),
        "precision": here.precision,
        "compile": here.compile_backend,
        "loader": loader,
        "seed": config.seed,
        "epochs": total_steps / steps_per_epoch,
        "steps": total_steps,
        **dict.fromkeys(("validation_accuracy", "test_accuracy", "test_accuracy_tta", "test_loss")),
        f"{judge.split}_accuracy": result.accuracy,
        f"{judge.split}_accuracy_tta": with_tta and with_tta.accuracy,
        f"{judge.split}_loss": result.loss,
        "train_accuracy": metrics.get("train/accuracy"),
        f"best_{judge.split}_accuracy": best_accuracy,
        "images_per_second": batches.samples(total_steps) / seconds["train"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops_per_image": flops,
        "peak_memory_bytes": here.peak_memory_bytes(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "data_wait_fraction": seconds["data_wait"] / seconds["train"],
        "resumed_from_step": resumed_from,
        "git_commit": runs.git_commit(),
        "versions": runs.versions(),
    }
    checkpoints.wait()
    if here.is_main:
        runs.finish(folder, model.state_dict(), summary)
    trackers.finish(summary)
    here.say(runs.result_line(folder, summary))
    return summary


def warm_up(objective: nn.Module, model: nn.Module, batch: Batch, sizes: Iterable[int]) -> None:
    """Compiles forward and backward for every image size; weights and buffers stay as they are."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    for size in sizes:
        loss, _ = objective(batch.images, batch.labels, batch.draws, size)
        (loss * 0).backward()
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    for parameter in model.parameters():
        parameter.grad = None


def set_learning_rates(
    optimizers: Iterable[torch.optim.Optimizer], settings: OptimConfig, step: int, total_steps: int
) -> None:
    """Every group's learning rate is the same share of its peak."""
    share = factor(
        step,
        total_steps,
        schedule=settings.schedule,
        warmup=settings.warmup,
        final=settings.final_fraction,
    )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share


def update(
    optimizers: Iterable[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    model: nn.Module,
    gradient_clip: float,
) -> None:
    """One step of all optimizers; float16's too large gradients skip it."""
    if gradient_clip:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    for optimizer in optimizers:
        optimizer.zero_grad()


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is done after this one."""
    return every > 0 and step % every == 0
