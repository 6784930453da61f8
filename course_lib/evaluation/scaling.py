"""How a loss falls with the tokens read: a power law, fitted on the beginning of a run, foretells the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import curve_fit


@dataclass(frozen=True)
class PowerLaw:
    """loss = floor + scale * tokens ** -exponent (arXiv:2001.08361, arXiv:2203.15556), tokens in millions.

    >>> law = PowerLaw(floor=3.0, scale=2.0, exponent=0.5)
    >>> law(4_000_000)
    4.0
    """

    floor: float
    scale: float
    exponent: float

    def __call__(self, tokens: float) -> float:
        return self.floor + self.scale * (tokens / 1e6) ** -self.exponent

    @classmethod
    def fit(cls, tokens: Sequence[float], losses: Sequence[float]) -> "PowerLaw":
        """The law nearest to the points, by least squares.

        Raises ValueError for fewer than 4 points, tokens or losses that are no finite numbers above 0, or losses that
        do not fall.
        """
        if len(tokens) != len(losses) or len(tokens) < 4:
            raise ValueError(f"{len(tokens)} tokens and {len(losses)} losses: give at least 4 of each")
        if not all(0 < number < np.inf for number in (*tokens, *losses)):
            raise ValueError("tokens or losses hold 0, less, or what is no number: give finite ones above 0")
        if losses[-1] >= losses[0]:
            raise ValueError(f"losses go from {losses[0]} to {losses[-1]}: a power law falls, give falling losses")
        shape = lambda x, floor, scale, exponent: floor + scale * x**-exponent  # noqa: E731
        start = (0.8 * min(losses), losses[0] - 0.8 * min(losses), 0.3)
        millions = np.asarray(tokens, dtype=float) / 1e6
        found, _ = curve_fit(shape, millions, losses, p0=start, bounds=([0, 0, 0.01], [min(losses), np.inf, 3.0]))
        return cls(*map(float, found))
