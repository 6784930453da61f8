"""One adapter to a folder and back. LoRA and prefix are written as `peft` writes them, under the names of the model of
`transformers` with the same layout: they open there on that model, and what `peft` has saved opens here.

The other kinds have the same two files in a layout of their own. What is trained outside that model, such as the head
of a Classifier, lies in a third file.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.files import write_folder
from course_lib.model import Encoder, LanguageModel
from course_lib.peft.adapter import Adapter
from course_lib.peft.bitfit import BitFit
from course_lib.peft.full import Full
from course_lib.peft.lora import LoRA
from course_lib.peft.prefix import Prefix, prefix_hosts
from course_lib.peft.slots import is_added, parts_of
from course_lib.peft.strategy import Applied, Strategy, adaptation, apply
from course_lib.peft.switching import load_own, own_state
from course_lib.peft.targets import dimensions, is_transposed
from course_lib.weights import read_settings, read_tensors, to_safetensors

CONFIG, WEIGHTS, OUTSIDE = "adapter_config.json", "adapter_model.safetensors", "outside_the_base.safetensors"
KINDS = {"LORA": LoRA, "PREFIX_TUNING": Prefix, "ADAPTER": Adapter, "BITFIT": BitFit, "FULL": Full}
BEFORE_NAMES, PROMPT = "base_model.model.", "prompt_embeddings"
IN_FILE = {  # a part's parameter: what the file calls it
    "LORA": {"A": "lora_A.weight", "B": "lora_B.weight"},
    "ADAPTER": {name: name for name in ("down.weight", "down.bias", "up.weight", "up.bias")},
}
# what peft's LoRA can do besides; loading it without would compute something else
PLAIN = {"use_dora": False, "bias": "none", "alpha_pattern": {}, "layer_replication": None, "lora_bias": False,
         "trainable_token_indices": None, "target_parameters": None}  # fmt: skip
CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda")  # peft's ways to begin that move the base's own weights


class BaseNames:
    """How the parts of a model are called in the model of transformers with the same layout."""

    def __init__(self, model: nn.Module) -> None:
        ours = ((name, module) for name, module in model.named_modules() if isinstance(module, LanguageModel))
        self.place, self.base = next(ours, ("", model))
        names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
        outward = {self.outward(name): name for name in names if not is_added(name)}
        self._inward = {_bare(name): own for name, own in outward.items() if name} | outward

    def outward(self, name: str) -> str | None:
        """Its name there, None for what lies outside."""
        if self.place:
            if not name.startswith(f"{self.place}."):
                return None
            name = name.removeprefix(f"{self.place}.")
        return self.base.exported_name(name) if isinstance(self.base, LanguageModel) else name

    def inward(self, name: str) -> str | None:
        """Its name here, also where the file's model has a head around it or this one has; None where it is not."""
        return self._inward.get(name) or self._inward.get(_bare(name))


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
            f"{BEFORE_NAMES}{names.outward(host) or host}.{IN_FILE[kind][key]}": parameter
            for host, part in parts.items()
            for key, parameter in part.named_parameters()
        }
    own = own_state(model, applied.name)
    tensors |= {BEFORE_NAMES + base: tensor for key, tensor in own.items() if (base := names.outward(key))}
    outside = {key: tensor for key, tensor in own.items() if not names.outward(key)}
    config = {"peft_type": kind, "inference_mode": True, "base_model_name_or_path": None}
    config |= _settings(applied, kind, model, names)
    contents = {CONFIG: json.dumps(config, indent=2), WEIGHTS: to_safetensors(tensors)}
    return write_folder(folder, contents | ({OUTSIDE: to_safetensors(outside)} if outside else {}))


def load_adapter(model: nn.Module, folder: Path | str, *, name: str = "default") -> Applied:
    """Put a saved adapter on a model and switch it on. `peft`'s LoRA and prefix are read too.

    Raises FileNotFoundError without its files; ValueError, and changes nothing, for a damaged file, a kind or setting
    that the course does not have, an adapter made for another base (named with the shapes), or a name that is taken.
    """
    folder, names = Path(folder), BaseNames(model)
    config, tensors = read_settings(folder / CONFIG), read_tensors(folder / WEIGHTS)
    outside = read_tensors(folder / OUTSIDE) if (folder / OUTSIDE).exists() else {}
    kind = config.get("peft_type")
    if kind not in KINDS:
        raise ValueError(f"{folder} holds an adapter of type {kind!r}: the course reads {', '.join(KINDS)}")
    parts, own = _sorted_out(tensors, kind, names, model)
    saved = [here for there in config.get("modules_to_save") or [] if (here := names.inward(there))]
    saved += dict.fromkeys(key.rpartition(".")[0] for key in outside)
    try:
        strategy = _strategy_of(kind, config, parts)
    except KeyError as error:
        raise ValueError(f"{folder / CONFIG} does not say {error}: save the adapter again") from None
    _check_shapes(model, kind, parts, own | outside, config)
    applied = apply(model, strategy, name=name, modules_to_save=saved)
    with torch.no_grad():
        for host, part in parts_of(model, name).items():
            for key, parameter in part.named_parameters():
                parameter.copy_(parts[host][key])
    load_own(model, own | outside)
    return applied


def _settings(applied: Applied, kind: str, model: nn.Module, names: BaseNames) -> dict[str, Any]:
    saved = [base for module in applied.modules_to_save if (base := names.outward(module))]
    settings: dict[str, Any] = {"modules_to_save": saved or None}
    how, hosts = applied.strategy, list(parts_of(model, applied.name))
    if isinstance(how, LoRA):
        ranks = {names.outward(host) or host: how.rank_of(host) for host in hosts}
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
            "task_type": "FEATURE_EXTRACTION" if isinstance(names.base, Encoder) else "CAUSAL_LM",
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
        _check_plain(config)
        ranks = {host: len(part["A"]) for host, part in parts.items() if "A" in part}
        return LoRA(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            targets=list(ranks),
            rank_stabilized=config.get("use_rslora", False),
            rank_pattern={re.escape(host): rank for host, rank in ranks.items() if rank != config["r"]},
        )
    if kind == "PREFIX_TUNING":
        return Prefix(length=config["num_virtual_tokens"], hidden=None)
    return Adapter(config["bottleneck"], targets=list(parts)) if kind == "ADAPTER" else KINDS[kind]()


def _check_plain(config: Mapping[str, Any]) -> None:
    for name, value in PLAIN.items():
        if config.get(name) not in (value, None):
            raise ValueError(f"the adapter's {name} is {config[name]!r}: the course's LoRA has {value!r} alone")
    begun = str(config.get("init_lora_weights"))
    if begun.lower().startswith(CHANGE_THE_BASE):
        raise ValueError(f"the adapter began as {begun!r}, which changes the base: save it converted to plain LoRA")


def _check_shapes(
    model: nn.Module,
    kind: str,
    parts: Mapping[str, Mapping[str, Tensor]],
    own: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> None:
    wrong = [*_wrong_parts(model, kind, parts, config)]
    parameters = dict(model.named_parameters())
    for key, tensor in own.items():
        if key not in parameters or parameters[key].shape != tensor.shape:
            here = f"is {_by(parameters[key])}" if key in parameters else "is not there"
            wrong.append(f"{key} is {_by(tensor)} in the file and here {here}")
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(f"the adapter was made for another base: {'; '.join(wrong[:3])}{more}")


def _wrong_parts(
    model: nn.Module, kind: str, parts: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]
) -> Iterable[str]:
    if kind == "PREFIX_TUNING":
        hosts = dict(prefix_hosts(model))
        if missing := set(hosts) - set(parts):
            yield f"it holds no prefix for {min(missing) or 'the model'}"
        for host, part in parts.items():
            fit, wanted = hosts[host], (config["num_virtual_tokens"], hosts[host].per_position)
            if tuple(part["embedding"].shape) != wanted:
                yield (
                    f"the prefix is {_by(part['embedding'])}, and {fit.n_layers} layers with {fit.n_heads} heads of "
                    f"{fit.d_head} channels take {' x '.join(map(str, wanted))}"
                )
        return
    for host, part in parts.items():
        if missing := set(IN_FILE[kind]) - set(part):
            yield f"{host} lacks {min(missing)}"
            continue
        n_in, n_out = dimensions(model.get_submodule(host))
        rows, columns = (part["A"], part["B"]) if kind == "LORA" else (part["down.weight"], part["up.weight"])
        n_in = n_in if kind == "LORA" else n_out
        if (rows.shape[1], columns.shape[0]) != (n_in, n_out):
            there = f"takes {rows.shape[1]} and gives {columns.shape[0]} channels there"
            yield f"{host} {there}, and here {n_in} and {n_out}"


def _prompts(model: nn.Module) -> dict[str, str]:
    """{name of the tensor: the module that takes this prefix}; an encoder-decoder has a second one, in its encoder."""
    hosts = [host for host, _ in prefix_hosts(model)]
    return {f"{host}.{PROMPT}" if number else PROMPT: host for number, host in enumerate(hosts)}


def _bare(name: str | None) -> str:
    """A name without the name of the model inside a model with a head."""
    return re.sub(r"^(transformer|bert|roformer|model)\.", "", name or "")


def _by(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
