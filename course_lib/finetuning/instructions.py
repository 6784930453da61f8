"""An instruction as text and as tokens: one template, its exact inverse, turns of a conversation, which tokens carry
loss, what gives way where a text is too long, and several examples in one row that do not see each other.

The template is Stanford Alpaca's (Taori et al. 2023) without its preamble, which a small model could not afford.
Axes: B row of the batch, T position in it.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from course_lib.finetuning.collators import Collated
from course_lib.tokenizer import Tokenizer
from course_lib.vocabulary import DOCUMENT, IGNORE_INDEX, Vocabulary

HEADERS = {"system": "### System:", "user": "### Instruction:", "input": "### Input:", "assistant": "### Response:"}
ROLES = ("system", "user", "assistant")
_A_HEADER = re.compile(r"^### (System|Instruction|Input|Response):$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    """What is asked, what it is asked about (may be empty), and the answer (empty where it is still to be written).

    Raises ValueError for an empty instruction, or a text with a line that is one of the template's headers: it could
    not be told from the template.
    """

    instruction: str
    input: str = ""
    output: str = ""

    def __post_init__(self) -> None:
        if not self.instruction:
            raise ValueError("instruction is empty: say what is to be done")
        for name in ("instruction", "input", "output"):
            _check_text(name, getattr(self, name))


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation. role: "system", "user" or "assistant"."""

    role: str
    text: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role is {self.role!r}: choose one of {', '.join(ROLES)}")
        _check_text(f"the {self.role}'s text", self.text)


@dataclass(frozen=True)
class Encoded:
    """An example as tokens, [BOS] and [EOS] among them. completion_mask: which of them are to be learned. cut_input,
    cut_output: how many tokens gave way.

    Raises ValueError for no tokens, or a mask of another length.
    """

    input_ids: tuple[int, ...]
    completion_mask: tuple[bool, ...]
    cut_input: int = 0
    cut_output: int = 0

    def __post_init__(self) -> None:
        if not self.input_ids:
            raise ValueError("input_ids are empty: give at least one token")
        if (given := len(self.completion_mask)) != len(self.input_ids):
            raise ValueError(f"{len(self.input_ids)} input_ids and {given} of completion_mask: give one for each")

    def as_example(self) -> dict[str, tuple]:
        """What GenerationCollator takes."""
        return {"input_ids": self.input_ids, "completion_mask": self.completion_mask}


def prompt_of(example: Instruction) -> str:
    """The text up to where the answer begins; the template has an input only where the example has.

    >>> prompt_of(Instruction("Classify the review.", "a good film"))
    '### Instruction:\\nClassify the review.\\n\\n### Input:\\na good film\\n\\n### Response:\\n'
    """
    head, tail = _around_input(example)
    return head + example.input + tail


def render(example: Instruction) -> str:
    """The whole text: the prompt and the answer."""
    return prompt_of(example) + example.output


def parse(text: str) -> Instruction:
    """The example of a text that `render` has made: parse(render(example)) == example.

    Raises ValueError for a text that it has not.

    >>> parse(render(Instruction("Classify.", "a good film", "positive")))
    Instruction(instruction='Classify.', input='a good film', output='positive')
    """
    user, given, answer = (re.escape(HEADERS[name]) for name in ("user", "input", "assistant"))
    found = re.fullmatch(f"{user}\n(.+?)(?:\n\n{given}\n(.+?))?\n\n{answer}\n(.*)", text, re.DOTALL)
    if not found:
        raise ValueError(f"the text {text[:60]!r} does not follow the template: make it with render")
    return Instruction(found[1], found[2] or "", found[3])


def encode(
    example: Instruction,
    tokenizer: Tokenizer,
    *,
    max_len: int = 256,
    learn: str = "response",
    may_cut_output: bool = False,
) -> Encoded:
    """[BOS], the prompt, the answer, [EOS]. learn: "response" (with [EOS]), or "all" but [BOS].

    Where it is longer than max_len, the input loses its end; instruction and answer stay whole.
    may_cut_output: where that is not enough, the answer loses its end, [EOS] with it, and `cut_output` says how much.
    Raises ValueError where it is not enough otherwise, or nothing of the answer would be left.
    """
    if learn not in ("response", "all"):
        raise ValueError(f"learn is {learn!r}: choose 'response' or 'all'")
    bos, eos = tokenizer.vocabulary.frame_ids("an instruction", DOCUMENT)
    answer = [*tokenizer.encode(example.output), eos]
    prompt, cut = _fitted(example, tokenizer, max_len - len(answer), may_exceed=may_cut_output)
    ids = [bos, *prompt, *answer]
    over = max(0, len(ids) - max_len)
    if over >= len(answer):
        raise ValueError(
            f"the prompt alone takes {1 + len(prompt)} of max_len {max_len} tokens, and nothing of the answer would be "
            "left: shorten the instruction or raise max_len"
        )
    start = 1 if learn == "all" else 1 + len(prompt)
    kept = ids[: len(ids) - over]
    return Encoded(tuple(kept), tuple(place >= start for place in range(len(kept))), cut, over)


def encode_prompt(example: Instruction, tokenizer: Tokenizer, *, room: int) -> list[int]:
    """[BOS] and the prompt, token for token as `encode` writes them: what a model goes on from. The input loses its end
    where it is longer than `room`.

    Raises ValueError where the rest of the prompt alone is longer.
    """
    bos = tokenizer.vocabulary.require("bos", "an instruction")
    return [bos, *_fitted(example, tokenizer, room)[0]]


def encode_chat(turns: Sequence[Turn], tokenizer: Tokenizer, *, max_len: int = 256) -> Encoded:
    """A conversation: every answer of the assistant carries loss, with the [EOS] that ends it. One user turn and one
    answer are what `encode` makes of an Instruction without input.

    Raises TypeError for what is no Turn, ValueError unless user and assistant take turns, the user first, behind at
    most one system turn; and for a conversation longer than max_len, which is for the caller to cut.
    """
    if odd := [turn for turn in turns if not isinstance(turn, Turn)]:
        raise TypeError(f"a turn is {odd[0]!r:.60}: make it with Turn(role, text)")
    spoken = [turn.role for turn in turns if turn.role != "system"]
    n_system = len(turns) - len(spoken)
    if n_system > 1 or (n_system and turns[0].role != "system"):
        raise ValueError("the system's turn stands first, and there is at most one")
    if not spoken or spoken != [ROLES[1 + n % 2] for n in range(len(spoken))]:
        raise ValueError(f"the turns are {', '.join(spoken) or 'none'}: user and assistant take turns, the user first")
    bos, eos = tokenizer.vocabulary.frame_ids("a conversation", DOCUMENT)
    ids, learned = [bos], [False]
    for number, turn in enumerate(turns):
        before = "" if number == 0 or turn.role == "assistant" or turns[number - 1].role == "assistant" else "\n\n"
        head = f"{before}{HEADERS[turn.role]}\n"
        if turn.role == "assistant":
            head, said = f"\n\n{head}", [*tokenizer.encode(turn.text), eos]
            pieces = [(tokenizer.encode(head), False), (said, True)]
        else:
            pieces = [(tokenizer.encode(head + turn.text), False)]
        for piece, is_learned in pieces:
            ids += piece
            learned += [is_learned] * len(piece)
    if len(ids) > max_len:
        raise ValueError(f"the conversation has {len(ids)} tokens and max_len is {max_len}: leave out its first turns")
    return Encoded(tuple(ids), tuple(learned))


def pack(encoded: Iterable[Encoded], length: int, vocabulary: Vocabulary) -> Collated:
    """Several examples in one row, as many as fit, longest first; `document_ids` say which tokens belong together, and
    `position_ids` count from 0 in each, so that an example reads as if it stood alone: `as_batch` makes of this what
    no token of another example can be seen through.

    Raises ValueError for no examples, one longer than `length`, or a token id outside the vocabulary.

    >>> encoded = [Encoded((1, 7, 2), (False, True, True)), Encoded((1, 2), (False, True))]
    >>> packed = pack(encoded, 6, Vocabulary(9, pad=0))
    >>> packed["input_ids"].tolist(), packed["document_ids"].tolist(), packed["position_ids"].tolist()
    ([[1, 7, 2, 1, 2, 0]], [[0, 0, 0, 1, 1, -1]], [[0, 1, 2, 0, 1, 0]])
    """
    pad_id, waiting = vocabulary.require("pad", "packing"), sorted(encoded, key=lambda e: -len(e.input_ids))
    if not waiting:
        raise ValueError("there is no example to pack: give at least one")
    if len(waiting[0].input_ids) > length:
        raise ValueError(f"an example has {len(waiting[0].input_ids)} tokens and a row {length}: encode with max_len")
    rows = _first_fit(waiting, length)
    shape = (len(rows), length)
    packed = {
        "input_ids": torch.full(shape, pad_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORE_INDEX),
        "document_ids": torch.full(shape, -1),
        "position_ids": torch.zeros(shape, dtype=torch.long),
    }
    for b, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row):
            ids, learned = torch.tensor(example.input_ids), torch.tensor(example.completion_mask)
            here = (b, slice(start, start := start + len(ids)))
            packed["input_ids"][here] = ids
            packed["attention_mask"][here] = 1
            packed["labels"][here] = ids.masked_fill(~learned, IGNORE_INDEX)
            packed["labels"][b, here[1].start] = IGNORE_INDEX  # else the token before, of another example, predicts it
            packed["document_ids"][here] = number
            packed["position_ids"][here] = torch.arange(len(ids))
    vocabulary.check_ids(packed["input_ids"])
    return packed


def _first_fit(waiting: Iterable[Encoded], length: int) -> list[list[Encoded]]:
    """Each example in the first row that has room for it."""
    rows: list[list[Encoded]] = []
    room: list[int] = []
    for example in waiting:
        size = len(example.input_ids)
        place = next((n for n, left in enumerate(room) if left >= size), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(example)
        room[place] -= size
    return rows


def _around_input(example: Instruction) -> tuple[str, str]:
    """The prompt's text before and behind the input."""
    head = f"{HEADERS['user']}\n{example.instruction}"
    return head + (f"\n\n{HEADERS['input']}\n" if example.input else ""), f"\n\n{HEADERS['assistant']}\n"


def _fitted(
    example: Instruction, tokenizer: Tokenizer, room: int, *, may_exceed: bool = False
) -> tuple[list[int], int]:
    """The prompt's tokens, at most room - 1 of them ([BOS] takes one), and how many of the input gave way. The pieces
    are encoded one by one, so that a shorter input changes no other token."""
    head, given, tail = tokenizer.encode_all([(around := _around_input(example))[0], example.input, around[1]])
    left = room - 1 - len(head) - len(tail)
    if left < 0 and not may_exceed:
        raise ValueError(
            f"the instruction takes {1 + len(head) + len(tail)} tokens and there is room for {max(0, room)}: shorten "
            "it or the answer, raise max_len, or leave this example out (or, when encoding, may_cut_output=True)"
        )
    kept = given[: max(0, left)]
    return [*head, *kept, *tail], len(given) - len(kept)


def _check_text(name: str, text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} is {text!r:.40}: give text")
    if found := _A_HEADER.search(unicodedata.normalize("NFKC", text)):  # as tokenizers read it, many in lower case
        raise ValueError(f"{name} holds the line {found[0]!r}, which the template uses: write it otherwise")
