"""Fine-tuning strategies, applied to a model from outside: one file each, one registry, one verb."""

from typing import Any

from course_lib.peft.adapter import Adapter
from course_lib.peft.bitfit import BitFit
from course_lib.peft.full import Full
from course_lib.peft.lora import LoRA
from course_lib.peft.prefix import Prefix, fold
from course_lib.peft.saving import load_adapter, save_adapter
from course_lib.peft.strategy import Applied, Strategy, apply, switch
from course_lib.peft.switching import (
    active_adapter,
    adapter_state,
    combine,
    merge,
    merge_and_unload,
    remove,
    unmerge,
)

STRATEGIES: dict[str, type[Strategy]] = {strategy.kind: strategy for strategy in (Full, LoRA, Prefix, Adapter, BitFit)}


def strategy(kind: str, **settings: Any) -> Strategy:
    """A strategy by its name in STRATEGIES.

    Raises ValueError for a name that is none, TypeError for a setting that it does not have.

    >>> strategy("lora", rank=4).rank
    4
    """
    if kind not in STRATEGIES:
        raise ValueError(f"strategy {kind!r} is unknown: choose one of {', '.join(STRATEGIES)}")
    return STRATEGIES[kind](**settings)


__all__ = [
    "STRATEGIES",
    "Adapter",
    "Applied",
    "BitFit",
    "Full",
    "LoRA",
    "Prefix",
    "Strategy",
    "active_adapter",
    "adapter_state",
    "apply",
    "combine",
    "fold",
    "load_adapter",
    "merge",
    "merge_and_unload",
    "remove",
    "save_adapter",
    "strategy",
    "switch",
    "unmerge",
]
