"""Complete, named configurations. The docstring of each says what it gives and where."""

from collections.abc import Callable

from dist_train.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def quickstart() -> Config:
    """CIFAR-10 in two minutes on two CPU cores."""
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
            learning_rate=300.0,
            bias_learning_rate=30.0,
            momentum=0.85,
            nesterov=True,
            muon_learning_rate=0.24,
            schedule="linear",
        ),
        train=TrainConfig(epochs=10, label_smoothing=0.2, tta=True),
    )


RECIPES: dict[str, Callable[[], Config]] = {"quickstart": quickstart}
