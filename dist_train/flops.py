"""How many floating-point operations a network needs, and how many a device can do."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dist_train.config import Config
from dist_train.errors import UserError


def forward_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image's forward pass (a multiply-add counts as two)."""
    height, width, channels = image_shape
    device = next(model.parameters()).device
    was_training = model.training
    with FlopCounterMode(display=False, custom_mapping=FUSED) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, channels, height, width, device=device))
    model.train(was_training)
    return int(counter.get_total_flops())


def flops_of_sizes(
    config: Config, model: nn.Module, image_shape: tuple[int, int, int], sizes: Iterable[int]
) -> int:
    """Operations of a forward pass at full size; tries the other sizes of a run as well.

    Raises:
        UserError: one of our own networks cannot take them, which is better known before a run.
    """
    height, width, channels = image_shape
    smaller = sorted({(size, size) for size in sizes} - {(height, width)})
    flops = 0
    for size in (*smaller, (height, width)):
        try:
            flops = forward_flops(model, (*size, channels))
        except RuntimeError as error:
            if config.model.target is not None:
                raise
            raise UserError(
                f"{config.model.name} cannot take images of {size[0]}x{size[1]} pixels with these "
                f"--model.widths ({str(error).splitlines()[0]}): choose others, or larger "
                "--data.resolutions or --data.image_size"
            ) from error
    return flops


def recurrent_flops(inputs: Sequence[int], *more: Any, **_: Any) -> int:
    """Of torch's fused recurrent kernels, of which its counter does not know.

    Args:
        inputs: shape (steps, N, features).
        more: shapes of the weights, one after the other or in a list, and other arguments.
    """
    weights = more[0] if isinstance(more[0][0], Sequence) else more[:2]
    per_step: int = sum(prod(shape) for shape in weights if len(shape) == 2)
    return 2 * inputs[0] * inputs[1] * per_step


FUSED = dict.fromkeys((torch.ops.aten.mkldnn_rnn_layer, torch.ops.aten._cudnn_rnn), recurrent_flops)


# Floating-point operations of forward and backward, as a multiple of forward's.
TRAINING_FLOPS = 3

# Dense matrix multiplication, in 10^12 operations a second: (bf16 and fp16, fp32 by way of TF32
# where the device has it). Source: NVIDIA's data sheets; the longest name that fits counts.
PEAKS = {
    "NVIDIA B200": (2250.0, 1125.0),
    "NVIDIA H200": (989.4, 494.7),
    "NVIDIA H200 NVL": (835.5, 417.5),
    "NVIDIA H100": (989.4, 494.7),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA H100 NVL": (835.5, 417.5),
    "NVIDIA A100": (312.0, 156.0),
    "NVIDIA L40S": (362.0, 183.0),
    "NVIDIA L4": (121.0, 60.0),
    "Tesla V100": (125.0, 15.7),
    "Tesla V100-PCIE": (112.0, 14.0),
    "Tesla T4": (65.0, 8.1),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """The most operations a second the device can do; None where that is not known."""
    fitting = [name for name in PEAKS if f"{device_name} -".startswith((f"{name} ", f"{name}-"))]
    if not fitting or " MIG " in device_name:  # a slice of a GPU
        return None
    half, single = PEAKS[max(fitting, key=len)]
    return (single if precision == "fp32" else half) * 1e12
