"""Batches of one rank: the order, cut to this rank's slice, with images, labels and draws."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dist_train.data.augment import Policy, draw
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
        if count == 1:
            return [self]
        samples = len(self.images) // (2 if self.mixed else 1)
        pieces = torch.arange(samples).tensor_split(min(count, samples))
        return [self._part(piece) for piece in pieces]

    def _part(self, own: Tensor) -> "Batch":
        chosen = slice(int(own[0]), int(own[-1]) + 1)

        def cut(tensor: Tensor) -> Tensor:
            halves = tensor.chunk(2) if self.mixed else (tensor,)
            parts = [half[chosen] for half in halves]
            return torch.cat(parts) if self.mixed else parts[0]

        samples = len(self.images) // (2 if self.mixed else 1)
        return replace(
            self,
            images=cut(self.images),
            labels=cut(self.labels),
            draws=cut(self.draws),
            share=self.share * len(own) / samples,
        )


@dataclass(frozen=True, slots=True)
class TrainBatches:
    """All steps of an epoch for one rank."""

    loader: Loader
    labels: Tensor
    """Labels of all samples, int64 (N,) on the device."""
    order: Order
    policy: Policy
    image_size: tuple[int, int]
    rank: int
    world_size: int

    def steps(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The steps of a run from `first_step` up to, not including, `last_step`."""
        step = first_step
        while step < last_step:
            epoch, done = divmod(step, self.order.steps_per_epoch)
            for batch in islice(self.epoch(epoch, done), last_step - step):
                step += 1
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

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The steps of `epoch` from `first_step` on.

        Ids, labels and draws go to the device once an epoch. A rank whose slice of a short last
        batch is empty gets one sample with share 0, so that no collective operation is missed.
        """
        steps = list(self.order.steps(epoch, first_step))
        slices = [self.order.rank_slice(len(ids), self.rank, self.world_size) for ids in steps]
        parts = [self._with_partners(ids, part) for ids, part in zip(steps, slices, strict=True)]
        if not parts:
            return
        ids = np.concatenate(parts)
        draws = self._to_device(
            draw(self.policy, ids, seed=self.order.seed, epoch=epoch, image_size=self.image_size)
        )
        labels = self.labels[self._to_device(ids)]
        start = 0
        with closing(self.loader.epoch(ids)) as images:
            for step, part, own, image in zip(steps, parts, slices, images, strict=True):
                end = start + len(part)
                share = (own.stop - own.start) * self.world_size / len(step)
                yield Batch(
                    image,
                    labels[start:end],
                    draws[start:end],
                    share=share,
                    global_size=len(step),
                    mixed=self.policy.mixes,
                )
                start = end

    def _with_partners(self, ids: Ids, own: slice) -> Ids:
        """This rank's ids, and behind them those of the samples they are mixed with."""
        if own.start == own.stop:
            own = slice(0, 1)
        if not self.policy.mixes:
            return ids[own]
        # The batch is shuffled already: the sample half a batch on is a random partner.
        return np.concatenate([ids[own], np.roll(ids, len(ids) // 2)[own]])

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.labels.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self.labels.device, non_blocking=True)
