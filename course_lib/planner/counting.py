"""How many numbers a strategy trains of an architecture, and the skeletons that all other arithmetic reads."""

import re
from dataclasses import dataclass, replace

import torch
from torch import nn

from course_lib.architectures import Architecture, skeleton
from course_lib.peft import Prefix, Strategy, apply
from course_lib.peft.prefix import Dimensions
from course_lib.peft.targets import ALL_LINEAR
from course_lib.planner.layouts import NAMES


def prefix_dimensions(architecture: Architecture) -> Dimensions:
    """What a prefix must fit in an architecture."""
    a = architecture
    return Dimensions(a.n_layers, a.n_kv_heads or a.n_heads, a.d_model // a.n_heads, a.max_len)


def trained_parameters(architecture: Architecture, strategy: Strategy) -> tuple[int, int]:
    """How many numbers a strategy would train of a published architecture, and of how many, its own among them.

    Raises ValueError where the strategy finds nothing to train, as BitFit in Llama, which has no biases.

    >>> from course_lib.architectures import ARCHITECTURES
    >>> from course_lib.peft import LoRA
    >>> trained_parameters(ARCHITECTURES["BERT-base"], LoRA(rank=8, targets=["query", "value"]))[0]
    294912
    """
    adapted = Adapted.of(architecture, strategy)
    return adapted.n_trained, adapted.n_trained + adapted.n_frozen


def numbers_in(module: nn.Module, *, trained: bool = False) -> int:
    """How many numbers a module holds, or those of them that train; tied ones count once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


@dataclass(frozen=True)
class Adapted:
    """An architecture under a strategy: a skeleton of few blocks, and how often each of them stands in the model.

    All blocks but the first, whose input may have no gradient, are alike, so that two tell of any number.
    """

    architecture: Architecture
    strategy: Strategy
    model: nn.Module
    times: tuple[int, ...]

    @classmethod
    def of(cls, architecture: Architecture, strategy: Strategy) -> "Adapted":
        """Every block is built where the strategy may tell them apart, by a pattern or a number in a name. A prefix is
        counted and not put in: the skeleton of a Llama takes no keys and values.

        Raises ValueError as `trained_parameters`.
        """
        built = architecture.n_layers if _may_tell_blocks_apart(strategy) else min(2, architecture.n_layers)
        model = skeleton(replace(architecture, n_layers=built))
        if isinstance(strategy, Prefix):
            _check_prefix(architecture, strategy)
            model.requires_grad_(False)
        else:
            with torch.device("meta"):  # what is added has no memory either
                apply(model, strategy)
        return cls(architecture, strategy, model, (*[1] * (built - 1), architecture.n_layers - built + 1))

    @property
    def blocks(self) -> list[tuple[int, nn.Module]]:
        """How often each built block stands in the model, and the block."""
        return list(zip(self.times, self.model.get_submodule(NAMES[self.architecture.layout].blocks), strict=True))

    @property
    def prefix(self) -> int:
        """Positions of keys and values that stand before the text."""
        return self.strategy.length if isinstance(self.strategy, Prefix) else 0

    @property
    def n_trained(self) -> int:
        return self._count(trained=True) + self.prefix * prefix_dimensions(self.architecture).per_position

    @property
    def n_frozen(self) -> int:
        return self._count() - self._count(trained=True)

    def _count(self, *, trained: bool = False) -> int:
        missing = sum((times - 1) * numbers_in(block, trained=trained) for times, block in self.blocks)
        return numbers_in(self.model, trained=trained) + missing


def _check_prefix(architecture: Architecture, prefix: Prefix) -> None:
    if prefix.hidden is not None:
        raise ValueError("hidden is a width of the network that makes a prefix, which is folded away: give None")
    if prefix.length >= architecture.max_len:
        raise ValueError(
            f"length is {prefix.length}: the model has {architecture.max_len} positions, leave some to the text"
        )


def _may_tell_blocks_apart(strategy: Strategy) -> bool:
    targets = getattr(strategy, "targets", ALL_LINEAR)
    patterns = [*getattr(strategy, "rank_pattern", {}), *([targets] if isinstance(targets, str) else [])]
    names = [] if isinstance(targets, str) else targets
    return any(pattern != ALL_LINEAR for pattern in patterns) or any(re.search(r"\d", name) for name in names)
