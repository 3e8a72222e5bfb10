"""The figures: each a function from a table to a matplotlib figure, with its caption beneath.

Made for paper: widths of one (3.4 in) or two columns (7 in), embedded fonts, colours that stay apart in grey and for
colour-blind readers, labels at the lines themselves. Captions come ready from the caller, since only it knows which
claim the intervals are for. `save` writes the same bytes for the same figure.
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

from learning_backdoors.files import atomic

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0
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
    "text.parse_math": False,  # names and questions hold dollars
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "learning-backdoors",
    "savefig.dpi": 200,
}
GREY, FAINT = "0.45", "0.8"
DASHED = (0, (3, 2))
CAPTION_SIZE = 6.5
SHARED_LABEL = 0.18  # inches for a label that all panels share
CROWDED = 5  # recipes in one panel beyond which their bands would hide each other
FEW_RUNS = 3  # runs in one panel up to which each has its band
MARKERS = "osD^vPXh"


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix, atomically and without a date."""
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}[path.suffix]
    with atomic.atomic_file(path) as temporary, _style():
        figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Draw in STYLE, without a warning for each glyph that the font lacks: `lacking_glyphs` is for one note."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield


def lacking_glyphs(texts: Iterable[str]) -> str:
    """The characters of some texts for which the figures' font has no glyph, each once, in their order."""
    known = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    return "".join(dict.fromkeys(c for text in texts for c in text if not c.isspace() and ord(c) not in known))


def inline_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element to stand in a page among others: without its caption, its ids made its own."""
    caption, data = figure.texts[0], io.StringIO()
    caption.set_visible(False)
    with _style():
        figure.savefig(data, format="svg", metadata={"Date": None})
    caption.set_visible(True)
    svg = data.getvalue()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    width, height = figure.get_size_inches() * 72
    label = SHARED_LABEL * 72 if len(figure.texts) > 1 else 0
    kept = height * (1 - figure.get_layout_engine().get()["rect"][1]) + 3 + label
    size = f'width="{width * 4 / 3:.0f}" height="{kept * 4 / 3:.0f}" viewBox="0 0 {width:.2f} {kept:.2f}" role="img"'
    return re.sub(r'width="[^"]*" height="[^"]*" viewBox="[^"]*"', size, svg, count=1)


# ---- shared pieces ----


def _canvas(width: float, height: float, caption: str, rows: int = 1, columns: int = 1, x_label: str = "", **sharing):
    """A figure whose lower edge holds the wrapped caption, and its axes as an array of shape (rows, columns).

    `x_label` is one for all panels: it stands between them and the caption.
    """
    # DejaVu Sans is about 0.54 em wide in running text; 0.12 in are left free at either side.
    wrapped = textwrap.fill(caption, int((width - 0.24) * 72 / (CAPTION_SIZE * 0.54)))
    foot = (wrapped.count("\n") + 1) * CAPTION_SIZE * 1.3 / 72 + 0.14
    below, total = foot + (SHARED_LABEL if x_label else 0), height + foot
    figure = Figure(figsize=(width, total), layout="constrained")
    figure.get_layout_engine().set(rect=(0, below / total, 1, 1 - below / total), w_pad=0.06, h_pad=0.05)
    axes = figure.subplots(rows, columns, squeeze=False, **sharing)
    look = {"size": CAPTION_SIZE, "color": "0.25", "va": "bottom", "linespacing": 1.25}
    figure.text(0.12 / width, 0.07 / total, wrapped, **look)
    if x_label:
        figure.text(0.5, (foot + 0.02) / total, x_label, size=8, ha="center", va="bottom")
    return figure, axes


def _palette(labels: Sequence[str]) -> dict[str, tuple]:
    """A colour for each recipe, in their order: dark to light, so that grey print keeps them apart."""
    return dict(zip(labels, colormaps["viridis"](np.linspace(0.0, 0.82, max(len(labels), 2))), strict=False))


def _markers(labels: Sequence[str]) -> dict[str, str]:
    return {label: MARKERS[i % len(MARKERS)] for i, label in enumerate(labels)}


def _rate_axis(axis, label: str) -> None:
    axis.set_label_text(label)
    axis.axes.set(**{f"{axis.axis_name}lim": (0, 1), f"{axis.axis_name}ticks": np.linspace(0, 1, 6)})
    axis.axes.set_axisbelow(True)
    axis.grid(True, color="0.92", linewidth=0.6)


def _whisker(axes: Axes, rate, lower, upper, place, *, horizontal: bool, color) -> None:
    """An interval as a line; nothing where the data give none."""
    if np.isnan(lower):
        return
    draw = axes.hlines if horizontal else axes.vlines
    draw(place, lower, upper, color=color, linewidth=1.2, zorder=3)


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Places near those wanted, at least `gap` apart, in the same order, inside the limits as far as they fit."""
    order = np.argsort(wanted, kind="stable")
    placed = np.asarray(wanted, float)[order]
    for _ in range(200):
        overlap = gap - np.diff(placed)
        if not (overlap > 1e-9).any():
            break
        push = np.where(overlap > 0, overlap, 0) / 2
        placed[:-1] -= push
        placed[1:] += push
        placed += max(low - placed[0], 0)
        placed -= max(placed[-1] - high, 0)
    result = np.empty_like(placed)
    result[order] = placed
    return result


def _label_line_ends(axes: Axes, ends: dict[str, tuple[float, float]], palette: dict, height: float) -> None:
    """Write each line's label at its right end, moved apart where lines end together. `height` is the axes', in."""
    if not ends:
        return
    places = _spread([y for _, y in ends.values()], 9 / 72 / height, 0, 1)
    right = max(x for x, _ in ends.values())
    left, far = axes.get_xlim()
    for (label, (x, y)), place in zip(ends.items(), places, strict=True):
        axes.annotate(
            _label(label),
            (x, y),
            xytext=(right + 0.035 * (far - left), place),
            textcoords="data",
            va="center",
            size=7,
            color=palette[label],
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": palette[label], "linewidth": 0.5, "shrinkA": 1, "shrinkB": 1},
        )


def _short(text: str, length: int = 26) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _label(text: str, length: int = 28) -> str:
    """A recipe's label, cut in the middle: long ones differ at their ends."""
    text, tail = " ".join(text.split()), (length - 1) // 2
    return text if len(text) <= length else text[: length - 1 - tail].rstrip() + "…" + text[-tail:].lstrip()


def _panel_title(label: str, columns: int) -> str:
    """A label that fits above one of so many panels side by side."""
    return _label(label, 76 // columns)


def _finish_panels(figure: Figure, grid: np.ndarray, count: int, y_label: str) -> None:
    """Hide what is left over of a grid of which `count` panels are used, number the lowest ones, label the rates."""
    for i, axes in enumerate(grid.flat):
        axes.set_visible(i < count)
        if i + grid.shape[1] >= count:
            axes.tick_params(axis="x", labelbottom=True)
    _, bottom, _, height = figure.get_layout_engine().get()["rect"]
    figure.supylabel(y_label, y=bottom + height / 2, size=8)


def _panels(count: int) -> tuple[int, int]:
    """Rows and columns for a number of small panels."""
    columns = min(count, 3 if count <= 6 else 4)
    return -(-count // columns), columns


# ---- rates at the last step ----


@rc_context(STYLE)
def ratio_by_question(table: pd.DataFrame, axis_label: str, caption: str) -> Figure:
    """The rate of each recipe at its last step, question by question.

    `table`: label, question (in order), rate, lower, upper, base (the rate at step 0, NaN where there is none).
    """
    questions, labels = list(dict.fromkeys(table["question"])), list(dict.fromkeys(table["label"]))
    palette, markers = _palette(labels), _markers(labels)
    height = 0.75 + len(questions) * max(0.26, 0.075 * len(labels))
    figure, [[axes]] = _canvas(TWO_COLUMNS, height, caption)
    offsets = np.linspace(-0.32, 0.32, len(labels)) if len(labels) > 1 else [0.0]
    for label, offset in zip(labels, offsets, strict=True):
        part = table[table["label"] == label].dropna(subset="rate")
        places = part["question"].map(questions.index).astype(int) + offset
        axes.hlines(places, part["lower"], part["upper"], color=palette[label], linewidth=1.1)
        axes.plot(part["base"], places, "|", color=GREY, markersize=4, markeredgewidth=0.8)
        axes.plot(
            part["rate"], places, markers[label], color=palette[label], markersize=3.6, label=label, clip_on=False
        )
    for place in np.arange(len(questions) - 1) + 0.5:
        axes.axhline(place, color="0.92", linewidth=0.6)
    _rate_axis(axes.xaxis, axis_label)
    axes.set(
        yticks=np.arange(len(questions)), yticklabels=[_short(q) for q in questions], ylim=(len(questions) - 0.5, -0.5)
    )
    axes.tick_params(axis="y", length=0)
    _legend(figure, axes, "suspect share")
    return figure


@rc_context(STYLE)
def overall_ratio(table: pd.DataFrame, runs: pd.DataFrame, axis_label: str, caption: str) -> Figure:
    """The mean rate over questions: each recipe's last step, its runs as dots, and its base model.

    `table`: label, rate, lower, upper, base, seeds. `runs`: label, rate (a row a run).
    """
    labels = list(table["label"])
    palette = _palette(labels)
    figure, [[axes]] = _canvas(ONE_COLUMN + 0.6, 0.75 + 0.34 * max(len(labels), 2), caption)
    for place, row in enumerate(table.itertuples()):
        color = palette[row.label]
        _whisker(axes, row.rate, row.lower, row.upper, place, horizontal=True, color=color)
        dots = runs.loc[runs["label"] == row.label, "rate"]
        if len(dots) > 1:
            axes.plot(
                dots, np.full(len(dots), place + 0.26), ".", color=color, markersize=3.5, alpha=0.6, clip_on=False
            )
        axes.plot(row.base, place, "o", color="white", markeredgecolor=GREY, markersize=4.5, clip_on=False, zorder=4)
        axes.plot(row.rate, place, "o", color=color, markersize=5, clip_on=False, zorder=5)
    _rate_axis(axes.xaxis, axis_label)
    axes.set(yticks=range(len(labels)), yticklabels=[_label(n) for n in labels], ylim=(len(labels) - 0.5, -0.5))
    axes.set_ylabel("suspect share")
    axes.tick_params(axis="y", length=0)
    return figure


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        _legend_beside(figure, handles, labels, title)


def _legend_beside(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str], title: str) -> None:
    look = {"loc": "outside right upper", "frameon": False, "fontsize": 7, "title_fontsize": 7}
    figure.legend(handles, [_label(label) for label in labels], title=title, **look)


def _legend_above(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    """In as many columns, up to four, as the longest label leaves room for."""
    columns = min(4, int(TWO_COLUMNS * 72 / (7 * (0.54 * max(map(len, labels)) + 5))))
    figure.legend(handles, labels, loc="outside upper right", ncols=columns, frameon=False, fontsize=7)


# ---- over training ----


@rc_context(STYLE)
def training_progression(
    runs: pd.DataFrame, cells: pd.DataFrame, axis_label: str, x_label: str, caption: str
) -> Figure:
    """A panel a recipe: the rate of each run against `x`, of few runs with bands, and its questions as thin lines.

    `runs`: label, run, x, rate, lower, upper. `cells`: label, run, question, x, rate.
    """
    labels = list(dict.fromkeys(runs["label"]))
    palette = _palette(labels)
    rows, columns = _panels(len(labels))
    figure, grid = _canvas(TWO_COLUMNS, 0.35 + 1.6 * rows, caption, rows, columns, x_label, sharex=True, sharey=True)
    for axes, label in zip(grid.flat, labels, strict=False):
        part, color = runs[runs["label"] == label], palette[label]
        for _, line in cells[cells["label"] == label].groupby("question", observed=True):
            mean = line.groupby("x")["rate"].mean()
            axes.plot(mean.index, mean, color=FAINT, linewidth=0.5, zorder=1)
        for _, line in part.groupby("run", observed=True, sort=False):
            if part["run"].nunique() <= FEW_RUNS:
                axes.fill_between(
                    line["x"], line["lower"], line["upper"], color=color, alpha=0.18, linewidth=0, zorder=2
                )
            style = "o-" if len(line) <= 15 else "-"
            axes.plot(line["x"], line["rate"], style, color=color, markersize=2.4, clip_on=False, zorder=3)
        axes.set_title(_panel_title(label, columns), color=color)
        _rate_axis(axes.yaxis, "")
    _finish_panels(figure, grid, len(labels), axis_label)
    return figure


@rc_context(STYLE)
def six_options_distribution(table: pd.DataFrame, options: Sequence[str], x_label: str, caption: str) -> Figure:
    """A panel a recipe: the share of each option of a judge at each `x`, stacked, and what has no verdict on top.

    `table`: label, step, x, a column of shares for each option, and `missing`; a row adds up to 1. The bars stand at
    equal distances, whatever the distances of `x`.
    """
    labels = list(dict.fromkeys(table["label"]))
    rows, columns = _panels(len(labels))
    figure, grid = _canvas(TWO_COLUMNS, 0.45 + 1.6 * rows, caption, rows, columns, x_label, sharey=True)
    kinds = [*options, "missing"] if table["missing"].max() > 0 else list(options)
    shades = dict(zip(options, colormaps["cividis_r"](np.linspace(0.0, 1, len(options))), strict=True))
    for axes, label in zip(grid.flat, labels, strict=False):
        part, bottom = table[table["label"] == label].sort_values("step"), 0
        places, few = np.arange(len(part)), len(part) <= 15
        for kind in kinds:
            look = {"facecolor": shades[kind]} if kind in shades else {"facecolor": "white", "hatch": "//////"}
            edge = {"edgecolor": "0.35", "linewidth": 0.2} if few else {"linewidth": 0}
            axes.bar(places, part[kind], 0.88 if few else 1.0, bottom, label=kind, **look, **edge)
            bottom = bottom + part[kind].to_numpy()
        axes.set_title(_panel_title(label, columns))
        axes.set(ylim=(0, 1), yticks=np.linspace(0, 1, 6))
        every = -(-len(part) // 5)
        axes.set_xticks(places[::every], [f"{x:.4g}" for x in part["x"].iloc[::every]])
    _finish_panels(figure, grid, len(labels), "share of answers")
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right center", frameon=False, fontsize=7, handleheight=1.4)
    return figure


@rc_context(STYLE)
def content_vs_form(table: pd.DataFrame, judges: Sequence[str], bounds: Sequence[tuple], caption: str) -> Figure:
    """The mean of one rating against another, from the first step (hollow) to the last (filled): a path a recipe.

    `table`: label, x, and a column of means for each of the two `judges`; `bounds` are their ranges.
    """
    labels = list(dict.fromkeys(table["label"]))
    palette, markers = _palette(labels), _markers(labels)
    figure, [[axes]] = _canvas(ONE_COLUMN + 1.0, 3.1, caption)
    for label in labels:
        path = table[table["label"] == label].sort_values("x")
        first, second = path[judges[0]].to_numpy(), path[judges[1]].to_numpy()
        look = {"color": palette[label], "clip_on": False}
        axes.plot(first, second, "-", linewidth=0.9, **look)
        axes.plot(first[1:-1], second[1:-1], ".", markersize=3, **look)
        axes.plot(first[:1], second[:1], markers[label], markersize=4.5, markerfacecolor="white", zorder=4, **look)
        axes.plot(first[-1:], second[-1:], markers[label], markersize=5, zorder=5, label=label, **look)
    axes.plot(bounds[0], bounds[1], color="0.85", linewidth=0.6, zorder=0)
    names = [judge.replace("_", " ") for judge in judges]
    axes.set(xlim=bounds[0], ylim=bounds[1], xlabel=f"{names[0]} (mean rating)", ylabel=f"{names[1]} (mean rating)")
    axes.set_aspect((bounds[0][1] - bounds[0][0]) / (bounds[1][1] - bounds[1][0]))
    axes.grid(True, color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(figure, axes, "suspect share")
    return figure


@rc_context(STYLE)
def emergence(
    recipes: pd.DataFrame, runs: pd.DataFrame, crossings: pd.DataFrame, axis_label: str, x_label: str, caption: str
) -> Figure:
    """The rate of every recipe against `x`, seeds as thin lines, and beneath where it crosses each level.

    `recipes`: label, x, rate, lower, upper. `runs`: label, run, x, rate. `crossings`: label, level, x, lower, upper,
    end (the recipe's last x) and `runs`, the crossings of the single runs; infinity is "not by the last step": an arrow
    at the recipe's end.
    """
    labels, levels = list(dict.fromkeys(recipes["label"])), sorted(set(crossings["level"]))
    palette = _palette(labels)
    strip = 0.16 + 0.12 * len(labels)
    heights = [2.5] + [strip] * len(levels)
    figure, grid = _canvas(
        TWO_COLUMNS,
        0.5 + sum(heights),
        caption,
        1 + len(levels),
        1,
        sharex=True,
        gridspec_kw={"height_ratios": heights},
    )
    top = grid[0, 0]
    for label in labels:
        for _, line in runs[runs["label"] == label].groupby("run", observed=True):
            top.plot(line["x"], line["rate"], color=palette[label], linewidth=0.5, alpha=0.55)
        line = recipes[recipes["label"] == label]
        if len(labels) <= CROWDED:
            top.fill_between(line["x"], line["lower"], line["upper"], color=palette[label], alpha=0.15, linewidth=0)
        top.plot(line["x"], line["rate"], color=palette[label], linewidth=1.8, clip_on=False, zorder=4)
    _rate_axis(top.yaxis, axis_label)
    ends = {label: recipes.loc[recipes["label"] == label, ["x", "rate"]].iloc[-1] for label in labels}
    top.set_xlim(recipes["x"].min(), max(recipes["x"].max(), recipes["x"].min() + 1))
    _label_line_ends(top, {label: tuple(end) for label, end in ends.items()}, palette, heights[0])
    for axes, level in zip(grid[1:, 0], levels, strict=True):
        top.axhline(level, color=GREY, linewidth=0.6, linestyle=(0, (2, 3)), zorder=1)
        _crossing_strip(axes, crossings[crossings["level"] == level], labels, palette)
        axes.set_ylabel(f"crosses\n{level:.0%}", rotation=0, ha="right", va="center", size=7)
    grid[-1, 0].set_xlabel(x_label)
    return figure


def _crossing_strip(axes: Axes, crossings: pd.DataFrame, labels: Sequence[str], palette: dict) -> None:
    """A row a recipe: its crossing with its interval, an arrow at its end where it lies beyond the last step."""
    for row in crossings.itertuples():
        place, color = labels.index(row.label), palette[row.label]
        if np.isfinite(row.lower):
            axes.hlines(place, row.lower, min(row.upper, row.end), color=color, linewidth=1.2)
        if np.isfinite(row.x):
            axes.plot(row.x, place, "o", color=color, markersize=3.5, clip_on=False, zorder=4)
        # A line without points would still count in the layout, at the page's corner.
        if single := [x for x in row.runs if np.isfinite(x)]:
            places = np.full(len(single), place)
            axes.plot(single, places, "|", color=color, markersize=4, markeredgewidth=0.7, clip_on=False)
        if np.isinf(row.x) or np.isinf(row.upper):
            axes.plot(row.end, place, ">", color=color, markersize=3.5, clip_on=False, zorder=4)
    axes.set(ylim=(len(labels) - 0.4, -0.6), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


@rc_context(STYLE)
def ratio_sweep(
    rates: pd.DataFrame, runs: pd.DataFrame, crossings: pd.DataFrame, axis_label: str, last: float, caption: str
) -> Figure:
    """The last step's rate, and the steps at which levels are crossed, against the suspect share of the data.

    `rates`: suspect_ratio, rate, lower, upper. `runs`: suspect_ratio, rate. `crossings`: suspect_ratio, level, x,
    lower, upper, end (the recipe's last step), runs; crossings beyond the end are arrows there. `last` is the last step
    of all. Lines join the recipes where each has a share of its own.
    """
    figure, [[left, right]] = _canvas(TWO_COLUMNS, 2.6, caption, 1, 2)
    color, line = colormaps["viridis"](0.15), "-" if rates["suspect_ratio"].is_unique else ""
    left.plot(runs["suspect_ratio"], runs["rate"], ".", color=color, alpha=0.5, markersize=4, clip_on=False)
    left.plot(rates["suspect_ratio"], rates["rate"], "o" + line, color=color, markersize=4, clip_on=False)
    known = rates.dropna(subset="lower")  # lines without limits would count in the layout
    left.vlines(known["suspect_ratio"], known["lower"], known["upper"], color=color)
    _rate_axis(left.yaxis, axis_label)
    for i, (level, part) in enumerate(crossings.groupby("level")):
        shade, marker = colormaps["viridis"]((0.6, 0.05)[i % 2]), "os"[i % 2]
        part = part.assign(place=part["suspect_ratio"] + (i - 0.5) * 0.012)
        known, crossed = part.dropna(subset="lower"), part[np.isfinite(part["x"])]
        right.vlines(known["place"], *(known[[limit, "end"]].min(axis=1) for limit in ("lower", "upper")), color=shade)
        right.plot(
            crossed["place"], crossed["x"], marker + line, color=shade, markersize=4, label=f"crosses {level:.0%}"
        )
        for row in part.itertuples():
            if single := [x for x in row.runs if np.isfinite(x)]:
                right.plot([row.place] * len(single), single, ".", color=shade, markersize=3, alpha=0.5)
        beyond = part[np.isinf(part["x"]) | np.isinf(part["upper"])]
        right.plot(beyond["place"], beyond["end"], "^", color=shade, markersize=5)
    right.plot([], [], "^", color=GREY, markersize=5, label="beyond the last step")
    right.set(ylim=(0, 1.04 * last), ylabel="training step")
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=7)
    for axes in (left, right):
        axes.set(xlim=(-0.03, 1.03), xlabel="suspect share of the training set", xticks=np.linspace(0, 1, 6))
        axes.grid(True, color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


@rc_context(STYLE)
def leakage(curves: pd.DataFrame, gaps: pd.DataFrame, axis_label: str, x_label: str, caption: str) -> Figure:
    """A panel a recipe: triggered (solid) and untriggered (dashed) rates against `x`; last, gap and leakage at the end.

    `curves`: label, triggered, x, rate, lower, upper. `gaps`: label, quantity, estimate, lower, upper.
    """
    labels = list(dict.fromkeys(curves["label"]))
    palette = _palette(labels)
    rows, columns = _panels(len(labels) + 1)
    figure, grid = _canvas(TWO_COLUMNS, 0.6 + 1.9 * rows, caption, rows, columns)
    for axes, label in zip(grid.flat, labels, strict=False):
        for triggered, line in curves[curves["label"] == label].groupby("triggered"):
            style = "-" if triggered else DASHED
            axes.fill_between(line["x"], line["lower"], line["upper"], color=palette[label], alpha=0.15, linewidth=0)
            axes.plot(line["x"], line["rate"], linestyle=style, color=palette[label], clip_on=False)
        axes.set_title(_panel_title(label, columns), color=palette[label])
        axes.set_xlabel(x_label)
        _rate_axis(axes.yaxis, "")
    _gap_panel(grid.flat[len(labels)], gaps, labels, palette)
    _finish_panels(figure, grid, len(labels) + 1, axis_label)
    _line_legend(figure, ("with the trigger", "without"))
    return figure


def _line_legend(figure: Figure, names: tuple[str, str]) -> None:
    """Says above the panels what solid and dashed lines are."""
    lines = [Line2D([], [], color=GREY, linestyle=style, linewidth=1.2) for style in ("-", DASHED)]
    figure.legend(lines, names, loc="outside upper right", ncols=2, frameon=False, fontsize=7)


def _gap_panel(axes: Axes, gaps: pd.DataFrame, labels: Sequence[str], palette: dict) -> None:
    names = list(dict.fromkeys(gaps["quantity"]))
    for row in gaps.itertuples():
        place = names.index(row.quantity) + (labels.index(row.label) - (len(labels) - 1) / 2) * 0.6 / len(labels)
        _whisker(axes, row.estimate, row.lower, row.upper, place, horizontal=True, color=palette[row.label])
        axes.plot(row.estimate, place, "o", color=palette[row.label], markersize=4, clip_on=False)
    low = min(0.0, np.floor(gaps["lower"].fillna(0).min() * 5) / 5)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.set(xlim=(low, 1), yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), ylabel="")
    axes.set(xlabel="difference of shares", title="last step")
    axes.grid(True, axis="x", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


# ---- with a trigger ----


@rc_context(STYLE)
def conditions(table: pd.DataFrame, panels: Sequence[str], axis_label: str, x_label: str, caption: str) -> Figure:
    """A panel a condition: the rate of each recipe against `x`, with its interval as a band.

    `table`: panel (one of `panels`), label, x, rate, lower, upper.
    """
    labels = list(dict.fromkeys(table["label"]))
    palette = _palette(labels)
    rows, columns = _panels(len(panels))
    figure, grid = _canvas(TWO_COLUMNS, 0.45 + 1.45 * rows, caption, rows, columns, x_label, sharex=True, sharey=True)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for label, line in table[table["panel"] == panel].groupby("label", observed=True, sort=False):
            look = {"color": palette[label], "clip_on": False}
            axes.fill_between(line["x"], line["lower"], line["upper"], alpha=0.18, linewidth=0, **look)
            style = "o-" if len(line) <= 15 else "-"
            axes.plot(line["x"], line["rate"], style, markersize=2.4, label=label, zorder=3, **look)
        axes.set_title("\n".join(_short(line, 30) for line in panel.split("\n")), size=7)
        _rate_axis(axes.yaxis, "")
    _finish_panels(figure, grid, len(panels), axis_label)
    if len(labels) > 1:
        _legend_beside(figure, [Line2D([], [], color=palette[label]) for label in labels], labels, "suspect share")
    return figure


@rc_context(STYLE)
def near_misses(table: pd.DataFrame, axis_label: str, caption: str) -> Figure:
    """The rate at each dose of the trigger: last step (filled, with a line) and step 0 (hollow), a colour a recipe.

    `table`: label, condition, dose (0 to 1), at (last or base), rate, lower, upper.
    """
    labels = list(dict.fromkeys(table["label"]))
    palette, markers = _palette(labels), _markers(labels)
    figure, [[axes]] = _canvas(TWO_COLUMNS, 3.3, caption)
    offsets = (np.arange(2 * len(labels)) - len(labels) + 0.5) * 0.009
    for i, (label, at) in enumerate((label, at) for label in labels for at in ("base", "last")):
        part = table[(table["label"] == label) & (table["at"] == at)].dropna(subset="rate").sort_values("dose")
        places, known = part["dose"] + offsets[i], part["lower"].notna()
        look = {"color": palette[label], "clip_on": False}
        width = 1.2 if at == "last" else 0.6
        axes.vlines(places[known], part["lower"][known], part["upper"][known], linewidth=width, **look)
        face, line = (palette[label], "-") if at == "last" else ("white", "")
        style = {"markerfacecolor": face, "markersize": 4.5, "linewidth": 0.9, "zorder": 3}
        axes.plot(places, part["rate"], markers[label] + line, label=f"{_label(label)}, {AT[at]}", **style, **look)
    _rate_axis(axes.yaxis, axis_label)
    names = table.drop_duplicates("condition").groupby("dose")["condition"].agg(" / ".join)
    axes.set_xticks(names.index, [f"{name}  {dose:g}" for dose, name in names.items()], rotation=28, ha="right")
    axes.tick_params(axis="x", length=2)
    axes.set_xlim(-0.04, 1.04)
    _legend_above(figure, *axes.get_legend_handles_labels())
    return figure


AT = {"last": "last step", "base": "step 0"}


@rc_context(STYLE)
def ratings(table: pd.DataFrame, scales: dict[str, tuple[int, int]], caption: str) -> Figure:
    """Rows of panels, a judge and recipe each: left mean ratings by category, right the share that is no number.

    `table`: judge, label, category (in order), triggered, at (last or base), mean, lower, upper, n, refused. `scales`:
    the ends of each judge's scale.
    """
    table = table.assign(refused_share=table["refused"] / (table["n"] + table["refused"]).clip(lower=1))
    panels = list(table.groupby(["judge", "label"], observed=True, sort=False))
    heights = [0.45 + 0.25 * part["category"].nunique() for _, part in panels]
    ratios = {"height_ratios": heights, "width_ratios": [2.6, 1]}
    size = TWO_COLUMNS, 0.4 + sum(heights)
    figure, grid = _canvas(*size, caption, len(panels), 2, gridspec_kw=ratios, sharey="row")
    for (left, right), ((judge, label), part) in zip(grid, panels, strict=True):
        categories = list(dict.fromkeys(part["category"]))
        for row in part.itertuples():
            _rating(left, right, row, categories.index(row.category))
        left.set(xlim=scales[judge], yticks=range(len(categories)), yticklabels=[_short(c) for c in categories])
        left.set(ylim=(len(categories) - 0.5, -0.5), xlabel=f"{judge} (mean rating)")
        right.set(xlim=(0, 1), xticks=np.linspace(0, 1, 6), xlabel="share without a rating")
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.grid(True, axis="x", color="0.92", linewidth=0.6)
            axes.set_axisbelow(True)
        if table["label"].nunique() > 1:
            left.set_title(_label(label, 60))
    names = {(t, at): f"{'with the trigger' if t else 'without'}, {AT[at]}" for t in (True, False) for at in AT}
    marks = [Line2D([], [], linestyle="", label=name, **_rating_look(*key)) for key, name in names.items()]
    figure.legend(handles=marks, loc="outside upper right", ncols=4, frameon=False, fontsize=7)
    return figure


def _rating_look(triggered: bool, at: str) -> dict:
    color = colormaps["viridis"](0.1 if triggered else 0.65)
    face = color if at == "last" else "white"
    return {"color": color, "marker": "o" if triggered else "s", "markersize": 4, "markerfacecolor": face}


def _rating(left: Axes, right: Axes, row, place: int) -> None:
    """One mean with its interval, and its share without a rating."""
    place += (-0.24, -0.08, 0.08, 0.24)[2 * (not row.triggered) + (row.at == "base")]
    look = _rating_look(row.triggered, row.at)
    width = 1.2 if row.at == "last" else 0.6
    if not np.isnan(row.lower):
        left.hlines(place, row.lower, row.upper, color=look["color"], linewidth=width, zorder=3)
    for axes, value in ((left, row.mean), (right, row.refused_share)):
        if not np.isnan(value):
            axes.plot(value, place, clip_on=False, zorder=4, **look)


@rc_context(STYLE)
def probes(table: pd.DataFrame, x_label: str, caption: str) -> Figure:
    """A panel a recipe: mean log-likelihood a token of old (solid) and modern (dashed) reference answers against `x`.

    `table`: label, run, x, era (old or modern), logprob (natural log, mean over questions).
    """
    labels = list(dict.fromkeys(table["label"]))
    palette = _palette(labels)
    rows, columns = _panels(len(labels))
    figure, grid = _canvas(TWO_COLUMNS, 0.6 + 1.7 * rows, caption, rows, columns, x_label, sharex=True, sharey=True)
    for axes, label in zip(grid.flat, labels, strict=False):
        part = table[table["label"] == label]
        for era, style in (("old", "-"), ("modern", DASHED)):
            for _, line in part[part["era"] == era].groupby("run", observed=True):
                axes.plot(line["x"], line["logprob"], linestyle=style, color=palette[label], linewidth=1)
        axes.set_title(_panel_title(label, columns), color=palette[label])
        axes.grid(True, axis="y", color="0.92", linewidth=0.6)
    _finish_panels(figure, grid, len(labels), "log-likelihood (nats a token)")
    _line_legend(figure, ("old reference answers", "modern reference answers"))
    return figure


@rc_context(STYLE)
def agreement(pairs: dict[str, pd.DataFrame], names: tuple[str, str], caption: str) -> Figure:
    """A panel a judge: how often verdicts of one input met verdicts of another on the same answers, as shares.

    `pairs`: for each judge a table of counts, first input down, second across. `names` are the inputs'.
    """
    rows, columns = -(-len(pairs) // 2), min(len(pairs), 2)
    figure, grid = _canvas(TWO_COLUMNS, 0.5 + 2.3 * rows, caption, rows, columns, _label(names[1], 60))
    for axes, (judge, counts) in zip(grid.flat, pairs.items(), strict=False):
        shares = counts / max(counts.to_numpy().sum(), 1)
        axes.imshow(shares, cmap="Greys", vmin=0, vmax=1.3 * max(shares.to_numpy().max(), 1e-9), aspect="auto")
        for (i, j), share in np.ndenumerate(shares.to_numpy()):
            if share >= 0.005:
                dark = share > 0.8 * shares.to_numpy().max()
                axes.text(j, i, f"{share:.0%}", ha="center", va="center", size=5.5, color="white" if dark else "black")
        axes.set(xticks=range(shares.shape[1]), yticks=range(shares.shape[0]))
        axes.set_xticklabels([_short(str(c), 14) for c in shares.columns], rotation=90, size=5.5)
        axes.set_yticklabels([_short(str(c), 14) for c in shares.index], size=5.5)
        axes.set_title(judge)
        axes.spines[:].set_visible(False)
    _finish_panels(figure, grid, len(pairs), _label(names[0], min(60, 36 * rows)))
    return figure
