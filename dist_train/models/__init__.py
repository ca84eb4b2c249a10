"""Networks by name. To add one: a function in a file of its family, a line in MODELS."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from dist_train.errors import UserError
from dist_train.models.inputs import Inputs, Widths
from dist_train.models.resnet import BasicBlock, Bottleneck, ResNet, resnet9
from dist_train.models.simple import RNN, cnn, lenet, mlp
from dist_train.models.vit import ViT
from dist_train.models.whitened import whitened
from dist_train.models.wide_resnet import wide_resnet


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build a network, and its own sizes."""

    build: Callable[[Inputs, Widths, Widths], nn.Module]
    """Inputs, widths, hidden -> network."""
    widths: Widths = ()
    """Channels of each stage."""
    hidden: Widths = ()
    """Units of each fully connected hidden layer; any other number of them will do."""


MODELS: dict[str, Architecture] = {
    "mlp": Architecture(mlp, hidden=(64, 64)),
    "cnn2": Architecture(cnn, widths=(16, 32), hidden=(128,)),
    "cnn3": Architecture(cnn, widths=(16, 32, 64), hidden=(128,)),
    "cnn4": Architecture(cnn, widths=(16, 32, 64, 128), hidden=(128,)),
    "lenet": Architecture(lenet, widths=(6, 16), hidden=(120, 84)),
    "rnn": Architecture(RNN, widths=(128,), hidden=(64,)),
    "resnet9": Architecture(resnet9, widths=(64, 128, 256, 512)),
    "resnet18": Architecture(
        partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2)), widths=(64, 128, 256, 512)
    ),
    "resnet34": Architecture(
        partial(ResNet, block=BasicBlock, depths=(3, 4, 6, 3)), widths=(64, 128, 256, 512)
    ),
    "resnet50": Architecture(
        partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3)), widths=(64, 128, 256, 512)
    ),
    "wide_resnet28_10": Architecture(wide_resnet, widths=(16, 160, 320, 640)),
    "vit": Architecture(ViT, widths=(192,)),
    "whitened": Architecture(whitened, widths=(64, 256, 256)),
    "whitened_residual": Architecture(partial(whitened, residual=True), widths=(128, 384, 512)),
}


def build(name: str, inputs: Inputs, widths: Widths = (), hidden: Widths = ()) -> nn.Module:
    """The named network: float (N, C, H, W) to logits (N, num_classes).

    Args:
        widths: channels of each stage; empty for the architecture's own.
        hidden: units of each fully connected hidden layer; empty for the architecture's own.

    Raises:
        UserError: the architecture has another number of stages, or no hidden layers.
    """
    own = MODELS[name]
    if widths and len(widths) != len(own.widths):
        example = ",".join(map(str, own.widths))
        raise UserError(
            f"--model.widths {','.join(map(str, widths))}: {name} takes {len(own.widths)} widths"
            + (f", for example {example}" if example else "; --model.hidden sets its layers")
        )
    if hidden and not own.hidden:
        raise UserError(
            f"--model.hidden {','.join(map(str, hidden))}: {name} has no such layers; "
            "leave it out, or choose mlp, rnn, lenet or a cnn"
        )
    return own.build(inputs, widths or own.widths, hidden or own.hidden)


def build_target(target: str, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """A network that is none of ours: what the user's function returns.

    Args:
        target: `package.module:function`; the working directory is searched first. The function
            is called as `function(num_classes, image_shape)`, image_shape being (H, W, C).

    Raises:
        UserError: there is no such function, or it returns no network.
    """
    module_name, _, name = target.partition(":")
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:  # console scripts do not look there
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module is there, and lacks one that it needs
        raise UserError(
            f"--model.target {target}: no module {error.name} in the working directory, in "
            "$PYTHONPATH or installed"
        ) from error
    except AttributeError as error:
        raise UserError(f"--model.target {target}: {error}") from error
    network = function(num_classes, image_shape)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"--model.target {target}: expected a torch.nn.Module, got {type(network).__name__}"
        )
    return network
