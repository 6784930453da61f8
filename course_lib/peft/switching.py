"""Several adapters on one model: merged and unmerged, combined, removed, taken out as tensors."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from course_lib.peft.lora import LoRA, LowRankUpdate, add_delta
from course_lib.peft.slots import PLACE, is_added, parts_of, pull_out
from course_lib.peft.strategy import STATE, Adaptation, Applied, adaptation, apply, switch
from course_lib.peft.targets import exactly

NOT_MERGED = {
    "prefix": "a prefix is keys and values, and no weight holds those",
    "adapter": "adapter layers are not linear, and no weight matrix can hold them",
    "bitfit": "BitFit trains the model's own biases: they are in it",
    "full": "full fine-tuning trains the model's own weights: they are in it",
}


def merge(model: nn.Module) -> None:
    """Add the active LoRA's updates to the weights themselves: the model then computes the same at the speed of the
    base. The weights before are kept for `unmerge`.

    Raises ValueError where no adapter is active, it is merged already, or it is no LoRA.
    """
    state = adaptation(model)
    if state.unmerged:
        raise ValueError(f"adapter {state.active!r} is merged already: a second time would add its update twice")
    if state.active is None:
        raise ValueError(f"no adapter is active: switch on one of {', '.join(state.applied)}")
    kind = state.applied[state.active].strategy.kind
    if kind in NOT_MERGED:
        raise ValueError(f"{state.active!r} cannot be merged: {NOT_MERGED[kind]}")
    for host, update in parts_of(model, state.active).items():
        layer = model.get_submodule(host)
        state.unmerged[host] = layer.weight.detach().clone()
        add_delta(layer, update)
        layer.get_submodule(PLACE).active = None
    model.requires_grad_(False)


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Put back the weights that `merge` has kept, to the bit; the adapter acts and trains beside them again.

    Raises ValueError for a model that is not merged.
    """
    state = adaptation(model)
    if not state.unmerged:
        raise ValueError("the model is not merged: there is nothing to take out of its weights")
    for host, weight in state.unmerged.items():
        model.get_submodule(host).weight.copy_(weight)
    state.unmerged.clear()
    switch(model, state.active)


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Make the active adapter a part of the model for good and forget all adapters: a plain model, all of which trains
    that trained before. For LoRA, BitFit and full fine-tuning.

    Raises ValueError where `merge` would, but for those two.
    """
    state = adaptation(model)
    kind = state.applied[state.active].strategy.kind if state.active is not None else None
    if kind not in ("bitfit", "full") and not state.unmerged:
        merge(model)
    for name in state.applied:
        _take_out(model, name)
    _forget(model, state)
    return model


def remove(model: nn.Module, name: str) -> None:
    """Take an adapter away. Where it was active, none is then; with the last one, the model is what it was before the
    first, to the bit.

    Raises ValueError for a name that is not there, a merged model, or full fine-tuning, which keeps no copy.
    """
    state = adaptation(model)
    state.lookup(name)
    switch(model, None if state.active == name else state.active)
    _take_out(model, name)
    state.kept.pop(name, None)
    del state.applied[name]
    if not state.applied:
        _forget(model, state)


def combine(model: nn.Module, weights: Mapping[str, float], name: str) -> Applied:
    """Add, and switch on, a LoRA whose update is the weighted sum of others', exactly: their ranks side by side. What
    else they train, such as a head, it takes from the first.

    Raises ValueError for no weights, names that are not there, adapters that are no LoRA, or ranks that together are
    larger than a layer's matrix.
    """
    state = adaptation(model)
    if not weights:
        raise ValueError("weights are empty: give at least one adapter, such as {'sentiment': 0.5, 'topic': 0.5}")
    summed: dict[str, list[tuple[LowRankUpdate, float]]] = {}
    for source, weight in weights.items():
        if (kind := state.lookup(source).strategy.kind) != "lora":
            raise ValueError(f"adapter {source!r} is of kind {kind}: only the updates of LoRA can be summed")
        for host, update in parts_of(model, source).items():
            summed.setdefault(host, []).append((update, weight))
    ranks = {host: sum(len(update.A) for update, _ in updates) for host, updates in summed.items()}
    pattern = {f"^{re.escape(host)}": rank for host, rank in ranks.items()}
    most = max(ranks.values())
    first = next(iter(weights))
    own = {key: tensor.clone() for key, tensor in own_state(model, first).items()}
    saved = state.lookup(first).modules_to_save
    applied = apply(
        model, LoRA(most, alpha=most, targets=exactly(ranks), rank_pattern=pattern), name=name, modules_to_save=saved
    )
    for host, update in parts_of(model, name).items():
        update.become_sum_of(summed[host])
    load_own(model, own)
    return applied


def adapter_state(model: nn.Module, name: str | None = None) -> dict[str, Tensor]:
    """The tensors of one adapter (the active one, if no name is given) and nothing of its base: {name of the module
    and of the tensor in it: tensor}.

    Raises ValueError for a name that is not there.
    """
    name = adaptation(model).lookup(name).name
    parts = parts_of(model, name).items()
    return {f"{host}.{key}": p.detach() for host, part in parts for key, p in part.named_parameters()} | own_state(
        model, name
    )


def own_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Of the model's own parameters those that an adapter trains, with the values that it has given them."""
    state = adaptation(model)
    trained = set(state.lookup(name).trained)
    own = {key: p.detach() for key, p in model.named_parameters() if key in trained and not is_added(key)}
    return own if name == state.active else {key: state.kept[name][key] for key in own}


@torch.no_grad()
def load_own(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give values to some of the model's own parameters."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        parameters[key].copy_(tensor)


def active_adapter(model: nn.Module) -> str | None:
    """The adapter that acts, None for none."""
    state = getattr(model, STATE, None)
    return None if state is None else state.active


def _take_out(model: nn.Module, name: str) -> None:
    for host in parts_of(model, name):
        pull_out(model.get_submodule(host), name)


def _forget(model: nn.Module, state: Adaptation) -> None:
    delattr(model, STATE)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in state.was_trained)
