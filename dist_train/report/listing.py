"""`dist-train runs` and `dist-train compare`: what there is, and how two runs differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from dist_train.checks import as_typed
from dist_train.config import flatten
from dist_train.report.reading import Run, differing, is_number
from dist_train.report.tables import Table, results

COLUMNS = ("run", "state", "recipe", "epochs", "accuracy", "images/s", "when")


def listed(runs: Sequence[Run]) -> str:
    """The runs for a terminal, a row each."""
    table = results(runs)
    kept = [number for number, name in enumerate(table.header) if name in COLUMNS]
    rows = [[row[number] or "-" for number in kept] for row in table.rows]
    return Table([table.header[number] for number in kept], rows).as_text()


def as_records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The runs as plain values; null is unknown."""
    return [
        {
            "run": str(run.folder),
            "state": run.state,
            "recipe": run.recipe,
            "step": run.step,
            "epochs": run.epochs,
            f"{run.split}_accuracy": run.accuracy,
            "images_per_second": run.images_per_second,
            "when": run.when,
            "notes": run.notes,
        }
        for run in runs
    ]


def differences(first: Run, second: Run) -> dict[str, dict[str, tuple[Any, Any]]]:
    """The `settings` and `results` in which two runs differ: dotted names to both values."""
    settings = differing([first, second])
    before, after = outcome(first), outcome(second)
    return {
        "settings": {name: (first.config.get(name), second.config.get(name)) for name in settings},
        "results": {
            name: (before.get(name), after.get(name))
            for name in {**before, **after}
            if before.get(name) != after.get(name)
        },
    }


def outcome(run: Run) -> Mapping[str, Any]:
    """What is known of a run's result, by the names of summary.json."""
    so_far = {
        "state": run.state,
        f"{run.split}_accuracy": run.accuracy,
        f"{run.split}_loss": run.loss,
        "images_per_second": run.images_per_second,
    }
    of_config = ("recipe", "dataset", "model", "seed")
    final = {name: value for name, value in flatten(run.summary) if name not in of_config}
    return {**so_far, **final}


def compared(first: Run, second: Run) -> str:
    """The differences for a terminal, with the change of each number."""
    parts = []
    for title, pairs in differences(first, second).items():
        shown = as_typed if title == "settings" else result
        rows = [[name, *map(shown, pair), change(name, *pair)] for name, pair in pairs.items()]
        header = [title, str(first.folder), str(second.folder), "change"]
        parts.append(Table(header, rows).as_text() if rows else f"{title}: no difference")
    return "\n\n".join(parts)


def result(value: Any) -> str:
    """A result; unknown ones as a dash."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def change(name: str, before: Any, after: Any) -> str:
    """Of shares the difference, of other numbers the ratio."""
    if not is_number(before) or not is_number(after):
        return ""
    if "accuracy" in name or "fraction" in name:
        return f"{100 * (after - before):+.2f} points"
    return f"{after / before:.3g} x" if before else ""
