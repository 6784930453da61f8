"""Examples to batches: padded as far as the batch needs, what is padding said in `attention_mask`, and -100 wherever
no label is.

A collator takes a list of dicts and gives a dict of tensors under the names of the Hugging Face world, so that a model
of `transformers` takes it as it is, `model(**batch)`: labels stand where their tokens stand, and the model moves them.
`as_batch` makes of it what the course's own models and `training` read, and moves the labels, once.
Axes: B row of the batch, T position in it, S position in a target.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib import masks
from course_lib.objectives import Batch
from course_lib.spans import shift_right
from course_lib.vocabulary import DOCUMENT, IGNORE_INDEX, Vocabulary

Example = Mapping[str, Any]
Collated = dict[str, Tensor]
SIDES = ("right", "left")


@dataclass(frozen=True)
class DefaultCollator:
    """Stacks every field; all examples must have the same fields, and each field one shape.

    >>> DefaultCollator()([{"input_ids": [5, 6], "label": 1}, {"input_ids": [7, 8], "label": 0}])["input_ids"].tolist()
    [[5, 6], [7, 8]]
    """

    def __call__(self, examples: Sequence[Example]) -> Collated:
        names = _same_fields(examples)
        batch = {}
        for name in names:
            values = [_tensor(name, example[name]) for example in examples]
            if len(shapes := {tuple(value.shape) for value in values}) > 1:
                raise ValueError(
                    f"field {name!r} has the shapes {sorted(shapes)}: cut to one length, or take a collator that pads"
                )
            batch[name] = torch.stack(values)
        return batch


@dataclass(frozen=True)
class Padding:
    """How rows come to one length. max_len: the most that a row may have, special tokens included; multiple_of: pad to
    a multiple of this (what some hardware likes); fill_to: pad to this length whatever the batch holds; side: where
    the padding stands.

    Raises ValueError for sizes below 1, a fill_to beyond max_len, or another side.
    """

    max_len: int | None = None
    multiple_of: int = 1
    fill_to: int = 0
    side: str = "right"

    def __post_init__(self) -> None:
        if self.multiple_of < 1 or (self.max_len is not None and self.max_len < 3):
            raise ValueError(f"max_len {self.max_len}, multiple_of {self.multiple_of}: give at least 3 and 1")
        if self.fill_to < 0 or (self.max_len is not None and self.fill_to > self.max_len):
            raise ValueError(f"fill_to is {self.fill_to}: give a length from 0 to max_len {self.max_len}")
        if self.side not in SIDES:
            raise ValueError(f"side is {self.side!r}: choose 'right' (to read and to train) or 'left' (to generate)")

    def pad(self, rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        """int64 [B, T]: all rows in one length.

        Raises ValueError for a row longer than max_len.
        """
        longest = max(map(len, rows))
        if self.max_len is not None and longest > self.max_len:
            raise ValueError(f"a row has {longest} tokens and max_len is {self.max_len}: shorten its text first")
        length = max(-(-longest // self.multiple_of) * self.multiple_of, self.fill_to)
        if self.max_len is not None:
            length = min(length, self.max_len)
        empty = [[fill] * (length - len(row)) for row in rows]
        pairs = zip(rows, empty, strict=True)
        return torch.tensor([[*gap, *row] if self.side == "left" else [*row, *gap] for row, gap in pairs])


@dataclass(frozen=True)
class ClassificationCollator:
    """{"input_ids": a text's tokens, "label": its class} to `input_ids`, `attention_mask`, `labels` [B].

    The text comes between the vocabulary's special tokens, and loses its end where it is longer than max_len. Without
    "label", in all examples, there are no labels.

    >>> collate = ClassificationCollator(Vocabulary(10, pad=0, cls=4, sep=5))
    >>> batch = collate([{"input_ids": [7, 8], "label": 1}, {"input_ids": [9], "label": 0}])
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist()
    ([[4, 7, 8, 5], [4, 9, 5, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]], [1, 0])
    """

    vocabulary: Vocabulary
    padding: Padding = Padding()

    def __call__(self, examples: Sequence[Example]) -> Collated:
        names = _same_fields(examples, ("input_ids",), optional=("label",))
        room = None if self.padding.max_len is None else self.padding.max_len - 2
        first, last = self.vocabulary.frame_ids("a text")
        rows = [[first, *example["input_ids"][:room], last] for example in examples]
        batch = _padded(rows, self.vocabulary, self.padding)
        if "label" in names:
            batch["labels"] = torch.tensor([_class(example["label"], n) for n, example in enumerate(examples)])
        return batch


@dataclass(frozen=True)
class GenerationCollator:
    """For a decoder: {"prompt": tokens, "response": tokens}, or {"input_ids": tokens, "completion_mask": which of them
    are to be learned} where somebody else has put them together, to `input_ids`, `attention_mask`, `labels` [B, T].

    A prompt and a response come as [BOS] prompt response [EOS]. learn: "response" puts -100 on prompt and padding,
    "all" on padding and [BOS] alone. [EOS] is a part of the response: a model that is not taught to stop does not.
    Raises ValueError for a row longer than max_len: what to cut is not for a collator to decide.

    >>> collate = GenerationCollator(Vocabulary(10, pad=0, bos=1, eos=2))
    >>> batch = collate([{"prompt": [7, 8], "response": [9]}, {"prompt": [7], "response": [8]}])
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[1, 7, 8, 9, 2], [1, 7, 8, 2, 0]], [[-100, -100, -100, 9, 2], [-100, -100, 8, 2, -100]])
    """

    vocabulary: Vocabulary
    padding: Padding = Padding()
    learn: str = "response"

    def __post_init__(self) -> None:
        if self.learn not in ("response", "all"):
            raise ValueError(f"learn is {self.learn!r}: choose 'response' or 'all'")

    def __call__(self, examples: Sequence[Example]) -> Collated:
        if "prompt" in (examples[0] if examples else ()):
            _same_fields(examples, ("prompt", "response"))
            rows, learned = zip(*(self._joined(e["prompt"], e["response"]) for e in examples), strict=True)
        else:
            _same_fields(examples, ("input_ids", "completion_mask"))
            rows, learned = zip(*(self._given(n, e) for n, e in enumerate(examples)), strict=True)
        batch = _padded(rows, self.vocabulary, self.padding)
        is_learned_BT = self.padding.pad(learned, 0).bool()
        batch["labels"] = batch["input_ids"].masked_fill(~is_learned_BT, IGNORE_INDEX)
        if self.padding.side == "left":
            batch["position_ids"] = masks.positions(batch["attention_mask"])
        return batch

    def _joined(self, prompt: Sequence[int], response: Sequence[int]) -> tuple[list[int], list[int]]:
        bos, eos = self.vocabulary.frame_ids("a prompt with its response", DOCUMENT)
        row = [bos, *prompt, *response, eos]
        start = 1 if self.learn == "all" else 1 + len(prompt)
        return row, [int(place >= start) for place in range(len(row))]

    def _given(self, number: int, example: Example) -> tuple[list[int], list[int]]:
        row, mask = list(example["input_ids"]), [int(bool(flag)) for flag in example["completion_mask"]]
        if not row:
            raise ValueError(f"example {number}: input_ids are empty, give at least one token")
        if len(row) != len(mask):
            raise ValueError(f"example {number}: {len(row)} input_ids and {len(mask)} of completion_mask: one for each")
        return row, [0] + [1] * (len(row) - 1) if self.learn == "all" else mask


@dataclass(frozen=True)
class Seq2SeqCollator:
    """For an encoder-decoder: {"source": tokens, "target": tokens} to `input_ids`, `attention_mask` [B, T], `labels`
    and `decoder_input_ids` [B, S].

    The source comes between the vocabulary's special tokens and loses its end where it is too long; a target that is,
    is refused. The decoder reads [BOS] and the target, and predicts the target and [EOS].

    >>> collate = Seq2SeqCollator(Vocabulary(10, pad=0, bos=1, eos=2))
    >>> batch = collate([{"source": [7, 8], "target": [9]}, {"source": [7], "target": [8, 9]}])
    >>> batch["labels"].tolist(), batch["decoder_input_ids"].tolist()
    ([[9, 2, -100], [8, 9, 2]], [[1, 9, 0], [1, 8, 9]])
    """

    vocabulary: Vocabulary
    padding: Padding = Padding()
    target_padding: Padding = Padding()

    def __post_init__(self) -> None:
        if self.target_padding.side == "left":
            raise ValueError("a decoder would read the padding before its target as text: pad targets on the right")

    def __call__(self, examples: Sequence[Example]) -> Collated:
        _same_fields(examples, ("source", "target"))
        bos, eos = self.vocabulary.frame_ids("a target", DOCUMENT)
        sources = ClassificationCollator(self.vocabulary, self.padding)([{"input_ids": e["source"]} for e in examples])
        targets = [[*example["target"], eos] for example in examples]
        read = [[bos, *example["target"]] for example in examples]
        decoder_input_ids_BS = _padded(read, self.vocabulary, self.target_padding)["input_ids"]
        return sources | {
            "labels": self.target_padding.pad(targets, IGNORE_INDEX),
            "decoder_input_ids": decoder_input_ids_BS,
        }


def as_batch(collated: Collated) -> Batch:
    """What the course's own models and `training` read, of a batch from GenerationCollator, `instructions.pack` or
    Seq2SeqCollator. A decoder's labels move by one here: the token at t is what position t - 1 predicts.

    Raises ValueError for a batch without labels for tokens, or without attention_mask.
    """
    labels_BL = collated.get("labels")
    if labels_BL is None or labels_BL.dim() != 2:
        raise ValueError("the batch has no label for each token: make it with GenerationCollator or Seq2SeqCollator")
    if "attention_mask" not in collated:
        raise ValueError("the batch has no attention_mask to tell text from padding: make it with a collator")
    input_ids_BT, is_real_BT = collated["input_ids"], collated["attention_mask"].bool()
    if "decoder_input_ids" in collated:
        return Batch(
            input_ids_BT, labels_BL, masks.padding(is_real_BT), decoder_input_ids_BS=collated["decoder_input_ids"]
        )
    next_BT = shift_right(labels_BL.flip(1), fill=IGNORE_INDEX).flip(1)
    may_attend_BQK = masks.causal(input_ids_BT.shape[1]) & masks.padding(is_real_BT)
    position_BT = collated.get("position_ids")
    if "document_ids" in collated:
        may_attend_BQK = may_attend_BQK & masks.documents(collated["document_ids"])
    elif position_BT is None and not is_real_BT[:, 0].all():
        position_BT = masks.positions(is_real_BT)
    return Batch(input_ids_BT, next_BT, may_attend_BQK, position_BT=position_BT)


def length_grouped(
    lengths: Sequence[int], batch_size: int, *, generator: torch.Generator, pool: int = 50
) -> Iterator[list[int]]:
    """Batches of the numbers 0 to N - 1, each once, in which texts of like length stand together, so that little is
    padding: shuffled, cut into pools of `pool` batches, sorted within each, and the batches shuffled again.

    Raises ValueError for a batch or a pool of none.

    >>> batches = list(length_grouped([9, 1, 8, 2], 2, generator=torch.Generator().manual_seed(0)))
    >>> sorted(sorted(batch) for batch in batches)
    [[0, 2], [1, 3]]
    """
    if batch_size < 1 or pool < 1:
        raise ValueError(f"batch_size {batch_size}, pool {pool}: give at least 1 of each")
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), pool * batch_size):
        pooled = sorted(order[start : start + pool * batch_size], key=lambda n: lengths[n])
        batches += [pooled[n : n + batch_size] for n in range(0, len(pooled), batch_size)]
    for place in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[place]


def grouped_batches(
    examples: Sequence[Example],
    collate: Callable[[Sequence[Example]], Collated],
    batch_size: int,
    *,
    generator: torch.Generator,
) -> Iterator[Batch]:
    """What `training` reads of all examples once, those of like length together, as `length_grouped` orders them."""
    read = [name for name in ("input_ids", "source", "prompt", "response") if name in (examples[0] if examples else ())]
    lengths = [sum(len(example[name]) for name in read) for example in examples]
    for numbers in length_grouped(lengths, batch_size, generator=generator):
        yield as_batch(collate([examples[n] for n in numbers]))


def _padded(rows: Sequence[Sequence[int]], vocabulary: Vocabulary, padding: Padding) -> Collated:
    input_ids_BT = padding.pad(rows, vocabulary.require("pad", "a batch"))
    vocabulary.check_ids(input_ids_BT)
    return {"input_ids": input_ids_BT, "attention_mask": padding.pad([[1] * len(row) for row in rows], 0)}


def _tensor(name: str, value: object) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"field {name!r} is {value!r:.40}: only numbers can be stacked, leave it out") from error


def _class(label: object, number: int) -> int:
    is_flag = isinstance(label, bool) or getattr(label, "dtype", None) in (torch.bool, bool)
    if is_flag or getattr(label, "is_floating_point", bool)() or not hasattr(label, "__index__"):
        raise ValueError(f"example {number}: label is {label!r}, and a class is a whole number from 0 up")
    if label.__index__() < 0:
        raise ValueError(f"example {number}: label is {label}: leave out texts without a label, classes count from 0")
    return label.__index__()


def _same_fields(
    examples: Sequence[Example], wanted: Sequence[str] | None = None, *, optional: Sequence[str] = ()
) -> tuple[str, ...]:
    """The fields of the examples. Refuses no examples, what has no fields, a field that is missing or holds text where
    tokens are wanted, and examples that differ."""
    if not examples:
        raise ValueError("examples are empty: give at least one")
    if not isinstance(examples[0], Mapping):
        raise TypeError(f"example 0 is {examples[0]!r:.40}: give a dict of its fields")
    first = set(examples[0])
    for number, example in enumerate(examples):
        if wanted is not None and (texts := [n for n in wanted if isinstance(example.get(n), str)]):
            raise TypeError(f"example {number}: {texts[0]!r} is text, give its token ids, tokenizer.encode(text)")
        if set(example) != first:
            odd = min(set(example) ^ first)
            where = "has" if odd in example else "lacks"
            raise ValueError(f"example {number} {where} the field {odd!r} and example 0 does not match: mix no kinds")
    if wanted is not None:
        if missing := [name for name in wanted if name not in first]:
            raise ValueError(f"the examples lack the field {missing[0]!r}: they have {', '.join(sorted(first))}")
        if surplus := first - {*wanted, *optional}:
            raise ValueError(f"the field {min(surplus)!r} has no place here: give {', '.join((*wanted, *optional))}")
    return tuple(examples[0])
