"""Complete, named configurations: functions that return a Config, in a file for each theme.

The docstring of each says what it is and, where it was measured, what it gave: on two CPU cores
(AMD EPYC 9xx5) unless said otherwise. docs/records and docs/studies have the commands.
"""

from collections.abc import Callable

from dist_train.config import Config
from dist_train.recipes.course import (
    cnn2,
    cnn3,
    cnn4,
    lenet,
    lenet_fast,
    mnist_cnn,
    mnist_mlp,
    mnist_mlp_500_300,
    mnist_rnn,
)
from dist_train.recipes.deep import resnet18, resnet18_95, resnet34, resnet50, vit, wide_resnet28_10
from dist_train.recipes.fast import cifar10_94, cifar10_95, cifar10_96, quickstart, resnet9
from dist_train.recipes.transfer import transfer_features, transfer_finetune

RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        quickstart,
        cifar10_94,
        cifar10_95,
        cifar10_96,
        resnet18_95,
        lenet,
        lenet_fast,
        cnn2,
        cnn3,
        cnn4,
        mnist_mlp,
        mnist_mlp_500_300,
        mnist_cnn,
        mnist_rnn,
        resnet9,
        resnet18,
        resnet34,
        resnet50,
        wide_resnet28_10,
        vit,
        transfer_features,
        transfer_finetune,
    )
}
