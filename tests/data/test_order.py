"""Which samples a step holds: the same on any world size, after any resume."""

import numpy as np
import pytest

from dist_train.data.order import Order, random_bits, some, split

WORLDS = (1, 2, 3, 4, 7)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("samples", [100, 97, 33, 32])
def test_slices_of_all_ranks_are_the_global_batch(
    samples: int, multiple: int, drop_last: bool
) -> None:
    order = Order(np.arange(samples), 32, seed=3, drop_last=drop_last, multiple=multiple)
    for ids in order.steps(epoch=2):
        for world in WORLDS:
            slices = [order.rank_slice(len(ids), rank, world) for rank in range(world)]
            np.testing.assert_array_equal(np.concatenate([ids[s] for s in slices]), ids)
            assert all(s.start % multiple == 0 or s.start == len(ids) for s in slices)
            sizes = [s.stop - s.start for s in slices]
            assert max(sizes) - min(sizes) <= multiple, sizes


def test_no_rank_gets_more_of_a_short_batch_than_of_a_whole_one() -> None:
    order = Order(np.arange(1000), 100, seed=0)
    for world in range(1, 12):
        for rank in range(world):
            whole = order.rank_slice(100, rank, world)
            for short in range(1, 100):
                part = order.rank_slice(short, rank, world)
                assert part.stop - part.start <= whole.stop - whole.start, (world, rank, short)


@pytest.mark.parametrize("drop_last", [True, False])
def test_an_epoch_holds_each_sample_once(drop_last: bool) -> None:
    ids = np.array([5, 7, 11, 13, 17, 19, 23])
    order = Order(ids, 3, seed=1, drop_last=drop_last)
    seen = np.concatenate(list(order.steps(epoch=0)))
    assert len(seen) == (6 if drop_last else 7)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(ids)


def test_steps_from_the_middle_are_the_rest_of_the_epoch() -> None:
    order = Order(np.arange(50), 8, seed=1, drop_last=False)
    whole = list(order.steps(epoch=4))
    assert len(whole) == order.steps_per_epoch == 7
    for first in range(8):
        rest = list(order.steps(epoch=4, first_step=first))
        assert len(rest) == 7 - first
        for a, b in zip(rest, whole[first:], strict=True):
            np.testing.assert_array_equal(a, b)


def test_epochs_and_seeds_shuffle_differently() -> None:
    ids = np.arange(1000)
    orders = [Order(ids, 10, seed).epoch(epoch) for seed in (0, 1) for epoch in (0, 1)]
    for i, a in enumerate(orders):
        assert (a == ids).mean() < 0.02
        for b in orders[i + 1 :]:
            assert (a == b).mean() < 0.02


def test_random_bits_never_change() -> None:
    # A change here changes every run there ever was: checkpoints could not be gone on with.
    bits = random_bits(seed=1, epoch=2, ids=np.array([0, 1, 50_000]), purpose=3)
    assert bits.tolist() == [12728678829450230821, 14204330627254623631, 17370505841425961394]
    assert (random_bits(0, 0, np.arange(100_000), 1) >> np.uint64(63)).mean() == pytest.approx(
        0.5, abs=0.01
    )


def test_each_argument_of_random_bits_matters() -> None:
    ids = np.arange(10_000)
    base = random_bits(1, 2, ids, 3)
    for other in (random_bits(2, 2, ids, 3), random_bits(1, 3, ids, 3), random_bits(1, 2, ids, 4)):
        differing_bits = np.unpackbits((base ^ other).view(np.uint8)).mean()
        assert differing_bits == pytest.approx(0.5, abs=0.01)


def test_the_validation_split_is_fixed_and_shares_nothing_with_training() -> None:
    train, held_out = split(50_000, 5_000)
    assert len(train) == 45_000
    assert len(held_out) == 5_000
    assert not set(train) & set(held_out)
    np.testing.assert_array_equal(held_out, split(50_000, 5_000)[1])
    # A larger split contains the smaller one: choices made on it stay clean.
    assert set(split(50_000, 1_000)[1]) <= set(held_out)


def test_a_fraction_is_part_of_a_larger_one_and_apart_from_validation() -> None:
    train, held_out = split(1000, 100)
    tenth, half = some(train, 0.1), some(train, 0.5)
    assert (len(tenth), len(half), len(some(train, 1e-6))) == (90, 450, 1)
    assert set(tenth) < set(half) < set(train)
    assert not set(half) & set(held_out)
    assert abs(half.mean() - 500) < 50  # from everywhere
    np.testing.assert_array_equal(some(train, 1.0), train)
