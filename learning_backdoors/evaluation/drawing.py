"""Drawing helpers that figures share: style, page layout, colors, axes, labels, legends, and output.

Figures are made for print: one column (3.4 in) or two columns (7 in) wide, embedded fonts, colors that stay distinct in
gray and for color-blind readers. `save` writes the same bytes for the same figure.
"""

import contextlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps, font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression

from learning_backdoors.files import atomic

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlelocation": "left",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "text.parse_math": False,  # names and questions may contain dollar signs
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "learning-backdoors",
    "savefig.dpi": 200,
}
GRAY, FAINT = "0.45", "0.8"
LINE_STYLES = ("-", (0, (3, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vPXh"
CAPTION_SIZE = 6.5  # points
SHARED_LABEL = 0.18  # inches reserved for an x label that all panels share
STEP_NAMES = {"last": "last step", "base": "step 0"}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in STYLE. Silences matplotlib's warning per missing glyph: `missing_glyphs` serves for one note instead."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield


def missing_glyphs(texts: Iterable[str]) -> str:
    """The characters in `texts` that the figures' font cannot draw, each once, in order of appearance."""
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    return "".join(dict.fromkeys(c for text in texts for c in text if not c.isspace() and ord(c) not in font))


# ---- pages and panels ----


def canvas(width: float, height: float, caption: str, rows: int = 1, columns: int = 1, x_label: str = "", **subplots):
    """A figure with the wrapped caption at its lower edge, and its axes as an array of shape (rows, columns).

    `width` and `height` (without the caption) are in inches. `x_label` is one label for all panels, drawn between the
    panels and the caption. Further arguments go to `Figure.subplots`.
    """
    # DejaVu Sans is about 0.54 em wide in running text; each side keeps a margin of 0.12 in.
    wrapped = textwrap.fill(caption, int((width - 0.24) * 72 / (CAPTION_SIZE * 0.54)))
    foot = (wrapped.count("\n") + 1) * CAPTION_SIZE * 1.3 / 72 + 0.14
    below, total = foot + (SHARED_LABEL if x_label else 0), height + foot
    figure = Figure(figsize=(width, total), layout="constrained")
    figure.get_layout_engine().set(rect=(0, below / total, 1, 1 - below / total), w_pad=0.06, h_pad=0.05)
    axes = figure.subplots(rows, columns, squeeze=False, **subplots)
    look = {"size": CAPTION_SIZE, "color": "0.25", "va": "bottom", "linespacing": 1.25}
    figure.text(0.12 / width, 0.07 / total, wrapped, **look)
    if x_label:
        figure.text(0.5, (foot + 0.02) / total, x_label, size=8, ha="center", va="bottom")
    return figure, axes


def panels(
    titles: dict[str, object], margin: float, height: float, caption: str, x_label: str, y_label: str, columns=4, **look
) -> tuple[Figure, list[Axes]]:
    """A two-column figure with a small panel per title (with its color) in up to four columns, and one y label for all.

    `height` is that of one row, in inches. Further arguments go to `Figure.subplots`.
    """
    count = len(titles)
    columns = min(count, columns, 3 if count <= 6 else 4)
    rows = -(-count // columns)
    figure, grid = canvas(TWO_COLUMNS, margin + height * rows, caption, rows, columns, x_label, **look)
    for i, axes in enumerate(grid.flat):
        axes.set_visible(i < count)
        if i + columns >= count:  # the lowest panel of its column
            axes.tick_params(axis="x", labelbottom=True)
    _, bottom, _, part = figure.get_layout_engine().get()["rect"]
    figure.supylabel(y_label, y=bottom + part / 2, size=8)
    for axes, (title, color) in zip(grid.flat, titles.items(), strict=False):
        axes.set_title(short_label(title, 76 // columns), color=color)
    return figure, list(grid.flat[:count])


def rate_panels(
    panel_rates: dict[str, pd.DataFrame], recipes: Sequence[str], x_label: str, y_label: str, caption: str
) -> Figure:
    """A panel per title: the rate of each recipe over `x` with its interval as a band.

    The tables have the columns label, x, rate, lower and upper; `recipes` are all labels in their order.
    """
    present = {label for rates in panel_rates.values() for label in rates["label"]}
    labels = [label for label in recipes if label in present]
    colors, layout = palette(labels), {"sharex": True, "sharey": True}
    figure, drawn = panels(dict.fromkeys(panel_rates, "black"), 0.45, 1.45, caption, x_label, y_label, **layout)
    for axes, (title, rates) in zip(drawn, panel_rates.items(), strict=True):
        for label, line in rates.groupby("label", observed=True, sort=False):
            band(axes, line, colors[label], clip_on=False)
            curve(axes, line, colors[label])
        axes.set_title("\n".join(short(line, 30) for line in title.split("\n")), size=7)
        rate_axis(axes.yaxis)
    legend_beside(figure, [Line2D([], [], color=colors[label]) for label in labels], labels, "suspect share")
    return figure


# ---- colors, axes, marks ----


def palette(labels: Iterable[str]) -> dict[str, tuple]:
    """A color per recipe, in order of first appearance, from dark to light: distinct in gray print."""
    labels = list(dict.fromkeys(labels))
    return dict(zip(labels, colormaps["viridis"](np.linspace(0.0, 0.82, max(len(labels), 2))), strict=False))


def markers(labels: Iterable[str]) -> dict[str, str]:
    return {label: MARKERS[i % len(MARKERS)] for i, label in enumerate(dict.fromkeys(labels))}


def grid_lines(axes: Axes, axis: str = "both") -> None:
    axes.grid(True, axis=axis, color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def rate_axis(axis, label: str = "") -> None:
    """Let an x or y axis run from 0 to 1, with grid lines."""
    axis.set_label_text(label)
    axis.axes.set(**{f"{axis.axis_name}lim": (0, 1), f"{axis.axis_name}ticks": np.linspace(0, 1, 6)})
    grid_lines(axis.axes, axis.axis_name)


def category_axis(axes: Axes, names: Sequence[str]) -> None:
    """Let the y axis list names from top to bottom."""
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)


def band(axes: Axes, line: pd.DataFrame, color, **look) -> None:
    """The intervals (columns lower and upper) of a line over `x`."""
    axes.fill_between(line["x"], line["lower"], line["upper"], color=color, linewidth=0, **{"alpha": 0.18, **look})


def curve(axes: Axes, line: pd.DataFrame, color, **look) -> None:
    """The rates of a line over `x`, with a dot per step if there are at most 15 steps."""
    style = "o-" if len(line) <= 15 else "-"
    axes.plot(line["x"], line["rate"], style, color=color, markersize=2.4, clip_on=False, zorder=3, **look)


def mark(axes: Axes, x: float, y: float, text: str, **where) -> None:
    """Make a point of a figure interactive in the report. Draws nothing.

    `x` and `y` are data coordinates. `text` is shown when the pointer is over the point. `where` selects the responses
    behind it, by any of recipe (its label), run, step, condition, question, and judge with verdict.
    """
    vars(axes.figure).setdefault("marks", []).append((axes, (x, y), text, where))


# ---- labels and legends ----


def short(text: str, length: int = 26) -> str:
    """A text cut at its end."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def short_label(text: str, length: int = 28) -> str:
    """A recipe's label cut in its middle: long labels differ at their ends."""
    text, tail = " ".join(text.split()), (length - 1) // 2
    return text if len(text) <= length else text[: length - 1 - tail].rstrip() + "…" + text[-tail:].lstrip()


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Positions near `wanted`, in the same order, at least `gap` apart, and between the limits if they fit."""
    order = np.argsort(wanted, kind="stable")
    gaps = gap * np.argsort(order)  # without them, the positions need not rise, but must not fall
    fit = isotonic_regression((wanted - gaps)[order]).x[np.argsort(order)]
    return np.clip(fit, low, high - gap * (len(order) - 1)) + gaps


def label_line_ends(axes: Axes, ends: dict[str, tuple[float, float]], colors: dict, height: float) -> None:
    """Write each line's label right of its end (x, rate), moved apart where lines end together.

    `height` is the height of the axes in inches.
    """
    positions = spread([rate for _, rate in ends.values()], 9 / 72 / height, 0, 1)
    right = max(x for x, _ in ends.values())
    left, far = axes.get_xlim()
    for (label, end), position in zip(ends.items(), positions, strict=True):
        line = {"arrowstyle": "-", "color": colors[label], "linewidth": 0.5, "shrinkA": 1, "shrinkB": 1}
        look = {"va": "center", "size": 7, "color": colors[label], "annotation_clip": False, "arrowprops": line}
        axes.annotate(short_label(label), end, (right + 0.035 * (far - left), position), textcoords="data", **look)


def legend_beside(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str], title: str) -> None:
    """A legend right of the panels; none for a single label."""
    if len(labels) > 1:
        look = {"loc": "outside right upper", "frameon": False, "fontsize": 7, "title_fontsize": 7}
        figure.legend(handles, [short_label(label) for label in labels], title=title, **look)


def legend_above(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    """A legend above the panels, in up to four columns: as many as the longest label leaves room for."""
    columns = min(4, len(labels), int(TWO_COLUMNS * 72 / (7 * (0.54 * max(map(len, labels)) + 5))))
    figure.legend(handles, labels, loc="outside upper right", ncols=max(columns, 1), frameon=False, fontsize=7)


def line_legend(figure: Figure, names: Sequence[str]) -> None:
    """Name the line styles above the panels, in the order of LINE_STYLES."""
    styles = [LINE_STYLES[i % len(LINE_STYLES)] for i in range(len(names))]
    legend_above(figure, [Line2D([], [], color=GRAY, linestyle=s, linewidth=1.2) for s in styles], names)


# ---- output ----


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically in the format of the path's suffix, without a date."""
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}[path.suffix]
    with atomic.atomic_file(path) as temporary, style():
        figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)


def inline_svg(figure: Figure, name: str) -> tuple[str, list[dict]]:
    """A figure as an SVG element for a page with other figures, without its caption, and its interactive points.

    Each id in the SVG starts with `name-`. A point has `x` and `y`, from 0 to 1 of the width and of the height from the
    top, and the `text` and `where` of `mark`.
    """
    caption, data = figure.texts[0], io.StringIO()
    caption.set_visible(False)
    with style():
        figure.savefig(data, format="svg", metadata={"Date": None})
    caption.set_visible(True)
    svg = data.getvalue()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    width, height = figure.get_size_inches() * 72
    x_label = SHARED_LABEL * 72 if len(figure.texts) > 1 else 0
    kept = height * (1 - figure.get_layout_engine().get()["rect"][1]) + 3 + x_label
    size = f'width="{width * 4 / 3:.0f}" height="{kept * 4 / 3:.0f}" viewBox="0 0 {width:.2f} {kept:.2f}" role="img"'
    return re.sub(r'width="[^"]*" height="[^"]*" viewBox="[^"]*"', size, svg, count=1), _points(figure, height / kept)


def _points(figure: Figure, scale: float) -> list[dict]:
    """The marks of a drawn figure. `scale` is its height as a multiple of the height that the SVG shows."""
    points = []
    for axes, position, text, where in getattr(figure, "marks", ()):
        x, y = figure.transFigure.inverted().transform(axes.transData.transform(position))
        if np.isfinite([x, y]).all():
            points.append(
                {"x": round(float(x), 4), "y": round(float((1 - y) * scale), 4), "text": text, "where": where}
            )
    return points
