"""The check of chapter 3's "count before you build": numbers that a strategy trains, beside those of real models."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from course_lib import peft
from course_lib.checks.report import NotAttempted, Wrong, described, invoke, plain_number
from course_lib.layers import TransformerConfig
from course_lib.model import Encoder

CountTrainable = Callable[..., int]
SETTING = {"lora": "rank", "prefix": "length", "adapter": "bottleneck", "bitfit": None}  # of each strategy, its size


@cache
def count_reference(
    strategy: str, *, d_model: int, n_layers: int, d_ff: int, rank: int = 8, length: int = 16, bottleneck: int = 32
) -> int:
    """Builds the model and counts. (On the meta device, where a tensor has a shape and takes no memory.)"""
    chosen = {
        "lora": peft.LoRA(rank=rank, targets=["query", "value"]),
        "prefix": peft.Prefix(length=length, hidden=None),
        "adapter": peft.Adapter(bottleneck=bottleneck),
        "bitfit": peft.BitFit(),
    }
    if strategy not in chosen:
        raise ValueError(f"strategy {strategy!r} is unknown: choose one of {', '.join(chosen)}")
    config = TransformerConfig(8, d_model=d_model, n_layers=n_layers, n_heads=1, d_ff=d_ff, max_len=length + 1)
    with torch.device("meta"):
        model = Encoder(config, head=False)
    return peft.apply(model, chosen[strategy]).n_trained


@dataclass(frozen=True)
class Plan:
    """An encoder, and the sizes of what strategies add. is_default: whether those sizes are left to the defaults."""

    d: int
    layers: int
    ff: int
    rank: int = 8
    length: int = 16
    width: int = 32
    is_default: bool = False

    def arguments(self) -> dict[str, int]:
        """By the names of the exercise's arguments."""
        model = {"d_model": self.d, "n_layers": self.layers, "d_ff": self.ff}
        added = {"rank": self.rank, "length": self.length, "bottleneck": self.width}
        return model if self.is_default else model | added

    def in_words(self, strategy: str) -> dict[str, Any]:
        """What matters to a strategy."""
        shown = {"strategy": strategy} | self.arguments()
        unused = {setting for other, setting in SETTING.items() if other != strategy}
        return {name: value for name, value in shown.items() if name not in unused}


PLANS = [
    Plan(12, 2, 40, rank=3, length=5, width=7),
    Plan(10, 3, 26, rank=4, length=9, width=2),
    Plan(64, 1, 48, is_default=True),
    Plan(768, 12, 3072, is_default=True),  # BERT-base
]

# --- what may be wrong ------------------------------------------------------------------------------------------------

Mistake = tuple[str, Callable[[Plan], float]]  # what to say of it, and what it counts

ONCE = "Counted for one layer of the model: each of its n_layers blocks has its own."
HALF_LORA = (
    "Half is missing. An update is made of two matrices, A and B, and stands at two layers of a block, query and value."
)
MISTAKES: dict[str, list[Mistake]] = {
    "lora": [
        (HALF_LORA, lambda s: 2 * s.rank * s.d * s.layers),
        ("Three quarters are missing: two matrices, A and B, at two layers of a block, query and value.",
         lambda s: s.rank * s.d * s.layers),
        ("The key is counted as well: the updates stand at query and value only.",
         lambda s: 6 * s.rank * s.d * s.layers),
        ("Twice too many: the updates stand at query and value only, not at all four layers of attention.",
         lambda s: 8 * s.rank * s.d * s.layers),
        ("Every linear layer is counted: the updates stand at query and value only.",
         lambda s: (8 * s.rank * s.d + 2 * s.rank * (s.d + s.ff)) * s.layers),
        (ONCE, lambda s: 4 * s.rank * s.d),
        (ONCE, lambda s: 2 * s.rank * s.d),
        ("That is the size of the weights of query and value: they stay frozen, only A and B train.",
         lambda s: 2 * s.d**2 * s.layers),
        ("The biases of query and value are counted too: they stay frozen.",
         lambda s: (4 * s.rank * s.d + 2 * s.d) * s.layers),
        ("The sides of each matrix are added: its numbers are their product.",
         lambda s: 4 * (s.rank + s.d) * s.layers),
        ("The rank is squared somewhere: A and B each have one side of length rank, the other is d_model.",
         lambda s: 2 * (2 * s.rank * s.d + s.rank**2) * s.layers),
        ("The rank is squared: A and B each have one side of length rank, the other is d_model.",
         lambda s: 4 * s.rank**2 * s.layers),
    ],
    "prefix": [
        ("Half is missing: each position has a key and a value.", lambda s: s.length * s.d * s.layers),
        (ONCE, lambda s: 2 * s.length * s.d),
        ("That is one vector a position for the whole model, as prompt tuning trains it: a prefix has keys and values "
         "in each layer.", lambda s: s.length * s.d),
        ("The length is forgotten: each position of the prefix has keys and values of its own.",
         lambda s: 2 * s.d * s.layers),
        ("Queries are counted as well: a prefix is looked at and looks at nothing.",
         lambda s: 3 * s.length * s.d * s.layers),
        ("Twice too many: heads share out the d_model channels, and rows of a batch share the prefix.",
         lambda s: 4 * s.length * s.d * s.layers),
    ],
    "adapter": [
        ("Half is missing: a block has two bottlenecks, one behind attention and one behind the feed-forward layer.",
         lambda s: (2 * s.d * s.width + s.width + s.d) * s.layers),
        ("The biases are forgotten: each of the two linear layers of a bottleneck has one.",
         lambda s: 4 * s.d * s.width * s.layers),
        ("There is one bottleneck a block, and the biases are forgotten: a block has two, and each of their linear "
         "layers has a bias.", lambda s: 2 * s.d * s.width * s.layers),
        ("The way up is missing: a bottleneck leads down and back up.",
         lambda s: 2 * (s.d * s.width + s.width) * s.layers),
        ("The way down is missing: a bottleneck leads down and back up.",
         lambda s: 2 * (s.d * s.width + s.d) * s.layers),
        ("A bias has as many numbers as channels come out of its layer: that differs between down and up.",
         lambda s: 2 * (2 * s.d * s.width + 2 * s.width) * s.layers),
        ("A bias has as many numbers as channels come out of its layer: that differs between down and up.",
         lambda s: 2 * (2 * s.d * s.width + 2 * s.d) * s.layers),
        ("The bias of the way up is forgotten.", lambda s: 2 * (2 * s.d * s.width + s.width) * s.layers),
        ("The bias of the way down is forgotten.", lambda s: 2 * (2 * s.d * s.width + s.d) * s.layers),
        (ONCE, lambda s: 2 * (2 * s.d * s.width + s.width + s.d)),
        (ONCE, lambda s: 2 * s.d * s.width + s.width + s.d),
        ("The LayerNorms are counted as well: the paper trains them too, here only the bottlenecks train.",
         lambda s: (2 * (2 * s.d * s.width + s.width + s.d) + 4 * s.d) * s.layers),
        ("The second bottleneck reads what the feed-forward layer gives back: d_model channels, not d_ff.",
         lambda s: (2 * s.d * s.width + 2 * s.ff * s.width + 2 * s.width + s.d + s.ff) * s.layers),
    ],
    "bitfit": [
        ("The bias of the intermediate layer is forgotten.", lambda s: 7 * s.d * s.layers + s.d),
        ("Two biases are forgotten: that of the intermediate layer, and that of the LayerNorm behind the embeddings.",
         lambda s: 7 * s.d * s.layers),
        ("The LayerNorms are forgotten: each has a bias, two in a block and one behind the embeddings.",
         lambda s: (5 * s.d + s.ff) * s.layers),
        ("The LayerNorms of the blocks are forgotten: each has a bias.",
         lambda s: (5 * s.d + s.ff) * s.layers + s.d),
        ("The LayerNorm behind the embeddings is forgotten: it has a bias, too.",
         lambda s: (7 * s.d + s.ff) * s.layers),
        (ONCE, lambda s: 7 * s.d + s.ff + s.d),
        (ONCE, lambda s: 7 * s.d + s.ff),
        ("All is multiplied by n_layers: the LayerNorm behind the embeddings is there once.",
         lambda s: (8 * s.d + s.ff) * s.layers),
        ("A bias of d_model numbers is missing in each block: go through its layers, and its two LayerNorms.",
         lambda s: (6 * s.d + s.ff) * s.layers + s.d),
        ("The LayerNorms' weights are counted as well: only what is called bias trains.",
         lambda s: (9 * s.d + s.ff) * s.layers + 2 * s.d),
        ("The weights of the blocks' LayerNorms are counted as well: only what is called bias trains.",
         lambda s: (9 * s.d + s.ff) * s.layers + s.d),
        ("Only attention is counted: the feed-forward layers and the LayerNorms have biases, too.",
         lambda s: 4 * s.d * s.layers),
        ("Only query, key and value are counted: every other layer of a block has a bias, too.",
         lambda s: 3 * s.d * s.layers),
        ("Only query and value are counted: every other layer of a block has a bias, too.",
         lambda s: 2 * s.d * s.layers),
        ("A bias has as many numbers as channels come out of its layer: that of the intermediate layer is wider.",
         lambda s: 8 * s.d * s.layers + s.d),
        ("A bias has as many numbers as channels come out of its layer: the feed-forward layer's second gives back "
         "d_model.", lambda s: (6 * s.d + 2 * s.ff) * s.layers + s.d),
        ("Something of d_model numbers is counted too many, once in the model: there is no head and no pooler.",
         lambda s: (7 * s.d + s.ff) * s.layers + 2 * s.d),
    ],
}  # fmt: skip


def _mistakes(strategy: str) -> Iterator[Mistake]:
    yield from MISTAKES[strategy]
    for other in SETTING:
        if other != strategy:
            yield f"That is the number for {other!r}: are two strategies mixed up?", lambda s, o=other: _wanted(s, o)


def _wanted(plan: Plan, strategy: str) -> int:
    return count_reference(strategy, **plan.arguments())


# --- the check --------------------------------------------------------------------------------------------------------


def verify_count_trainable(function: CountTrainable) -> str:
    """Compare counts with models. Raises Wrong or NotAttempted; says what was verified."""
    unwritten = []
    for strategy in SETTING:
        try:
            given = [_count(function, strategy, plan) for plan in PLANS]
        except NotAttempted:
            unwritten.append(strategy)
            continue
        for plan, count in zip(PLANS, given, strict=True):
            wanted = _wanted(plan, strategy)
            if count != wanted:
                cause = _count_cause(strategy, given)
                raise Wrong(cause, **plan.in_words(strategy), wanted=f"{wanted:,}", given=described(count))
            if not isinstance(count, int):
                cause = "The number is right, and a float: a count is a whole number. / gives a float, // does not."
                raise Wrong(cause, **plan.in_words(strategy), wanted=wanted, given=described(count))
    if len(unwritten) == len(SETTING):
        raise NotAttempted
    if unwritten:
        right = [strategy for strategy in SETTING if strategy not in unwritten]
        raise Wrong(f"{', '.join(right)}: right. Not written yet: {', '.join(unwritten)}.")
    return f"{len(SETTING)} strategies on {len(PLANS)} encoders that were built and counted, BERT-base among them"


def _count(function: CountTrainable, strategy: str, plan: Plan) -> int | float:
    """What the function counts. Raises Wrong if it is no plain number."""
    given = invoke(function, strategy, shown={"strategy": strategy} | plan.arguments(), **plan.arguments())
    shown = plan.in_words(strategy) | {"given": described(given)}
    return plain_number(given, shown, missing="is a return missing, or this strategy's branch?")


def _count_cause(strategy: str, given: Sequence[float]) -> str:
    for cause, count in _mistakes(strategy):
        if all(number == count(plan) for number, plan in zip(given, PLANS, strict=True)):
            return cause
    if all(0 < number < 1 for number in given):
        return "That looks like a share: the number of trained numbers is asked for."
    wanted = [_wanted(plan, strategy) for plan in PLANS]
    right = [plan for plan, a, b in zip(PLANS, given, wanted, strict=True) if a == b]
    if right and all(plan.is_default for plan in right) and len(right) == sum(plan.is_default for plan in PLANS):
        return f"Right where {SETTING[strategy]} is left to its default, wrong where it is given: is it used?"
    if right:
        return f"Right for {len(right)} of {len(PLANS)} encoders: which size enters that should not, or does not?"
    return "Write down each matrix and vector that trains, with its sides, and how often it occurs; then add up."
