"""Which samples of a batch are the hardest."""

import torch

from dist_train.config import TrainConfig
from dist_train.selection import hardest


def test_the_hardest_of_each_group_are_kept_in_their_order() -> None:
    losses = torch.tensor([0.1, 0.9, 0.5, 0.7, 3.0, 1.0, 2.0, 4.0])
    assert hardest(losses, 4, 2).tolist() == [1, 3, 4, 7]
    assert hardest(losses, 8, 2).tolist() == [4, 7]
    assert hardest(losses, 4, 1).tolist() == [1, 7]


def test_a_share_is_rounded_to_whole_samples_and_one_is_kept() -> None:
    assert TrainConfig(select=0.5, select_group=7).kept_of_group == 4
    assert TrainConfig(select=0.01, select_group=4).kept_of_group == 1
    assert TrainConfig(select=1.0, select_group=4).kept_of_group == 4


def test_the_choice_is_the_same_on_any_number_of_ranks() -> None:
    torch.manual_seed(0)
    losses = torch.rand(96)
    whole = hardest(losses, 16, 8)
    ranks = [hardest(part, 16, 8) + 32 * rank for rank, part in enumerate(losses.split(32))]
    assert torch.equal(torch.cat(ranks), whole)
