"""What a model is fine-tuned on: the packaged reviews, or a file of one's own, checked and split by the texts
themselves, so that no text stands on both sides of a split and every machine splits alike.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from course_lib.data import SENTIMENTS, clean, identity, reviews_of
from course_lib.evaluation import labelled_sample
from course_lib.files import read_text
from course_lib.finetuning import Instruction, prompt_of
from course_lib.runs.finetuning.rows import Row, read_rows

CLASSIFICATION, INSTRUCTIONS = "classification", "instructions"
FIELDS = {CLASSIFICATION: ("text", "label"), INSTRUCTIONS: ("instruction", "output")}  # what each kind must have
READ = {CLASSIFICATION: ("text", "label"), INSTRUCTIONS: ("instruction", "input", "output")}
WANTED = "text,label (to classify) or instruction,input,output (to follow instructions; input may be missing)"
TEST_SHARE, HELD_OUT_SHARE = 0.2, 0.1  # of all identities
HELD_OUT_REVIEWS = 200  # packaged reviews that choose the epoch, at most


@dataclass(frozen=True)
class Text:
    """A text with the number of its class."""

    text: str
    label: int


Example = Text | Instruction


@dataclass(frozen=True)
class Examples:
    """What is learned from, what chooses the epoch, and what is judged on.

    kind: "classification" (of Text) or "instructions" (of Instruction). classes: their names, in order. origin: where
    all of it comes from, in words. notes: what was left out, and what else a reader should know.
    """

    kind: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    test: tuple[Example, ...]
    classes: tuple[str, ...] = ()
    origin: str = ""
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, tuple[Example, ...]]:
        """By the names that a reader is told."""
        return {"to learn from": self.train, "held out": self.held_out, "to test": self.test}


def packaged_examples(source: str, labels: int, tests: int, *, seed: int = 0) -> Examples:
    """Packaged reviews of one source: `labels` of the training split, half of each kind, fixed by the seed; at most 200
    of the dev split to choose the epoch, at most `tests` of the test split.

    Raises ValueError for an unknown source, an odd number of labels or more than there are.
    """
    train = labelled_sample(reviews_of("train", source), labels, seed)
    held_out, test = reviews_of("dev", source)[:HELD_OUT_REVIEWS], reviews_of("test", source)[:tests]
    parts = [tuple(Text(review.text, review.label) for review in reviews) for reviews in (train, held_out, test)]
    return Examples(CLASSIFICATION, *parts, classes=SENTIMENTS, origin=f"the packaged reviews of {source}")


def own_examples(path: Path | str, tests: int | None = None) -> Examples:
    """A .csv or .jsonl of your own: `text` and `label` (two classes or more, each with at least 2 texts), or
    `instruction`, `output` and, where there is one, `input`. About a fifth is kept to test (at most `tests`), and a
    tenth to choose the epoch, by the hash of each normalised text (of an instruction: of its prompt).

    A text that stands there twice counts once; one with two different labels is left out. The notes say how many.
    Raises FileNotFoundError for a missing path; ValueError, naming the line, for a file of another kind, fields that
    are missing or of both kinds, a field that is empty or no text; and where classes or texts are too few.
    """
    rows = read_rows(path)
    kind = _kind_of(rows)
    others = dict.fromkeys(name for row in rows for name in row.fields if name not in READ[kind])
    notes = [f"fields that are not read: {', '.join(others)}"] if others else []
    if kind == CLASSIFICATION:
        kept = _own_texts(rows, notes)
        classes = _classes_of(Path(path), [label for _, _, label in kept], notes)
        pairs = [(key, Text(text, classes.index(label))) for key, text, label in kept]
    else:
        pairs, classes = _own_instructions(rows, notes), ()
    parts = {name: tuple(one for key, one in pairs if part_of(key) == name) for name in ("train", "held_out", "test")}
    parts["test"] = parts["test"][:tests]
    _check_parts(Path(path), parts, classes, notes)
    return Examples(kind, **parts, classes=classes, origin=str(path), notes=tuple(notes))


def read_asked(path: Path | str, kind: str) -> list[str] | list[Instruction]:
    """What is to be predicted, from a file: the texts, or instructions without answers. A .txt holds one a line, a .csv
    or .jsonl has them under `text`, or under `instruction` and, where there is one, `input`.

    Raises FileNotFoundError for a missing path; ValueError, naming the line, for what `own_examples` would refuse.
    """
    path = Path(path)
    if path.suffix.lower() != ".txt":
        rows = read_rows(path)
    elif lines := read_text(path).splitlines():
        rows = [Row(path, n, {FIELDS[kind][0]: line}, n) for n, line in enumerate(lines, 1)]
    else:
        raise ValueError(f"{path} is empty: give at least one line")
    return [row.text("text") if kind == CLASSIFICATION else _instruction_of(row, "") for row in rows]


def part_of(text_identity: str) -> str:
    """'test', 'held_out' or 'train', by a text's identity alone: by other digits of it than those that split the
    packaged reviews, so that a file made of one of their parts splits like any other.

    >>> part_of(identity("A good film")) == part_of(identity("a  good film"))
    True
    """
    place = int(text_identity[8:16], 16) / 2**32
    return "test" if place < TEST_SHARE else "held_out" if place < TEST_SHARE + HELD_OUT_SHARE else "train"


def _kind_of(rows: Sequence[Row]) -> str:
    """By the fields of the first row. Refuses what is of neither kind, and rows with the fields of the other one."""
    kinds_of = [[kind for kind, names in FIELDS.items() if row.fields.keys() >= {*names}] for row in rows]
    if not kinds_of[0]:
        names = ", ".join(rows[0].fields) or "none"
        hint = ", divided by commas" if any(sign in names for sign in ";\t") else ""
        raise ValueError(f"{rows[0].path}, line {rows[0].named_at}: the fields are {names}: give {WANTED}{hint}")
    for row, kinds in zip(rows, kinds_of, strict=True):
        if {*kinds} - {kinds_of[0][0]}:
            raise ValueError(
                f"{row.path}, line {row.named_at}: the fields {', '.join(row.fields)} are not of one kind with the "
                f"others: one file holds either {WANTED}"
            )
    return kinds_of[0][0]


def _own_texts(rows: Sequence[Row], notes: list[str]) -> list[tuple[str, str, str]]:
    """(identity, text, label) of each distinct text, by identity; what is left out is added to the notes."""
    found: dict[str, list[tuple[Row, str, str]]] = {}
    for row in rows:
        text = clean(row.text("text"))
        if not text:
            raise row.error("text is empty: fill it in, or leave the line out")
        found.setdefault(identity(text), []).append((row, text, row.label()))
    torn = {key: group for key, group in found.items() if len({label for _, _, label in group}) > 1}
    _note_doubles(sum(len(group) - 1 for key, group in found.items() if key not in torn), notes)
    if torn:
        lines = " and ".join(str(row.line) for row, _, _ in next(iter(torn.values())))
        notes.append(f"texts left out because they have two different labels: {len(torn)}, such as lines {lines}")
    return [(key, group[0][1], group[0][2]) for key, group in sorted(found.items()) if key not in torn]


def _own_instructions(rows: Sequence[Row], notes: list[str]) -> list[tuple[str, Instruction]]:
    """(identity of the prompt, instruction) of each, by identity; the same prompt may have several answers."""
    examples = [_instruction_of(row, row.text("output")) for row in rows]
    kept = {(identity(prompt_of(example)), example.output): example for example in examples}
    _note_doubles(len(examples) - len(kept), notes)
    return [(key, example) for (key, _), example in sorted(kept.items(), key=lambda item: item[0])]


def _instruction_of(row: Row, output: str) -> Instruction:
    instruction, about = row.text("instruction"), row.text("input", may_be_empty=True)
    try:
        return Instruction(instruction, about, output)
    except ValueError as error:
        raise row.error(str(error)) from None


def _note_doubles(count: int, notes: list[str]) -> None:
    if count:
        notes.append(f"lines left out because the same stands there before: {count}")


def _classes_of(path: Path, labels: Sequence[str], notes: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes, by number where all are numbers, else by letter. Refuses too few of them or of their
    texts."""
    count = Counter(labels)
    behind = f" ({'; '.join(notes)})" if notes else ""
    if len(count) < 2:
        raise ValueError(f"{path}: the texts have {len(count)} label{behind}: give texts of at least 2 classes")
    if rare := [label for label, number in count.items() if number < 2]:
        raise ValueError(
            f"{path}: class {rare[0]!r} has a single text{behind}: give at least 2 of each class, better 20, or leave "
            "it out"
        )
    return tuple(sorted(count, key=_order_of(count)))


def _order_of(labels: Mapping[str, int]) -> Callable[[str], float | str]:
    try:
        numbers = {label: float(label) for label in labels}
    except ValueError:
        return str
    return str if any(map(math.isnan, numbers.values())) else numbers.__getitem__


def _check_parts(path: Path, parts: Mapping[str, Sequence[Example]], classes: Sequence[str], notes: list[str]) -> None:
    """Refuses parts with which nothing can be learned or judged; other classes that a part lacks are noted."""
    sizes = f"{len(parts['train'])} to learn from, {len(parts['held_out'])} held out and {len(parts['test'])} to test"
    if not all(parts.values()):
        raise ValueError(f"{path}: its examples split into {sizes}: give more, of 50 no part is empty as a rule")
    lacking = {
        name: [label for n, label in enumerate(classes) if all(one.label != n for one in part)]
        for name, part in parts.items()
    }
    is_enough = {"train": not lacking["train"], "test": len(lacking["test"]) < max(1, len(classes) - 1)}
    for name, words in {"train": "to learn from", "test": "to test"}.items():
        if not is_enough[name]:
            raise ValueError(
                f"{path}: its texts split into {sizes}, and of class {lacking[name][0]!r} there is none {words}: give "
                "more texts of it, 20 are enough as a rule"
            )
    for name, words in {"held_out": "held out to choose the epoch", "test": "tested on"}.items():
        if lacking[name]:
            notes.append(f"no text of class {', '.join(lacking[name])} is {words}: give more of them")
