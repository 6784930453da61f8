"""Prefix tuning (arXiv:2101.00190): in every layer, trained keys and values that stand before those of the text.

They are handed in as a KV cache hands in what was read before, and that is all: the text's positions begin at the
prefix's length, in training and generation alike.
Axes: B row of the batch, P position in the prefix, H head of keys and values, D channel of a head, L layer.
"""

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.model import Cache, Decoder, Encoder, EncoderDecoder, LanguageModel, TwoStream
from course_lib.peft.slots import Part, parts_of
from course_lib.peft.strategy import Strategy, adaptation

INIT_STD = 0.02
NEEDED = ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings")


@dataclass(frozen=True)
class Dimensions:
    """What a prefix must fit: layers, heads of keys and values, channels of a head, positions of the model."""

    n_layers: int
    n_heads: int
    d_head: int
    max_len: int

    @property
    def per_position(self) -> int:
        """Numbers at each position of a prefix: keys and values of every layer."""
        return self.n_layers * 2 * self.n_heads * self.d_head


class PrefixKeysValues(Part):
    """The keys and values, or what they are made from while they are trained.

    embedding: [P, L * 2 * H * D] or, with a network, [P, H * D]. network: makes the former of the latter; two layers
    with tanh between (section 4.3 there), None once it is folded away.
    """

    def __init__(self, dimensions: Dimensions, length: int, hidden: int | None) -> None:
        super().__init__()
        self.dimensions, self.length, self.network = dimensions, length, None
        self._hands_out = True  # whether the host's next output may hold the cache
        width = dimensions.n_heads * dimensions.d_head
        channels = dimensions.per_position
        if hidden is not None:
            self.network = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, channels))
            channels = width
        self.embedding = nn.Parameter(torch.empty(length, channels))
        nn.init.normal_(self.embedding, std=1.0 if self.network else INIT_STD)

    def keys_values(self) -> Tensor:
        """[P, L * 2 * H * D], laid out as `peft` stores a prefix."""
        return self.embedding if self.network is None else self.network(self.embedding)

    def fold(self) -> None:
        """Replace network and embedding by the keys and values that they make."""
        made = self.keys_values().detach()
        trains = self.embedding.requires_grad
        self.embedding, self.network = nn.Parameter(made, requires_grad=trains), None

    def cache(self, n_rows: int, dtype: torch.dtype) -> Cache:
        """Keys and values [B, H, P, D] of each layer, the same for every row."""
        d = self.dimensions
        layers_LKHPD = self.keys_values().view(self.length, d.n_layers, 2, d.n_heads, d.d_head).permute(1, 2, 3, 0, 4)
        layers_LKHPD = layers_LKHPD.to(dtype)
        return [tuple(part_HPD.expand(n_rows, -1, -1, -1) for part_HPD in layer) for layer in layers_LKHPD]

    def before(self, host: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        bound = inspect.signature(host.forward).bind(*args, **kwargs)
        given = bound.arguments
        given |= given.pop("kwargs", {})
        dtype = next(p for p in host.parameters() if p.is_floating_point()).dtype
        (self._into_ours if isinstance(host, LanguageModel) else self._into_theirs)(host, given, dtype)
        return (), given

    def after(self, x: Tensor, output: Any) -> Any:
        """Takes a cache that nobody has asked for out of the output: it would be handed in again."""
        if not self._hands_out:
            for name in ("cache", "past_key_values"):
                if getattr(output, name, None) is not None:
                    setattr(output, name, None)
        return output

    def _into_ours(self, host: LanguageModel, given: dict[str, Any], dtype: torch.dtype) -> None:
        is_pair = isinstance(host, EncoderDecoder)
        if given.get("cache") is None:
            ids = given["decoder_input_ids_BS" if is_pair else "input_ids_BT"]
            given["cache"] = self.cache(len(ids), dtype)
        if given.get("may_attend_BQK") is not None and not is_pair:  # an encoder-decoder's says who sees the input
            given["may_attend_BQK"] = F.pad(given["may_attend_BQK"], (self.length, 0), value=True)
        if given.get("position_BT") is not None:
            given["position_BT"] = given["position_BT"] + self.length

    def _into_theirs(self, host: nn.Module, given: dict[str, Any], dtype: torch.dtype) -> None:
        if host.training and any(getattr(module, "gradient_checkpointing", False) for module in host.modules()):
            raise ValueError("transformers drops the cache under gradient checkpointing, and a prefix with it: turn "
                             "one of the two off")  # fmt: skip
        name = _cache_argument(host)
        ids = given.get("input_ids") if given.get("input_ids") is not None else given["inputs_embeds"]
        cache = given.pop("past_key_values", None) if given.get(name) is None else given[name]
        self._hands_out = cache is not None or bool(given.get("use_cache"))
        if cache is None:
            cache = sys.modules["transformers"].DynamicCache()  # there, with a model of it; never imported here
        if "Static" in type(cache).__name__:
            raise ValueError("a prefix needs a cache that grows, and this one is static: generate with another")
        if cache.get_seq_length() == 0:
            for layer, (k_BHPD, v_BHPD) in enumerate(self.cache(len(ids), dtype)):
                cache.update(k_BHPD, v_BHPD, layer)
        given[name] = cache
        if given.get("attention_mask") is None:  # some encoders forget what stands before, unless a mask says it
            earlier = cache.get_seq_length() - self.length
            given["attention_mask"] = torch.ones(len(ids), earlier + ids.shape[1], dtype=torch.long, device=ids.device)
        mask = given["attention_mask"]
        is_added_to_scores = mask.is_floating_point() and mask.dim() == 4  # then 0 says that a query may look
        given["attention_mask"] = F.pad(mask, (self.length, 0), value=0 if is_added_to_scores else 1)
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + self.length
        given.pop("cache_position", None)  # counted anew from the cache


@dataclass(frozen=True)
class Prefix(Strategy):
    """Trained keys and values before those of the text, in every layer (of an encoder-decoder: of both).

    length: of the prefix, in positions, which the text then has fewer of. hidden: width of the network that makes the
    prefix while it is trained, which steadies training (section 4.3 there); None for none. `fold` takes it away.
    Raises ValueError for numbers below 1; when applied, for a prefix that leaves the model no position, or a model that
    takes no earlier keys and values.

    >>> from course_lib.layers import TransformerConfig
    >>> from course_lib.peft import apply
    >>> model = Decoder(TransformerConfig(vocab_size=50, d_model=8, n_layers=2, n_heads=2, d_ff=16, max_len=16))
    >>> applied = apply(model, Prefix(length=3, hidden=None))
    >>> applied.n_trained  # positions x layers x (keys and values) x channels
    96
    """

    kind: ClassVar[str] = "prefix"

    length: int = 16
    hidden: int | None = 128

    def __post_init__(self) -> None:
        for name, value in {"length": self.length, "hidden": self.hidden}.items():
            if value is None and name == "hidden":
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: give a whole number of at least 1")

    def parts(self, model: nn.Module, modules_to_save: tuple[str, ...]) -> dict[str, Part]:
        found = dict(prefix_hosts(model))
        if not found:
            raise ValueError(
                f"this {type(model).__name__} takes no earlier keys and values: a prefix needs a decoder, an encoder "
                "or an encoder-decoder of the course, or a decoder or encoder of transformers"
            )
        for dimensions in found.values():
            if self.length >= dimensions.max_len:
                raise ValueError(
                    f"a prefix of length {self.length} leaves no position of the model's {dimensions.max_len} to the "
                    "text: shorten it"
                )
        return {host: PrefixKeysValues(dimensions, self.length, self.hidden) for host, dimensions in found.items()}


def fold(model: nn.Module, name: str | None = None) -> None:
    """Replace the network that makes a prefix by the keys and values that it makes, for use after training. name: of
    the adapter, by default the active one.

    Raises ValueError where the model has no prefix of this name.
    """
    name = adaptation(model).lookup(name).name
    prefixes = [part for part in parts_of(model, name).values() if isinstance(part, PrefixKeysValues)]
    if not prefixes:
        raise ValueError(f"adapter {name!r} is no prefix of this model: there is nothing to fold")
    for prefix in prefixes:
        prefix.fold()


@torch.no_grad()
def prefix_cache(model: nn.Module, name: str | None = None) -> Cache:
    """The keys and values [1, H, P, D] of a model's prefix, by default the active one, as a cache.

    Raises ValueError where the model has no prefix of this name, or not just one.
    """
    name = adaptation(model).lookup(name).name
    prefixes = [part for part in parts_of(model, name).values() if isinstance(part, PrefixKeysValues)]
    if len(prefixes) != 1:
        raise ValueError(f"adapter {name!r} has {len(prefixes)} prefixes on this model: one can be handed out")
    return prefixes[0].cache(1, prefixes[0].embedding.dtype)


def prefix_hosts(model: nn.Module) -> Iterator[tuple[str, Dimensions]]:
    """The modules in a model that take earlier keys and values, by name."""
    for name, module in model.named_modules():
        if isinstance(module, (Decoder, Encoder, EncoderDecoder)) and not isinstance(module, TwoStream):
            c = module.config
            yield name, Dimensions(c.n_layers, c.n_heads, c.d_head, c.max_len)
        elif getattr(module, "base_model", None) is module and _cache_argument(module):
            c = module.config
            if c.is_encoder_decoder or not all(hasattr(c, key) for key in NEEDED):
                continue
            heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
            d_head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
            yield name, Dimensions(c.num_hidden_layers, heads, d_head, c.max_position_embeddings)


def _cache_argument(host: nn.Module) -> str | None:
    """What this version of transformers calls the cache; None for a model that takes none."""
    names = inspect.signature(host.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)
