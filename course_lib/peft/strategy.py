"""What all strategies share, and the one verb that adds one to a model.

A model keeps its classes, its names and, but for what a strategy trains of it, its weights to the bit. What has been
done to it is written down beside it (`Adaptation`), so that it can be switched, merged, saved and undone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from course_lib.peft.slots import Part, Slot, is_added, is_name, plug_in, slots_of
from course_lib.peft.targets import matches

STATE = "_adaptation"  # the attribute of a model that holds its Adaptation


class Strategy:
    """How a model is adapted: by parts beside its modules, by some of its own parameters, or both."""

    kind: ClassVar[str]
    keeps_base: ClassVar[bool] = True  # whether the model's own weights can be had back

    def parts(self, model: nn.Module, modules_to_save: tuple[str, ...]) -> dict[str, Part]:
        """{name of a module: the part to put beside it}."""
        return {}

    def own_parameters(self, model: nn.Module) -> list[str]:
        """Which of the model's own parameters train."""
        return []


@dataclass(frozen=True)
class Applied:
    """What `apply` has changed.

    places: the modules that a part stands beside, or whose own parameters train. trained: names of all parameters that
    train. n_trained, n_parameters: how many numbers train, and how many there are, added ones among them.
    """

    name: str
    strategy: Strategy
    modules_to_save: tuple[str, ...]
    places: tuple[str, ...]
    trained: tuple[str, ...]
    n_trained: int
    n_parameters: int

    @property
    def share(self) -> float:
        """Of all numbers, those that train, from 0 to 1."""
        return self.n_trained / self.n_parameters

    def __str__(self) -> str:
        places = f"{len(self.places)} place{'' if len(self.places) == 1 else 's'}"
        return (
            f"{self.strategy.kind} {self.name!r}: {self.n_trained:,} of {self.n_parameters:,} parameters train "
            f"({100 * self.share:.3g}%), at {places}"
        )


@dataclass
class Adaptation:
    """The adapters of one model. kept: of the model's own parameters that some adapter trains, the values that are not
    in the model just now, by adapter (None: as they were before any). unmerged: weights as they were before a merge."""

    was_trained: frozenset[str]
    applied: dict[str, Applied] = field(default_factory=dict)
    active: str | None = None
    kept: dict[str | None, dict[str, Tensor]] = field(default_factory=lambda: {None: {}})
    unmerged: dict[str, Tensor] = field(default_factory=dict)

    def lookup(self, name: str | None = None) -> Applied:
        """What an adapter has changed, by default the active one. Raises ValueError for a name that is not there."""
        name = self.active if name is None else name
        if name not in self.applied:
            said = "no adapter is active" if name is None else f"adapter {name!r} is not there"
            raise ValueError(f"{said}: this model has {', '.join(self.applied)}")
        return self.applied[name]


def apply(
    model: nn.Module,
    strategy: Strategy,
    *,
    name: str = "default",
    modules_to_save: Sequence[str] = (),
    seed: int = 0,
) -> Applied:
    """Prepare a model for training by a strategy: freeze it, add what the strategy adds, and let that train.

    name: of the adapter; several can live on one model, and the new one is switched on. modules_to_save: modules that
    are trained whole beside it and saved with it, such as a classifier's head, by the ends of their names. seed: what
    the new parts begin with.
    Raises ValueError, and changes nothing, for a name that is taken, a module that is not there, whatever the strategy
    refuses, a merged model, or a model that has been, or is to be, trained in full beside other adapters.

    >>> from course_lib.peft import LoRA
    >>> applied = apply(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), LoRA(rank=2), modules_to_save=["1"])
    >>> applied.places, applied.trained
    (('0',), ('0.adapters.default.A', '0.adapters.default.B', '1.weight', '1.bias'))
    """
    if not isinstance(strategy, Strategy):
        raise TypeError(f"strategy is {strategy!r:.60}: give one such as LoRA(rank=8)")
    state = getattr(model, STATE, None) or Adaptation(_trained(model))
    _check_room(state, strategy, name)
    _check_whole(model)
    saved = _modules_named(model, modules_to_save)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = strategy.parts(model, saved)
    own = strategy.own_parameters(model)

    before = {key for key, _ in model.named_parameters()}
    for host, part in parts.items():
        plug_in(model.get_submodule(host), name, part.to(next(model.parameters()).device))
    added = [key for key, _ in model.named_parameters() if key not in before]
    tensors = {id(p) for module in saved for p in model.get_submodule(module).parameters()}  # tied ones among them
    whole = [key for key, p in model.named_parameters() if id(p) in tensors and not is_added(key)]
    trained = tuple(key for key, _ in model.named_parameters() if key in {*added, *own, *whole})
    sizes = {key: p.numel() for key, p in model.named_parameters()}
    others = sum(sizes[key] for other in state.applied.values() for key in other.trained if is_added(key))
    applied = Applied(
        name, strategy, saved, tuple(parts) or tuple(dict.fromkeys(key.rpartition(".")[0] for key in own)), trained,
        sum(sizes[key] for key in trained), sum(sizes.values()) - others,
    )  # fmt: skip
    state.applied[name] = applied
    setattr(model, STATE, state)
    switch(model, name)
    return applied


def switch(model: nn.Module, name: str | None) -> None:
    """Let another adapter act and train, or none: then the model is what it was before any. Values that an adapter has
    trained of the model's own parameters, such as a head, change with it.

    Raises ValueError for a name that is not there, or a merged model; nothing has changed then.
    """
    state = adaptation(model)
    trained = set() if name is None else set(state.lookup(name).trained)
    if state.unmerged:
        raise ValueError(f"adapter {state.active!r} is merged: unmerge the model first")
    if name is None and any(not applied.strategy.keeps_base for applied in state.applied.values()):
        raise ValueError("full fine-tuning keeps no copy of the model's own weights: load the model again")
    if name != state.active:
        _exchange(model, state, name)
    for slot in slots_of(model).values():
        slot.active = name if name in slot else None
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trained)
        if key not in trained:
            parameter.grad = None


@torch.no_grad()
def _exchange(model: nn.Module, state: Adaptation, name: str | None) -> None:
    own = {key: p for key, p in model.named_parameters() if not is_added(key)}
    if state.active is not None:
        for key in own.keys() & set(state.applied[state.active].trained):
            state.kept.setdefault(state.active, {})[key] = own[key].detach().clone()
            own[key].copy_(state.kept[None][key])
    if name is not None and state.applied[name].strategy.keeps_base:
        for key in own.keys() & set(state.applied[name].trained):
            state.kept[None][key] = own[key].detach().clone()
            if key in state.kept.get(name, {}):
                own[key].copy_(state.kept[name][key])
            state.kept.get(name, {}).pop(key, None)
    state.active = name


def adaptation(model: nn.Module) -> Adaptation:
    """What has been done to a model. Raises ValueError where nothing has."""
    state = getattr(model, STATE, None)
    if state is None:
        raise ValueError(f"this {type(model).__name__} has no adapter: apply a strategy to it first")
    return state


def _trained(model: nn.Module) -> frozenset[str]:
    return frozenset(key for key, parameter in model.named_parameters() if parameter.requires_grad)


def _check_room(state: Adaptation, strategy: Strategy, name: str) -> None:
    if not is_name(name):
        raise ValueError(f"name is {name!r}: give another word, without dots, such as 'sentiment'")
    if name in state.applied:
        raise ValueError(f"the model has an adapter {name!r} already: remove it first, or give this one another name")
    if state.unmerged:
        raise ValueError(f"adapter {state.active!r} is merged: unmerge the model first")
    if state.applied and not all(s.keeps_base for s in (strategy, *(a.strategy for a in state.applied.values()))):
        raise ValueError(
            "full fine-tuning changes the weights that other adapters stand on: load the model again for it"
        )


def _check_whole(model: nn.Module) -> None:
    """Refuses a model of which a part has been adapted by itself, or that is a part of one that has been."""
    if any(hasattr(module, STATE) for module in model.modules() if module is not model):
        raise ValueError("a part of this model has adapters of its own: apply all of them to the same module")
    if not hasattr(model, STATE) and slots_of(model):
        raise ValueError("this model is a part of one that has adapters: apply all of them to the same module")
    if any(is_added(name) and not is_added(name.rpartition(".")[0]) and not isinstance(module, Slot)
           for name, module in model.named_modules()):  # fmt: skip
        raise ValueError("this model has a module called adapters of its own, a name that is needed here: rename it")


def _modules_named(model: nn.Module, ends: Sequence[str]) -> tuple[str, ...]:
    if isinstance(ends, str):
        raise TypeError(f"modules_to_save is {ends!r}: give a list of names, [{ends!r}]")
    found = []
    for end in ends:
        names = [name for name, module in model.named_modules() if name and matches(name, [end])]
        names = [name for name in names if any(True for _ in model.get_submodule(name).parameters())]
        if not names:
            children = model.named_children()
            there = ", ".join(name for name, child in children if any(True for _ in child.parameters()))
            raise ValueError(f"modules_to_save names {end!r}, which is not there: this model has {there}")
        found += names
    return tuple(found)
