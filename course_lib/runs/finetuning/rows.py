"""The rows of a file of one's own, .csv or .jsonl, each with its line, so that whatever is wrong can be found."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_lib.files import not_there, read_text


@dataclass(frozen=True)
class Row:
    """The fields of one example. line: where it begins; named_at: the line that names its fields, a .csv's first."""

    path: Path
    line: int
    fields: Mapping[str, Any]
    named_at: int

    def text(self, name: str, *, may_be_empty: bool = False) -> str:
        """What a field says, without white space around it.

        Raises ValueError, naming the line, where it is missing, empty (unless it may be) or no text.
        """
        if name not in self.fields and not may_be_empty:
            raise self.error(
                f"the field {name!r} is missing (there is {', '.join(self.fields) or 'none'}): every line of this file "
                "needs it, for one file holds one kind"
            )
        value = self.fields.get(name)
        value = "" if value is None and may_be_empty else value
        if not isinstance(value, str):
            raise self.error(f"{name} is {json.dumps(value)[:40]}: give text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(f"{name} holds half a surrogate pair, which is no text: write it anew") from None
        if not value.strip() and not may_be_empty:
            raise self.error(f"{name} is empty: fill it in, or leave the line out")
        return value.strip()

    def label(self) -> str:
        """The name of a class: the field `label`, a word or a number. Raises ValueError where it is neither."""
        value = self.fields.get("label")
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(f"label is {value}: give a word or a number")
        if isinstance(value, int | float):
            return str(int(value)) if value == int(value) else str(value)
        return " ".join(self.text("label").split())

    def error(self, words: str) -> ValueError:
        """The error to raise for this row."""
        return ValueError(f"{self.path}, line {self.line}: {words}")


def read_rows(path: Path | str) -> list[Row]:
    """Every row of a .csv, or every object of a .jsonl; empty lines are skipped.

    Raises FileNotFoundError for a missing path; ValueError for another kind of file or none of its rows, and naming the
    line where one is no row of the file's columns, or no JSON object.
    """
    path, kind = Path(path), Path(path).suffix.lower()
    if not path.exists():
        raise not_there(path)
    if kind not in (".csv", ".jsonl") or not path.is_file():
        raise ValueError(f"{path} is neither a .csv nor a .jsonl: convert it to one of these")
    rows = list((_csv_rows if kind == ".csv" else _json_rows)(path, read_text(path)))
    if not rows:
        raise ValueError(f"{path} holds no example: give at least one line{' below its columns' * (kind == '.csv')}")
    return rows


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a text may be longer than the 128 KiB that csv allows by default
    reader, names, named_at, line = csv.reader(io.StringIO(text, newline=""), strict=True), None, 1, 1
    try:
        for cells in reader:
            begins, line = line, reader.line_num + 1
            if cells and names is None:
                names, named_at = [name.strip() for name in cells], begins
                if twice := [name for name, count in Counter(names).items() if count > 1]:
                    raise ValueError(f"{path}, line {begins}: two columns are called {twice[0]!r}: rename one of them")
            elif cells:
                if len(cells) != len(names):
                    raise ValueError(
                        f"{path}, line {begins}: {len(cells)} cells for the {len(names)} columns {', '.join(names)}: "
                        "put a text with a comma in it between double quotes"
                    )
                yield Row(path, begins, dict(zip(names, cells, strict=True)), named_at)
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: {error}: close every quote, and double one within a text") from None


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {line}: no JSON ({error}): write one object a line") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path}, line {line}: a {type(fields).__name__}: write one object a line, {{...}}")
        yield Row(path, line, fields, line)
