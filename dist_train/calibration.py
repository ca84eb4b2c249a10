"""Whether a model is right as often as it says: expected calibration error and its picture.

After Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017).
"""

import io
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dist_train.files import write_atomically

BINS = 15


@dataclass(frozen=True, slots=True)
class Calibration:
    """Test images by how sure the model was: one value a bin of equal width, float64 (BINS,)."""

    share: Tensor
    """Of all images."""
    confidence: Tensor
    """Mean probability of the class that was chosen; 0 in an empty bin."""
    accuracy: Tensor
    """Share of right choices; 0 in an empty bin."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of accuracy and confidence, 0 to 1."""
        return (self.share * (self.accuracy - self.confidence).abs()).sum().item()


def calibrate(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Calibration:
    """Sorts the answers of a model into bins (0, 1/bins], ..., (1 - 1/bins, 1].

    Args:
        probabilities: float (N, classes).
        labels: int64 (N,).
    """
    confidence, choice = probabilities.double().max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = place.bincount(minlength=bins).double()

    def mean(values: Tensor) -> Tensor:
        return place.bincount(values.double(), minlength=bins) / count.clamp(min=1)

    return Calibration(count / len(labels), mean(confidence), mean(choice == labels))


def plot_reliability(calibration: Calibration, path: Path, title: str) -> None:
    """Accuracy against confidence, and below how many images there are of each; a PNG.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    bins = len(calibration.share)
    left = [number / bins for number in range(bins)]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(5, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    for axis, heights in ((above, calibration.accuracy), (below, calibration.share)):
        axis.bar(left, heights.tolist(), 1 / bins, align="edge", edgecolor="white", color="C0")
        axis.yaxis.set_major_formatter("{x:.0%}")
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    filled = calibration.share > 0
    confidence, accuracy = calibration.confidence[filled], calibration.accuracy[filled]
    above.plot((0, 1), (0, 1), "--", color="black", linewidth=1, label="as often as it says")
    above.plot(
        confidence.tolist(),
        accuracy.tolist(),
        "o-",
        color="C3",
        markersize=4,
        label="mean of a bin",
    )
    above.set(ylabel="right", ylim=(0, 1), xlim=(0, 1))
    above.set_title(f"{title}: calibration error {calibration.error:.2%}", fontsize=10)
    above.legend(frameon=False, loc="upper left")
    below.set(xlabel="confidence", ylabel="images")
    below.xaxis.set_major_formatter("{x:.0%}")
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=120)
        plt.close(figure)
        write_atomically(path, buffer.getvalue())
