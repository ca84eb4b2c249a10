"""Plots from run directories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_train.errors import UserError
from dist_train.tracking.json_lines import read


def plot_runs(folders: Sequence[Path], path: Path) -> None:
    """Draws accuracy and loss of one or more runs against epochs; also of a run in progress.

    Training curves are dashed. The kind of picture follows the file's ending.

    Raises:
        UserError: a folder holds no metrics, or the picture cannot be written.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, folder in enumerate(folders):
        lines = read(folder / "metrics.jsonl")
        if not lines:
            raise UserError(f"{folder} has no metrics yet: expected {folder / 'metrics.jsonl'}")
        for axis, quantity in zip(axes, ("accuracy", "loss"), strict=True):
            colour = f"C{number}"
            for split, style in (("train", "--"), ("validation", "-"), ("test", "-")):
                epochs, values = series(lines, f"{split}/{quantity}")
                if values:
                    label = f"{folder.name}, {split}"
                    axis.plot(epochs, values, style, color=colour, label=label, linewidth=1.5)
    for axis, quantity in zip(axes, ("accuracy", "loss"), strict=True):
        axis.set(xlabel="epoch", ylabel=quantity)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].yaxis.set_major_formatter("{x:.0%}")
    axes[0].legend(frameon=False, loc="lower right")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}; choose another --out") from error
    finally:
        plt.close(figure)


def series(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one metric, where it was measured."""
    points = [(line["epoch"], line[name]) for line in lines if name in line]
    return [epoch for epoch, _ in points], [value for _, value in points]
