"""Exact distributed evaluation: every image is counted once, on any world size."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from dist_train import build, runs, runtime
from dist_train.data.augment import Augment, resize
from dist_train.data.batches import Loader
from dist_train.data.order import Ids
from dist_train.data.prepare import prepare_dataset
from dist_train.errors import UserError
from dist_train.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results over a whole set."""

    accuracy: float
    """Share of right answers, 0 to 1."""
    loss: float
    """Mean cross-entropy."""
    samples: int
    """Images counted."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    augment: Augment,
    loader: Loader,
    labels: Tensor,
    ids: Ids,
    runtime: Runtime,
    batch_size: int,
    *,
    size: int | None = None,
    tta: bool = False,
) -> Evaluation:
    """Evaluates the bare model (not DDP's wrapper) on this rank's share of `ids`; sums once.

    Args:
        labels: int64 (N,) on the device, indexed by id.
        ids: the samples to evaluate, over all ranks.
        batch_size: of `loader`.
        size: side in pixels to which images are resized; None for their own.
        tta: average the predictions for `views`.

    Raises:
        RuntimeError: the samples counted over all ranks are not exactly `ids`.
    """
    share = len(ids) // runtime.world_size
    rest = len(ids) % runtime.world_size
    first = runtime.rank * share + min(runtime.rank, rest)
    ids = ids[first : first + share + (runtime.rank < rest)]
    total = runtime.world_size * share + rest

    sums = torch.zeros(3, dtype=torch.float64, device=runtime.device)
    targets = torch.split(labels[torch.from_numpy(ids).to(labels.device)], batch_size)
    was_training = model.training
    model.eval()
    for images, target in zip(loader.epoch(ids), targets, strict=bool(len(ids))):
        with runtime.autocast():
            x = augment(images)
            logits = predict(model, x if size is None else resize(x, size), tta=tta)
        loss = F.cross_entropy(logits, target, reduction="sum")
        correct = (logits.argmax(1) == target).sum()
        sums += torch.stack([loss.double(), correct.double(), torch.ones_like(loss) * len(target)])
    model.train(was_training)
    loss_sum, right, counted = runtime.sum(sums).tolist()
    if counted != total:
        raise RuntimeError(f"evaluated {counted:.0f} samples instead of {total}")
    return Evaluation(accuracy=right / total, loss=loss_sum / total, samples=total)


def evaluate_run(folder: Path) -> dict[str, Any]:
    """Evaluates a finished run's weights on the test set, on any machine and number of ranks.

    Returns:
        run, samples, test_accuracy, test_accuracy_tta, test_loss and world_size.

    Raises:
        UserError: there is no such run, or it has no final weights yet.
    """
    config = runs.read_config(folder)
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{folder} is not finished: expected {weights}; run the same command again")
    settings = replace(config.runtime, device="auto", compile=False)
    with runtime.start(settings) as here:
        prepared = prepare_dataset(config.data)
        loader = build.choose_loader(config.data, prepared.manifest, here)
        test = build.open_test_set(config.data, prepared, loader, here)
        augment = build.augmentation(config.data, prepared.manifest).to(here.device)
        model = build.network(config, prepared, augment)
        model.load_state_dict(load_file(weights))
        model = here.place(model)
        plain, with_tta = (
            evaluate(
                model,
                augment,
                test.loader,
                test.labels,
                test.ids,
                here,
                config.data.eval_batch_size,
                tta=tta,
            )
            for tta in (False, True)
        )
        test.loader.close()
        return {
            "run": str(folder),
            "samples": plain.samples,
            "test_accuracy": plain.accuracy,
            "test_accuracy_tta": with_tta.accuracy,
            "test_loss": plain.loss,
            "world_size": here.world_size,
        }


def predict(model: nn.Module, x: Tensor, *, tta: bool) -> Tensor:
    """Logits, float32 (n, classes), of normalised images (n, C, H, W)."""
    if not tta:
        return model(x).float()  # type: ignore[no-any-return]
    return torch.stack([weight * model(view).float() for weight, view in views(x)]).sum(0)


def views(x: Tensor) -> list[tuple[float, Tensor]]:
    """Six views and their weights: plain and shifted by a pixel along the diagonal, and mirrored.

    Half the weight is on the centred pair (source: airbench, Keller Jordan, 2024).
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    shifted = [padded[..., :height, :width], padded[..., 2:, 2:]]
    centred = [(0.25, x), (0.25, x.flip(-1))]
    return centred + [(0.125, view) for s in shifted for view in (s, s.flip(-1))]
