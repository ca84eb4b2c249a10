"""Fast, honest, distributed training of image classifiers.

From Python: `train` a `Config`, such as one of `recipes`, and look at what came out. The names are
imported when they are first used, so that `import dist_train` costs nothing.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_train.config import (
        CheckpointConfig,
        Config,
        DataConfig,
        ModelConfig,
        OptimConfig,
        RuntimeConfig,
        TrackingConfig,
        TrainConfig,
    )
    from dist_train.errors import Preempted, UserError
    from dist_train.evaluate_run import evaluate_run
    from dist_train.export import export
    from dist_train.predict import predict_images
    from dist_train.recipes import RECIPES
    from dist_train.train import train
    from dist_train.trained import load_trained

__version__ = "0.1.0"

__all__ = [
    "RECIPES",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "Preempted",
    "RuntimeConfig",
    "TrackingConfig",
    "TrainConfig",
    "UserError",
    "evaluate_run",
    "export",
    "load_trained",
    "predict_images",
    "train",
]

# Where each name is, unless it is in the config.
MODULES = {
    "RECIPES": "recipes",
    "Preempted": "errors",
    "UserError": "errors",
    "evaluate_run": "evaluate_run",
    "export": "export",
    "load_trained": "trained",
    "predict_images": "predict",
    "train": "train",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    value = getattr(import_module(f"{__name__}.{MODULES.get(name, 'config')}"), name)
    setattr(sys.modules[__name__], name, value)
    return value


class _Package(ModuleType):
    """`dist_train.train` is the function, also when the file of that name was imported first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and MODULES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
