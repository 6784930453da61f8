"""Write the notebooks from their sources: `python tools/build_notebooks.py [--check | --no-execute] [NN ...]`

    notebooks/src/NN_slug.py        py:percent, the only hand-edited source; holds the solutions
    notebooks/NN_slug.ipynb         what learners open: each solution replaced by an unwritten function's error
    notebooks/solutions/NN_slug.ipynb   cells tagged setup, exercise or check, the solutions written out

One way only, source to notebook. Cells are known by their names, which every cell must have and which become their
ids. Notebooks are executed and keep their outputs, without what changes from run to run: execution counts, timings,
progress bars, the state of widgets.
"""

import argparse
import copy
import functools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat

from course_lib.files import write_atomically
from course_lib.lab import CourseFolder, execute, private_environment
from course_lib.lab.costs import ChapterCost, Stopwatch, costs_path, record_cost

NOT_WRITTEN = 'raise NotImplementedError("write this, then run the cell again")'
SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION[^\n]*\n(.*?)^[ \t]*### END SOLUTION[^\n]*$", re.M | re.S)
MARKER = re.compile(r"### (BEGIN|END) SOLUTION")
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # a cell's id may have 64 characters of these
IN_SOLUTIONS = {"setup", "exercise", "check"}
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PROGRESS_BAR = re.compile(r"\d+%\|")


@dataclass(frozen=True)
class Chapter:
    """One source and the notebooks that it stands for."""

    source: Path

    @property
    def learner_path(self) -> Path:
        return self.source.parent.parent / f"{self.source.stem}.ipynb"

    @property
    def solutions_path(self) -> Path:
        return self.source.parent.parent / "solutions" / f"{self.source.stem}.ipynb"

    def notebooks(self) -> dict[Path, nbformat.NotebookNode]:
        """What the source says each notebook should be, not executed. No solution notebook without an exercise."""
        cells = read_cells(self.source)
        solved = [cell for cell in cells if IN_SOLUTIONS & tags_of(cell)]
        wanted = {self.learner_path: new_notebook([without_solution(cell) for cell in cells])}
        if any("exercise" in tags_of(cell) for cell in solved):
            wanted[self.solutions_path] = new_notebook(solved)
        return wanted


def chapters_in(notebooks: Path) -> list[Chapter]:
    return [Chapter(source) for source in sorted((notebooks / "src").glob("*.py"))]


# --- source to notebook ----------------------------------------------------------------------------------------------


def read_cells(source: Path) -> list[nbformat.NotebookNode]:
    """The cells of a py:percent source, each with its name as its id.

    Raises ValueError, naming the cell, for a cell without a name, a name that is taken or no id, and a solution that
    is not closed, not in an exercise, or missing from one.
    """
    return copy.deepcopy(_read_cells(source.name, source.read_text("utf-8")))


@functools.cache  # half a second a chapter, and whoever compares sources with something reads each more than once
def _read_cells(file: str, text: str) -> list[nbformat.NotebookNode]:
    cells = []
    seen = set()
    for number, cell in enumerate(jupytext.reads(text, fmt="py:percent").cells, 1):
        name = cell.metadata.get("name")
        where = f"{file}, cell {number} ({name or cell.source[:40]!r})"
        if not name:
            raise ValueError(f'{where} has no name: write `# %% name="..."` above it')
        if not NAME.fullmatch(name) or len(name) > 64:
            raise ValueError(f"{where}: a name is lower-case words joined by hyphens, 64 characters at most")
        if name in seen:
            raise ValueError(f"{where}: this name is taken by an earlier cell")
        seen.add(name)
        _check_solution(cell, where)
        cells.append(_clean_cell(cell))
    return cells


def _check_solution(cell: nbformat.NotebookNode, where: str) -> None:
    markers = MARKER.findall(cell.source)
    if markers != ["BEGIN", "END"] * (len(markers) // 2):
        raise ValueError(f"{where}: every ### BEGIN SOLUTION needs an ### END SOLUTION after it")
    if markers and "exercise" not in tags_of(cell):
        raise ValueError(f"{where} holds a solution: tag it as an exercise")
    if cell.cell_type == "code" and "exercise" in tags_of(cell) and not markers:
        raise ValueError(f"{where} is tagged as an exercise and holds no solution")


def _clean_cell(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}[cell.cell_type]
    metadata = {key: value for key, value in cell.metadata.items() if key in ("name", "tags", "jupyter")}
    return make(cell.source, id=metadata["name"], metadata=metadata)


def without_solution(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The cell as a learner gets it: what stood between the markers is still to be written."""
    open_cell = nbformat.from_dict(cell)
    open_cell.source = SOLUTION.sub(rf"\g<1>{NOT_WRITTEN}", cell.source)
    return open_cell


def tags_of(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def new_notebook(cells: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    metadata = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=[nbformat.from_dict(cell) for cell in cells], metadata=metadata)


# --- outputs ---------------------------------------------------------------------------------------------------------


def keep_what_stays(notebook: nbformat.NotebookNode) -> None:
    """Drop from an executed notebook, in place, all that differs from run to run or that needs a live kernel."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if _stays(output)]
            for output in cell.outputs:
                output.pop("execution_count", None)
                if output.output_type == "execute_result":
                    output.execution_count = None  # the format wants the key


def _stays(output: nbformat.NotebookNode) -> bool:
    if output.output_type == "stream":
        return output.name == "stdout" and bool(output.text.strip()) and not PROGRESS_BAR.search(output.text)
    return output.output_type == "error" or WIDGET_VIEW not in output.data  # its text is only the widget's repr


# --- build and check -------------------------------------------------------------------------------------------------


def build(chapter: Chapter, folder: CourseFolder, *, executed: bool = True, say: Callable = print) -> None:
    """Write a chapter's notebooks, each in one piece, and remove a solution notebook that has become empty. What it
    cost to execute the learner's one is recorded."""
    wanted = chapter.notebooks()
    for path, notebook in wanted.items():
        cost = _executed(notebook, path, folder, say) if executed else None
        keep_what_stays(notebook)
        nbformat.validate(notebook)
        write_atomically(path, nbformat.writes(notebook) + "\n")
        if cost and path == chapter.learner_path:
            record_cost(cost, costs_path(folder))
        say(f"wrote {path}")
    if chapter.solutions_path not in wanted:
        chapter.solutions_path.unlink(missing_ok=True)


def _executed(notebook: nbformat.NotebookNode, path: Path, folder: CourseFolder, say: Callable) -> ChapterCost:
    """Run a notebook's cells, where its file will be; what that cost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch()

    def on_cell(done: int, cell: nbformat.NotebookNode, kernel_pid: int | None) -> None:
        watch(done, cell, kernel_pid)
        say(f"  {path.name}: {done} {cell.metadata.name}")

    execute(notebook, path.parent, environment=private_environment(folder), on_cell=on_cell)
    return watch.cost(path.stem)


def differences(notebooks: Path, chapters: list[Chapter] | None = None) -> Iterator[str]:
    """Where notebooks and sources disagree: cells, types, tags, ids, and files that belong to no source. Outputs are
    not compared."""
    every = chapters_in(notebooks)
    wanted = {path: notebook for chapter in chapters or every for path, notebook in chapter.notebooks().items()}
    for path, notebook in wanted.items():
        name = path.relative_to(notebooks)
        if not path.is_file():
            yield f"{name} is missing"
            continue
        yield from _cell_differences(str(name), nbformat.read(path, as_version=4).cells, notebook.cells)
    if chapters is None:
        for path in sorted([*notebooks.glob("*.ipynb"), *notebooks.glob("solutions/*.ipynb")]):
            if path not in wanted:
                yield f"{path.relative_to(notebooks)} has no source"


def _cell_differences(name: str, found: list, wanted: list) -> Iterator[str]:
    ids_found, ids_wanted = [cell.get("id") for cell in found], [cell.id for cell in wanted]
    if ids_found != ids_wanted:
        missing, extra = set(ids_wanted) - set(ids_found), set(ids_found) - set(ids_wanted)
        yield f"{name}: other cells, or in another order (missing: {sorted(missing)}, extra: {sorted(map(str, extra))})"
        return
    for have, want in zip(found, wanted, strict=True):
        for what in ("cell_type", "source", "metadata"):
            if have[what] != want[what]:
                yield f"{name}, cell {want.id}: another {what} than its source"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write notebooks/ from notebooks/src/.")
    parser.add_argument("chapters", nargs="*", metavar="NN", help="numbers or names of chapters (default: all)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="say where sources and notebooks disagree; write nothing")
    how.add_argument("--no-execute", action="store_true", help="write the notebooks without outputs")
    options = parser.parse_args()
    folder = CourseFolder(Path(__file__).resolve().parents[1])
    every = chapters_in(folder.notebooks)
    chosen = [chapter for chapter in every if _is_chosen(chapter, options.chapters)] if options.chapters else every
    if options.chapters and len(chosen) < len(set(options.chapters)):
        parser.error(f"choose chapters from {', '.join(chapter.source.stem for chapter in every)}")
    if options.check:
        found = list(differences(folder.notebooks, chosen if options.chapters else None))
        print("\n".join(found) or "sources and notebooks agree")
        return int(bool(found))
    for chapter in chosen:
        build(chapter, folder, executed=not options.no_execute)
    return 0


def _is_chosen(chapter: Chapter, names: list[str]) -> bool:
    return any(name in (chapter.source.stem, chapter.source.stem.split("_")[0]) for name in names)


if __name__ == "__main__":
    sys.exit(main())
