"""Checks of chapter 3 that look at LoRA: the forward pass beside a frozen layer, and the merge into its weight.

Axes: N token, I channel in, O channel out, R the rank.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.checks.report import Wrong
from course_lib.checks.tensors import as_wanted, difference, hand_over, in_words, judge_gradients, near
from course_lib.runtime import seeded

LoraForward = Callable[..., Tensor]
MergeLora = Callable[..., Tensor]


def lora_reference(
    x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor, A_RI: Tensor, B_OR: Tensor, *, alpha: float
) -> Tensor:
    return F.linear(x_NI, weight_OI, bias_O) + (alpha / len(A_RI)) * F.linear(F.linear(x_NI, A_RI), B_OR)


def merge_reference(weight_OI: Tensor, A_RI: Tensor, B_OR: Tensor, *, alpha: float) -> Tensor:
    return weight_OI + (alpha / len(A_RI)) * (B_OR @ A_RI)


@dataclass(frozen=True)
class Layer:
    """A linear layer with an update beside it, and what it reads."""

    title: str
    x: Tensor
    weight: Tensor
    bias: Tensor
    A: Tensor
    B: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.A)

    def tensors(self, *names: str) -> dict[str, Tensor]:
        """By the names of an exercise's arguments, of which these parts are wanted."""
        said = {"x": "x_NI", "weight": "weight_OI", "bias": "bias_O", "A": "A_RI", "B": "B_OR"}
        return {said[name]: getattr(self, name) for name in names}


def layers() -> list[Layer]:
    """What the checks hand over. The first is square in every way, so that nothing wrong stops with an error there; in
    the second every axis has another length."""

    def layer(
        title: str, n: Sequence[int], i: int, o: int, rank: int, alpha: float, dtype: torch.dtype = torch.float32
    ) -> Layer:
        def whole(seed: int, *shape: int) -> Tensor:
            return torch.randint(-4, 5, shape, generator=seeded(seed, i, o, rank)).to(dtype)

        return Layer(title, whole(1, *n, i), whole(2, o, i), whole(3, o), whole(4, rank, i), whole(5, o, rank), alpha)

    fresh = layer("a fresh update (B all zeros)", [4], 5, 6, 2, 16)
    fresh.B.zero_()
    return [
        layer("everything 3 wide", [3], 3, 3, 3, 10),
        layer("a wide layer", [2], 3, 5, 2, 7),
        layer("in and out equal", [2], 4, 4, 2, 9.0),
        layer("a narrow layer", [3], 7, 2, 1, 4.5),
        layer("float64", [2], 4, 3, 2, 5, torch.float64),
        fresh,
        layer("two axes before the channels", [2, 3], 5, 7, 3, 8),
        layer("three axes before the channels", [2, 1, 4], 6, 6, 4, 6),
    ]


# --- what may be wrong: a base, an update, a scale --------------------------------------------------------------------

Piece = tuple[str, Callable[[Layer], Any]]  # what to say of it ("" of the right one), and how it computes

SCALES: list[Piece] = [
    ("", lambda c: c.alpha / c.rank),
    ("The update is not scaled: alpha and rank say by how much.", lambda c: 1.0),
    ("The update is scaled by alpha alone: the rank divides it, so that alpha means the same at every rank.",
     lambda c: c.alpha),
    ("The scale is upside down: it is rank over alpha.", lambda c: c.rank / c.alpha),
    ("alpha is forgotten: the update is scaled by 1 / rank.", lambda c: 1.0 / c.rank),
    ("The root of the rank divides alpha: that is rank-stabilised LoRA (arXiv:2312.03732). Here the rank itself does.",
     lambda c: c.alpha / c.rank**0.5),
    ("The scale is divided by the channels that come in: the rank is the other axis of A.",
     lambda c: c.alpha / c.A.shape[1]),
    ("The scale is divided by the channels that go out: the rank is the other axis of B.",
     lambda c: c.alpha / c.B.shape[0]),
    ("The rank multiplies alpha: it should divide it.", lambda c: c.alpha * c.rank),
    ("The scale is in it twice: once is enough, for A and B carry none themselves.", lambda c: (c.alpha / c.rank) ** 2),
    ("The update is added twice.", lambda c: 2 * c.alpha / c.rank),
    ("The fraction is lost: // divides whole numbers, / gives shares.", lambda c: c.alpha // c.rank),
    ("The update is subtracted.", lambda c: -c.alpha / c.rank),
]  # fmt: skip
FROM_THE_LEFT = " multiplied from the left, which mixes the tokens: x holds a token in each row."
SCALED_BASE = "The scale multiplies the {} as well: it belongs to the update alone."
BASES: list[Piece] = [
    ("", lambda c: F.linear(c.x, c.weight, c.bias)),
    ("The bias is missing: the frozen layer adds it.", lambda c: F.linear(c.x, c.weight)),
    ("The bias is added twice.", lambda c: F.linear(c.x, c.weight, 2 * c.bias)),
    ("The base's output is missing: only the update is there.", lambda c: 0.0),
    ("The base's output is missing, but for its bias.", lambda c: c.bias),
    ("The base's output is in it twice.", lambda c: 2 * F.linear(c.x, c.weight, c.bias)),
    ("The base's output is in it twice (the bias once).", lambda c: F.linear(c.x, 2 * c.weight, c.bias)),
    (SCALED_BASE.format("base"), lambda c: c.alpha / c.rank * F.linear(c.x, c.weight, c.bias)),
    (SCALED_BASE.format("base"), lambda c: F.linear(c.x, c.alpha / c.rank * c.weight, c.bias)),
    (SCALED_BASE.format("bias"), lambda c: F.linear(c.x, c.weight, c.alpha / c.rank * c.bias)),
    ("The weight is the wrong way round: it is [out, in], as torch's Linear holds it.",
     lambda c: c.x @ c.weight + c.bias),
    (f"The weight is{FROM_THE_LEFT}", lambda c: c.weight @ c.x + c.bias),
]  # fmt: skip
EXCHANGED = "A and B are exchanged: A comes first and narrows to the rank, B widens to the channels out."
ROUND = "wrong way round: A is [rank, in] and B is [out, rank], as torch's Linear holds a weight."
THROUGH = "Something non-linear stands between A and B: LoRA has nothing there, or it could not be merged."
UPDATES: list[Piece] = [
    ("", lambda c: F.linear(F.linear(c.x, c.A), c.B)),
    ("The update is missing: that is the frozen layer alone.", lambda c: 0.0),
    (EXCHANGED, lambda c: F.linear(F.linear(c.x, c.B), c.A)),
    ("The product of A and B is transposed: it is [out, in], as the weight is.", lambda c: c.x @ c.B @ c.A),
    (f"A and B are the {ROUND}", lambda c: c.x @ c.A @ c.B),
    (f"A is the {ROUND}", lambda c: c.x @ c.A @ c.B.T),
    (f"B is the {ROUND}", lambda c: c.x @ c.A.T @ c.B),
    ("The update is added to x and goes through the weight as well: add it to the output.",
     lambda c: F.linear(F.linear(F.linear(c.x, c.A), c.B), c.weight)),
    ("The update reads what the layer gives back: it stands beside the layer and reads x.",
     lambda c: F.linear(F.linear(F.linear(c.x, c.weight, c.bias), c.A), c.B)),
    (f"A and B are{FROM_THE_LEFT}", lambda c: c.B @ c.A @ c.x),
    ("B is missing in the update.", lambda c: F.linear(c.x, c.A)),
    ("A is missing in the update.", lambda c: F.linear(c.x, c.B)),
    (THROUGH, lambda c: F.linear(F.linear(c.x, c.A).relu(), c.B)),
    (THROUGH, lambda c: F.linear(F.gelu(F.linear(c.x, c.A)), c.B)),
    (THROUGH, lambda c: F.linear(F.linear(c.x, c.A).tanh(), c.B)),
]  # fmt: skip
MERGED_SCALE = "The scale multiplies the weight as well: it belongs to the update alone."
WEIGHTS: list[Piece] = [
    ("", lambda c: c.weight),
    ("The weight is missing: that is the update alone.", lambda c: 0.0),
    (MERGED_SCALE, lambda c: c.alpha / c.rank * c.weight),
    ("The weight is in it twice.", lambda c: 2 * c.weight),
    ("The weight is transposed.", lambda c: c.weight.T),
]
DELTAS: list[Piece] = [
    ("", lambda c: c.B @ c.A),
    ("The update is missing: that is the weight as it was.", lambda c: 0.0),
    ("The update is transposed: it is [in, out] and should be [out, in]. In a square layer no error says so.",
     lambda c: (c.B @ c.A).T),
    ("A and B are multiplied in the wrong order: A reads x first, so it stands at the right.", lambda c: c.A @ c.B),
    ("A and B are multiplied in the wrong order, and transposed.", lambda c: (c.A @ c.B).T),
    (f"A is the {ROUND}", lambda c: c.B @ c.A.T),
    (f"B is the {ROUND}", lambda c: c.B.T @ c.A),
    ("A and B are multiplied number by number: * is not the product of matrices.", lambda c: c.B * c.A),
]  # fmt: skip


def explained(given: Tensor, case: Layer, bases: Sequence[Piece], updates: Sequence[Piece]) -> str | None:
    """The mistakes that give exactly this, the fewest at once; None if there are none such."""
    tables = [[(cause, _computed(piece, case)) for cause, piece in table] for table in (bases, updates, SCALES)]
    tables = [[(cause, value) for cause, value in table if value is not None] for table in tables]
    for ways in sorted(itertools.product(*tables), key=lambda ways: sum(bool(cause) for cause, _ in ways)):
        (_, base), (_, update), (_, scale) = ways
        if near(given, torch.zeros_like(given) + base + scale * update):
            return " ".join(cause for cause, _ in ways if cause)
    return _measured(given - tables[0][0][1], tables[1][0][1], case)


def _computed(piece: Callable[[Layer], Any], case: Layer) -> Any:
    """What a piece gives; None where the shapes do not fit it."""
    try:
        return piece(case)
    except RuntimeError:
        return None


def _measured(rest: Tensor, update: Tensor, case: Layer) -> str | None:
    """What to say where only the scale is wrong, and no usual mistake explains it."""
    scale = ((rest * update).sum() / update.square().sum()).item()
    if not near(rest, scale * update):
        return None
    return f"With alpha {case.alpha} and rank {case.rank} the update is scaled by {scale:.4g}: how do both enter?"


# --- the two checks ---------------------------------------------------------------------------------------------------

MATRICES = "A is [rank, in], B [out, rank] and the weight [out, in]: which axis meets which?"
MORE_AXES = "x has more axes before its channels here: only the last axis is multiplied, the others stay."


def verify_lora_forward(function: LoraForward) -> str:
    """Compare values and gradients. Raises Wrong or NotAttempted; says what was verified."""
    cases = layers()
    for case in cases:
        tensors = case.tensors("x", "weight", "bias", "A", "B")
        wanted = lora_reference(*tensors.values(), alpha=case.alpha)
        given = _given(function, tensors, case, MORE_AXES if case.x.dim() > 2 else f"x is [..., in]. {MATRICES}")
        if isinstance(given, Tensor) and given.dim() == 2 < wanted.dim() and given.numel() == wanted.numel():
            shapes = {"x_NI": case.x, "wanted": wanted, "given": given}
            cause = "The axes before the channels were flattened and are lost: only the last axis may change."
            raise Wrong(cause, **{name: f"shape {tuple(value.shape)}" for name, value in shapes.items()})
        _judge(given, wanted, "The output", tensors, case, BASES, UPDATES)
    tensors = cases[1].tensors("x", "weight", "bias", "A", "B")
    judge_gradients(function, lora_reference, tensors, ("x_NI", "A_RI", "B_OR"), alpha=cases[1].alpha)
    return f"values on {len(cases)} layers: {_titles(cases)}; gradients to x, A and B"


def verify_merge_lora(function: MergeLora) -> str:
    """Compare weights. Raises Wrong or NotAttempted; says what was verified."""
    cases = [case for case in layers() if case.x.dim() == 2]
    for case in cases:
        tensors = case.tensors("weight", "A", "B")
        wanted = merge_reference(*tensors.values(), alpha=case.alpha)
        given = _given(function, tensors, case, MATRICES)
        _judge(given, wanted, "The merged weight", tensors, case, WEIGHTS, DELTAS)
    return f"the weights of {len(cases)} layers: {_titles(cases)}; those handed in are as they were"


def _given(function: Callable[..., Any], tensors: Mapping[str, Tensor], case: Layer, hint: str) -> Any:
    """What the function gives back; a crash over shapes with a hint."""
    try:
        return hand_over(function, tensors, alpha=case.alpha)
    except Wrong as wrong:
        if "RuntimeError" not in wrong.cause or "dtype" in wrong.cause:
            raise
        raise Wrong(f"{wrong.cause.rstrip('.')}. {hint}", **wrong.evidence) from None


def _judge(
    given: Any,
    wanted: Tensor,
    name: str,
    tensors: Mapping[str, Tensor],
    case: Layer,
    bases: Sequence[Piece],
    updates: Sequence[Piece],
) -> None:
    """Raises Wrong unless what is given is what is wanted."""
    evidence = in_words(tensors) | {"alpha": case.alpha}
    given = as_wanted(given, name, wanted, **evidence)
    if not near(given, wanted):
        cause = explained(given, case, bases, updates) or (
            "It is none of the usual mistakes: compute the base by itself, the update by itself, and compare each."
        )
        raise Wrong(cause, **evidence, **difference(given, wanted))


def _titles(cases: Iterable[Layer]) -> str:
    return ", ".join(case.title for case in cases)
