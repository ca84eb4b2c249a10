"""What a finished run says to image files."""

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dist_train.checks import at_least
from dist_train.data.images import find_images, parse_colour, read_image
from dist_train.errors import UserError
from dist_train.evaluate import predict
from dist_train.optim.losses import probabilities
from dist_train.runtime import Runtime, start_runtime
from dist_train.trained import Trained, load_trained, wherever

log = logging.getLogger("dist_train")

BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable classes of an image, the best one first."""

    image: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict_images(
    run: Path,
    paths: Sequence[Path],
    *,
    top: int = 3,
    tta: bool = False,
    background: str = "white",
) -> Iterator[Prediction]:
    """Predictions for image files and folders of them, in order, batch by batch.

    Files that cannot be read are reported as warnings and passed over. Needs the run's directory
    alone, not its data set. The precision is that of the run.

    Args:
        top: how many classes to tell.
        tta: average over mirrored and shifted views, see evaluate.views.
        background: the colour that shows through where an image is transparent.

    Raises:
        UserError: no such run, no images, or none of them can be read.
    """
    at_least("--top", top, 1)
    colour = parse_colour(background)
    files = find_images(paths)
    trained = load_trained(run)
    predicted = 0
    with start_runtime(wherever(trained.config).runtime) as runtime, ThreadPoolExecutor() as pool:
        trained.augment.to(runtime.device)
        runtime.place(trained.model)
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            images = pool.map(lambda path: _read(path, trained, colour), batch)
            readable = [
                (path, image)
                for path, image in zip(batch, images, strict=True)
                if image is not None
            ]
            predicted += len(readable)
            if readable:
                yield from _predict_batch(readable, trained, runtime, top=top, tta=tta)
    if not predicted:
        raise UserError(f"none of {len(files)} image files can be read: see the lines above")


def _read(path: Path, trained: Trained, colour: tuple[int, int, int]) -> NDArray[np.uint8] | None:
    try:
        return read_image(path, trained.manifest.image_shape, colour)
    except UserError as error:
        log.warning("%s: skipped", error)
        return None


@torch.inference_mode()
def _predict_batch(
    images: Sequence[tuple[Path, NDArray[np.uint8]]],
    trained: Trained,
    runtime: Runtime,
    *,
    top: int,
    tta: bool,
) -> list[Prediction]:
    pixels = torch.from_numpy(np.stack([image for _, image in images])).to(runtime.device)
    with runtime.autocast():
        logits = predict(trained.model, trained.augment(pixels), tta="shift" if tta else "none")
    classes = trained.manifest.classes
    of_classes = probabilities(logits, trained.config.train.loss)
    shares_of_best, labels = of_classes.topk(min(top, len(classes)))
    return [
        Prediction(path, tuple(classes[label] for label in best), tuple(shares))
        for (path, _), best, shares in zip(
            images, labels.tolist(), shares_of_best.tolist(), strict=True
        )
    ]


def print_predictions(predictions: Iterable[Prediction], *, as_json: bool) -> None:
    """JSON lines as they come; else a table on a terminal, or the same with tabs in a file."""
    if as_json:
        for prediction in predictions:
            shares = dict(zip(prediction.classes, prediction.probabilities, strict=True))
            line = {"image": str(prediction.image), "probabilities": shares}
            print(json.dumps(line), flush=True)
    elif sys.stdout.isatty():
        _print_table(list(tqdm(predictions, unit=" images", leave=False, disable=None)))
    else:
        for prediction in predictions:
            print("\t".join((str(prediction.image), *_cells(prediction))), flush=True)


def _print_table(predictions: Sequence[Prediction]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("image", box=None)
    for place in range(len(predictions[0].classes)):
        table.add_column(str(place + 1))
    for prediction in predictions:
        cells = (str(prediction.image), *_cells(prediction))
        table.add_row(*(Text(cell) for cell in cells))  # names may look like rich's markup
    Console().print(table)


def _cells(prediction: Prediction) -> list[str]:
    return [
        f"{name} {share:.1%}"
        for name, share in zip(prediction.classes, prediction.probabilities, strict=True)
    ]
