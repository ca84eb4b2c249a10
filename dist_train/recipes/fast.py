"""The fastest networks for CIFAR-10, from one core upwards."""

from dataclasses import replace

from dist_train.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def quickstart() -> Config:
    """A narrow whitened network with Muon, for minutes on two CPU cores.

    88.55 %, and 89.89 % with test-time augmentation (mean of 5 seeds, Intel Xeon with AMX); 170 s
    of training, 198 s in all (one run, AMD EPYC when it was slow; docs/records).
    """
    return Config(
        data=DataConfig(
            batch_size=500,
            flip="alternating",
            crop_padding=2,
            resolutions=(24, 28),
            resolution_until=(0.45, 0.7),
        ),
        model=ModelConfig(name="whitened", widths=(16, 64, 128)),
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=150.0,
            bias_learning_rate=15.0,
            momentum=0.85,
            nesterov=True,
            muon_learning_rate=0.1,
            schedule="linear",
        ),
        train=TrainConfig(epochs=10, label_smoothing=0.2, tta="shift", tta_share=0.25),
    )


def cifar10_94(batch_size: int = 2000) -> Config:
    """Aims at 94 % with test-time augmentation, in little time: airbench's network with Muon.

    The first steps see smaller images, and only the fifth of the test images that the network
    is least sure of is looked at again. Nothing of it depends on the number of ranks, of which
    there can be 4 (BatchNorm's groups).

    94.09 % (mean of 20 seeds) in 1.92 s on an H200 with --runtime.cuda_graphs true, 94.05 % (of 3)
    in 764 s on two CPU cores (docs/records).
    """
    return Config(
        data=DataConfig(
            batch_size=batch_size,
            flip="alternating",
            crop_padding=2,
            resolutions=(24, 28),
            resolution_until=(0.35, 0.55),
        ),
        model=ModelConfig(name="whitened", batch_norm_group=batch_size // 4),
        optim=OptimConfig(
            optimizer="muon",
            # airbench's 0.67 and 0.053 for the sum over the batch.
            learning_rate=0.67 * batch_size,
            bias_learning_rate=0.053 * batch_size,
            momentum=0.85,
            nesterov=True,
            weight_decay=3e-6,
            muon_learning_rate=0.24,
            muon_momentum=0.6,
            schedule="linear",
        ),
        train=TrainConfig(
            epochs=9.5, label_smoothing=0.2, log_every=25, tta="shift", tta_share=0.2
        ),
    )


def cifar10_95(batch_size: int = 2048) -> Config:
    """Aims at 95 %: residual stages, more augmentation, and only the harder half of each batch.

    95.39 % (mean of 3 seeds) in 3,917 s on two CPU cores (docs/records).
    """
    base = cifar10_94(batch_size)
    learnt_from = batch_size // 2
    return replace(
        base,
        data=replace(base.data, crop_padding=4, cutout=12, brightness=0.14, contrast=0.13),
        model=replace(base.model, name="whitened_residual", batch_norm_group=learnt_from // 4),
        optim=replace(
            base.optim,
            learning_rate=0.67 * learnt_from,
            bias_learning_rate=0.053 * learnt_from,
            muon_learning_rate=0.14,
        ),
        train=replace(base.train, epochs=24, select=0.5, select_group=batch_size // 4),
    )


def cifar10_96() -> Config:
    """Aims at 96 %: smaller batches for longer, against over-fitting more cut out, sooner whole.

    96.07 % (mean of 6 seeds, four of which chose the settings); 14.7 s (one run) on an H100 with
    --runtime.cuda_graphs true, 7,628 s (one run, 96.27 %) on two CPU cores (docs/records).
    """
    base = cifar10_95(batch_size=1024)
    return replace(
        base,
        data=replace(base.data, cutout=16, resolution_until=(0.2, 0.4)),
        optim=replace(base.optim, muon_learning_rate=0.1),
        train=replace(base.train, epochs=45),
    )


def resnet9() -> Config:
    """David Page's nine layers on a one-GPU budget of 24 epochs. Not measured."""
    return Config(
        data=DataConfig(batch_size=512, flip="random", crop_padding=4, cutout=8),
        model=ModelConfig(name="resnet9"),
        optim=OptimConfig(
            learning_rate=0.4, nesterov=True, weight_decay=5e-4, schedule="linear", warmup=0.2
        ),
        train=TrainConfig(epochs=24, label_smoothing=0.1),
    )
