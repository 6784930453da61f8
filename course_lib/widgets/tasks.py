"""An objective applied to one text, ready to be shown: rows of tokens, matrices, and how much is asked.

Everything comes from what `course_lib.objectives` returned.
Axes: B row of the batch, T position in the text, S position in a shortened text or in a target.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from course_lib import masks, objectives
from course_lib.data import OBJECTIVES
from course_lib.objectives import Batch
from course_lib.plots import TokenRow, Visibility
from course_lib.runtime import seeded, threads
from course_lib.tokenizer import Tokenizer
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary
from course_lib.widgets.masking import roles_of

SHOWN, COUNTED, DRAWS = 16, 120, 32  # tokens shown; tokens, and draws of each, over which the targets are counted
NO_TARGET = "·"

Rows = tuple[tuple[TokenRow, ...], ...]


@dataclass(frozen=True)
class ObjectiveView:
    """An objective applied to a text, as plain lists and arrays.

    blocks: rows of tokens; rows of one block share their columns. matrices: who may look at whom.
    n_targets, n_counted: predictions asked for over DRAWS draws, and tokens of text that they were drawn from.
    """

    objective: str
    blocks: Rows
    matrices: tuple[Visibility, ...]
    n_targets: int
    n_counted: int

    @property
    def targets_per_hundred(self) -> float:
        return 100 * self.n_targets / self.n_counted


def corrupt(
    input_ids_BT: Tensor, vocabulary: Vocabulary, objective: str, *, prob: float, mean_span: float, seed: int
) -> Batch:
    """The objective's batch. prob: the share that is masked, removed or predicted; for a prefix LM the share behind the
    prefix; a causal model predicts everything.

    Raises ValueError for an unknown objective, and as the objective's function does.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r} is unknown: choose one of {', '.join(OBJECTIVES)}")
    if objective == "causal":
        return objectives.causal(input_ids_BT, vocabulary)
    n_rows, length = input_ids_BT.shape
    if objective == "prefix":
        prefix_length_B = torch.full((n_rows,), round((1 - prob) * length))
        return objectives.prefix_lm(input_ids_BT, vocabulary, prefix_length_B=prefix_length_B)
    options = {
        "masked": {"mask_prob": prob},
        "permuted": {"predict_share": prob},
        "span": {"noise_density": prob, "mean_span": mean_span},
        "infilled": {"noise_density": prob, "mean_span": mean_span},
    }[objective]
    return OBJECTIVES[objective](input_ids_BT, vocabulary, generator=seeded(seed), **options)


def compute_objective(
    ids_T: Tensor, tokenizer: Tokenizer, objective: str, *, prob: float = 0.15, mean_span: float = 3.0, seed: int = 0
) -> ObjectiveView:
    """Apply an objective to the first SHOWN tokens of a text to look at, and DRAWS times to the first COUNTED to count.

    ids_T: int64 [T], without special tokens. Raises ValueError for fewer than 2 tokens, and as `corrupt` does.
    """
    if ids_T.dim() != 1 or len(ids_T) < 2:
        raise ValueError(f"ids_T has shape {tuple(ids_T.shape)}: give one text of at least 2 tokens")
    vocabulary = tokenizer.vocabulary
    settings = {"prob": prob, "mean_span": mean_span, "seed": seed}
    with threads(1):
        batch = corrupt(ids_T[None, :SHOWN], vocabulary, objective, **settings)
        counted_BT = ids_T[:COUNTED].expand(DRAWS, -1)
        n_targets = int(corrupt(counted_BT, vocabulary, objective, **settings).is_target_BL.sum())
    show = _show_pair if batch.decoder_input_ids_BS is None else _show_encoder_decoder
    blocks, matrices = show(ids_T[:SHOWN], batch, tokenizer, objective)
    return ObjectiveView(objective, blocks, matrices, n_targets, counted_BT.numel())


def encode(text: str, tokenizer: Tokenizer) -> Tensor:
    """int64 [T]: the tokens of a text. Raises ValueError for a text of fewer than 2 tokens."""
    ids = tokenizer.encode(text.strip())
    if len(ids) < 2:
        raise ValueError(f"the text {text!r} has {len(ids)} tokens: write at least two words")
    return torch.tensor(ids)


def _names(ids: Tensor, tokenizer: Tokenizer) -> list[str]:
    """Tokens as they read; the wide names of sentinels shortened."""
    return [tokenizer.token(i).replace("<extra_id_", "<id_") for i in ids.tolist()]


def _show_pair(
    ids_T: Tensor, batch: Batch, tokenizer: Tokenizer, objective: str
) -> tuple[Rows, tuple[Visibility, ...]]:
    """An objective that predicts at the positions it reads: input over labels, one matrix or two streams."""
    is_target_T = batch.is_target_BL[0]
    reads = _names(batch.input_ids_BT[0], tokenizer)
    roles = roles_of(ids_T[None], batch, tokenizer.vocabulary)[0] if objective == "masked" else ["context"] * len(reads)
    wanted = [NO_TARGET if i == IGNORE_INDEX else tokenizer.token(i) for i in batch.labels_BL[0].tolist()]
    content_TT = batch.may_attend_BQK[0].expand(len(ids_T), -1).numpy()
    is_target = is_target_T.tolist()
    if batch.may_query_BQK is None:
        title = "attention: rows look at columns"
        matrices = (Visibility(content_TT, reads, reads, title, is_target),)
    else:
        query_TT = batch.may_query_BQK[0].numpy()
        place_T = (query_TT & is_target_T.numpy()).sum(1) + 1  # its place: one more than the targets it sees
        wanted = [
            f"{token} {_circled(int(place))}" if target else token
            for token, place, target in zip(wanted, place_T, is_target, strict=True)
        ]
        matrices = (
            Visibility(content_TT, reads, reads, "content stream: what a token knows", is_target),
            Visibility(
                query_TT, reads, reads, "query stream: what a prediction sees", is_target, content_TT & ~query_TT
            ),
        )
    label_roles = ["target" if target else "silent" for target in is_target]
    return ((TokenRow("reads", reads, roles), TokenRow("predicts", wanted, label_roles)),), matrices


def _show_encoder_decoder(
    ids_T: Tensor, batch: Batch, tokenizer: Tokenizer, objective: str
) -> tuple[Rows, tuple[Visibility, ...]]:
    """An encoder-decoder's objective: what the encoder reads, then what the decoder reads over what it predicts."""
    vocabulary = tokenizer.vocabulary
    shown_T, decoder_S, labels_S = batch.input_ids_BT[0], batch.decoder_input_ids_BS[0], batch.labels_BL[0]
    encoder, decoder, wanted = (_names(ids, tokenizer) for ids in (shown_T, decoder_S, labels_S))
    sentinels = set(vocabulary.sentinels)

    def roles(ids: Tensor, ordinary: str) -> list[str]:
        special = {vocabulary.mask: "hidden", vocabulary.bos: "special", vocabulary.pad: "padding"}
        return ["sentinel" if i in sentinels else special.get(i, ordinary) for i in ids.tolist()]

    n_encoder, n_decoder = len(encoder), len(decoder)
    seen_by_encoder_TT = batch.may_attend_BQK[0].expand(n_encoder, -1).numpy()
    past_SS = masks.causal(n_decoder)[0].numpy()
    cross_ST = batch.may_attend_BQK[0].expand(n_decoder, -1).numpy()
    matrices = (
        Visibility(seen_by_encoder_TT, encoder, encoder, "encoder"),
        Visibility(
            np.concatenate([cross_ST, past_SS], axis=1),
            decoder,
            [*encoder, *decoder],
            "decoder: the encoder's output | its own past",
            [True] * n_decoder,
            divider=n_encoder,
        ),
    )
    blocks = (
        (TokenRow("encoder reads", encoder, roles(shown_T, "context")),),
        (
            TokenRow("decoder reads", decoder, roles(decoder_S, "context")),
            TokenRow("predicts", wanted, roles(labels_S, "target")),
        ),
    )
    return blocks, matrices


def _circled(number: int) -> str:
    return chr(0x2460 + number - 1) if 1 <= number <= 20 else f"({number})"
