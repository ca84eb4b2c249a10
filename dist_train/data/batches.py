"""Batches of one rank: the order, cut to this rank's slice, with images, labels and draws.

And the images that a run is judged by.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from dist_train.config import DataConfig
from dist_train.data import beton
from dist_train.data.augment import draw
from dist_train.data.order import Ids, Order


class Loader(Protocol):
    """Images by id: streaming.StreamLoader or resident.ResidentLoader."""

    def epoch(self, ids: Ids) -> Generator[Tensor]:
        """Yields uint8 (<= batch_size, H, W, C) on the device, in the order of `ids`."""
        ...

    def close(self) -> None:
        """Frees threads and memory."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of a step. With mix-up or CutMix, 2n samples: partners behind."""

    images: Tensor
    """uint8 (n, H, W, C); valid until the next batch is asked for."""
    labels: Tensor
    """int64 (n,)"""
    draws: Tensor
    """float32 (n, augment.NUM_DRAWS)"""
    share: float
    """This rank's part of the global batch times the world size: 1 when all are equal."""
    global_size: int
    """Samples of this step over all ranks."""
    mixed: bool = False
    """Whether partners follow the samples."""

    def parts(self, count: int) -> list["Batch"]:
        """This batch in at most `count` parts, for gradient accumulation; shares add up."""
        halves = 2 if self.mixed else 1
        samples = len(self.images) // halves
        count = min(count, samples)
        if count == 1:
            return [self]

        def cut(tensor: Tensor) -> list[Tensor]:
            pieces = (half.tensor_split(count) for half in tensor.chunk(halves))
            return [torch.cat(piece) for piece in zip(*pieces, strict=True)]

        columns = zip(cut(self.images), cut(self.labels), cut(self.draws), strict=True)
        return [
            replace(
                self,
                images=images,
                labels=labels,
                draws=draws,
                share=self.share * len(labels) / len(self.labels),
            )
            for images, labels, draws in columns
        ]


Plan = tuple[Ids, Iterable[Callable[[Tensor], Batch]]]
"""A rank's part of an epoch: the ids, int64 (n,), and of each step what makes images a batch."""


@dataclass(frozen=True, slots=True)
class TrainBatches:
    """All steps of an epoch for one rank."""

    loader: Loader
    labels: Tensor
    """Labels of all samples, int64 (N,) on the device."""
    order: Order
    settings: DataConfig
    image_size: tuple[int, int]
    rank: int
    world_size: int

    def steps(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The steps of a run from `first_step` up to, not including, `last_step`.

        An epoch is planned while a GPU still has the last step of the one before to do.
        """
        per_epoch = self.order.steps_per_epoch
        step, plan = first_step, self._plan(*divmod(first_step, per_epoch))
        while step < last_step:
            for batch in islice(self._play(plan), last_step - step):
                step += 1
                if step < last_step and step % per_epoch == 0:
                    plan = self._plan(step // per_epoch, 0)
                yield batch

    def samples(self, steps: int) -> int:
        """Images seen by all ranks in the first steps of a run."""
        epochs, rest = divmod(steps, self.order.steps_per_epoch)
        whole = (
            len(self.order.ids)
            if not self.order.drop_last
            else (self.order.steps_per_epoch * self.order.batch_size)
        )
        return epochs * whole + rest * self.order.batch_size

    def _plan(self, epoch: int, first_step: int) -> Plan:
        """Ids, labels and draws go to the device once an epoch.

        A rank whose slice of a short last batch is empty gets one sample with share 0, so that no
        collective operation is missed.
        """
        steps = list(self.order.steps(epoch, first_step))
        slices = [self.order.rank_slice(len(ids), self.rank, self.world_size) for ids in steps]
        parts = [self._with_partners(ids, part) for ids, part in zip(steps, slices, strict=True)]
        ids = np.concatenate(parts)
        table = draw(
            self.settings, ids, seed=self.order.seed, epoch=epoch, image_size=self.image_size
        )
        labels, draws = self.labels[self._to_device(ids)], self._to_device(table)
        ends = np.cumsum([0, *map(len, parts)]).tolist()
        return ids, (
            partial(
                Batch,
                labels=labels[start:end],
                draws=draws[start:end],
                share=(own.stop - own.start) * self.world_size / len(step),
                global_size=len(step),
                mixed=self.settings.mixes,
            )
            for (start, end), own, step in zip(pairwise(ends), slices, steps, strict=True)
        )

    def _play(self, plan: Plan) -> Iterator[Batch]:
        ids, steps = plan
        with closing(self.loader.epoch(ids)) as images:
            for image, batch in zip(images, steps, strict=True):
                yield batch(image)

    def _with_partners(self, ids: Ids, own: slice) -> Ids:
        """This rank's ids, and behind them those of the samples they are mixed with."""
        if own.start == own.stop:
            own = slice(0, 1)
        if not self.settings.mixes:
            return ids[own]
        # The batch is shuffled already: the sample half a batch on is a random partner.
        return np.concatenate([ids[own], np.roll(ids, len(ids) // 2)[own]])

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.labels.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self.labels.device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """The images a run is judged by: the test set, or the held-out part of the training set."""

    split: Literal["test", "validation"]
    path: Path
    """The prepared file that has them."""
    loader: Loader
    labels: Tensor
    """int64 (N,) on the device, indexed by id."""
    ids: Ids
    """The images to evaluate, over all ranks."""
    batch_size: int
    """Most images that a rank looks at together."""

    def first(self, count: int) -> "EvaluationData":
        """Only so many of them."""
        return replace(self, ids=self.ids[:count])

    def images(self, rows: Sequence[int]) -> beton.UInt8:
        """uint8 (n, H, W, C) of some rows of an evaluation, on the host."""
        return beton.read_some(self.path, self.ids[list(rows)])
