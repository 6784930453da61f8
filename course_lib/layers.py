"""The parts of a transformer (arXiv:1706.03762): attention over one stream or two, positions, and the two kinds of
block that the course needs, laid out weight for weight as GPT-2's and BERT's.

A block reads `x` and attends to a `source` (itself, unless told otherwise). Keys and values of earlier positions may be
handed in and are handed back: that is the whole mechanism of a KV cache.
Axes: B row of the batch, T position, Q position that looks, K position that is looked at, H head, D channel of a head,
E channel of the model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeyValues = Sequence[Tensor]  # keys and values, [B, H, K, D] each: a pair, or Preallocated
Rotation = tuple[Tensor, Tensor]  # cosine and sine, [B or 1, 1, T, D / 2] each

ACTIVATIONS = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


@dataclass(frozen=True)
class TransformerConfig:
    """The dimensions of a model.

    d_model, d_ff: channels of the model and of its feed-forward layers. max_len: the longest sequence, in tokens.
    positions: "learned" (a table, as BERT and GPT-2) or "rotary" (RoFormer, arXiv:2104.09864; encoders only).
    Raises ValueError for dimensions that do not fit each other.

    >>> TransformerConfig(vocab_size=10, d_model=100, n_heads=3)
    Traceback (most recent call last):
    ...
    ValueError: d_model 100 is not divisible by n_heads 3: choose a multiple
    """

    vocab_size: int
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    d_ff: int = 1024
    max_len: int = 256
    positions: Literal["learned", "rotary"] = "learned"
    dropout: float = 0.0
    activation: str = "gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: give a whole number of at least 1")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}: choose a multiple")
        if self.positions not in ("learned", "rotary"):
            raise ValueError(f"positions is {self.positions!r}: choose 'learned' or 'rotary'")
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(f"rotary positions turn pairs of channels, and a head has {self.d_head}: make it even")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}: give a probability of at least 0 and below 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is unknown: choose one of {', '.join(ACTIVATIONS)}")
        if not 0.0 < self.norm_eps < 1.0:
            raise ValueError(f"norm_eps is {self.norm_eps}: give a small number above 0, such as 1e-5")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    def with_(self, **changes: object) -> "TransformerConfig":
        """A copy with some fields changed."""
        return replace(self, **changes)


def attend(q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, may_attend_BQK: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention, [B, H, Q, D]. A query that may look at nobody gets zeros.

    may_attend_BQK: bool, True where a query may look at a key; axes of length 1 broadcast. What a query may not look
    at changes not one bit of its result. (Written out, because at the course's sizes this is faster on a CPU than
    torch's fused kernel.)
    Raises ValueError for what is no bool with three axes.

    >>> x = torch.eye(2)[None, None]
    >>> attend(x, x, x, torch.tensor([[[True, False], [False, False]]])).tolist()
    [[[[1.0, 0.0], [0.0, 0.0]]]]
    """
    if may_attend_BQK.dim() != 3 or may_attend_BQK.dtype != torch.bool:
        raise ValueError(
            f"may_attend_BQK is {may_attend_BQK.dtype} of shape {tuple(may_attend_BQK.shape)}: give bool "
            "[batch, query, key], as course_lib.masks makes them"
        )
    may_attend_BHQK = may_attend_BQK[:, None]
    scores_BHQK = q_BHQD @ k_BHKD.mT / math.sqrt(q_BHQD.shape[-1])
    scores_BHQK = scores_BHQK.masked_fill(~may_attend_BHQK, torch.finfo(scores_BHQK.dtype).min)
    weights_BHQK = F.dropout(scores_BHQK.softmax(-1), dropout, training=dropout > 0)
    return (weights_BHQK.to(v_BHKD.dtype) @ v_BHKD).masked_fill(~may_attend_BHQK.any(-1, keepdim=True), 0.0)


def rotation(position_BT: Tensor, d_head: int) -> Rotation:
    """How far rotary positions turn each pair of channels: position / 10000^(2 i / d_head) radians for pair i.

    position_BT: int64 [B or 1, T].
    """
    frequency_I = 10000.0 ** (-torch.arange(0, d_head, 2, device=position_BT.device, dtype=torch.float32) / d_head)
    angle_B1TI = position_BT[:, None, :, None] * frequency_I
    return angle_B1TI.cos(), angle_B1TI.sin()


def rotate(x_BHTD: Tensor, turn: Rotation) -> Tensor:
    """Turn neighbouring channels (0 and 1, 2 and 3, ...) by their angle, interleaved as RoFormer does.

    >>> quarter = (torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    >>> rotate(torch.tensor([[[[1.0, 0.0]]]]), quarter).tolist()
    [[[[0.0, 1.0]]]]
    """
    cos_B1TI, sin_B1TI = turn
    cos_B1TD = cos_B1TI.repeat_interleave(2, dim=-1).to(x_BHTD.dtype)
    sin_B1TD = torch.stack((-sin_B1TI, sin_B1TI), dim=-1).flatten(-2).to(x_BHTD.dtype)
    neighbour_BHTD = x_BHTD.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x_BHTD * cos_B1TD + neighbour_BHTD * sin_B1TD


def split_heads(x_BTE: Tensor, n_heads: int) -> Tensor:
    """[B, T, E] to [B, H, T, D]."""
    return x_BTE.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x_BHTD: Tensor) -> Tensor:
    """[B, H, T, D] to [B, T, E]."""
    return x_BHTD.transpose(1, 2).flatten(2)


class Preallocated(Sequence):
    """Keys and values with room for those of `room` more positions: going on writes them there, and copies nothing
    that is there already. It is changed by that, so it serves one continuation.

    >>> seen = Preallocated((torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)), room=3)
    >>> extend(seen, torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))[0].shape
    torch.Size([1, 1, 3, 4])
    """

    def __init__(self, seen: KeyValues, room: int) -> None:
        self.length = seen[0].shape[2]
        self._whole = [F.pad(part_BHKD, (0, 0, 0, room)) for part_BHKD in seen]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, which: int) -> Tensor:
        return self._whole[which][:, :, : self.length]

    def extended(self, *new: Tensor) -> "Preallocated":
        """Itself, with these keys and values behind the others.

        Raises ValueError where there is no room for them.
        """
        end, room = self.length + new[0].shape[2], self._whole[0].shape[2]
        if end > room:
            raise ValueError(f"{end} positions do not fit the {room} that there is room for: ask for more")
        for whole_BHKD, new_BHTD in zip(self._whole, new, strict=True):
            whole_BHKD[:, :, self.length : end] = new_BHTD
        self.length = end
        return self


def extend(earlier: KeyValues | None, k_BHTD: Tensor, v_BHTD: Tensor) -> KeyValues:
    """Keys and values with earlier ones before them."""
    if earlier is None:
        return k_BHTD, v_BHTD
    if isinstance(earlier, Preallocated):
        return earlier.extended(k_BHTD, v_BHTD)
    return torch.cat([earlier[0], k_BHTD], dim=2), torch.cat([earlier[1], v_BHTD], dim=2)


class Conv1D(nn.Module):
    """A linear layer whose weight is stored as [in, out], as GPT-2's."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)

    def extra_repr(self) -> str:
        return f"n_in={self.weight.shape[0]}, n_out={self.weight.shape[1]}"


class GPTBlock(nn.Module):
    """GPT-2's block: normalisation before attention and before the feed-forward layer (pre-LN)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.ln_1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = nn.ModuleDict({"c_attn": Conv1D(width, 3 * width), "c_proj": Conv1D(width, width)})
        self.ln_2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(width, config.d_ff), "c_proj": Conv1D(config.d_ff, width)})
        for projection in (self.attn["c_proj"], self.mlp["c_proj"]):  # keeps the residual stream's variance at depth
            nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * config.n_layers))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTE: Tensor, may_attend_BQK: Tensor, earlier: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
        q_BHQD, k_BHTD, v_BHTD = (
            split_heads(part, self.config.n_heads) for part in self.attn["c_attn"](self.ln_1(x_BTE)).chunk(3, dim=-1)
        )
        seen = extend(earlier, k_BHTD, v_BHTD)
        mixed_BTE = merge_heads(attend(q_BHQD, *seen, may_attend_BQK, dropout=self._dropout))
        x_BTE = x_BTE + self.dropout(self.attn["c_proj"](mixed_BTE))
        inner_BTF = ACTIVATIONS[self.config.activation](self.mlp["c_fc"](self.ln_2(x_BTE)))
        return x_BTE + self.dropout(self.mlp["c_proj"](inner_BTF)), seen

    @property
    def _dropout(self) -> float:
        return self.config.dropout if self.training else 0.0


class BertAttention(nn.Module):
    """Attention, residual and normalisation of a BERT block: to `x` itself, to another stream, or to an encoder."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.add_module("self", nn.ModuleDict({name: _linear(width, width) for name in ("query", "key", "value")}))
        self.output = nn.ModuleDict(
            {"dense": _linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=config.norm_eps)}
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BQE: Tensor,
        may_attend_BQK: Tensor,
        *,
        source_BKE: Tensor | None = None,
        turn: Rotation | None = None,
        source_turn: Rotation | None = None,
        earlier: KeyValues | None = None,
    ) -> tuple[Tensor, KeyValues]:
        source_BKE = x_BQE if source_BKE is None else source_BKE
        project = self.self
        q_BHQD, k_BHKD, v_BHKD = (
            split_heads(project[name](stream), self.config.n_heads)
            for name, stream in (("query", x_BQE), ("key", source_BKE), ("value", source_BKE))
        )
        if turn is not None:
            q_BHQD, k_BHKD = rotate(q_BHQD, turn), rotate(k_BHKD, turn if source_turn is None else source_turn)
        seen = extend(earlier, k_BHKD, v_BHKD)
        dropout = self.config.dropout if self.training else 0.0
        mixed_BQE = merge_heads(attend(q_BHQD, *seen, may_attend_BQK, dropout=dropout))
        return self.output["LayerNorm"](x_BQE + self.dropout(self.output["dense"](mixed_BQE))), seen


class BertBlock(nn.Module):
    """BERT's block: normalisation after each residual sum (post-LN); with `cross`, also a decoder's attention."""

    def __init__(self, config: TransformerConfig, *, cross: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.attention = BertAttention(config)
        if cross:
            self.crossattention = BertAttention(config)
        self.intermediate = nn.ModuleDict({"dense": _linear(width, config.d_ff)})
        self.output = nn.ModuleDict(
            {"dense": _linear(config.d_ff, width), "LayerNorm": nn.LayerNorm(width, eps=config.norm_eps)}
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BQE: Tensor,
        may_attend_BQK: Tensor,
        *,
        memory_BKE: Tensor | None = None,
        may_attend_memory_BQK: Tensor | None = None,
        **attention: object,
    ) -> tuple[Tensor, KeyValues]:
        """`attention`: source, rotations and earlier keys and values, as `BertAttention` takes them."""
        x_BQE, seen = self.attention(x_BQE, may_attend_BQK, **attention)
        if memory_BKE is not None:
            x_BQE, _ = self.crossattention(x_BQE, may_attend_memory_BQK, source_BKE=memory_BKE)
        inner_BQF = ACTIVATIONS[self.config.activation](self.intermediate["dense"](x_BQE))
        return self.output["LayerNorm"](x_BQE + self.dropout(self.output["dense"](inner_BQF))), seen


class Embeddings(nn.Module):
    """BERT's embeddings: words, segment types (the course uses type 0 alone), positions where they are learned."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.word_embeddings = _embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.position_embeddings = _embedding(config.max_len, config.d_model)
        self.token_type_embeddings = _embedding(2, config.d_model)
        self.LayerNorm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids_BT: Tensor, position_BT: Tensor) -> Tensor:
        x_BTE = self.word_embeddings(input_ids_BT) + self.token_type_embeddings.weight[0]
        if self.config.positions == "learned":
            x_BTE = x_BTE + self.position_embeddings(position_BT)
        return self.dropout(self.LayerNorm(x_BTE))


class MaskedHead(nn.Module):
    """BERT's prediction head: a dense layer, normalisation, and the word embeddings as output layer (tied)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.transform = nn.ModuleDict(
            {
                "dense": _linear(config.d_model, config.d_model),
                "LayerNorm": nn.LayerNorm(config.d_model, eps=config.norm_eps),
            }
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, word_embeddings_VE: Tensor) -> Tensor:
        hidden = ACTIVATIONS[self.config.activation](self.transform["dense"](hidden))
        return F.linear(self.transform["LayerNorm"](hidden), word_embeddings_VE, self.bias)


def _linear(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _embedding(count: int, width: int) -> nn.Embedding:
    layer = nn.Embedding(count, width)
    nn.init.normal_(layer.weight, std=0.02)
    return layer
