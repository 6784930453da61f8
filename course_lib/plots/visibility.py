"""Who may attend to whom, as matrices with names.    Axes: Q position that looks, K position that is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from course_lib.plots.theme import BLUE, INK, ORANGE, PALE, VERMILLION, Canvas, text_width, visible

CELL, LEGEND, SMALL = 15.0, 24.0, 9.0  # points: side of a cell, height of the legend, size of the names


MEANING = ("row may look at column", "may not")


@dataclass(frozen=True)
class Visibility:
    """A matrix of who looks (rows) at whom (columns), bool [Q, K]. is_target: which rows have to predict something.

    withheld_QK: cells to point at with a cross, what another stream sees and this one must not.
    divider: a line left of this column, where keys of another kind begin. named: whether names are drawn.
    Raises ValueError if names or marks do not fit the matrix.
    """

    may_attend_QK: np.ndarray
    query_names: Sequence[str]
    key_names: Sequence[str]
    title: str = ""
    is_target: Sequence[bool] | None = None
    withheld_QK: np.ndarray | None = None
    divider: int | None = None
    named: bool = True

    def __post_init__(self) -> None:
        shape, wanted = np.shape(self.may_attend_QK), (len(self.query_names), len(self.key_names))
        if shape != wanted:
            raise ValueError(f"may_attend_QK has shape {shape} and there are {wanted} names: name each row and column")
        if self.is_target is not None and len(self.is_target) != wanted[0]:
            raise ValueError(f"is_target has {len(self.is_target)} values for {wanted[0]} rows: give one each")

    @property
    def margins(self) -> tuple[float, float]:
        """Room in points for names left of the matrix, and for names and title above it."""
        if not self.named:
            return 0.0, 16.0 if self.title else 0.0
        left = max((text_width(visible(name), size=SMALL) for name in self.query_names), default=0) + 20
        above = max((text_width(visible(name), size=SMALL) for name in self.key_names), default=0) + 8
        return left, above + (22 if self.title else 2)

    def size(self, cell: float = CELL) -> tuple[float, float]:
        """Width and height in points, names and title included."""
        left, above = self.margins
        width = max(left + cell * len(self.key_names), text_width(self.title, size=SMALL + 1, bold=self.named))
        return width + 4, above + cell * len(self.query_names) + 4


def paint_visibility(figure: Figure, view: Visibility, left: float, top: float, cell: float = CELL) -> None:
    """Draw a matrix with its names into a figure, its top left corner at a place given in points."""
    beside, above = view.margins
    canvas = Canvas(figure, left + beside, top + above)
    is_seen_QK = np.asarray(view.may_attend_QK, bool)
    squares = [[(k, q), (k + 1, q), (k + 1, q + 1), (k, q + 1)] for q, k in np.ndindex(is_seen_QK.shape)]
    colours = np.where(is_seen_QK.reshape(-1), BLUE, PALE)
    canvas.add(PolyCollection(cell * np.array(squares, float), facecolors=colours, edgecolors="white", linewidths=1))
    if view.withheld_QK is not None:
        rows, columns = np.nonzero(view.withheld_QK)
        mark = {
            "marker": "x",
            "markersize": max(4.0, cell * 0.45),
            "markeredgewidth": min(2.0, cell / 5),
            "color": VERMILLION,
        }
        canvas.add(Line2D((columns + 0.5) * cell, (rows + 0.5) * cell, linestyle="none", **mark))
    if view.divider is not None:
        x = view.divider * cell
        canvas.add(Line2D([x, x], [-3, cell * len(view.query_names) + 3], color=INK, linewidth=2))
    if view.title:
        canvas.write(-beside, 9 - above, view.title, fontweight="bold" if view.named else "normal", fontsize=SMALL + 1)
    if not view.named:
        return
    above_all = [((k + 0.5) * cell, -4, visible(name)) for k, name in enumerate(view.key_names)]
    beside_all = [(-14, (q + 0.5) * cell, visible(name)) for q, name in enumerate(view.query_names)]
    canvas.write_all(above_all, size=SMALL, align=0, upright=True)
    canvas.write_all(beside_all, size=SMALL, align=1)
    marked = np.flatnonzero(view.is_target) if view.is_target is not None else np.array([], int)
    mark = {"marker": "D", "markersize": 5, "markeredgecolor": INK, "color": ORANGE}
    canvas.add(Line2D(np.full(len(marked), -7.0), (marked + 0.5) * cell, linestyle="none", **mark))


def paint_visibility_legend(
    figure: Figure, views: Sequence[Visibility], left: float, top: float, meaning: tuple[str, str] = MEANING
) -> None:
    """Say in one line, LEGEND points high, what the cells and marks of these matrices mean."""
    entries = [("s", BLUE, meaning[0]), ("s", PALE, meaning[1])]
    if any(view.is_target is not None and any(view.is_target) for view in views):
        entries.append(("D", ORANGE, "has to predict"))
    if any(view.withheld_QK is not None and np.any(view.withheld_QK) for view in views):
        entries.append(("x", VERMILLION, "its own token, withheld"))
    canvas = Canvas(figure, left, top)
    x = 6.0
    for marker, colour, words in entries:
        edge, line = (colour, 2) if marker == "x" else (INK, 0.6)
        canvas.add(Line2D([x], [12], marker=marker, color=colour, markeredgecolor=edge, markeredgewidth=line,
                          markersize=7, linestyle="none"))  # fmt: skip
        canvas.write(x + 9, 12, words, fontsize=SMALL + 0.5)
        x += text_width(words, size=SMALL + 0.5) + 28


def draw_visibilities(views: Sequence[Visibility], *, meaning: tuple[str, str] = MEANING) -> Figure:
    """Several matrices side by side, with one legend. meaning: of a cell that is True, and of one that is not.

    >>> figure = draw_visibilities([Visibility(np.tri(3, dtype=bool), "abc", "abc", "causal", [True, True, False])])
    """
    sizes = [view.size() for view in views]
    width = max(sum(wide + 24 for wide, _ in sizes), 470)
    height = max(high for _, high in sizes) + LEGEND + 8
    figure = Figure(figsize=(width / 72, height / 72))
    x = 8.0
    for view, (wide, _) in zip(views, sizes, strict=True):
        paint_visibility(figure, view, x, 4)
        x += wide + 24
    paint_visibility_legend(figure, views, 8, height - LEGEND - 2, meaning)
    return figure
