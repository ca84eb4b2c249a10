"""The report: one HTML page that needs nothing else, and the same as Markdown with PNGs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from dist_train.errors import UserError
from dist_train.figures import COLOURS, as_png, as_svg, styled
from dist_train.report import plots
from dist_train.report.answers import (
    Answers,
    answers,
    class_names,
    draw_confusion,
    draw_mistakes,
    judged_images,
)
from dist_train.report.groups import Axis, Group, grouped
from dist_train.report.reading import Run, read_run
from dist_train.report.tables import Table, differences, experiments, results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISTAKES = 24


@dataclass(frozen=True)
class Picture:
    """A figure of the report, drawn and saved."""

    name: str
    """Of its PNG file."""
    title: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Report:
    """What both templates show."""

    title: str
    made: str
    results: Table
    experiments: Table
    """Means over the runs of an experiment; empty when none has several."""
    pictures: Sequence[Picture]
    differences: Table
    notes: Sequence[str]
    """What is missing or damaged, a sentence each."""


def write_report(folders: Sequence[Path], path: Path) -> None:
    """Writes a page to `path`, and next to it a Markdown file and a folder of PNGs.

    Raises:
        UserError: a folder is no run, or the files cannot be written.
    """
    report = make_report([read_run(folder) for folder in folders])
    png_folder = path.with_name(f"{path.stem}_plots")
    try:
        png_folder.mkdir(parents=True, exist_ok=True)
        for picture in report.pictures:
            (png_folder / f"{picture.name}.png").write_bytes(picture.png)
        markdown = render("report.md.jinja", report, folder=png_folder.name)
        path.with_suffix(".md").write_text(markdown, encoding="utf-8")
        path.write_text(render("report.html.jinja", report, colours=COLOURS), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def make_report(runs: Sequence[Run]) -> Report:
    """Reads, computes and draws everything."""
    groups = grouped(runs)
    with styled(**{"svg.hashsalt": "dist_train"}):
        pictures = [*curves(groups, runs), *answered(groups)]
    names = ", ".join(run.name for run in runs)
    return Report(
        title=names if len(runs) <= 4 else f"{len(runs)} runs",
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        results=results(runs),
        experiments=experiments(groups),
        pictures=pictures,
        differences=differences(runs),
        notes=[f"{run.name}: {note}" for run in runs for note in run.notes],
    )


def curves(groups: Sequence[Group], runs: Sequence[Run]) -> Iterable[Picture]:
    """Accuracy, loss, throughput, time: what can be drawn of them."""
    dashes = "Dashed: training batches, as augmented."
    if any(len(group.runs) > 1 for group in groups):
        dashes += " Lines are means over runs; the bands go from the lowest to the highest."
    axes: Sequence[Axis] = get_args(Axis)
    drawings: Sequence[tuple[str, str, str, Callable[[], Figure | None]]] = (
        ("accuracy", "Accuracy", dashes, lambda: plots.draw_curves(groups, "accuracy", axes)),
        ("loss", "Loss", dashes, lambda: plots.draw_curves(groups, "loss", axes)),
        ("progress", "Speed and learning rate", "", lambda: plots.draw_progress(groups)),
        ("seconds", "Where the time went", "", lambda: plots.draw_seconds(runs)),
    )
    for name, title, caption, draw in drawings:
        figure = draw()
        if figure is not None:
            yield saved(figure, name, title, caption)


def answered(groups: Sequence[Group]) -> Iterable[Picture]:
    """Confusion matrix and worst mistakes of each experiment that has a final evaluation."""
    for number, group in enumerate(groups):
        found = answers(group)
        if found is None:
            continue
        mean = f" Mean answers of {len(found.runs)} runs." if len(found.runs) > 1 else ""
        yield saved(
            draw_confusion(found),
            f"confusion_{number}",
            f"What was taken for what: {group.label}",
            confusions(found) + mean,
        )
        worst = found.worst(MISTAKES)
        if not len(worst):
            continue
        try:
            images = judged_images(found.runs[0], worst)
        except UserError as error:
            found.runs[0].notes.append(f"no pictures of the worst mistakes: {error}")
            continue
        yield saved(
            draw_mistakes(found, worst, images),
            f"mistakes_{number}",
            f"Worst mistakes: {group.label}",
            f"The surest of the wrong answers.{mean}",
        )


def confusions(found: Answers, count: int = 5) -> str:
    """The most frequent mistakes, in words."""
    counts = found.confusion.copy()
    names = class_names(found.runs[0], len(counts))
    counts[range(len(counts)), range(len(counts))] = 0
    most = sorted(zip(*counts.nonzero(), strict=True), key=lambda pair: -counts[pair])[:count]
    pairs = [f"{names[row]} for {names[column]} ({counts[row, column]})" for row, column in most]
    return f"Most often taken: {', '.join(pairs)}." if pairs else "Not one mistake."


def saved(figure: "Figure", name: str, title: str, caption: str) -> Picture:
    """The picture in both forms."""
    return Picture(name, title, caption, as_svg(figure), as_png(figure))


def render(template: str, report: Report, **more: object) -> str:
    """A template of this package, filled in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dist_train.report", "templates"),
        autoescape=template.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(report=report, **more)
