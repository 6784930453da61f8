"""Published architectures from their dimensions, without their weights.

A skeleton has a model's names and shapes and no memory (torch's meta device), so that the very code that adapts a real
model counts for one that would not fit this machine.
"""

from dataclasses import dataclass

import torch
from torch import nn

from course_lib.layers import TransformerConfig
from course_lib.model import Decoder, Encoder, LanguageModel

# the layers that read queries and values, which LoRA's paper adapts (section 4.2 there), in each layout's names
QUERY_AND_VALUE = {
    "bert": ["query", "value"],
    "gpt2": ["attn.c_attn"],
    "llama": ["q_proj", "v_proj"],
    "roformer": ["query", "value"],
}


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a model.

    layout: whose names and parts it has ("roformer" is BERT's with rotary positions). source: where the dimensions
    were published. n_kv_heads: heads of keys and values, where several heads of queries share them. head: whether an
    encoder has the head that predicts masked tokens; decoders always have their output layer.
    Raises ValueError for an unknown layout, or heads that do not fit.

    >>> Architecture("llama", 100, d_model=12, n_layers=1, n_heads=4, d_ff=24, max_len=8, source="", n_kv_heads=3)
    Traceback (most recent call last):
    ...
    ValueError: 4 heads cannot share the keys and values of 3: give n_kv_heads that divides n_heads
    """

    layout: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_len: int
    source: str
    n_kv_heads: int | None = None
    head: bool = False

    def __post_init__(self) -> None:
        if self.layout not in QUERY_AND_VALUE:
            raise ValueError(f"layout {self.layout!r} is unknown: choose one of {', '.join(QUERY_AND_VALUE)}")
        self.config()  # refuses what does not fit
        if self.n_kv_heads is not None and self.layout != "llama":
            raise ValueError(f"n_kv_heads is {self.n_kv_heads}: only heads of layout 'llama' share keys and values")
        if self.n_kv_heads is not None and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            raise ValueError(
                f"{self.n_heads} heads cannot share the keys and values of {self.n_kv_heads}: "
                "give n_kv_heads that divides n_heads"
            )

    @property
    def kv_width(self) -> int:
        """Channels of all heads of keys, or of values."""
        return (self.n_kv_heads or self.n_heads) * (self.d_model // self.n_heads)

    @property
    def predicts(self) -> bool:
        """Whether it has an output layer over the vocabulary."""
        return self.head or self.layout in ("gpt2", "llama")

    def config(self) -> TransformerConfig:
        """The same dimensions as our own models take them."""
        positions = "rotary" if self.layout == "roformer" else "learned"
        return TransformerConfig(
            self.vocab_size, self.d_model, self.n_layers, self.n_heads, self.d_ff, self.max_len, positions
        )


ARCHITECTURES = {
    "BERT-base": Architecture("bert", 30_522, 768, 12, 12, 3072, 512, "arXiv:1810.04805"),
    "BERT-large": Architecture("bert", 30_522, 1024, 24, 16, 4096, 512, "arXiv:1810.04805"),
    "GPT-2": Architecture("gpt2", 50_257, 768, 12, 12, 3072, 1024, "Radford et al. 2019"),
    "GPT-2 medium": Architecture("gpt2", 50_257, 1024, 24, 16, 4096, 1024, "Radford et al. 2019"),
    "GPT-2 large": Architecture("gpt2", 50_257, 1280, 36, 20, 5120, 1024, "Radford et al. 2019"),
    "GPT-2 XL": Architecture("gpt2", 50_257, 1600, 48, 25, 6400, 1024, "Radford et al. 2019"),
    "GPT-3 175B": Architecture("gpt2", 50_257, 12_288, 96, 96, 49_152, 2048, "arXiv:2005.14165"),
    "LLaMA-65B": Architecture("llama", 32_000, 8192, 80, 64, 22_016, 2048, "arXiv:2302.13971"),
    "Llama-2-7B": Architecture("llama", 32_000, 4096, 32, 32, 11_008, 4096, "arXiv:2307.09288"),
    "Llama-2-13B": Architecture("llama", 32_000, 5120, 40, 40, 13_824, 4096, "arXiv:2307.09288"),
    "Llama-2-70B": Architecture("llama", 32_000, 8192, 80, 64, 28_672, 4096, "arXiv:2307.09288", n_kv_heads=8),
    "Llama-3-8B": Architecture("llama", 128_256, 4096, 32, 32, 14_336, 8192, "arXiv:2407.21783", n_kv_heads=8),
}


def architecture(name: str) -> Architecture:
    """A published architecture by its name in ARCHITECTURES.

    Raises ValueError, with the known names, for another.

    >>> architecture("GPT-2").n_layers
    12
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture {name!r} is unknown: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def dimensions_of(model: LanguageModel) -> Architecture:
    """The architecture of one of our own decoders or encoders.

    Raises ValueError for a model of another kind.

    >>> dimensions_of(Decoder(TransformerConfig(vocab_size=50, d_model=8, n_heads=2, n_layers=2))).layout
    'gpt2'
    """
    if model.layout not in QUERY_AND_VALUE:
        raise ValueError(f"this {type(model).__name__} is none of the layouts {', '.join(QUERY_AND_VALUE)}")
    c = model.config
    sizes = (c.vocab_size, c.d_model, c.n_layers, c.n_heads, c.d_ff, c.max_len)
    has_head = getattr(model, "cls", None) is not None
    return Architecture(model.layout, *sizes, source="course_lib.model", head=has_head)


class LlamaSkeleton(nn.Module):
    """The linear layers, norms and tables of Llama (arXiv:2302.13971), to be counted and not to be run."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(a.vocab_size, a.d_model)
        self.layers = nn.ModuleList(self._block(a) for _ in range(a.n_layers))
        self.norm = nn.RMSNorm(a.d_model)
        self.lm_head = nn.Linear(a.d_model, a.vocab_size, bias=False)

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer, by the name that models of transformers have for it."""
        return self.lm_head

    @staticmethod
    def _block(a: Architecture) -> nn.ModuleDict:
        def linear(n_in: int, n_out: int) -> nn.Linear:
            return nn.Linear(n_in, n_out, bias=False)

        wide, narrow, inner = a.d_model, a.kv_width, a.d_ff
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

    >>> sum(p.numel() for p in skeleton(ARCHITECTURES["Llama-2-7B"]).parameters())
    6738415616
    """
    with torch.device("meta"):
        if architecture.layout == "llama":
            return LlamaSkeleton(architecture)
        if architecture.layout == "gpt2":
            return Decoder(architecture.config())
        return Encoder(architecture.config(), head=architecture.head)
