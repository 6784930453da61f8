"""The life of a loss scale: over the steps of a run in fp16, and an explorer that plays it again by another rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from course_lib.plots.theme import BLUE, GREEN, INK, VERMILLION, axes_at, in_theme, write
from course_lib.precision import LossScale
from course_lib.widgets.binder import Explorer, bind
from course_lib.widgets.loss_scale import HIGHEST, LOWEST, OVERFLOW, power

FEW, COUNTS = 40, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # marks that have room, and what `interval` can be


@in_theme
def draw_scale_life(scales: Sequence[float], norms: Sequence[float], *, title: str = "") -> Figure:
    """The loss scale of each step as a line; crosses mark the steps that were left out, triangles those before which it
    rose.

    scales, norms: of each step, such as `scale` and `gradient_norm` of its record; a step is left out where its norm is
    not finite. Raises ValueError unless there is one of each for at least one step, and every scale is above 0.

    >>> figure = draw_scale_life([4.0, 2.0, 2.0, 4.0], [math.inf, 1.0, 0.9, 1.1])
    """
    left_out, risen = _events(scales, norms)
    wide, above = 540.0, 28.0 if title else 10.0
    figure = Figure(figsize=(wide / 72, (above + 240) / 72))
    axes = axes_at(figure, 62, above, wide - 62 - 16, 168)
    if title:
        write(figure, 8, 2, title)
    steps, log_scales = np.arange(1, len(scales) + 1), np.log2(scales)
    axes.stairs(log_scales, np.arange(len(steps) + 1) + 0.5, baseline=None, color=BLUE, linewidth=1.6, zorder=2)
    marks = {"linestyle": "none", "clip_on": False, "markeredgecolor": INK, "markeredgewidth": 0.6}
    crosses = {"marker": "X", "color": VERMILLION, "markersize": 6.5, "zorder": 4, **marks}
    triangles = {"marker": "^", "color": GREEN, "markersize": 11, "zorder": 3, **marks}  # seen behind a cross too
    is_crowded = len(left_out) + len(risen) > FEW
    for at, look in ((left_out, crosses), (risen, triangles)):
        axes.plot(steps[at], log_scales[at], **look | ({"markersize": look["markersize"] / 2} if is_crowded else {}))
    axes.set(xlabel="step", ylabel="loss scale", xlim=(0.5, len(steps) + 0.5))
    axes.set_ylim(log_scales.min() - 0.7, log_scales.max() + 0.7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(FuncFormatter(power))
    entries = [
        Line2D([], [], color=BLUE, linewidth=1.6, label="scale of the step"),
        Line2D([], [], label=f"left out ({len(left_out)} of {len(steps)})", **crosses),
        Line2D([], [], label=f"risen before it ({len(risen)})", **triangles),
    ]
    figure.legend(handles=entries, loc="lower left", bbox_to_anchor=(56 / wide, 0), ncols=3, frameon=False,
                  borderaxespad=0.5, columnspacing=1.4, handlelength=1.6)  # fmt: skip
    return figure


def _events(scales: Sequence[float], norms: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Which steps, counted from 0, were left out, and which have a larger scale than the one before."""
    if not len(scales) == len(norms) > 0:
        raise ValueError(f"{len(scales)} scales and {len(norms)} norms: give one of each for every step, at least one")
    if not all(scale is not None and 0 < scale < math.inf for scale in scales):
        raise ValueError("a scale is not a finite number above 0: give the records of a run with a LossScale")
    return np.flatnonzero(~np.isfinite(norms)), np.flatnonzero(np.diff(scales) > 0) + 1


def describe_scale_life(scales: Sequence[float], norms: Sequence[float]) -> str:
    """The picture of `draw_scale_life` in words."""
    left_out, risen = _events(scales, norms)
    which = f" (steps {', '.join(str(step + 1) for step in left_out[:8])}{', ...' if len(left_out) > 8 else ''})"
    return (
        f"The loss scale over {len(scales)} steps: it begins at {scales[0]:,.8g}, ends at {scales[-1]:,.8g} and lies "
        f"between {min(scales):,.8g} and {max(scales):,.8g}. Steps left out: {len(left_out)}"
        f"{which if len(left_out) else ''}. Rises: {len(risen)}."
    )


@dataclass(frozen=True)
class ScaleReplay:
    """What a LossScale would have done, step by step, to gradients that a run without one has recorded.

    norms: of each step the size of its largest gradient, infinite where that times the scale is more than fp16 holds.
    """

    scales: tuple[float, ...]
    norms: tuple[float, ...]
    interval: int


def replay_scale(largest: Sequence[float], exponent: int = 16, interval: int = 2000) -> ScaleReplay:
    """largest: the size of the largest gradient of each step, not scaled. exponent: of the first scale, 2**exponent.

    Raises ValueError without a step, or for a size that is negative or not finite.

    >>> replay_scale([1.0, 1.0, 1.0, 1.0], exponent=16, interval=2).scales  # 2**16 is more than fp16 holds
    (65536.0, 32768.0, 32768.0, 65536.0)
    """
    if not len(largest) or not all(0 <= size < math.inf for size in largest):
        raise ValueError("largest holds no step, or a size that is none: give the largest |gradient| of each step")
    scale, scales, norms = LossScale(2.0**exponent, interval=interval), [], []
    for size in largest:
        is_finite = size * scale.scale < OVERFLOW
        scales.append(scale.scale)
        norms.append(float(size) if is_finite else math.inf)
        scale.update(is_finite)
    return ScaleReplay(tuple(scales), tuple(norms), interval)


def draw_replay(view: ScaleReplay) -> Figure:
    """`draw_scale_life`, under words that say what was played again."""
    said = f"begins at 2^{math.log2(view.scales[0]):g}, rises after {_good(view)}"
    return draw_scale_life(view.scales, view.norms, title=f"Replay of one run's gradients: {said}")


def _good(view: ScaleReplay) -> str:
    return f"{view.interval:,} good step{'' if view.interval == 1 else 's'}"


def describe_replay(view: ScaleReplay) -> str:
    """The picture in words."""
    return (
        f"A replay of one run's gradients, with a scale that rises after {_good(view)} in a row. "
        f"{describe_scale_life(view.scales, view.norms)} A real run would go on with other gradients after a step that "
        "is left out; here they stay those that were recorded."
    )


def scale_life(largest: Sequence[float]) -> Explorer:
    """Sliders for the exponent of the first scale and for how many good steps it takes to rise.

    largest: the size of the largest gradient in each step of a run, not scaled. It is a replay: the gradients stay
    those of that run, whichever of its steps would have been left out.
    """
    style = {"description_width": "130px"}
    largest = [float(size) for size in largest]
    return bind(
        lambda exponent, interval: replay_scale(largest, exponent, interval),
        draw_replay,
        describe=describe_replay,
        exponent=widgets.IntSlider(
            value=16, min=LOWEST, max=HIGHEST, description="first scale, 2^",
            tooltip="the exponent of the loss scale of the first step", style=style,
        ),
        interval=widgets.SelectionSlider(
            options=[(f"{count:,}", count) for count in COUNTS], value=100, description="good steps to rise",
            tooltip="after how many steps in a row that were not left out the scale doubles", style=style,
        ),
    )  # fmt: skip
