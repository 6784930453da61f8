"""Dots in rows: many small values side by side, on an axis that may be logarithmic."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from course_lib.plots.theme import CYCLE, INK, OBJECTIVE_MARKERS, axes_at, in_theme, legend_columns, text_width, wrapped

ROW, GAP = 13.0, 9.0  # points: between two series of one row, and between two rows
MARKERS = tuple(OBJECTIVE_MARKERS.values())

Value = float | tuple[float, float] | tuple[float, float, float]


@in_theme
def draw_dots(
    rows: Mapping[str, Mapping[str, Value]],
    *,
    xlabel: str = "",
    log_x: bool = False,
    number: str = "{:.2f}",
    references: Mapping[str, float] | None = None,
    width: float = 7.0,
    one_colour: bool = False,
) -> Figure:
    """For each row its series, one below the other, each with its value at the right: a number is a dot, (low, high) a
    bar between them, (value, low, high) a dot with its interval. A series keeps its colour and marker in all rows; with
    `one_colour` the marker alone tells it, for series that are only repetitions. References are dashed lines with
    their names below the axis. What is long below the axis takes several lines.

    Raises ValueError without a value, for one that is not finite, or that a logarithmic axis cannot show.

    >>> figure = draw_dots({"BERT": {"LoRA": 0.3, "said": (0.1, 0.2)}}, log_x=True, xlabel="share, %")
    """
    references = dict(references or {})
    _check_shown(rows, references, log_x=log_x)
    names = list(dict.fromkeys(name for series in rows.values() for name in series))
    looks = [(MARKERS[n % len(MARKERS)], CYCLE[0 if one_colour else n % len(CYCLE)]) for n in range(len(names))]
    heights = [max(1, len(series)) * ROW + GAP for series in rows.values()]
    left = max(map(text_width, rows)) + 16
    right = max(text_width(_written(value, number)) for series in rows.values() for value in series.values()) + 16
    columns = legend_columns(names, width * 72)
    legend = (10.0 + 15.5 * -(-len(names) // columns)) * (len(names) > 1)
    wide = width * 72 - left - right
    below = [xlabel, ", ".join(f"dashed: {name}" for name in references)][: 1 + bool(references)]
    below = "\n".join(wrapped(words, wide) for words in below)
    figure = Figure(figsize=(width, (sum(heights) + 52 + 14 * below.count("\n") + legend) / 72))
    axes = axes_at(figure, left, 8, wide, sum(heights))
    top, ticks = 0.0, []
    for (row, series), height in zip(rows.items(), heights, strict=True):
        ticks.append((top + height / 2, row))
        axes.axhspan(top, top + height, color="#F5F6F8" if len(ticks) % 2 else "white", zorder=0)
        for n, (name, value) in enumerate(series.items()):
            y, look = top + GAP / 2 + ROW * (n + 0.5), looks[names.index(name)]
            _mark(axes, value, y, look)
            axes.annotate(_written(value, number), (1, y), (8, 0), ("axes fraction", "data"),
                          textcoords="offset points", va="center", fontsize=9)  # fmt: skip
        top += height
    for value in references.values():
        axes.axvline(value, color=INK, linestyle="--", linewidth=1.1, zorder=1)
    axes.set(ylim=(top, 0), xlabel=below.lstrip("\n"))
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.grid(axis="y", visible=False)
    if len(names) > 1:
        _add_legend(figure, dict(zip(names, looks, strict=True)), columns)
    return figure


def _check_shown(rows: Mapping[str, Mapping[str, Value]], references: Mapping[str, float], *, log_x: bool) -> None:
    values = [np.atleast_1d(value) for series in rows.values() for value in series.values()]
    if not values:
        raise ValueError("rows hold no value: give at least one")
    numbers = np.concatenate([*values, list(references.values())])
    if not np.isfinite(numbers).all():
        raise ValueError("rows or references hold nan or inf: leave out what was not measured")
    if log_x and (least := float(numbers.min())) <= 0:
        raise ValueError(f"rows hold {least}: a logarithmic axis shows numbers above 0")


def _add_legend(figure: Figure, looks: Mapping[str, tuple[str, str]], columns: int) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markeredgecolor=INK, markersize=7, label=name)
        for name, (marker, colour) in looks.items()
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=columns, frameon=False, borderaxespad=0.2, columnspacing=1.4,
        handlelength=1.2,
    )  # fmt: skip


def _mark(axes, value: Value, y: float, look: tuple[str, str]) -> None:  # noqa: ANN001 matplotlib's Axes
    marker, colour = look
    numbers = np.atleast_1d(value)
    if len(numbers) > 1:
        thick = 5.0 if len(numbers) == 2 else 1.6
        axes.plot(numbers[-2:], [y, y], color=colour, linewidth=thick, solid_capstyle="butt", zorder=2)
    if len(numbers) != 2:
        axes.plot(numbers[0], y, marker, color=colour, markeredgecolor=INK, markersize=7, zorder=3)


def _written(value: Value, number: str) -> str:
    numbers = np.atleast_1d(value)
    return " to ".join(number.format(n) for n in numbers) if len(numbers) == 2 else number.format(numbers[0])
