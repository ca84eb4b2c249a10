"""Networks by name. To add one: a function in a file here, a line in MODELS, a name in config."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from dist_train.errors import UserError
from dist_train.models.norm import BatchNorm
from dist_train.models.resnet import resnet9, resnet18
from dist_train.models.simple import cnn, lenet
from dist_train.models.whitened import whitened


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a network is built for."""

    num_classes: int
    image_shape: tuple[int, int, int]
    """(H, W, C)"""
    sample_images: Callable[[], Tensor]
    """Reads normalised training images, float32 (n, C, H, W), for layers learnt from the data."""
    batch_norm_group: int = 0
    """Samples over which BatchNorm takes its statistics; 0: a rank's batch."""

    def norm(self) -> Callable[[int], nn.Module]:
        """The normalisation layer: channels -> module."""
        return partial(BatchNorm, group=self.batch_norm_group)


Widths = Sequence[int]

# name: (constructor, its own channels or units of each stage)
MODELS: dict[str, tuple[Callable[[Inputs, Widths], nn.Module], Widths]] = {
    "cnn2": (lambda i, w: cnn(i.num_classes, i.image_shape, w), (16, 32)),
    "cnn3": (lambda i, w: cnn(i.num_classes, i.image_shape, w), (16, 32, 64)),
    "cnn4": (lambda i, w: cnn(i.num_classes, i.image_shape, w), (16, 32, 64, 128)),
    "lenet": (lambda i, w: lenet(i.num_classes, i.image_shape, w), (6, 16, 120, 84)),
    "resnet9": (
        lambda i, w: resnet9(i.num_classes, i.image_shape, w, i.norm()),
        (64, 128, 256, 512),
    ),
    "resnet18": (
        lambda i, w: resnet18(i.num_classes, i.image_shape, w, i.norm()),
        (64, 128, 256, 512),
    ),
    "whitened": (
        lambda i, w: whitened(i.num_classes, i.sample_images(), w, i.batch_norm_group),
        (64, 256, 256),
    ),
}


def build(name: str, inputs: Inputs, widths: Widths = ()) -> nn.Module:
    """The named network: float (N, C, H, W) to logits (N, num_classes).

    Args:
        widths: channels of each stage; empty for the architecture's own.

    Raises:
        UserError: the architecture has another number of stages.
    """
    constructor, own_widths = MODELS[name]
    if widths and len(widths) != len(own_widths):
        raise UserError(
            f"--model.widths {','.join(map(str, widths))}: {name} takes {len(own_widths)} widths, "
            f"for example {','.join(map(str, own_widths))}"
        )
    return constructor(inputs, widths or own_widths)
