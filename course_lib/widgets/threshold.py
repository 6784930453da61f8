"""Explorer: from what probability on a text is called positive, what that wins and loses, and what the errors cost.

Axes: N a text, T a threshold that the slider can show, K a bin of probabilities.
"""

from dataclasses import dataclass
from functools import cached_property

import ipywidgets as widgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from course_lib.evaluation import Threshold, at_threshold
from course_lib.plots.theme import (
    BLACK,
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    VERMILLION,
    Canvas,
    axes_at,
    in_theme,
    write,
)
from course_lib.widgets.binder import Explorer, bind

STEP, BINS = 0.005, 40  # of the slider, and of probabilities from 0 to 1
GRID_T = np.round(np.arange(0, 1 + STEP / 2, STEP), 4)
LOOKS = {  # of a metric: its name, colour, dashes and marker
    "precision": ("precision", GREEN, (0, ()), "o"),
    "recall": ("recall", PURPLE, (0, (5, 2)), "s"),
    "accuracy": ("accuracy", BLACK, (0, (1.5, 1)), "^"),
    "f1": ("F1", ORANGE, (0, (5, 1, 1, 1)), "D"),
}
TICKS = (1, 5, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)  # counts that may stand beside the axis


@dataclass(frozen=True, eq=False)
class ThresholdView:
    """What a threshold makes of texts, beside all others.

    present: the counts at this threshold. cost: of a false positive; a false negative costs 1. positive_K, negative_K:
    texts of the two true classes by their probability. curves: {metric: its values [T]}, NaN where it is a share of
    nothing. cost_T: per text.
    """

    present: Threshold
    cost: float
    positive_K: np.ndarray
    negative_K: np.ndarray
    curves: dict[str, np.ndarray]
    cost_T: np.ndarray

    @property
    def n_texts(self) -> int:
        """Of both classes."""
        return int(self.positive_K.sum() + self.negative_K.sum())

    @property
    def expected_cost(self) -> float:
        """Per text, at this threshold."""
        return (self.cost * self.present.false_positives + self.present.false_negatives) / self.n_texts

    @property
    def calibrated(self) -> float:
        """Where it would be lowest if the probabilities were right: at p = cost * (1 - p) either error is as dear."""
        return self.cost / (1 + self.cost)

    @cached_property
    def best(self) -> float:
        """The threshold of the slider with the lowest cost; of equals the one nearest to `calibrated`."""
        lowest = GRID_T[self.cost_T <= self.cost_T.min() + 1e-12]
        return float(lowest[np.abs(lowest - self.calibrated).argmin()])


class ThresholdBench:
    """Probabilities of the positive class [N], in [0, 1], and true labels, 0 or 1, sorted and counted once.

    Raises what `at_threshold` raises.
    """

    def __init__(self, positive_probability_N: ArrayLike, labels_N: ArrayLike) -> None:
        self.probability_N, self.labels_N = np.asarray(positive_probability_N), np.asarray(labels_N)
        at_threshold(self.probability_N, self.labels_N, 0.5)  # says what is wrong
        negatives, positives = (np.sort(self.probability_N[self.labels_N == label]) for label in (0, 1))
        self.positive_K, self.negative_K = (np.histogram(p, BINS, (0, 1))[0] for p in (positives, negatives))
        grid_T = GRID_T.astype(self.probability_N.dtype)  # compared in their precision, as `at_threshold` does
        self.missed_T = np.searchsorted(positives, grid_T, side="left")
        self.false_T = len(negatives) - np.searchsorted(negatives, grid_T, side="left")
        all_T = [
            Threshold(t, len(positives) - missed, false, len(negatives) - false, missed)
            for t, missed, false in zip(GRID_T.tolist(), self.missed_T.tolist(), self.false_T.tolist(), strict=True)
        ]
        self.curves = {name: np.array([getattr(one, name) for one in all_T]) for name in LOOKS}

    def compute(self, threshold: float = 0.5, cost: float = 1.0) -> ThresholdView:
        """cost: of a false positive, where a false negative costs 1.

        Raises ValueError for a threshold outside [0, 1], or a cost that is not above 0.
        """
        if not 0 < cost < np.inf:
            raise ValueError(f"cost is {cost}: give a number above 0; with 1 both errors cost the same")
        present = at_threshold(self.probability_N, self.labels_N, threshold)
        cost_T = (cost * self.false_T + self.missed_T) / len(self.labels_N)
        return ThresholdView(present, cost, self.positive_K, self.negative_K, self.curves, cost_T)


@in_theme
def draw_threshold(view: ThresholdView) -> Figure:
    """Both classes by their probability and the four counts; the metrics and the cost over the threshold."""
    figure = Figure(figsize=(8.2, 4.75))
    write(figure, 8, 2, f"{view.n_texts:,} texts, called positive from {view.present.threshold:g} on")
    write(figure, 8, 19, "up: positive texts   down: negative   hatched: called wrongly", bold=False, size=9)
    _draw_classes(axes_at(figure, 50, 42, 226, 192), view)
    _paint_counts(Canvas(figure, 8, 274), view.present)
    _paint_legend(Canvas(figure, 346, 0), view.present)
    metrics, costs = axes_at(figure, 346, 42, 226, 112), axes_at(figure, 346, 202, 226, 96)
    _draw_metrics(metrics, view)
    lowest = f"◇ lowest {view.cost_T.min():.3f}, at {view.best:g}"
    write(figure, 310, 161, f"Cost per text {view.expected_cost:.3f}; {lowest}")
    write(figure, 310, 178, f"a false positive costs {view.cost:.3g}, a false negative 1", bold=False, size=9.5)
    _draw_costs(costs, view)
    for axes in (metrics, costs):
        axes.set_xlim(0, 1)
        axes.axvline(view.present.threshold, color=INK, linewidth=1.6, zorder=2)
    return figure


def _draw_classes(axes: Axes, view: ThresholdView) -> None:
    """A histogram upwards and one downwards, on a square-root scale, so that few texts can be seen beside many."""
    at, edges = view.present.threshold, np.linspace(0, 1, BINS + 1)
    most = float(np.sqrt(max(view.positive_K.max(), view.negative_K.max())))
    classes = ((1, view.positive_K, BLUE, (0, at)), (-1, view.negative_K, VERMILLION, (at, 1)))
    for sign, count_K, colour, (low, high) in classes:
        heights = sign * np.sqrt(count_K)
        axes.stairs(heights, edges, fill=True, facecolor=colour, edgecolor=colour, linewidth=1)
        wrong = axes.stairs(heights, edges, fill=True, facecolor="white", edgecolor=colour, hatch="/////", linewidth=1)
        wrong.set_clip_path(Rectangle((low, -2 * most), high - low, 4 * most, transform=axes.transData))
    ticks = _spaced(most)
    places = np.sqrt([0, *ticks])
    axes.set_yticks([*-places[:0:-1], *places], [f"{n:,}" for n in (*ticks[::-1], 0, *ticks)])
    axes.set(xlim=(0, 1), ylim=(-1.05 * most, 1.05 * most), xlabel="probability of the positive class")
    axes.set_ylabel("texts (square-root scale)", fontsize=9.5)
    axes.axhline(0, color=INK, linewidth=0.9)
    axes.axvline(at, color=INK, linewidth=2.2)


def _spaced(most: float) -> list[int]:
    """Counts for an axis that ends at the root `most`, their roots some way apart."""
    kept = [0]
    for count in TICKS:
        if np.sqrt(count) <= most and np.sqrt(count) - np.sqrt(kept[-1]) > most / 5:
            kept.append(count)
    return kept[1:]


def _paint_counts(canvas: Canvas, counts: Threshold) -> None:
    """The confusion matrix in words, errors hatched as in the histograms."""
    columns = {"called negative": 166.0, "called positive": 268.0}
    canvas.write_all([(x, 10, words) for words, x in columns.items()], align=1, size=9.5)
    rows = (("positive texts", BLUE, counts.false_negatives, counts.true_positives, 0),
            ("negative texts", VERMILLION, counts.true_negatives, counts.false_positives, 1))  # fmt: skip
    for n, (words, colour, *numbers, wrong) in enumerate(rows):
        y = 28.0 + 18 * n
        canvas.write_all([(0, y, words)], align=0, size=9.5)
        canvas.write_all([(x, y, f"{number:,}") for x, number in zip(columns.values(), numbers, strict=True)], align=1)
        for column, x in enumerate(columns.values()):
            look = {"facecolor": "white", "hatch": "/////"} if column == wrong else {"facecolor": colour}
            canvas.add(Rectangle((x - 66, y - 6), 14, 12, edgecolor=colour, linewidth=1, **look))


def _paint_legend(canvas: Canvas, present: Threshold) -> None:
    """The metrics' lines with their present values, two beside each other."""
    for n, (metric, (name, colour, dashes, marker)) in enumerate(LOOKS.items()):
        x, y, value = 120.0 * (n % 2), 10 + 18.0 * (n // 2), getattr(present, metric)
        canvas.add(Line2D([x, x + 26], [y, y], color=colour, linestyle=dashes, linewidth=1.9))
        canvas.add(Line2D([x + 13], [y], color=colour, marker=marker, markeredgecolor=INK, markersize=7))
        canvas.write_all([(x + 32, y, f"{name} {'none' if np.isnan(value) else f'{value:.3f}'}")], align=0, size=9.5)


def _draw_metrics(axes: Axes, view: ThresholdView) -> None:
    for metric, (_, colour, dashes, marker) in LOOKS.items():
        axes.plot(GRID_T, view.curves[metric], color=colour, linestyle=dashes, linewidth=1.9)
        axes.plot(view.present.threshold, getattr(view.present, metric), marker, color=colour, markeredgecolor=INK,
                  markersize=7, zorder=5, clip_on=False)  # fmt: skip
    axes.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1], xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(labelbottom=False)


def _draw_costs(axes: Axes, view: ThresholdView) -> None:
    axes.plot(GRID_T, view.cost_T, color=BLACK, linewidth=1.9)
    over = {"markersize": 8, "clip_on": False}
    axes.plot(view.best, view.cost_T.min(), "D", color="white", markeredgecolor=INK, zorder=4, **over)
    axes.plot(view.present.threshold, view.expected_cost, "o", color=BLACK, zorder=5, **over)
    axes.set(ylim=(0, 1.08 * view.cost_T.max() or 1), xticks=[0, 0.25, 0.5, 0.75, 1], xlabel="threshold")


def describe_threshold(view: ThresholdView) -> str:
    """The picture in words."""
    counts = view.present
    metrics = ", ".join(f"{name} {getattr(counts, metric):.3f}" for metric, (name, *_) in LOOKS.items())
    return (
        f"Threshold {counts.threshold:g}: {counts.true_positives:,} true positives, {counts.false_positives:,} false "
        f"positives, {counts.true_negatives:,} true negatives, {counts.false_negatives:,} false negatives; {metrics}. "
        f"Where a false positive costs {view.cost:.3g} and a false negative 1, a text costs {view.expected_cost:.3f}; "
        f"the lowest cost is {view.cost_T.min():.3f}, at {view.best:g}."
    )


def threshold_explorer(positive_probability_N: ArrayLike, labels_N: ArrayLike) -> Explorer:
    """A slider for the threshold, and one for what a false positive costs where a false negative costs 1."""
    bench = ThresholdBench(positive_probability_N, labels_N)
    shown = {"layout": widgets.Layout(width="430px", max_width="100%"), "style": {"description_width": "90px"}}
    return bind(
        bench.compute,
        draw_threshold,
        describe=describe_threshold,
        threshold=widgets.FloatSlider(
            value=0.5, min=0.0, max=1.0, step=STEP, readout_format=".3f", description="threshold",
            tooltip="the probability from which on a text is called positive", **shown,
        ),
        cost=widgets.FloatLogSlider(
            value=1.0, min=-1, max=1, step=0.05, readout_format=".2f", description="FP costs",
            tooltip="what a false positive costs, where a false negative costs 1", **shown,
        ),
    )  # fmt: skip
