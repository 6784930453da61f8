"""Small models on real rows, and how far two results lie apart: what the tests of layers, models and training share."""

from functools import cache

import torch

from course_lib.data import PretrainingDataset, course_tokenizer, pack, pad, reviews_of
from course_lib.layers import TransformerConfig
from course_lib.model import MODEL_OF_OBJECTIVE, TwoStream
from course_lib.objectives import Batch
from course_lib.runtime import seeded
from course_lib.training import new_model

LENGTH = 24
CONFIG = TransformerConfig(vocab_size=8192, d_model=16, n_layers=3, n_heads=2, d_ff=32, max_len=64)
CASES = [  # every objective, and every kind of positions that its model has
    (objective, positions)
    for objective, model in MODEL_OF_OBJECTIVE.items()
    for positions in (["learned"] if model.__name__ == "Decoder" else ["learned", "rotary"])
]


def tiny(objective, positions=None, *, shake=0.3, **changes):
    """The model of an objective, in training mode. shake: moves every parameter away from where it began, so that
    biases and norms count and everything acts on everything."""
    positions = positions or ("learned" if MODEL_OF_OBJECTIVE[objective].__name__ == "Decoder" else "rotary")
    model = new_model(MODEL_OF_OBJECTIVE[objective], CONFIG.with_(positions=positions, **changes), device="cpu")
    return shaken(model, shake)


def shaken(model, amount):
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += amount * torch.randn(parameter.shape, generator=seeded(7, number))
    return model


def differ(some, other) -> float:
    """The largest difference, relative to the largest value."""
    return ((some - other).abs().max() / other.abs().max()).item()


@cache
def packed(length=LENGTH):
    """Sentences from the Rotten Tomatoes dev split, so short that most rows hold a border: ... [EOS] [BOS] ..."""
    sentences = [review.text for review in reviews_of("dev", "rotten_tomatoes")[:120]]
    tokenizer = course_tokenizer()
    return pack(tokenizer.encode_all(sentences), length, vocabulary=tokenizer.vocabulary)


def dataset(objective, **options):
    return PretrainingDataset(packed(), course_tokenizer().vocabulary, objective, **({"batch_size": 8} | options))


@cache
def framed_rows():
    """int64 [8, LENGTH]: [CLS] some text [EOS] [BOS] more text [SEP], of 8 lengths, padded."""
    vocabulary = course_tokenizer().vocabulary
    text = packed().ids_NT.flatten()
    words = text[vocabulary.is_ordinary_V[text]].tolist()
    rows = [[*words[40 * n :][: 4 + n], vocabulary.eos, vocabulary.bos, *words[40 * n + 20 :][: 4 + n]]
            for n in range(7, -1, -1)]  # fmt: skip
    return pad(rows, vocabulary)[:, :LENGTH]


def corrupted(objective, ids_BT, *, seed=3, **options) -> Batch:
    """What the registry's dataset makes of these rows."""
    return dataset(objective, options=options).corrupt(ids_BT, seeded(seed))


def row_of(batch, number) -> Batch:
    """One row of a batch, as a batch."""
    return Batch(**{name: None if tensor is None else tensor if len(tensor) == 1 else tensor[number : number + 1]
                    for name, tensor in vars(batch).items()})  # fmt: skip


def logits_everywhere(model, batch):
    """[B, L, V]: predictions at all positions, targets or not."""
    if isinstance(model, TwoStream):
        wanted_BT = torch.ones_like(batch.input_ids_BT, dtype=torch.bool)
        logits = model.predict(batch.input_ids_BT, batch.may_attend_BQK, batch.may_query_BQK, wanted_BT)
        return logits.view(*batch.input_ids_BT.shape, -1)
    inputs = (batch.input_ids_BT,) if batch.decoder_input_ids_BS is None else (
        batch.input_ids_BT, batch.decoder_input_ids_BS)  # fmt: skip
    return model(*inputs, batch.may_attend_BQK).logits
