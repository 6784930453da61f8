"""The check of chapter 5's loss scale: the largest power of two that fp16 bears, on gradients made to be miscounted."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from course_lib.checks.report import Wrong, call, described, number
from course_lib.runtime import seeded

PickLossScale = Callable[[list[Tensor]], float]
LARGEST = torch.finfo(torch.float16).max  # 65504
ROUNDS_UP = 65520.0  # half way to 65536, which fp16 has no more: from here on a number becomes inf
MANY = 100  # numbers, of which one, their mean, their norm and the like give different scales
OF_FP32 = 2.0**127  # the largest power of two in fp32


def loss_scale_reference(gradients: Sequence[Tensor]) -> float:
    largest = max(gradient.abs().max().item() for gradient in gradients)
    scale = 2.0 ** (16 - math.frexp(largest)[1])  # largest * scale lies between 32768 and 65536
    return scale if torch.tensor(largest * scale, dtype=torch.float64).half().isfinite() else scale / 2


@cache
def _ordinary(largest: float) -> tuple[Tensor, ...]:
    """A few tensors. The number of largest size stands in the third, far above the mean and far below the norm; most
    numbers there are 0, so that mean and spread differ."""
    rest = [0.21 * torch.randn(shape, generator=seeded(5, *shape)) for shape in ((6, 4), (3,), (64, 64), (2, 3, 2))]
    first, second, third, last = (part.clamp(-0.6, 0.6) * abs(largest) for part in rest)
    third *= torch.rand(third.shape, generator=seeded(6)) < 1 / 9
    third[40, 20] = largest
    return first / 100, second / 1000, third, last / 5


def cases() -> dict[str, list[Tensor]]:
    """Gradients by what is particular about them."""
    below = torch.nextafter(torch.tensor(ROUNDS_UP), torch.tensor(0.0)).item()
    return {
        "four tensors, the largest number in the third": [*_ordinary(45000 / 2**21)],
        "four tensors, the largest number is negative": [*_ordinary(-39000 / 2**18)],
        "a tensor of zeros, then 3 numbers": [torch.zeros(2, 2), torch.tensor([0.3, -0.1, 0.0])],
        "one number without an axis, a power of two": [torch.tensor(2.0**-12)],
        "all are negative": [torch.tensor([-0.02]), torch.tensor([[-0.7, -0.001]])],
        "65504 / 4096, and smaller": [torch.tensor([LARGEST / 4096, 1e-9])],
        "65512 / 1024, and smaller": [torch.tensor([-1e-5]), torch.tensor([65512 / 1024])],
        "the last number below 65520 in fp32, / 2": [torch.tensor([0.5, below / 2])],
        "65520 / 32, and smaller": [torch.tensor([1.0, -65520 / 32])],
        "65528 / 2**20, and smaller": [torch.tensor([[65528 / 2**20], [0.0]])],
        "numbers in the millions": [torch.tensor([3.1e6, -2e5]), torch.tensor([7.0])],
        "numbers around 1e-30": [torch.tensor([1e-30, -7e-31]), torch.tensor([[4e-33]])],
        "the smallest numbers that fp32 has": [torch.tensor([2.0**-149, 0.0]), torch.tensor([-3 * 2.0**-149])],
    }


# --- what may be wrong ------------------------------------------------------------------------------------------------

OUT_OF_FP32 = (
    "These gradients are so small that the scale lies beyond fp32, which ends at 2**128: a float32 tensor times such a "
    "scale is inf. Form the product in 64 bits (.double(), or Python's own numbers), then ask .half()."
)
BELOW_THE_BORDER = (
    "Twice as much is finite, too: {:.10g} lies above 65504, the largest number of fp16, and is rounded down to it. "
    "What overflows is not what is larger than 65504, but what is rounded up."
)
ON_THE_BORDER = (
    "{:.10g} becomes inf: fp16 ends at 65504, and from half way to the next number, 65536, a number is rounded up to "
    "what fp16 does not have."
)


def _statistics(gradients: Sequence[Tensor]) -> Iterator[tuple[str, float]]:
    """What to say of a mistake, and the number that it takes for the largest."""
    all_N = torch.cat([gradient.flatten() for gradient in gradients]).double()
    sizes = [gradient.abs().max().item() for gradient in gradients]
    yield (
        "The sign is in the way: the largest number here is negative, and as large as any. Take absolute values first.",
        all_N.max().item(),
    )
    yield "Only the first tensor is looked at: the largest number stands in another.", sizes[0]
    yield "Only the last tensor is looked at: the largest number stands in another.", sizes[-1]
    yield "The tensor with the smallest numbers decides: the one with the largest must.", min(filter(None, sizes))
    yield (
        "The mean decides, and what is larger than it overflows: the largest number must.",
        all_N.abs().mean().item(),
    )
    for norm in (all_N.norm().item(), max(gradient.norm().item() for gradient in gradients)):
        yield "The norm decides, which is larger than any of the numbers: the largest of them must.", norm
    for spread in (all_N.std().item(), all_N.square().mean().sqrt().item()):
        yield "The spread decides, and what is larger than it overflows: the largest number must.", spread
    yield "The sum decides: each number is rounded by itself, so the largest must.", all_N.abs().sum().item()
    yield (
        "The smallest number decides, and the others overflow: the largest must.",
        all_N.abs()[all_N != 0].min().item(),
    )


def _cause(given: float, wanted: float, gradients: Sequence[Tensor]) -> str:
    largest = max(gradient.abs().max().item() for gradient in gradients)
    if given == math.log2(wanted):
        return "That is the exponent k: the scale is 2.0**k."
    if not (math.isfinite(given) and given > 0):
        return OUT_OF_FP32 if wanted > OF_FP32 else "A scale is a finite number above 0."
    if math.frexp(given)[0] != 0.5:
        return _cause_of_another_number(given, largest)
    if given == 1 / wanted:
        return "That is its inverse: the gradients are multiplied by the scale."
    if wanted > OF_FP32 >= given:
        return OUT_OF_FP32
    statistics = _statistics(gradients) if sum(map(Tensor.numel, gradients)) > MANY else ()
    for cause, taken in statistics:
        if 0 < taken != largest and given == loss_scale_reference([torch.tensor(taken, dtype=torch.float64)]):
            return cause
    if wanted < 1 <= given:
        return "A gradient above 65504 takes a scale below 1, so that k is negative: where does the search begin?"
    return _cause_of_a_power(given, wanted, largest)


def _cause_of_another_number(given: float, largest: float) -> str:
    if any(math.isclose(given * largest, limit, rel_tol=1e-3) for limit in (LARGEST, 65536)):
        return (
            "That is the quotient itself, and no power of two: multiplying by it rounds every gradient anew, while a "
            "power of two changes the exponent alone. Go down to the next one."
        )
    return "That is no power of two: multiplying by it rounds every gradient anew."


def _cause_of_a_power(given: float, wanted: float, largest: float) -> str:
    apart = round(math.log2(given) - math.log2(wanted))
    if apart > 0:
        product = largest * given
        if product < 65536:
            return ON_THE_BORDER.format(product)
        steps = "One power of two" if apart == 1 else f"{apart} powers of two"
        return f"{steps} too large: {product:.6g} does not fit into fp16, which ends at 65504."
    if given in (1.0, 2.0**15, 2.0**16):
        return f"The search never goes above 2**{round(math.log2(given))}: larger scales are finite here, too."
    if apart == -1 and largest * wanted > LARGEST:
        return BELOW_THE_BORDER.format(largest * wanted)
    if apart == -1:
        return (
            f"One power of two too small: with the next one the largest number is {largest * wanted:.6g}, which fits."
        )
    return f"{-apart} powers of two too small: with this scale the largest number is only {largest * given:.6g}."


# --- the check --------------------------------------------------------------------------------------------------------


def verify_pick_loss_scale(function: PickLossScale) -> str:
    """Compare scales. Raises Wrong or NotAttempted; says what was verified."""
    for title, gradients in cases().items():
        wanted = loss_scale_reference(gradients)
        shown = {"gradients": title}
        given = call(function, gradients=gradients)
        scale = number(given, "The scale", **shown)
        if scale != wanted:
            raise Wrong(_cause(scale, wanted, gradients), **shown, wanted=_in_words(wanted), given=_in_words(given))
    return f"the exact power for {len(cases())} lists of gradients, at both sides of every border of fp16"


def _in_words(scale: Any) -> str:
    fraction, exponent = math.frexp(scale)
    return f"2**{exponent - 1}" if fraction == 0.5 else described(scale)
