"""Exact distributed evaluation: every image is counted once, on any world size."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_train.config import Views
from dist_train.data.augment import Augment, resize
from dist_train.data.batches import EvaluationData
from dist_train.runtime import Runtime


@dataclass(frozen=True)
class Evaluation:
    """What a model says to a whole set of images; the same on every rank."""

    logits: Tensor
    """float32 (N, classes), on the CPU, in the order of the ids."""
    labels: Tensor
    """int64 (N,), on the CPU."""

    @property
    def samples(self) -> int:
        """Images counted."""
        return len(self.labels)

    @cached_property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return (self.logits.argmax(1) == self.labels).double().mean().item()

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return F.cross_entropy(self.logits.double(), self.labels).item()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    augment: Augment,
    data: EvaluationData,
    runtime: Runtime,
    *,
    size: int | None = None,
    tta: Views = "none",
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluates the bare model (not DDP's wrapper) on this rank's share; gathers once.

    Args:
        size: side in pixels to which images are resized; None for their own.
        tta: average the predictions for `views`.
        after_batch: called after each batch, as often on every rank; may raise to end it all.

    Raises:
        RuntimeError: the answers of all ranks are not one for each image.
    """
    share, rest = divmod(len(data.ids), runtime.world_size)
    first = runtime.rank * share + min(runtime.rank, rest)
    ids = data.ids[first : first + share + (runtime.rank < rest)]
    was_training = model.training
    model.eval()
    answers = []
    try:
        for images in data.loader.epoch(ids):
            with runtime.autocast():
                x = augment(images)
                answers.append(predict(model, x if size is None else resize(x, size), tta=tta))
            runtime.alive()
            after_batch()
        if rest and len(ids) == share and share % data.batch_size == 0:
            after_batch()  # the ranks that have an image more have a batch more
    finally:
        model.train(was_training)
    own = torch.cat(answers).cpu() if answers else None
    logits = torch.cat([part for part in runtime.gather(own) if part is not None])
    if len(logits) != len(data.ids):
        raise RuntimeError(f"evaluated {len(logits)} samples instead of {len(data.ids)}")
    return Evaluation(logits, data.labels.cpu()[torch.from_numpy(data.ids)])


def evaluate_with_tta(
    plain: Evaluation,
    model: nn.Module,
    augment: Augment,
    data: EvaluationData,
    runtime: Runtime,
    *,
    tta: Views,
    share: float,
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """An evaluation of the same images with several views of those it was least sure of.

    Args:
        share: of the images that are looked at again.
        after_batch: see evaluate.
    """
    count = tta_count(plain.samples, share)
    rows = runtime.on_main(lambda: least_sure(plain.logits, count))  # rounding may decide
    again = replace(data, ids=data.ids[rows.numpy()])
    logits = plain.logits.clone()
    looked = evaluate(model, augment, again, runtime, tta=tta, after_batch=after_batch)
    logits[rows] = looked.logits
    return replace(plain, logits=logits)


def least_sure(logits: Tensor, count: int) -> Tensor:
    """The rows of logits (N, classes) of the lowest highest probability: int64 (count,), rising."""
    unsure = logits.softmax(1).amax(1).argsort(stable=True)
    return unsure[:count].sort().values


def tta_count(samples: int, share: float) -> int:
    """How many images a share of them is."""
    return math.ceil(share * samples)


def batch_shapes(data: EvaluationData, world_size: int, *, share: float) -> list[EvaluationData]:
    """As few images as give ranks batches of every size that an evaluation has.

    Full ones, and the last, shorter ones: of all images, and of those that are looked at again.

    Args:
        share: of the images that are looked at again.
    """
    images, at_once = len(data.ids), data.batch_size * world_size
    again = tta_count(images, share)
    counts = {min(at_once, images), images % at_once, again % at_once} - {0}
    return [data.first(count) for count in sorted(counts)]


def predict(model: nn.Module, x: Tensor, *, tta: Views = "none") -> Tensor:
    """Logits, float32 (n, classes), of normalised images (n, C, H, W)."""
    if tta == "none":
        return model(x).float()  # type: ignore[no-any-return]
    return torch.stack([weight * model(view).float() for weight, view in views(x, tta)]).sum(0)


def views(x: Tensor, tta: Views) -> list[tuple[float, Tensor]]:
    """Views of images with their weights, which sum to 1.

    `mirror`: plain and mirrored. `shift`: also shifted by a pixel along the diagonal, six in all,
    with half the weight on the centred pair (source: airbench, Keller Jordan, 2024).
    """
    if tta == "mirror":
        return [(0.5, x), (0.5, x.flip(-1))]
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    shifted = [padded[..., :height, :width], padded[..., 2:, 2:]]
    centred = [(0.25, x), (0.25, x.flip(-1))]
    return centred + [(0.125, view) for s in shifted for view in (s, s.flip(-1))]
