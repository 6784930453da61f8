"""Runs of the training lab as data, and their curves over each other as a picture and in words.

matplotlib's settings belong to the whole process, and these curves are drawn from a thread while a notebook may be
drawing too: so nothing here changes a setting, and nothing of the look is left to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from course_lib import plots
from course_lib.plots.theme import CYCLE, FONT, FONT_FAMILY, GREY, INK
from course_lib.schedules import Schedule
from course_lib.training import StepRecord

WIDTH, PLOT_HIGH, LINE = 8.5 * 72, 236.0, 18.0  # points
KEPT = 6  # runs over each other
BESIDE = 5  # steps on either side that a point of a curve is the mean of
MARKERS = ("o", "s", "^", "D", "v", "P")
AXES = ("tokens", "steps")
PLAIN = {"linestyle": "-", "solid_capstyle": "round"}
EDGE = {"markeredgecolor": INK, "markeredgewidth": 1.0, "markersize": 7}


@dataclass(frozen=True)
class LabSettings:
    """What the lab's sliders say. mask_prob: the share of the tokens that are asked about. steps: at most.

    Raises ValueError for what no run can be made of.
    """

    peak_rate: float = 2e-3
    warmup: int = 20
    batch_size: int = 32
    mask_prob: float = 0.15
    steps: int = 300

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_prob <= 1.0:
            raise ValueError(f"mask_prob is {self.mask_prob}: give a share above 0 and at most 1, such as 0.15")
        _ = self.schedule

    @property
    def schedule(self) -> Schedule:
        """Warm-up, then constant, so that runs of different lengths can be compared where they overlap."""
        return Schedule("constant", self.peak_rate, total=self.steps, warmup=self.warmup)


@dataclass
class LabRun:
    """One run: what it was asked to do, what it has done so far, and how it ended.

    place: which of KEPT colours and markers it has. tokens_per_step: of its batches. state: "training", "done",
    "stopped" or "failed". error: what made it fail.
    """

    number: int
    settings: LabSettings
    place: int = 0
    tokens_per_step: int = 1
    records: list[StepRecord] = field(default_factory=list)
    state: str = "training"
    error: Exception | None = None

    @property
    def loss(self) -> float | None:
        """The mean loss of the last steps, 2 * BESIDE of them, in nats per target."""
        last = [record.loss for record in self.records[-2 * BESIDE :]]
        return sum(last) / len(last) if last else None


NAMES = {
    "peak_rate": lambda s: f"peak {s.peak_rate:.1e}",
    "warmup": lambda s: f"warm-up {s.warmup}",
    "batch_size": lambda s: f"batch {s.batch_size}",
    "mask_prob": lambda s: f"mask {s.mask_prob:.0%}",
    "steps": lambda s: f"{s.steps} steps",
}


def names_of(runs: Sequence[LabRun]) -> list[str]:
    """What the legend calls the runs: their numbers, and the settings in which they differ (of a single one, all).

    >>> names_of([LabRun(1, LabSettings()), LabRun(2, LabSettings(batch_size=8), state="stopped")])
    ['1: batch 32', '2: batch 8 (stopped)']
    """
    differing = [name for name in NAMES if len({getattr(run.settings, name) for run in runs}) > 1]
    shown = differing or [name for name in NAMES if name != "steps"]
    return [
        f"{run.number}: {', '.join(NAMES[name](run.settings) for name in shown)}"
        + (f" ({run.state})" if run.state in ("stopped", "failed") else "")
        for run in runs
    ]


def smoothed(values: Sequence[float], beside: int = BESIDE) -> np.ndarray:
    """The mean of each value and `beside` on either side; fewer on both sides at the beginning, where a loss is fast,
    and fewer on the right at the end.

    >>> smoothed([9.0, 6.0, 3.0, 4.0, 2.0], beside=1).tolist()
    [9.0, 6.0, 4.333333333333333, 3.0, 3.0]
    """
    total = np.concatenate([[0.0], np.cumsum(values, dtype=float)])
    place = np.arange(len(values))
    reach = np.minimum(beside, place)
    first, last = place - reach, np.minimum(place + reach, len(values) - 1)
    return (total[last + 1] - total[first]) / (last + 1 - first)


def draw_runs(runs: Sequence[LabRun], *, uniform: float, axis: str = "tokens") -> Figure:
    """The loss of every run over tokens or steps: thin lines for single steps, thick ones for the mean around them.

    uniform: the loss of a model that knows nothing, ln V, as a dashed line. What rises far above it leaves the picture,
    and an arrow with the run's number says so where it does at its end.
    Raises ValueError for an axis that is not one of AXES.
    """
    if axis not in AXES:
        raise ValueError(f"axis is {axis!r}: choose one of {', '.join(AXES)}")
    names = names_of(runs)
    wide = max((plots.text_width(name) for name in names), default=0.0) + 52
    columns = 2 if 2 * wide <= WIDTH - 60 and len(runs) > 1 else 1
    high = PLOT_HIGH + 58 + LINE * max(1, -(-len(runs) // columns))
    figure = Figure(figsize=(WIDTH / 72, high / 72), facecolor="white")
    axes = figure.add_axes((56 / WIDTH, 1 - (10 + PLOT_HIGH) / high, (WIDTH - 56 - 44) / WIDTH, PLOT_HIGH / high))
    snapshots = [(run, list(run.records)) for run in runs]  # a thread may be adding to them
    for run, records in snapshots:
        _draw_run(axes, run, records, axis)
    axes.axhline(uniform, color=INK, linestyle=(0, (5, 3)), linewidth=1.2, dash_capstyle="butt")
    axes.annotate("ln V", (1, uniform), (7, 0), ("axes fraction", "data"), textcoords="offset points", va="center",
                  color=INK, fontsize=FONT, family=FONT_FAMILY)  # fmt: skip
    axes.set_xlim(0, 1.02 * max([_end_of(run, records, axis) for run, records in snapshots], default=1))
    losses = [record.loss for _, records in snapshots for record in records]
    top = min(max([*losses, uniform]), uniform + 1) + 0.3
    axes.set_ylim(min([*losses, uniform - 2]) - 0.15, top)
    _style(axes, axis)
    _point_up(axes, [(run, records) for run, records in snapshots if records and run.loss > top], axis)
    _legend(axes, runs, names, columns, 1 - (10 + PLOT_HIGH + 44) / high)
    return figure


def _x_of(records: Sequence[StepRecord], axis: str) -> list[int]:
    return [record.tokens if axis == "tokens" else record.step for record in records]


def _end_of(run: LabRun, records: Sequence[StepRecord], axis: str) -> int:
    """Where a run ends on the x axis, or is to end while it is training, so that the axis does not grow with it."""
    unit = run.tokens_per_step if axis == "tokens" else 1
    if run.state == "training":
        return run.settings.steps * unit
    return max(1, len(records)) * unit


def _draw_run(axes: Axes, run: LabRun, records: Sequence[StepRecord], axis: str) -> None:
    if not records:
        return
    x, losses = _x_of(records, axis), [record.loss for record in records]
    colour, mean = CYCLE[run.place], smoothed(losses)
    axes.plot(x, losses, color=colour, linewidth=0.8, alpha=0.3, **PLAIN)
    axes.plot(x, mean, color=colour, linewidth=2.0, **PLAIN)
    axes.plot(x[-1:], mean[-1:], MARKERS[run.place], color=colour, zorder=5, **EDGE)


def _point_up(axes: Axes, runs: Sequence[tuple[LabRun, Sequence[StepRecord]]], axis: str) -> None:
    for level, (run, records) in enumerate(runs):
        axes.annotate(f"↑ run {run.number}: {run.loss:.0f}", (_x_of(records, axis)[-1], 1), (-4, -12 - 15 * level),
                      ("data", "axes fraction"), textcoords="offset points", va="center", ha="right", color=INK,
                      fontsize=FONT, family=FONT_FAMILY)  # fmt: skip


def _style(axes: Axes, axis: str) -> None:
    """The course's look, said in full."""
    axes.set_facecolor("white")
    axes.set_axisbelow(True)
    axes.grid(True, which="major", color="#E3E6EA", linewidth=1.0, alpha=1.0, **PLAIN)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#B8BEC6", linewidth=1.2)
    shown = {"left": True, "bottom": True, "labelleft": True, "labelbottom": True, "top": False, "right": False}
    axes.tick_params(
        length=0, pad=6, labelsize=FONT - 1, labelcolor=INK, labelfontfamily=FONT_FAMILY, labelrotation=0, **shown
    )
    words = {"color": INK, "fontsize": FONT, "family": FONT_FAMILY, "weight": "normal"}
    what = "tokens read" if axis == "tokens" else "steps"
    axes.set_xlabel(f"{what}  (thin lines: single steps, thick ones: the mean around each)", labelpad=4, **words)
    axes.set_ylabel("loss, nats per target", labelpad=4, **words)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _legend(axes: Axes, runs: Sequence[LabRun], names: Sequence[str], columns: int, top: float) -> None:
    entries = [
        Line2D([], [], color=CYCLE[run.place], linewidth=2.0, marker=MARKERS[run.place], label=name, **PLAIN, **EDGE)
        for run, name in zip(runs, names, strict=True)
    ] or [Line2D([], [], color=GREY, linestyle="none", label="no run yet: press Start")]  # fmt: skip
    axes.figure.legend(
        handles=entries, loc="upper left", bbox_to_anchor=(56 / WIDTH, top), ncols=columns, frameon=False,
        borderaxespad=0, borderpad=0, handlelength=2.2, labelspacing=0.5, columnspacing=1.5, labelcolor=INK,
        prop={"family": FONT_FAMILY, "size": FONT},
    )  # fmt: skip


def describe_runs(runs: Sequence[LabRun], *, uniform: float) -> str:
    """The picture in words."""
    words = [f"Loss curves of {len(runs)} runs; the dashed line is ln V, {uniform:.2f} nats per target."]
    for run, name in zip(runs, names_of(runs), strict=True):
        if not run.records:
            words.append(f"Run {name}: no step yet.")
            continue
        highest = max(record.loss for record in run.records)
        words.append(
            f"Run {name}: from {run.records[0].loss:.2f} to {run.loss:.2f} in {len(run.records)} steps and "
            f"{run.records[-1].tokens:,} tokens" + (f", at most {highest:.2f}." if highest > uniform + 1 else ".")
        )
    return " ".join(words)
