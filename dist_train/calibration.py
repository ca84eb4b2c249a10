"""Whether a model is right as often as it says: expected calibration error and its picture.

After Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017).
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dist_train.figures import COLOURS, INK, as_png, new_figure, styled
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
    bins = len(calibration.share)
    left = [number / bins for number in range(bins)]
    filled = calibration.share > 0
    confidence, accuracy = calibration.confidence[filled], calibration.accuracy[filled]
    with styled():
        figure, panels = new_figure(2, 1, (5, 6), sharex=True, height_ratios=(3, 1))
        above, below = panels[:, 0]
        for axis, heights in ((above, calibration.accuracy), (below, calibration.share)):
            axis.bar(
                left, heights.tolist(), 1 / bins, align="edge", edgecolor="white", color=COLOURS[0]
            )
            axis.yaxis.set_major_formatter("{x:.0%}")
        above.plot((0, 1), (0, 1), "--", color=INK, linewidth=1, label="as often as it says")
        above.plot(
            confidence.tolist(),
            accuracy.tolist(),
            "o-",
            color=COLOURS[1],
            markersize=4,
            label="mean of a bin",
        )
        above.set(ylabel="right", ylim=(0, 1), xlim=(0, 1))
        above.set_title(f"{title}: calibration error {calibration.error:.2%}")
        above.legend(loc="upper left")
        below.set(xlabel="confidence", ylabel="images")
        below.xaxis.set_major_formatter("{x:.0%}")
        write_atomically(path, as_png(figure))
