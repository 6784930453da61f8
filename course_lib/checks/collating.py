"""The check of chapter 4's collator: reviews of different lengths become one batch.

Axes: B row of the batch, T position in it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib.checks.report import Wrong, call, described
from course_lib.checks.tensors import as_wanted, brief
from course_lib.finetuning.collators import Padding
from course_lib.vocabulary import IGNORE_INDEX

CollateReviews = Callable[..., Mapping[str, Tensor]]
FIELDS = ("input_ids", "attention_mask", "labels")
Rows = list[list[int]]


def collate_reference(examples: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    rows = [example["input_ids"] for example in examples]
    return {
        "input_ids": Padding().pad(rows, pad_id),
        "attention_mask": Padding().pad([[1] * len(row) for row in rows], 0),
        "labels": torch.tensor([example["label"] for example in examples]),
    }


@dataclass(frozen=True)
class Reviews:
    """What becomes a batch."""

    title: str
    rows: Rows
    labels: list[int]
    pad_id: int = 0

    @property
    def longest(self) -> int:
        return max(map(len, self.rows))

    def examples(self) -> list[dict[str, Any]]:
        pairs = zip(self.rows, self.labels, strict=True)
        return [{"input_ids": list(row), "label": label} for row, label in pairs]

    def padded(self, rows: Rows, fill: int, *, at_end: bool = True) -> Rows:
        gaps = [[fill] * (self.longest - len(row)) for row in rows]
        return [row + gap if at_end else gap + row for row, gap in zip(rows, gaps, strict=True)]

    def in_words(self) -> dict[str, Any]:
        """As a verdict shows it."""
        return {"examples": self.examples(), "pad_id": self.pad_id}


CASES = [
    Reviews("three lengths", [[11, 12, 13], [21, 22, 23, 24, 25], [31, 32]], [2, 0, 1]),
    Reviews("a pad_id that is not 0", [[11, 12], [21], [31, 32, 33], [41, 42]], [1, 3, 0, 2], 7),
    Reviews("the pad_id as a real token", [[11, 0, 13], [21, 22, 23, 24], [31, 0], [0, 42]], [0, 1, 1, 0]),
    Reviews("token 0 where pad_id is 5", [[0, 12, 5], [21, 22, 23, 0], [31]], [1, 1, 0], 5),
    Reviews("one review", [[11, 12, 13]], [1]),
    Reviews("all of one length", [[11, 12], [21, 22], [31, 32]], [0, 0, 1]),
    Reviews("a review without tokens", [[], [21, 22, 23]], [0, 1]),
    Reviews("a review of 1,500 tokens", [[11, 12, 13, 14], list(range(100, 1600))], [0, 1]),
]


def verify_collate_reviews(function: CollateReviews) -> str:
    """Compare batches. Raises Wrong or NotAttempted; says what was verified."""
    for case in CASES:
        given = call(function, examples=case.examples(), pad_id=case.pad_id)
        judge_fields(given, case)
        judge_order(given, case)
        judge_input_ids(given["input_ids"], case)
        judge_attention_mask(given["attention_mask"], case)
        judge_labels(given["labels"], case)
    titles = ", ".join(case.title for case in CASES)
    return f"input_ids, attention_mask and labels of {len(CASES)} batches: {titles}; the examples are as they were"


# --- fields and their order -------------------------------------------------------------------------------------------


def judge_fields(given: Any, case: Reviews) -> None:
    """Raises Wrong unless it is a dict of the three fields."""
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise Wrong(
            f"Give back a dict with {', '.join(FIELDS)}: that is {kind}.", **case.in_words(), given=described(given)
        )
    found = {"wanted": ", ".join(FIELDS), "given": ", ".join(map(described, given))}
    if missing := [name for name in FIELDS if name not in given]:
        singular = " A model reads labels, with an s, though each example has a label." if "label" in given else ""
        raise Wrong(f"The field {missing[0]!r} is missing in the batch.{singular}", **found)
    if surplus := [name for name in given if name not in FIELDS]:
        name = described(surplus[0])
        raise Wrong(
            f"The field {name} is too much: model(**batch) would hand it on, and the model stops at it.", **found
        )


def judge_order(given: Mapping[str, Any], case: Reviews) -> None:
    """Raises Wrong where the right rows stand in another order."""
    rows, labels = (_listed(given[name]) for name in ("input_ids", "labels"))
    wanted = case.padded(case.rows, case.pad_id)
    if rows == wanted or rows is None or sorted(map(str, rows)) != sorted(map(str, wanted)):
        return
    order = [wanted.index(row) for row in rows]
    moved = labels == [case.labels[n] for n in order]
    cause = (
        "The rows stand in another order than the examples: whoever compares the model's answers with the texts takes "
        "one for another. Sorting by length is for whoever chooses the batches."
        if moved
        else "The rows stand in another order than the examples, and their labels do not: each text now has the label "
        "of another, and training goes on without an error."
    )
    raise Wrong(cause, **case.in_words(), **{"rows' order": order, "labels": labels})


# --- input_ids --------------------------------------------------------------------------------------------------------


def judge_input_ids(given: Any, case: Reviews) -> None:
    """Raises Wrong unless they are padded at the end, with pad_id, to the longest."""
    wanted = torch.tensor(case.padded(case.rows, case.pad_id))
    evidence = {"batch": case.title} | case.in_words()
    if isinstance(given, Tensor) and given.shape != wanted.shape:
        raise Wrong(_shape_cause(tuple(given.shape), case), **evidence, **_shapes(wanted, given))
    given = _whole_numbers(given, "input_ids", wanted, case)
    if not torch.equal(given, wanted):
        raise Wrong(_ids_cause(given.tolist(), case), **evidence, **_row_that_differs(wanted, given))


def _shape_cause(shape: tuple[int, ...], case: Reviews) -> str:
    n, longest, shortest = len(case.rows), case.longest, min(map(len, case.rows))
    if shape == (longest, n):
        return (
            "Rows and positions are exchanged: [T, B] should be [B, T]. pad_sequence does that unless batch_first=True."
        )
    if len(shape) != 2 or shape[0] != n:
        return f"input_ids has shape {shape} and should have {(n, longest)}: a row for each example."
    length = shape[1]
    if length == shortest:
        return (
            f"Each row is cut to the shortest, {shortest}: the longer texts lose their end. The short ones are padded."
        )
    if length < longest:
        return f"A row of {longest} tokens is cut to {length}: how long a text may be is decided before, not here."
    if length == longest + 1:
        return "One position too many: what is added to each row here? The longest gets no padding."
    if length % 8 == 0 and length - longest < 8:
        return f"Padded to {length}, a multiple of 8: here the longest row, {longest}, says how far."
    return (
        f"Padded to {length} positions, and the longest of this batch has {longest}: a fixed length makes the model "
        "compute padding. Each batch needs its own."
    )


def _ids_cause(given: Rows, case: Reviews) -> str:
    """The usual mistake that gives exactly this."""
    backwards = [row[::-1] for row in case.rows]
    orders = [("", case.rows), ("The tokens of each text run backwards.", backwards)]
    sides = [("", True), ("The padding stands before the text: wanted is padding at the end.", False)]
    fills = [("", case.pad_id), *((_fill_cause(fill, case), fill) for fill in (0, IGNORE_INDEX, -1, 1))]
    for (order, rows), (side, at_end), (filled, fill) in itertools.product(orders, sides, fills):
        if given == case.padded(rows, fill, at_end=at_end):
            return " ".join(filter(None, (order, side, filled)))
    if given == [row + row[-1:] * (case.longest - len(row)) for row in case.rows]:
        return "The last token of a row is repeated: what is added should be pad_id."
    if any(row[: len(own)] != own for row, own in zip(given, case.rows, strict=True)):
        return "The tokens of a text are not what they were: they come first in their row, as they are."
    return f"What stands behind a text should be pad_id, {case.pad_id}, as often as it takes."


def _fill_cause(fill: int, case: Reviews) -> str:
    if fill == IGNORE_INDEX:
        return "Padded with -100: that is for labels. An embedding has no row -100."
    return f"Padded with {fill}: pad_id is an argument and is {case.pad_id} here, as each tokenizer has its own."


# --- attention_mask and labels ----------------------------------------------------------------------------------------


def judge_attention_mask(given: Any, case: Reviews) -> None:
    """Raises Wrong unless it is 1 on each real token, whatever its id, and 0 elsewhere."""
    wanted = torch.tensor(case.padded([[1] * len(row) for row in case.rows], 0))
    evidence = {"batch": case.title} | case.in_words()
    given = _whole_numbers(given, "attention_mask", wanted, case)
    if not torch.equal(given, wanted):
        causes = (cause for cause, mistaken in _mask_mistakes(case) if given.tolist() == mistaken)
        cause = next(
            causes, "attention_mask should be 1 as often as the row has tokens of its own, and 0 from there on."
        )
        raise Wrong(cause, **evidence, **_row_that_differs(wanted, given))


def _mask_mistakes(case: Reviews) -> Iterator[tuple[str, Rows]]:
    """What to say, and what it gives. The more special mistake comes first where two give the same."""
    ids, ones = case.padded(case.rows, case.pad_id), [[1] * len(row) for row in case.rows]
    by_id = (
        "attention_mask is 0 on a real token, because that token has the pad's id ({}): ids do not tell padding from "
        "text, the lengths of the rows do."
    )
    yield by_id.format(case.pad_id), [[int(token != case.pad_id) for token in row] for row in ids]
    yield (
        f"attention_mask is 0 wherever the id is 0, and 1 on padding: pad_id is {case.pad_id} here. The lengths of the "
        "rows tell padding from text, whatever the ids.",
        [[int(token != 0) for token in row] for row in ids],
    )
    yield "attention_mask is 1 everywhere: the model would attend to padding.", [[1] * len(row) for row in ids]
    yield (
        "attention_mask is inverted: 1 says that a token is real and may be attended to, 0 that it is padding.",
        case.padded([[0] * len(row) for row in case.rows], 1),
    )
    yield (
        "attention_mask is padded before the text and input_ids behind it: the two must match.",
        case.padded(ones, 0, at_end=False),
    )
    yield "attention_mask holds the ids: only 1 (real) and 0 (padding) stand in it.", ids
    yield f"Padding has pad_id, {case.pad_id}, in attention_mask: it is 0 there.", case.padded(ones, case.pad_id)
    yield "Padding has -100 in attention_mask: it is 0 there.", case.padded(ones, IGNORE_INDEX)


def judge_labels(given: Any, case: Reviews) -> None:
    """Raises Wrong unless there is one label for each text."""
    wanted = torch.tensor(case.labels)
    evidence = {"batch": case.title} | case.in_words()
    n = len(wanted)
    if isinstance(given, Tensor) and given.shape != wanted.shape:
        cause = f"labels has shape {tuple(given.shape)} and should have {(n,)}: one class for each text."
        if tuple(given.shape) == (n, 1):
            cause = f"labels has shape {(n, 1)} and should have {(n,)}: cross-entropy wants no axis for the one class."
        elif tuple(given.shape) == (n, case.longest):
            cause = (
                f"labels has shape {(n, case.longest)} and should have {(n,)}: there is one class for each text, none "
                "for each token, so nothing is padded. (-100 on padding is for models that predict tokens.)"
            )
        raise Wrong(cause, **evidence, **_shapes(wanted, given))
    given = _whole_numbers(given, "labels", wanted, case)
    if not torch.equal(given, wanted):
        cause = "labels should be the examples' labels as they are, in the examples' order."
        if sorted(given.tolist()) == sorted(case.labels):
            cause = "The labels stand in another order than the rows: each text now has the label of another."
        raise Wrong(cause, **evidence, wanted=wanted, given=given)


# --- what they share --------------------------------------------------------------------------------------------------


def _whole_numbers(given: Any, name: str, wanted: Tensor, case: Reviews) -> Tensor:
    """What is given, if it is an int64 tensor of the wanted one's shape."""
    evidence = {"batch": case.title} | case.in_words()
    if isinstance(given, Tensor) and given.is_floating_point() and given.shape == wanted.shape:
        why = "an embedding looks up whole numbers" if name == "input_ids" else "whole numbers are wanted"
        empty = " An empty list becomes float32 unless you say the dtype." if [] in case.rows else ""
        raise Wrong(
            f"{name} has dtype {given.dtype}, and {why}: torch.int64.{empty}", **evidence, given=described(given)
        )
    return as_wanted(given, name, wanted, **evidence)


def _row_that_differs(wanted: Tensor, given: Tensor) -> dict[str, str]:
    row = int((given != wanted).any(1).nonzero()[0])
    return {name: f"row {row}: {brief(value[row])}" for name, value in (("wanted", wanted), ("given", given))}


def _shapes(wanted: Tensor, given: Tensor) -> dict[str, str]:
    return {name: f"shape {list(value.shape)}" for name, value in (("wanted", wanted), ("given", given))}


def _listed(value: Any) -> list | None:
    """A tensor's rows; None of what has none."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type == "meta" or not value.dim():
        return None
    return value.tolist()
