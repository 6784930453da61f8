"""What nbgrader is given: exercises are the student's to write, all else is locked, each function is worth a point."""

import ast
from pathlib import Path

import build_notebooks
import nbformat
import nbgrader_notebooks
import pytest

CHAPTERS = build_notebooks.chapters_in(Path(build_notebooks.__file__).parents[1] / "notebooks")
WITH_EXERCISES = [chapter for chapter in CHAPTERS if chapter.solutions_path in chapter.notebooks()]
every_chapter = pytest.mark.parametrize("chapter", WITH_EXERCISES, ids=lambda chapter: chapter.source.stem)


def cells_by(notebook, key):
    return [cell for cell in notebook.cells if cell.metadata.nbgrader[key]]


@every_chapter
def test_every_function_to_write_is_worth_a_point(chapter):
    notebook = nbgrader_notebooks.source_notebook(chapter)
    written = [node.name for cell in cells_by(notebook, "solution") for node in ast.parse(cell.source).body]
    asserted = [ast.parse(cell.source).body[0].test.comparators[0].id for cell in cells_by(notebook, "grade")]
    assert asserted == written
    assert all(cell.metadata.nbgrader.points == 1 for cell in cells_by(notebook, "grade"))


@every_chapter
def test_a_cell_is_the_students_or_locked_and_every_grade_id_is_one(chapter):
    notebook = nbgrader_notebooks.source_notebook(chapter)
    marks = [cell.metadata.nbgrader for cell in notebook.cells]
    assert all(mark.solution != mark.locked for mark in marks)
    assert len({mark.grade_id for mark in marks}) == len(marks)
    assert all("### BEGIN SOLUTION" in cell.source for cell in cells_by(notebook, "solution"))


@pytest.mark.parametrize("is_right", [True, False])
def test_the_point_is_given_where_the_check_gave_back_the_students_own(is_right):
    (chapter,) = (chapter for chapter in WITH_EXERCISES if chapter.source.stem.startswith("01"))
    grading = cells_by(nbgrader_notebooks.source_notebook(chapter), "grade")[0]

    def own(): ...

    def of_the_library(): ...

    names = {"my_shift_labels": own, "shift_labels": own if is_right else of_the_library}
    if is_right:
        exec(grading.source, names)
    else:
        with pytest.raises(AssertionError, match="my_shift_labels is not right yet"):
            exec(grading.source, names)


@pytest.mark.parametrize("source", ["checks.x(mine)", "a, b = checks.x(mine)", "kept = checks.x(lambda: 0)", "1 + 1"])
def test_a_check_that_cannot_be_graded_is_named(source):
    with pytest.raises(ValueError, match="cell exercise-check: write a check as"):
        list(nbgrader_notebooks._grading_cells(nbformat.v4.new_code_cell(source, id="exercise-check")))
