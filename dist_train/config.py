"""Every setting of a run, typed. Standard library only, so that it loads in no time.

A recipe (recipes.py) returns a complete `Config`; the command line overrides single fields as
`--section.field value`. Components never see the whole of it: train.py unpacks it for them.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dist_train.errors import UserError

DatasetName = Literal["cifar10", "cifar100", "mnist", "fashion_mnist", "folder", "shapes"]
ModelName = Literal["cnn2", "cnn3", "cnn4", "lenet", "resnet9", "resnet18", "whitened"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, in which batches, and how they are augmented."""

    dataset: DatasetName = "cifar10"
    """The data set. `folder` reads images from class folders, `shapes` is built in."""
    root: str | None = None
    """Folder that holds the data sets; unset: $DIST_TRAIN_DATA, else download into data/."""
    cache: str = "data/prepared"
    """Folder of the prepared .beton files; written once, shared by the processes of a node."""
    loader: Literal["auto", "stream", "resident"] = "auto"
    """`stream`: FFCV reads the .beton. `resident`: the whole set lives on the device."""
    storage: Literal["raw", "jpeg"] = "raw"
    """How `folder` images are stored; JPEG is smaller, and read by `stream` only."""
    image_size: int | None = None
    """Side in pixels of prepared `folder` (64 if unset) and `shapes` (32 if unset) images."""
    train_samples: int = 20_000
    """Training images of the built-in `shapes` set (its test set has a fifth as many)."""
    validation: int = 0
    """Training images held out (by a fixed hash) and evaluated instead of the test set."""
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
    """Side in pixels of the square set to the mean colour (DeVries and Taylor, 2017)."""
    brightness: float = 0.0
    """Multiply each image by a factor from [1 - x, 1 + x]."""
    contrast: float = 0.0
    """Scale each image's distance to its mean by a factor from [1 - x, 1 + x]."""
    mixup: float = 0.0
    """Alpha of mix-up's Beta(alpha, alpha); 0 is off (Zhang et al., 2018)."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta(alpha, alpha); 0 is off (Yun et al., 2019)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which network."""

    name: ModelName = "resnet9"
    """The architecture."""
    widths: tuple[int, ...] = ()
    """Channels of each stage, comma-separated; empty: the architecture's own."""
    batch_norm_group: int = 0
    """Samples over which BatchNorm takes statistics, whatever the world size; 0: a rank's batch."""
    sync_batch_norm: bool = False
    """BatchNorm over the samples of all ranks together; GPUs only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """How the weights move."""

    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """`muon` orthogonalises the update of convolution filters and leaves the rest to SGD."""
    learning_rate: float = 0.1
    """Peak learning rate, for the mean loss over the global batch."""
    bias_learning_rate: float | None = None
    """Peak learning rate of biases and normalisation; unset: `learning_rate`."""
    momentum: float = 0.9
    """SGD's momentum, or Adam's beta1."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = 0.0
    """Per step and unit of learning rate, on weights of two or more dimensions only."""
    muon_learning_rate: float = 0.24
    """Muon's peak learning rate."""
    muon_momentum: float = 0.6
    """Muon's momentum."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate goes from its peak to `final_fraction` of it."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises linearly from near zero."""
    final_fraction: float = 0.0
    """Last learning rate as a share of the peak."""
    gradient_clip: float = 0.0
    """Largest norm of the gradient; 0 is off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, against which loss, and how often to look."""

    epochs: float = 10.0
    """Passes over the training set; may be fractional."""
    max_steps: int | None = None
    """Stop the run (and its schedule) after so many steps."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes."""
    log_every: int = 50
    """Steps between lines of metrics; each costs one wait for the device."""
    eval_every: int = 1
    """Epochs between evaluations; the last step is always evaluated. 0: only the last."""
    accumulate: int = 1
    """Parts in which a batch goes through the model, one after the other, to save memory."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is what is evaluated and kept; 0 is off."""
    non_finite: Literal["stop", "skip"] = "stop"
    """On a loss that is no number: `stop` with an error, or go back to the last checkpoint and
    `skip` that step."""
    max_skips: int = 3
    """So many steps may be skipped; one more stops the run."""
    tta: bool = False
    """At the end also evaluate with test-time augmentation: mirrored and shifted views."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """The machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type; `auto`: what accelerate asks for, else bf16 where the hardware has it."""
    compile: bool | None = None
    """torch.compile the step; `auto`: what accelerate asks for, else on CUDA only."""
    threads: int | None = None
    """CPU threads per process; unset: $OMP_NUM_THREADS above 1, else the cores shared out."""
    deterministic: bool = False
    """Ask torch for deterministic kernels."""
    timeout_seconds: int = 600
    """How long a rank may wait for the others, or get nowhere, before the job ends."""
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

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """W&B; `auto`: online when logged in, else offline (`wandb sync` uploads later)."""
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
    """Weights in W&B: `references` to those left at the end, or `files`, uploading them all."""
    tensorboard: bool = False
    """TensorBoard's event files in <run>/tensorboard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One run."""

    recipe: str = "custom"
    """The recipe this configuration started from."""
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
        data, model, optim, train = self.data, self.model, self.optim, self.train
        at_least("--data.batch_size", data.batch_size, 1)
        at_least("--data.eval_batch_size", data.eval_batch_size, 1)
        at_least("--data.validation", data.validation, 0)
        at_least("--data.threads", data.threads, 1)
        for name in ("crop_padding", "cutout", "brightness", "contrast", "mixup", "cutmix"):
            at_least(f"--data.{name}", getattr(data, name), 0)
        require(
            not (data.mixup and data.cutmix),
            f"--data.mixup {data.mixup} and --data.cutmix {data.cutmix}: set one of them to 0",
        )
        require(
            len(data.resolutions) == len(data.resolution_until),
            f"--data.resolutions {listed(data.resolutions)} and --data.resolution_until "
            f"{listed(data.resolution_until)}: give one end to each resolution",
        )
        require(
            list(data.resolution_until) == sorted(data.resolution_until),
            f"--data.resolution_until {listed(data.resolution_until)}: expected rising shares",
        )
        require(
            not (data.storage == "jpeg" and data.loader == "resident"),
            "--data.storage jpeg is read by --data.loader stream only",
        )
        require(
            not data.resolutions or model.name not in ("cnn2", "cnn3", "cnn4", "lenet"),
            f"--data.resolutions {listed(data.resolutions)}: the fully connected layers of "
            f"--model.name {model.name} fit one size only; choose a resnet or whitened",
        )
        at_least("--model.batch_norm_group", model.batch_norm_group, 0)
        group = model.batch_norm_group
        require(
            not group or data.batch_size % group == 0,
            f"--data.batch_size {data.batch_size}: expected a multiple of "
            f"--model.batch_norm_group {group}",
        )
        at_least("--optim.learning_rate", optim.learning_rate, 0)
        for name in ("warmup", "final_fraction", "momentum"):
            within(f"--optim.{name}", getattr(optim, name), 0, 1)
        within("--train.label_smoothing", train.label_smoothing, 0, 1)
        require(train.epochs > 0, f"--train.epochs {train.epochs}: expected more than 0")
        if train.max_steps is not None:
            at_least("--train.max_steps", train.max_steps, 1)
        at_least("--train.log_every", train.log_every, 1)
        at_least("--train.eval_every", train.eval_every, 0)
        at_least("--train.accumulate", train.accumulate, 1)
        at_least("--train.max_skips", train.max_skips, 0)
        require(0 <= train.ema < 1, f"--train.ema {train.ema}: expected 0 to less than 1")
        require(
            train.accumulate == 1 or not model.batch_norm_group,
            f"--train.accumulate {train.accumulate}: parts of a batch would cut the groups of "
            f"--model.batch_norm_group {model.batch_norm_group}; set one of them to its default",
        )
        require(
            not (model.sync_batch_norm and model.batch_norm_group),
            "--model.sync_batch_norm and --model.batch_norm_group exclude each other",
        )
        at_least("--checkpoint.every_steps", self.checkpoint.every_steps, 0)
        at_least("--checkpoint.every_minutes", self.checkpoint.every_minutes, 0)
        at_least("--checkpoint.keep", self.checkpoint.keep, 1)
        at_least("--runtime.timeout_seconds", self.runtime.timeout_seconds, 1)
        if self.runtime.threads is not None:
            at_least("--runtime.threads", self.runtime.threads, 1)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to config.json."""
        return asdict(self)


def require(condition: bool, message: str) -> None:
    """Raises UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def at_least(flag: str, value: float, least: float) -> None:
    """Raises UserError when the value is smaller."""
    require(value >= least, f"{flag} {value}: expected {least} or more")


def within(flag: str, value: float, low: float, high: float) -> None:
    """Raises UserError when the value is outside [low, high]."""
    require(low <= value <= high, f"{flag} {value}: expected {low} to {high}")


def listed(values: tuple[Any, ...]) -> str:
    """A tuple as it is written on the command line."""
    return ",".join(map(str, values)) or "(none)"
