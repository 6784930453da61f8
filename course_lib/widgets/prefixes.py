"""Explorer: where the heads of an encoder look when a trained prefix stands before the text.

Axes: H head, Q token that looks, K what is looked at: the prefix's positions, then the text's tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from course_lib.evaluation import attention_weights
from course_lib.model import Cache, Encoder
from course_lib.plots.theme import BLUE, GREY, INK, ORANGE, axes_at, in_theme, text_width, visible, write
from course_lib.tokenizer import Tokenizer
from course_lib.widgets.binder import Explorer, bind

MOST_TOKENS = 16


@dataclass(frozen=True)
class PrefixView:
    """One layer's attention: weights [H, Q, K] of all its heads. length: positions of the prefix among K."""

    weights_HQK: np.ndarray
    tokens: tuple[str, ...]
    length: int
    layer: int
    head: int

    @property
    def on_prefix_H(self) -> np.ndarray:
        """The share of each head's attention that goes to the prefix, averaged over the tokens that look."""
        return self.weights_HQK[:, :, : self.length].sum(2).mean(1)


class PrefixBench:
    """An encoder without adapters, a trained prefix as a cache, and texts to look at."""

    def __init__(self, model: Encoder, cache: Cache, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        self.model, self.cache, self.tokenizer = model, cache, tokenizer
        self.longest = cache[0][0].shape[2]
        first, last = tokenizer.vocabulary.frame_ids("the prefix explorer")
        self.texts = {text: [first, *tokenizer.encode(text)[: MOST_TOKENS - 2], last] for text in texts}

    def compute(self, length: int, layer: int = 0, head: int = 0, text: str | None = None) -> PrefixView:
        """length: how many positions of the prefix stand there, from its first on.

        Raises ValueError for a length, layer or head that is not there.
        """
        text = next(iter(self.texts)) if text is None else text
        if text not in self.texts:
            raise ValueError(f"text {text[:40]!r} is not there: choose one of the list")
        ids = self.texts[text]
        config = self.model.config
        for name, value, most in (
            ("length", length, self.longest), ("layer", layer, config.n_layers - 1), ("head", head, config.n_heads - 1)
        ):  # fmt: skip
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}: choose one from 0 to {most}")
        short = [(k[:, :, :length], v[:, :, :length]) for k, v in self.cache]
        input_ids_BT = torch.tensor([ids], device=next(self.model.parameters()).device)
        weights_LBHQK: Tensor = attention_weights(self.model, input_ids_BT, short if length else None)
        tokens = tuple(self.tokenizer.token(i) for i in ids)
        return PrefixView(weights_LBHQK[layer, 0].cpu().numpy(), tokens, length, layer, head)


@in_theme
def draw_prefix(view: PrefixView) -> Figure:
    """The chosen head's attention as a map, and every head's share on the prefix as bars."""
    n_tokens, n_keys = len(view.tokens), view.length + len(view.tokens)
    left = max(text_width(visible(token), size=9) for token in view.tokens) + 14
    above = max(text_width(visible(token), size=9) for token in view.tokens) + 34
    cell = min(15.0, (400 - left) / n_keys)
    wide, high = cell * n_keys, max(12.0 * n_tokens, 11.0 * len(view.on_prefix_H))
    figure = Figure(figsize=(8.4, (above + high + 44) / 72))
    axes = axes_at(figure, left, above, wide, high)
    axes.imshow(view.weights_HQK[view.head], cmap="Blues", vmin=0, vmax=max(0.2, view.weights_HQK[view.head].max()),
                aspect="auto", interpolation="nearest")  # fmt: skip
    axes.set_yticks(range(n_tokens), [visible(token) for token in view.tokens], fontsize=9)
    axes.set_xticks(range(view.length, n_keys), [visible(token) for token in view.tokens], fontsize=9, rotation=90)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(visible=False)
    if view.length:
        axes.axvline(view.length - 0.5, color=ORANGE, linewidth=2)
        axes.text((view.length - 1) / 2, n_tokens + 0.2, "prefix", ha="center", va="center", fontsize=9)
    write(figure, 8, 4, f"layer {view.layer}, head {view.head}: rows look at columns")
    axes = axes_at(figure, 460, above, 110, high)
    heads = np.arange(len(view.on_prefix_H))
    colours = [ORANGE if head == view.head else BLUE for head in heads]
    axes.barh(heads, 100 * view.on_prefix_H, color=colours, edgecolor=INK, linewidth=0.5)
    axes.set(xlim=(0, 100), ylim=(len(heads) - 0.5, -0.5), xlabel="attention on prefix, %", ylabel="head")
    axes.set_yticks(heads)
    axes.axvline(100 * view.length / n_keys, color=GREY, linestyle="--", linewidth=1.2)
    axes.grid(axis="y", visible=False)
    write(figure, 460, above - 20, "dashed: an even share", bold=False, size=9)
    return figure


def describe_prefix(view: PrefixView) -> str:
    """The picture in words."""
    return (
        f"Layer {view.layer}, head {view.head}, prefix of {view.length}: it gets {view.on_prefix_H[view.head]:.0%} of "
        f"this head's attention, and {view.on_prefix_H.mean():.0%} over all heads of the layer."
    )


def prefix_explorer(model: Encoder, cache: Cache, texts: Sequence[str], tokenizer: Tokenizer) -> Explorer:
    """Sliders for the length of the prefix, the layer and the head, and a list of texts."""
    bench = PrefixBench(model, cache, texts, tokenizer)
    layout, style = widgets.Layout(width="430px"), {"description_width": "70px"}

    def slider(value: int, most: int, name: str, tooltip: str) -> widgets.IntSlider:
        return widgets.IntSlider(
            value=value, min=0, max=most, description=name, tooltip=tooltip, layout=layout, style=style
        )

    config = model.config
    return bind(
        bench.compute,
        draw_prefix,
        describe=describe_prefix,
        length=slider(bench.longest, bench.longest, "length", "how many positions of the prefix stand there"),
        layer=slider(config.n_layers - 1, config.n_layers - 1, "layer", "the layer that is drawn"),
        head=slider(0, config.n_heads - 1, "head", "the head that is drawn"),
        text=widgets.Dropdown(
            options=[(text[:50], text) for text in bench.texts], description="text", tooltip="the sentence",
            layout=layout, style=style,
        ),
    )  # fmt: skip
