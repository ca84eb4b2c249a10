"""What runs said to the images they are judged by: a confusion matrix, the worst mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dist_train.data import beton
from dist_train.data.order import split
from dist_train.data.prepare import folder_of
from dist_train.errors import UserError
from dist_train.figures import COLOURS, new_figure
from dist_train.mistakes import confusion, surest_mistakes
from dist_train.report.groups import Floats, Group
from dist_train.report.reading import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED_CLASSES = 25
"""With more classes, a confusion matrix shows neither names nor numbers."""


@dataclass(frozen=True)
class Answers:
    """What the runs of a group said to the images they are judged by, on average."""

    probabilities: Floats
    """float64 (N, classes)."""
    labels: NDArray[np.int64]
    """int64 (N,)."""
    runs: Sequence[Run]
    """Whose answers these are."""

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Images of each class (row) that were taken for each class (column): int64 (C, C)."""
        return confusion(self.probabilities, self.labels)

    def worst(self, count: int) -> NDArray[np.int64]:
        """Positions of the wrong answers that were surest, most so first."""
        return surest_mistakes(self.probabilities, self.labels, count)


def answers(group: Group) -> Answers | None:
    """The mean of the probabilities that the runs gave in their final evaluations.

    Runs whose file is missing or damaged are left out, the latter with a note.
    """
    found: list[tuple[Run, Floats, NDArray[np.int64]]] = []
    for run in group.runs:
        loaded = read_predictions(run)
        if loaded and (not found or np.array_equal(loaded[1], found[0][2])):
            found.append((run, *loaded))
    if not found:
        return None
    probabilities = np.mean([probability for _, probability, _ in found], axis=0)
    return Answers(probabilities, found[0][2], [run for run, _, _ in found])


def read_predictions(run: Run) -> tuple[Floats, NDArray[np.int64]] | None:
    """Probabilities (N, classes) and labels (N,) of the final evaluation."""
    import torch  # takes seconds, which a report without answers need not wait for
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from dist_train.optim.losses import probabilities

    path = run.folder / "predictions.safetensors"
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        logits, labels = tensors["logits"].astype(np.float64), tensors["labels"]
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or not np.isfinite(logits).all():
            raise ValueError(f"logits {logits.shape} for labels {labels.shape}")
    except (OSError, SafetensorError, LookupError, ValueError) as error:
        run.notes.append(f"{path.name} cannot be read: {error}")
        return None
    loss = run.config.get("train.loss", "cross_entropy")
    return probabilities(torch.from_numpy(logits), loss).numpy(), labels


def judged_images(run: Run, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Some of the images a run was judged by: uint8 (n, H, W, C).

    Args:
        positions: in the order of the run's predictions.

    Raises:
        UserError: the prepared data is gone, or is not what the run saw.
    """
    manifest, ids = run.manifest, positions
    try:
        cache = Path(run.config["data.cache"])
        folder = folder_of(cache, manifest["dataset"], manifest["key"], manifest["storage"])
        part = manifest["test"]
        if run.split == "validation":
            part = manifest["train"]
            ids = split(part["samples"], run.config["data.validation"])[1][positions]
        path, size = folder / part["file"], part["bytes"]
    except (LookupError, TypeError) as error:
        raise UserError("config.json or manifest.json does not tell which they were") from error
    if not path.exists():
        raise UserError(f"{path} is not there any more")
    if path.stat().st_size != size:
        raise UserError(f"{path} holds other data than the run saw")
    return beton.read_some(path, ids)


def class_names(run: Run, count: int) -> list[str]:
    """The names of the classes, or their numbers where the manifest has no such names."""
    names = run.manifest.get("classes")
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    return [str(number) for number in range(count)]


def draw_confusion(answers: Answers) -> "Figure":
    """What was taken for what; the colour tells the share of the row."""
    counts = answers.confusion
    classes = len(counts)
    names = class_names(answers.runs[0], classes)
    side = min(2.2 + 0.52 * classes, 9.0) if classes <= NAMED_CLASSES else 7.0
    figure, panels = new_figure(1, 1, (side, side * 0.86))
    panel = panels[0, 0]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    colour = [int(COLOURS[0][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    # The square root makes rare mistakes visible; half transparent, it suits any background.
    cells = np.dstack([np.broadcast_to(colour, (*shares.shape, 3)), 0.75 * np.sqrt(shares)])
    panel.imshow(cells, interpolation="nearest", aspect="auto")
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    panel.set(xlabel="answer", ylabel="truth")
    if classes <= NAMED_CLASSES:
        panel.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(classes), names)
        panel.tick_params(length=0)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                panel.text(column, row, f"{count}", ha="center", va="center", fontsize=8)
    return figure


def draw_mistakes(
    answers: Answers, positions: NDArray[np.int64], images: NDArray[np.uint8]
) -> "Figure":
    """The images with truth and answer, eight in a row."""
    columns = 8
    rows = -(-len(images) // columns)
    names = class_names(answers.runs[0], answers.probabilities.shape[1])
    figure, panels = new_figure(rows, columns, (11.4, 1.85 * rows))
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, position, image in zip(panels.flat, positions, images, strict=False):
        said = int(answers.probabilities[position].argmax())
        sure = answers.probabilities[position, said]
        panel.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        truth = names[answers.labels[position]]
        panel.set_title(
            f"{shortened(truth)},\nsaid {shortened(names[said])} {sure:.0%}", fontsize=8
        )
    return figure


def shortened(name: str) -> str:
    """A class name that fits over a small image."""
    return name if len(name) <= 14 else name[:13] + "…"
