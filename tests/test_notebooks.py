"""The notebooks in git are what their sources say, and hold nothing that changes from run to run."""

import shutil
from pathlib import Path

import build_notebooks
import nbformat
import pytest
from few import few

from course_lib.lab import CourseFolder

NOTEBOOKS = Path(build_notebooks.__file__).parents[1] / "notebooks"
LEARNERS = sorted(NOTEBOOKS.glob("*.ipynb"))
ALL = [*LEARNERS, *sorted(NOTEBOOKS.glob("solutions/*.ipynb"))]

every_notebook = pytest.mark.parametrize("path", ALL, ids=lambda path: path.relative_to(NOTEBOOKS).as_posix())


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_chapters():
    assert LEARNERS


def test_sources_and_notebooks_agree():
    assert list(build_notebooks.differences(NOTEBOOKS)) == [], "make notebooks"


SPOILT = [
    (lambda notebook: notebook.cells[-1].update(source="1 + 1"), "another source"),
    (lambda notebook: notebook.cells[-1].metadata.update(tags=["setup"]), "another metadata"),
    (lambda notebook: notebook.cells.reverse(), "another order"),
    (lambda notebook: notebook.cells.pop(), "missing: ["),
]


@pytest.mark.parametrize(("spoil", "reported"), few(SPOILT, SPOILT[0]))
def test_a_changed_cell_is_reported(tmp_path, spoil, reported):
    """Negative control, on a copy."""
    copy = shutil.copytree(NOTEBOOKS / "src", tmp_path / "notebooks" / "src").parent
    chapter = build_notebooks.chapters_in(copy)[0]
    build_notebooks.build(chapter, CourseFolder(tmp_path), executed=False)
    assert list(build_notebooks.differences(copy, [chapter])) == []
    notebook = nbformat.read(chapter.learner_path, as_version=4)
    spoil(notebook)
    nbformat.write(notebook, chapter.learner_path)
    (found,) = build_notebooks.differences(copy, [chapter])
    assert found.startswith(chapter.learner_path.name)
    assert reported in found


@pytest.mark.parametrize("path", LEARNERS, ids=lambda path: path.stem)
def test_a_learners_notebook_holds_no_solution(path):
    assert not build_notebooks.MARKER.search(path.read_text("utf-8"))


@every_notebook
def test_nothing_is_kept_that_changes_from_run_to_run(path):
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    assert build_notebooks.WIDGET_VIEW not in path.read_text("utf-8")
    for cell in code_cells(path):
        assert cell.execution_count is None
        assert "execution" not in cell.metadata
        assert all(output.get("execution_count") is None for output in cell.outputs)
        assert all(output.get("name") != "stderr" for output in cell.outputs)


@every_notebook
def test_the_outputs_are_there_and_hold_no_error(path):
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    assert outputs, "make notebooks"
    assert [output for output in outputs if output.output_type == "error"] == []


@every_notebook
def test_no_notebook_names_a_folder_of_the_machine_that_built_it(path):
    assert str(NOTEBOOKS.parent) not in path.read_text("utf-8")
    assert str(Path.home()) + "/" not in path.read_text("utf-8")
