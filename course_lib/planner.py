"""Published architectures from their dimensions, without their weights: how many numbers each strategy would train.

A skeleton has a model's names and shapes and no memory (torch's meta device), so that the very code that adapts a real
model counts for one that would not fit this machine.
"""

from dataclasses import dataclass

import torch
from torch import nn

from course_lib.layers import TransformerConfig
from course_lib.model import Decoder, Encoder
from course_lib.peft import Strategy, apply
from course_lib.peft.prefix import Dimensions, Prefix


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a model. layout: whose names and parts it has. n_kv_heads: heads of keys and values, where
    several heads share them. source: where the dimensions were published."""

    layout: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_len: int
    source: str
    n_kv_heads: int | None = None

    @property
    def prefix_dimensions(self) -> Dimensions:
        heads = self.n_kv_heads or self.n_heads
        return Dimensions(self.n_layers, heads, self.d_model // self.n_heads, self.max_len)


ARCHITECTURES = {
    "BERT-base": Architecture("bert", 30_522, 768, 12, 12, 3072, 512, "arXiv:1810.04805"),
    "GPT-2": Architecture("gpt2", 50_257, 768, 12, 12, 3072, 1024, "Radford et al. 2019"),
    "Llama-2-7B": Architecture("llama", 32_000, 4096, 32, 32, 11_008, 4096, "arXiv:2307.09288"),
}
# the layers that read queries and values, which LoRA's paper adapts (section 4.2 there), in each layout's names
QUERY_AND_VALUE = {"bert": ["query", "value"], "gpt2": ["attn.c_attn"], "llama": ["q_proj", "v_proj"]}


class LlamaSkeleton(nn.Module):
    """The linear layers, norms and tables of Llama (arXiv:2302.13971), to be counted and not to be run."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        narrow = (a.n_kv_heads or a.n_heads) * (a.d_model // a.n_heads)
        self.embed_tokens = nn.Embedding(a.vocab_size, a.d_model)
        self.layers = nn.ModuleList(self._block(a, narrow) for _ in range(a.n_layers))
        self.norm = nn.RMSNorm(a.d_model)
        self.lm_head = nn.Linear(a.d_model, a.vocab_size, bias=False)

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer, by the name that models of transformers have for it."""
        return self.lm_head

    @staticmethod
    def _block(a: Architecture, narrow: int) -> nn.ModuleDict:
        def linear(n_in: int, n_out: int) -> nn.Linear:
            return nn.Linear(n_in, n_out, bias=False)

        wide, inner = a.d_model, a.d_ff
        attention = {"q_proj": (wide, wide), "k_proj": (wide, narrow), "v_proj": (wide, narrow), "o_proj": (wide, wide)}
        feed_forward = {"gate_proj": (wide, inner), "up_proj": (wide, inner), "down_proj": (inner, wide)}
        return nn.ModuleDict(
            {
                "self_attn": nn.ModuleDict({name: linear(*shape) for name, shape in attention.items()}),
                "mlp": nn.ModuleDict({name: linear(*shape) for name, shape in feed_forward.items()}),
                "input_layernorm": nn.RMSNorm(wide),
                "post_attention_layernorm": nn.RMSNorm(wide),
            }
        )


def skeleton(architecture: Architecture) -> nn.Module:
    """A model of these dimensions with names and shapes and no memory.

    Raises ValueError for an unknown layout.

    >>> sum(p.numel() for p in skeleton(ARCHITECTURES["Llama-2-7B"]).parameters())
    6738415616
    """
    a = architecture
    with torch.device("meta"):
        if a.layout == "llama":
            return LlamaSkeleton(a)
        if a.layout not in ("bert", "gpt2"):
            raise ValueError(f"layout {a.layout!r} is unknown: choose one of {', '.join(QUERY_AND_VALUE)}")
        config = TransformerConfig(a.vocab_size, a.d_model, a.n_layers, a.n_heads, a.d_ff, a.max_len)
        return Encoder(config, head=False) if a.layout == "bert" else Decoder(config)


def trained_parameters(architecture: Architecture, strategy: Strategy) -> tuple[int, int]:
    """How many numbers a strategy would train of a published architecture, and of how many, its own among them.

    Raises ValueError where the strategy finds nothing to train, as BitFit in Llama, which has no biases.

    >>> from course_lib.peft import LoRA
    >>> trained_parameters(ARCHITECTURES["BERT-base"], LoRA(rank=8, targets=["query", "value"]))[0]
    294912
    """
    model = skeleton(architecture)
    if isinstance(strategy, Prefix):  # the skeleton of a Llama takes no keys and values: count them
        if strategy.hidden is not None:
            raise ValueError("hidden is a width of the network that makes a prefix, which is folded away: give None")
        if strategy.length >= architecture.max_len:
            raise ValueError(
                f"length is {strategy.length}: the model has {architecture.max_len} positions, leave some to the text"
            )
        added = strategy.length * architecture.prefix_dimensions.per_position
        return added, added + sum(parameter.numel() for parameter in model.parameters())
    with torch.device("meta"):  # what is added has no memory either
        applied = apply(model, strategy)
    return applied.n_trained, applied.n_parameters
