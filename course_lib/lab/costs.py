"""What the chapters cost: recorded where their notebooks are executed, estimated for the machine that asks."""

import json
import math
import re
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from course_lib.files import read_text
from course_lib.lab.execution import peak_mib_of
from course_lib.lab.folder import CourseFolder
from course_lib.records import Record
from course_lib.runtime import matmul_rate

METRIC = "seconds"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ChapterCost:
    """One execution of a chapter's notebook. peak_mib: the kernel's largest memory, None where it cannot be read.
    slowest, slowest_seconds: the cell that took longest. rate: matrix products in fp32 on the CPU when it began, in
    operations a second."""

    chapter: str
    seconds: float
    peak_mib: float | None
    slowest: str
    slowest_seconds: float
    rate: float


@dataclass
class Stopwatch:
    """What `execute` calls after every cell: adds up what a chapter costs. Started when it is made."""

    rate: float = field(default_factory=lambda: matmul_rate(torch.float32, CPU))
    peak_mib: float | None = None
    slowest: tuple[float, str] = (0.0, "")
    _began: float = field(default_factory=lambda: time.perf_counter())
    _last: float | None = None

    def __call__(self, _done: int, cell: Mapping, kernel_pid: int | None) -> None:
        now = time.perf_counter()
        took, self._last = now - (self._last or self._began), now
        self.slowest = max(self.slowest, (took, cell["metadata"]["name"]))
        self.peak_mib = peak_mib_of(kernel_pid) or self.peak_mib

    def cost(self, chapter: str) -> ChapterCost:
        seconds = (self._last or self._began) - self._began
        took, name = self.slowest
        return ChapterCost(chapter, seconds, self.peak_mib, name, took, self.rate)


def costs_path(folder: CourseFolder) -> Path:
    return folder.root / "data" / "records" / "chapters.jsonl"


def record_cost(cost: ChapterCost, path: Path) -> None:
    """Write a chapter's row, in place of an earlier one."""
    record = Record(path, command=f"python tools/build_notebooks.py {cost.chapter}")
    record.drop(name=cost.chapter)
    record.add(
        name=cost.chapter, seed=0, step=0, metric=METRIC, value=round(cost.seconds, 1),
        peak_mib=cost.peak_mib and round(cost.peak_mib), slowest=cost.slowest,
        slowest_seconds=round(cost.slowest_seconds, 1), rate=cost.rate,
    )  # fmt: skip


def read_costs(path: Path) -> dict[str, ChapterCost]:
    """{chapter: its cost}, as far as they are recorded; empty without a record."""
    rows = Record(path).rows() if path.exists() else []
    return {
        row["name"]: ChapterCost(
            row["name"], row["value"], row["peak_mib"], row["slowest"], row["slowest_seconds"], row["rate"]
        )
        for row in rows
        if row["metric"] == METRIC
    }


def rate_of(costs: Iterable[ChapterCost]) -> float:
    """Of the machine that the chapters were timed on, in operations a second: the median of what was measured before
    each, since one measurement moves with what else runs. Not a number where none was timed.

    >>> rate_of(ChapterCost("00_start_here", 40.0, 900.0, "encode", 9.0, rate) for rate in (9e10, 1e11, 3e11)) / 1e11
    1.0
    """
    return statistics.median(rates) if (rates := [cost.rate for cost in costs]) else math.nan


def title_and_words(chapter: Path) -> tuple[str, int]:
    """A notebook's title, and how many words its prose has: what is folded and what its cells wrote included.

    Raises ValueError where no cell holds a title.
    """
    cells = json.loads(read_text(chapter))["cells"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    written = [
        "".join(output["data"]["text/markdown"]) for output in outputs if "text/markdown" in output.get("data", {})
    ]
    titles = [found[1] for text in prose if (found := re.search(r"^# (.+)$", text, re.M))]
    if not titles:
        raise ValueError(f"{chapter.name} has no title: its first cell begins with one `#`")
    return titles[0], sum(
        len(re.findall(r"[A-Za-z]\w*", re.sub(r"<[^>]+>|\(http\S+\)", " ", text))) for text in prose + written
    )
