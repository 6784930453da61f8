"""Explorer: what a low-rank update of a real weight can hold, what it costs, and what alpha does.

The change that full fine-tuning made to a layer stands beside its best approximation of the chosen rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from course_lib.peft.spectrum import spectrum
from course_lib.peft.targets import dimensions, find_targets
from course_lib.plots.theme import BLUE, INK, ORANGE, axes_at, in_theme, write
from course_lib.widgets.binder import Explorer, bind

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
SQUARE = 48  # blocks along the side of a picture of a matrix
TARGETS = {
    "query and value": ["query", "value"],
    "all of attention": ["query", "key", "value", "attention.output.dense"],
    "feed-forward": r"(.*\.)?(intermediate|(?<!attention\.)output)\.dense",
    "every linear layer": "all-linear",
}


@dataclass(frozen=True)
class LowRankView:
    """A rank, an alpha, targets and a layer, and what follows.

    n_trained, share: numbers that train in all targets, and their share of the model with them. scale: alpha / rank.
    kept: of the layer's change, the share of its squared length that each rank keeps. delta, cut: the change and its
    approximation, averaged over SQUARE x SQUARE blocks. moved: length of one step of Adam in the weight, in units of
    the learning rate.
    """

    rank: int
    alpha: float
    layer: str
    targets: str
    n_layers: int
    n_trained: int
    share: float
    scale: float
    kept: np.ndarray
    delta: np.ndarray
    cut: np.ndarray
    moved: float


class LowRankBench:
    """A model and the changes that full fine-tuning made to its layers, ready to be looked at."""

    def __init__(self, model: nn.Module, deltas: Mapping[str, Tensor]) -> None:
        self.deltas = dict(deltas)
        self.n_base = sum(parameter.numel() for parameter in model.parameters())
        self.sizes = {
            words: [dimensions(layer) for layer in find_targets(model, targets, excluded=["head"]).values()]
            for words, targets in TARGETS.items()
        }
        self.spectrum = cache(lambda layer: spectrum(self.deltas[layer]))  # of a layer when it is first looked at

    def compute(
        self, rank: int = 8, alpha: float = 16, targets: str = "query and value", layer: str = ""
    ) -> LowRankView:
        """Raises ValueError for a layer or targets that are not there, or a rank larger than the layer."""
        layer = layer or next(iter(self.deltas))
        if layer not in self.deltas or targets not in self.sizes:
            raise ValueError(f"layer {layer!r} or targets {targets!r} are not there: choose one of the lists")
        delta_OI, sizes = self.deltas[layer], self.sizes[targets]
        if rank < 1:
            raise ValueError(f"rank is {rank}: give at least 1")
        if rank > min(delta_OI.shape):
            raise ValueError(f"rank {rank} is larger than the layer's matrix, {' x '.join(map(str, delta_OI.shape))}")
        trained = sum(rank * (n_in + n_out) for n_in, n_out in sizes)
        return LowRankView(
            rank, alpha, layer, targets, len(sizes), trained, trained / (self.n_base + trained), alpha / rank,
            self.spectrum(layer).energy_kept(), in_blocks(delta_OI), in_blocks(self.spectrum(layer).truncated(rank)),
            first_step(delta_OI, rank, alpha),
        )  # fmt: skip


def first_step(delta_OI: Tensor, rank: int, alpha: float) -> float:
    """Length of the change in the weight that one step of Adam makes to B (each of its numbers moves by the learning
    rate, in the direction of the change that is wanted), in units of the rate; A as it begins, from a fixed seed."""
    bound = 1 / delta_OI.shape[1] ** 0.5  # as LoRA's A begins: Kaiming, uniform
    A_RI = torch.empty(rank, delta_OI.shape[1]).uniform_(-bound, bound, generator=torch.Generator().manual_seed(0))
    return float((alpha / rank * (delta_OI @ A_RI.T).sign() @ A_RI).norm())


def in_blocks(matrix: Tensor) -> np.ndarray:
    """A matrix averaged over SQUARE x SQUARE blocks."""
    return nn.functional.adaptive_avg_pool2d(matrix[None, None].float(), SQUARE)[0, 0].cpu().numpy()


@in_theme
def draw_low_rank(view: LowRankView) -> Figure:
    """The change of a layer, its approximation, and how much every rank keeps."""
    figure = Figure(figsize=(7.6, 3.4))
    largest = float(np.abs(view.delta).max()) or 1.0
    for place, (title, picture) in enumerate(
        {"what training changed": view.delta, f"rank {view.rank}": view.cut}.items()
    ):
        axes = axes_at(figure, 12 + 150 * place, 46, 138, 138)
        axes.imshow(picture, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest", aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        write(figure, 12 + 150 * place, 28, title, bold=False)
    axes = axes_at(figure, 362, 46, 170, 130)
    ranks = np.arange(1, len(view.kept) + 1)
    axes.plot(ranks, 100 * view.kept, color=BLUE, linewidth=1.9)
    axes.plot(view.rank, 100 * view.kept[view.rank - 1], "o", color=ORANGE, markeredgecolor=INK, markersize=9, zorder=5)
    axes.set(xscale="log", ylim=(0, 104), xlabel="rank (log scale)", ylabel="energy kept, %")
    axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
    axes.minorticks_off()
    write(figure, 12, 4, f"{view.n_trained:,} parameters train in {view.n_layers} layers, {view.share:.2%} of the "
          f"model; scale {view.scale:g}")  # fmt: skip
    name = view.layer.removeprefix("body.encoder.")
    write(figure, 12, 196, f"{name}, averaged over blocks: red rose, blue fell", bold=False, size=9)
    write(figure, 12, 212, f"The first step of Adam moves this weight by {view.moved:.1f} times the learning rate.",
          bold=False)  # fmt: skip
    return figure


def describe_low_rank(view: LowRankView) -> str:
    """The picture in words."""
    return (
        f"{view.layer}: rank {view.rank} keeps {view.kept[view.rank - 1]:.0%} of the change; {view.n_trained:,} "
        f"parameters train, {view.share:.2%} of the model; scale {view.scale:g}."
    )


def low_rank_explorer(model: nn.Module, deltas: Mapping[str, Tensor]) -> Explorer:
    """Sliders for rank and alpha, lists of targets and of layers. deltas: {layer: its change in full fine-tuning}."""
    bench = LowRankBench(model, deltas)
    wide = widgets.Layout(width="430px")
    style = {"description_width": "70px"}
    names = [(name.removeprefix("body.encoder."), name) for name in bench.deltas]
    return bind(
        bench.compute,
        draw_low_rank,
        describe=describe_low_rank,
        rank=widgets.SelectionSlider(
            options=RANKS, value=8, description="rank", tooltip="rank of the update", layout=wide, style=style
        ),
        alpha=widgets.IntSlider(
            value=16, min=1, max=64, description="alpha", tooltip="the update is scaled by alpha / rank",
            layout=wide, style=style,
        ),
        targets=widgets.Dropdown(
            options=list(TARGETS), description="targets", tooltip="which layers get an update", layout=wide, style=style
        ),
        layer=widgets.Dropdown(
            options=names, description="look at", tooltip="the layer that is drawn", layout=wide, style=style
        ),
    )  # fmt: skip
