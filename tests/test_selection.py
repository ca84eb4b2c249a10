"""Which samples of a batch are the hardest."""

import torch

from dist_train.selection import hardest


def test_the_hardest_of_each_group_are_kept_in_their_order() -> None:
    losses = torch.tensor([0.1, 0.9, 0.5, 0.7, 3.0, 1.0, 2.0, 4.0])
    assert hardest(losses, 4, 0.5).tolist() == [1, 3, 4, 7]
    assert hardest(losses, 8, 0.25).tolist() == [4, 7]
    assert hardest(losses, 4, 0.01).tolist() == [1, 7]


def test_the_choice_is_the_same_on_any_number_of_ranks() -> None:
    torch.manual_seed(0)
    losses = torch.rand(96)
    whole = hardest(losses, 16, 0.5)
    ranks = [hardest(part, 16, 0.5) + 32 * rank for rank, part in enumerate(losses.split(32))]
    assert torch.equal(torch.cat(ranks), whole)
