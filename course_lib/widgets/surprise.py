"""Explorer: what surprises a decoder in a text that nobody read, token by token, as its reading goes on.

Axes: T position in the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure

from course_lib.evaluation import stream_nats
from course_lib.model import Decoder
from course_lib.plots.theme import BLACK, BLUE, INK, axes_at, in_theme, text_width, visible
from course_lib.tokenizer import Tokenizer
from course_lib.widgets.binder import Explorer, bind

MOST_TOKENS = 32
ROW = 13.0  # points: height of a token's bar


@dataclass(frozen=True)
class Surprise:
    """Nats that each token of a text costs before any reading, and after so many tokens read."""

    tokens: tuple[str, ...]
    before_T: np.ndarray
    after_T: np.ndarray
    read: int


class SurpriseBench:
    """Snapshots of a decoder by the tokens that it had read, and texts; each pair is computed when first asked for.

    Raises ValueError without a snapshot of 0 tokens, or without a text.
    """

    def __init__(self, snapshots: Mapping[int, Decoder], texts: Sequence[str], tokenizer: Tokenizer) -> None:
        if 0 not in snapshots or not texts:
            raise ValueError("give a snapshot of 0 tokens, from before the reading, and at least one text")
        self.snapshots, self.tokenizer = dict(sorted(snapshots.items())), tokenizer
        self.ids = {text: tokenizer.encode(text)[:MOST_TOKENS] for text in texts}
        self._known: dict[tuple[int, str], np.ndarray] = {}

    def compute(self, read: int, text: str) -> Surprise:
        """read: tokens read, of one of the snapshots. Raises ValueError for one, or a text, that is not there."""
        if read not in self.snapshots or text not in self.ids:
            raise ValueError(f"{read} tokens and text {text[:40]!r}: choose from the lists")
        tokens = tuple(self.tokenizer.token(i) for i in self.ids[text])
        return Surprise(tokens, self._nats(0, text), self._nats(read, text), read)

    def _nats(self, read: int, text: str) -> np.ndarray:
        if (read, text) not in self._known:
            ids_N = torch.tensor([self.tokenizer.vocabulary.bos, *self.ids[text]])
            self._known[read, text] = stream_nats(self.snapshots[read], ids_N)
        return self._known[read, text]


@in_theme
def draw_surprise(surprise: Surprise) -> Figure:
    """A row for each token, from top to bottom as it is read: a bar for now, a mark for before."""
    names = [visible(token) for token in surprise.tokens]
    left = max(text_width(name, size=9) for name in names) + 16
    high = ROW * len(names)
    figure = Figure(figsize=(7.5, (high + 74) / 72))
    axes = axes_at(figure, left, 28, 7.5 * 72 - left - 20, high)
    places = np.arange(len(names))
    now = f"now: after {surprise.read:,} tokens"
    axes.barh(places, surprise.after_T, height=0.7, color=BLUE, edgecolor=INK, linewidth=0.4, label=now)
    axes.plot(surprise.before_T, places, "|", color="white", markersize=12, markeredgewidth=5)  # seen on a bar too
    axes.plot(surprise.before_T, places, "|", color=BLACK, markersize=11, markeredgewidth=2, label="before reading")
    farthest = 1.05 * max(surprise.before_T.max(), surprise.after_T.max())
    axes.set(xlim=(0, max(12.0, farthest)), ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel("nats")
    axes.set_yticks(places, names, fontsize=9)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderaxespad=0.1)
    return figure


def describe_surprise(surprise: Surprise) -> str:
    """The picture in words."""
    fallen = int((surprise.after_T < surprise.before_T).sum())
    return (
        f"After {surprise.read:,} tokens this text costs {surprise.after_T.mean():.2f} nats per token, before "
        f"{surprise.before_T.mean():.2f}; {fallen} of {len(surprise.tokens)} tokens have become cheaper."
    )


def surprise_explorer(snapshots: Mapping[int, Decoder], texts: Sequence[str], tokenizer: Tokenizer) -> Explorer:
    """A slider over the snapshots, and a list of texts."""
    bench = SurpriseBench(snapshots, texts, tokenizer)
    layout, style = widgets.Layout(width="430px"), {"description_width": "90px"}
    read = list(bench.snapshots)
    return bind(
        bench.compute,
        draw_surprise,
        describe=describe_surprise,
        read=widgets.SelectionSlider(
            options=[(f"{tokens:,}", tokens) for tokens in read], value=read[-1], description="tokens read",
            tooltip="how many tokens of the text the decoder had read", layout=layout, style=style,
        ),
        text=widgets.Dropdown(
            options=[(text[:60], text) for text in bench.ids], description="text", tooltip="a text it did not read",
            layout=layout, style=style,
        ),
    )  # fmt: skip
