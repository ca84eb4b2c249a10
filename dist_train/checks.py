"""What a configuration must not be: values, and combinations of them, that no run could mean."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from dist_train.errors import UserError

if TYPE_CHECKING:
    from dist_train.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

# The networks that have options for activations and dropout, and one size of image.
SIMPLE_MODELS = ("mlp", "cnn2", "cnn3", "cnn4", "lenet", "rnn")


def check(config: Config) -> None:
    """Looks at every section, then at what does not go together.

    Raises:
        UserError: naming the flag, its value and what was expected.
    """
    check_data(config.data)
    check_model(config.model)
    check_optim(config.optim)
    check_train(config.train)
    at_least("--checkpoint.every_steps", config.checkpoint.every_steps, 0)
    at_least("--checkpoint.every_minutes", config.checkpoint.every_minutes, 0)
    at_least("--checkpoint.keep", config.checkpoint.keep, 1)
    within("--runtime.timeout_seconds", config.runtime.timeout_seconds, 1, 10**7)
    within("--seed", config.seed, -(2**63), 2**63 - 1)
    if config.runtime.threads is not None:
        at_least("--runtime.threads", config.runtime.threads, 1)
    check_together(config)


def check_data(data: DataConfig) -> None:
    """Sizes, shares and storage."""
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
        f"--data.resolutions {as_typed(data.resolutions)} and --data.resolution_until "
        f"{as_typed(data.resolution_until)}: give one end to each resolution",
    )
    require(
        list(data.resolution_until) == sorted(data.resolution_until),
        f"--data.resolution_until {as_typed(data.resolution_until)}: expected rising shares",
    )
    for share in data.resolution_until:
        within("--data.resolution_until", share, 0, 1)
    for size in data.resolutions:
        at_least("--data.resolutions", size, 1)
    require(
        not (data.storage == "jpeg" and data.loader == "resident"),
        "--data.storage jpeg is read by --data.loader stream only",
    )
    require(0 < data.fraction <= 1, f"--data.fraction {data.fraction}: expected above 0, to 1")
    require(
        data.train_samples == 20_000 or data.dataset == "shapes",
        f"--data.train_samples {data.train_samples}: is for shapes; --data.fraction takes a share "
        f"of {data.dataset}",
    )


def check_model(model: ModelConfig) -> None:
    """Options that the chosen network has, and a target that can be one."""
    at_least("--model.batch_norm_group", model.batch_norm_group, 0)
    require(0 <= model.dropout < 1, f"--model.dropout {model.dropout}: expected 0 to below 1")
    for name in ("widths", "hidden"):
        for size in getattr(model, name):
            at_least(f"--model.{name}", size, 1)
        require(
            not getattr(model, name) or model.target is None,
            f"--model.{name} {as_typed(getattr(model, name))}: {model.target} has its own; add "
            f"--model.{name} none",
        )
    changed = {"activation": model.activation != "relu", "dropout": model.dropout > 0}
    for flag, used in changed.items():
        require(
            not used or (model.name in SIMPLE_MODELS and model.target is None),
            f"--model.{flag} {getattr(model, flag)}: {model.target or model.name} has its own; "
            f"an option of {', '.join(SIMPLE_MODELS)}",
        )
    require(
        model.cell == "lstm" or (model.name == "rnn" and model.target is None),
        f"--model.cell {model.cell}: {model.target or model.name} has none; an option of rnn",
    )
    module, _, function = (model.target or "a:b").partition(":")
    require(
        all(part.isidentifier() for part in (*module.split("."), function)),
        f"--model.target {model.target}: expected package.module:function",
    )
    require(
        not (model.sync_batch_norm and model.batch_norm_group),
        "--model.sync_batch_norm and --model.batch_norm_group exclude each other",
    )


def check_optim(optim: OptimConfig) -> None:
    """Rates, shares and the schedule's shape."""
    for name in ("learning_rate", "muon_learning_rate", "weight_decay", "gradient_clip"):
        at_least(f"--optim.{name}", getattr(optim, name), 0)
    for share in optim.milestones:
        within("--optim.milestones", share, 0, 1)
    shares = ("warmup", "start_fraction", "final_fraction", "momentum", "muon_momentum", "decay")
    for name in shares:
        within(f"--optim.{name}", getattr(optim, name) or 0.0, 0, 1)
    require(
        optim.backbone_learning_rate is None or optim.learning_rate > 0,
        "--optim.backbone_learning_rate: needs an --optim.learning_rate above 0",
    )
    at_least("--optim.patience", optim.patience, 0)
    for name in ("bias_learning_rate", "backbone_learning_rate"):
        at_least(f"--optim.{name}", getattr(optim, name) or 0.0, 0)
    require(
        not (optim.optimizer in ("sgd", "muon") and optim.nesterov and optim.momentum == 0),
        "--optim.nesterov: is a form of momentum; give --optim.momentum, or --optim.nesterov false",
    )
    require(
        not (optim.optimizer in ("adam", "adamw") and optim.momentum == 1),
        f"--optim.momentum 1: {optim.optimizer} takes 0 to below 1",
    )
    require(
        not (optim.schedule == "exponential" and optim.final_fraction == 0),
        "--optim.final_fraction 0: an exponential does not get there; expected more than 0",
    )


def check_train(train: TrainConfig) -> None:
    """Lengths and intervals."""
    within("--train.label_smoothing", train.label_smoothing, 0, 1)
    require(0 < train.epochs < inf, f"--train.epochs {train.epochs}: expected a number above 0")
    if train.max_steps is not None:
        at_least("--train.max_steps", train.max_steps, 1)
    at_least("--train.log_every", train.log_every, 1)
    at_least("--train.eval_every", train.eval_every, 0)
    at_least("--train.accumulate", train.accumulate, 1)
    at_least("--train.local_steps", train.local_steps, 1)
    require(
        train.local_steps == 1 or train.select == 1,
        f"--train.local_steps {train.local_steps}: does not go with --train.select {train.select}",
    )
    at_least("--train.max_skips", train.max_skips, 0)
    require_steps("--train.profile", train.profile)
    require(0 <= train.ema < 1, f"--train.ema {train.ema}: expected 0 to less than 1")
    within("--train.average_tail", train.average_tail, 0, 1)
    require(
        not (train.ema and train.average_tail),
        f"--train.ema {train.ema} and --train.average_tail {train.average_tail}: set one of them "
        "to 0",
    )
    require(
        0 < train.tta_share <= 1, f"--train.tta_share {train.tta_share}: expected above 0, to 1"
    )
    require(0 < train.select <= 1, f"--train.select {train.select}: expected above 0, to 1")
    at_least("--train.select_group", train.select_group, 1)
    at_least("--train.proxy_every", train.proxy_every, 1)
    for width in train.proxy_widths:
        at_least("--train.proxy_widths", width, 1)


def check_together(config: Config) -> None:
    """Settings of different sections that contradict each other."""
    data, model, optim, train = config.data, config.model, config.optim, config.train
    require(
        not data.resolutions
        or model.target is not None
        or model.name not in (*SIMPLE_MODELS, "vit"),
        f"--data.resolutions {as_typed(data.resolutions)}: --model.name {model.name} fits one "
        "size only; add --data.resolutions none --data.resolution_until none",
    )
    group = model.batch_norm_group
    require(
        not group or data.batch_size % group == 0,
        f"--data.batch_size {data.batch_size}: expected a multiple of "
        f"--model.batch_norm_group {group}",
    )
    require(
        not (optim.schedule == "plateau" and train.eval_every == 0),
        "--optim.schedule plateau: looks at evaluations; set --train.eval_every to 1 or more",
    )
    compression = config.runtime.gradient_compression
    require(
        train.local_steps == 1 or compression == "none",
        f"--runtime.gradient_compression {compression}: with --train.local_steps "
        f"{train.local_steps} no gradients travel; leave one of them out",
    )
    require(
        train.accumulate == 1 or not group,
        f"--train.accumulate {train.accumulate}: parts of a batch would cut the groups of "
        f"--model.batch_norm_group {group}; set one of them to its default",
    )
    require(
        not model.sync_batch_norm or config.runtime.compile is False,
        "--model.sync_batch_norm true: torch cannot compile it; add --runtime.compile false, or "
        "use --model.batch_norm_group, which does the same for any world size",
    )
    require(
        train.accumulate == 1 or not model.sync_batch_norm,
        f"--train.accumulate {train.accumulate}: ranks may hold unequal numbers of parts, and "
        "--model.sync_batch_norm true would wait for those that are not there; leave one of them "
        "out",
    )
    if train.select < 1:
        check_selection(config)


def check_selection(config: Config) -> None:
    """What choosing the hardest samples of each batch goes together with."""
    train, data, flag = config.train, config.data, f"--train.select {config.train.select}"
    require(
        data.batch_size % train.select_group == 0 and data.drop_last,
        f"{flag}: needs whole groups: a --data.batch_size ({data.batch_size}) that is a multiple "
        f"of --train.select_group ({train.select_group}), and --data.drop_last true",
    )
    require(
        not (data.mixup or data.cutmix), f"{flag}: goes with neither --data.mixup nor --data.cutmix"
    )
    require(
        config.model.target is None,
        f"{flag}: needs a narrower network of the same kind, which --model.target has none of",
    )
    kept, group = train.kept_of_group, config.model.batch_norm_group
    require(
        not group or (kept % group == 0 and train.select_group % group == 0),
        f"{flag}: keeps {kept} of {train.select_group} samples; expected multiples of "
        f"--model.batch_norm_group {group}",
    )
    require(train.accumulate == 1, f"{flag}: goes with --train.accumulate 1 only")


def require(condition: bool, message: str) -> None:
    """Raises UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_steps(flag: str, steps: str | None) -> None:
    """Raises UserError unless the value is unset or START:STOP; a step comes before START."""
    parts = (steps or "1:2").split(":")
    require(
        len(parts) == 2 and all(map(str.isdecimal, parts)) and 1 <= int(parts[0]) < int(parts[1]),
        f"{flag} {steps}: expected START:STOP with 1 <= START < STOP, for example 20:25",
    )


def at_least(flag: str, value: float, least: float) -> None:
    """Raises UserError when the value is smaller."""
    require(value >= least, f"{flag} {value}: expected {least} or more")


def within(flag: str, value: float, low: float, high: float) -> None:
    """Raises UserError when the value is outside [low, high]."""
    require(low <= value <= high, f"{flag} {value}: expected {low} to {high}")


def as_typed(value: Any) -> str:
    """A setting as it is written on the command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or "none"
    return "auto" if value is None else str(value)
