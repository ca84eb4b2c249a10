"""Every setting of a run, typed. Standard library only, so that it loads in no time.

A recipe (recipes/) returns a complete `Config`; the command line overrides single fields as
`--section.field value`. A component takes single values, or the section that is about it alone;
build.py takes the whole apart.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Literal, get_type_hints

from dist_train.checks import check

DatasetName = Literal["cifar10", "cifar100", "mnist", "fashion_mnist", "folder", "shapes"]
ModelName = Literal[
    "mlp", "cnn2", "cnn3", "cnn4", "lenet", "rnn",
    "resnet9", "resnet18", "resnet34", "resnet50", "wide_resnet28_10", "vit",
    "whitened", "whitened_residual",
]  # fmt: skip
Views = Literal["none", "mirror", "shift"]
Storage = Literal["raw", "jpeg"]
WandbMode = Literal["auto", "online", "offline", "off"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, in which batches, and how they are augmented."""

    dataset: DatasetName = "cifar10"
    """The data set. `folder` reads images from class folders, `shapes` is built in."""
    root: str | None = None
    """Folder that holds the data sets (of `folder`: that with train/ and test/); unset:
    $DIST_TRAIN_DATA, then data/, else download into data/."""
    cache: str = "data/prepared"
    """Folder of the prepared .beton files; written once, shared by the processes of a node."""
    loader: Literal["auto", "stream", "resident"] = "auto"
    """`stream`: FFCV reads the .beton. `resident`: the whole set lives on the device."""
    storage: Storage = "raw"
    """How images are stored; `jpeg` (quality 95, in colour) is smaller, read by `stream` only."""
    image_size: int | None = None
    """Side in pixels of prepared `folder` (64 if unset) and `shapes` (32 if unset) images."""
    train_samples: int = 20_000
    """Training images of the built-in `shapes` set (its test set has a fifth as many)."""
    validation: int = 0
    """Training images held out (by a fixed hash) and evaluated instead of the test set."""
    fraction: float = 1.0
    """Share of the training images and labels used, a fixed choice; epochs are as much shorter."""
    batch_size: int = 512
    """Images per optimizer step over all processes: the global batch."""
    eval_batch_size: int = 1000
    """Images per evaluation batch of one process."""
    drop_last: bool = True
    """Leave out the last, short batch of an epoch."""
    threads: int = 1
    """Threads with which FFCV decodes, per process."""
    normalize: Literal["dataset", "half"] = "dataset"
    """Subtract and divide by the training set's mean and std, or by 0.5 and 0.5."""
    resolutions: tuple[int, ...] = ()
    """Image sides to train on first, for example 24,28; full size comes last."""
    resolution_until: tuple[float, ...] = ()
    """The share of the steps at which each of `resolutions` ends, for example 0.5,0.75."""
    flip: Literal["none", "random", "alternating"] = "none"
    """Mirror images: at random, or at random in epoch 0 and in turn from then on (airbench)."""
    crop_padding: int = 0
    """Pad by so many pixels, then crop back to size at a random place."""
    crop_mode: Literal["reflect", "zero"] = "reflect"
    """What the padding is filled with."""
    cutout: int = 0
    """Side in pixels of the square set to 0 after normalisation (DeVries and Taylor, 2017)."""
    brightness: float = 0.0
    """Multiply each image by a factor from [1 - x, 1 + x]."""
    contrast: float = 0.0
    """Scale each image's distance to its mean by a factor from [1 - x, 1 + x]."""
    mixup: float = 0.0
    """Alpha of mix-up's Beta(alpha, alpha); 0 is off (Zhang et al., 2018)."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta(alpha, alpha); 0 is off (Yun et al., 2019)."""

    @property
    def mixes(self) -> bool:
        """Whether each sample is combined with a partner."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which network."""

    name: ModelName = "resnet9"
    """The architecture."""
    target: str | None = None
    """A model of your own in place of `name`, as package.module:function (docs/extending.md)."""
    widths: tuple[int, ...] = ()
    """Channels of each stage, comma-separated; empty: the architecture's own."""
    hidden: tuple[int, ...] = ()
    """Units of each fully connected hidden layer of a simple model (mlp, cnn*, lenet, rnn)."""
    activation: Literal["relu", "sigmoid", "tanh", "softmax", "gelu", "silu"] = "relu"
    """Between the layers of a simple model."""
    dropout: float = 0.0
    """Share of a simple model's fully connected hidden units that is dropped in training."""
    cell: Literal["lstm", "gru"] = "lstm"
    """Of `rnn`."""
    pretrained: str | None = None
    """Weights to begin from, with a new head: a run's directory, a .safetensors or .pth file, or
    `torchvision`, which downloads its own."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are, with their BatchNorm statistics: names of modules, for example
    conv1,layer1, or `backbone` for all but the last linear layer."""
    batch_norm_group: int = 0
    """Samples over which BatchNorm takes statistics, whatever the world size; 0: a rank's batch."""
    sync_batch_norm: bool = False
    """BatchNorm over the samples of all ranks together: GPUs only, not compiled, and each layer of
    each step waits for the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """How the weights move."""

    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "muon"] = "sgd"
    """`sgd` has momentum unless that is 0. `muon` orthogonalises the update of convolution filters
    and leaves the rest to SGD."""
    learning_rate: float = 0.1
    """Peak learning rate, for the mean loss over the global batch."""
    bias_learning_rate: float | None = None
    """Peak learning rate of biases and normalisation; unset: `learning_rate`."""
    backbone_learning_rate: float | None = None
    """Peak learning rate of all but the last linear layer (that of its biases, or Muon's, is lower
    by as much); unset: `learning_rate`."""
    momentum: float = 0.9
    """Momentum of sgd and rmsprop (0: none), beta1 of adam and adamw."""
    nesterov: bool = False
    """Nesterov's form of sgd's momentum."""
    weight_decay: float = 0.0
    """Per step and unit of learning rate, on weights of two or more dimensions only, and not on
    what Muon moves."""
    muon_learning_rate: float = 0.24
    """Muon's peak learning rate."""
    muon_momentum: float = 0.6
    """Muon's momentum."""
    schedule: Literal[
        "constant", "linear", "cosine", "triangle", "one_cycle", "step", "exponential", "plateau"
    ] = "cosine"
    """How the learning rate goes on from its peak. `triangle` is linear and `one_cycle` a cosine
    with a long rise; `plateau` lowers it when the loss of evaluations no longer falls."""
    warmup: float | None = None
    """Share of the steps in which the learning rate rises; unset: 0.3 for triangle and one_cycle,
    else 0."""
    start_fraction: float = 0.0
    """What it rises from, as a share of the peak."""
    final_fraction: float | None = None
    """Last learning rate of linear, cosine, triangle, one_cycle and exponential as a share of the
    peak; unset: 0.01 for exponential, else 0."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the steps after which `step` multiplies the rate by `decay`."""
    decay: float = 0.1
    """What `step` and `plateau` multiply the learning rate by."""
    patience: int = 2
    """Evaluations without a new lowest loss that `plateau` bears before it lowers the rate."""
    gradient_clip: float = 0.0
    """Largest norm of the gradient; 0 is off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, against which loss, and how often to look."""

    epochs: float = 10.0
    """Passes over the training set; may be fractional."""
    max_steps: int | None = None
    """Stop the run (and its schedule) after so many steps."""
    loss: Literal["cross_entropy", "mse", "bce"] = "cross_entropy"
    """`mse`: squared distance to the one-hot label. `bce`: a sigmoid and a question a class."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes."""
    log_every: int = 50
    """Steps between lines of metrics; each costs one wait for the device."""
    eval_every: int = 1
    """Epochs between evaluations; the last step is always evaluated. 0: only the last."""
    accumulate: int = 1
    """Parts in which a batch goes through the model, one after the other, to save memory."""
    local_steps: int = 1
    """Steps that ranks train on their own before their weights and momenta are averaged (local
    SGD, Stich, 2019), for slow networks; 1: gradients are averaged in each step."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is what is evaluated and kept; 0 is off."""
    non_finite: Literal["stop", "skip"] = "stop"
    """On a loss that is no number: `stop` with an error, or go back to the last checkpoint and
    `skip` that step."""
    max_skips: int = 3
    """So many steps may be skipped; one more stops the run."""
    average_tail: float = 0.0
    """Share of the steps, the last ones, whose weights are averaged, each counting the same, to be
    evaluated and kept (Izmailov et al., 2018); 0 is off."""
    tta: Views = "none"
    """At the end also evaluate with test-time augmentation: `mirror` images, or mirror and `shift`
    them by a pixel (six views, as airbench)."""
    tta_share: float = 1.0
    """Share of the images, those the model is least sure of, that are looked at so."""
    select: float = 1.0
    """Share of each batch that is trained on: the samples that are hardest for a small proxy
    network, which sees all of them (airbench96)."""
    select_group: int = 512
    """Samples from which the hardest are chosen, whatever the world size."""
    proxy_widths: tuple[int, ...] = (32, 64, 64)
    """Channels of the stages of the proxy, a network of the model's kind."""
    proxy_every: int = 4
    """Steps after which the proxy learns once."""
    profile: str | None = None
    """START:STOP: trace these steps (the latter not included) into the run's profile/ folder."""

    @property
    def kept_of_group(self) -> int:
        """Samples of each `select_group` that are trained on: its share, at least one."""
        return max(1, round(self.select * self.select_group))


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """The machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type; `auto`: what accelerate asks for, else bf16 where the hardware has it, fp16 on
    older GPUs, fp32 on other CPUs."""
    compile: bool | None = None
    """torch.compile the step; `auto`: what accelerate asks for, else on CUDA only."""
    cuda_graphs: bool = False
    """Record steps as CUDA graphs, for those shorter than their kernels' launches; one process."""
    threads: int | None = None
    """CPU threads per process; unset: $OMP_NUM_THREADS (but not the 1 that launchers set), else the
    cores shared out."""
    deterministic: bool = False
    """Ask torch for deterministic kernels."""
    timeout_seconds: int = 600
    """How long a rank may wait for the others, or one of several get nowhere, before the job
    ends."""
    gradient_compression: Literal["none", "bf16", "fp16"] = "none"
    """What gradients are rounded to on their way to the other ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """What is kept for going on later."""

    every_steps: int = 0
    """Steps between checkpoints; 0: at each evaluation."""
    every_minutes: float = 0.0
    """Minutes between checkpoints, besides those by step; 0: none."""
    keep: int = 2
    """How many of the newest checkpoints stay."""
    resume: Literal["auto", "never"] = "auto"
    """`auto`: go on where the run of that name stopped. `never`: refuse an existing run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Who is told. JSON lines and the console always are."""

    wandb: WandbMode = "auto"
    """W&B; `auto`: as $WANDB_MODE says, else online when logged in, else offline (`wandb sync`
    uploads later)."""
    project: str | None = None
    """W&B project; unset: $WANDB_PROJECT, else dist_train."""
    entity: str | None = None
    """W&B user or team; unset: $WANDB_ENTITY, else one's own."""
    group: str | None = None
    """W&B group, for runs to be seen together; unset: $WANDB_RUN_GROUP, else the job array."""
    job_type: str | None = None
    """W&B job type; unset: $WANDB_JOB_TYPE, else train."""
    tags: tuple[str, ...] = ()
    """W&B tags, comma-separated; empty: $WANDB_TAGS."""
    notes: str | None = None
    """W&B notes; unset: $WANDB_NOTES."""
    watch: Literal["none", "gradients", "parameters", "all"] = "none"
    """Histograms of the model's gradients or parameters in W&B; costs time at each line."""
    artifacts: Literal["off", "references", "files"] = "references"
    """Weights in W&B: `references` to the final, the best and the latest ones, or `files`,
    uploading them all."""
    tensorboard: bool = False
    """TensorBoard's event files in <run>/tensorboard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One run."""

    recipe: str = "custom"
    """The recipe this configuration started from, where it was chosen by name."""
    name: str | None = None
    """The run's directory is <output>/<name>; unset: recipe, date and time."""
    seed: int = 0
    """Decides initial weights, sample order and augmentation."""
    output: str = "runs"
    """Folder of run directories."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        """Refuses values that no run could mean.

        Raises:
            UserError: naming the flag, its value and what was expected.
        """
        check(self)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to config.json."""
        return asdict(self)


def from_values(section: Any, values: Mapping[str, Any]) -> Any:
    """A config class from plain values; lists become tuples."""
    types = get_type_hints(section)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if is_dataclass(types.get(name)):
            value = from_values(types[name], value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return section(**arguments)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted names and plain values of a nested mapping."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
