"""Explorer: the gradients of a real step under fp16's microscope, and what a loss scale makes of them.

Axes: N a number of a gradient other than 0, K a bin of sizes, from a power of two up to the next.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from course_lib.plots.theme import (
    BLUE,
    INK,
    ORANGE,
    PURPLE,
    VERMILLION,
    Canvas,
    axes_at,
    in_theme,
    write,
)
from course_lib.precision import Fate
from course_lib.widgets.binder import Explorer, bind

ALL = "all together"
LOWEST, HIGHEST = -8, 32  # exponents that the slider has
AXIS = (-56, 36)  # of the picture, in powers of two; what lies beyond stands in the last bar
WIDTH = 500.0  # points of the picture's axes
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# where the next kind begins; numbers are rounded to the nearest that fp16 has, to an even one from the middle
LOST, NORMAL, OVERFLOW = 2.0**-25, 2.0**-14 - 2.0**-25, 65520.0
KINDS = {  # of Fate: its name, where it begins and ends in powers of two, its colour and hatch
    "lost": ("rounds to 0", AXIS[0], -25, VERMILLION, "////"),
    "subnormal": ("subnormal", -25, -14, ORANGE, "..."),
    "normal": ("normal", -14, 16, BLUE, ""),
    "overflow": ("overflow", 16, AXIS[1], PURPLE, "xxxx"),
}


@dataclass(frozen=True, eq=False)
class ScaleView:
    """A group's gradients at a loss scale of 2**exponent, as if all of them were kept in fp16.

    counts_K: how many numbers have a size from 2**(low + k) up to 2**(low + k + 1), without the scale. kinds: how many
    have which Fate, with it. n_zero: how many are exactly 0, which no scale helps.
    """

    group: str
    exponent: int
    low: int
    counts_K: np.ndarray
    kinds: dict[str, int]
    n_zero: int

    @property
    def n(self) -> int:
        """Numbers other than 0."""
        return sum(self.kinds.values())

    @property
    def fate(self) -> Fate:
        """The same shares as `course_lib.precision.fate` gives."""
        return Fate(**{kind: count / self.n for kind, count in self.kinds.items()})

    @property
    def is_left_out(self) -> bool:
        """Whether a step with these gradients is left out: one number too large is enough."""
        return self.kinds["overflow"] > 0

    def bars(self, exponent: int) -> np.ndarray:
        """[K'] how many numbers, times 2**exponent, stand in each bin of AXIS; what lies beyond, in the last."""
        bars_K = np.zeros(AXIS[1] - AXIS[0], np.int64)
        at_K = np.arange(len(self.counts_K)) + self.low + exponent - AXIS[0]
        np.add.at(bars_K, at_K.clip(0, len(bars_K) - 1), self.counts_K)
        return bars_K


class ScaleBench:
    """The gradients of one step, not scaled, by the name of a group; sorted once, when a group is first looked at.

    Raises ValueError without a group, for one that is not finite or holds nothing but zeros, or with the name ALL.

    >>> bench = ScaleBench({"biases": torch.tensor([0.0, 2.0**-26, 2.0**-15, 1.0])})
    >>> bench.compute(exponent=0).fate
    Fate(lost=0.3333333333333333, subnormal=0.3333333333333333, normal=0.3333333333333333, overflow=0.0)
    >>> bench.compute(exponent=2).kinds
    {'lost': 0, 'subnormal': 1, 'normal': 2, 'overflow': 0}
    """

    def __init__(self, gradients: Mapping[str, Tensor]) -> None:
        if not gradients:
            raise ValueError("gradients are empty: give {name of a group: its gradients in one step}")
        for name, gradient in gradients.items():
            if name == ALL:
                raise ValueError(f"a group is called {ALL!r}, which stands for all of them: give it another name")
            if not gradient.isfinite().all():
                raise ValueError(f"gradients of {name!r} are not finite: give those of a step without a scale")
            if not gradient.any():
                raise ValueError(f"gradients of {name!r} are all 0: give those of a step, after its backward pass")
        self.gradients = {name: gradient.detach() for name, gradient in gradients.items()}
        self._sizes: dict[str, np.ndarray] = {}

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """What `compute` can be asked for."""
        return (ALL, *self.gradients) if len(self.gradients) > 1 else tuple(self.gradients)

    def compute(self, exponent: int = 0, group: str | None = None) -> ScaleView:
        """group: one of `groups`, by default the first.

        Raises ValueError for a group that is not there, or an exponent outside LOWEST to HIGHEST.
        """
        group = self.groups[0] if group is None else group
        if group not in self.groups:
            raise ValueError(f"group {group!r} is not there: choose one of {', '.join(self.groups)}")
        if not LOWEST <= exponent <= HIGHEST:
            raise ValueError(f"exponent is {exponent}: choose one from {LOWEST} to {HIGHEST}")
        sizes = [self._sorted(name) for name in (self.gradients if group == ALL else [group])]
        low = min(math.frexp(size_N[0])[1] for size_N in sizes) - 1
        high = max(math.frexp(size_N[-1])[1] for size_N in sizes)
        edges_K = np.exp2(np.arange(low, high + 1, dtype=np.float64))
        counts_K = sum(np.diff(np.searchsorted(size_N, edges_K)) for size_N in sizes)
        return ScaleView(group, exponent, low, counts_K, self._kinds(sizes, 2.0**exponent), self._n_zero(sizes, group))

    def _sorted(self, name: str) -> np.ndarray:
        if name not in self._sizes:
            gradient = self.gradients[name]
            size_N = gradient.to("cpu", torch.promote_types(gradient.dtype, torch.float32)).abs().flatten()
            self._sizes[name] = np.sort(size_N[size_N > 0].numpy()).astype(np.float64)  # thrice as quick in fp32
        return self._sizes[name]

    def _n_zero(self, sizes: list[np.ndarray], group: str) -> int:
        there = sum(gradient.numel() for name, gradient in self.gradients.items() if group in (name, ALL))
        return there - sum(map(len, sizes))

    @staticmethod
    def _kinds(sizes: list[np.ndarray], scale: float) -> dict[str, int]:
        """How many numbers have which fate: counted in sorted ones, so that a slider need not look at all of them."""
        lost = sum(int(np.searchsorted(size_N, LOST / scale, side="right")) for size_N in sizes)
        small, held = (
            sum(int(np.searchsorted(size_N, edge / scale)) for size_N in sizes) for edge in (NORMAL, OVERFLOW)
        )
        n = sum(map(len, sizes))
        return {"lost": lost, "subnormal": small - lost, "normal": held - small, "overflow": n - held}


@in_theme
def draw_microscope(view: ScaleView) -> Figure:
    """How large the scaled gradients are, over what fp16 can hold. The axis stays where it is; the bars move."""
    figure = Figure(figsize=(8.4, 4.5))
    write(figure, 8, 4, f"{view.group}: {_counted(view.n)} other than 0, {view.n_zero:,} exactly 0")
    write(figure, 8, 22, _verdict(view), bold=False)
    axes = axes_at(figure, 64, 92, WIDTH, 168)
    edges_K, bars_K = np.arange(AXIS[0], AXIS[1] + 1), view.bars(view.exponent)
    canvas = Canvas(figure, 64, 52)
    for kind, (name, low, high, colour, hatch) in KINDS.items():
        axes.axvspan(low, high, facecolor=colour, alpha=0.13, linewidth=0, zorder=0)
        first, end = low - AXIS[0], high - AXIS[0]
        axes.stairs(bars_K[first:end], edges_K[first : end + 1], baseline=0.1, fill=True, facecolor=colour, hatch=hatch,
                    edgecolor="white", linewidth=0, zorder=2)  # fmt: skip
        middle = ((low + high) / 2 - AXIS[0]) / (AXIS[1] - AXIS[0]) * WIDTH
        canvas.write_all([(middle, 8, name), (middle, 24, _share(view, kind))], size=9.5)
    for _, low, _, _, _ in list(KINDS.values())[1:]:
        axes.axvline(low, color=INK, linewidth=1.3, zorder=3)
    axes.stairs(np.maximum(view.bars(0), 0.5), edges_K, color=INK, linewidth=1, linestyle=(0, (2, 1)), baseline=None,
                zorder=4)  # fmt: skip
    top = 10.0 ** math.ceil(math.log10(max(10, view.counts_K.max())) + 0.1)
    axes.set(xlim=AXIS, yscale="log", ylim=(0.5, top), ylabel="numbers (log scale)")
    axes.set_xlabel("size of a gradient times the scale (the lines: where fp16's ranges end)")
    axes.set_xticks([-48, -40, -32, -25, -14, -8, 0, 8, 16, 24, 32])
    axes.xaxis.set_major_formatter(FuncFormatter(power))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: power(math.log10(count), base=10)))
    axes.minorticks_off()
    axes.grid(visible=False)
    write(figure, 64, 302, "dashed: the same gradients without a scale", bold=False, size=9)
    return figure


def power(exponent: float, _place: int | None = None, *, base: int = 2) -> str:
    """A power as an axis writes it; ten times as quick as mathtext.

    >>> power(-14), power(5, base=10)
    ('2⁻¹⁴', '10⁵')
    """
    return str(base) + f"{exponent:.0f}".translate(RAISED)


def _counted(n: int) -> str:
    return f"{n:,} number{'' if n == 1 else 's'}"


def _share(view: ScaleView, kind: str) -> str:
    """A share, never written as none where there is some, nor as all where some is missing."""
    count, share = view.kinds[kind], getattr(view.fate, kind)
    if count in (0, view.n):
        return f"{share:.0%}"
    if share < 1e-4:
        return "< 0.01%"
    return "> 99.99%" if share > 0.9999 else f"{share:.2%}"


def _verdict(view: ScaleView) -> str:
    scale = f"loss scale 2^{view.exponent} = {2.0**view.exponent:{',.0f' if view.exponent >= 0 else '.3g'}}"
    if not view.is_left_out:
        return f"{scale}: no number overflows, the step counts"
    overflow = view.kinds["overflow"]
    return f"{scale}: {_counted(overflow)} overflow{'s' if overflow == 1 else ''}, so the step is left out"


def describe_microscope(view: ScaleView) -> str:
    """The picture in words."""
    shares = ", ".join(f"{KINDS[kind][0]} {_share(view, kind)}" for kind in KINDS)
    filled = np.flatnonzero(view.counts_K) + view.low + view.exponent
    return (
        f"Gradients of {view.group}, {_verdict(view)}. Of {_counted(view.n)} other than 0 in fp16: {shares}. "
        f"Times the scale their sizes go from 2^{filled[0]} to 2^{filled[-1] + 1}, most of them near "
        f"2^{int(view.counts_K.argmax()) + view.low + view.exponent}. Exactly 0: {view.n_zero:,}."
    )


def microscope(gradients: Mapping[str, Tensor]) -> Explorer:
    """A slider for the exponent of the loss scale, and a list of the groups. gradients: as `ScaleBench` takes them."""
    bench = ScaleBench(gradients)
    layout, style = widgets.Layout(width="480px", max_width="100%"), {"description_width": "110px"}
    return bind(
        bench.compute,
        draw_microscope,
        describe=describe_microscope,
        exponent=widgets.IntSlider(
            value=0, min=LOWEST, max=HIGHEST, description="loss scale, 2^",
            tooltip="the exponent of the number that the loss is multiplied by", layout=layout, style=style,
        ),
        group=widgets.Dropdown(
            options=bench.groups, description="gradients of", tooltip="which part of the model is looked at",
            layout=layout, style=style,
        ),
    )  # fmt: skip
