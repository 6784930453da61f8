"""The check of chapter 4's labels for instructions: only the response is learned, its [EOS] included.

Axes: B row of the batch, T position in it.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.checks.report import Wrong, described
from course_lib.checks.tensors import as_wanted, hand_over
from course_lib.vocabulary import IGNORE_INDEX

ResponseLabels = Callable[..., Tensor]


def response_labels_reference(input_ids_BT: Tensor, prompt_length_B: Tensor, attention_mask_BT: Tensor) -> Tensor:
    place_T = torch.arange(input_ids_BT.shape[1])
    is_response_BT = (prompt_length_B[:, None] <= place_T) & (attention_mask_BT == 1)
    return torch.where(is_response_BT, input_ids_BT, torch.full_like(input_ids_BT, IGNORE_INDEX))


@dataclass(frozen=True)
class Instructions:
    """A batch: rows of prompt and response, padded at the end. pad: the id of padding, eos: of the response's end."""

    title: str
    rows: list[list[int]]
    prompt_lengths: list[int]
    pad: int = 0
    eos: int = 2

    @property
    def ids(self) -> Tensor:
        longest = max(map(len, self.rows))
        return torch.tensor([row + [self.pad] * (longest - len(row)) for row in self.rows])

    @property
    def prompt_length(self) -> Tensor:
        return torch.tensor(self.prompt_lengths)

    @property
    def is_real(self) -> Tensor:
        return torch.arange(self.ids.shape[1]) < torch.tensor([[len(row)] for row in self.rows])

    def tensors(self) -> dict[str, Tensor]:
        """By the names of the exercise's arguments."""
        return {
            "input_ids_BT": self.ids,
            "prompt_length_B": self.prompt_length,
            "attention_mask_BT": self.is_real.long(),
        }


CASES = [
    Instructions(
        "prompts and responses of several lengths",
        [[1, 11, 12, 13, 14, 2], [1, 21, 22, 23, 24, 25, 26, 2]],
        [3, 5],
    ),
    Instructions("[EOS] as pad (as in GPT-2)", [[11, 12, 13, 50], [21, 22, 23, 24, 25, 50]], [2, 3], 50, 50),
    Instructions(
        "the pad's id in a prompt and a response",
        [[1, 0, 12, 13, 0, 14, 2], [1, 21, 0, 22, 2], [1, 0, 0, 2]], [3, 2, 2],
    ),
    Instructions("an [EOS] inside a response", [[1, 11, 12, 2, 13, 2], [1, 21, 22, 2], [1, 31, 2]], [2, 3, 1]),
    Instructions(
        "as many rows as positions", [[1, 11, 12, 2], [1, 21, 2], [1, 31, 32, 33, 2], [1, 41, 2], [1, 51, 52, 53, 2]],
        [2, 1, 4, 2, 3],
    ),
    Instructions("no padding", [[1, 11, 12, 2], [1, 21, 22, 2]], [2, 3]),
    Instructions("a row without prompt and one without response", [[11, 12, 13, 14, 2], [1, 21, 22]], [0, 3]),
]  # fmt: skip


def verify_response_labels(function: ResponseLabels) -> str:
    """Compare labels. Raises Wrong or NotAttempted; says what was verified."""
    for case in CASES:
        given = _given(function, case)
        wanted = response_labels_reference(*case.tensors().values())
        judge_kind(given, wanted, case)
        if not torch.equal(given, wanted):
            raise Wrong(explained(given, case), **difference(given, wanted, case))
    titles = ", ".join(case.title for case in CASES)
    return f"the labels of {len(CASES)} batches: {titles}; what was handed in is as it was"


def _given(function: ResponseLabels, case: Instructions) -> object:
    """What the function gives back; a crash over shapes with a hint."""
    try:
        return hand_over(function, case.tensors())
    except Wrong as wrong:
        if "RuntimeError: The size of tensor" not in wrong.cause:
            raise
        hint = "A prompt's length is one a row, [B], and a position runs along the row, [T]: which axis does each need?"
        raise Wrong(f"{wrong.cause.rstrip('.')}. {hint}", **wrong.evidence) from None


def judge_kind(given: object, wanted: Tensor, case: Instructions) -> None:
    """Raises Wrong unless it is a tensor of whole numbers in the shape of the ids."""
    evidence = {"batch": case.title}
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        raise Wrong(
            "That says where labels are: the labels themselves are ids, and -100 elsewhere.",
            **evidence,
            given=described(given),
        )
    if isinstance(given, Tensor) and given.shape[1:] == (wanted.shape[1] - 1,):
        raise Wrong(
            "There is one position less than in input_ids: the labels are shifted already. They stand where their "
            "tokens stand, for the model shifts them itself.",
            **evidence,
            wanted=f"shape {list(wanted.shape)}",
            given=f"shape {list(given.shape)}",
        )
    if isinstance(given, Tensor) and given.is_floating_point() and given.shape == wanted.shape:
        raise Wrong(
            f"labels has dtype {given.dtype} and should have torch.int64: a class's number is whole. -100.0, or a "
            "product with a float, makes all of them floats.",
            **evidence,
            given=described(given),
        )
    as_wanted(given, "labels", wanted, **evidence)


# --- what may be wrong: where labels begin, where they end, what fills the rest, what moved ---------------------------

Piece = tuple[str, Tensor | None]  # what to say of it ("" of the right one), and what it gives; None: it does not fit


def begins(case: Instructions) -> list[Piece]:
    """Where a row's labels begin: bool [B, T]."""
    place_T, start_B1 = torch.arange(case.ids.shape[1]), case.prompt_length[:, None]
    square = place_T >= case.prompt_length if len(case.rows) == len(place_T) else None
    first = f"The prompt's length of row 0, {case.prompt_lengths[0]}, is taken for every row: each has its own."
    longest = "The longest prompt's length is taken for every row: each has its own."
    return [
        ("", place_T >= start_B1),
        ("The first token of a response has no label: a prompt of 3 fills positions 0 to 2, and position 3 is learned.",
         place_T > start_B1),
        ("The last token of the prompt has a label: a prompt of 3 fills positions 0 to 2, and none of them is learned.",
         place_T >= start_B1 - 1),
        ("The prompt has labels: the model would learn to write the questions.", place_T >= 0 * start_B1),
        ("The prompt has labels, all but its first token.", place_T >= 1 + 0 * start_B1),
        ("The wrong way round: the prompt has labels, and the response has none.", place_T < start_B1),
        ("The prompts' lengths run along the positions instead of the rows: without an axis of their own for T they "
         "are compared as [T]. In a square batch no error says so.", square),
        (first, place_T >= start_B1[0] + 0 * start_B1),
        (longest, place_T >= start_B1.max() + 0 * start_B1),
    ]  # fmt: skip


def ends(case: Instructions) -> list[Piece]:
    """What of a row has labels at all: bool [B, T]."""
    ids_BT, is_real_BT = case.ids, case.is_real
    is_last_BT = is_real_BT & ~torch.nn.functional.pad(is_real_BT, (0, 1))[:, 1:]
    no_eos = "[EOS] has no label: it belongs to the response, and a model that is not taught to stop does not."
    if case.eos == case.pad:
        no_eos += f" Here it has the pad's id, {case.pad}: attention_mask tells them apart."
    return [
        ("", is_real_BT),
        (no_eos, is_real_BT & ~is_last_BT),
        ("An [EOS] inside the response has no label: which ids they are does not matter, only where they stand.",
         is_real_BT & ((ids_BT != case.eos) | is_last_BT)),
        (no_eos, is_real_BT & (ids_BT != case.eos)),
        ("A real token of the response has no label, because it has the pad's id: attention_mask tells them apart.",
         is_real_BT & (ids_BT != case.pad)),
        ("Padding has labels: attention_mask says where it is, whatever its id.", torch.ones_like(is_real_BT)),
        ("The first position of padding has a label: that is one too far.",
         is_real_BT | torch.nn.functional.pad(is_real_BT, (1, 0), value=True)[:, :-1]),
    ]  # fmt: skip


def explained(given: Tensor, case: Instructions) -> str:
    """The mistakes that give exactly this, the fewest at once."""
    whole = [("That is attention_mask: the labels are ids.", case.is_real.long())]
    for said, has_label_BT in _places(case):
        whole.append((said, has_label_BT.long()))
        whole.append((said, torch.where(has_label_BT, 1, IGNORE_INDEX)))
    for said, mistaken in whole:
        if torch.equal(given, mistaken):
            return said or "A label is the id of the token itself, not a 1 that says that it is learned."
    found: list[tuple[int, bool, str]] = []
    for (begin, begin_BT), (end, end_BT) in itertools.product(begins(case), ends(case)):
        if begin_BT is None or end_BT is None:
            continue
        for said, mistaken in _filled_and_moved(begin_BT, end_BT, case):
            if torch.equal(given, mistaken):
                causes = [cause for cause in (begin, end, *said) if cause]
                found.append((len(causes), bool(said), " ".join(causes)))  # rather a wrong place than a filling
    if found:
        return min(found, key=lambda way: way[:2])[2]
    return _first_difference(given, case)


def _places(case: Instructions) -> Iterator[Piece]:
    """Where labels stand, right or not, for what only says where."""
    right_BT = begins(case)[0][1] & case.is_real
    yield "", right_BT
    yield "That says where there is no label: a label is the id of the token itself.", ~right_BT


def _filled_and_moved(begin_BT: Tensor, end_BT: Tensor, case: Instructions) -> Iterator[tuple[list[str], Tensor]]:
    ids_BT, keeps_BT = case.ids, begin_BT & end_BT
    labels_BT = ids_BT.where(keeps_BT, IGNORE_INDEX)
    yield [], labels_BT
    early = "They are shifted already: each label stands one position before its token. The model shifts them again."
    late = (
        "They are shifted the other way: each label stands one position behind its token, and nothing needs shifting."
    )
    for fill in (IGNORE_INDEX, case.pad, 0):
        end_B1 = torch.full_like(ids_BT[:, :1], fill)
        yield [early], torch.cat([labels_BT[:, 1:], end_B1], 1)
        yield [early], torch.cat([ids_BT[:, 1:], end_B1], 1).where(keeps_BT, IGNORE_INDEX)
        yield [late], torch.cat([end_B1, labels_BT[:, :-1]], 1)
    yield [early], labels_BT.roll(-1, 1)
    yield [early], ids_BT.roll(-1, 1).where(keeps_BT, IGNORE_INDEX)
    yield [late], labels_BT.roll(1, 1)
    for fill in (0, case.pad, -1, 100, 1):
        filled = f"What is not learned has {fill}: that is {'a token' if fill >= 0 else 'no sign'}, and the loss "
        filled += "counts it. Only -100 is left out." if fill >= 0 else "leaves out -100 only."
        yield [filled], ids_BT.where(keeps_BT, fill)
        yield [filled], labels_BT.where(begin_BT, fill)
        if fill != case.pad:  # the pad's own id on padding is a label on padding
            yield [filled], labels_BT.where(end_BT, fill)


def _first_difference(given: Tensor, case: Instructions) -> str:
    wanted = response_labels_reference(*case.tensors().values())
    row, place = (given != wanted).nonzero()[0].tolist()
    length, prompt = len(case.rows[row]), case.prompt_lengths[row]
    part = "padding" if place >= length else "the prompt" if place < prompt else "the response"
    belongs = "the token itself" if part == "the response" else "-100"
    return f"Row {row}, position {place} lies in {part}: {belongs} should stand there."


def difference(given: Tensor, wanted: Tensor, case: Instructions) -> dict[str, str]:
    """The first row that differs."""
    row = int((given != wanted).any(1).nonzero()[0])
    return {
        "batch": case.title,
        f"row {row}": f"{case.ids[row].tolist()}, of which {case.prompt_lengths[row]} are prompt and "
        f"{len(case.rows[row])} are real",
        "wanted": str(wanted[row].tolist()),
        "given": str(given[row].tolist()),
    }
