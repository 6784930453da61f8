"""The capstone: a text of your own, split, and refused where it cannot carry an experiment."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from course_lib import data
from course_lib.data import Review, course_tokenizer
from course_lib.documentation import PACKAGES, documentation
from course_lib.files import read_text

LEAST_TO_READ, LEAST_HELD_OUT = 20_000, 1_000  # tokens: below that a run shows chance


@dataclass(frozen=True)
class OwnText:
    """Texts, each distinct one once, and on one side only: to read, to look at on the way (dev), to test.

    Raises ValueError where one of the three is too small for an experiment.
    """

    texts: tuple[Review, ...]
    name: str = "your text"

    def __post_init__(self) -> None:
        least = {"read": LEAST_TO_READ, "dev": LEAST_HELD_OUT, "test": LEAST_HELD_OUT}
        for part, wanted in least.items():
            if (found := self.n_tokens(part)) < wanted:
                raise ValueError(
                    f"{self.name} has {found:,} tokens to {part}, in {len(self.part(part))} of {len(self.texts)} "
                    f"distinct texts: {self._remedy(wanted)}"
                )

    def _remedy(self, wanted: int) -> str:
        if len(self.texts) == 1:
            return "all of it is one text, and a text stands on one side: put an empty line between its paragraphs"
        return (
            f"give at least {wanted:,}. Some 500,000 characters in a few hundred paragraphs with an empty line between "
            "them are enough"
        )

    @cached_property
    def _parts(self) -> dict[str, list[Review]]:
        parts: dict[str, list[Review]] = {"read": [], "dev": [], "test": []}
        for text in sorted(self.texts, key=lambda text: text.identity):
            parts[text.split if text.split in parts else "read"].append(text)
        return parts

    def part(self, name: str) -> list[Review]:
        """The texts of "read", "dev" or "test", shuffled alike on every machine: by identity.

        Raises ValueError for another name.
        """
        if name not in self._parts:
            raise ValueError(f"part {name!r} is unknown: choose one of {', '.join(self._parts)}")
        return self._parts[name]

    def words(self, name: str) -> list[str]:
        """The texts of a part as they stand."""
        return [text.text for text in self.part(name)]

    def ids(self, name: str) -> list[list[int]]:
        """The texts of a part as the course's tokens, encoded once."""
        if name not in self._ids:
            self._ids[name] = course_tokenizer().encode_all(self.words(name))
        return self._ids[name]

    @cached_property
    def _ids(self) -> dict[str, list[list[int]]]:
        return {}

    def n_tokens(self, name: str) -> int:
        """How many of the course's tokens a part has."""
        return sum(map(len, self.ids(name)))

    @cached_property
    def classes(self) -> list[str]:
        """What a text can be told by: its label where there are two, else the file or package that it comes from."""
        return sorted({class_of(text) for text in self.texts})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the identities of all texts: the same for the same texts in whatever order."""
        return sha256("".join(sorted(text.identity for text in self.texts)).encode()).hexdigest()


def own_text(path: Path | str | None = None) -> OwnText:
    """The text of the capstone: yours, or where `path` is None the documentation of the installed packages.

    path: a folder of .txt or one .txt (texts divided by empty lines), or a .csv with a column `text` and, if there is
    one, a column `label`: the class of each text, a name or a number.
    Raises FileNotFoundError, and ValueError as `read_own_texts` and `OwnText` do, or for an empty path.
    """
    if path is None:
        return OwnText(tuple(documentation()), "the documentation of " + ", ".join(PACKAGES))
    if not str(path).strip():
        raise ValueError("the path is empty: name a folder or a file, or give None for the documentation")
    path = Path(path)
    files = list(data.own_files(path).values()) or [path]  # a folder without one: the reader says so
    found = (text for file in files for text in data.read_own_texts(file, label_column=_label_column(file)))
    return OwnText(tuple({text.identity: text for text in found}.values()), path.name)


def class_of(text: Review) -> str:
    """What a text is told by: its label where it has one, else where it comes from."""
    return text.source if text.label is None else str(text.label)


def paragraphs(
    texts: list[Review],
    classes: list[str],
    per_class: int,
    *,
    fewest: int | None = None,
    tokens: tuple[int, int] = (24, 64),
    rewrite: Callable[[str], str] = str,
    apart_from: Iterable[Review] = (),
) -> list[Review]:
    """The first `per_class` texts of each class, in the order that they stand in: of each its beginning, up to the most
    tokens, and none with fewer than the least. Each stands there once, and none that is in `apart_from`: two texts can
    begin alike.

    fewest: with how many of each it will do, where a class has not `per_class`; each class then has as many as the one
    with the fewest. rewrite: what is done to each text before it is cut and compared, so that a cut leaves no half of
    a word behind that was to be taken out.
    Raises ValueError for fewer than 2 classes, or a class with too few texts (with how many there are).
    """
    if len(classes) < 2:
        raise ValueError(
            f"all texts are of one class, {classes[0] if classes else 'none'}: give a folder of several .txt, or a "
            ".csv with a column label"
        )
    tokenizer, (least, most) = course_tokenizer(), tokens
    kept: dict[str, list[Review]] = {name: [] for name in classes}
    taken = {text.identity for text in apart_from}
    mine = [text for text in texts if class_of(text) in kept]
    for text, ids in zip(mine, tokenizer.encode_all([rewrite(text.text) for text in mine]), strict=True):
        found = Review(tokenizer.decode(ids[:most]), text.label, text.source)
        if len(ids) >= least and len(kept[class_of(text)]) < per_class and found.identity not in taken:
            taken.add(found.identity)
            kept[class_of(text)].append(found)
    if (smallest := min(map(len, kept.values()))) < (fewest := fewest or per_class):
        counts = ", ".join(f"{name} {len(found)}" for name, found in kept.items())
        raise ValueError(
            f"{fewest} texts of each class are wanted, of {least} tokens or more, and there are {counts}: ask for "
            "fewer of each, or give more text"
        )
    return [text for found in kept.values() for text in found[:smallest]]


def _label_column(file: Path) -> str | None:
    if file.suffix.lower() != ".csv" or not file.exists():
        return None
    columns = csv.DictReader(io.StringIO(read_text(file), newline="")).fieldnames or []
    return "label" if "label" in columns else None
