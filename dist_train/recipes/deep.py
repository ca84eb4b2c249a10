"""The networks people know, for one GPU or many."""

from dataclasses import replace

from dist_train.config import Config, ModelConfig, OptimConfig
from dist_train.recipes.fast import resnet9


def resnet18() -> Config:
    """The ResNet-18 people know, with the CIFAR stem: 50 epochs on one GPU or many."""
    base = resnet9()
    return replace(
        base,
        model=ModelConfig(name="resnet18"),
        optim=replace(base.optim, learning_rate=0.2, schedule="cosine", warmup=0.1),
        train=replace(base.train, epochs=50),
    )


def resnet18_95() -> Config:
    """The same network to 95 %, by the parts of the fast recipes: Muon, small images first, views.

    Its curve is the same on up to 4 ranks (BatchNorm's groups). 95.03 %, 94.16 % without the views
    (one seed), in 4,673 s on two cores of an Intel Xeon with AMX (docs/records).
    """
    base = resnet18()
    return replace(
        base,
        data=replace(
            base.data,
            flip="alternating",
            cutout=12,
            resolutions=(24, 28),
            resolution_until=(0.35, 0.55),
        ),
        model=replace(base.model, batch_norm_group=128),
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=0.03,
            nesterov=True,
            muon_learning_rate=0.1,
            schedule="linear",
        ),
        train=replace(base.train, epochs=15, label_smoothing=0.2, tta="shift", tta_share=0.25),
    )


def resnet34() -> Config:
    """ResNet-34 with the CIFAR stem, otherwise as resnet18. Accuracy: not measured."""
    return replace(resnet18(), model=ModelConfig(name="resnet34"))


def resnet50() -> Config:
    """ResNet-50 with the CIFAR stem, otherwise as resnet18. Accuracy: not measured."""
    return replace(resnet18(), model=ModelConfig(name="resnet50"))


def wide_resnet28_10() -> Config:
    """WideResNet-28-10, 36.5 M parameters (Zagoruyko and Komodakis, 2016).

    Batch 128, Nesterov, 200 epochs, as in the paper but for a cosine. Accuracy: not measured.
    """
    base = resnet9()
    return replace(
        base,
        data=replace(base.data, batch_size=128, cutout=0),
        model=ModelConfig(name="wide_resnet28_10"),
        optim=OptimConfig(learning_rate=0.1, nesterov=True, weight_decay=5e-4),
        train=replace(base.train, epochs=200, label_smoothing=0.0),
    )


def vit() -> Config:
    """A vision transformer of 2.7 M parameters on patches of 4x4. Accuracy: not measured.

    Without convolutions it needs many epochs and strong augmentation to learn from 50,000 images.
    """
    base = resnet9()
    return replace(
        base,
        data=replace(base.data, cutmix=1.0, cutout=0),
        model=ModelConfig(name="vit"),
        optim=OptimConfig(
            optimizer="adamw", learning_rate=1e-3, weight_decay=0.05, warmup=0.1, gradient_clip=1.0
        ),
        train=replace(base.train, epochs=100),
    )
