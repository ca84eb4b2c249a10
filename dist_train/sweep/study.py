"""What came of a sweep: rows over seeds, as a table and a plot."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dist_train.sweep.plan import Sweep, tail


def results(sweep: Sweep) -> list[dict[str, Any]]:
    """A row a configuration, over the seeds that are finished."""
    rows = []
    for _, group in itertools.groupby(sweep.runs, key=lambda run: run.varied):
        runs = list(group)
        summaries = [
            json.loads((run.folder / "summary.json").read_text()) for run in runs if run.is_finished
        ]
        split = "test" if all(s["test_accuracy"] is not None for s in summaries) else "validation"
        accuracies = [summary[f"{split}_accuracy"] for summary in summaries]
        rows.append(
            {
                **runs[0].varied,
                "accuracy_of": split,
                "accuracy_mean": mean(accuracies) if accuracies else None,
                "accuracy_std": stdev(accuracies) if len(accuracies) > 1 else None,
                "train_seconds_mean": mean(s["seconds"]["train"] for s in summaries)
                if summaries
                else None,
                "n": len(accuracies),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> str:
    """The rows in Markdown; the standard deviation is the sample's."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    columns = [*varied, f"{rows[0]['accuracy_of']} accuracy", "std", "training", "n"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [
            *(row[path] for path in varied),
            number(row["accuracy_mean"], ".2%"),
            number(row["accuracy_std"], ".2%"),
            number(row["train_seconds_mean"], ".1f") + " s",
            str(row["n"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], varied: Sequence[str], path: Path) -> None:
    """Mean accuracy with its deviation against the first field, a line for each of the rest."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    first, others = varied[:1], varied[1:]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["n"]:
            lines.setdefault(", ".join(f"{tail(o)} {row[o]}" for o in others), []).append(row)
    for label, points in lines.items():
        axis.errorbar(
            [row[first[0]] if first else "" for row in points],
            [row["accuracy_mean"] for row in points],
            [row["accuracy_std"] or 0 for row in points],
            marker="o",
            capsize=3,
            label=label,
        )
    axis.set(xlabel=first[0] if first else "", ylabel=f"{rows[0]['accuracy_of']} accuracy")
    axis.yaxis.set_major_formatter("{x:.1%}")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if others:
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
