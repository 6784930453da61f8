"""What the check of chapter 5's accumulated step is made of: steps of several ranks, and what may be wrong.

Each step knows its micro-batches' gradients one by one. A wrong answer weighs them otherwise than the right one, and
the weights tell how.    Axes: R rank, M micro-batch of a rank.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from course_lib import objectives
from course_lib.checks.stepping import Alone
from course_lib.checks.tiny import tiny_decoder
from course_lib.model import LanguageModel
from course_lib.objectives import Batch
from course_lib.runtime import seeded
from course_lib.vocabulary import Vocabulary

VOCABULARY = Vocabulary(40, pad=0)

# --- the steps --------------------------------------------------------------------------------------------------------


@cache
def tiny_model() -> LanguageModel:
    """The model of all steps, without gradients."""
    return tiny_decoder(shaken=True)


class Step:
    """A step of some ranks: the micro-batches of each, and what each micro-batch gives by itself.

    loss_RM, count_RM, gradient_RM: of the summed loss of micro-batch M of rank R. tokens_R: that its rank reads.
    """

    def __init__(self, title: str, lengths: Sequence[Sequence[Sequence[int]]]) -> None:
        self.title, self.world = title, len(lengths)
        self.ranks = [
            [_batch(rank, place, rows) for place, rows in enumerate(micro_batches)]
            for rank, micro_batches in enumerate(lengths)
        ]
        alone = [Alone(tiny_model(), micro_batches) for micro_batches in self.ranks]
        self.loss_RM = [of_rank.losses for of_rank in alone]
        self.count_RM = [of_rank.counts for of_rank in alone]
        self.gradient_RM = [of_rank.gradients for of_rank in alone]
        self.tokens_R = [sum(batch.input_ids_BT.numel() for batch in batches) for batches in self.ranks]
        self.targets = sum(map(sum, self.count_RM))
        self.loss = sum(map(sum, self.loss_RM)) / self.targets
        self.gradient = self.weighted(lambda rank, place: self.world / self.targets)

    def weighted(self, weight: Callable[[int, int], float]) -> Tensor:
        """The average over the ranks, where each micro-batch's gradient enters with a weight."""
        parts = [
            weight(rank, place) * gradient
            for rank, gradients in enumerate(self.gradient_RM)
            for place, gradient in enumerate(gradients)
        ]
        return sum(parts) / self.world

    def in_words(self) -> dict[str, Any]:
        counts = [", ".join(map(str, counts)) for counts in self.count_RM]
        return {"world": self.world, "targets": "; ".join(f"rank {r}: {said}" for r, said in enumerate(counts))}


def _batch(rank: int, place: int, lengths: Sequence[int]) -> Batch:
    """Rows of these lengths, padded; a row of n tokens has n - 1 targets."""
    ids_BT = torch.randint(1, 40, (len(lengths), max(lengths)), generator=seeded(3, rank, place, *lengths))
    ids_BT[torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]] = VOCABULARY.pad
    return objectives.causal(ids_BT, VOCABULARY)


@cache
def steps() -> tuple[Step, ...]:
    return (
        Step("one rank", [[(4, 3), (2,), (3,)]]),
        Step("two ranks", [[(7,), (3, 3)], [(2, 1), (3,)]]),
        Step("three ranks with unequal numbers of micro-batches", [[(5, 4)], [(3,), (6, 2), (2,)], [(2,), (4,)]]),
        Step("a micro-batch without a target", [[(6,), (1,), (3,)], [(2,), (5, 1), (2,)]]),
        Step("a rank without a target", [[(5,), (3,)], [(1,), (1, 1)]]),
    )


# --- what may be wrong ------------------------------------------------------------------------------------------------

Divisor = tuple[str, bool, Callable[[Step, int, int], float]]  # what to say, whether all ranks share it, by which

MEAN_OF_MEANS = (
    "That is a mean of means over the micro-batches: a target in a short one weighs more. Divide every sum by the same "
    "number, that of all targets of the step."
)
OWN_COUNT = (
    "Each rank is divided by its own number of targets, which is a mean of means over the ranks: a target on a rank "
    "with few weighs more. How many do all ranks have together?"
)
NOT_DIVIDED = "The sum is not divided: divide it by the number of targets of the whole step."
BY_MICRO_BATCHES = "It is divided by a number of micro-batches: a step has one loss per target, so count the targets."
BY_TOKENS = "It is divided by the number of tokens read: those that nothing is predicted at are no targets."
DIVISORS: list[Divisor] = [
    ("", True, lambda step, r, m: step.targets),
    (OWN_COUNT, False, lambda step, r, m: sum(step.count_RM[r])),
    (MEAN_OF_MEANS, False, lambda step, r, m: step.count_RM[r][m] * len(step.count_RM[r])),
    ("The means of the micro-batches are added up: sum over all targets, and divide once.",
     False, lambda step, r, m: step.count_RM[r][m]),
    (NOT_DIVIDED, False, lambda step, r, m: 1),
    (BY_MICRO_BATCHES, False, lambda step, r, m: len(step.count_RM[r])),
    (BY_MICRO_BATCHES, True, lambda step, r, m: sum(map(len, step.count_RM))),
    (BY_TOKENS, True, lambda step, r, m: sum(step.tokens_R)),
    (BY_TOKENS, False, lambda step, r, m: step.tokens_R[r]),
    ("All is divided by the last micro-batch's number of targets alone: count those of each.",
     False, lambda step, r, m: step.count_RM[r][-1]),
]  # fmt: skip
FACTORS: list[tuple[str, Callable[[int], float]]] = [
    ("", lambda world: world),
    ("The factor `world` is forgotten: averaging over the ranks divides once more, so that all is `world` times too "
     "small.", lambda world: 1),
    ("All is `world` squared times too small: the caller divides by `world` already, so multiply by it and do not "
     "divide.", lambda world: 1 / world),
    ("All is `world` times too large: `world` enters twice.", lambda world: world**2),
]  # fmt: skip
KEPT: list[tuple[str, Callable[[int, int], bool]]] = [
    ("", lambda place, last: True),
    ("Only the last micro-batch's gradient is left: are gradients zeroed between the micro-batches, or is backward "
     "called behind the loop?", lambda place, last: place == last),
    ("Only the first micro-batch is in it: does the loop end too early?", lambda place, last: place == 0),
]  # fmt: skip
BOTH = "The gradients are right, and the loss that is given back is "


def mistaken_gradients(step: Step) -> Iterator[tuple[str, Tensor]]:
    """What to say of some mistakes at once, the fewest first, and the averaged gradient that they give."""
    ways = itertools.product(KEPT, DIVISORS, FACTORS)
    for (left_out, keeps), (divided, is_shared, divisor), (times, factor) in sorted(ways, key=_mistakes_at_once):
        causes = [left_out, divided, times if is_shared else ""]
        weight = partial(_weight, step, keeps, divisor, factor(step.world))
        yield " ".join(filter(None, causes)), step.weighted(weight)


def _weight(step: Step, keeps: Callable, divisor: Callable, factor: float, rank: int, place: int) -> float:
    by = divisor(step, rank, place)
    return factor / by if by and keeps(place, len(step.ranks[rank]) - 1) else 0.0


def _mistakes_at_once(ways: tuple[tuple, tuple, tuple]) -> int:
    return sum(bool(cause) for cause, *_ in ways)


def mistaken_losses(step: Step, rank: int) -> Iterator[tuple[str, float]]:
    """What to say of a mistake, and the loss that a rank gives back with it."""
    sums, counts = step.loss_RM[rank], step.count_RM[rank]
    for alone in (sum(sums) / (sum(counts) or 1), sum(sums) / step.targets, sum(sums) / step.targets * step.world):
        yield f"{BOTH}this rank's alone: sum it over all ranks as well.", alone
    for mean_R in _means(step):
        for of_means in (sum(mean_R) / step.world, mean_R[rank]):
            yield f"{BOTH}a mean of means: sum over all targets, and divide once.", of_means
        yield f"{BOTH}the ranks' means added up: sum over all targets, and divide once.", sum(mean_R)
    added = sum(loss / (count or 1) for loss, count in zip(sums, counts, strict=True))
    yield f"{BOTH}the micro-batches' means added up: sum over all targets, and divide once.", added
    for undivided in (sum(sums), step.loss * step.targets):
        yield f"{BOTH}the sum: divide it by the number of targets.", undivided
    for times in (step.world, 1 / step.world):
        cause = f"{BOTH}{times:.3g} times the right one: `world` makes up for averaging, and nobody averages the loss."
        yield cause, step.loss * times
    of_all = sum(of_rank[-1] for of_rank in step.loss_RM)
    for last in (sums[-1] / step.targets, sums[-1] / (counts[-1] or 1), of_all / step.targets):
        yield f"{BOTH}the last micro-batch's alone: add up all of them.", last


def _means(step: Step) -> tuple[list[float], list[float]]:
    """Each rank's loss per target of its own, and the mean of those of its micro-batches."""
    by_rank = list(zip(step.loss_RM, step.count_RM, strict=True))
    own_R = [sum(sums) / (sum(counts) or 1) for sums, counts in by_rank]
    mean_RM = [[loss / (count or 1) for loss, count in zip(*of_rank, strict=True)] for of_rank in by_rank]
    return own_R, [sum(mean_M) / len(mean_M) for mean_M in mean_RM]
