"""What stands on a pre-trained model: a classifier's head on one vector a text, a writer's on every position.

The body is one of the course's models or one of `transformers`; its width is read from it, whatever it is.
Axes: B text of the batch, T position in it, N target, C class, E channel of the model, V the vocabulary.
"""

import torch
from torch import Tensor, nn

from course_lib import masks
from course_lib.model import Decoder, EncoderDecoder, LanguageModel
from course_lib.objectives import Batch
from course_lib.pooling import POOLINGS, pool


class Classifier(nn.Module):
    """A model's last hidden state, pooled to one vector a text, and a linear layer on it, which begins with zeros and
    stands on the device that the model is on.

    inner: "plain", or "tanh" for a dense layer with tanh before it, as BERT's pooler. dropout: of the vector that the
    last layer reads, while training.
    Raises ValueError for another pooling or inner layer, fewer than 2 classes, a share of dropout that is none, or a
    body whose width cannot be read.
    """

    def __init__(
        self,
        body: nn.Module,
        n_classes: int = 2,
        *,
        pooling: str = "mean",
        inner: str = "plain",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r} is unknown: choose one of {', '.join(POOLINGS)}")
        if inner not in ("plain", "tanh"):
            raise ValueError(f"inner is {inner!r}: choose 'plain' or 'tanh'")
        if not isinstance(n_classes, int) or n_classes < 2:
            raise ValueError(f"n_classes is {n_classes!r}: give the number of classes, at least 2")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}: give a share of at least 0 and below 1")
        width = width_of(body)
        self.body, self.pooling = body, pooling
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Tanh()) if inner == "tanh" else nn.Identity()
        self.head_dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(_device_of(body))

    def features(self, input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
        """[B, E]: what the last layer reads of each text."""
        return self.inner(pool(encode(self.body, input_ids_BT, is_real_BT), is_real_BT, self.pooling))

    def forward(self, input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
        """[B, C]: logits of the classes."""
        return self.head(self.head_dropout(self.features(input_ids_BT, is_real_BT)))


class Writer(nn.Module):
    """A linear layer over the vocabulary on every position: a model without a prediction head becomes one that
    predicts. The course's own decoder has such a head already and needs none of this.

    tied: use the word embeddings as that layer (arXiv:1608.05859).
    Raises ValueError for a body whose width or word embeddings cannot be found.
    """

    def __init__(self, body: nn.Module, *, tied: bool = True) -> None:
        super().__init__()
        if isinstance(body, EncoderDecoder):
            raise ValueError("an EncoderDecoder has a prediction head of its own: train it as it is")
        width, table = width_of(body), _word_table(body)
        if tied and table.weight.shape[1] != width:
            raise ValueError(
                f"the word embeddings have {table.weight.shape[1]} channels and the model {width}: tied=False"
            )
        self.body = body
        self.head = nn.Linear(width, table.num_embeddings, bias=False)
        if tied:
            self.head.weight = table.weight
        else:
            nn.init.normal_(self.head.weight, std=0.02)
        self.to(_device_of(body))

    def target_logits(self, batch: Batch) -> Tensor:
        """[N, V]: logits at the batch's targets, row by row, as `training.step` asks for them.

        Raises ValueError for a batch that is made for an encoder-decoder.
        """
        if batch.decoder_input_ids_BS is not None:
            raise ValueError("the batch is made for an EncoderDecoder, and this is a Writer: use GenerationCollator")
        hidden_BTE = _hidden(self.body, batch.input_ids_BT, batch.may_attend_BQK, batch.position_BT)
        return self.head(hidden_BTE[batch.is_target_BL])

    def forward(self, input_ids_BT: Tensor, may_attend_BQK: Tensor) -> Tensor:
        """[B, T, V]: logits of the next token. may_attend_BQK: bool, as `course_lib.masks` makes them."""
        return self.head(_hidden(self.body, input_ids_BT, may_attend_BQK))


def encode(body: nn.Module, input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
    """[B, T, E]: the last hidden state of a body of the course's or of `transformers`, padding unseen, on whichever
    side it stands.

    Raises ValueError for padding before a text where the body counts positions from the row's first.
    """
    is_before = not bool(is_real_BT[:, 0].all())
    position_BT = masks.positions(is_real_BT) if is_before else None
    if isinstance(body, Decoder):
        may_attend_BQK = masks.causal(input_ids_BT.shape[1]).to(input_ids_BT.device) & masks.padding(is_real_BT.bool())
        return _hidden(body, input_ids_BT, may_attend_BQK, position_BT)
    if isinstance(body, LanguageModel):
        if is_before and body.config.positions == "learned":
            raise ValueError("padding stands before a text and moves its positions: pad on the right")
        return body.encode(input_ids_BT, is_real_BT)
    bare = getattr(body, "base_model", body)  # without the head that a model of transformers may have
    places = {"position_ids": position_BT} if is_before else {}
    return bare(input_ids=input_ids_BT, attention_mask=is_real_BT.long(), **places).last_hidden_state


def width_of(body: nn.Module) -> int:
    """How many channels a body's hidden states have, read from its config.

    Raises ValueError for a body that does not say.
    """
    config = getattr(body, "config", None)
    for name in ("d_model", "hidden_size", "n_embd"):
        if isinstance(width := getattr(config, name, None), int):
            return width
    raise ValueError(f"this {type(body).__name__} has no config with d_model, hidden_size or n_embd: give it one")


def _device_of(body: nn.Module) -> torch.device:
    return next((parameter.device for parameter in body.parameters()), torch.device("cpu"))


def _hidden(body: nn.Module, input_ids_BT: Tensor, may_attend_BQK: Tensor, position_BT: Tensor | None = None) -> Tensor:
    if isinstance(body, LanguageModel):
        if position_BT is not None and not isinstance(body, Decoder):
            raise ValueError(f"a {type(body).__name__} counts positions by itself: pad on the right, and do not pack")
        places = {} if position_BT is None else {"position_BT": position_BT}
        nowhere_BT = torch.zeros_like(input_ids_BT).bool()
        return body(input_ids_BT, may_attend_BQK, wanted_BT=nowhere_BT, **places).hidden_states[-1]
    bare = getattr(body, "base_model", body)
    may_attend_BQK = may_attend_BQK.expand(len(input_ids_BT), input_ids_BT.shape[1], -1)
    blocked = torch.zeros(may_attend_BQK.shape, dtype=torch.float32, device=input_ids_BT.device)
    blocked = blocked.masked_fill(~may_attend_BQK, torch.finfo(torch.float32).min)
    places = {} if position_BT is None else {"position_ids": position_BT}
    return bare(input_ids=input_ids_BT, attention_mask=blocked[:, None], **places).last_hidden_state


def _word_table(body: nn.Module) -> nn.Embedding:
    if hasattr(body, "get_input_embeddings"):
        return body.get_input_embeddings()
    sizes = getattr(getattr(body, "config", None), "vocab_size", None)
    found = [m for m in body.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == sizes]
    if not found:
        raise ValueError(f"this {type(body).__name__} has no table of word embeddings: give a language model")
    return found[0]
