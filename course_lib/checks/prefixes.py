"""The check of chapter 3's prefix attention: keys and values before those of the text, seen by everyone.

Axes: B row of the batch, H head, Q position that looks, K position that is looked at, P position in the prefix,
D channel of a head.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.checks.report import Wrong
from course_lib.checks.tensors import as_wanted, difference, hand_over, judge_gradients, near
from course_lib.layers import attend, extend
from course_lib.runtime import seeded

PrefixAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Case = dict[str, Tensor]  # the arguments by their names
TRAINED = ("q_BHQD", "k_BHKD", "v_BHKD", "prefix_k_HPD", "prefix_v_HPD")


def prefix_reference(
    q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, prefix_k_HPD: Tensor, prefix_v_HPD: Tensor, may_attend_BQK: Tensor
) -> Tensor:
    earlier = tuple(part_HPD.expand(len(q_BHQD), -1, -1, -1) for part_HPD in (prefix_k_HPD, prefix_v_HPD))
    may_attend_BQK = F.pad(may_attend_BQK, (prefix_k_HPD.shape[1], 0), value=True)
    return attend(q_BHQD, *extend(earlier, k_BHKD, v_BHKD), may_attend_BQK)


def cases() -> dict[str, Case]:
    """What the check hands over, by what a verdict calls it. In the first, rows are as many as heads, and the prefix is
    as long as the text, so that little that is wrong stops with an error."""
    found = {
        "rows as many as heads, prefix as long as the text": _case(1, 2, 2, 3, 3, 3, 4),
        "a short prefix": _case(2, 3, 2, 4, 6, 2, 5),
        "a long prefix, one row": _case(3, 1, 3, 2, 2, 7, 4),
        "a query that may look at no text": _case(4, 2, 2, 3, 4, 2, 4),
        "scores far below 0": _case(5, 2, 1, 3, 5, 2, 4),
        "float64": {n: t.double() if t.is_floating_point() else t for n, t in _case(6, 2, 2, 3, 5, 1, 4).items()},
    }
    found["a query that may look at no text"]["may_attend_BQK"][:, 1] = False
    below = found["scores far below 0"]  # where a masked score must lie further below
    below |= {name: below[name].abs() for name in ("k_BHKD", "prefix_k_HPD")} | {"q_BHQD": -200 * below["q_BHQD"].abs()}
    return found


def _case(seed: int, rows: int, heads: int, queries: int, keys: int, prefix: int, channels: int) -> Case:
    """The first row looks back only, the others both ways and not at their last position, which is padding."""
    text, before = (rows, heads, keys, channels), (heads, prefix, channels)
    shapes = [(rows, heads, queries, channels), text, text, before, before]
    drawn = [1.25 * torch.randn(shape, generator=seeded(seed, n)) for n, shape in enumerate(shapes)]
    may_attend_BQK = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).repeat(rows, 1, 1)
    may_attend_BQK[1:] = torch.arange(keys) < keys - 1
    return dict(zip(TRAINED, drawn, strict=True)) | {"may_attend_BQK": may_attend_BQK}


def verify_prefix_attention(function: PrefixAttention) -> str:
    """Compare values and gradients. Raises Wrong or NotAttempted; says what was verified."""
    tried = cases()
    for title, case in tried.items():
        wanted = prefix_reference(*case.values())
        evidence = {"case": title, "shapes": _shapes(case)}
        given = _given(function, case, evidence)
        if isinstance(given, Tensor) and given.shape != wanted.shape and (cause := _shape_cause(given, case)):
            raise Wrong(cause, **evidence, wanted=f"shape {tuple(wanted.shape)}", given=f"shape {tuple(given.shape)}")
        given = as_wanted(given, "The output", wanted, **evidence)
        if not near(given, wanted):
            raise Wrong(_value_cause(given, case, title), **evidence, **difference(given, wanted))
    judge_gradients(function, prefix_reference, tried["a short prefix"], TRAINED)
    return f"values in {len(tried)} cases: {'; '.join(tried)}; gradients to all but the mask"


def _given(function: PrefixAttention, case: Case, evidence: dict[str, Any]) -> Any:
    """What the function gives back; a crash over shapes with a hint."""
    try:
        return hand_over(function, case)
    except Wrong as wrong:
        if "RuntimeError" not in wrong.cause or "dtype" in wrong.cause:
            raise
        hint = (
            "The prefix lacks the axis of the batch and is more positions to look at: which axis are these, in keys, "
            "values, and may_attend?"
        )
        at = {"at": wrong.evidence["at"]} if "at" in wrong.evidence else {}
        raise Wrong(f"{wrong.cause.rstrip('.')}. {hint}", **evidence, **at) from None


def _shapes(case: Case) -> str:
    rows, heads, queries, channels = case["q_BHQD"].shape
    sizes = {"B": rows, "H": heads, "Q": queries, "K": case["k_BHKD"].shape[2], "P": case["prefix_k_HPD"].shape[1]}
    return ", ".join(f"{axis} {size}" for axis, size in (sizes | {"D": channels}).items())


def _shape_cause(given: Tensor, case: Case) -> str | None:
    rows, heads, queries, channels = case["q_BHQD"].shape
    keys, prefix = case["k_BHKD"].shape[2], case["prefix_k_HPD"].shape[1]
    shape = tuple(given.shape)
    if shape == (rows, queries, heads * channels):
        return "The heads are merged already: that comes afterwards, here they stay apart."
    if shape == (rows, queries, heads, channels):
        return "Heads and positions are exchanged: [batch, head, position, channel] goes in and comes out."
    if shape in ((rows, heads, queries, keys + prefix), (rows, heads, queries, keys)):
        return "Those are the weights of attention: they mix the values, and the mixture is asked for."
    if shape == (rows, heads, queries + prefix, channels):
        return "The prefix has positions in the output as well: it is looked at, and has no queries of its own."
    return None


# --- what may be wrong ------------------------------------------------------------------------------------------------

Mistake = tuple[str, Callable[[], Tensor]]  # what to say of it, and how it computes


def _value_cause(given: Tensor, case: Case, title: str) -> str:
    if not given.isfinite().all():
        if "no text" in title:
            return "The result is not finite for a query that may look at no text: it still sees the prefix."
        if "far below" in title:
            return (
                "The scores are in the hundreds, where exp under- or overflows: softmax() subtracts the largest first."
            )
        return "The result is not finite: did softmax get a row in which everything is masked?"
    if "no text" in title:
        return "Right until a query may look at no text: it still sees the prefix, and nothing else."
    if "far below" in title:
        return "Right until scores lie far below 0: what marks a masked score must be lower than any, as -inf is."
    for cause, mistaken in _mistakes(case):
        try:
            if near(given, mistaken()):
                return cause
        except RuntimeError:  # this mistake needs other shapes
            continue
    return (
        "It is none of the usual mistakes: look at a single query, and at the weight that each position of prefix and "
        "text gets from it."
    )


class Joined:
    """A case with prefix and text joined as they should be, from which mistakes are made."""

    def __init__(self, case: Case) -> None:
        self.q, self.k, self.v, prefix_k, prefix_v, self.may_attend = case.values()
        self.prefix = prefix_k, prefix_v
        self.earlier = tuple(part_HPD.expand(len(self.q), -1, -1, -1) for part_HPD in self.prefix)
        self.keys, self.values = extend(self.earlier, self.k, self.v)
        self.seen = F.pad(self.may_attend, (prefix_k.shape[1], 0), value=True)

    def attend(self, *, divisor: float | None = None, over: int = -1, **other: Tensor) -> Tensor:
        """Attention with other keys, values or seen than the right ones, divided by something else, or with the softmax
        over another axis."""
        keys, values, seen = (other.get(name, getattr(self, name)) for name in ("keys", "values", "seen"))
        seen_BHQK = seen[:, None] if seen.dim() == 3 else seen
        scores_BHQK = self.q @ keys.mT / (divisor or math.sqrt(self.q.shape[-1]))
        scores_BHQK = scores_BHQK.masked_fill(~seen_BHQK, torch.finfo(scores_BHQK.dtype).min)
        return scores_BHQK.softmax(over) @ values

    def text_alone(self) -> Tensor:
        return self.attend(keys=self.k, values=self.v, seen=self.may_attend)


def _mistakes(case: Case) -> Iterator[Mistake]:
    joined = Joined(case)
    for some in (_mistakes_of_order, _mistakes_of_joining, _mistakes_of_softmax, _mistakes_of_sight, _mistakes_of_rows):
        yield from some(joined)


def _mistakes_of_order(c: Joined) -> Iterator[Mistake]:
    keys, values = (torch.cat(parts, 2) for parts in ((c.k, c.earlier[0]), (c.v, c.earlier[1])))
    seen = F.pad(c.may_attend, (0, c.prefix[0].shape[1]), value=True)
    pairing = "may_attend is extended at the other end than keys and values: the prefix is masked as if it were text."
    yield pairing, lambda: c.attend(seen=seen)
    yield pairing, lambda: c.attend(keys=keys, values=values)
    apart = "Keys and values are joined in different orders: a key and its value must stand at the same position."
    yield apart, lambda: c.attend(keys=keys)
    yield apart, lambda: c.attend(values=values)
    yield apart, lambda: c.attend(keys=keys, seen=seen)
    yield apart, lambda: c.attend(values=values, seen=seen)


def _mistakes_of_joining(c: Joined) -> Iterator[Mistake]:
    yield "That is the text alone: the prefix has no effect. Is it joined, and may everyone see it?", c.text_alone
    added = "The prefix is added to the text's {}: it should be more of them, positions beside those of the text."
    k, v = c.prefix
    yield added.format("keys and values"), lambda: c.attend(keys=c.k + k, values=c.v + v, seen=c.may_attend)
    yield added.format("keys"), lambda: c.attend(keys=c.k + k, values=c.v, seen=c.may_attend)
    yield added.format("values"), lambda: c.attend(keys=c.k, values=c.v + v, seen=c.may_attend)
    none = torch.zeros_like(c.earlier[0])
    missing = "The prefix takes attention, and its values are missing."
    yield missing, lambda: c.attend(values=torch.cat([none, c.v], 2))
    yield "The prefix's values are there, its keys are missing.", lambda: c.attend(keys=torch.cat([none, c.k], 2))
    exchanged = extend(c.earlier[::-1], c.k, c.v)
    yield "The prefix's keys and values are exchanged.", lambda: c.attend(keys=exchanged[0], values=exchanged[1])


def _mistakes_of_softmax(c: Joined) -> Iterator[Mistake]:
    scaled = "The scores are {}: they should be divided by the root of a head's channels."
    width, positions = c.q.shape[-1], c.keys.shape[2]
    yield scaled.format("not scaled"), lambda: c.attend(divisor=1.0)
    yield scaled.format("divided by the channels themselves"), lambda: c.attend(divisor=width)
    yield scaled.format("multiplied"), lambda: c.attend(divisor=width**-0.5)
    yield scaled.format("divided by the root of the number of positions"), lambda: c.attend(divisor=positions**0.5)
    for over, axis in enumerate(("rows", "heads", "queries")):
        cause = f"The softmax runs over the {axis}: it belongs over what is looked at, the last axis."
        yield cause, lambda over=over: c.attend(over=over)
    two = "Prefix and text each have a softmax of their own: they compete in one."
    unmasked = torch.ones_like(c.seen[..., : c.prefix[0].shape[1]])
    for share in (1, 2):
        yield (
            two,
            lambda share=share: (
                (c.text_alone() + c.attend(keys=c.earlier[0], values=c.earlier[1], seen=unmasked)) / share
            ),
        )


def _mistakes_of_sight(c: Joined) -> Iterator[Mistake]:
    length, everything = c.prefix[0].shape[1], torch.ones_like(c.seen)
    yield "may_attend is not used: padding, and what comes later, is seen.", lambda: c.attend(seen=everything)
    inverted = "may_attend is inverted: True says that a query may look at a key."
    yield inverted, lambda: c.attend(seen=~c.seen)
    yield inverted, lambda: c.attend(seen=torch.cat([c.seen[..., :length], ~c.may_attend], -1))
    staircase = torch.cat([everything[..., :length].tril(), c.may_attend], -1)
    causal = "The prefix is seen step by step, as by a causal mask: every query sees all of it."
    yield causal, lambda: c.attend(seen=staircase)
    scores_BHQK = c.q @ c.keys.mT / math.sqrt(c.q.shape[-1])
    seen_BHQK = c.seen[:, None]
    zero = "A score that is masked with 0 still gets weight: softmax turns it into exp(0)."
    yield zero, lambda: (scores_BHQK * seen_BHQK).softmax(-1) @ c.values
    added = "may_attend is added to the scores: True is then 1 and False 0, which hides nothing."
    yield added, lambda: (scores_BHQK + seen_BHQK).softmax(-1) @ c.values
    late = "Masked after the softmax, the weights no longer add up to 1: mask the scores."
    yield late, lambda: (scores_BHQK.softmax(-1) * seen_BHQK) @ c.values


def _mistakes_of_rows(c: Joined) -> Iterator[Mistake]:
    heads = [part_HPD[:, None].expand(-1, len(part_HPD), -1, -1) for part_HPD in c.prefix]
    as_rows = "The prefix's heads were taken for the rows of the batch: each row sees another head's prefix."
    yield as_rows, lambda: c.attend(keys=torch.cat([heads[0], c.k], 2), values=torch.cat([heads[1], c.v], 2))
    is_first_B = torch.arange(len(c.q)) == 0
    only = "Only the first row sees the prefix: it is the same for each row."
    yield only, lambda: c.attend().where(is_first_B[:, None, None, None], c.text_alone())
    headless = "may_attend gets no axis for the heads: its rows are taken for heads."
    yield headless, lambda: c.attend(seen=c.seen[None])
    same = "The first row's may_attend is used for every row."
    yield same, lambda: c.attend(seen=c.seen[:1].expand_as(c.seen))
