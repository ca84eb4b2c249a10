"""From settings to parts: the one place where the config meets the components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dist_train import models, optim, runs, transfer
from dist_train.config import Config, DataConfig, ModelConfig, OptimConfig
from dist_train.data import beton
from dist_train.data.augment import Augment, Policy
from dist_train.data.batches import Loader, TrainBatches
from dist_train.data.order import Ids, Order, some, split
from dist_train.data.prepare import Manifest, Prepared
from dist_train.data.resident import ResidentLoader
from dist_train.data.streaming import StreamLoader, is_available
from dist_train.errors import UserError
from dist_train.runtime import Runtime
from dist_train.tracking import Tracker, Trackers, tensorboard, wandb, wandb_setup
from dist_train.tracking.answers import Subject
from dist_train.tracking.background import Background
from dist_train.tracking.console import Console
from dist_train.tracking.json_lines import JsonLines

if TYPE_CHECKING:
    from dist_train.train import Trainer

WHITENING_SAMPLES = 5000


def augmentation(data: DataConfig, manifest: Manifest) -> Augment:
    """Augmentation and normalisation for the prepared set."""
    half = tuple(0.5 for _ in manifest.mean)
    dataset = data.normalize == "dataset"
    return Augment(
        policy(data),
        mean=manifest.mean if dataset else half,
        std=manifest.std if dataset else half,
        image_shape=manifest.image_shape,
    )


def policy(data: DataConfig) -> Policy:
    """What is done to training images."""
    return Policy(
        flip=data.flip,
        crop_padding=data.crop_padding,
        crop_mode=data.crop_mode,
        cutout=data.cutout,
        brightness=data.brightness,
        contrast=data.contrast,
        mixup=data.mixup,
        cutmix=data.cutmix,
    )


def choose_loader(data: DataConfig, manifest: Manifest, runtime: Runtime) -> str:
    """What `--data.loader auto` means here: `stream` or `resident`.

    A GPU that has room for the set keeps it, and waits for no copy. CPU processes share the
    file's pages in the operating system's cache instead of holding a copy each.
    """
    if data.loader != "auto":
        return data.loader
    if not is_available():
        return "resident"
    if runtime.device.type == "cpu" or data.storage == "jpeg":
        return "stream"
    free_bytes, _ = torch.cuda.mem_get_info(runtime.device)
    set_bytes = manifest.train.bytes + manifest.test.bytes
    return "resident" if set_bytes < free_bytes / 4 else "stream"


def loader(kind: str, path: Path, *, batch_size: int, device: torch.device, threads: int) -> Loader:
    """A `stream` or `resident` loader of a prepared file."""
    if kind == "stream":
        return StreamLoader(
            path,
            batch_size=batch_size,
            device=device,
            threads=threads,
            background=device.type == "cuda",
        )
    return ResidentLoader(beton.read_images(path), batch_size=batch_size, device=device)


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """The images a run is judged by: the test set, or the held-out part of the training set."""

    split: Literal["test", "validation"]
    loader: Loader
    labels: Tensor
    """int64 (N,) on the device, indexed by id."""
    ids: Ids
    """The images to evaluate, over all ranks."""

    def first(self, count: int) -> EvaluationData:
        """Only so many of them."""
        return replace(self, ids=self.ids[:count])


def open_data(
    data: DataConfig, prepared: Prepared, kind: str, runtime: Runtime, seed: int, group: int
) -> tuple[TrainBatches, EvaluationData]:
    """Batches to train on and images to evaluate on, for this rank.

    Raises:
        UserError: too few samples for a single step, or for the ranks.
    """
    manifest = prepared.manifest
    train_ids, held_out = split(manifest.train.samples, data.validation)
    train_ids = some(train_ids, data.fraction)
    if data.batch_size < runtime.world_size * max(1, group):
        raise UserError(
            f"--data.batch_size {data.batch_size}: expected at least {max(1, group)} for each of "
            f"{runtime.world_size} processes"
        )
    order = Order(train_ids, data.batch_size, seed, data.drop_last, max(1, group))
    if order.steps_per_epoch < 1:
        raise UserError(
            f"--data.batch_size {data.batch_size}: there are only {len(train_ids)} training "
            "images; choose a smaller batch"
        )
    own = order.rank_slice(data.batch_size, runtime.rank, runtime.world_size)
    per_sample = 2 if policy(data).mixes else 1
    open_file = partial(loader, kind, device=runtime.device, threads=data.threads)
    train_labels = torch.from_numpy(beton.read_labels(prepared.train)).to(runtime.device)
    batches = TrainBatches(
        loader=open_file(prepared.train, batch_size=(own.stop - own.start) * per_sample),
        labels=train_labels,
        order=order,
        policy=policy(data),
        image_size=manifest.image_shape[:2],
        rank=runtime.rank,
        world_size=runtime.world_size,
    )
    if not data.validation:
        return batches, open_test_set(data, prepared, kind, runtime)
    held_out_loader = open_file(prepared.train, batch_size=data.eval_batch_size)
    return batches, EvaluationData("validation", held_out_loader, train_labels, held_out)


def open_test_set(
    data: DataConfig, prepared: Prepared, kind: str, runtime: Runtime
) -> EvaluationData:
    """All test images."""
    labels = beton.read_labels(prepared.test)
    return EvaluationData(
        "test",
        loader(
            kind,
            prepared.test,
            batch_size=data.eval_batch_size,
            device=runtime.device,
            threads=data.threads,
        ),
        torch.from_numpy(labels).to(runtime.device),
        np.arange(len(labels), dtype=np.int64),
    )


def image_sizes(data: DataConfig, full_size: int, total_steps: int) -> list[int]:
    """The side in pixels of what the model sees at each step."""
    ends = [round(share * total_steps) for share in data.resolution_until]
    sizes: list[int] = []
    for size, end in zip(data.resolutions, ends, strict=True):
        sizes += [size] * (end - len(sizes))
    return sizes + [full_size] * (total_steps - len(sizes))


def network(config: Config, prepared: Prepared, augment: Augment) -> nn.Module:
    """The model with its initial weights, on the CPU.

    Raises:
        UserError: the settings fit no network, or a model of one's own cannot be had.
    """
    torch.manual_seed(config.seed)

    def sample_images() -> Tensor:
        images = torch.from_numpy(beton.read_images(prepared.train, WHITENING_SAMPLES))
        return augment(images)  # type: ignore[no-any-return]

    return architecture(config, prepared.manifest, sample_images)


def blank_network(config: Config, manifest: Manifest) -> nn.Module:
    """The model to load weights into: it needs no data, and what it would learn from them is 0."""
    height, width, channels = manifest.image_shape
    return architecture(config, manifest, lambda: torch.zeros(1, channels, height, width))


def architecture(
    config: Config, manifest: Manifest, sample_images: Callable[[], Tensor]
) -> nn.Module:
    """The model for the images and classes of a data set, on the CPU."""
    settings = config.model
    if settings.target is not None:
        return models.build_target(settings.target, len(manifest.classes), manifest.image_shape)
    inputs = models.Inputs(
        num_classes=len(manifest.classes),
        image_shape=manifest.image_shape,
        sample_images=sample_images,
        batch_norm_group=settings.batch_norm_group,
        activation=settings.activation,
        dropout=settings.dropout,
        cell=settings.cell,
    )
    return models.build(settings.name, inputs, settings.widths, settings.hidden)


def pretrained(settings: ModelConfig, model: nn.Module, runtime: Runtime, *, fresh: bool) -> None:
    """Gives a fresh model the weights it is to begin from, and freezes what is to stay.

    Raises:
        UserError: weights cannot be had or do not fit, or there is no such part.
    """
    source = settings.pretrained
    if fresh and source is not None:
        weights = runtime.on_main(lambda: transfer.read_weights(source, settings.name))
        runtime.say(f"{source}: {transfer.fit(model, weights)}")
    transfer.freeze(model, settings.freeze)


def optimizers(settings: OptimConfig, model: nn.Module) -> list[torch.optim.Optimizer]:
    """The optimizers, with peak learning rates."""
    bias_learning_rate, backbone = settings.bias_learning_rate, settings.backbone_learning_rate
    differs = backbone is not None and backbone != settings.learning_rate
    return optim.build(
        model,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        bias_learning_rate=(
            settings.learning_rate if bias_learning_rate is None else bias_learning_rate
        ),
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        muon_learning_rate=settings.muon_learning_rate,
        muon_momentum=settings.muon_momentum,
        backbone_factor=(backbone or 0.0) / settings.learning_rate if differs else 1.0,
        head=transfer.head_names(model) if differs else (),
    )


def trackers(trainer: Trainer) -> Trackers:
    """Everyone who is told about the run. What may be slow has a thread of its own.

    Raises:
        UserError: one that was asked for is not installed.
    """
    config, folder, total_steps = trainer.config, trainer.folder, trainer.total_steps
    settings = config.tracking
    subject = Subject(
        split=trainer.judge.split,
        classes=trainer.prepared.manifest.classes,
        images=partial(images_of, trainer.prepared, trainer.judge),
    )
    chosen: list[Tracker] = [
        JsonLines(folder / "metrics.jsonl", resumed_step=trainer.step),
        Console(
            name=folder.name,
            first_step=trainer.step,
            total_steps=total_steps,
            steps_per_epoch=trainer.steps_per_epoch,
            split=trainer.judge.split,
        ),
    ]
    if settings.tensorboard:
        tensorboard.require_installed()
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
        place = wandb_setup.Place(
            name=folder.name,
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            job_type=settings.job_type,
            tags=settings.tags,
            notes=settings.notes,
        )
        make_wandb = partial(
            wandb.WandB,
            folder,
            place=place,
            mode=mode,
            config=config.as_dict() | facts(trainer),
            total_steps=total_steps,
            subject=subject,
            artifacts=settings.artifacts,
            watched=None
            if settings.watch == "none"
            else (trainer.model, settings.watch, config.train.log_every),
        )
        chosen.append(Background("W&B", make_wandb))
    return Trackers(chosen)


def images_of(prepared: Prepared, judge: EvaluationData, rows: Sequence[int]) -> beton.UInt8:
    """uint8 (n, H, W, C) of rows of an evaluation."""
    path = prepared.test if judge.split == "test" else prepared.train
    return beton.read_some(path, judge.ids[list(rows)])


def facts(trainer: Trainer) -> dict[str, Any]:
    """What W&B's config says besides the settings."""
    here = trainer.here
    return {
        "steps": trainer.total_steps,
        "device": here.device_name(),
        "world_size": here.world_size,
        "precision": here.precision,
        "compile": here.compile_backend,
        "chosen_loader": trainer.loader,
        "data_checksum": trainer.prepared.manifest.train.sha256,
        "git_commit": runs.git_commit(),
        "versions": runs.versions(),
        "slurm": wandb_setup.slurm_job(),
    }
