"""The learning rate over a run, explored: the whole curve, its first steps from near, and two classic mistakes."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict

import ipywidgets as widgets
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from course_lib import plots
from course_lib.plots.theme import GREY, INK, PALE
from course_lib.schedules import SHAPES, WITHOUT_END
from course_lib.widgets.binder import Explorer, bind
from course_lib.widgets.rates import PRESETS, ScheduleSettings, ScheduleView, compute_schedule

WIDTH, HIGH = 8.5 * 72, 336.0  # points
RATE, RISES_AGAIN, FROM_ZERO = plots.CYCLE[0], plots.CYCLE[1], INK
OWN = "own"


def draw_schedule(view: ScheduleView) -> Figure:
    """Three lines of words, the first steps from near, the whole run with what follows it, and the legend."""
    said = view.settings
    figure = Figure(figsize=(WIDTH / 72, HIGH / 72))
    words = f"{said.shape}: peak {said.peak:.2g}, warm-up {said.warmup:,} of {said.total:,} steps"
    plots.write(figure, 8, 2, words + _floor(said))
    plots.write(figure, 8, 20, _ends(view), bold=False)
    plots.write(figure, 8, 38, _peak(view), bold=not view.reaches_peak)
    if view.refusal:
        plots.write(figure, 8, 56, f"Schedule refuses this: {view.refusal.split(':')[0]}", bold=False)
    with plots.themed():
        near = plots.axes_at(figure, 72, 98, 112, 156)
        _draw_first(near, view)
        whole = plots.axes_at(figure, 244, 98, WIDTH - 244 - 24, 156)
        _draw_whole(whole, view)
        figure.legend(
            handles=_entries(view), loc="upper left", bbox_to_anchor=(8 / WIDTH, 40 / HIGH), ncols=2, frameon=False,
            borderaxespad=0, borderpad=0, handlelength=2.6, columnspacing=1.4,
        )  # fmt: skip
    return figure


def _floor(said: ScheduleSettings) -> str:
    return ", has no floor" if said.shape in WITHOUT_END else f", floor {said.floor:.0%} of the peak"


def _ends(view: ScheduleView) -> str:
    last = view.settings.total - 1
    first, at_last, after = (f"{rate:.2e}" if rate else "0" for rate in (view.at_first, view.at_last, view.after))
    return f"step 0: {first}    last step ({last:,}): {at_last}    one step after the end: {after}"


def _peak(view: ScheduleView) -> str:
    if view.reaches_peak:
        return "The peak is reached."
    is_cut = view.settings.warmup > view.settings.total
    why = "The run ends before the peak is reached" if is_cut else "The rate falls before the peak is reached"
    return f"{why}: its highest rate is {view.reached:.1%} of the peak."


def _draw_first(axes: Axes, view: ScheduleView) -> None:
    """The first steps as points: only from near can a first step at rate zero be seen."""
    steps = range(len(view.first_rates))
    if view.first_from_zero is not None:
        axes.plot(steps, view.first_from_zero, "D", color=FROM_ZERO, markerfacecolor="white", markersize=6.5, zorder=3)
    axes.plot(steps, view.first_rates, "o", color=RATE, markersize=4.5, zorder=4)
    axes.set(xlim=(-0.7, max(1, len(steps) - 1) + 0.7), xlabel="step", ylabel="learning rate")
    axes.set_title(f"the first {len(steps)} steps" if len(steps) > 1 else "the first step", fontsize=10, pad=6)
    axes.set_ylim(-0.06 * max(view.first_rates), 1.12 * max(view.first_rates))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _plain(axes)


def _draw_whole(axes: Axes, view: ScheduleView) -> None:
    total, peak, end = view.settings.total, view.settings.peak, view.steps[-1]
    axes.axvspan(total, end, color=PALE, linewidth=0, zorder=0)
    axes.axhline(peak, color=GREY, linestyle=":", linewidth=1.3, zorder=1)
    axes.plot(view.steps, view.rates, color=RATE, linewidth=2.2, zorder=3)
    if view.from_zero is not None:
        rising = sum(step <= view.settings.warmup for step in view.steps)  # behind its warm-up it is the same
        look = {"color": FROM_ZERO, "linewidth": 1.0, "linestyle": (0, (1.5, 1.5))}
        axes.plot(view.steps[:rising], view.from_zero[:rising], zorder=4, **look)
    if view.rising is not None:
        axes.plot(*view.rising, color=RISES_AGAIN, linewidth=1.4, linestyle=(0, (5, 2)), zorder=4)
    axes.axvline(total, color=INK, linestyle="--", linewidth=1.3, zorder=2)
    axes.set(xlim=(0, end), ylim=(-0.05 * peak, 1.12 * peak), xlabel="step")
    above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 10, "va": "bottom"}
    axes.annotate(f"end of the run: {total:,} steps", (total, 1), (-4, 4), ha="right", **above)
    axes.annotate("not trained any more", (total, 1), (6, 4), ha="left", **above)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _plain(axes)


def _plain(axes: Axes) -> None:
    """Numbers that stand for themselves, instead of a factor at the end of the axis."""
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.1e}" if rate else "0"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.tick_params(labelsize=9)


def _entries(view: ScheduleView) -> list[Line2D]:
    entries = [
        Line2D([], [], color=RATE, linewidth=2.2, marker="o", markersize=5, label="the rate of each step"),
        Line2D([], [], color=GREY, linewidth=1.3, linestyle=":", label="the peak"),
    ]
    if view.from_zero is not None:
        look = {"linestyle": (0, (1.5, 1.5)), "marker": "D", "markerfacecolor": "white", "markersize": 5}
        label = "mistake: the warm-up that starts from zero"
        entries.insert(1, Line2D([], [], color=FROM_ZERO, linewidth=0.9, label=label, **look))
    if view.rising is not None:
        label = "mistake: the cosine that rises again"
        entries.append(Line2D([], [], color=RISES_AGAIN, linewidth=1.4, linestyle=(0, (5, 2)), label=label))
    return entries


def describe_schedule(view: ScheduleView) -> str:
    """The picture in words."""
    said = view.settings
    words = [f"Schedule {said.shape}, peak {said.peak:.2g}, {said.warmup} steps of warm-up, {said.total} in all"]
    words += [_floor(said).removeprefix(", "), _ends(view).replace("    ", ", "), _peak(view).rstrip(".")]
    if view.first_from_zero is not None:
        words.append(f"A warm-up that starts from zero would take step 0 at {view.first_from_zero[0]:g}")
    if view.rising is not None:
        step, rate = view.rising[0][-1], view.rising[1][-1]
        words.append(f"A cosine that rises again would stand at {rate:.2e} at step {step}, the right edge")
    if view.refusal:
        words.append(f"Schedule refuses these settings: {view.refusal}")
    return ". ".join(words) + "."


def schedule_explorer() -> Explorer:
    """Controls for the shape, warm-up, total, peak and floor, and the settings of a well-known text to begin with.

    Choosing one of these moves the other controls; moving one of them leads back to your own settings.
    """
    controls = _controls(ScheduleSettings())
    preset = widgets.Dropdown(
        options=[("your own settings", OWN), *((name, name) for name in PRESETS)],
        value=OWN,
        description="begin with",
        tooltip="settings of a well-known text, or your own",
        layout=widgets.Layout(width="min(98%, 34em)"),
    )
    follow = _Preset(preset, controls)
    follow.box = bind(
        lambda preset, **settings: compute_schedule(**settings),
        draw_schedule,
        describe=describe_schedule,
        preset=preset,
        **controls,
    )
    return follow.box


class _Preset:
    """Keeps a selector of presets and the controls that it sets in step, and remembers the learner's own settings."""

    def __init__(self, selector: widgets.Dropdown, controls: dict[str, widgets.Widget]) -> None:
        self.selector, self.controls = selector, controls
        self.own, self.is_setting, self.box = self._values(), False, None
        selector.observe(self._choose, names="value")
        for control in controls.values():
            control.observe(self._note, names="value")

    def _values(self) -> dict[str, object]:
        return {name: control.value for name, control in self.controls.items()}

    def _choose(self, _change: object) -> None:
        if self.is_setting:
            return
        chosen = self.selector.value
        with self._one_redraw(*self.controls.values()):
            for name, value in (self.own if chosen == OWN else asdict(PRESETS[chosen])).items():
                self.controls[name].value = value

    def _note(self, _change: object) -> None:
        if self.is_setting:
            return
        self.own = self._values()
        with self._one_redraw(self.selector):
            self.selector.value = OWN

    @contextlib.contextmanager
    def _one_redraw(self, *controls: widgets.Widget) -> Iterator[None]:
        """Set controls inside the block without a redraw for each: the control that the learner moved brings one."""
        self.is_setting = True
        for control in controls:
            control.unobserve(self.box.redraw, names="value")
        try:
            yield
        finally:
            self.is_setting = False
            for control in controls:
                control.observe(self.box.redraw, names="value")


def _controls(begin: ScheduleSettings) -> dict[str, widgets.Widget]:
    """Counts of steps go by 1, 2, 5, 10, 20, ...: over a million of them a straight scale could not be aimed at."""
    series = [lead * 10**power for power in range(6) for lead in (1, 2, 5)]
    totals = sorted({*series, 1_000_000, *(preset.total for preset in PRESETS.values())} - {1, 2, 5})

    def steps(description: str, options: list[int], value: int, tooltip: str) -> widgets.SelectionSlider:
        named = [(f"{count:,}", count) for count in options]
        return widgets.SelectionSlider(options=named, value=value, description=description, tooltip=tooltip)

    return {
        "shape": widgets.Dropdown(
            options=list(SHAPES), value=begin.shape, description="shape", tooltip="how the rate falls after its warm-up"
        ),
        "peak": widgets.FloatLogSlider(
            value=begin.peak, min=-6, max=-1, step=0.05, readout_format=".1e",
            description="peak rate", tooltip="the highest learning rate",
        ),
        "warmup": steps("warm-up", [0, *series[:-2]], begin.warmup, "steps over which the rate rises to its peak"),
        "total": steps("total", totals, begin.total, "steps of the whole run"),
        "floor": widgets.FloatSlider(
            value=begin.floor, min=0.0, max=1.0, step=0.05, readout_format=".0%",
            description="floor", tooltip="what the decay ends at, as a share of the peak",
        ),
    }  # fmt: skip
