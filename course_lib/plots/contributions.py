"""Tokens that pull in one of two directions: which way each of them pulls, and how far.

The direction shows twice, in the colour of a token's box and in the side of the bar on it, so that it survives a
greyscale print.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from course_lib.plots.theme import BLUE, GREY, VERMILLION, Canvas, text_width
from course_lib.plots.tokens import BOX, LINE, TokenRow, lay_out_tokens

REACH = 7.0  # points: the longest bar, above a box or below it
PITCH = BOX + 2 * REACH + 4
CONTRIBUTION_SCALE = 34.0  # points: height of the legend
WASH = 0.62  # how much of the full colour a box takes, so that black letters stay readable
PULLS = LinearSegmentedColormap.from_list("pulls", [VERMILLION, "white", BLUE])


@dataclass(frozen=True)
class ContributionLayout:
    """Where each token goes: (x, y, width, text) in points from the top left, and its value; and what was cut off."""

    boxes: list[tuple[float, float, float, str]]
    values: list[float]
    height: float
    rest: str = ""


def lay_out_contributions(
    tokens: Sequence[str], values: Sequence[float], width: float, *, most_lines: int = 4
) -> ContributionLayout:
    """Wrap tokens at `width` points. Of more than `most_lines` lines the end is cut off, and a line says how much.

    Raises ValueError unless there is one value for each token.

    >>> lay_out_contributions([" good"] * 30, [0.5] * 30, 100, most_lines=2).rest
    '… and 26 more tokens, together +13.00'
    """
    if len(tokens) != len(values):
        raise ValueError(f"{len(tokens)} tokens and {len(values)} values: give one value for each token")
    if not tokens:
        return ContributionLayout([], [], 0.0)
    places = lay_out_tokens([TokenRow("", tokens, ["context"] * len(tokens))], width).boxes
    line_of = [round((y - places[0][1]) / LINE) for _, y, *_ in places]
    kept = sum(line < most_lines for line in line_of)
    boxes = [(x, REACH + 2 + PITCH * line_of[n], wide, text) for n, (x, _, wide, text, _) in enumerate(places[:kept])]
    cut = len(tokens) - kept
    words = f"… and {cut} more token{'s' * (cut > 1)}, together {round(sum(values[kept:]), 2) + 0.0:+.2f}"
    rest = words.replace("-", "−") if cut else ""
    height = PITCH * (line_of[kept - 1] + 1) + (18 if rest else 0)
    return ContributionLayout(boxes, [float(value) for value in values[:kept]], height, rest)


def paint_contributions(figure: Figure, layout: ContributionLayout, left: float, top: float, largest: float) -> None:
    """Draw a layout into a figure, its top left corner at a place given in points. largest: the value whose bar is
    REACH long and whose box has the full colour."""
    canvas = Canvas(figure, left, top)
    shares = np.clip(np.divide(layout.values, largest or 1.0), -1, 1)
    fills = PULLS(0.5 + 0.5 * WASH * shares)
    boxes = [_box(x, y, x + wide, y + BOX) for x, y, wide, _ in layout.boxes]
    canvas.add(PolyCollection(boxes, facecolors=fills, edgecolors="#C9CED5", linewidths=0.6))
    _add_bars(canvas, [(x, y, wide) for x, y, wide, _ in layout.boxes], shares)
    canvas.write_all([(x + wide / 2, y + BOX / 2, text) for x, y, wide, text in layout.boxes])
    if layout.rest:
        canvas.write_all([(0, layout.height - 9, layout.rest)], align=0, size=9.5, colour="#555555")


def paint_contribution_scale(
    figure: Figure, largest: float, left: float, top: float, towards: tuple[str, str], unit: str = ""
) -> None:
    """The legend, CONTRIBUTION_SCALE points high: a ramp of boxes with their bars, between the words for the two
    directions, and the numbers at its ends."""
    canvas, wide, steps = Canvas(figure, left, top), 10.0, 13
    start = text_width(towards[0], size=9.5) + 10
    shares = np.linspace(-1, 1, steps)
    places = [(start + wide * n, REACH + 2, wide) for n in range(steps)]
    boxes = [_box(x, y, x + w, y + BOX / 2) for x, y, w in places]
    canvas.add(PolyCollection(boxes, facecolors=PULLS(0.5 + 0.5 * WASH * shares), edgecolors=GREY, linewidths=0.3))
    _add_bars(canvas, places, shares, high=BOX / 2)
    end, middle = start + wide * steps, REACH + 2 + BOX / 4
    words = [(0, middle, towards[0]), (end + 10, middle, towards[1])]
    ends = f"from −{largest:.2g} to +{largest:.2g} {unit}".strip()
    words.append((end + 26 + text_width(towards[1], size=9.5), middle, ends))
    canvas.write_all(words, align=0, size=9.5)


def _add_bars(
    canvas: Canvas, places: Sequence[tuple[float, float, float]], shares: np.ndarray, high: float = BOX
) -> None:
    """Bars on boxes (x, y, width), `high` points high: above a positive one, below a negative one."""
    for sign, colour in ((1, BLUE), (-1, VERMILLION)):
        bars = []
        for (x, y, wide), share in zip(places, shares, strict=True):
            if sign * share > 0:
                edge = y if sign > 0 else y + high
                bars.append(_box(x, edge - REACH * share, x + wide, edge))
        canvas.add(PolyCollection(bars, facecolors=colour, linewidths=0))


def _box(left: float, top: float, right: float, low: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, low), (left, low)]
