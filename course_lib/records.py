"""Rows of a long run as JSON lines, each with where it comes from, so that a figure never rests on numbers of unknown
origin and a recorder goes on where it was stopped.

A file holds lines of two kinds: a provenance, {"provenance": {...}, "id": "..."}, and rows that name its id.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from course_lib.files import append_line, read_text, write_atomically
from course_lib.runtime import describe_machine

KEYS = ("name", "seed", "step", "metric")  # what makes a row one of a kind


@dataclass(frozen=True)
class Record:
    """A file of rows. A row is a dict with at least `name`, `seed`, `step`, `metric` and `value`; one with the same
    first four is the same measurement.

    >>> import tempfile
    >>> record = Record(Path(tempfile.mkdtemp()) / "demo.jsonl", command="course record demo")
    >>> record.add(name="masked", seed=0, step=10, metric="loss", value=6.5)
    >>> record.has(name="masked", seed=0, step=10, metric="loss"), record.values("loss", name="masked")
    (True, [(10, 6.5)])
    >>> record.by_step("loss", name="masked")
    {10: {0: 6.5}}
    """

    path: Path
    command: str = ""
    about: dict | None = None  # what else a reader must know: hashes of data, settings

    def rows(self) -> list[dict]:
        """All whole rows; a last line cut off by a crash is left out.

        Raises FileNotFoundError if there is no record, ValueError naming a damaged line.
        """
        return [row for row in _lines(self.path) if "provenance" not in row]

    def provenance(self) -> list[dict]:
        """Command, date, machine, versions and settings of every sitting that wrote to the record."""
        return [line["provenance"] for line in _lines(self.path) if "provenance" in line]

    def values(self, metric: str, **equal: object) -> list[tuple[int, float]]:
        """(step, value) of every row of a metric whose other fields equal `equal`, by step.

        Raises ValueError if there is none.
        """
        return sorted((row["step"], row["value"]) for row in self._rows_of(metric, equal))

    def by_step(self, metric: str, **equal: object) -> dict[int, dict[int, float]]:
        """{step: {seed: value}} of the same rows, steps and seeds in order, so that what two names were measured at can
        be compared sample by sample.

        Raises ValueError if there is none, or where two of them have the same step and seed.
        """
        found: dict[int, dict[int, float]] = {}
        for row in sorted(self._rows_of(metric, equal), key=lambda row: (row["step"], row["seed"])):
            by_seed = found.setdefault(row["step"], {})
            if row["seed"] in by_seed:
                raise ValueError(
                    f"{self.path.name} has several rows of metric {metric!r} with {equal} at step {row['step']}, seed "
                    f"{row['seed']}: say which, such as name={row['name']!r}"
                )
            by_seed[row["seed"]] = row["value"]
        return found

    def has(self, **keys: object) -> bool:
        """Whether the measurement with this name, seed, step and metric is there already.

        Raises ValueError without one of KEYS.
        """
        _check_keys(keys)
        return tuple(keys[key] for key in KEYS) in self._known

    def add(self, *, value: float, **keys: object) -> None:
        """Write one row to the disk, unless that measurement is there.

        Raises ValueError for a value that is no finite number, or a row without one of KEYS.
        """
        _check_keys(keys)
        if not math.isfinite(value):
            raise ValueError(f"value is {value}: a row holds a finite number, look at the run that gave it")
        row = {**keys, "value": float(value)}
        json.dumps(row, allow_nan=False)  # refuses what cannot be written before anything is
        if self.has(**keys):
            return
        append_line(self.path, json.dumps({**row, "by": self._sitting}))
        self._known.add(tuple(keys[key] for key in KEYS))

    def drop(self, **equal: object) -> None:
        """Take out every row whose fields equal these, and each provenance that no row names any more.

        Raises ValueError without a field, which would take out all.
        """
        if not equal:
            raise ValueError("give at least one field of the rows to drop, such as name")
        if not self.path.exists():
            return
        rows = [row for row in self.rows() if any(row.get(key) != value for key, value in equal.items())]
        named = {row.get("by") for row in rows}
        kept = [line for line in _lines(self.path) if line in rows or ("provenance" in line and line["id"] in named)]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        for cached in ("_known", "_sitting"):
            self.__dict__.pop(cached, None)

    def check_about(self) -> None:
        """Refuse to go on with a file that was begun with another `about`.

        Raises ValueError naming everything that differs, with both values.
        """
        wanted = json.loads(json.dumps(self.about or {}))  # as it is read back
        for sitting in self.provenance() if self.path.exists() else []:
            check_same({name: sitting.get(name) for name in wanted}, wanted)

    def _rows_of(self, metric: str, equal: Mapping[str, object]) -> list[dict]:
        wanted = {"metric": metric, **equal}
        found = [row for row in self.rows() if all(row.get(key) == value for key, value in wanted.items())]
        if not found:
            raise ValueError(f"{self.path.name} has no row of metric {metric!r} with {equal}")
        return found

    @cached_property
    def _known(self) -> set[tuple]:
        if not self.path.exists():
            return set()
        _drop_cut_line(self.path)
        return {tuple(row[key] for key in KEYS) for row in self.rows()}

    @cached_property
    def _sitting(self) -> int:
        """The number of the provenance that this object's rows belong to; written before the first of them."""
        lines = _lines(self.path) if self.path.exists() else ()
        number = 1 + max((line["id"] for line in lines if "provenance" in line), default=-1)
        provenance = {
            "command": self.command or " ".join(sys.argv),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": _commit(),
            "machine": describe_machine(),
            **(self.about or {}),
        }
        append_line(self.path, json.dumps({"provenance": provenance, "id": number}))
        return number


def check_same(begun: Mapping, wanted: Mapping) -> None:
    """Refuse to go on with a run that was begun with other settings.

    Raises ValueError naming everything that differs, with both values.

    >>> check_same({"seed": 0, "rate": 1.0}, {"seed": 1, "rate": 1.0})
    Traceback (most recent call last):
    ...
    ValueError: the run was begun with seed 0, not 1: give the same again, or start another run in another folder
    """
    differing = [name for name in {**begun, **wanted} if begun.get(name) != wanted.get(name)]
    if differing:
        pairs = ", ".join(f"{name} {begun.get(name)}, not {wanted.get(name)}" for name in differing)
        raise ValueError(f"the run was begun with {pairs}: give the same again, or start another run in another folder")


def _check_keys(keys: dict) -> None:
    if missing := [key for key in KEYS if key not in keys]:
        raise ValueError(f"a row needs {missing[0]!r}: give {', '.join(KEYS)}")


def _lines(path: Path) -> Iterator[dict]:
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            is_whole = isinstance(row, dict) and ("provenance" in row or {*KEYS, "value"} <= row.keys())
        except json.JSONDecodeError:
            is_whole = False
        if is_whole:
            yield row
        elif number < len(lines):  # the last line has no line break behind it: cut off by a crash
            raise ValueError(f"{path}, line {number}, is damaged: remove it and record it again")


def _drop_cut_line(path: Path) -> None:
    text = read_text(path)
    if text and not text.endswith("\n"):
        write_atomically(path, text[: text.rfind("\n") + 1])


def _commit() -> str:
    """The commit of the code that recorded, with a + where it had been changed since; unknown outside a checkout."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"
