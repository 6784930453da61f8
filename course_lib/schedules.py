"""Learning-rate schedules as pure functions of the step, counted from 0.

Every shape gives a factor of the peak rate. It rises to 1 over `warmup` steps, step 0 included: the first step is taken
at 1 / warmup, never at 0. From step `warmup` on the factors are those of `transformers`, whose warm-up stands one step
behind ours and so wastes its first step. Past the end of the run a factor stays where it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


def constant(step: int, *, warmup: int = 0) -> float:
    """Warm-up, then 1.

    >>> [constant(step, warmup=4) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def linear(step: int, *, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Warm-up, then a straight line that reaches `floor` at step `total`, behind the last step.

    >>> [linear(step, total=4) for step in range(6)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    return constant(step, warmup=warmup) * (floor + (1 - floor) * (1 - _progress(step, warmup, total)))


def cosine(step: int, *, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Warm-up, then half a cosine that reaches `floor` at step `total` (arXiv:1608.03983, without restarts).

    >>> [round(cosine(step, total=4, floor=0.1), 3) for step in range(6)]
    [1.0, 0.868, 0.55, 0.232, 0.1, 0.1]
    """
    half_wave = 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total)))
    return constant(step, warmup=warmup) * (floor + (1 - floor) * half_wave)


def warmup_stable_decay(
    step: int, *, total: int, warmup: int = 0, floor: float = 0.0, decay_share: float = 0.3
) -> float:
    """Warm-up, then 1, then a straight line to `floor` over the last `decay_share` of the steps (arXiv:2404.06395).

    >>> [warmup_stable_decay(step, total=8, decay_share=0.5) for step in range(9)]
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    decay_from = total - round(decay_share * total)
    return constant(step, warmup=warmup) * (floor + (1 - floor) * (1 - _progress(step, decay_from, total)))


def inverse_square_root(step: int, *, warmup: int) -> float:
    """Warm-up, then falling with the square root of the step (arXiv:1706.03762, section 5.3), without an end.

    >>> [inverse_square_root(step, warmup=4) for step in (0, 3, 4, 16)]
    [0.25, 1.0, 1.0, 0.5]
    """
    return constant(step, warmup=warmup) * min(1.0, math.sqrt(max(warmup, 1) / max(step, 1)))


SHAPES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "warmup_stable_decay": warmup_stable_decay,
    "inverse_square_root": inverse_square_root,
}
WITHOUT_END = ("constant", "inverse_square_root")  # they know neither where a run ends nor a floor


def factor(
    shape: str, step: int, *, total: int, warmup: int = 0, floor: float = 0.0, decay_share: float = 0.3
) -> float:
    """The factor of any shape at a step, whatever the settings; a shape leaves out those that it has no use for.

    >>> factor("constant", 0, total=4, warmup=2, floor=0.1)
    0.5
    """
    settings = {"warmup": warmup}
    if shape not in WITHOUT_END:
        settings |= {"total": total, "floor": floor}
    if shape == "warmup_stable_decay":
        settings["decay_share"] = decay_share
    return SHAPES[shape](step, **settings)


@dataclass(frozen=True)
class Schedule:
    """The learning rate at each step of a run: `schedule(step)`.

    shape: a key of SHAPES. peak: the highest rate. warmup, total: in steps. floor: what the decay ends at, a share of
    the peak. decay_share: the part of a warmup_stable_decay run that decays.
    `schedule.factor` is what torch's LambdaLR takes, with `peak` as the optimiser's rate.
    Raises ValueError for an unknown shape, a rate that is none, shares outside [0, 1], or a warm-up that outlasts the
    run.

    >>> schedule = Schedule("cosine", peak=1e-3, warmup=10, total=100)
    >>> schedule(0), schedule(10), schedule(100)
    (0.0001, 0.001, 0.0)
    """

    shape: str
    peak: float
    total: int
    warmup: int = 0
    floor: float = 0.0
    decay_share: float = 0.3

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape {self.shape!r} is unknown: choose one of {', '.join(SHAPES)}")
        if not 0.0 < self.peak < math.inf:
            raise ValueError(f"peak is {self.peak}: give a learning rate above 0, such as 1e-3")
        for name in ("floor", "decay_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}: give a share between 0 and 1")
        if self.total < 1:
            raise ValueError(f"total is {self.total}: a run takes at least 1 step")
        plateau = self.total
        if self.shape == "warmup_stable_decay":
            plateau -= round(self.decay_share * self.total)
        if not 0 <= self.warmup <= plateau:
            raise ValueError(
                f"warmup is {self.warmup} steps and the run has only {plateau} before its rate falls or it ends: "
                "shorten the warm-up, or train longer"
            )
        if self.shape == "inverse_square_root" and self.warmup < 1:
            raise ValueError("warmup is 0: inverse_square_root falls from the end of its warm-up, give at least 1 step")

    def factor(self, step: int) -> float:
        """The share of the peak at a step.

        Raises ValueError for a negative step.
        """
        if step < 0:
            raise ValueError(f"step is {step}: steps count from 0")
        settings = {"warmup": self.warmup, "floor": self.floor, "decay_share": self.decay_share}
        return factor(self.shape, step, total=self.total, **settings)

    def __call__(self, step: int) -> float:
        return self.peak * self.factor(step)


def _progress(step: int, begin: int, end: int) -> float:
    """How much of the way from `begin` to `end` a step has gone, between 0 and 1; at `end` all of it, however short."""
    return 1.0 if step >= end else max(0.0, (step - begin) / max(1, end - begin))
