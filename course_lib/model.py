"""Four models from the same parts: a decoder laid out as GPT-2, an encoder laid out as BERT (with learned positions) or
RoFormer (with rotary ones), an encoder-decoder, and a two-stream model for permutation language modelling.

What they save opens in `transformers` as GPT2LMHeadModel, BertForMaskedLM or RoFormerForMaskedLM (the first two also
load from there); the other two are the course's own.
Axes: B row of the batch, T position, S position in a decoder, N position with a wanted prediction, V the vocabulary,
E channel of the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib import masks
from course_lib.layers import (
    BertBlock,
    Embeddings,
    GPTBlock,
    KeyValues,
    MaskedHead,
    TransformerConfig,
    rotation,
)
from course_lib.objectives import Batch
from course_lib.pooling import pool

Cache = list[KeyValues]  # one pair a layer

CHOOSE = "MODEL_OF_OBJECTIVE names the model of each objective"


@dataclass(frozen=True)
class ModelOutput:
    """logits: [B, T, V], or [N, V] where only the `wanted` positions were asked for, or None without a head.
    hidden_states: the embeddings and every block's output, [B, T, E] each; the last is what heads and probes read.
    cache: keys and values of each layer, to be handed to the next call."""

    logits: Tensor | None
    hidden_states: tuple[Tensor, ...]
    cache: Cache | None = None


class LanguageModel(nn.Module):
    """What training and evaluation ask of every model."""

    layout: ClassVar[str]

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config

    def target_logits(self, batch: Batch) -> Tensor:
        """[N, V]: logits at the batch's targets only, row by row; the rest is never computed.

        Raises ValueError for a batch of an objective that another model predicts, or without a prediction head.
        """
        if batch.may_query_BQK is not None or batch.decoder_input_ids_BS is not None:
            made_for = "a TwoStream" if batch.decoder_input_ids_BS is None else "an EncoderDecoder"
            raise ValueError(f"the batch is made for {made_for}, and this is a {type(self).__name__}: {CHOOSE}")
        places = {} if batch.position_BT is None else {"position_BT": batch.position_BT}  # only a decoder takes them
        logits_NV = self(batch.input_ids_BT, batch.may_attend_BQK, wanted_BT=batch.is_target_BL, **places).logits
        if logits_NV is None:
            raise ValueError(f"this {type(self).__name__} has no head to predict with: make it with head=True")
        return logits_NV

    def features(self, input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
        """[B, E]: the last hidden state, averaged over real tokens. Raises ValueError for a text of padding alone."""
        return pool(self.encode(input_ids_BT, is_real_BT), is_real_BT)

    def encode(self, input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
        """[B, T, E]: the last hidden state of a text without corruption, padding unseen."""
        return self(input_ids_BT, masks.padding(is_real_BT), wanted_BT=torch.zeros_like(is_real_BT)).hidden_states[-1]

    def exported_name(self, name: str) -> str:
        """What the model of `transformers` with the same layout calls a module or a parameter of this one."""
        return name

    def n_parameters(self) -> int:
        """How many numbers are trained; tied weights count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _positions(self, input_ids_BT: Tensor, start: int = 0) -> Tensor:
        """int64 [1, T]; refuses what are no ids of this model, and sequences longer than the model."""
        if input_ids_BT.dim() != 2 or input_ids_BT.numel() == 0:
            raise ValueError(f"input_ids_BT has shape {tuple(input_ids_BT.shape)}: give [batch, length], not empty")
        end = start + input_ids_BT.shape[1]
        if end > self.config.max_len:
            earlier = f" ({start} of it in the cache, or a prefix)" if start else ""
            raise ValueError(
                f"sequence length {end}{earlier} exceeds max_len {self.config.max_len}: shorten it or raise "
                "TransformerConfig.max_len"
            )
        lowest, highest = (int(bound) for bound in torch.aminmax(input_ids_BT))
        if lowest < 0 or highest >= self.config.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"token id {wrong} lies outside the model's vocabulary of {self.config.vocab_size}")
        return torch.arange(start, end, device=input_ids_BT.device)[None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside the block; afterwards, also after an error, every part is in the mode that it was in."""
    was_training = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, mode in was_training.items():
            part.training = mode


class Decoder(LanguageModel):
    """GPT-2's layout (Radford et al. 2019): learned positions, pre-LN, output tied to the word embeddings.

    >>> model = Decoder(TransformerConfig(vocab_size=50, d_model=8, n_layers=2, n_heads=2, d_ff=16, max_len=4))
    >>> model(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 50])
    """

    layout = "gpt2"

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        if config.positions != "learned":
            raise ValueError(f"positions is {config.positions!r}: GPT-2's layout has learned positions")
        width = config.d_model
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, width),
                "wpe": nn.Embedding(config.max_len, width),
                "h": nn.ModuleList(GPTBlock(config) for _ in range(config.n_layers)),
                "ln_f": nn.LayerNorm(width, eps=config.norm_eps),
            }
        )
        for name in ("wte", "wpe"):
            nn.init.normal_(self.transformer[name].weight, std=0.02)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        input_ids_BT: Tensor,
        may_attend_BQK: Tensor | None = None,
        *,
        position_BT: Tensor | None = None,
        wanted_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> ModelOutput:
        """may_attend_BQK: bool [B or 1, T, earlier + T]; causal where it is not given.
        position_BT: int64 [B or 1, T], where each token stands; counted on from the cache where it is not given, which
        is wrong behind padding.

        Raises ValueError for a sequence longer than the model, or an id outside its vocabulary.
        """
        start = cache_length(cache)
        counted_BT = self._positions(input_ids_BT, start)
        position_BT = counted_BT if position_BT is None else position_BT
        if may_attend_BQK is None:
            may_attend_BQK = masks.causal(start + input_ids_BT.shape[1])[:, start:].to(input_ids_BT.device)
        x_BTE = self.dropout(self.transformer["wte"](input_ids_BT) + self.transformer["wpe"](position_BT))
        hidden, seen = [x_BTE], []
        for i, block in enumerate(self.transformer["h"]):
            x_BTE, keys_and_values = block(x_BTE, may_attend_BQK, None if cache is None else cache[i])
            hidden.append(x_BTE)
            seen.append(keys_and_values)
        hidden[-1] = self.transformer["ln_f"](x_BTE)
        logits = F.linear(_at(hidden[-1], wanted_BT), self.transformer["wte"].weight)
        return ModelOutput(logits, tuple(hidden), seen)

    def encode(self, input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
        may_attend_BQK = masks.causal(input_ids_BT.shape[1]).to(input_ids_BT.device) & masks.padding(is_real_BT)
        return self(input_ids_BT, may_attend_BQK, wanted_BT=torch.zeros_like(is_real_BT)).hidden_states[-1]


class Encoder(LanguageModel):
    """BERT's layout (arXiv:1810.04805) with learned positions, RoFormer's (arXiv:2104.09864) with rotary ones.

    head: with the masked-prediction head (output tied to the word embeddings) or, as MiniLM, without.
    """

    def __init__(self, config: TransformerConfig, *, head: bool = True) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertBlock(config) for _ in range(config.n_layers))})
        self.cls = nn.ModuleDict({"predictions": MaskedHead(config)}) if head else None

    @property
    def layout(self) -> str:
        return "roformer" if self.config.positions == "rotary" else "bert"

    def exported_name(self, name: str) -> str:
        is_bare = self.cls is None  # written as BertModel, whose names have no prefix
        return name if is_bare or name.startswith("cls.") else f"{self.layout}.{name}"

    def forward(
        self,
        input_ids_BT: Tensor,
        may_attend_BQK: Tensor | None = None,
        *,
        wanted_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> ModelOutput:
        """may_attend_BQK: bool, broadcast to [B, T, earlier + T]; everybody sees everybody where it is not given.
        cache: earlier keys and values, which everybody may see too; positions are counted on from them.

        Raises ValueError for a sequence longer than the model, or an id outside its vocabulary.
        """
        position_BT = self._positions(input_ids_BT, cache_length(cache))
        may_attend_BQK = _all_if_none(may_attend_BQK, input_ids_BT, cache)
        turn, hidden = self._turn(position_BT), [self.embeddings(input_ids_BT, position_BT)]
        for i, block in enumerate(self.encoder["layer"]):
            earlier = None if cache is None else cache[i]
            hidden.append(block(hidden[-1], may_attend_BQK, turn=turn, earlier=earlier)[0])
        return ModelOutput(self.head(_at(hidden[-1], wanted_BT)), tuple(hidden))

    def head(self, hidden: Tensor) -> Tensor | None:
        """Logits over the vocabulary, or None for an encoder without a head."""
        return None if self.cls is None else self.cls["predictions"](hidden, self.embeddings.word_embeddings.weight)

    def _turn(self, position_BT: Tensor) -> tuple[Tensor, Tensor] | None:
        return rotation(position_BT, self.config.d_head) if self.config.positions == "rotary" else None


class TwoStream(Encoder):
    """XLNet's two streams (arXiv:1906.08237, section 2.3) over the encoder's own weights: the content stream knows a
    token and its place, the query stream the place alone, and only the query stream predicts.

    The query stream is computed at the wanted positions only.
    """

    layout = "course-two-stream"

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.query_embedding = nn.Parameter(torch.randn(config.d_model) * 0.02)

    def exported_name(self, name: str) -> str:
        return name

    def target_logits(self, batch: Batch) -> Tensor:
        if batch.may_query_BQK is None:
            raise ValueError(f"a TwoStream needs may_query_BQK, and this batch of another objective has none: {CHOOSE}")
        return self.predict(batch.input_ids_BT, batch.may_attend_BQK, batch.may_query_BQK, batch.is_target_BL)

    def predict(self, input_ids_BT: Tensor, may_attend_BQK: Tensor, may_query_BQK: Tensor, wanted_BT: Tensor) -> Tensor:
        """[N, V]: logits of the query stream at the wanted positions, row by row.

        may_attend_BQK: what the content stream sees. may_query_BQK: what the query stream sees; without a position's
        own content where that is to be predicted. Both bool [B, T, T].
        """
        most = max(1, int(wanted_BT.sum(1).max()))
        position_BM = wanted_BT.long().argsort(dim=1, descending=True, stable=True)[:, :most]  # wanted ones first
        is_wanted_BM = wanted_BT.gather(1, position_BM)
        may_query_BMK = may_query_BQK.gather(1, position_BM[..., None].expand(-1, -1, may_query_BQK.shape[2]))

        position_BT = self._positions(input_ids_BT)
        content_BTE = self.embeddings(input_ids_BT, position_BT)
        query_BME = self._query_start(position_BM)
        turn, query_turn = self._turn(position_BT), self._turn(position_BM)
        for block in self.encoder["layer"]:
            query_BME, _ = block(query_BME, may_query_BMK, source_BKE=content_BTE, turn=query_turn, source_turn=turn)
            content_BTE, _ = block(content_BTE, may_attend_BQK, turn=turn)
        return self.head(query_BME[is_wanted_BM])

    def _query_start(self, position_BM: Tensor) -> Tensor:
        start_BME = self.query_embedding.expand(*position_BM.shape, -1)
        if self.config.positions == "learned":
            start_BME = start_BME + self.embeddings.position_embeddings(position_BM)
        return self.embeddings.dropout(self.embeddings.LayerNorm(start_BME))


class EncoderDecoder(LanguageModel):
    """An encoder that reads and a decoder that writes (T5 arXiv:1910.10683, BART arXiv:1910.13461), both of BERT's
    blocks, sharing one table of word embeddings that is the output layer too. `n_layers` blocks on each side.
    """

    layout = "course-encoder-decoder"

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config, head=False)
        self.decoder_embeddings = Embeddings(config)
        self.decoder_embeddings.word_embeddings = self.encoder.embeddings.word_embeddings
        self.decoder = nn.ModuleList(BertBlock(config, cross=True) for _ in range(config.n_layers))
        self.predictions = MaskedHead(config)

    def target_logits(self, batch: Batch) -> Tensor:
        if batch.decoder_input_ids_BS is None:
            raise ValueError(f"an EncoderDecoder needs decoder_input_ids_BS, and this batch has none: {CHOOSE}")
        return self(
            batch.input_ids_BT, batch.decoder_input_ids_BS, batch.may_attend_BQK, wanted_BS=batch.is_target_BL
        ).logits

    def forward(
        self,
        input_ids_BT: Tensor,
        decoder_input_ids_BS: Tensor,
        may_attend_BQK: Tensor | None = None,
        *,
        wanted_BS: Tensor | None = None,
        cache: Cache | None = None,
    ) -> ModelOutput:
        """may_attend_BQK: bool [B or 1, 1, T], which positions of the input are real; all where it is not given.
        cache: earlier keys and values of the decoder.

        hidden_states are the decoder's. Raises ValueError for sequences longer than the model.
        """
        may_attend_BQK = _all_if_none(may_attend_BQK, input_ids_BT)
        memory_BTE = self.encoder(input_ids_BT, may_attend_BQK).hidden_states[-1]
        start = cache_length(cache)
        position_BS = self._positions(decoder_input_ids_BS, start)
        causal_BSS = masks.causal(start + decoder_input_ids_BS.shape[1])[:, start:].to(input_ids_BT.device)
        turn, hidden = self.encoder._turn(position_BS), [self.decoder_embeddings(decoder_input_ids_BS, position_BS)]
        for i, block in enumerate(self.decoder):
            x_BSE, _ = block(
                hidden[-1],
                causal_BSS,
                turn=turn,
                memory_BKE=memory_BTE,
                may_attend_memory_BQK=may_attend_BQK,
                earlier=None if cache is None else cache[i],
            )
            hidden.append(x_BSE)
        logits = self.predictions(_at(hidden[-1], wanted_BS), self.encoder.embeddings.word_embeddings.weight)
        return ModelOutput(logits, tuple(hidden))

    def encode(self, input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
        return self.encoder(input_ids_BT, masks.padding(is_real_BT)).hidden_states[-1]


MODEL_OF_OBJECTIVE: dict[str, type[LanguageModel]] = {
    "causal": Decoder,
    "prefix": Decoder,
    "masked": Encoder,
    "permuted": TwoStream,
    "span": EncoderDecoder,
    "infilled": EncoderDecoder,
}


def _at(hidden_BTE: Tensor, wanted_BT: Tensor | None) -> Tensor:
    return hidden_BTE if wanted_BT is None else hidden_BTE[wanted_BT]


def cache_length(cache: Cache | None) -> int:
    """How many positions a cache holds, 0 without one."""
    return 0 if cache is None else cache[0][0].shape[2]


def _all_if_none(may_attend_BQK: Tensor | None, input_ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
    if may_attend_BQK is not None:
        return may_attend_BQK
    return torch.ones(1, 1, cache_length(cache) + input_ids_BT.shape[-1], dtype=torch.bool, device=input_ids_BT.device)
