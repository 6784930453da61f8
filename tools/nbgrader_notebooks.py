"""Write the exercises as nbgrader's source notebooks: `python tools/nbgrader_notebooks.py FOLDER [NN ...]`

    FOLDER/nbgrader_config.py          names the course
    FOLDER/source/NN_slug/NN_slug.ipynb    setup, exercises with their solutions between nbgrader's markers, checks

A check never raises, whatever a learner wrote, so that a chapter goes on; nbgrader gives points where nothing raises.
So behind each check stands a locked cell for each function, worth one point, that asserts that the check gave back the
learner's own function, which it does only where that is right.
"""

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from build_notebooks import Chapter, chapters_in, tags_of

from course_lib.files import write_atomically

SCHEMA = {"schema_version": 3, "task": False}
WRITTEN = {"grade": False, "solution": True, "locked": False}  # by the student
GIVEN = {"grade": False, "solution": False, "locked": True}
GRADED = {"grade": True, "solution": False, "locked": True, "points": 1}
CONFIG = "c = get_config()\nc.CourseDirectory.course_id = {course!r}\nc.ExecutePreprocessor.timeout = 300\n"


def source_notebook(chapter: Chapter) -> nbformat.NotebookNode | None:
    """The chapter's exercises as nbgrader wants them; None where it has none.

    Raises ValueError, naming the cell, for a check from which the learner's functions cannot be told.
    """
    solved = chapter.notebooks().get(chapter.solutions_path)
    if solved is None:
        return None
    cells = []
    for cell in solved.cells:
        is_exercise = cell.cell_type == "code" and "exercise" in tags_of(cell)
        cells.append(_marked(cell, WRITTEN if is_exercise else GIVEN))
        if "check" in tags_of(cell):
            cells += [_marked(grading, GRADED) for grading in _grading_cells(cell)]
    solved.cells = cells
    nbformat.validate(solved)
    return solved


def _marked(cell: nbformat.NotebookNode, kind: dict) -> nbformat.NotebookNode:
    cell.metadata["nbgrader"] = {**SCHEMA, **kind, "grade_id": cell.id}
    return cell


def _grading_cells(check: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    for number, (kept, own) in enumerate(_pairs(check), 1):
        source = f'assert {kept} is {own}, "{own} is not right yet: read the verdict above"'
        yield nbformat.v4.new_code_cell(source, id=f"{check.id}-grade-{number}")


def _pairs(check: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """(the name that the check's result gets, the learner's function), for each function of `a, b = checks.x(c, d)`."""
    match ast.parse(check.source).body:
        case [ast.Assign(targets=[target], value=ast.Call(args=own))]:
            kept = target.elts if isinstance(target, ast.Tuple) else [target]
            if len(kept) == len(own) and all(isinstance(name, ast.Name) for name in [*kept, *own]):
                return [(left.id, right.id) for left, right in zip(kept, own, strict=True)]
    raise ValueError(f"cell {check.id}: write a check as `kept = checks.name(own)`, with one name for each function")


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the exercises as source notebooks of nbgrader.")
    parser.add_argument("folder", type=Path, help="the nbgrader course, made if missing")
    parser.add_argument("chapters", nargs="*", metavar="NN", help="numbers of chapters (default: all)")
    parser.add_argument("--course", default="language-models", help="the course's name in nbgrader")
    options = parser.parse_args()
    every = chapters_in(Path(__file__).resolve().parents[1] / "notebooks")
    numbers = [chapter.source.stem.split("_")[0] for chapter in every]
    if unknown := set(options.chapters) - set(numbers):
        parser.error(f"there is no chapter {', '.join(sorted(unknown))}: choose from {', '.join(numbers)}")
    write_atomically(options.folder / "nbgrader_config.py", CONFIG.format(course=options.course))
    for number, chapter in zip(numbers, every, strict=True):
        notebook = source_notebook(chapter) if number in (options.chapters or numbers) else None
        if notebook is not None:
            name = chapter.source.stem
            path = options.folder / "source" / name / f"{name}.ipynb"
            print(write_atomically(path, json.dumps(notebook, indent=1) + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
