"""How far a figure can be trusted: intervals over trials and over seeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval that holds the truth in 95 of 100 such measurements."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self:.3g}"

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def holds(self, value: float) -> bool:
        """Whether a value lies within the interval."""
        return self.low <= value <= self.high


def proportion_interval(successes: int, trials: int) -> Interval:
    """95 % interval of a share, Clopper and Pearson's (exact for the binomial distribution).

    Raises ValueError unless 0 <= successes <= trials and there is a trial.

    >>> str(proportion_interval(80, 100))
    '0.8 (0.708 to 0.873)'
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: give 0 <= successes <= trials, at least 1 trial")
    bounds = stats.binomtest(successes, trials).proportion_ci(0.95)
    return Interval(successes / trials, bounds.low, bounds.high)


def share_interval(is_right_N: np.ndarray) -> Interval:
    """`proportion_interval` of what is True among flags. Raises ValueError for none."""
    return proportion_interval(int(np.sum(is_right_N)), len(is_right_N))


def mean_interval(values: Sequence[float]) -> Interval:
    """95 % interval of the mean over seeds, by Student's t.

    Raises ValueError for fewer than 2 values, or one that is not finite.

    >>> str(mean_interval([1.0, 2.0, 3.0]))
    '2 (-0.484 to 4.48)'
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} value: a spread over seeds takes at least 2")
    if not np.isfinite(values).all():
        raise ValueError(f"values hold {next(v for v in values if not math.isfinite(v))}: did one of the runs diverge?")
    mean = float(np.mean(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - reach, mean + reach)


def columns(intervals: Iterable[Interval], *, times: float = 1.0) -> tuple[list[float], list[float], list[float]]:
    """Values, lower and upper ends of several intervals, as figures take them. times: 100 makes percent of shares.

    >>> columns([Interval(0.5, 0.4, 0.6), Interval(0.2, 0.1, 0.3)], times=10)
    ([5.0, 2.0], [4.0, 1.0], [6.0, 3.0])
    """
    found = [*intervals]
    return tuple([times * getattr(one, end) for one in found] for end in ("value", "low", "high"))
