"""What a beginner's text trains: small networks on CIFAR-10 and MNIST."""

from dataclasses import replace

from dist_train.config import Config, DataConfig, ModelConfig, ModelName, OptimConfig, TrainConfig


def lenet() -> Config:
    """PyTorch's CIFAR-10 tutorial, to the letter: batch 4, SGD at 0.001, 2 epochs.

    53.1 % (one seed, bf16; not on record). docs/records has the tutorial's own program.
    """
    return Config(
        data=DataConfig(batch_size=4, normalize="half"),
        model=ModelConfig(name="lenet"),
        optim=OptimConfig(learning_rate=0.001, momentum=0.9, schedule="constant"),
        train=TrainConfig(epochs=2, log_every=2000),
    )


def lenet_fast() -> Config:
    """The tutorial's network in less time: batch 256, Muon, one cycle of the learning rate.

    55.2 % (mean of 3 seeds, bf16) in 4.7 s of training and evaluation, 0.043 times the 110 s in
    which the tutorial's own program reached 55.8 % in turn with it (docs/records).
    """
    return Config(
        data=DataConfig(batch_size=256, normalize="half"),
        model=ModelConfig(name="lenet"),
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=0.2,
            nesterov=True,
            muon_learning_rate=0.04,
            schedule="one_cycle",
        ),
        train=TrainConfig(epochs=1.6),
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
    """Two convolutions (16, 32) and a hidden layer: 79.2 % (2 seeds), 2 min on a core."""
    return plain_cnn("cnn2")


def cnn3() -> Config:
    """Three convolutions (16, 32, 64) and a hidden layer: 82.0 % (2 seeds), 3 min on a core."""
    return plain_cnn("cnn3")


def cnn4() -> Config:
    """Four convolutions (16, 32, 64, 128) and a hidden layer: 82.1 % (2 seeds), 4 min on a core."""
    return plain_cnn("cnn4")


def mnist_mlp() -> Config:
    """MNIST with two hidden layers of 64 and ReLU, Adam, batch 32, 5 epochs: 97.1 % (2 seeds)."""
    return Config(
        data=DataConfig(dataset="mnist", batch_size=32),
        model=ModelConfig(name="mlp", hidden=(64, 64)),
        optim=OptimConfig(optimizer="adam", learning_rate=0.001, schedule="constant"),
        train=TrainConfig(epochs=5, log_every=500),
    )


def mnist_mlp_500_300() -> Config:
    """MNIST with 784-500-300-10, otherwise as mnist_mlp: 97.4 % (2 seeds)."""
    return replace(mnist_mlp(), model=ModelConfig(name="mlp", hidden=(500, 300)))


def mnist_cnn() -> Config:
    """MNIST with two convolutions (32, 64) and a hidden layer: 99.3 % (2 seeds)."""
    base = mnist_mlp()
    return replace(
        base,
        data=replace(base.data, batch_size=128),
        model=ModelConfig(name="cnn2", widths=(32, 64)),
        optim=replace(base.optim, schedule="one_cycle", learning_rate=0.003),
        train=replace(base.train, epochs=3, log_every=100),
    )


def mnist_rnn() -> Config:
    """MNIST row by row by an LSTM of 128 units (`--model.cell gru`: a GRU): 98.9 % (2 seeds)."""
    base = mnist_cnn()
    return replace(base, model=ModelConfig(name="rnn"), train=replace(base.train, epochs=5))
