"""Averages of weights along the way, which are often better than the last ones."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Averaged(AveragedModel):
    """A copy of a model that holds the average of the weights it is given.

    An exponential moving average (Polyak and Juditsky, 1992), or with decay 0 the plain mean of
    all (stochastic weight averaging, Izmailov et al., 2018). BatchNorm's statistics, moving
    averages themselves, are copied.

    Args:
        model: stays as it is; call `update_parameters(model)` after each step that counts.
        decay: share of the old average in the new one; 0: each step counts the same.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Unlike torch's, which sends the count to the device and back, it waits for nothing."""
        count = int(self.n_averaged)  # a buffer that stays on the CPU
        weight = 1 - self.decay if self.decay and count else 1 / (count + 1)
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), weight)
        for own, given in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(given)
        self.n_averaged += 1
