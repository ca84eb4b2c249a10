"""Averages of weights along the way, which are often better than the last ones."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged_copy(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights (Polyak and Juditsky, 1992).

    BatchNorm's statistics, moving averages themselves, are copied.

    Args:
        model: stays as it is; call `update_parameters(model)` after each step.
        decay: share of the old average in the new one.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
