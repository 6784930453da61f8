"""Stacked bars in rows: what a sum consists of, the same parts in the same order and look in every row."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from course_lib.plots.charts import BAR, legend_at, paint_flags
from course_lib.plots.theme import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    axes_at,
    in_theme,
    legend_columns,
    text_width,
)

LOOKS = (  # of a part: its colour, and a hatch for those who see none
    (BLUE, ""), (ORANGE, "////"), (SKY, "..."), (VERMILLION, "\\\\\\\\"), (YELLOW, ""), (PURPLE, "xxxx"),
    (GREEN, "---"),
)  # fmt: skip


def stack_look(n: int) -> dict[str, Any]:
    """How the part number `n` looks, as matplotlib's patches take it. Beyond seven, colours come with other hatches."""
    colour, hatch = LOOKS[n % len(LOOKS)][0], LOOKS[(n + n // len(LOOKS)) % len(LOOKS)][1]
    return {"facecolor": colour, "hatch": hatch, "edgecolor": INK, "linewidth": 0.8}


def parts_of_stacks(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The parts of all rows, in the order in which they are stacked.

    Raises ValueError without a value, for one that is negative or not finite.

    >>> parts_of_stacks({"full": {"weights": 4, "gradients": 4}, "frozen": {"weights": 4, "updates": 1}})
    ['weights', 'gradients', 'updates']
    """
    for row, parts in rows.items():
        for part, value in parts.items():
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{row!r}, {part!r}: {value} cannot be stacked: give a finite number of at least 0")
    names = list(dict.fromkeys(part for parts in rows.values() for part in parts))
    if not names:
        raise ValueError("rows hold no value: give at least one")
    return names


def stacks_height(rows: Mapping[str, Any], references: Mapping[str, float] | None = None, xlabel: str = "") -> float:
    """Points that `paint_stacks` takes."""
    return 16.0 * len(references or {}) + 8 + BAR * len(rows) + (40 if xlabel else 24)


@in_theme
def paint_stacks(
    figure: Figure,
    rows: Mapping[str, Mapping[str, float]],
    left: float,
    top: float,
    width: float,
    *,
    xlabel: str = "",
    references: Mapping[str, float] | None = None,
    number: str | Callable[[float], str] = "{:.0f}",
) -> None:
    """`draw_stacks` without a legend, at a place in a figure that is given in points from its top left corner."""
    names, references = parts_of_stacks(rows), dict(references or {})
    sums = [sum(parts.values()) for parts in rows.values()]
    written = [number.format(total) if isinstance(number, str) else number(total) for total in sums]
    before = max(map(text_width, rows)) + 16
    behind = max(map(text_width, written)) + 16
    above = 16.0 * len(references) + 8
    axes = axes_at(figure, left + before, top + above, width - before - behind, BAR * len(rows))
    y, start = np.arange(len(rows)), np.zeros(len(rows))
    for n, name in enumerate(names):
        sizes = np.array([parts.get(name, 0.0) for parts in rows.values()], float)
        axes.barh(y, np.where(sizes > 0, sizes, np.nan), left=start, height=0.62, zorder=2, **stack_look(n))
        start += sizes
    axes.set(xlim=(0, 1.05 * max([*sums, *references.values()]) or 1.0), ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel)
    axes.set_yticks(y, list(rows))
    axes.grid(axis="y", visible=False)
    for row, words in zip(y, written, strict=True):
        axes.annotate(words, (1, row), (8, 0), ("axes fraction", "data"), textcoords="offset points", va="center")
    paint_flags(axes, references)


@in_theme
def draw_stacks(
    rows: Mapping[str, Mapping[str, float]],
    *,
    xlabel: str = "",
    references: Mapping[str, float] | None = None,
    number: str | Callable[[float], str] = "{:.0f}",
    width: float = 7.0,
) -> Figure:
    """Horizontal stacked bars, the first row on top, each with its sum at the right edge. A part has its place in the
    order and its look in all rows, and may be missing from some; references are dashed lines with their names above.

    number: how a sum is written, a format or a function. The legend stands below. Raises what `parts_of_stacks` raises.

    >>> rows = {"full": {"weights": 4, "gradients": 4, "optimiser": 8}, "LoRA": {"weights": 4, "gradients": 0.1}}
    >>> figure = draw_stacks(rows, xlabel="bytes per parameter", references={"a limit": 12}, number="{:.1f}")
    """
    names, wide = parts_of_stacks(rows), width * 72
    columns = legend_columns(names, wide - 16)
    above = stacks_height(rows, references, xlabel)
    high = above + 15.5 * -(-len(names) // columns) + 14
    figure = Figure(figsize=(width, high / 72))
    paint_stacks(figure, rows, 0, 0, wide, xlabel=xlabel, references=references, number=number)
    handles = [Patch(label=name, **stack_look(n)) for n, name in enumerate(names)]
    legend_at(figure.axes[0], 16 / wide, 1 - (above + 6) / high, ncols=columns, handles=handles)
    return figure
