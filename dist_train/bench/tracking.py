"""All trackers against JSON lines alone: what does being watched cost?"""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from dist_train.bench.timing import Measurements, Settings, alternate, note
from dist_train.config import Config, TrackingConfig
from dist_train.metrics import Clock
from dist_train.recipes import RECIPES
from dist_train.runtime import start_runtime
from dist_train.tracking import Trackers
from dist_train.tracking.json_lines import JsonLines
from dist_train.train import Trainer

SECONDS, REPEATS = 30.0, 5
BATCH_SIZE = 512
# In the first epochs W&B is imported and started in its thread; that is start-up, told apart.
WARM_UP_EPOCHS = 3
ALONE, ALL = "seconds_epoch_json_lines", "seconds_epoch_all_trackers"


def measure(settings: Settings) -> Measurements:
    """trackers_vs_json_lines: seconds of an epoch and its evaluation, with all and with one."""
    config = configure(settings)
    one, found = epochs_of(config, WARM_UP_EPOCHS + 1, all_trackers=False), Measurements()
    epochs = WARM_UP_EPOCHS + max(1, round((settings.seconds or SECONDS) / median(one)))
    note(f"lenet: {epochs} epochs a timing, {WARM_UP_EPOCHS} of them before the clock starts")

    def median_epoch(*, all_trackers: bool) -> float:
        return median(epochs_of(config, epochs, all_trackers=all_trackers))

    times = alternate(
        {
            ALONE: partial(median_epoch, all_trackers=False),
            ALL: partial(median_epoch, all_trackers=True),
        },
        settings.repeats or REPEATS,
    )
    task = f"an epoch of lenet at batch {BATCH_SIZE} with its evaluation and checkpoint"
    found.add(ALONE, f"{task}; metrics.jsonl only", times[ALONE])
    found.add(ALL, f"{task}; metrics.jsonl, console, TensorBoard, W&B offline", times[ALL])
    found.ratios["trackers_vs_json_lines"] = found.paired(ALL, over=ALONE)
    return found


def configure(settings: Settings) -> Config:
    """The recipe, with every tracker on."""
    base = RECIPES["lenet"]()
    return replace(
        base,
        name="bench",
        data=replace(
            base.data,
            root=settings.data.root,
            cache=settings.data.cache,
            batch_size=BATCH_SIZE,
        ),
        train=replace(base.train, eval_every=1, tta="none"),
        tracking=TrackingConfig(wandb="offline", tensorboard=True),
    )


def epochs_of(config: Config, epochs: int, *, all_trackers: bool) -> list[float]:
    """Seconds of each epoch after the first few, from the end of one evaluation to the next."""
    config = replace(config, train=replace(config.train, epochs=epochs))
    if not all_trackers:
        config = replace(config, tracking=TrackingConfig(wandb="off"))
    with TemporaryDirectory() as output, start_runtime(config.runtime) as runtime:
        folder = Path(output) / "bench"
        folder.mkdir()
        trainer = Trainer(config, folder, runtime, Clock())
        lines = folder / "metrics.jsonl"
        if not all_trackers:
            trainer.trackers = Trackers([JsonLines(lines, resumed_step=0)])
        trainer.run()
        logged = [json.loads(line) for line in lines.read_text().splitlines()]
    ends = [line["time"] for line in logged if "test/accuracy" in line][WARM_UP_EPOCHS - 1 :]
    return [end - start for start, end in pairwise(ends)]
