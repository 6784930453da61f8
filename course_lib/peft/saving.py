"""One adapter to a folder and back. LoRA and prefix are written as `peft` writes them, under the names of the model of
`transformers` with the same layout: they open there on that model, and what `peft` has saved opens here.

The other kinds have the same two files in a layout of their own. What is trained outside that model, such as the head
of a Classifier, lies in a third file.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.files import write_folder
from course_lib.model import Decoder, LanguageModel
from course_lib.peft.adapter import Adapter
from course_lib.peft.bitfit import BitFit
from course_lib.peft.full import Full
from course_lib.peft.lora import LoRA
from course_lib.peft.prefix import Prefix, prefix_hosts
from course_lib.peft.slots import is_added, parts_of
from course_lib.peft.strategy import Applied, Strategy, adaptation, apply
from course_lib.peft.switching import load_own, own_state
from course_lib.peft.targets import exactly, is_transposed
from course_lib.weights import read_notes, read_settings, read_tensors, to_safetensors

CONFIG, WEIGHTS, OUTSIDE = "adapter_config.json", "adapter_model.safetensors", "outside_the_base.safetensors"
KINDS = {"LORA": LoRA, "PREFIX_TUNING": Prefix, "ADAPTER": Adapter, "BITFIT": BitFit, "FULL": Full}
BEFORE_NAMES, PROMPT = "base_model.model.", "prompt_embeddings"
IN_FILE = {  # a part's parameter: what the file calls it
    "LORA": {"A": "lora_A.weight", "B": "lora_B.weight"},
    "ADAPTER": {name: name for name in ("down.weight", "down.bias", "up.weight", "up.bias")},
}
# settings of peft's LoRA that are read here, or that change nothing in an adapter that has been trained; whatever else
# is set there would compute something that the course's LoRA does not
KNOWN = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version",
    "runtime_config", "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules",
    "exclude_modules", "rank_pattern", "fan_in_fan_out", "init_lora_weights", "modules_to_save",
    "layers_to_transform", "layers_pattern", "megatron_config", "megatron_core", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
OFF = (None, False, "none", "", {}, [], 0)
CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # ways to begin that move the base's own weights


class BaseNames:
    """How the parts of a model are called in the model of transformers with the same layout."""

    def __init__(self, model: nn.Module) -> None:
        ours = ((name, module) for name, module in model.named_modules() if isinstance(module, LanguageModel))
        self.place, self.base = next(ours, ("", model))
        names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
        names = [name for name in names if not is_added(name)]
        outward = {there: name for name in names if (there := self.outward(name)) is not None}
        outside = {name: name for name in names if self.outward(name) is None}
        self._inward = outside | {_bare(there): own for there, own in outward.items()} | outward

    def outward(self, name: str) -> str | None:
        """Its name there, None for what lies outside."""
        if self.place:
            if not name.startswith(f"{self.place}."):
                return None
            name = name.removeprefix(f"{self.place}.")
        return self.base.exported_name(name) if isinstance(self.base, LanguageModel) else name

    def inward(self, name: str) -> str | None:
        """Its name here, also where the file's model has a head around it or this one has; None where it is not."""
        return self._inward.get(name, self._inward.get(_bare(name)))

    def in_file(self, host: str) -> str:
        """What a module is called in a file, whether it lies in the base or outside."""
        return host if self.outward(host) is None else self.outward(host)


def save_adapter(model: nn.Module, folder: Path | str, name: str | None = None) -> Path:
    """Write one adapter (the active one, if no name is given) and nothing of its base, as a folder that is whole or
    absent.

    Raises ValueError for a name that is not there.
    """
    applied, names = adaptation(model).lookup(name), BaseNames(model)
    kind = next(kind for kind, strategy in KINDS.items() if isinstance(applied.strategy, strategy))
    parts = parts_of(model, applied.name)
    if kind == "PREFIX_TUNING":
        tensors = {name: parts[host].keys_values() for name, host in _prompts(model).items()}
    else:
        tensors = {
            f"{BEFORE_NAMES}{names.in_file(host)}.{IN_FILE[kind][key]}": parameter
            for host, part in parts.items()
            for key, parameter in part.named_parameters()
        }
    own = own_state(model, applied.name)
    tensors |= {BEFORE_NAMES + base: tensor for key, tensor in own.items() if (base := names.outward(key))}
    outside = {key: tensor for key, tensor in own.items() if not names.outward(key)}
    config = {"peft_type": kind, "inference_mode": True, "base_model_name_or_path": None}
    config |= _settings(applied, kind, model, names)
    notes = {"outside": OUTSIDE} if outside else {}
    contents = {CONFIG: json.dumps(config, indent=2), WEIGHTS: to_safetensors(tensors, **notes)}
    return write_folder(folder, contents | ({OUTSIDE: to_safetensors(outside)} if outside else {}))


def load_adapter(model: nn.Module, folder: Path | str, *, name: str = "default") -> Applied:
    """Put a saved adapter on a model and switch it on. `peft`'s LoRA and prefix are read too.

    Raises FileNotFoundError without its files; ValueError, and changes nothing, for a damaged file, a kind or setting
    that the course does not have, an adapter made for another base (named with the shapes), or a name that is taken.
    """
    folder, names = Path(folder), BaseNames(model)
    config, tensors = read_settings(folder / CONFIG), read_tensors(folder / WEIGHTS)
    outside = read_tensors(folder / OUTSIDE) if "outside" in read_notes(folder / WEIGHTS) else {}
    kind = config.get("peft_type")
    if kind not in KINDS:
        raise ValueError(f"{folder} holds an adapter of type {kind!r}: the course reads {', '.join(KINDS)}")
    if kind == "LORA":
        _check_plain(config)
    parts, own = _sorted_out(tensors, kind, names, model)
    own |= outside
    try:
        strategy = _strategy_of(kind, config, parts)
    except KeyError as error:
        raise ValueError(f"{folder / CONFIG} does not say {error}: save the adapter again") from None
    declared = strategy.own_parameters(model)
    saved = tuple(dict.fromkeys(key.rpartition(".")[0] for key in own if key not in declared))
    _check_whole(parts, config, names)
    _check_shapes(model, strategy, parts, own, declared, saved)
    applied = apply(model, strategy, name=name, modules_to_save=saved)
    with torch.no_grad():
        for host, part in parts_of(model, name).items():
            for key, parameter in part.named_parameters():
                parameter.copy_(parts[host][key])
    load_own(model, own)
    return applied


def _settings(applied: Applied, kind: str, model: nn.Module, names: BaseNames) -> dict[str, Any]:
    saved = [base for module in applied.modules_to_save if (base := names.outward(module))]
    settings: dict[str, Any] = {"modules_to_save": saved or None}
    how, hosts = applied.strategy, list(parts_of(model, applied.name))
    if isinstance(how, LoRA):
        ranks = {names.in_file(host): how.rank_of(host) for host in hosts}
        settings |= {
            "r": how.rank,
            "lora_alpha": how.alpha,
            "lora_dropout": how.dropout,
            "use_rslora": how.rank_stabilized,
            "target_modules": list(ranks),
            "rank_pattern": {re.escape(host): rank for host, rank in ranks.items() if rank != how.rank},
            "fan_in_fan_out": all(is_transposed(model.get_submodule(host)) for host in hosts),
            "bias": "none",
            "task_type": None,
        }
    elif isinstance(how, Prefix):
        fit = next(dimensions for _, dimensions in prefix_hosts(model))
        settings |= {
            "num_virtual_tokens": how.length,
            "num_layers": fit.n_layers,
            "num_attention_heads": fit.n_heads,
            "token_dim": fit.n_heads * fit.d_head,
            "encoder_hidden_size": fit.n_heads * fit.d_head,
            "num_transformer_submodules": 1,
            "prefix_projection": False,
            "task_type": "CAUSAL_LM" if _is_causal(names.base) else "FEATURE_EXTRACTION",
        }
    elif isinstance(how, Adapter):
        settings |= {"bottleneck": how.bottleneck}
    return settings


def _sorted_out(
    tensors: Mapping[str, Tensor], kind: str, names: BaseNames, model: nn.Module
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of each part, {module: {parameter: tensor}}, and those of the model's own parameters, by their names
    here."""
    parts: dict[str, dict[str, Tensor]] = {}
    own: dict[str, Tensor] = {}
    hosts = _prompts(model) if kind == "PREFIX_TUNING" else {}
    for there, tensor in tensors.items():
        if there in hosts:
            parts[hosts[there]] = {"embedding": tensor}
            continue
        bare = there.removeprefix(BEFORE_NAMES)
        ending = next((k for k, end in IN_FILE.get(kind, {}).items() if bare.endswith(f".{end}")), None)
        place = bare if ending is None else bare.removesuffix(f".{IN_FILE[kind][ending]}")
        here = names.inward(place)
        if here is None:
            raise ValueError(f"the adapter was made for another base: this {type(model).__name__} has no {place}")
        if ending is None:
            own[here] = tensor
        else:
            parts.setdefault(here, {})[ending] = tensor
    return parts, own


def _strategy_of(kind: str, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]]) -> Strategy:
    if kind == "LORA":
        ranks = {host: len(part["A"]) for host, part in parts.items() if "A" in part}
        return LoRA(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout") or 0.0,
            targets=exactly(ranks),
            rank_stabilized=bool(config.get("use_rslora")),
            rank_pattern={f"^{re.escape(host)}": rank for host, rank in ranks.items() if rank != config["r"]},
        )
    if kind == "PREFIX_TUNING":
        return Prefix(length=config["num_virtual_tokens"], hidden=None)
    return Adapter(config["bottleneck"], targets=exactly(parts)) if kind == "ADAPTER" else KINDS[kind]()


def _check_plain(config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        if name not in KNOWN and value not in OFF:
            raise ValueError(f"the adapter's {name} is {value!r}: the course's LoRA does not have that")
    begun = str(config.get("init_lora_weights"))
    if begun.lower().startswith(CHANGE_THE_BASE):
        raise ValueError(f"the adapter began as {begun!r}, which changes the base: save it converted to plain LoRA")


def _check_whole(parts: Mapping[str, Any], config: Mapping[str, Any], names: BaseNames) -> None:
    """Refuses a file that lacks the update of a layer that its settings name in full."""
    targets = config.get("target_modules") or []
    for target in [] if isinstance(targets, str) else sorted(targets):
        here = names.inward(target)
        if here is not None and names.in_file(here) == target and here not in parts:
            raise ValueError(f"the adapter lacks the update of {target}, which its settings name: save it again")


def _check_shapes(
    model: nn.Module,
    strategy: Strategy,
    parts: Mapping[str, Mapping[str, Tensor]],
    own: Mapping[str, Tensor],
    declared: Sequence[str],
    saved: tuple[str, ...],
) -> None:
    """Refuses tensors that do not fit what the strategy would put on this model, or train of it."""
    with torch.device("meta"):
        fresh = strategy.parts(model, saved)
    wanted = {_label(host, key): p for host, part in fresh.items() for key, p in part.named_parameters()}
    given = {_label(host, key): tensor for host, part in parts.items() for key, tensor in part.items()}
    parameters = dict(model.named_parameters())
    wanted |= {key: parameters[key] for key in (*declared, *own) if key in parameters}
    given |= own
    wrong = []
    for key in sorted(wanted.keys() | given.keys()):
        there, here = (_by(tensors[key]) if key in tensors else None for tensors in (given, wanted))
        if there != here:
            wrong.append(f"{key} is {there or 'missing'} in the file and here {here or 'has no place'}")
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(f"the adapter was made for another base, or is damaged: {'; '.join(wrong[:3])}{more}")


def _label(host: str, key: str) -> str:
    return f"the prefix of {host or 'the model'}" if key == "embedding" else f"{host}.{key}"


def _is_causal(base: nn.Module) -> bool:
    if isinstance(base, LanguageModel):
        return isinstance(base, Decoder)
    return any(getattr(module, "is_causal", False) for module in base.modules())


def _prompts(model: nn.Module) -> dict[str, str]:
    """{name of the tensor: the module that takes this prefix}; an encoder-decoder has a second one, in its encoder."""
    hosts = [host for host, _ in prefix_hosts(model)]
    return {f"{host}.{PROMPT}" if number else PROMPT: host for number, host in enumerate(hosts)}


def _bare(name: str) -> str:
    """A name without the name of the model inside a model with a head."""
    return re.sub(r"^(transformer|bert|roformer|model)\.", "", name)


def _by(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
