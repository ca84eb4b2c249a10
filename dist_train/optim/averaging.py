"""Averages of weights along the way, which are often better than the last ones."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn


def averaged_copy(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that holds the average of the weights it is given.

    An exponential moving average (Polyak and Juditsky, 1992), or with decay 0 the plain mean of
    all (stochastic weight averaging, Izmailov et al., 2018). BatchNorm's statistics, moving
    averages themselves, are copied.

    Args:
        model: stays as it is; call `update_parameters(model)` after each step that counts.
        decay: share of the old average in the new one; 0: each step counts the same.
    """
    if decay:
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]
