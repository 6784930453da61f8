"""The learning rates of a run, and what two classic mistakes make of them, ready to be shown.

A warm-up that starts from zero takes its first step at rate 0. A cosine that is not stopped rises again.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from course_lib.schedules import SHAPES, Schedule, factor

POINTS, FIRST = 400, 10  # steps that a curve is drawn through; steps that are shown from near


@dataclass(frozen=True)
class ScheduleSettings:
    """What the explorer's controls say: `Schedule`'s settings, but free to make no sense together."""

    shape: str = "cosine"
    peak: float = 1e-3
    warmup: int = 100
    total: int = 1000
    floor: float = 0.1


def steps_in(examples: int, *, batch_size: int, epochs: int) -> int:
    """How many steps a run takes over a number of examples; a last batch that is not full is one too.

    >>> steps_in(6, batch_size=2, epochs=3)
    9
    """
    return math.ceil(examples / batch_size) * epochs


PRESETS = {  # as they stand in a text that many have learned from
    "pre-training: warm-up 10,000 of 1,000,000 steps": ScheduleSettings("linear", 1e-4, 10_000, 1_000_000, 0.0),
    "fine-tuning: 3 epochs of 6 sentences by 2, warm-up 100": ScheduleSettings(
        "linear", 2e-5, 100, steps_in(6, batch_size=2, epochs=3), 0.0
    ),
}


@dataclass(frozen=True)
class ScheduleView:
    """The rates of a run, and what two mistakes would make of them.

    steps, rates: from step 0 to well past the end. from_zero: the same with a warm-up that starts from zero, None
    without a warm-up. rising: the cosine that goes on, from the end of the run, None for other shapes. first_*: the
    first steps, as far as FIRST of them. at_first, at_last, after: the rates of step 0, of the last step, and of step
    `total`, which the run does not take. reached: the highest rate of the run as a share of the peak.
    refusal: what `Schedule` says against these settings, None where they fit.
    """

    settings: ScheduleSettings
    steps: tuple[int, ...]
    rates: tuple[float, ...]
    from_zero: tuple[float, ...] | None
    rising: tuple[tuple[int, ...], tuple[float, ...]] | None
    first_rates: tuple[float, ...]
    first_from_zero: tuple[float, ...] | None
    reached: float
    refusal: str | None

    @property
    def reaches_peak(self) -> bool:
        return self.reached > 1 - 1e-9

    @property
    def at_first(self) -> float:
        return self.rates[0]

    @property
    def at_last(self) -> float:
        return self.rates[self.steps.index(self.settings.total - 1)]

    @property
    def after(self) -> float:
        return self.rates[self.steps.index(self.settings.total)]


def compute_schedule(
    shape: str = "cosine", peak: float = 1e-3, warmup: int = 100, total: int = 1000, floor: float = 0.1
) -> ScheduleView:
    """The rates over a run of `total` steps and what follows; settings that `Schedule` refuses are computed too.

    Raises ValueError for an unknown shape, a peak that is no rate, or a run without a step.

    >>> view = compute_schedule("linear", peak=2e-5, warmup=100, total=9)
    >>> f"{view.reached:.0%} of the peak"
    '9% of the peak'
    """
    settings = ScheduleSettings(shape, peak, warmup, total, floor)
    if shape not in SHAPES:
        raise ValueError(f"shape {shape!r} is unknown: choose one of {', '.join(SHAPES)}")
    if not (0.0 < peak < math.inf and total >= 1 and warmup >= 0):
        raise ValueError(f"{settings}: give a peak above 0, at least 1 step, and a warm-up of at least 0")
    end = total + max(2, math.ceil(0.4 * total))
    steps = _spread(0, end, {0, warmup, total - 1, total})
    run = _spread(0, total - 1, {total - 1, min(warmup, total - 1), max(0, min(warmup, total) - 1)})
    first = range(min(FIRST, total))
    after = _spread(total, end, {total})
    rises = shape == "cosine" and warmup < total
    return ScheduleView(
        settings,
        steps=steps,
        rates=_rates(settings, steps),
        from_zero=_rates_from_zero(settings, steps) if warmup else None,
        rising=(after, tuple(_rising(settings, step) for step in after)) if rises else None,
        first_rates=_rates(settings, first),
        first_from_zero=_rates_from_zero(settings, first) if warmup else None,
        reached=max(_rates(settings, run)) / peak,
        refusal=_refusal(settings),
    )


def _spread(begin: int, end: int, wanted: set[int]) -> tuple[int, ...]:
    """Whole steps from `begin` to `end`, about POINTS of them, those `wanted` included."""
    spread = {begin + (end - begin) * n // POINTS for n in range(POINTS + 1)}
    return tuple(sorted(spread | {step for step in wanted if begin <= step <= end}))


def _factor(settings: ScheduleSettings, step: int) -> float:
    return factor(settings.shape, step, total=settings.total, warmup=settings.warmup, floor=settings.floor)


def _rates(settings: ScheduleSettings, steps: Iterable[int]) -> tuple[float, ...]:
    return tuple(settings.peak * _factor(settings, step) for step in steps)


def _rates_from_zero(settings: ScheduleSettings, steps: Iterable[int]) -> tuple[float, ...]:
    """The mistake: step / warmup in place of (step + 1) / warmup, so that the first step changes nothing."""
    return tuple(
        settings.peak * _factor(settings, step) * (step / (step + 1) if step < settings.warmup else 1.0)
        for step in steps
    )


def _rising(settings: ScheduleSettings, step: int) -> float:
    """The mistake: a cosine whose progress is not held at 1."""
    progress = (step - settings.warmup) / (settings.total - settings.warmup)
    half_wave = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.peak * (settings.floor + (1 - settings.floor) * half_wave)


def _refusal(settings: ScheduleSettings) -> str | None:
    try:
        Schedule(**asdict(settings))
    except ValueError as error:
        return str(error)
    return None
