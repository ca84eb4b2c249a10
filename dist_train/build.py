"""From settings to parts: the one place where the config meets the components."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dist_train import models, optim, transfer
from dist_train.config import Config, DataConfig, ModelConfig, OptimConfig
from dist_train.data import beton
from dist_train.data.augment import Augment
from dist_train.data.batches import EvaluationData, Loader, TrainBatches
from dist_train.data.order import Order, some, split
from dist_train.data.prepare import Manifest, Prepared, prepare_dataset
from dist_train.data.resident import ResidentLoader
from dist_train.data.streaming import StreamLoader, is_available
from dist_train.errors import UserError
from dist_train.models.inputs import Inputs
from dist_train.optim.losses import LOSSES
from dist_train.runtime import Runtime
from dist_train.selection import Selector
from dist_train.step import Step

WHITENING_SAMPLES = 5000


def augmentation(data: DataConfig, manifest: Manifest) -> Augment:
    """Augmentation and normalisation for the prepared set.

    Raises:
        UserError: images are too small to be padded so much.
    """
    side = min(manifest.image_shape[:2])
    if data.crop_mode == "reflect" and data.crop_padding >= side:
        raise UserError(
            f"--data.crop_padding {data.crop_padding}: a mirror needs less than the {side} pixels "
            "of an image; lower it, or try --data.crop_mode zero"
        )
    half = tuple(0.5 for _ in manifest.mean)
    dataset = data.normalize == "dataset"
    return Augment(
        data,
        mean=manifest.mean if dataset else half,
        std=manifest.std if dataset else half,
        image_shape=manifest.image_shape,
    )


def prepared_data(data: DataConfig, runtime: Runtime) -> Prepared:
    """The prepared data set, which is the same on all nodes.

    Raises:
        UserError: it is not, or is not to be had, or FFCV is missing, which it needs.
    """

    def prepare() -> Prepared:
        require_ffcv(data)
        return prepare_dataset(data)

    prepared = runtime.on_each(prepare)
    train, test = prepared.manifest.train, prepared.manifest.test
    runtime.agree(
        "processes have different data",
        f"checksums {train.sha256[:12]}, {test.sha256[:12]}",
        "bring the same to all nodes, or share one --data.cache",
    )
    return prepared


def require_ffcv(data: DataConfig) -> None:
    """Raises UserError where settings ask for what FFCV alone reads, and it is not installed."""
    asked = "--data.loader stream" if data.loader == "stream" else "--data.storage jpeg"
    if not is_available() and (data.loader == "stream" or data.storage == "jpeg"):
        raise UserError(
            f"{asked}: needs FFCV, which is not installed; run launch/setup.sh, or use "
            "--data.loader resident with --data.storage raw"
        )


def choose_loader(data: DataConfig, manifest: Manifest, runtime: Runtime) -> str:
    """What `--data.loader auto` means here: `stream` or `resident`.

    A GPU that has room for the set keeps it, and waits for no copy. CPU processes share the
    file's pages in the operating system's cache instead of holding a copy each.
    """
    if data.loader != "auto":
        return data.loader
    if data.storage == "jpeg":
        return "stream"
    if not is_available():
        return "resident"
    if runtime.device.type == "cpu":
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


def train_batches(config: Config, prepared: Prepared, kind: str, runtime: Runtime) -> TrainBatches:
    """Batches to train on, for this rank.

    Raises:
        UserError: too few samples for a single step, or for the ranks.
    """
    data, seed = config.data, config.seed
    # So many samples stay together on one rank.
    group, flag = config.model.batch_norm_group, "--model.batch_norm_group"
    if config.train.select < 1:
        group, flag = config.train.select_group, "--train.select_group"
    multiple = max(1, group)
    manifest = prepared.manifest
    train_ids, _ = split(manifest.train.samples, data.validation)
    train_ids = some(train_ids, data.fraction)
    if data.batch_size < runtime.world_size * multiple:
        raise UserError(
            f"--data.batch_size {data.batch_size}: expected at least {multiple} for each of "
            f"{runtime.world_size} processes" + (f", or a smaller {flag}" if group > 1 else "")
        )
    order = Order(train_ids, data.batch_size, seed, data.drop_last, multiple)
    if order.steps_per_epoch < 1:
        raise UserError(
            f"--data.batch_size {data.batch_size}: there are only {len(train_ids)} training "
            "images; choose a smaller batch"
        )
    own = order.rank_slice(data.batch_size, runtime.rank, runtime.world_size)
    per_sample = 2 if data.mixes else 1
    return TrainBatches(
        loader=runtime.on_each(
            lambda: loader(
                kind,
                prepared.train,
                batch_size=(own.stop - own.start) * per_sample,
                device=runtime.device,
                threads=data.threads,
            )
        ),
        labels=torch.from_numpy(beton.read_labels(prepared.train)).to(runtime.device),
        order=order,
        settings=data,
        image_size=manifest.image_shape[:2],
        rank=runtime.rank,
        world_size=runtime.world_size,
    )


def evaluation_data(
    data: DataConfig, prepared: Prepared, kind: str, runtime: Runtime
) -> EvaluationData:
    """Images held out from training, where there are any, else the test set."""
    held_out = data.validation > 0
    path = prepared.train if held_out else prepared.test
    labels = beton.read_labels(path)
    if held_out:
        _, ids = split(len(labels), data.validation)
    else:
        ids = np.arange(len(labels), dtype=np.int64)
    return EvaluationData(
        "validation" if held_out else "test",
        path,
        runtime.on_each(
            lambda: loader(
                kind,
                path,
                batch_size=data.eval_batch_size,
                device=runtime.device,
                threads=data.threads,
            )
        ),
        torch.from_numpy(labels).to(runtime.device),
        ids,
        data.eval_batch_size,
    )


def image_sizes(data: DataConfig, full_size: int, total_steps: int) -> list[int]:
    """The side in pixels of what the model sees at each step."""
    ends = [round(share * total_steps) for share in data.resolution_until]
    sizes: list[int] = []
    for size, end in zip(data.resolutions, ends, strict=True):
        sizes += [size] * (end - len(sizes))
    return sizes + [full_size] * (total_steps - len(sizes))


def network(config: Config, prepared: Prepared, augment: Augment) -> nn.Module:
    """The model with its initial weights, on the CPU; what they take from the data is computed
    where `augment` is.

    Raises:
        UserError: the settings fit no network, or a model of one's own cannot be had.
    """
    torch.manual_seed(config.seed)

    def sample_images() -> Tensor:
        images = torch.from_numpy(beton.read_some(prepared.train, slice(WHITENING_SAMPLES)))
        return augment(images.to(augment.mean.device))  # type: ignore[no-any-return]

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
    inputs = Inputs(
        num_classes=len(manifest.classes),
        image_shape=manifest.image_shape,
        sample_images=sample_images,
        batch_norm_group=settings.batch_norm_group,
        activation=settings.activation,
        dropout=settings.dropout,
        cell=settings.cell,
    )
    return models.build(settings.name, inputs, settings.widths, settings.hidden)


def selector(
    config: Config, prepared: Prepared, augment: Augment, runtime: Runtime
) -> Selector | None:
    """What cuts batches down to their hardest samples, where that is asked for.

    Raises:
        UserError: the model's widths cannot be those of the proxy, or the precision is float16.
    """
    train = config.train
    if train.select == 1:
        return None
    if runtime.precision == "fp16":
        raise UserError(
            f"--train.select {train.select}: the proxy has no loss scaling for --runtime.precision "
            "fp16; choose bf16 or fp32"
        )
    try:
        proxy = runtime.place(network(proxy_config(config), prepared, augment))
    except UserError as error:
        raise UserError(str(error).replace("--model.widths", "--train.proxy_widths")) from error
    loss, smoothing = LOSSES[train.loss], train.label_smoothing
    step = Step(proxy, augment, runtime, loss, smoothing, reduced=False)
    runtime.compile(step)
    return Selector(
        step,
        optimizers(config.optim, proxy, runtime),
        config.optim,
        runtime,
        group=train.select_group,
        kept=train.kept_of_group,
        every=train.proxy_every,
    )


def proxy_config(config: Config) -> Config:
    """The same with the network that chooses samples in place of the one that learns from them."""
    return replace(config, model=replace(config.model, widths=config.train.proxy_widths))


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


def optimizers(
    settings: OptimConfig, model: nn.Module, runtime: Runtime, *, same_gradients: bool = True
) -> list[torch.optim.Optimizer]:
    """The optimizers, with peak learning rates; see optim.build."""
    apart = settings.backbone_learning_rate is not None
    head = transfer.head_names(model) if apart else ()
    return optim.build(
        model,
        settings,
        head=head,
        same_gradients=same_gradients,
        compile=runtime.compile,
        recorded=runtime.cuda_graphs,
    )
