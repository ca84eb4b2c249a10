"""The training loop against the least that could train: what do honesty and comfort cost?"""

import time
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from tempfile import TemporaryDirectory

import torch
from torch.nn import functional as F

from dist_train import build
from dist_train.bench.timing import Measurements, Settings, alternate, note
from dist_train.config import Config, TrackingConfig
from dist_train.data import beton
from dist_train.data.prepare import prepare_dataset
from dist_train.recipes import RECIPES
from dist_train.runtime import start_runtime
from dist_train.train import train

SECONDS, REPEATS = 4.0, 5
BATCH_SIZE = 512
READY_BATCHES = 8


def measure(settings: Settings) -> Measurements:
    """loop_vs_bare_resnet9 and loop_vs_bare_lenet: seconds of the loop over those of a bare one.

    Each timing begins with the first step of a new model.
    """
    found = Measurements()
    for recipe in ("resnet9", "lenet"):
        config = configure(recipe, settings)
        steps = enough_steps(config, settings.seconds or SECONDS)
        note(f"{recipe}: {steps} steps of {BATCH_SIZE} images")
        bare, loop = f"seconds_bare_{recipe}", f"seconds_loop_{recipe}"
        times = alternate(
            {
                bare: partial(bare_seconds, config, steps),
                loop: partial(loop_seconds, config, steps),
            },
            settings.repeats or REPEATS,
        )
        task = f"{steps} steps of {BATCH_SIZE} images, model and optimizer of recipe {recipe}"
        found.add(bare, f"{task}; inputs ready in memory as normalised floats", times[bare])
        found.add(loop, f"{task}; train.py with its data, less evaluation, saving", times[loop])
        found.ratios[f"loop_vs_bare_{recipe}"] = found.paired(loop, over=bare)
    return found


def configure(recipe: str, settings: Settings) -> Config:
    """A recipe that evaluates once, on few images: these are not timed but waited for."""
    base = RECIPES[recipe]()
    return replace(
        base,
        name="bench",
        data=replace(
            base.data,
            root=settings.data.root,
            cache=settings.data.cache,
            batch_size=BATCH_SIZE,
            validation=BATCH_SIZE,
        ),
        train=replace(base.train, epochs=1e6, log_every=50, eval_every=0, tta="none"),
        tracking=TrackingConfig(wandb="off"),
    )


def enough_steps(config: Config, seconds: float) -> int:
    """How many steps the bare loop does in about so long."""
    steps = 2
    while (spent := bare_seconds(config, steps)) < seconds / 4:
        steps *= 4
    return max(2, round(steps * seconds / spent))


def loop_seconds(config: Config, steps: int) -> float:
    """What a run of the real loop counts as training."""
    with TemporaryDirectory() as folder:
        limited = replace(config.train, max_steps=steps)
        summary = train(replace(config, output=folder, train=limited))
    return float(summary["seconds"]["train"])


def bare_seconds(config: Config, steps: int) -> float:
    """The same model, optimizer, precision, threads and compiler; no augmentation, no metrics."""
    with start_runtime(config.runtime) as runtime:
        prepared = prepare_dataset(config.data)
        augment = build.augmentation(config.data, prepared.manifest)
        model = runtime.place(build.network(config, prepared, augment))
        optimizers = build.optimizers(config.optim, model, runtime)
        images = beton.read_some(prepared.train, slice(READY_BATCHES * BATCH_SIZE))
        labels = beton.read_labels(prepared.train)[: len(images)]
        ready = augment(torch.from_numpy(images)).to(runtime.device)
        targets = torch.from_numpy(labels).to(runtime.device)
        slices = [slice(i, i + BATCH_SIZE) for i in range(0, len(ready), BATCH_SIZE)]
        endless = cycle([(ready[part], targets[part]) for part in slices])

        def train_for(steps: int) -> None:
            for x, y in islice(endless, steps):
                with runtime.autocast():
                    logits = model(x)
                loss = F.cross_entropy(
                    logits.float(), y, label_smoothing=config.train.label_smoothing
                )
                loss.backward()  # type: ignore[no-untyped-call]
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()

        runtime.compile(model)
        if runtime.compile_backend is not None:  # that of the real loop has its own clock, too
            train_for(READY_BATCHES)
        runtime.synchronize()
        start = time.perf_counter()
        train_for(steps)
        runtime.synchronize()
        return time.perf_counter() - start
