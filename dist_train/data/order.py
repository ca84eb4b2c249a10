"""Which samples are step k of epoch e: pure functions of the seed, in NumPy.

Nothing here keeps a state. A run that resumes, on any number of ranks, asks the same question and
gets the same answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

# Purposes keep the random numbers of one sample apart. AUGMENT is the first of many.
SHUFFLE, VALIDATION, AUGMENT, FRACTION, NOISE = 1, 2, 3, 1000, 1001


def random_bits(
    seed: int, epoch: int, ids: NDArray[np.integer], purpose: int
) -> NDArray[np.uint64]:
    """64 random bits for each id: a function of its arguments alone.

    Two rounds of SplitMix64's finaliser (Steele et al., "Fast Splittable Pseudorandom Number
    Generators", 2014) over a key of seed, epoch and purpose, then over the id.

    Args:
        ids: any shape; the result has the same.
    """
    key = np.zeros((), np.uint64)
    for part in (seed, epoch, purpose):
        key = _mix(key ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    bits: NDArray[np.uint64] = _mix(_mix(ids.astype(np.uint64) ^ key))
    return bits


def _mix(x: Any) -> Any:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def split(num_samples: int, validation: int) -> tuple[Ids, Ids]:
    """Training and validation ids; the same `validation` ids are held out under every seed.

    Returns:
        Two sorted int64 arrays that share no id.
    """
    ids = np.arange(num_samples, dtype=np.int64)
    ranking = np.argsort(random_bits(0, 0, ids, VALIDATION), kind="stable")
    return np.sort(ranking[validation:]), np.sort(ranking[:validation])


def some(ids: Ids, share: float) -> Ids:
    """That share of the ids, at least one; a smaller share is a part of a larger one.

    Which they are depends on the ids alone, not on the seed.

    Args:
        ids: int64 (n,).
        share: above 0, up to 1.
    """
    if share == 1:
        return ids
    ranking = np.argsort(random_bits(0, 0, ids, FRACTION), kind="stable")
    return np.sort(ids[ranking[: max(1, round(share * len(ids)))]])


@dataclass(frozen=True, slots=True)
class Order:
    """Cuts shuffled epochs into global batches and those into one slice a rank.

    World size never changes which samples make up a step: rank slices laid end to end are the
    global batch.
    """

    ids: Ids
    """The training samples, int64 (n,)."""
    batch_size: int
    """Samples per step over all ranks."""
    seed: int
    drop_last: bool = True
    multiple: int = 1
    """Rank slices begin at multiples of this many samples: BatchNorm's groups stay whole."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass."""
        whole, rest = divmod(len(self.ids), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int) -> Ids:
        """All samples of an epoch in their order, int64 (n,)."""
        bits = random_bits(self.seed, epoch, self.ids, SHUFFLE)
        # The position as the low half makes every key unique, so that any sort gives the same
        # order, and NumPy's vectorised one (ten times as fast as its argsort) does.
        low = np.uint64(0xFFFFFFFF)
        keys = (bits & ~low) | np.arange(len(bits), dtype=np.uint64)
        return self.ids[(np.sort(keys) & low).astype(np.int64)]

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[Ids]:
        """The global batches of an epoch from `first_step` on, int64 (<= batch_size,) each."""
        ids = self.epoch(epoch)
        for step in range(first_step, self.steps_per_epoch):
            yield ids[step * self.batch_size : (step + 1) * self.batch_size]

    def rank_slice(self, num_samples: int, rank: int, world_size: int) -> slice:
        """The part of a global batch of `num_samples` that is this rank's; may be empty."""
        units, rest = divmod(-(-num_samples // self.multiple), world_size)
        first = (rank * units + min(rank, rest)) * self.multiple
        length = (units + (rank < rest)) * self.multiple
        return slice(min(first, num_samples), min(first + length, num_samples))
