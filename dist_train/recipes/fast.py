"""The fastest networks for CIFAR-10, from one core upwards."""

from dist_train.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


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
