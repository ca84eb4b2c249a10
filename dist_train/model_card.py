"""What the user of an exported model has to know, in Markdown."""

from collections.abc import Mapping
from typing import Any

from dist_train.trained import Trained


def model_card(
    trained: Trained,
    summary: Mapping[str, Any],
    *,
    file: str,
    imports: str,
    usage: tuple[str, str],
    checked: str,
) -> str:
    """The card of an exported file.

    Args:
        summary: the run's summary.json.
        file: name of the exported file.
        imports, usage: see export.Format.
        checked: what the check compared, and found.
    """
    manifest = trained.manifest
    height, width, channels = manifest.image_shape
    mode = "RGB" if channels == 3 else "L"
    versions = ", ".join(f"{name} {v}" for name, v in summary["versions"].items() if v)
    load, apply = usage
    classes = ", ".join(f"{label} {name}" for label, name in enumerate(manifest.classes))
    rows = {
        "Recipe": f"{summary['recipe']}: {summary['model']}, {summary['parameters']:,} parameters, "
        f"{summary['epochs']:g} epochs, seed {summary['seed']}",
        "Data": f"{manifest.dataset}: {manifest.train.samples:,} training and "
        f"{manifest.test.samples:,} test images of {height}x{width}",
        "Accuracy": accuracy(summary),
        "Input": f"`images`: uint8 (n, {height}, {width}, {channels}), "
        f"{'red, green, blue' if channels == 3 else 'grey'}, not normalised; any n",
        "Output": f"probabilities: float32 (n, {len(manifest.classes)})",
        "Classes": classes,
        "Checked against the trained model": checked,
        "Commit": summary["git_commit"] or "unknown",
        "Versions": versions,
    }
    image = f"numpy.array(image).reshape(1, {height}, {width}, {channels})"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# {file}

| | |
|---|---|
{table}

```python
{imports}
from PIL import Image
image = Image.open("image.png").convert("{mode}").resize(({width}, {height}))
model = {load.format(file=file)}
probabilities = {apply.format(images=image)}
```
"""


def accuracy(summary: Mapping[str, Any]) -> str:
    """The figures that were measured at the end of the run."""
    names = {
        "test_accuracy": "{:.2%} of the test images",
        "test_accuracy_tta": "{:.2%} with test-time augmentation",
        "validation_accuracy": "{:.2%} of held-out training images",
    }
    known = [
        text.format(summary[name]) for name, text in names.items() if summary.get(name) is not None
    ]
    return ", ".join(known) or "unknown"
