"""Transfer learning: from a network trained on one data set to another data set.

Both begin from `runs/quickstart`, which `dist-train train quickstart --name quickstart` makes;
`--model.pretrained` names another run, a file, or torchvision. Gain over training from scratch:
with 1 % of the labels 44.6 % instead of 27.7 %, none with 10 % or more
(`quickstart`'s network of 2026-11-21; docs/studies/transfer.md).
"""

from dataclasses import replace

from dist_train.config import Config, DataConfig, OptimConfig, TrainConfig
from dist_train.recipes.fast import quickstart


def transfer_features() -> Config:
    """Feature extraction: all but a new head is frozen. From CIFAR-10 to `shapes`."""
    return Config(
        data=DataConfig(dataset="shapes", batch_size=50),
        model=replace(quickstart().model, pretrained="runs/quickstart", freeze=("backbone",)),
        # The head's inputs are scaled down: its rate is as high as quickstart's is.
        optim=OptimConfig(optimizer="adam", learning_rate=1.0),
        train=TrainConfig(epochs=10),
    )


def transfer_finetune() -> Config:
    """Fine-tuning: everything trains, the pretrained part at a tenth of the head's rate."""
    base = transfer_features()
    return replace(
        base,
        model=replace(base.model, freeze=()),
        optim=replace(base.optim, learning_rate=0.3, backbone_learning_rate=0.001),
    )
