"""Bytes per number: what a parameter costs besides itself, and how devices share it."""

import math
from collections.abc import Collection
from dataclasses import dataclass, fields

SHARDED = ("weights", "gradients", "optimizer")  # what devices may divide among themselves (arXiv:1910.02054)


@dataclass(frozen=True)
class Bytes:
    """A number format, in bytes.

    weights, gradients, optimizer, master: for each trained parameter; master is a copy in a finer format that the
    optimiser changes. frozen: for each frozen one (None: as weights). products: of each number that a matrix product
    reads or gives. stream: of each number between the blocks and in normalisations. scores: kept for each attention
    weight (None: as products). masks: kept for each number that dropout has seen (None: as the number itself).
    Raises ValueError for what is no number of bytes.

    >>> mixed = PRECISIONS["bf16 with fp32 master"]  # ZeRO's 16 (arXiv:1910.02054, section 3.1)
    >>> mixed.weights + mixed.gradients + mixed.optimizer + mixed.master
    16
    """

    weights: float
    gradients: float
    optimizer: float
    master: float = 0
    frozen: float | None = None
    products: int = 4
    stream: int = 4
    scores: int | None = None
    masks: int | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if value is None and name in ("frozen", "scores", "masks"):
                continue
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}: give a number of bytes of at least 0, such as 4 for fp32")

    @property
    def per_frozen_parameter(self) -> float:
        return self.weights if self.frozen is None else self.frozen

    @property
    def per_score(self) -> int:
        return self.products if self.scores is None else self.scores

    @property
    def casts(self) -> bool:
        """Whether matrix products read copies in another format, as under autocast."""
        return self.products != self.stream


PRECISIONS = {  # optimizer: the two moments of Adam
    "fp32": Bytes(4, 4, 8),
    "bf16 mixed": Bytes(4, 4, 8, products=2),  # torch's autocast on a CPU
    # on a GPU, autocast computes the softmax in fp32, the product after it reads a bf16 copy, and dropout keeps a byte;
    # not measured here
    "bf16 mixed, cuda": Bytes(4, 4, 8, products=2, scores=6, masks=1),
    "bf16 with fp32 master": Bytes(2, 2, 8, 4, products=2, stream=2),
    "bf16 alone": Bytes(2, 2, 4, products=2, stream=2),
    # QLoRA (arXiv:2305.14314, section 3): 4 bits and 0.127 of constants; what trains is bf16, its moments are fp32
    "4-bit frozen": Bytes(2, 2, 8, frozen=4.127 / 8, products=2, stream=2),
}


def recipe_of(precision: str | Bytes) -> Bytes:
    """A number format by its name in PRECISIONS, or as it is given.

    Raises ValueError, with the known names, for another.
    """
    if isinstance(precision, Bytes):
        return precision
    if precision not in PRECISIONS:
        known = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision {precision!r} is unknown: choose one of {known}, or give Bytes(...)")
    return PRECISIONS[precision]


@dataclass(frozen=True)
class Memory:
    """Bytes on each device. optimizer: its state, and the master copy where there is one. activations: what a forward
    pass keeps for the backward pass."""

    weights: float
    gradients: float
    optimizer: float
    activations: float = 0

    @property
    def states(self) -> float:
        """Weights, gradients and the optimiser's state, without activations."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        return self.states + self.activations


def state_memory(
    n_trained: int, n_frozen: int, recipe: Bytes, *, devices: int = 1, sharded: Collection[str] = ()
) -> Memory:
    """What parameters cost each device, without activations.

    sharded: which of SHARDED the devices divide among themselves; the rest each of them holds whole. ("optimizer",),
    ("optimizer", "gradients") and all three are the stages of ZeRO (arXiv:1910.02054).
    Raises ValueError for what cannot be sharded.

    >>> state_memory(7_500_000_000, 0, PRECISIONS["bf16 with fp32 master"]).total / 1e9
    120.0
    """
    if unknown := set(sharded) - set(SHARDED):
        raise ValueError(f"sharded names {sorted(unknown)}: choose from {', '.join(SHARDED)}")
    parts = {
        "weights": n_trained * recipe.weights + n_frozen * recipe.per_frozen_parameter,
        "gradients": n_trained * recipe.gradients,
        "optimizer": n_trained * (recipe.optimizer + recipe.master),
    }
    return Memory(**{name: size / devices if name in sharded else size for name, size in parts.items()})
