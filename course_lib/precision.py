"""Number formats of training: the loss scale that keeps small gradients alive in fp16, and what of a gradient each
format can hold."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LossScale:
    """Dynamic loss scaling (arXiv:1710.03740, section 3.2): the loss is multiplied by `scale` before the backward
    pass and the gradients are divided by it afterwards. A step whose gradients are not finite is left out and the scale
    falls; after `interval` good steps in a row it rises.

    Raises ValueError for a scale that is not above 0, factors on the wrong side of 1, or an interval below 1.

    >>> scale = LossScale(2.0**16, interval=2)
    >>> [scale.update(is_finite) for is_finite in (False, True, True)]
    [32768.0, 32768.0, 65536.0]
    """

    scale: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    good: int = 0  # steps in a row since the scale last changed

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}: give a finite number above 0, such as 2.0**16")
        if not self.growth > 1 > self.backoff > 0:
            raise ValueError(f"growth is {self.growth}, backoff {self.backoff}: give one above 1 and one below")
        if self.interval < 1:
            raise ValueError(f"interval is {self.interval}: the scale rises after at least 1 good step")

    def update(self, is_finite: bool) -> float:
        """The scale of the next step, after one whose gradients were finite or not."""
        self.good = self.good + 1 if is_finite else 0
        if not is_finite:
            self.scale *= self.backoff
        elif self.good == self.interval:
            self.scale, self.good = self.scale * self.growth, 0
        return self.scale


@dataclass(frozen=True)
class Fate:
    """Of numbers other than 0, the shares that a format rounds to 0, holds with less than its full precision, holds
    well, and cannot hold because they are too large."""

    lost: float
    subnormal: float
    normal: float
    overflow: float


def fate(values: Tensor, dtype: torch.dtype = torch.float16, *, scale: float = 1.0) -> Fate:
    """What becomes of numbers, multiplied by `scale`, in a number format.

    Raises ValueError without a number other than 0, where one is no number, or for a scale that is not above 0.

    >>> fate(torch.tensor([1e-9, 1e-6, 1.0, 1e6]))
    Fate(lost=0.25, subnormal=0.25, normal=0.25, overflow=0.25)
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}: give a finite number above 0")
    size_N = values.detach().double().abs().flatten()
    if size_N.isnan().any():
        raise ValueError("values hold nan, which has no size: look at the loss of this step")
    size_N = size_N[size_N > 0] * scale
    if not len(size_N):
        raise ValueError("all values are 0: give the gradients of a step")
    held_N, smallest = size_N.to(dtype), torch.finfo(dtype).smallest_normal
    kinds = (held_N == 0, (held_N > 0) & (held_N < smallest), held_N >= smallest, held_N.isinf())
    lost, subnormal, at_least_normal, overflow = (float(kind.double().mean()) for kind in kinds)
    return Fate(lost, subnormal, at_least_normal - overflow, overflow)
