"""`dist-train eval`: a finished run judged again."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dist_train import build
from dist_train.calibration import BINS, calibrate, plot_reliability
from dist_train.errors import UserError
from dist_train.evaluate import evaluate, evaluate_with_tta
from dist_train.optim.losses import probabilities
from dist_train.runtime import start_runtime
from dist_train.trained import load_trained, wherever


def evaluate_run(
    folder: Path,
    *,
    corruptions: bool = False,
    calibration: bool = False,
    root: str | None = None,
    cache: str | None = None,
) -> dict[str, Any]:
    """Evaluates a finished run's weights on the test set, on any machine and number of ranks.

    Args:
        corruptions: also on corrupted images, see robustness.py.
        calibration: also draw <folder>/reliability.png, see calibration.py.
        root, cache: see trained.wherever.

    Returns:
        run, samples, test_accuracy, test_accuracy_tta, test_loss and world_size; if asked for,
        corruptions (name: accuracies by strength), calibration_error and reliability_plot.

    Raises:
        UserError: there is no such run, it is not finished, or its test set is not to be had.
    """
    trained = load_trained(folder)
    config = wherever(trained.config, root=root, cache=cache)
    with start_runtime(config.runtime) as runtime:
        prepared = build.prepared_data(config.data, runtime)
        if prepared.manifest.classes != trained.manifest.classes:
            raise UserError(
                f"{prepared.folder} has other classes than {folder} was trained on: bring the data "
                "set back that the run's manifest.json describes"
            )
        loader = build.choose_loader(config.data, prepared.manifest, runtime)
        data = replace(config.data, validation=0)  # the test set, whatever it was judged by
        test = build.evaluation_data(data, prepared, loader, runtime)
        model, augment = runtime.place(trained.model), trained.augment.to(runtime.device)
        plain = evaluate(model, augment, test, runtime)
        tta = "shift" if config.train.tta == "none" else config.train.tta
        share = config.train.tta_share
        with_tta = evaluate_with_tta(plain, model, augment, test, runtime, tta=tta, share=share)
        result = {
            "run": str(folder),
            "samples": plain.samples,
            "test_accuracy": plain.accuracy,
            "test_accuracy_tta": with_tta.accuracy,
            "test_loss": plain.loss,
            "world_size": runtime.world_size,
        }
        if corruptions:
            from dist_train.robustness import corrupted_accuracies  # torchvision takes its time

            result["corruptions"] = corrupted_accuracies(model, augment, test, runtime)
        if calibration:
            bins = calibrate(probabilities(plain.logits, config.train.loss), plain.labels)
            path = folder / "reliability.png"
            runtime.on_main(lambda: plot_reliability(bins, path, folder.name))
            result |= {"calibration_error": bins.error, "reliability_plot": str(path)}
        test.loader.close()
        return result


def describe(result: Mapping[str, Any]) -> str:
    """What `evaluate_run` found, for people."""
    lines = [
        f"{result['run']}: {result['samples']} test images, accuracy {result['test_accuracy']:.2%} "
        f"({result['test_accuracy_tta']:.2%} with test-time augmentation), "
        f"loss {result['test_loss']:.4f}"
    ]
    if "calibration_error" in result:
        lines.append(
            f"expected calibration error {result['calibration_error']:.2%} ({BINS} bins), "
            f"see {result['reliability_plot']}"
        )
    if "corruptions" in result:
        strengths = range(1, 1 + len(next(iter(result["corruptions"].values()))))
        lines.append(f"{'strength':<10}" + "".join(f"{n:>8}" for n in strengths) + f"{'mean':>8}")
        for name, accuracies in result["corruptions"].items():
            cells = (*accuracies, sum(accuracies) / len(accuracies))
            lines.append(f"{name:<10}" + "".join(f"{accuracy:>8.1%}" for accuracy in cells))
    return "\n".join(lines)
