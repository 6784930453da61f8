"""From py:percent to the learner's notebook and the solutions."""

import build_notebooks
import nbformat
import pytest
from build_notebooks import NOT_WRITTEN, WIDGET_VIEW, Chapter, build, keep_what_stays, read_cells

from course_lib.lab import CourseFolder

SOURCE = '''# %% [markdown] name="title"
# # A chapter

# %% name="imports" tags=["setup"]
import math

# %% name="look"
print(math.pi)

# %% [markdown] name="exercise-double" tags=["exercise"]
# ### Exercise: double it

# %% name="exercise-double-code" tags=["exercise"]
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    twice = 2 * x
    return twice
    ### END SOLUTION


# %% name="exercise-double-check" tags=["check"]
try:
    print(double(2))
except NotImplementedError as error:
    print(error)
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    return CourseFolder(tmp_path)


def chapter_of(folder, source=SOURCE):
    path = folder.notebooks / "src" / "01_tiny.py"
    path.write_text(source, "utf-8")
    return Chapter(path)


def by_id(notebook):
    return {cell.id: cell for cell in notebook.cells}


def test_the_learner_gets_an_error_in_place_of_the_solution(folder):
    chapter = chapter_of(folder)
    code = by_id(chapter.notebooks()[chapter.learner_path])["exercise-double-code"].source
    assert code == f'def double(x):\n    """Twice x."""\n    {NOT_WRITTEN}'


def test_two_solutions_in_one_cell_are_both_taken_out(folder):
    second = SOURCE.replace(
        "    ### END SOLUTION\n",
        "    ### END SOLUTION\n\n\ndef triple(x):\n    ### BEGIN SOLUTION\n    return 3 * x\n    ### END SOLUTION\n",
        1,
    )
    chapter = chapter_of(folder, second)
    code = by_id(chapter.notebooks()[chapter.learner_path])["exercise-double-code"].source
    assert code.count(NOT_WRITTEN) == 2
    assert "def triple(x):" in code
    assert "3 * x" not in code
    compile(code, "cell", "exec")


def test_the_solution_notebook_holds_setup_exercises_and_checks_with_the_solutions(folder):
    chapter = chapter_of(folder)
    cells = by_id(chapter.notebooks()[chapter.solutions_path])
    assert list(cells) == ["imports", "exercise-double", "exercise-double-code", "exercise-double-check"]
    assert "### BEGIN SOLUTION\n    twice = 2 * x" in cells["exercise-double-code"].source


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('# %% name="look"', "# %%", "has no name"),
        ('name="look"', 'name="imports"', "taken by an earlier cell"),
        ('name="look"', 'name="Look here"', "lower-case words joined by hyphens"),
        ("    ### END SOLUTION\n", "", "needs an ### END SOLUTION"),
        ("    ### BEGIN SOLUTION\n", "", "needs an ### END SOLUTION"),
        ('code" tags=["exercise"]', 'code" tags=["setup"]', "tag it as an exercise"),
        ('check" tags=["check"]', 'check" tags=["exercise"]', "holds no solution"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(folder, before, after, words):
    assert before in SOURCE
    chapter = chapter_of(folder, SOURCE.replace(before, after, 1))
    with pytest.raises(ValueError, match=words) as refusal:
        read_cells(chapter.source)
    assert "01_tiny.py, cell" in str(refusal.value)


@pytest.mark.slow
def test_both_notebooks_are_executed_and_build_to_the_same_bytes_again(folder):
    chapter = chapter_of(folder)
    build(chapter, folder, say=lambda line: None)
    first = chapter.learner_path.read_bytes()
    learner = by_id(nbformat.read(chapter.learner_path, as_version=4))
    solved = by_id(nbformat.read(chapter.solutions_path, as_version=4))
    assert learner["look"].outputs[0].text.startswith("3.14159")
    assert "write this" in learner["exercise-double-check"].outputs[0].text
    assert solved["exercise-double-check"].outputs[0].text == "4\n"
    build(chapter, folder, say=lambda line: None)
    assert chapter.learner_path.read_bytes() == first
    assert list(build_notebooks.differences(folder.notebooks)) == []


def test_a_chapter_that_loses_its_exercises_loses_its_solution_notebook(folder):
    build(chapter_of(folder), folder, executed=False, say=lambda line: None)
    assert (folder.notebooks / "solutions" / "01_tiny.ipynb").exists()
    chapter = chapter_of(folder, SOURCE.split('# %% [markdown] name="exercise-double"')[0])
    build(chapter, folder, executed=False, say=lambda line: None)
    assert not chapter.solutions_path.exists()


def test_a_notebook_without_a_source_is_reported(folder):
    build(chapter_of(folder), folder, executed=False, say=lambda line: None)
    (folder.notebooks / "src" / "01_tiny.py").unlink()
    assert list(build_notebooks.differences(folder.notebooks)) == [
        "01_tiny.ipynb has no source",
        "solutions/01_tiny.ipynb has no source",
    ]


def output(kind, **content):
    return nbformat.v4.new_output(kind, **content)


def test_what_changes_from_run_to_run_is_dropped_and_the_rest_kept():
    cell = nbformat.v4.new_code_cell("…", execution_count=3, metadata={"execution": {"iopub.status.busy": "now"}})
    kept = [
        output("stream", name="stdout", text="a finding\n"),
        output("display_data", data={"image/png": "aGk=", "text/plain": "<Figure>"}),
        output("execute_result", data={"text/html": "<b>7</b>"}, execution_count=3),
    ]
    cell.outputs = [
        *kept,
        output("stream", name="stderr", text="a warning\n"),
        output("stream", name="stdout", text="training:  40%|████      | 4/10 [00:01<00:02]\r"),
        output("display_data", data={WIDGET_VIEW: {"model_id": "1"}, "text/plain": "VBox(…)"}),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    keep_what_stays(notebook)
    assert [o.output_type for o in notebook.cells[0].outputs] == [o.output_type for o in kept]
    assert notebook.cells[0].execution_count is None
    assert notebook.cells[0].outputs[2].execution_count is None
    assert "execution" not in notebook.cells[0].metadata
    assert "widgets" not in notebook.metadata
    nbformat.validate(notebook)
