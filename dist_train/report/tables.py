"""Tables of texts, for pages and terminals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from dist_train.checks import as_typed
from dist_train.report.groups import Group
from dist_train.report.reading import Run, differing, is_number


@dataclass(frozen=True)
class Table:
    """A header and rows of the same length; an empty text is an unknown value."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def without_empty_columns(self) -> "Table":
        """The same, less the columns that say nothing in any row."""
        kept = [n for n in range(len(self.header)) if any(row[n] for row in self.rows)]
        return Table([self.header[n] for n in kept], [[row[n] for n in kept] for row in self.rows])

    def transposed(self) -> "Table":
        """Rows as columns; the corner stays."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return Table(header, rows)

    def as_text(self) -> str:
        """Aligned columns for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in (self.header, *self.rows)
        ]
        return "\n".join(lines)


def percent(value: Any) -> str:
    """0.9412 as 94.12 %."""
    return f"{value:.2%}" if is_number(value) else ""


def number(value: Any, form: str) -> str:
    """A number in some format; empty for what is none."""
    return format(value, form) if is_number(value) else ""


def device(summary: Mapping[str, Any]) -> str:
    """What a finished run ran on."""
    return f"{summary.get('world_size')} x {summary['device']}" if "device" in summary else ""


RESULTS: Mapping[str, Callable[[Run], str]] = {
    "run": lambda run: run.name,
    "state": lambda run: run.state,
    "recipe": lambda run: run.recipe,
    "data": lambda run: str(run.config.get("data.dataset", "")),
    "seed": lambda run: str(run.config.get("seed", "")),
    "epochs": lambda run: number(run.epochs, ".3g"),
    "accuracy": lambda run: percent(run.accuracy),
    "with TTA": lambda run: percent(run.summary.get(f"{run.split}_accuracy_tta")),
    "loss": lambda run: number(run.loss, ".4f"),
    "images/s": lambda run: number(run.images_per_second, ",.0f"),
    "training s": lambda run: number(run.seconds.get("train"), ",.1f"),
    "total s": lambda run: number(run.seconds.get("total"), ",.1f"),
    "device": lambda run: device(run.summary),
    "when": lambda run: run.when,
}


def results(runs: Sequence[Run]) -> Table:
    """How the runs ended, a row each."""
    rows = [[cell(run) for cell in RESULTS.values()] for run in runs]
    return Table(list(RESULTS), rows).without_empty_columns()


def experiments(groups: Sequence[Group]) -> Table:
    """Mean and standard deviation of each experiment with several runs."""
    measures: Mapping[str, tuple[Callable[[Run], Any], str]] = {
        "accuracy": (lambda run: run.accuracy, ".2%"),
        "loss": (lambda run: run.loss, ".4f"),
        "images/s": (lambda run: run.images_per_second, ",.0f"),
        "training s": (lambda run: run.seconds.get("train"), ",.1f"),
    }
    rows = [
        [group.label]
        + [spread([of(run) for run in group.runs], form) for of, form in measures.values()]
        for group in groups
        if len(group.runs) > 1
    ]
    return Table(["experiment", *measures], rows)


def spread(values: Sequence[Any], form: str) -> str:
    """Mean and, of two or more values, standard deviation."""
    known = [value for value in values if is_number(value)]
    if not known:
        return ""
    deviation = f" ± {stdev(known):{form}}" if len(known) > 1 else ""
    return f"{mean(known):{form}}{deviation}"


def differences(runs: Sequence[Run]) -> Table:
    """The settings in which runs differ; a row is a run or a setting, whichever are more."""
    runs = [run for run in runs if run.config]
    fields = differing(runs)
    rows = [[run.name, *(as_typed(run.config.get(name)) for name in fields)] for run in runs]
    table = Table(["", *fields], rows if fields else [])
    return table.transposed() if len(fields) > len(runs) else table
