"""Candidates for one place: a model's own probabilities, and those that are drawn from after some were cut."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D

from course_lib.plots.theme import BLUE, GREY, PALE, Canvas, cut, text_width

ROW, TOP, SMALL = 17.0, 22.0, 9.5  # points: height of a row, room above the first, size of the words
NAMES, NUMBERS = 100.0, 152.0  # points: beside the bars, at the left and at the right
SCALES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # where the axis may end
CUT_WORDS = "#A33F00"  # vermillion, dark enough for small letters
LOOKS = {
    "drawn": ("drawn from", {"facecolor": BLUE, "linewidth": 0}, 3.5),
    "own": ("the model’s own", {"facecolor": PALE, "edgecolor": GREY, "linewidth": 0.8}, 6.5),
    "cut": ("the model’s own, cut (× by what)", {"facecolor": "white", "edgecolor": GREY, "linewidth": 0.8,
                                                 "linestyle": ":", "hatch": "////"}, 6.5),
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A token, the model's own probability of it, and that of being drawn. cut: what took the latter away, or ""."""

    token: str
    own: float
    drawn: float
    cut: str = ""


def candidates_height(count: int) -> float:
    """Points that `paint_candidates` takes for so many of them."""
    return TOP + ROW * (count + 1) + 32


def paint_candidates(canvas: Canvas, candidates: Sequence[Candidate], n_others: int, width: float) -> None:
    """A row for each candidate: its name, its own probability as a pale bar, that of being drawn as a filled one over
    it, and both as numbers. What was cut is hatched and says by what. Below, what `n_others` others have together."""
    room, count = width - NAMES - NUMBERS, len(candidates)
    scale = next(end for end in SCALES if max(max(c.own, c.drawn) for c in candidates) <= end + 1e-6)
    ticks = [(NAMES + share * room, TOP - 10, f"{100 * share * scale:g}%") for share in (0, 0.5, 1)]
    canvas.write_all(ticks, size=9)
    for x, *_ in ticks:
        canvas.add(Line2D([x, x], [TOP - 2, TOP + ROW * count], color="#D5D9DE", linewidth=0.9, zorder=0.5))
    bars: dict[str, list] = {"own": [], "cut": [], "drawn": []}
    for n, candidate in enumerate(candidates):
        for kind, share in (("cut" if candidate.cut else "own", candidate.own), ("drawn", candidate.drawn)):
            bars[kind].append(_bar(NAMES, TOP + ROW * (n + 0.5), share / scale * room, LOOKS[kind][2]))
    for kind, places in bars.items():
        canvas.add(PolyCollection(places, **LOOKS[kind][1]))
    _paint_numbers(canvas, candidates, n_others, width)
    _paint_legend(canvas, TOP + ROW * (count + 1) + 18)


def _paint_numbers(canvas: Canvas, candidates: Sequence[Candidate], n_others: int, width: float) -> None:
    own, drawn = width - NUMBERS + 84, width
    rows = [(TOP + ROW * (n + 0.5), candidate) for n, candidate in enumerate(candidates)]
    words = [(own, TOP - 10, "model’s own"), (drawn, TOP - 10, "drawn from")]
    words += [(NAMES - 8, y, cut(spelled(c.token), NAMES - 12)) for y, c in rows]
    words += [(own, y, f"{c.own:.1%}") for y, c in rows] + [(drawn, y, f"{c.drawn:.1%}") for y, c in rows if not c.cut]
    canvas.write_all(words, align=1, size=SMALL)
    canvas.write_all([(drawn, y, f"× {c.cut}") for y, c in rows if c.cut], align=1, size=SMALL, colour=CUT_WORDS)
    y = TOP + ROW * (len(candidates) + 0.5) + 3
    rest = [max(0.0, 1 - sum(shares)) for shares in ((c.own for c in candidates), (c.drawn for c in candidates))]
    words = [(own - 72, y, f"all other {n_others:,} tokens together"), (own, y, f"{rest[0]:.1%}")]
    canvas.write_all([*words, (drawn, y, f"{rest[1]:.1%}")], align=1, size=SMALL, colour="#555555")


def _paint_legend(canvas: Canvas, y: float) -> None:
    x, places = 0.0, []
    for words, style, half in LOOKS.values():
        canvas.add(PolyCollection([_bar(x, y, 24, half)], **style))
        places.append((x + 30, y, words))
        x += 30 + text_width(words, size=SMALL) + 20
    canvas.write_all([*places, (x, y, "␣ a space")], align=0, size=SMALL)


def _bar(left: float, middle: float, long: float, half: float) -> list[tuple[float, float]]:
    return [(left, middle - half), (left + long, middle - half), (left + long, middle + half), (left, middle + half)]


def spelled(token: str) -> str:
    """A token with its spaces and line breaks in sight.

    >>> spelled(" film"), spelled("\\n")
    ('␣film', '↵')
    """
    return token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
