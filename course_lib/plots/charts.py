"""Shares, bars with intervals, curves with points over them, histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from course_lib.plots.theme import (
    CYCLE,
    GREY,
    INK,
    OBJECTIVE_DASHES,
    OBJECTIVE_MARKERS,
    ROLES,
    Canvas,
    Role,
    axes_at,
    colour_of,
    in_theme,
    legend_columns,
    text_width,
    wrapped,
)
from course_lib.plots.tokens import paint_token_legend

SHARES_HEIGHT = 74.0  # points
BAR = 26.0  # points: height of a stacked bar, and of a row of bars
LEFT = 62.0  # points beside the axes of curves: a label, and tick labels such as 9.045
FEW = 8  # places on a logarithmic axis that are written out
DASHES, MARKERS = tuple(OBJECTIVE_DASHES.values()), tuple(OBJECTIVE_MARKERS.values())


def paint_shares(figure: Figure, shares: Mapping[str, float], left: float, top: float, width: float) -> None:
    """Draw a stacked bar with its scale and its legend into a figure, SHARES_HEIGHT points high."""
    canvas = Canvas(figure, left, top)
    looks = {name: ROLES.get(name) or Role(name, CYCLE[n % len(CYCLE)], "white") for n, name in enumerate(shares)}
    start = 0.0
    for name, share in shares.items():
        look, wide = looks[name], share * width
        outline = {"edgecolor": look.edge, "linestyle": look.style}
        if share > 0:
            canvas.add(Rectangle((start, 0), wide, BAR, facecolor=look.fill, linewidth=look.width, **outline))
        if share > 0 and look.hatch:
            canvas.add(Rectangle((start, 0), wide, BAR, facecolor="none", linewidth=0, hatch=look.hatch, **outline))
        start += wide
    canvas.add(Rectangle((0, 0), width, BAR, facecolor="none", edgecolor=GREY, linewidth=0.8))
    for tick in range(0, 101, 20):
        x = width * tick / 100
        canvas.add(Line2D([x, x], [BAR, BAR + 4], color=GREY, linewidth=0.8))
        canvas.write(x, BAR + 12, f"{tick}%", ha="center", fontsize=9)
    legend = [(f"{looks[name].meaning} {share:.1%}", looks[name]) for name, share in shares.items()]
    paint_token_legend(figure, legend, left, top + BAR + 24, width)


def draw_shares(shares: Mapping[str, float], *, width: float = 7.0) -> Figure:
    """A stacked bar of shares that sum to 1, by name; names of ROLES look like their tokens.

    Raises ValueError if a share is negative or they do not sum to 1.

    >>> figure = draw_shares({"context": 0.85, "hidden": 0.12, "swapped": 0.015, "kept": 0.015})
    """
    if min(shares.values(), default=-1) < 0 or abs(sum(shares.values()) - 1) > 1e-3:
        raise ValueError(f"shares are {dict(shares)}: give shares of at least 0 that sum to 1")
    figure = Figure(figsize=(width, (SHARES_HEIGHT + 10) / 72))
    paint_shares(figure, shares, 16, 6, width * 72 - 40)
    return figure


@in_theme
def draw_bars(
    names: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float] | None = None,
    highs: Sequence[float] | None = None,
    *,
    references: Mapping[str, float] | None = None,
    xlabel: str = "",
    number: str = "{:.2f}",
    upto: float | None = None,
    width: float = 7.0,
) -> Figure:
    """Horizontal bars, the first on top, each with its interval from `lows` to `highs` (values, not distances) and its
    value at the right edge; references are dashed lines with their names above. upto: where the axis ends (default: a
    little beyond the largest).

    Raises ValueError if the numbers of names, values and bounds differ, or a bound lies on the wrong side.

    >>> figure = draw_bars(["causal", "masked"], [70, 65], [68, 62], [72, 67], references={"chance": 50}, xlabel="%")
    """
    lows, highs = (list(values if bounds is None else bounds) for bounds in (lows, highs))
    if not len(names) == len(values) == len(lows) == len(highs) > 0:
        counts = f"{len(names)} names, {len(values)} values, {len(lows)} lows, {len(highs)} highs"
        raise ValueError(f"{counts}: give one each, at least one")
    for name, value, low, high in zip(names, values, lows, highs, strict=True):
        if not low <= value <= high:
            raise ValueError(f"{name!r}: {value} lies outside its interval {low} to {high}: give bounds, not distances")
    references = dict(references or {})
    written = [number.format(value) for value in values]
    left = max(text_width(name) for name in names) + 16
    right = max(text_width(words) for words in written) + 16
    above = 16.0 * len(references) + 8
    height, across = BAR * len(names), width * 72 - left - right
    xlabel = wrapped(xlabel, across + 2 * min(left, right))
    foot = (44 + 16 * xlabel.count("\n")) if xlabel else 28
    figure = Figure(figsize=(width, (above + height + foot) / 72))
    axes = axes_at(figure, left, above, across, height)
    y = np.arange(len(names))
    axes.barh(y, values, color=[colour_of(name) for name in names], height=0.62, edgecolor=INK, linewidth=0.5)
    if highs != lows:
        below, over = np.subtract(values, lows), np.subtract(highs, values)
        axes.errorbar(values, y, xerr=[below, over], fmt="none", color=INK, capsize=4)
    top = max([*highs, *references.values(), 0.0])
    axes.set(xlim=(min([0.0, *lows]), upto or 1.05 * top or 1.0), ylim=(len(names) - 0.5, -0.5), xlabel=xlabel)
    axes.set_yticks(y, names)
    axes.grid(axis="y", visible=False)
    for row, words in zip(y, written, strict=True):
        axes.annotate(words, (1, row), (8, 0), ("axes fraction", "data"), textcoords="offset points", va="center")
    paint_flags(axes, references)
    return figure


def paint_flags(axes: Axes, references: Mapping[str, float]) -> None:
    """A dashed line through the axes at each value, led up to its name above them: 16 points for each. The name stands
    on the right where there is room, and no line runs through the name of another."""
    low, high = axes.get_xlim()
    room = axes.get_position().width * axes.figure.get_figwidth() * 72
    right, left = [], []  # (name, value), from the lowest name upwards
    for name, value in sorted(references.items(), key=lambda item: -item[1]):
        end = (value - low) / (high - low) * room + text_width(name) + 8
        is_crossed = any((other - low) / (high - low) * room < end for _, other in left)
        if end > room or is_crossed:
            left.insert(0, (name, value))
        else:
            right.append((name, value))
    for level, (name, value) in enumerate(right + left):
        _flag(axes, value, name, 16.0 * level, is_left=(name, value) in left)


def _flag(axes: Axes, x: float, words: str, above: float, *, is_left: bool) -> None:
    at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "annotation_clip": False}
    line = {"color": INK, "linestyle": "--", "linewidth": 1.3}
    axes.axvline(x, **line)
    axes.annotate("", (x, 1), (0, above + 14), arrowprops={"arrowstyle": "-", "shrinkA": 0, "shrinkB": 0, **line}, **at)
    side, aside = ("right", -5) if is_left else ("left", 5)
    axes.annotate(words, (x, 1), (aside, above + 1), ha=side, va="bottom", **at)


@dataclass(frozen=True)
class Series:
    """A named curve. low and high, where given, bound a band around it (such as the spread over seeds)."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@in_theme
def draw_curves(
    series: Mapping[str, Series | tuple[Sequence[float], Sequence[float]]],
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    *,
    references: Mapping[str, float] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    colours: Mapping[str, str] | None = None,
    kinds: tuple[str, str] | None = ("recorded", "live"),
    log_x: bool = False,
    size: tuple[float, float] = (7.5, 4.2),
) -> Figure:
    """Recorded curves as lines, live points on top as outlined markers, references as dashed lines with their names at
    the right edge. The legend stands below.

    series, points: name to (x, y); the same name has the same colour. kinds: what the legend calls lines and markers
    where there are both, None where that goes without saying. size: inches.
    Raises ValueError if there is nothing to draw.

    >>> figure = draw_curves({"causal": ([1, 2, 3], [6.0, 5.1, 4.8])}, {"causal": ([1], [6.1])},
    ...                      references={"unigram": 6.3}, xlabel="million tokens", ylabel="loss")
    """
    points, references = dict(points or {}), dict(references or {})
    names = list(dict.fromkeys([*series, *points]))
    if not names:
        raise ValueError("series and points are empty: give at least one curve or some points")
    colour = {name: (colours or {}).get(name) or colour_of(name, n) for n, name in enumerate(names)}
    dashes = {name: OBJECTIVE_DASHES.get(name, DASHES[n % len(DASHES)]) for n, name in enumerate(names)}
    markers = {name: OBJECTIVE_MARKERS.get(name, MARKERS[n % len(MARKERS)]) for n, name in enumerate(names)}
    entries = [
        Line2D([], [], color=colour[name], linestyle=dashes[name] if name in series else "none", linewidth=1.9,
               marker=markers[name] if name in points else "none", markeredgecolor=INK, markersize=7, label=name)
        for name in names
    ]  # fmt: skip
    if series and points and kinds:
        entries.append(Line2D([], [], color=GREY, linewidth=1.9, label=kinds[0]))
        entries.append(Line2D([], [], color=GREY, linestyle="none", marker="o", markeredgecolor=INK, label=kinds[1]))
    wide, high = size[0] * 72, size[1] * 72
    columns = legend_columns([entry.get_label() for entry in entries], wide - 60)
    below = 42 + 18 * -(-len(entries) // columns)
    right = max((text_width(name) for name in references), default=0) + 22
    figure = Figure(figsize=size)
    axes = axes_at(figure, LEFT, 10, wide - LEFT - right, high - 10 - below)
    for name, curve in series.items():
        curve = curve if isinstance(curve, Series) else Series(*curve)
        axes.plot(curve.x, curve.y, color=colour[name], linestyle=dashes[name], linewidth=1.9)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour[name], alpha=0.18, linewidth=0)
    for name, (x, y) in points.items():
        axes.plot(x, y, markers[name], color=colour[name], markeredgecolor=INK, markersize=7, zorder=5)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log_x else "linear")
    _place_ticks(axes, log_x=log_x)
    for value in references.values():
        axes.axhline(value, color=INK, linestyle="--", linewidth=1.1)
    _name_at_right(axes, references)
    legend_at(axes, LEFT / wide, (below - 40) / high, ncols=columns, handles=entries)
    return figure


def _place_ticks(axes: Axes, *, log_x: bool) -> None:
    """Where the curves have their points, if these are few on a logarithmic axis; no half steps on one of steps."""
    places = sorted({float(x) for line in axes.get_lines() for x in line.get_xdata()})
    if log_x and len(places) <= FEW:
        axes.set_xticks(places, [short(x) for x in places])
        axes.minorticks_off()
    elif log_x and min(places) >= 1:
        axes.xaxis.set_major_formatter(lambda x, _: short(x))
    elif not log_x and all(map(float.is_integer, places)):
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))


def short(number: float) -> str:
    """A number as the axis of a long run shows it.

    >>> short(0.5), short(1000), short(32_768), short(1_048_576)
    ('0.5', '1,000', '32.8k', '1.05M')
    """
    if number >= 1e6:
        return f"{number / 1e6:.3g}M"
    return f"{number / 1e3:.3g}k" if number >= 1e4 else f"{number:,g}"


def _name_at_right(axes: Axes, references: Mapping[str, float]) -> None:
    """Names beside the right edge, as near to their lines as leaves 13 points between two of them."""
    low, high = axes.get_ylim()
    tall = axes.get_position().height * axes.figure.get_figheight() * 72
    place, last = {}, -np.inf
    for name, value in sorted(references.items(), key=lambda item: item[1]):
        last = place[name] = max((value - low) / (high - low) * tall, last + 13)
    over = max(0.0, last - tall)  # pushed above the axes: move all down, and keep their distances
    for name, y in reversed(place.items()):
        place[name] = y - over
    for name, value in references.items():
        axes.annotate(name, (1, value), (8, place[name] / tall), xycoords=("axes fraction", "data"), va="center",
                      textcoords=("offset points", "axes fraction"), annotation_clip=False)  # fmt: skip


@in_theme
def draw_histogram(
    groups: Mapping[str, Sequence[float]],
    *,
    bins: int = 30,
    references: Mapping[str, float] | None = None,
    xlabel: str = "",
    ylabel: str = "count",
    size: tuple[float, float] = (7.0, 3.4),
) -> Figure:
    """Histograms on common bins, as outlines that may overlap; references are dashed lines with their names above.

    >>> figure = draw_histogram({"spans": [1, 2, 2, 3, 3, 3, 4]}, bins=4, xlabel="length in tokens")
    """
    references = dict(references or {})
    if not any(len(values) for values in groups.values()):
        raise ValueError("groups hold no value: give at least one")
    figure = Figure(figsize=size)
    wide, high, above = size[0] * 72, size[1] * 72, 16.0 * len(references) + 8
    axes = axes_at(figure, 56, above, wide - 72, high - above - 66)
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values, float) for values in groups.values()]), bins)
    for n, (name, values) in enumerate(groups.items()):
        style = {"facecolor": to_rgba(colour_of(name, n), 0.25), "edgecolor": colour_of(name, n), "label": name}
        axes.hist(values, bins=edges, histtype="stepfilled", linewidth=1.8, linestyle=DASHES[n % len(DASHES)], **style)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    paint_flags(axes, references)
    legend_at(axes, 56 / wide, 22 / high, ncols=6)
    return figure


def legend_at(axes: Axes, left: float, top: float, **entries: Any) -> None:
    """A legend outside the axes, its top left corner at a share of the figure."""
    frame = {"frameon": False, "borderaxespad": 0, "borderpad": 0, "handlelength": 2.6}
    place = {"bbox_to_anchor": (left, top), "bbox_transform": axes.figure.transFigure}
    axes.legend(loc="upper left", **place, **frame, **entries)
