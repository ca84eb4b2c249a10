"""What came of a sweep: rows over seeds, as a table and a plot."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dist_train.figures import COLOURS, as_png, new_figure, percent, styled, with_legend
from dist_train.files import write_atomically
from dist_train.runs import read_summary
from dist_train.sweep.plan import Sweep, tail


def results(sweep: Sweep) -> list[dict[str, Any]]:
    """A row a configuration, over the seeds that are finished."""
    rows = []
    for _, group in itertools.groupby(sweep.runs, key=lambda run: run.varied):
        runs = list(group)
        found = [read_summary(run.folder) for run in runs]
        summaries = [summary for summary in found if summary is not None]
        split = "validation" if runs[0].config.data.validation else "test"
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


def judged_by(rows: Sequence[dict[str, Any]]) -> str:
    """What the accuracies are called: by the images, if these are the same for all rows."""
    splits = {row["accuracy_of"] for row in rows}
    return f"{splits.pop()} accuracy" if len(splits) == 1 else "accuracy"


def table(rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> str:
    """The rows in Markdown; the standard deviation is the sample's."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    columns = [*varied, judged_by(rows), "std", "training", "n"]
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
    """Accuracy and seconds of training against a field, a colour for each value of the others.

    The first field of numbers is chosen, else the first.

    Means with the deviation over seeds. Numbers are joined by lines, names are not.

    Raises:
        UserError: the file cannot be written.
    """
    numeric_fields = [field for field in varied if all(is_number(row[field]) for row in rows)]
    first, numeric = [*numeric_fields, *varied, "recipe"][0], bool(numeric_fields)
    values = list(dict.fromkeys(row.get(first, "") for row in rows))
    at = {value: float(value) if numeric else place for place, value in enumerate(values)}
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["n"]:
            others = [f"{tail(field)} {row[field]}" for field in varied if field != first]
            lines.setdefault(", ".join(others), []).append(row)
    with styled():
        figure, panels = new_figure(1, 2, (11, 4))
        for number, (label, points) in enumerate(lines.items()):
            shift = 0.0 if numeric else 0.12 * (number - (len(lines) - 1) / 2)
            places = [at[row.get(first, "")] + shift for row in points]
            style = {"color": COLOURS[number % len(COLOURS)], "fmt": "o-" if numeric else "o"}
            means = [row["accuracy_mean"] for row in points]
            spread = [row["accuracy_std"] or 0 for row in points]
            panels[0, 0].errorbar(places, means, spread, capsize=3, label=label or None, **style)
            panels[0, 1].errorbar(places, [row["train_seconds_mean"] for row in points], **style)
        for panel in panels.flat:
            panel.set_xlabel(first)
            if numeric and min(at.values()) > 0 and max(at.values()) >= 8 * min(at.values()):
                panel.set_xscale("log")
                panel.minorticks_off()
            panel.set_xticks(list(at.values()), [str(value) for value in values])
            if not numeric and len(values) > 3:
                panel.tick_params(axis="x", rotation=30)
        panels[0, 0].set_ylabel(judged_by(rows))
        panels[0, 0].yaxis.set_major_formatter(percent)
        panels[0, 1].set(ylabel="seconds of training", ylim=(0, None))
        if len(lines) > 1:
            with_legend(figure, [panels[0, 0]])
        write_atomically(path, as_png(figure))


def is_number(value: object) -> bool:
    """Whether a field's value, as it was written, is one."""
    try:
        float(str(value))
    except ValueError:
        return False
    return True
