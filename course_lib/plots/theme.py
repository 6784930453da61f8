"""How everything looks: palette, roles of tokens, fonts, and a figure as PNG with words beside it.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; roles differ in fill, outline or hatch too, so
that they survive a greyscale print. Layouts are in points (1/72 inch) and measured, not searched for.
"""

import html
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import matplotlib
import numpy as np
import seaborn
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D, Transform

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
INK, GREY, PALE = "#222222", "#767676", "#EDEFF2"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)

OBJECTIVE_COLOURS = {
    "causal": BLUE,
    "prefix": SKY,
    "masked": VERMILLION,
    "permuted": PURPLE,
    "span": GREEN,
    "infilled": ORANGE,
}
OBJECTIVE_MARKERS = {"causal": "o", "prefix": "v", "masked": "s", "permuted": "D", "span": "^", "infilled": "P"}
OBJECTIVE_DASHES = {
    "causal": (0, ()),
    "prefix": (0, (7, 1)),
    "masked": (0, (5, 2)),
    "permuted": (0, (1.5, 1)),
    "span": (0, (5, 1, 1, 1)),
    "infilled": (0, (3, 1, 1, 1, 1, 1)),
}


@dataclass(frozen=True)
class Role:
    """How a token looks for the part it plays: fill, text, outline and hatch; `meaning` is what the legend calls it."""

    meaning: str
    fill: str
    text: str = INK
    edge: str = "none"
    width: float = 0.0
    style: str = "-"
    hatch: str | None = None


ROLES = {
    "context": Role("context", PALE),
    "hidden": Role("hidden", BLUE, text="white"),
    "swapped": Role("swapped", "#F9E6F0", edge="#B3508A", width=0.8, hatch="//////"),
    "kept": Role("kept", "white", edge=GREEN, width=2.0, style="--"),
    "sentinel": Role("sentinel", BLACK, text="white", edge=YELLOW, width=2.0),
    "target": Role("to predict", ORANGE, edge=INK, width=1.0),
    "special": Role("special", "#CBD0D6", edge=GREY, width=1.0, style=":"),
    "padding": Role("padding", "white", text=GREY, edge=GREY, width=0.8, style=":", hatch="...."),
    "silent": Role("not asked", "white", text=GREY),
}

FONT = 10.5
FONT_FAMILY = "DejaVu Sans"  # comes with matplotlib: the same figure, and the same widths, on every machine
THEME = {
    **seaborn.axes_style("whitegrid", {"axes.edgecolor": "#B8BEC6", "grid.color": "#E3E6EA", "text.color": INK}),
    **seaborn.plotting_context("notebook", font_scale=FONT / 12),
    "font.family": FONT_FAMILY,
    "axes.prop_cycle": matplotlib.cycler(color=CYCLE),
    "hatch.linewidth": 0.7,
    "axes.titley": 1.0,  # else matplotlib measures every label to find it, at each redraw
    "figure.facecolor": "white",
}


def themed() -> AbstractContextManager[None]:
    """matplotlib's settings for the course inside a `with` block: seaborn's white grid and the palette above."""
    return matplotlib.rc_context(THEME)


def in_theme(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the function draws with the course's settings."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        with themed():
            return draw(*args, **kwargs)

    return drawn


def colour_of(name: str, index: int | None = None) -> str:
    """An objective's own colour; for another name the cycle's colour number `index`, or grey.

    >>> colour_of("masked"), colour_of("bag of words")
    ('#D55E00', '#767676')
    """
    return OBJECTIVE_COLOURS.get(name, GREY if index is None else CYCLE[index % len(CYCLE)])


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in points from the figure's top left corner."""
    wide, high = figure.get_size_inches() * 72
    with themed():
        return figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))


@dataclass(frozen=True)
class Canvas:
    """A place in a figure to draw in points, counted right and down from its top left corner. Far quicker than Axes."""

    figure: Figure
    left: float = 0.0
    top: float = 0.0

    @property
    def transform(self) -> Transform:
        """From this canvas's points to pixels."""
        high = self.figure.get_figheight()
        in_inches = Affine2D().scale(1 / 72, -1 / 72).translate(self.left / 72, high - self.top / 72)
        return in_inches + self.figure.dpi_scale_trans

    def add(self, artist: Artist) -> None:
        """Add a patch, line or collection given in points."""
        artist.set_transform(self.transform)
        self.figure.add_artist(artist)

    def write(self, x: float, y: float, words: str, **style: Any) -> None:
        """Words at a point: by default from there on, vertically centred."""
        settings = {"va": "center_baseline", "fontsize": FONT, "color": INK, "family": FONT_FAMILY, **style}
        self.figure.text(x, y, drawable(words), transform=self.transform, parse_math=False, **settings)

    def write_all(
        self,
        places: Iterable[tuple[float, float, str]],
        *,
        colour: str = INK,
        size: float = FONT,
        align: float = 0.5,
        upright: bool = False,
    ) -> None:
        """Many short texts as one artist, seven times as quick as one by one. (x, y) is a text's vertical middle.

        align: which part of a text stands at x: 0 its start, 0.5 its middle, 1 its end. upright: it reads upwards, and
        `align` goes by y.
        """
        corners, codes = [np.zeros((0, 2))], [np.zeros(0, Path.code_type)]
        for x, y, text in places:
            outline_N2, code_N = _outline(text, size)
            along = -align * text_width(text, size=size)
            placed_N2 = np.add(outline_N2, (along, 0.36 * size))  # 0.36 em: half the height of a capital
            corners.append(np.add(placed_N2[:, ::-1] * (1, -1) if upright else placed_N2, (x, y)))
            codes.append(code_N)
        if any(len(code_N) for code_N in codes):
            letters = Path(np.concatenate(corners), np.concatenate(codes))
            self.add(PathCollection([letters], facecolor=colour, linewidth=0))


def write(figure: Figure, left: float, top: float, words: str, *, bold: bool = True, size: float = FONT) -> None:
    """A line of words into a figure, its top left corner at a place given in points from the figure's."""
    Canvas(figure, left, top).write(0, 11, words, fontsize=size, fontweight="bold" if bold else "normal")


@cache
def text_width(text: str, *, size: float = FONT, bold: bool = False) -> float:
    """Width of a text in points, as the course's font draws it.

    >>> text_width("ww") > text_width("ii") > 0
    True
    """
    font = font_manager.FontProperties(family=FONT_FAMILY, weight="bold" if bold else "normal", size=size)
    return text_to_path.get_text_width_height_descent(drawable(text), font, ismath=False)[0]


@cache
def _outline(text: str, size: float) -> tuple[np.ndarray, np.ndarray]:
    """A text's letters as a path in points, y downwards: corners [N, 2] and matplotlib's codes [N]."""
    font = font_manager.FontProperties(family=FONT_FAMILY, size=size)
    corners, codes = text_to_path.get_text_path(font, drawable(text), ismath=False)
    scale = size / text_to_path.FONT_SCALE
    return np.reshape(corners, (-1, 2)) * [scale, -scale], np.asarray(codes, Path.code_type)


@cache
def visible(token: str) -> str:
    """A token without the spaces around it; what has no shape of its own, or none in the font, gets one.

    >>> visible(" film"), visible(" "), visible("\\n")
    ('film', '␣', '↵')
    """
    text = token.strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣"
    return drawable(text)


@cache
def drawable(words: str) -> str:
    """Words with a square for each character that the font does not have.

    >>> drawable("película 日本")
    'película □□'
    """
    return "".join(char if ord(char) in _glyphs() else "□" for char in words)


@cache
def cut(token: str, room: float) -> str:
    """A token as it shows, its end cut off where it is wider than `room` points."""
    text = visible(token)
    if text_width(text) <= room:
        return text
    return next((text[:n] + "…" for n in range(len(text), 0, -1) if text_width(text[:n] + "…") <= room), "…")


def wrapped(text: str, room: float, *, size: float = FONT) -> str:
    """A text on as many lines as keep it within `room` points; a word that is wider by itself has a line of its own.

    >>> wrapped("tokens read, in millions", 80)
    'tokens read, in\\nmillions'
    """
    lines: list[str] = []
    for word in text.split(" "):
        if lines and text_width(f"{lines[-1]} {word}", size=size) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def legend_columns(names: Sequence[str], room: float) -> int:
    """In how many columns a legend has as few rows as `room` points allow, and no more columns than those need."""
    most = max(1, int(room // (max(map(text_width, names)) + 52)))
    return -(-len(names) // -(-len(names) // most))


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FONT_FAMILY)).get_charmap())


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file, quick rather than small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


@dataclass(frozen=True)
class Picture:
    """A PNG with words for those who cannot see it. Shows itself as the last value of a cell, or by `display`."""

    data: bytes
    alt: str

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, Image, display

        display(Image(data=self.data, alt=self.alt))  # exporters keep this alt text and JupyterLab drops it, hence:
        display(HTML(hidden_words(self.alt)))


def show(figure: Figure, alt: str) -> Picture:
    """What a notebook shows for a figure. `alt` says what a reader would see in it.

    Raises ValueError if `alt` is empty.

    >>> show(Figure(figsize=(1, 1)), alt="An empty square.").data[1:4]
    b'PNG'
    """
    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what the figure shows, for readers who cannot see it")
    return Picture(png(figure), alt)


def hidden_words(words: str, *, live: bool = False) -> str:
    """HTML that a screen reader speaks and nobody sees. live: spoken again whenever it changes."""
    style = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap"
    spoken = "role='status' aria-live='polite'" if live else "role='note'"
    return f'<span {spoken} style="{style}">{html.escape(words)}</span>'
