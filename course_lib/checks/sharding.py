"""The check of chapter 5's bytes of a rank: what FSDP2 leaves on it, counted from the shapes alone.

A wrong answer cuts the parameters otherwise, or keeps another part of what training holds.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from course_lib.checks.report import Wrong, described, invoke, plain_number

Shape = tuple[int, ...]
BytesOfRank = Callable[..., int]
BYTES = 4  # of a number in fp32
KINDS = 4  # weight, gradient, AdamW's two moments


def bytes_of_rank_reference(shapes: Sequence[Shape], *, world: int, rank: int) -> int:
    return KINDS * BYTES * sum(math.prod(shape[1:]) * chunk(shape[0], world, rank) for shape in shapes)


def chunk(n: int, world: int, rank: int) -> int:
    """Of n rows, those that `torch.chunk` gives to a rank.

    >>> [chunk(5, 4, rank) for rank in range(4)]
    [2, 2, 1, 0]
    """
    rows = math.ceil(n / world)
    return max(0, min(n, rows * (rank + 1)) - rows * rank)


@dataclass(frozen=True)
class Plan:
    """A model's shapes, and one of the ranks that share it."""

    title: str
    shapes: tuple[Shape, ...]
    world: int
    rank: int

    @property
    def wanted(self) -> int:
        return bytes_of_rank_reference(self.shapes, world=self.world, rank=self.rank)

    def in_words(self) -> dict[str, Any]:
        return {"shapes": self.title, "world": self.world, "rank": self.rank}


GPT2 = ((50257, 768), (1024, 768), (768, 2304), (2304,), (768, 768), (768,), (768, 3072), (3072,), (3072, 768))
MODELS: list[tuple[str, tuple[Shape, ...], int]] = [
    ("(6, 4), (8, 2, 3), (2,)", ((6, 4), (8, 2, 3), (2,)), 2),
    ("(7, 3), (5,), (10, 2, 3)", ((7, 3), (5,), (10, 2, 3)), 3),
    ("(2, 9), (1,), (3, 5)", ((2, 9), (1,), (3, 5)), 4),
    ("(5,), (6, 3)", ((5,), (6, 3)), 4),
    ("(3, 11)", ((3, 11),), 1),
    ("GPT-2's tables and the matrices and vectors of a block", GPT2, 8),
]
PLANS = [Plan(title, shapes, world, rank) for title, shapes, world in MODELS for rank in range(world)]

# --- what may be wrong ------------------------------------------------------------------------------------------------

Cut = Callable[[Shape, int, int], float]  # the numbers of a parameter that lie on a rank


def _along(axis: Callable[[Shape], int], share: Callable[[int, int, int], float]) -> Cut:
    """Cut along an axis into shares of its length."""

    def cut(shape: Shape, world: int, rank: int) -> float:
        place = axis(shape)
        return math.prod(shape) // shape[place] * share(shape[place], world, rank)

    return cut


def _rows(share: Callable[[int, int, int], float]) -> Cut:
    return _along(lambda shape: 0, share)


def _rest_to_the_last(n: int, world: int, rank: int) -> int:
    return n // world + (n % world if rank == world - 1 else 0)


def _rest_spread(n: int, world: int, rank: int) -> int:
    return n // world + (rank < n % world)


def _not_below_zero_forgotten(n: int, world: int, rank: int) -> int:
    rows = math.ceil(n / world)
    return min(rows, n - rows * rank)


def _whole(shape: Shape, world: int, rank: int) -> int:
    return math.prod(shape)


def _unless(is_spared: Callable[[Shape, int], bool]) -> Cut:
    """Some parameters are left whole."""
    return lambda shape, world, rank: (_whole if is_spared(shape, world) else _rows(chunk))(shape, world, rank)


WHOLE = "That is the whole model on each rank, as DDP keeps it: FSDP cuts every parameter, and a rank holds its pieces."
DIVIDED = (
    "All is divided by `world`, as if every parameter could be cut evenly: it is cut by whole rows, the first ranks "
    "get more of them and the last ones fewer."
)
FLAT = "A parameter is not flattened before it is cut: it is cut between its rows, and a row stays whole."
CUTS: list[tuple[str, Cut]] = [
    ("", _rows(chunk)),
    (WHOLE, _whole),
    (DIVIDED, lambda shape, world, rank: math.prod(shape) / world),
    (DIVIDED, _rows(lambda n, world, rank: n / world)),
    ("Vectors are cut, too: each rank holds its piece of them, and no copy of the whole.",
     _unless(lambda shape, world: len(shape) == 1)),
    ("A parameter whose rows do not divide evenly is cut as well, into uneven pieces: it is left whole here.",
     _unless(lambda shape, world: shape[0] % world != 0)),
    ("A parameter with fewer rows than there are ranks is cut as well, and some ranks get none of it: it is left whole "
     "here.", _unless(lambda shape, world: shape[0] < world)),
    ("The rows of a piece are rounded down, so that the rest lies nowhere: torch.chunk rounds up.",
     _rows(lambda n, world, rank: n // world)),
    ("The rest is given to the last rank: torch.chunk rounds the rows of a piece up, so that the last get fewer.",
     _rows(_rest_to_the_last)),
    ("The rest is spread evenly, one more row for each of the first ranks: torch.chunk gives each rank as many as the "
     "first one has, until none are left.", _rows(_rest_spread)),
    ("Each rank gets as many rows as the first one: there are not so many, the last ranks get fewer or none.",
     _rows(lambda n, world, rank: math.ceil(n / world))),
    ("A rank behind the last row gets a negative number: it holds nothing.", _rows(_not_below_zero_forgotten)),
    ("Ranks are counted from 0: this is what the rank before holds.",
     _rows(lambda n, world, rank: chunk(n, world, rank - 1) if rank else 0)),
    ("Ranks are counted from 0: this is what the rank behind holds.",
     _rows(lambda n, world, rank: chunk(n, world, rank + 1))),
    ("A parameter is cut along its last axis: FSDP2 cuts along the first.",
     _along(lambda shape: len(shape) - 1, chunk)),
    ("A parameter is cut along its longest axis: FSDP2 cuts along the first, whatever its length.",
     _along(lambda shape: shape.index(max(shape)), chunk)),
    (FLAT, lambda shape, world, rank: chunk(math.prod(shape), world, rank)),
    (FLAT, lambda shape, world, rank: math.ceil(math.prod(shape) / world)),
    (FLAT, lambda shape, world, rank: math.prod(shape) // world),
    ("The rows are counted and not what is in them: a row has as many numbers as the other axes say.",
     lambda shape, world, rank: chunk(shape[0], world, rank)),
]  # fmt: skip
HELD: list[tuple[str, int, int]] = [  # what to say, bytes of each number that is whole on a rank, of each that is cut
    ("", 0, 16),
    ("The weights are whole here and only gradients and moments are cut, which is ZeRO's second stage: FSDP cuts all "
     "four.", 4, 12),
    ("Weights and gradients are whole here and only the moments are cut, which is ZeRO's first stage: FSDP cuts all "
     "four.", 8, 8),
    ("AdamW's two moments are forgotten.", 0, 8),
    ("One of four is forgotten: weight, gradient, and AdamW's two moments.", 0, 12),
    ("The weights alone are counted: gradients and AdamW's two moments are cut and held like them.", 0, 4),
    ("Numbers are counted and not bytes, and each once: fp32 takes 4 bytes for each of weight, gradient and two "
     "moments.", 0, 1),
    ("Too many are counted: a number has a weight, a gradient and two moments.", 0, 20),
    ("The moments are counted in 64 bits: AdamW keeps them in the weights' format.", 0, 24),
]  # fmt: skip


def _in_one(plan: Plan, share: Callable[[int, int, int], float]) -> float:
    """All parameters as one, as the first FSDP flattened them."""
    return share(sum(math.prod(shape) for shape in plan.shapes), plan.world, plan.rank)


def mistakes() -> Iterator[tuple[str, Callable[[Plan], float]]]:
    """What to say of some mistakes at once, the fewest first, and the bytes that they give."""
    together = "All parameters are counted as one and cut: each is cut by itself, between its rows."
    for share in (chunk, lambda n, world, rank: math.ceil(n / world), lambda n, world, rank: n // world):
        yield together, lambda plan, share=share: 16 * _in_one(plan, share)
    for share in (
        lambda n, w, r: 16 * n // w,
        lambda n, w, r: math.ceil(16 * n / w),
        lambda n, w, r: round(16 * n / w),
    ):
        yield DIVIDED, lambda plan, share=share: _in_one(plan, share)
    ways = sorted(itertools.product(CUTS, HELD), key=lambda ways: sum(bool(cause) for cause, *_ in ways))
    for (cut_otherwise, cut), (held_otherwise, whole, each) in ways:

        def held(plan: Plan, cut: Cut = cut, whole: int = whole, each: int = each) -> float:
            where = plan.world, plan.rank
            return sum(whole * math.prod(shape) + each * cut(shape, *where) for shape in plan.shapes)

        yield " ".join(filter(None, (cut_otherwise, held_otherwise))), held


# --- the check --------------------------------------------------------------------------------------------------------


def verify_bytes_of_rank(function: BytesOfRank) -> str:
    """Compare every rank of some worlds. Raises Wrong or NotAttempted; says what was verified."""
    given = [_count(function, plan) for plan in PLANS]
    for plan, count in zip(PLANS, given, strict=True):
        if count != plan.wanted:
            cause = _cause(plan, given)
            raise Wrong(cause, **plan.in_words(), wanted=f"{plan.wanted:,}", given=described(count))
    for plan, count in zip(PLANS, given, strict=True):
        if not isinstance(count, int):
            cause = "The number is right, and a float: bytes are whole. / gives a float, // does not."
            raise Wrong(cause, **plan.in_words(), wanted=f"{plan.wanted:,}", given=described(count))
    return f"{len(PLANS)} ranks of {len(MODELS)} models; what the ranks hold adds up to each model"


def _count(function: BytesOfRank, plan: Plan) -> int | float:
    """The function's bytes. Raises Wrong if they are no plain number."""
    where = {"world": plan.world, "rank": plan.rank}
    given = invoke(function, list(plan.shapes), shown={"shapes": plan.title} | where, **where)
    shown = plan.in_words() | {"given": described(given)}
    return plain_number(given, shown, missing="is a return missing?")


def _cause(plan: Plan, given: Sequence[float]) -> str:
    """What to say of these answers, of which the one to `plan` is wrong."""
    for cause, count in mistakes():
        if all(math.isclose(number, count(plan), abs_tol=1e-3) for number, plan in zip(given, PLANS, strict=True)):
            return cause
    ours = [number for number, other in zip(given, PLANS, strict=True) if other.title == plan.title]
    if any(number < 0 for number in given):
        return "A rank holds a negative number of bytes: behind the last row there is nothing, so it holds 0."
    total = 16 * sum(math.prod(shape) for shape in plan.shapes)
    if sum(ours) != total:
        return (
            f"Over all ranks you count {sum(ours):,.10g} bytes, and the model has {total:,}: each row lies on one "
            "rank, and on one only."
        )
    return "The ranks' bytes add up to the model, and are shared out otherwise: which rows does each rank get?"
