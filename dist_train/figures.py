"""Figures in one style, drawn in the colours of a light page.

`as_svg` replaces these by names from the page's style sheet, so that one drawing suits a light and
a dark page.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

INK, GRID = "#1d2430", "#d9dee5"
COLOURS = (
    *("#1f6fd1", "#d9541e", "#17876d", "#a23fb5"),
    *("#b07d00", "#c2255c", "#5f7a1f", "#6b7280"),
)
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters stay letters: smaller, and in the page's font
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def styled(**options: Any) -> Iterator[None]:
    """Draw and save figures inside: matplotlib looks its style up all along."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE | options):
        yield


def new_figure(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple["Figure", "NDArray[Any]"]:
    """An empty figure, which no window system knows of, and its axes (rows, columns)."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
    figure = Figure(figsize=size, layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def with_legend(figure: "Figure", panels: Sequence["Axes"]) -> "Figure | None":
    """The figure with one legend above for all panels; None when nothing is drawn in it."""
    labels: dict[str, Any] = {}
    for panel in panels:
        handles, names = panel.get_legend_handles_labels()
        labels |= dict(zip(names, handles, strict=True))
        if not handles:  # for example seconds, without the batch size
            panel.set_axis_off()
    if not labels:
        return None
    longest = max(map(len, labels))
    columns = max(1, min(len(labels), int(figure.get_figwidth() * 12 / (longest + 6))))
    figure.legend(labels.values(), labels.keys(), loc="outside upper left", ncols=columns)
    return figure


def in_legend(name: str) -> str:
    """A label that matplotlib shows: it leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def percent(share: float, _: int) -> str:
    """A tick of an axis of shares, with as many digits as tell it from the next: 90%, 0.5%."""
    return f"{100 * share:.4g}%"


def as_svg(figure: "Figure") -> str:
    """The drawing as an `<svg>` element that takes its colours from the page."""
    with io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    names = {INK: "ink", GRID: "grid"} | {c: f"c{number}" for number, c in enumerate(COLOURS)}
    for colour, name in names.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"font-family: [^;\"]*", "", text)  # the page's own


def as_png(figure: "Figure") -> bytes:
    """The drawing on white."""
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()
