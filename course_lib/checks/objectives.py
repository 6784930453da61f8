"""Checks of chapter 1: shifted labels, masking, the visibility of a permutation, spans and their sentinels.

Axes: B row of the batch, T position, Q position that looks, K position that is looked at.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course_lib import data, masks, objectives
from course_lib.checks.corruptions import (
    CorruptSpans,
    MaskTokens,
    RestoreSpans,
    corrupt_reference,
    mask_reference,
    real_batch,
    restore_reference,
    verify_corruption,
    verify_masking,
    verify_restoring,
)
from course_lib.checks.report import Part, Wrong, call, pair, report, same, tensor
from course_lib.runtime import seeded
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

ShiftLabels = Callable[[Tensor, int], Tensor]
PermutationMask = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def shift_labels(function: ShiftLabels) -> ShiftLabels:
    """Check f(input_ids_BT, pad_id) -> labels_BT: each position's next token; -100 at the last position, at padding,
    and before padding. Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("shift_labels", function, _verify_shift, _shift_labels))[0]


def mask_tokens(function: MaskTokens) -> MaskTokens:
    """Check f(input_ids_BT, vocabulary, mask_prob, generator) -> (shown_BT, labels_BT): BERT's masking, 80/10/10.
    Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("mask_tokens", function, verify_masking, mask_reference))[0]


def permutation_mask(function: PermutationMask) -> PermutationMask:
    """Check f(order_BT, is_target_BT) -> (content_BTT, query_BTT), as `masks.permutation` defines them.
    Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("permutation_mask", function, _verify_permutation, masks.permutation))[0]


def corrupt_spans(corrupt: CorruptSpans, restore: RestoreSpans) -> tuple[CorruptSpans, RestoreSpans]:
    """Check f(ids, is_noise, sentinels) -> (input, target) in T5's format, and g(input, target, sentinels) -> ids, its
    inverse. Prints a verdict; gives back each function that is right, and the library's for the other."""
    parts = (
        Part("corrupt_spans", corrupt, verify_corruption, corrupt_reference),
        Part("restore_spans", restore, verify_restoring, restore_reference),
    )
    return report(*parts)


def _shift_labels(input_ids_BT: Tensor, pad_id: int) -> Tensor:
    size = max(int(input_ids_BT.max()), pad_id) + 2
    return objectives.causal(input_ids_BT, Vocabulary(size, pad=pad_id)).labels_BL


# --- shift the labels -------------------------------------------------------------------------------------------------


def _verify_shift(function: ShiftLabels) -> str:
    cases = [
        (torch.tensor([[5, 6, 7, 8]]), 0),
        (torch.tensor([[5, 6, 0, 0], [5, 6, 7, 8]]), 0),
        (torch.tensor([[0, 0, 5, 6]]), 0),  # padded in front
        (torch.tensor([[0, 5, 3, 3]]), 3),  # another padding id, and 0 an ordinary token
        (torch.tensor([[5]]), 0),
        (real_batch(), data.course_tokenizer().vocabulary.pad),
    ]
    for input_ids_BT, pad_id in cases:
        shown = {"input": input_ids_BT, "pad_id": pad_id}
        given = call(function, input_ids_BT=input_ids_BT, pad_id=pad_id)
        wanted = _shift_labels(input_ids_BT, pad_id)
        if isinstance(given, Tensor) and given.shape == (len(input_ids_BT), input_ids_BT.shape[1] - 1):
            raise Wrong(
                "The labels are one column short: keep the input's shape. The last position has no next token, so its "
                "label is -100.",
                **shown,
                wanted=wanted,
                given=given,
            )
        given = tensor(given, "labels_BT", input_ids_BT.shape, torch.int64, **shown, wanted=wanted)
        if not torch.equal(given, wanted):
            raise Wrong(_shift_cause(input_ids_BT, pad_id, given, wanted), **shown, wanted=wanted, given=given)
    return f"padding behind and in front, another padding id, a single token, {len(real_batch())} real reviews"


def _shift_cause(input_ids_BT: Tensor, pad_id: int, given_BT: Tensor, wanted_BT: Tensor) -> str:
    is_asked_BT = wanted_BT != IGNORE_INDEX
    wrong_BT = given_BT != wanted_BT
    if (is_asked_BT & (given_BT == input_ids_BT)).sum() > is_asked_BT.sum() / 2:
        return "Each position is asked for the token that it reads itself: it only has to copy. Take the next one."
    if wrong_BT[:, 1:-1].any() and torch.equal(given_BT[:, 2:], input_ids_BT[:, 1:-1]):
        return "The labels went the wrong way: each position is asked for the token before it, which it has seen."
    if pad_id != 0 and not (wrong_BT & (input_ids_BT != 0) & (given_BT != pad_id)).any():
        return f"Padding is {pad_id} here, and 0 an ordinary token: did you use pad_id?"
    if (is_asked_BT & wrong_BT).any():
        return "Where there is a next token, it is the label. Compare wanted and given, position by position."
    if (given_BT[wrong_BT] != given_BT[wrong_BT][0]).sum() == 0 and given_BT[wrong_BT][0] in (0, -1) and pad_id != 0:
        return f"Positions without a next token have the label {int(given_BT[wrong_BT][0])}: the loss skips -100 alone."
    if wrong_BT[:, -1].any() and input_ids_BT.shape[1] > 1 and torch.equal(given_BT[:, -1], input_ids_BT[:, 0]):
        return "The last position is asked for the row's first token: the labels wrap around (as torch.roll does)."
    if (wrong_BT & (given_BT == pad_id)).any():
        return f"Some labels are the padding id {pad_id}: before padding there is no next token, the label is -100."
    if (wrong_BT & (input_ids_BT == pad_id)).any():
        return "A position that holds padding is asked for something: padding predicts nothing, its label is -100."
    if wrong_BT[:, -1].any():
        return "The last position has no next token: its label is -100, which the loss skips."
    return "Positions without a next token have the label -100."


# --- the visibility of a permutation ----------------------------------------------------------------------------------


def _verify_permutation(function: PermutationMask) -> str:
    order_B4 = torch.tensor([[2, 0, 3, 1]])
    cases = [(order_B4, torch.tensor([[True, False, True, True]]))]
    for n_rows, length, share in ((6, 9, 0.4), (2, 5, 1.0), (2, 5, 0.0), (1, 1, 1.0), (3, 32, 0.2)):
        order_BT = torch.rand(n_rows, length, generator=seeded(length, n_rows)).argsort(1)
        cases.append((order_BT, torch.rand(n_rows, length, generator=seeded(1, length)) < share))
    pairs = []
    for order_BT, is_target_BT in cases:
        evidence = {"order": order_BT, "target": is_target_BT.int()}
        result = call(function, order_BT=order_BT, is_target_BT=is_target_BT)
        streams = pair(result, ("content_BTT", "query_BTT"), **evidence)
        shape = (*order_BT.shape, order_BT.shape[1])
        for name, stream in zip(("content_BTT", "query_BTT"), streams, strict=True):
            tensor(stream, name, shape, torch.bool, **evidence)
        pairs.append((order_BT, is_target_BT, streams, masks.permutation(order_BT, is_target_BT)))
    if cause := _permutation_pattern(pairs):
        order_BT, is_target_BT, given, wanted = pairs[0]
        raise Wrong(cause, order=order_BT, target=is_target_BT.int(), wanted=_rows(wanted[1]), given=_rows(given[1]))
    for order_BT, is_target_BT, given, wanted in pairs:
        for name, given_BQK, wanted_BQK in zip(("content", "query"), given, wanted, strict=True):
            if not torch.equal(given_BQK, wanted_BQK):
                b, q, k = (given_BQK != wanted_BQK).nonzero()[0].tolist()
                raise Wrong(
                    _cell_cause(name, q, k, is_target_BT[b], order_BT[b], bool(given_BQK[b, q, k])),
                    order=order_BT[b],
                    target=is_target_BT[b].int(),
                    wanted=f"{name} row {q}: {wanted_BQK[b, q].int().tolist()}",
                    given=f"{name} row {q}: {given_BQK[b, q].int().tolist()}",
                )
    return (
        f"both streams on {len(pairs)} batches: all, some and no targets, early and late in the order, a single token"
    )


def _permutation_pattern(pairs: Sequence[tuple]) -> str | None:
    """A mistake that explains every matrix given, if there is one."""

    def explains(mistake: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> bool:
        return all(same(tuple(given), tuple(mistake(order, target))) for order, target, given, _ in pairs)

    right = masks.permutation
    if explains(right):
        return None
    if explains(lambda order, target: right(order, target)[::-1]):
        return "The two streams are swapped: the content stream comes first, the query stream second."
    if explains(lambda order, target: tuple(~stream for stream in right(order, target))):
        return "Everything is inverted: True says that a row may look at a column."
    if explains(lambda order, target: tuple(stream.mT for stream in right(order, target))):
        return "Rows and columns are exchanged: [b, q, k] says that q, which looks, may look at k."
    if explains(lambda order, target: right(order.argsort(1), target)):
        return (
            "order_BT was read as a list of positions. It holds each position's place: order_BT[b, t] = 0 says that t "
            "comes first."
        )
    if explains(lambda order, target: right(order.shape[1] - 1 - order, target)):
        return "The order is reversed: a target sees those that come later. It may see those of an earlier place."
    return None


def _cell_cause(stream: str, q: int, k: int, is_target_T: Tensor, order_T: Tensor, sees: bool) -> str:
    row, column = (f"{'target' if is_target_T[t] else 'non-target'} {t} (place {int(order_T[t])})" for t in (q, k))
    if not is_target_T[k] and not sees:
        whom = "itself" if q == k else column
        return f"In the {stream} stream {row} does not see {whom}: non-targets are given, everybody may see them."
    if q == k and stream == "query":
        return f"In the query stream {row} sees itself: it is asked for its own token, and could copy the answer."
    if q == k:
        return f"In the content stream {row} does not see itself: what a token knows begins with itself."
    if not is_target_T[q]:
        return (
            f"In the {stream} stream {row} sees {column}: a non-target must see no target, or what it learned would "
            "leak to the target's own query in the next layer."
        )
    when = "later" if order_T[k] > order_T[q] else "earlier"
    return (
        f"In the {stream} stream {row} {'sees' if sees else 'does not see'} {column}, which comes {when} in the order."
    )


def _rows(stream_BTT: Tensor) -> str:
    return f"query {stream_BTT[0].int().tolist()}"
