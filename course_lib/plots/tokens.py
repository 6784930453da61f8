"""Rows of tokens, each in a box that shows its role."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path

from course_lib.plots.theme import ROLES, Canvas, Role, cut, text_width, visible

BOX, LINE, LEGEND = 17.0, 23.0, 24.0  # heights in points: of a box, of a line, of the legend
GAP, GLUE, PADDING = 6.0, 2.5, 4.0  # points: between words, between parts of one word, inside a box
NEVER_GLUED = frozenset({"hidden", "sentinel", "special"})


@dataclass(frozen=True)
class TokenRow:
    """Tokens as a reader should see them (a leading space parts words), and the role of each: a key of ROLES.

    Raises ValueError if their numbers differ or a role is unknown.
    """

    label: str
    tokens: Sequence[str]
    roles: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.roles):
            raise ValueError(f"{self.label!r} has {len(self.tokens)} tokens and {len(self.roles)} roles: give one each")
        if unknown := set(self.roles) - set(ROLES):
            raise ValueError(f"role {min(unknown)!r} is unknown: choose from {', '.join(ROLES)}")


@dataclass(frozen=True)
class TokenLayout:
    """Where each token goes: (x, y, width, text, role), and each label: (y, text); in points from the top left."""

    boxes: list[tuple[float, float, float, str, str]]
    labels: list[tuple[float, str]]
    width: float
    height: float

    @property
    def roles(self) -> list[str]:
        """The roles that occur, in the order of ROLES."""
        present = {box[4] for box in self.boxes}
        return [role for role in ROLES if role in present]


def lay_out_tokens(
    rows: Sequence[TokenRow], width: float, *, aligned: bool = False, room_for: Sequence[str] = ()
) -> TokenLayout:
    """Wrap rows of tokens at `width` points. aligned: all rows share their columns and wrap together.

    room_for: tokens that any box could hold, so that nothing moves when one is shown in place of another.

    Raises ValueError if there are no rows, or aligned rows differ in length.
    """
    if not rows:
        raise ValueError("rows are empty: give at least one TokenRow")
    if aligned and len({len(row.tokens) for row in rows}) > 1:
        raise ValueError(f"aligned rows have {[len(row.tokens) for row in rows]} tokens: give rows of one length")
    indent = max(text_width(row.label, bold=True) for row in rows)
    indent += 12 if indent else 0
    boxes, labels, y = [], [], 2.0
    for group in [rows] if aligned else [[row] for row in rows]:
        least = max((_box_width(token) for token in room_for), default=0.0)
        widths = [max(least, *(_box_width(row.tokens[t]) for row in group)) for t in range(len(group[0].tokens))]
        for n, line in enumerate(_lines(widths, _starts_word(group[0]), width - indent)):
            for row in group:
                if aligned or n == 0:
                    labels.append((y, row.label))
                boxes += [(indent + x, y, widths[t], visible(row.tokens[t]), row.roles[t]) for t, x in line]
                y += LINE
            y += 7 if aligned else 0
        y += 0 if aligned else 6
    return TokenLayout(boxes, labels, width, y)


def exchange_tokens(layout: TokenLayout, tokens: Sequence[str], roles: Sequence[str]) -> TokenLayout:
    """The same places with other tokens in them; one that is too wide for its place loses its end."""
    boxes = [
        (x, y, wide, cut(token, wide - PADDING), role)
        for (x, y, wide, _, _), token, role in zip(layout.boxes, tokens, roles, strict=True)
    ]
    return replace(layout, boxes=boxes)


def paint_tokens(figure: Figure, layout: TokenLayout, left: float, top: float) -> None:
    """Draw a layout into a figure, its top left corner at a place given in points."""
    canvas = Canvas(figure, left, top)
    _paint(canvas, layout.boxes)
    for y, label in layout.labels:
        canvas.write(0, y + BOX / 2 + 0.5, label, fontweight="bold")


def legend_height(entries: Sequence[tuple[str, Role]], width: float) -> float:
    """Points that a legend of these words takes when wrapped at `width` points."""
    return LEGEND * max(1, len(_legend_lines(entries, width)))


def paint_token_legend(
    figure: Figure, entries: Sequence[tuple[str, Role]], left: float, top: float, width: float = 1e9
) -> None:
    """Draw words in boxes of their own role, in lines LEGEND points high, wrapped at `width` points."""
    boxes = [
        (x, 3.0 + LEGEND * n, _box_width(entries[i][0]), *entries[i])
        for n, line in enumerate(_legend_lines(entries, width))
        for i, x in line
    ]
    _paint(Canvas(figure, left, top), boxes)


def draw_token_rows(rows: Sequence[TokenRow], *, aligned: bool = False, width: float = 8.5) -> Figure:
    """Labelled rows of token boxes, wrapped at `width` inches, with a legend of the roles that occur.

    aligned: position t stands below position t in all rows (an input over its labels).
    Raises ValueError if there are no rows, or aligned rows differ in length.

    >>> row = TokenRow("reads", ["a", " good", "[MASK]"], ["context", "context", "hidden"])
    >>> float(draw_token_rows([row], width=6).get_figwidth())
    6.0
    """
    layout = lay_out_tokens(rows, width * 72 - 12, aligned=aligned)
    legend = [(ROLES[role].meaning, ROLES[role]) for role in layout.roles]
    figure = Figure(figsize=(width, (layout.height + legend_height(legend, layout.width) + 6) / 72))
    paint_tokens(figure, layout, 6, 3)
    paint_token_legend(figure, legend, 6, layout.height + 4, layout.width)
    return figure


def _box_width(token: str) -> float:
    return text_width(visible(token)) + 2 * PADDING


def _starts_word(row: TokenRow) -> list[bool]:
    """Whether a gap belongs before a token; everywhere, where no token of the row says by a space where words begin."""
    is_spaced = any(token[:1].isspace() for token in row.tokens)
    return [
        not is_spaced or token[:1].isspace() or role in NEVER_GLUED
        for token, role in zip(row.tokens, row.roles, strict=True)
    ]


def _legend_lines(entries: Sequence[tuple[str, Role]], width: float) -> list[list[tuple[int, float]]]:
    return list(_lines([_box_width(words) + 4 for words, _ in entries], [True] * len(entries), width))


def _lines(widths: list[float], starts_word: list[bool], room: float) -> Iterator[list[tuple[int, float]]]:
    """Lines of (token, x), filled greedily; parts of one word stand close together."""
    line: list[tuple[int, float]] = []
    x = 0.0
    for t, wide in enumerate(widths):
        x += (GAP if starts_word[t] else GLUE) if line else 0.0
        if line and x + wide > room:
            yield line
            line, x = [], 0.0
        line.append((t, x))
        x += wide
    yield line


def _paint(canvas: Canvas, boxes: Sequence[tuple[float, float, float, str, str | Role]]) -> None:
    """Boxes and their texts; few artists: for each role its boxes, its hatch, its letters."""
    by_role: dict[Role, list[tuple[float, float, float, str]]] = {}
    for x, y, wide, text, role in boxes:
        by_role.setdefault(role if isinstance(role, Role) else ROLES[role], []).append((x, y, wide, text))
    for look, places in by_role.items():
        shapes = [_rounded(x, y, wide) for x, y, wide, _ in places]
        style = {"edgecolor": look.edge, "linewidth": look.width, "linestyle": look.style}
        canvas.add(PathCollection(shapes, facecolor=look.fill, **style))
        if look.hatch:  # on a strip below the letters, which it would make hard to read
            strips = [_rectangle(x, y + BOX - 4, wide, 4) for x, y, wide, _ in places]
            canvas.add(PathCollection(strips, facecolor="none", edgecolor=look.edge, linewidth=0, hatch=look.hatch))
        canvas.write_all([(x + wide / 2, y + BOX / 2, text) for x, y, wide, text in places], colour=look.text)


def _rectangle(x: float, y: float, wide: float, high: float) -> Path:
    return Path([(x, y), (x + wide, y), (x + wide, y + high), (x, y + high), (x, y)], closed=True)


_ROUNDED = [Path.MOVETO, *([Path.LINETO, Path.CURVE3, Path.CURVE3] * 4)]


def _rounded(x: float, y: float, wide: float, radius: float = 2.5) -> Path:
    """A box with round corners: from the end of one corner a line to the next, and an arc around it."""
    right, low, r = x + wide, y + BOX, radius
    points = [
        *[(x + r, y), (right - r, y), (right, y), (right, y + r)],
        *[(right, low - r), (right, low), (right - r, low)],
        *[(x + r, low), (x, low), (x, low - r)],
        *[(x, y + r), (x, y), (x + r, y)],
    ]
    return Path(points, _ROUNDED)
