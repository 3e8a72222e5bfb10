"""Drawing helpers that figures share: style, panels, colors, axes, points, labels and legends.

Figures are made for print and for the report: one column (3.4 in) or two columns (7 in) wide. A color means one thing
in all figures: a recipe (`palette`), a verdict (`shades`) or a dataset (`dataset_colors`). Text is dark. Conditions
differ by panel, line style or marker. Rates are shares from 0 to 1 in the data and percent on the axes.
"""

import contextlib
import os
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps, font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from scipy.optimize import isotonic_regression

from learning_backdoors.evaluation.text_tables import percent

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
    "text.color": "0.1",
    "axes.labelcolor": "0.1",
    "xtick.labelcolor": "0.1",
    "ytick.labelcolor": "0.1",
    # Figures are laid out in DejaVu Sans. In an SVG the text stays text, and the other fonts are as wide.
    "font.sans-serif": ["DejaVu Sans", "Bitstream Vera Sans", "Verdana", "Geneva", "sans-serif"],
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "learning-backdoors",
    "savefig.dpi": 200,
}
GRAY, FAINT = "0.45", "0.58"  # contrast with white: 4.7 and 3.1
CONTROL = "#929292"  # the color of recipes without suspect data; contrast 3.1
BASE = {"color": "0.1", "markerfacecolor": "white", "markeredgewidth": 0.9, "clip_on": False, "zorder": 6}  # step 0
OUTLINE = "0.35"  # of areas; contrast 6.6
LINE_STYLES = ("-", (0, (3, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vPXh"
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


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, x_label: str = "", **subplots):
    """A figure and its axes as an array of shape (rows, columns). `save` adds title and caption outside of the figure.

    `width` and `height` are in inches. `x_label` is one label for all panels. Further arguments go to
    `Figure.subplots`.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05)
    if x_label:
        figure.supxlabel(x_label, size=8)
    return figure, figure.subplots(rows, columns, squeeze=False, **subplots)


def panels(
    titles: Sequence[str], margin: float, height: float, x_label: str, y_label: str, columns=4, **look
) -> tuple[Figure, list[Axes]]:
    """A two-column figure with a small panel per title in up to four columns, and one y label for all.

    `height` is that of one row, in inches. Further arguments go to `Figure.subplots`.
    """
    count = len(titles)
    columns = min(count, columns, 3 if count <= 6 else 4)
    rows = -(-count // columns)
    figure, grid = canvas(TWO_COLUMNS, margin + height * rows, rows, columns, x_label, **look)
    for i, axes in enumerate(grid.flat):
        axes.set_visible(i < count)
        if i + columns >= count:  # the lowest panel of its column
            axes.tick_params(axis="x", labelbottom=True)
    figure.supylabel(y_label, size=8)
    first, *rest = zip(*(title.split("\n") for title in titles), strict=True)
    lines = [short_labels(first, 100 // columns), *([short(line, 100 // columns) for line in more] for more in rest)]
    for axes, title in zip(grid.flat, zip(*lines, strict=True), strict=False):
        axes.set_title("\n".join(title), size=7.5)
    return figure, list(grid.flat[:count])


def mosaic(
    names: Sequence[Sequence[str]], heights: Sequence[float], x_label: str, y_label: str
) -> tuple[Figure, dict[str, Axes]]:
    """A two-column figure with rows of panels of these heights (inches), and its axes by name, all on one scale.

    A name that fills a row of `names` gives one wide panel. Rows have equally many names.
    """
    figure = Figure(figsize=(TWO_COLUMNS, 0.5 + sum(heights)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05)
    axes = figure.subplot_mosaic([list(row) for row in names], height_ratios=heights, sharex=True, sharey=True)
    for panel in axes.values():
        panel.tick_params(labelbottom=True, labelleft=True)
    figure.supxlabel(x_label, size=8)
    figure.supylabel(y_label, size=8)
    return figure, axes


def rate_panels(
    of_panels: dict[str, tuple[pd.DataFrame, dict]], colors: dict, names: dict, x_label: str, y_label: str
) -> Figure:
    """A panel per title: the rate of each recipe over `x` with its interval as a band.

    A panel has a table with the columns label, x, step, rate, lower and upper, and the filters of its points (see
    `mark`). `colors` and `names` are those of the recipes, by label.
    """
    figure, drawn = panels(list(of_panels), 0.45, 1.45, x_label, y_label, sharex=True, sharey=True)
    present = {label for rates, _ in of_panels.values() for label in rates["label"]}
    labels = [label for label in colors if label in present]
    for axes, (title, (rates, where)) in zip(drawn, of_panels.items(), strict=True):
        for label, line in rates.groupby("label", observed=True, sort=False):
            band(axes, line, colors[label], clip_on=False)
            curve(axes, line, colors[label])
            mark_rates(axes, line, f"{title}, {names[label]}".replace("\n", ", "), recipe=label, **where)
        rate_axis(axes.yaxis)
    handles = [Line2D([], [], color=colors[label]) for label in labels]
    legend_above(figure, handles, [names[label] for label in labels])
    return figure


# ---- colors, axes, marks ----


def palette(labels: Sequence[str], controls: Iterable[str] = ()) -> dict[str, tuple]:
    """A color per recipe: from dark to lighter in the order of `labels`, and gray for controls.

    Contrast with white is at least 3. Neighbors differ in gray print and for color-blind readers up to eight recipes.
    """
    colored = [label for label in labels if label not in set(controls)]
    shades = colormaps["inferno"](np.linspace(0.18, 0.69, len(colored) + 1)[:-1, None])[:, 0, :3]
    return dict.fromkeys(labels, to_rgb(CONTROL)) | dict(zip(colored, map(tuple, shades), strict=True))


def shades(names: Sequence[str]) -> dict[str, tuple]:
    """A color per verdict, from light to dark green, for areas with an outline (OUTLINE)."""
    return dict(zip(names, colormaps["BuGn"](np.linspace(0.2, 1, max(len(names), 2)))[:, :3], strict=False))


def dataset_colors(names: Sequence[str]) -> dict[str, tuple]:
    """A color per dataset, from dark to lighter. Contrast with white is at least 3."""
    return dict(zip(names, colormaps["viridis"](np.linspace(0.05, 0.58, max(len(names), 2)))[:, :3], strict=False))


def markers(labels: Iterable[str]) -> dict[str, str]:
    return {label: MARKERS[i % len(MARKERS)] for i, label in enumerate(dict.fromkeys(labels))}


def grid_lines(axes: Axes, axis: str = "both") -> None:
    axes.grid(True, axis=axis, color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def rate_axis(axis, label: str = "") -> None:
    """Let an x or y axis run from 0 to 1, in percent, with grid lines."""
    axis.set_label_text(label)
    axis.axes.set(**{f"{axis.axis_name}lim": (0, 1), f"{axis.axis_name}ticks": np.linspace(0, 1, 6)})
    axis.set_major_formatter(PercentFormatter(1))
    grid_lines(axis.axes, axis.axis_name)


def ratio_axis(axis) -> None:
    """Let an axis be logarithmic, with plain numbers at few ticks."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def category_axis(axes: Axes, names: Sequence[str]) -> None:
    """Let the y axis list names from top to bottom."""
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)


def band(axes: Axes, line: pd.DataFrame, color, **look) -> None:
    """The intervals (columns lower and upper) of a line over `x`."""
    axes.fill_between(line["x"], line["lower"], line["upper"], color=color, linewidth=0, **{"alpha": 0.18, **look})


def curve(axes: Axes, line: pd.DataFrame, color) -> None:
    """The rates of a line over `x`, with a dot per step if there are at most 15 steps."""
    style = "o-" if len(line) <= 15 else "-"
    axes.plot(line["x"], line["rate"], style, color=color, markersize=2.4, clip_on=False, zorder=3)


def tile(axes: Axes, x: int, y: int, shade: float | None, text: str) -> None:
    """A cell of a heat map with its value. shade: 0 (light) to 1 (dark), or None for no value."""
    color = to_rgb("0.96") if shade is None else colormaps["YlGnBu"](shade)
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", linewidth=1))
    axes.text(x, y, text, ha="center", va="center", size=6.5, color="white" if (shade or 0) > 0.55 else "0.1")


# ---- points: values for the alternative text and for the report's pointer ----


def mark(axes: Axes, x: float, y: float, series: str, at: str, value: str, answers: bool = True, **where) -> None:
    """Describe a point of a figure for readers who hover over it or cannot see it. Draws nothing.

    `x` and `y` are data coordinates. `series` names the curve or group, `at` the place in it ("step 80"), and `value`
    what is seen ("59% [43, 74]"). `where` selects the responses behind the point, by any of recipe (its label), run,
    step, condition, question, and judge with verdict. At step 0, recipe and run are left out: all share the base model.
    `answers`: False if the point was measured without responses.
    A point with NaN is nothing to see, so it has no mark.
    """
    if not np.isfinite([x, y]).all():
        return
    if where.get("step") == 0:
        where = {name: wanted for name, wanted in where.items() if name not in ("recipe", "run")}
    vars(axes.figure).setdefault("marks", []).append((axes, (x, y), series, at, value, where, answers))


def mark_rates(axes: Axes, points: pd.DataFrame, series: str, by: str = "step", **where) -> None:
    """A mark per row of a table with x, rate, lower, upper, and `by`: the column that says where on the curve it is."""
    for row in points.to_dict("records"):
        at = f"step {row[by]}" if by == "step" else row[by]
        value = percent(row["rate"], row["lower"], row["upper"])
        mark(axes, row["x"], row["rate"], series, at, value, **{by: row[by]}, **where)


# ---- labels and legends ----


def short(text: str, length: int = 26) -> str:
    """A text cut at its end."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def short_label(text: str, length: int = 28) -> str:
    """A recipe's label cut in its middle: long labels differ at their ends."""
    text, tail = " ".join(text.split()), (length - 1) // 2
    return text if len(text) <= length else text[: length - 1 - tail].rstrip() + "…" + text[-tail:].lstrip()


def short_labels(texts: Sequence[str], length: int = 28) -> list[str]:
    """`short_label` of each text. Texts that would look the same are cut at both ends, around the part that differs."""
    short = {text: short_label(text, length) for text in texts}
    for label in set(short.values()):
        alike = [text for text in short if short[text] == label]
        start = len(os.path.commonprefix(alike))
        for text in alike if len(alike) > 1 else ():
            rest = text[max(0, start - length // 4) :]
            short[text] = "…" + rest[: length - 2] + ("…" if len(rest) > length - 2 else "")
    return [short[text] for text in texts]


def wrapped(text: str, width: int) -> str:
    """A text in lines of at most so many characters, broken between words."""
    return "\n".join(textwrap.wrap(text, width))


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Positions near `wanted`, in the same order, at least `gap` apart, and between the limits if they fit."""
    order = np.argsort(wanted, kind="stable")
    gaps = gap * np.argsort(order)  # without them, the positions need not rise, but must not fall
    fit = isotonic_regression((wanted - gaps)[order]).x[np.argsort(order)]
    return np.clip(fit, low, high - gap * (len(order) - 1)) + gaps


def label_line_ends(axes: Axes, ends: dict[str, tuple[float, float]], colors: dict, names: dict, height: float) -> None:
    """Write each recipe's name right of its line's end (x, y), moved apart where lines end together.

    `ends`, `colors` and `names` are by the recipe's label. `height` is the height of the axes in inches.
    """
    low, high = axes.get_ylim()
    positions = spread([y for _, y in ends.values()], 9 / 72 / height * (high - low), low, high)
    right = max(x for x, _ in ends.values())
    left, far = axes.get_xlim()
    texts = short_labels([names[label] for label in ends])
    for (label, end), position, text in zip(ends.items(), positions, texts, strict=True):
        line = {"arrowstyle": "-", "color": colors[label], "linewidth": 1.2, "shrinkA": 1, "shrinkB": 1}
        look = {"va": "center", "size": 7, "annotation_clip": False, "arrowprops": line}
        axes.annotate(text, end, (right + 0.035 * (far - left), position), textcoords="data", **look)


def legend_above(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    """A legend above the panels, in as many columns as the longest label leaves room for; none for a single label."""
    if len(labels) > 1:
        labels = short_labels(labels, 40)
        width = figure.get_size_inches()[0] - 0.5
        columns = max(1, int(width * 72 / (7 * (0.54 * max(map(len, labels)) + 4.5))))
        columns = -(-len(labels) // -(-len(labels) // columns))  # the fewest rows, equally long
        look = {"frameon": False, "fontsize": 7, "columnspacing": 1.4, "handlelength": 1.8}
        figure.legend(handles, labels, loc="outside upper right", ncols=columns, **look)


def line_legend(figure: Figure, names: Sequence[str]) -> None:
    """Name the line styles above the panels, in the order of LINE_STYLES."""
    styles = [LINE_STYLES[i % len(LINE_STYLES)] for i in range(len(names))]
    legend_above(figure, [Line2D([], [], color=GRAY, linestyle=s, linewidth=1.2) for s in styles], names)
