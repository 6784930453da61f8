"""Notebooks executed without a browser: one, for whoever builds it, or every chapter with a table at the end."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from course_lib.files import write_atomically
from course_lib.lab.folder import CourseFolder, private_environment

if TYPE_CHECKING:  # a second to import, and needed only where notebooks are read
    import nbformat

CELL_TIMEOUT = 600  # seconds; no cell of the course should need a tenth of it
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class ChapterRun:
    """How one chapter went. `peak_mib` is the kernel's largest resident memory, None where it cannot be read."""

    name: str
    seconds: float
    cells_done: int
    cells: int
    peak_mib: float | None
    error: str | None


def execute(
    notebook: "nbformat.NotebookNode",
    cwd: Path,
    *,
    environment: Mapping[str, str] | None = None,
    cell_timeout: float = CELL_TIMEOUT,
    on_cell: Callable[[int, "nbformat.NotebookNode", int | None], None] = lambda done, cell, kernel_pid: None,
) -> None:
    """Run the code cells of `notebook` in order, in a new kernel of this interpreter, and put their outputs in place.

    `on_cell(done, cell, kernel_pid)` is called after each. Raises nbclient's CellExecutionError at the first cell
    that fails, CellTimeoutError after `cell_timeout` seconds, DeadKernelError if the kernel dies.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=cell_timeout,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(cwd)}},
    )
    with _variables(environment or {}), client.setup_kernel():
        kernel_pid = getattr(client.km.provisioner, "pid", None)
        code = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        for done, (index, cell) in enumerate(code, 1):
            client.execute_cell(cell, index)
            on_cell(done, cell, kernel_pid)


def run_chapters(chapters: Sequence[str] | None = None, *, folder: CourseFolder | None = None) -> int:
    """Execute the chapters (all of them if None) and print a table; returns 0, or 1 if a cell failed.

    What they computed is written to work/executed/. Raises ValueError for a chapter that is not there.
    """
    folder = folder or CourseFolder.here()
    sources = folder.chapters(chapters or ())
    environment = private_environment(folder)
    runs = []
    for source in sources:
        runs.append(_run_chapter(source, folder, environment))
        if runs[-1].error:
            print(f"\n{runs[-1].error}\n", flush=True)
    print(_table(runs))
    return int(any(run.error for run in runs))


def _run_chapter(source: Path, folder: CourseFolder, environment: Mapping[str, str]) -> ChapterRun:
    import nbformat
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    target = folder.work / "executed" / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(source, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    progress = _Progress(source.stem, len(code))
    error = None
    try:
        execute(notebook, target.parent, environment=environment, on_cell=progress)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        failed = code[progress.done].metadata.get("name", f"number {progress.done + 1}")
        error = f"{source.stem}, cell {failed}:\n{_plain(str(failure))}"
    finally:
        write_atomically(target, nbformat.writes(notebook))
    progress.finish()
    return ChapterRun(source.stem, progress.seconds, progress.done, len(code), progress.peak_mib, error)


class _Progress:
    """One line per chapter: rewritten in a terminal, printed once where the output is a file."""

    def __init__(self, name: str, cells: int):
        self.name, self.cells, self.done = name, cells, 0
        self.started, self.peak_mib = time.perf_counter(), None
        self._show()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def __call__(self, done: int, _cell: "nbformat.NotebookNode", kernel_pid: int | None) -> None:
        self.done = done
        self.peak_mib = peak_mib_of(kernel_pid) or self.peak_mib
        self._show()

    def finish(self) -> None:
        print(f"{chr(13) if sys.stdout.isatty() else ''}{self._line()}", flush=True)

    def _show(self) -> None:
        if sys.stdout.isatty():
            print(f"\r{self._line()}", end="", flush=True)

    def _line(self) -> str:
        return f"{self.name}: {self.done}/{self.cells} cells, {self.seconds:.0f} s"


def peak_mib_of(pid: int | None) -> float | None:
    """The most memory that a process has held, None where the system does not tell."""
    with contextlib.suppress(OSError):  # only Linux writes it down
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("utf-8")):
            return int(found[1]) / 1024
    return None


def _table(runs: Sequence[ChapterRun]) -> str:
    rows = [("chapter", "seconds", "cells", "peak MiB", "result")]
    for run in runs:
        memory = f"{run.peak_mib:.0f}" if run.peak_mib else "-"
        result = "FAILED" if run.error else "passed"
        rows.append((run.name, f"{run.seconds:.1f}", f"{run.cells_done}/{run.cells}", memory, result))
    rows.append(("together", f"{sum(run.seconds for run in runs):.1f}", "", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return ANSI.sub("", text).strip()


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
