"""Pre-training objectives as pure functions: token ids in; what the model reads, what it must predict, and who may
attend to whom, out. No loop over tokens, randomness from a generator, the caller's tensor untouched.

Whatever the objective, position t of the prediction is scored against `labels[t]`: where a model must predict the
next token, the labels are already shifted. Special tokens are never chosen for corruption.

Sources: GPT (Radford et al. 2018), BERT arXiv:1810.04805, XLNet arXiv:1906.08237, T5 arXiv:1910.10683, BART
arXiv:1910.13461.    Axes: B row of the batch, T position in the text, S position in a shortened text or in a target,
Q position that looks, K position that is looked at, V the vocabulary.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from course_lib import masks
from course_lib.spans import poisson_spans, random_spans, shift_right
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary, look_up


@dataclass(frozen=True)
class Batch:
    """What a model reads, what it must predict, who may attend to whom.

    input_ids_BT: int64, what the model reads.
    labels_BL: int64, the token wanted at each predicting position, IGNORE_INDEX where none is. L is T, or S of
        `decoder_input_ids_BS` where there is a decoder.
    may_attend_BQK: bool, True where query Q may look at key K; an axis of length 1 broadcasts.
    may_query_BQK: bool, the same for the query stream of a two-stream model.
    decoder_input_ids_BS: int64, what the decoder of an encoder-decoder reads.
    position_BT: int64, where each token stands, for a decoder; counted from the row's first where it is not given.
    """

    input_ids_BT: Tensor
    labels_BL: Tensor
    may_attend_BQK: Tensor
    may_query_BQK: Tensor | None = None
    decoder_input_ids_BS: Tensor | None = None
    position_BT: Tensor | None = None

    @property
    def is_target_BL(self) -> Tensor:
        return self.labels_BL != IGNORE_INDEX

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on `device`."""
        present = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: tensor.to(device) for name, tensor in present.items()})

    def rows(self, which: slice) -> "Batch":
        """Some rows of the batch; what is the same for all rows stays.

        >>> from course_lib.vocabulary import Vocabulary
        >>> causal(torch.tensor([[5, 6], [7, 8], [9, 5]]), Vocabulary(10)).rows(slice(0, None, 2)).input_ids_BT.tolist()
        [[5, 6], [9, 5]]
        """
        present = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        n_rows = len(self.input_ids_BT)
        return replace(self, **{name: t[which] for name, t in present.items() if len(t) == n_rows})


def causal(input_ids_BT: Tensor, vocabulary: Vocabulary, *, document_ids_BT: Tensor | None = None) -> Batch:
    """Predict each token from those before it. With `document_ids_BT`, from those of its own document only.

    Raises ValueError for ids outside the vocabulary, or document ids of another shape.

    >>> causal(torch.tensor([[5, 6, 7]]), Vocabulary(10)).labels_BL.tolist()
    [[6, 7, -100]]
    """
    is_real_BT = _check(input_ids_BT, vocabulary)
    may_attend_BQK = masks.causal(input_ids_BT.shape[1]) & masks.padding(is_real_BT)
    labels_BT = _next_tokens(input_ids_BT, is_real_BT)
    if document_ids_BT is not None:
        if document_ids_BT.shape != input_ids_BT.shape:
            raise ValueError(
                f"document_ids_BT {tuple(document_ids_BT.shape)} and input_ids_BT {tuple(input_ids_BT.shape)} differ"
            )
        may_attend_BQK = may_attend_BQK & masks.documents(document_ids_BT)
        labels_BT[:, :-1].masked_fill_(document_ids_BT[:, 1:] != document_ids_BT[:, :-1], IGNORE_INDEX)
    return Batch(input_ids_BT, labels_BT, may_attend_BQK)


def prefix_lm(
    input_ids_BT: Tensor,
    vocabulary: Vocabulary,
    *,
    prefix_length_B: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Batch:
    """Read a prefix in both directions, predict the rest causally (arXiv:1910.10683, section 3.2.1).

    The prefix's length is drawn uniformly from 1 to the number of real tokens less 1, unless it is given; it counts
    from the row's first position, so padding belongs at the end.
    Raises ValueError for ids outside the vocabulary, a prefix longer than the row, not one length for each row, or
    neither lengths nor generator.

    >>> prefix_lm(torch.tensor([[5, 6, 7, 8]]), Vocabulary(10), prefix_length_B=torch.tensor([2])).labels_BL.tolist()
    [[-100, 7, 8, -100]]
    """
    is_real_BT = _check(input_ids_BT, vocabulary)
    length = input_ids_BT.shape[1]
    if prefix_length_B is None:
        if generator is None:
            raise ValueError("prefix_lm draws the prefix's length: give a generator, or prefix_length_B")
        choices_B = (is_real_BT.sum(1) - 1).clamp(min=1)
        prefix_length_B = 1 + (torch.rand(len(choices_B), generator=generator) * choices_B).long()
    elif prefix_length_B.shape != input_ids_BT.shape[:1]:
        raise ValueError(
            f"prefix_length_B has shape {tuple(prefix_length_B.shape)}: give one length for each of "
            f"the {len(input_ids_BT)} rows"
        )
    may_attend_BQK = masks.prefix(prefix_length_B, length) & masks.padding(is_real_BT)
    is_inside_BT = torch.arange(length) < prefix_length_B[:, None] - 1  # the last of the prefix predicts what follows
    return Batch(
        input_ids_BT, _next_tokens(input_ids_BT, is_real_BT).masked_fill(is_inside_BT, IGNORE_INDEX), may_attend_BQK
    )


def masked(
    input_ids_BT: Tensor,
    vocabulary: Vocabulary,
    *,
    mask_prob: float = 0.15,
    whole_words: bool = False,
    weight_V: Tensor | None = None,
    generator: torch.Generator,
) -> Batch:
    """Choose each ordinary token with probability `mask_prob`; of the chosen, 80 % become the mask token, 10 % a
    random ordinary token, 10 % stay as they are. All chosen tokens are predicted (arXiv:1810.04805, section 3.1).

    whole_words: one draw for all the tokens of a word, which share its fate.
    weight_V: float in [0, 1], multiplies the probability of each token (to ask less often about frequent ones), of
        a whole word by the weight of its first token.
    Raises ValueError if `mask_prob` or a weight is not in [0, 1], without a mask token, or where words are wanted and
    unknown.

    >>> batch = masked(torch.tensor([[5, 6, 7]]), Vocabulary(10, pad=0, mask=1), mask_prob=1.0,
    ...                generator=torch.Generator().manual_seed(0))
    >>> batch.labels_BL.tolist()
    [[5, 6, 7]]
    """
    _check_share("mask_prob", mask_prob)
    mask_id = vocabulary.require("mask", "masked language modelling")
    is_real_BT = _check(input_ids_BT, vocabulary)
    first_BT = _first_of_word(input_ids_BT, vocabulary) if whole_words else None
    prob_BT: Tensor | float = mask_prob
    if weight_V is not None:
        _check_weights(weight_V, vocabulary)
        prob_BT = mask_prob * weight_V[input_ids_BT if first_BT is None else input_ids_BT.gather(1, first_BT)]

    fate_BT = torch.rand(input_ids_BT.shape, generator=generator)  # one draw decides among exclusive fates
    if first_BT is not None:
        fate_BT = fate_BT.gather(1, first_BT)
    is_target_BT = (fate_BT < prob_BT) & look_up(vocabulary.is_ordinary_V, input_ids_BT)
    is_hidden_BT = is_target_BT & (fate_BT < 0.8 * prob_BT)
    is_swapped_BT = is_target_BT & ~is_hidden_BT & (fate_BT < 0.9 * prob_BT)

    shown_BT = torch.where(is_hidden_BT, mask_id, input_ids_BT)
    swapped_N = is_swapped_BT.flatten().nonzero().squeeze(1)
    shown_BT.view(-1)[swapped_N] = vocabulary.draw_ordinary(len(swapped_N), generator)
    return Batch(shown_BT, torch.where(is_target_BT, input_ids_BT, IGNORE_INDEX), masks.padding(is_real_BT))


def permuted(
    input_ids_BT: Tensor, vocabulary: Vocabulary, *, predict_share: float = 1 / 6, generator: torch.Generator
) -> Batch:
    """Draw an order of prediction for each row and predict the last `predict_share` of its ordinary tokens (rounded),
    each from what comes earlier in that order, nothing hidden or moved in the text (arXiv:1906.08237, section 2.3).

    `may_attend_BQK` is what the content stream sees, `may_query_BQK` what the predicting stream sees.
    Raises ValueError if `predict_share` is not in [0, 1].

    >>> batch = permuted(torch.tensor([[5, 6, 7, 8]]), Vocabulary(10), predict_share=0.5,
    ...                  generator=torch.Generator().manual_seed(0))
    >>> batch.is_target_BL.sum().item(), batch.input_ids_BT.tolist()
    (2, [[5, 6, 7, 8]])
    """
    _check_share("predict_share", predict_share)
    is_real_BT = _check(input_ids_BT, vocabulary)
    is_ordinary_BT = vocabulary.is_ordinary_V[input_ids_BT]
    key_BT = torch.rand(input_ids_BT.shape, generator=generator) + is_ordinary_BT  # special tokens come first
    order_BT = key_BT.argsort(1).argsort(1)
    n_target_B = (is_ordinary_BT.sum(1).double() * predict_share).round().long()
    is_target_BT = order_BT >= input_ids_BT.shape[1] - n_target_B[:, None]
    content_BTT, query_BTT = masks.permutation(order_BT, is_target_BT)
    is_real_B1T = masks.padding(is_real_BT)
    return Batch(
        input_ids_BT,
        input_ids_BT.masked_fill(~is_target_BT, IGNORE_INDEX),
        content_BTT & is_real_B1T,
        may_query_BQK=query_BTT & is_real_B1T,
    )


def span_corrupted(
    input_ids_BT: Tensor,
    vocabulary: Vocabulary,
    *,
    noise_density: float = 0.15,
    mean_span: float = 3.0,
    generator: torch.Generator,
) -> Batch:
    """Replace spans of tokens by one sentinel each; the target lists every sentinel with the tokens it stands for,
    and ends with one more sentinel (arXiv:1910.10683, section 3.1.4 and figure 2).

    noise_density: share of the ordinary tokens to remove, rounded, and strictly between 0 and 1 at least one and not
        all. mean_span: the spans' mean length in tokens, at least 1.
    As in the paper's code kept and removed stretches alternate, kept first: a text never begins with a span, and always
    ends with one; between, every way to place them is equally likely. A span is cut in two where a special token
    stands inside it. `restore_spans` is the exact inverse.
    Raises ValueError for a share outside [0, 1], a mean below 1, no [BOS] token, sentinels in the input, or a row
    that needs more sentinels than there are (with their number).

    >>> batch = span_corrupted(torch.arange(5, 13)[None], Vocabulary(20, pad=0, bos=1, sentinels=(2, 3, 4)),
    ...                        noise_density=0.25, mean_span=2, generator=torch.Generator().manual_seed(0))
    >>> batch.input_ids_BT.tolist(), batch.labels_BL.tolist()
    ([[5, 6, 7, 8, 9, 10, 2]], [[2, 11, 12, 3]])
    """
    _check_share("noise_density", noise_density)
    _check_mean_span(mean_span)
    bos_id = vocabulary.require("bos", "span corruption")
    is_real_BT = _check(input_ids_BT, vocabulary)
    _refuse_sentinels(input_ids_BT, vocabulary)

    is_noise_BT = random_spans(look_up(vocabulary.is_ordinary_V, input_ids_BT), noise_density, mean_span, generator)
    starts_BT = is_noise_BT & ~shift_right(is_noise_BT, fill=False)
    span_BT = starts_BT.cumsum(1)  # 1 from the first span to the second
    n_spans_B = span_BT[:, -1]
    if int(n_spans_B.max()) >= len(vocabulary.sentinels):
        raise ValueError(
            f"span corruption needs {int(n_spans_B.max()) + 1} sentinels and this vocabulary has "
            f"{len(vocabulary.sentinels)}: shorten the text, lower noise_density, or raise mean_span"
        )
    sentinels = torch.tensor(vocabulary.sentinels)
    row_N, column_N = starts_BT.nonzero(as_tuple=True)  # of the N spans of the batch
    sentinel_N = sentinels[span_BT[row_N, column_N] - 1]

    is_shown_BT = starts_BT | (is_real_BT & ~is_noise_BT)
    place_BT = is_shown_BT.cumsum(1)
    shown_BS = _write(input_ids_BT, place_BT, is_shown_BT, _rows(place_BT[:, -1], vocabulary))
    shown_BS[row_N, place_BT[row_N, column_N] - 1] = sentinel_N

    place_BT = is_noise_BT.cumsum(1) + span_BT  # the target: noise tokens, a sentinel before each span, one at the end
    target_BS = _write(input_ids_BT, place_BT, is_noise_BT, _rows(place_BT[:, -1] + 1, vocabulary))
    target_BS[row_N, place_BT[row_N, column_N] - 2] = sentinel_N
    target_BS.scatter_(1, place_BT[:, -1:], sentinels[n_spans_B][:, None])
    return _with_decoder(shown_BS, target_BS, bos_id, vocabulary)


def restore_spans(input_ids_BS: Tensor, target_ids_BS: Tensor, vocabulary: Vocabulary) -> list[list[int]]:
    """The original rows, without padding, from the input and the target of `span_corrupted`.

    target_ids_BS may hold padding or IGNORE_INDEX behind the last sentinel.
    Raises ValueError unless each sentinel of an input has one span in its target and each span its sentinel.

    >>> restore_spans(torch.tensor([[5, 2, 8]]), torch.tensor([[2, 6, 7, 3]]), Vocabulary(10, sentinels=(2, 3)))
    [[5, 6, 7, 8]]
    """
    if len(input_ids_BS) != len(target_ids_BS):
        raise ValueError(f"{len(input_ids_BS)} rows of input and {len(target_ids_BS)} of targets: give one for each")
    sentinels, dropped = set(vocabulary.sentinels), {vocabulary.pad, IGNORE_INDEX}
    rows = []
    for shown, target in zip(input_ids_BS.tolist(), target_ids_BS.tolist(), strict=True):
        spans = _spans_of([token for token in target if token not in dropped], sentinels)
        wanted = [token for token in shown if token in sentinels]
        if missing := [token for token in wanted if token not in spans]:
            raise ValueError(f"sentinel {missing[0]} of the input has no span in its target: are the rows in step?")
        if unused := [sentinel for sentinel, span in spans.items() if span and sentinel not in wanted]:
            raise ValueError(f"sentinel {unused[0]} of the target stands nowhere in its input: are the rows in step?")
        rows.append([t for token in shown if token != vocabulary.pad for t in spans.get(token, [token])])
    return rows


def infilled(
    input_ids_BT: Tensor,
    vocabulary: Vocabulary,
    *,
    noise_density: float = 0.3,
    mean_span: float = 3.0,
    generator: torch.Generator,
) -> Batch:
    """Replace spans by a single mask token each, their lengths drawn from a Poisson distribution; a span of length 0
    inserts a mask token. The decoder predicts the whole original text (arXiv:1910.13461, section 2.2).

    noise_density: share of the ordinary tokens to remove, rounded, and strictly between 0 and 1 at least one and not
        all; reached exactly, for which the last span drawn is cut to fit. mean_span: lambda.
    Spans and kept tokens stand in any order with equal probability. A span is cut in two where a special token stands
    inside it.
    Raises ValueError for a share outside [0, 1], a mean below 1, or without [MASK] and [BOS] tokens.

    >>> batch = infilled(torch.arange(5, 11)[None], Vocabulary(20, pad=0, bos=1, mask=2), noise_density=0.5,
    ...                  generator=torch.Generator().manual_seed(1))
    >>> batch.input_ids_BT.tolist(), batch.labels_BL.tolist()
    ([[5, 2, 7, 8, 2, 2]], [[5, 6, 7, 8, 9, 10]])
    """
    _check_share("noise_density", noise_density)
    _check_mean_span(mean_span)
    mask_id = vocabulary.require("mask", "infilling")
    bos_id = vocabulary.require("bos", "infilling")
    is_real_BT = _check(input_ids_BT, vocabulary)

    is_ordinary_BT = look_up(vocabulary.is_ordinary_V, input_ids_BT)
    is_noise_BT, n_masks_BT, n_masks_B = poisson_spans(is_ordinary_BT, noise_density, mean_span, generator)
    is_kept_BT = is_real_BT & ~is_noise_BT
    place_BT = is_kept_BT.cumsum(1)
    rows_BS = _rows(place_BT[:, -1] + n_masks_B, vocabulary, fill=mask_id)
    shown_BS = _write(input_ids_BT, place_BT + n_masks_BT, is_kept_BT, rows_BS)
    return _with_decoder(shown_BS, input_ids_BT, bos_id, vocabulary)


def _check(input_ids_BT: Tensor, vocabulary: Vocabulary) -> Tensor:
    """bool [B, T], True where a token is no padding; refuses what is no batch of ids of this vocabulary."""
    if input_ids_BT.dim() != 2:
        raise ValueError(f"input_ids_BT has shape {tuple(input_ids_BT.shape)}: give [batch, length], add ids[None]")
    vocabulary.check_ids(input_ids_BT)
    if vocabulary.pad is None:
        return torch.ones_like(input_ids_BT, dtype=torch.bool)
    return input_ids_BT != vocabulary.pad


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}: give a share between 0 and 1, such as 0.15")


def _check_weights(weight_V: Tensor, vocabulary: Vocabulary) -> None:
    if weight_V.shape != (vocabulary.size,):
        raise ValueError(f"weight_V has shape {tuple(weight_V.shape)}: give one weight per id, ({vocabulary.size},)")
    is_share_V = (weight_V >= 0) & (weight_V <= 1)  # false for nan
    if not is_share_V.all():
        raise ValueError(f"weight_V holds {weight_V[~is_share_V][0].item()}: give weights between 0 and 1")


def _check_mean_span(mean_span: float) -> None:
    if not (math.isfinite(mean_span) and mean_span >= 1):
        raise ValueError(f"mean_span is {mean_span}: give a mean length of at least 1 token, such as 3")


def _refuse_sentinels(input_ids_BT: Tensor, vocabulary: Vocabulary) -> None:
    is_sentinel_BT = look_up(vocabulary.is_sentinel_V, input_ids_BT)
    if int(is_sentinel_BT.sum()):
        found = int(input_ids_BT[is_sentinel_BT][0])
        raise ValueError(f"input_ids_BT holds the sentinel {found}: span corruption could not be undone")


def _spans_of(target: list[int], sentinels: set[int]) -> dict[int, list[int]]:
    """The tokens behind each sentinel of a target."""
    spans: dict[int, list[int]] = {}
    current = None
    for token in target:
        if token in spans:
            raise ValueError(f"sentinel {token} stands twice in a target: each span has its own")
        if token in sentinels:
            spans[token] = current = []
        elif current is None:
            raise ValueError(f"a target begins with token {token}: a sentinel must say where it belongs")
        else:
            current.append(token)
    return spans


def _next_tokens(input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
    """The token after each real position where there is one, IGNORE_INDEX elsewhere."""
    labels_BT = torch.full_like(input_ids_BT, IGNORE_INDEX)
    has_next_BT = is_real_BT[:, 1:] & is_real_BT[:, :-1]
    labels_BT[:, :-1] = input_ids_BT[:, 1:].masked_fill(~has_next_BT, IGNORE_INDEX)
    return labels_BT


def _first_of_word(input_ids_BT: Tensor, vocabulary: Vocabulary) -> Tensor:
    """int64 [B, T]: where the word of each token begins."""
    if vocabulary.continues_word_V is None:
        raise ValueError("whole_words is set and the vocabulary does not know its words: give continues_word_V")
    continues_BT = vocabulary.continues_word_V[input_ids_BT] & vocabulary.is_ordinary_V[input_ids_BT]
    continues_BT &= shift_right(vocabulary.is_ordinary_V[input_ids_BT], fill=False)  # a special token ends a word
    position_T = torch.arange(input_ids_BT.shape[1])
    return position_T.masked_fill(continues_BT, 0).cummax(1).values


def _rows(length_B: Tensor, vocabulary: Vocabulary, fill: int | None = None) -> Tensor:
    """int64 [B, 1 + S]: rows to write into, padded, and before the padding `fill` if it is given. Column 0 takes what
    is not to be written."""
    width = max(1, int(length_B.max()))
    if vocabulary.pad is None and int(length_B.min()) < width:
        vocabulary.require("pad", "a batch of rows of different length")
    if fill is None:
        return torch.full((len(length_B), 1 + width), vocabulary.pad or 0)
    return torch.where(torch.arange(1 + width) <= length_B[:, None], fill, vocabulary.pad or 0)


def _write(ids_BT: Tensor, place_BT: Tensor, is_written_BT: Tensor, rows_BS: Tensor) -> Tensor:
    """int64 [B, S]: the rows with the ids that are to be written at their places, which count from 1."""
    return rows_BS.scatter_(1, place_BT * is_written_BT, ids_BT)[:, 1:].contiguous()


def _with_decoder(shown_BS: Tensor, target_BS: Tensor, bos_id: int, vocabulary: Vocabulary) -> Batch:
    """An encoder-decoder's batch: the decoder reads the target moved one to the right, behind [BOS]."""
    pad_id = -1 if vocabulary.pad is None else vocabulary.pad
    return Batch(
        shown_BS,
        torch.where(target_BS == pad_id, IGNORE_INDEX, target_BS),
        masks.padding(shown_BS != pad_id),
        decoder_input_ids_BS=shift_right(target_BS, fill=bos_id),
    )
