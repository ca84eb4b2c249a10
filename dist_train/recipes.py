"""Complete, named configurations: functions that return a Config.

The docstring of each says what it is and what it gave where. Figures are for two CPU cores (AMD
EPYC 9xx5) unless said otherwise, and were measured with `dist-train train NAME`.
"""

from collections.abc import Callable
from dataclasses import replace

from dist_train.config import Config, DataConfig, ModelConfig, ModelName, OptimConfig, TrainConfig


def quickstart() -> Config:
    """A narrow whitened network with Muon, made to be good after two minutes on two CPU cores."""
    return Config(
        data=DataConfig(
            batch_size=500,
            flip="alternating",
            crop_padding=2,
            resolutions=(24,),
            resolution_until=(0.5,),
        ),
        model=ModelConfig(name="whitened", widths=(24, 64, 64)),
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=150.0,
            bias_learning_rate=15.0,
            momentum=0.85,
            nesterov=True,
            muon_learning_rate=0.1,
            schedule="linear",
        ),
        train=TrainConfig(epochs=10, label_smoothing=0.2, tta=True),
    )


def lenet() -> Config:
    """PyTorch's CIFAR-10 tutorial, to the letter: batch 4, SGD at 0.001, 2 epochs."""
    return Config(
        data=DataConfig(batch_size=4, normalize="half"),
        model=ModelConfig(name="lenet"),
        optim=OptimConfig(learning_rate=0.001, momentum=0.9, schedule="constant"),
        train=TrainConfig(epochs=2, log_every=2000),
    )


def plain_cnn(name: ModelName) -> Config:
    """What cnn2, cnn3 and cnn4 share: mirrored and shifted images, SGD, a cosine to zero."""
    return Config(
        data=DataConfig(batch_size=128, flip="random", crop_padding=2),
        model=ModelConfig(name=name),
        optim=OptimConfig(learning_rate=0.05, nesterov=True, weight_decay=5e-4, warmup=0.05),
        train=TrainConfig(epochs=15),
    )


def cnn2() -> Config:
    """Two convolutions (16, 32) and a hidden layer."""
    return plain_cnn("cnn2")


def cnn3() -> Config:
    """Three convolutions (16, 32, 64) and a hidden layer."""
    return plain_cnn("cnn3")


def cnn4() -> Config:
    """Four convolutions (16, 32, 64, 128) and a hidden layer."""
    return plain_cnn("cnn4")


def resnet9() -> Config:
    """David Page's nine layers on a one-GPU budget of 24 epochs."""
    return Config(
        data=DataConfig(batch_size=512, flip="random", crop_padding=4, cutout=8),
        model=ModelConfig(name="resnet9"),
        optim=OptimConfig(
            learning_rate=0.4, nesterov=True, weight_decay=5e-4, schedule="linear", warmup=0.2
        ),
        train=TrainConfig(epochs=24, label_smoothing=0.1),
    )


def resnet18() -> Config:
    """The ResNet-18 people know, with the CIFAR stem: 50 epochs on one GPU or many."""
    base = resnet9()
    return replace(
        base,
        model=ModelConfig(name="resnet18"),
        optim=replace(base.optim, learning_rate=0.2, schedule="cosine", warmup=0.1),
        train=replace(base.train, epochs=50),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "quickstart": quickstart,
    "lenet": lenet,
    "cnn2": cnn2,
    "cnn3": cnn3,
    "cnn4": cnn4,
    "resnet9": resnet9,
    "resnet18": resnet18,
}
