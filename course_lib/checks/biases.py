"""The check of chapter 3's BitFit: which parameters are biases, on models that trip up a rule by part of a name, by
type, or by dimension.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_lib import peft
from course_lib.checks.report import Wrong, described, invoke
from course_lib.layers import Conv1D, TransformerConfig
from course_lib.model import Decoder, Encoder
from course_lib.training import new_model

PickBiases = Callable[[nn.Module], list[str]]


def biases_reference(model: nn.Module) -> list[str]:
    return peft.BitFit().own_parameters(model)


class PerHead(nn.Module):
    """A bias for each head, which is a matrix, and a buffer called bias, as GPT-2's mask in transformers was."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2, 3))
        self.mask = nn.Module()
        self.mask.register_buffer("bias", torch.ones(3, 3))


class Lookalikes(nn.Module):
    """Names that hold the word and mean something else, beside biases in unusual places."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))
        self.gain = nn.Parameter(torch.ones(3))
        self.bias_table = nn.Parameter(torch.zeros(4))
        self.r_w_bias = nn.Parameter(torch.zeros(2, 2))  # as in Transformer-XL
        self.relative_attention_bias = nn.Embedding(4, 2)  # as in T5
        self.unbiased = nn.Linear(3, 3, bias=False)
        self.outputs = nn.ModuleDict({"bias": nn.Linear(3, 1), "score": nn.Linear(3, 1)})
        self.attention = PerHead()


def models() -> dict[str, nn.Module]:
    """What the check hands over, by what a verdict calls it."""
    config = TransformerConfig(vocab_size=20, d_model=8, n_layers=2, n_heads=2, d_ff=12, max_len=8)
    shared = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    shared[2][0].bias = shared[0].bias
    return {
        "an encoder laid out as BERT": new_model(Encoder, config, device="cpu"),
        "a decoder laid out as GPT-2": new_model(Decoder, config, device="cpu"),
        "a model with misleading names": Lookalikes(),
        "a model in which two layers share one bias": shared,
        "an encoder that is frozen": new_model(Encoder, config, device="cpu").requires_grad_(False),
    }


def verify_pick_biases(function: PickBiases) -> str:
    """Compare names on all models. Raises Wrong or NotAttempted; says what was verified."""
    n = 0
    for title, model in models().items():
        before = _state(model)
        given = invoke(function, model, shown={"model": title})
        _judge_unharmed(model, before, title)
        names = _names(given, model, title)
        _judge_names(names, model, title)
        n += len(names)
    return f"{n} biases of {len(models())} models: BERT's and GPT-2's layout, misleading names, a shared bias, frozen"


def _state(model: nn.Module) -> dict[str, Any]:
    """What must be as it was, each with what to say if it is not."""
    return {
        "requires_grad was changed: only name the parameters here, and let whoever asked for the names set it.": [
            (name, p.requires_grad) for name, p in model.named_parameters()
        ],
        "The model was switched between training and evaluation mode: leave it as it is.": [
            module.training for module in model.modules()
        ],
        "The values of the parameters were changed: only name them.": [
            (p.sum().item(), p.abs().sum().item()) for p in model.parameters()
        ],
    }


def _judge_unharmed(model: nn.Module, before: dict[str, Any], title: str) -> None:
    for cause, state in _state(model).items():
        if state != before[cause]:
            raise Wrong(cause, model=title)


def _names(given: Any, model: nn.Module, title: str) -> list[str]:
    """The names given, if they are names of parameters. Raises Wrong if not."""
    shown = {"model": title, "given": described(given)}
    if not isinstance(given, (list, tuple)):
        raise Wrong(f"Give back a list of names: that is {type(given).__name__}.", **shown)
    for element in given:
        if isinstance(element, Tensor):
            raise Wrong("The list holds the parameters themselves: their names are asked for.", **shown)
        if isinstance(element, tuple):
            raise Wrong("The list holds pairs of a name and a parameter: keep the name.", **shown)
        if not isinstance(element, str):
            raise Wrong(f"The list should hold names, and one element is {type(element).__name__}.", **shown)
    own = dict(model.named_parameters(remove_duplicate=False))
    if unknown := [name for name in given if name not in own]:
        raise Wrong(_unknown_cause(unknown[0], model), **shown)
    return list(given)


def _unknown_cause(name: str, model: nn.Module) -> str:
    own = [other for other, _ in model.named_parameters()]
    if name in dict(model.named_buffers()):
        return f"{name} is a buffer: it is saved with the model, and no parameter. state_dict() holds both."
    if name.startswith("."):
        return f"{name!r} begins with a dot: the model's own parameters have no path before their name."
    if name in dict(model.named_modules()):
        return f"{name!r} is the name of a layer: the name of its parameter is asked for."
    if any(other.endswith(f".{name}") for other in own):
        return f"{name!r} is the end of a name: give the whole path from the model down, or nobody can tell them apart."
    return f"No parameter of this model is called {name!r}."


def _judge_names(given: Sequence[str], model: nn.Module, title: str) -> None:
    """Raises Wrong unless each bias is there once, and nothing else."""
    own = dict(model.named_parameters(remove_duplicate=False))
    wanted = biases_reference(model)
    places = [id(own[name]) for name in given]
    biases = {id(own[name]) for name in wanted}
    shown = {"model": title, "wanted": f"{len(wanted)} names", "given": f"{len(given)} names"}
    if extra := [name for name in given if id(own[name]) not in biases]:
        raise Wrong(_extra_cause(extra, model), **shown)
    if missing := [name for name in wanted if id(own[name]) not in places]:
        raise Wrong(_missing_cause(missing, model), **shown)
    if double := [name for name, place in zip(given, places, strict=True) if places.count(place) > 1]:
        also = [name for name, p in own.items() if p is own[double[0]]]
        why = f"It is one parameter with {len(also)} names, {' and '.join(also)}: it" if len(also) > 1 else "Each"
        raise Wrong(f"{double[0]} is named twice. {why} belongs in the list once.", **shown)


def _extra_cause(extra: list[str], model: nn.Module) -> str:
    head = f"{extra[0]} is no bias"
    if isinstance(_layer_of(model, extra[0]), nn.LayerNorm):
        return f"{head}: a LayerNorm's weight is a vector, too, and scales. The number of dimensions does not tell."
    last = extra[0].rpartition(".")[2]
    if last.endswith("bias"):
        return f"{head}: its own name is {last!r}, which only ends that way."
    if "bias" in last:
        return f"{head}: its own name is {last!r}, which only holds the word."
    if "bias" in extra[0]:
        return f"{head}: the word is in the name of its layer. What counts is its own name, the last part: {last!r}."
    if model.get_parameter(extra[0]).dim() == 1:
        return f"{head}: not every vector is one. Go by its own name, the last part: {last!r}."
    return f"{head}: go by its own name, the last part: {last!r}."


def _missing_cause(missing: list[str], model: nn.Module) -> str:
    head = f"{missing[0]} is missing" if len(missing) == 1 else f"{missing[0]} and {len(missing) - 1} more are missing"
    own = dict(model.named_parameters())
    if not any(p.requires_grad for p in own.values()):
        return f"{head}: the model is frozen here. BitFit decides what trains, so what trained before does not matter."
    if len(missing) == len(biases_reference(model)):
        return f"Nothing is named that is a bias: {missing[0]} is one."
    if "bias" in missing:
        return "The model's own bias is missing: its whole name is 'bias', without a dot before it."
    kinds = {type(_layer_of(model, name)) for name in missing}
    forgotten = [kind for kind in kinds if all(n in missing for n in own if _is_of(n, kind, model))]
    if Conv1D in forgotten:
        return f"{head}: GPT-2's layers are Conv1D and no nn.Linear. A rule by type knows only the types it names."
    if nn.LayerNorm in forgotten:
        return f"{head}: a LayerNorm has a bias as well, and BitFit trains it."
    if own[missing[0]].dim() > 1:
        return f"{head}: it is a matrix, a row for each head, and a bias all the same. Go by its own name."
    if len(kinds) == len(forgotten) == 1 and nn.Linear not in kinds:
        return f"{head}: it lies in a {kinds.pop().__name__}. A rule by type knows only the types it names."
    return f"{head}: every parameter called bias trains, wherever it lies."


def _is_of(name: str, kind: type[nn.Module], model: nn.Module) -> bool:
    return name.endswith(".bias") and type(_layer_of(model, name)) is kind


def _layer_of(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
