"""What a learner has done is read from the saved copy: no verdict counts for code that it was not about."""

import importlib.util
import itertools
import os

import nbformat
import pytest

from course_lib import checks, cli
from course_lib.lab import CourseFolder, execute, exercises, prepare_copies, progress, progress_report, stamp

CHAPTER = "01_pretraining_objectives"
RIGHT = """
def my_shift_labels(input_ids_BT, pad_id):
    labels_BT = torch.full_like(input_ids_BT, -100)
    is_real_BT = input_ids_BT != pad_id
    has_next_BT = is_real_BT[:, :-1] & is_real_BT[:, 1:]
    labels_BT[:, :-1] = input_ids_BT[:, 1:].masked_fill(~has_next_BT, -100)
    return labels_BT
"""
WRONG = RIGHT.replace("[:, 1:].masked", "[:, :-1].masked")
names = itertools.count()


@pytest.fixture
def folder(tmp_path):
    here = CourseFolder.here()
    target = tmp_path / "notebooks" / f"{CHAPTER}.ipynb"
    target.parent.mkdir()
    target.write_bytes((here.notebooks / target.name).read_bytes())
    folder = CourseFolder(tmp_path)
    prepare_copies(folder=folder)
    return folder


@pytest.fixture
def edit(folder):
    """Change cells of the learner's copy by their names: their source, or what they put out."""

    def edit(sources=None, said=None):
        path = folder.work / f"{CHAPTER}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.source = (sources or {}).get(cell.id, cell.source)
            if cell.id in (said or {}):
                cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=said[cell.id])]
        nbformat.write(notebook, path)

    return edit


@pytest.fixture
def verdict_on(tmp_path, capsys):
    """What the check of exercise 1 says about this code."""

    def verdict_on(source):
        path = tmp_path / f"own_{next(names)}.py"
        path.write_text(f"import torch\n{source}", "utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        checks.shift_labels(module.my_shift_labels)
        return capsys.readouterr().out

    return verdict_on


def states(folder):
    found = exercises(folder.notebooks / f"{CHAPTER}.ipynb", folder.work / f"{CHAPTER}.ipynb")
    return [exercise.state for exercise in found]


def test_an_untouched_copy_is_open_and_so_is_a_missing_one(folder):
    assert states(folder) == ["open"] * 4
    (folder.work / f"{CHAPTER}.ipynb").unlink()
    assert states(folder) == ["open"] * 4


def test_code_is_correct_once_its_check_has_said_so(edit, folder, verdict_on):
    edit({"exercise-shift-code": RIGHT})
    assert states(folder)[0] == "attempted"  # negative control: right, but nobody has looked
    edit(said={"exercise-shift-check": verdict_on(RIGHT)})
    assert states(folder) == ["correct", "open", "open", "open"]


def test_a_verdict_on_other_code_counts_for_nothing(edit, folder, verdict_on):
    said = {"exercise-shift-check": verdict_on(RIGHT)}
    edit({"exercise-shift-code": WRONG}, said)
    assert states(folder)[0] == "attempted"
    edit({"exercise-shift-code": RIGHT}, said)
    assert states(folder)[0] == "correct"
    edit({"exercise-shift-code": RIGHT}, {"exercise-shift-check": verdict_on(WRONG)})
    assert states(folder)[0] == "attempted"


def test_comments_and_line_breaks_are_no_other_code(edit, folder, verdict_on):
    edit(
        {"exercise-shift-code": RIGHT.replace("    return", "\n    # done\n    return")},
        {"exercise-shift-check": verdict_on(RIGHT)},
    )
    assert states(folder)[0] == "correct"


def test_an_exercise_of_two_functions_wants_both(edit, folder):
    half = "def my_corrupt_spans(ids, is_noise, sentinels):\n    return ids, ids\n\n\n"
    rest = "def my_restore_spans(shown, target, sentinels):\n    raise NotImplementedError('later')\n"
    edit({"exercise-spans-code": half + rest})
    assert states(folder)[3] == "attempted"


def test_a_cell_that_is_no_python_is_attempted(edit, folder):
    edit({"exercise-shift-code": "def my_shift_labels(input_ids_BT, pad_id:\n    return"})
    assert states(folder)[0] == "attempted"


def test_an_exercise_moved_into_another_cell_is_found(edit, folder, verdict_on):
    edit({"exercise-shift-code": "%time", "read-text": RIGHT}, {"exercise-shift-check": verdict_on(RIGHT)})
    assert states(folder)[0] == "correct"


def test_a_reset_opens_the_exercises_again(edit, folder, verdict_on):
    edit({"exercise-shift-code": RIGHT}, {"exercise-shift-check": verdict_on(RIGHT)})
    prepare_copies(["01"], reset=True, folder=folder)
    assert states(folder) == ["open"] * 4


def test_the_verdict_stamps_what_is_correct_and_nothing_else(verdict_on):
    assert "[code " in verdict_on(RIGHT)
    assert "[code " not in verdict_on(WRONG)
    assert stamp(lambda: 0) == stamp(len) == ""


def test_the_line_of_a_chapter_shows_the_copy_that_it_stands_in(edit, folder, verdict_on, monkeypatch):
    tried = "def my_mask_tokens(*arguments):\n    return arguments"
    edit({"exercise-shift-code": RIGHT, "exercise-mask-code": tried}, {"exercise-shift-check": verdict_on(RIGHT)})
    before = sorted(folder.root.rglob("*"))
    monkeypatch.chdir(folder.work)
    line = progress("01").data
    assert line.startswith("**Exercises of this chapter:** ✓ shift the labels · ✗ mask · ○ who may look")
    assert "1 of 4 done" in line
    assert sorted(folder.root.rglob("*")) == before  # it wrote nothing


def test_outside_of_the_copies_the_line_tells_nobodys_progress(edit, folder, verdict_on, monkeypatch):
    edit({"exercise-shift-code": RIGHT}, {"exercise-shift-check": verdict_on(RIGHT)})
    for away in (folder.notebooks, folder.root, folder.work / "executed"):
        away.mkdir(exist_ok=True)
        monkeypatch.chdir(away)
        assert "✓" not in progress("01").data
        assert "shift the labels" in progress("01").data


def test_a_chapter_that_is_not_there_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder.work)
    with pytest.raises(ValueError, match="there is no chapter 99"):
        progress("99")


def test_the_report_names_every_exercise_and_the_next_one(edit, folder, verdict_on):
    edit({"exercise-shift-code": RIGHT}, {"exercise-shift-check": verdict_on(RIGHT)})
    lines = progress_report(folder).splitlines()
    assert lines[:3] == [f"{CHAPTER}  1 of 4 done", "  ✓ 1 shift the labels", "  ○ 2 mask"]
    assert lines[-1] == "Next: chapter 01, exercise 2: mask (course lab 01)"


def test_a_spoilt_copy_is_named_with_a_remedy(folder, monkeypatch, capsys):
    (folder.work / f"{CHAPTER}.ipynb").write_text("{", "utf-8")
    monkeypatch.setattr(CourseFolder, "here", classmethod(lambda cls: folder))
    assert cli.main(["progress"]) == 2
    said = capsys.readouterr().err
    assert "01_pretraining_objectives.ipynb is no notebook any more" in said
    assert "course lab --reset 01" in said


@pytest.mark.slow
def test_the_solutions_run_in_a_kernel_are_all_correct(folder):
    """The real thing: a learner who has written what the course's own solutions say, and saved."""
    solved = nbformat.read(CourseFolder.here().notebooks / "solutions" / f"{CHAPTER}.ipynb", as_version=4)
    execute(solved, folder.work, environment={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")})
    nbformat.write(solved, folder.work / f"{CHAPTER}.ipynb")
    assert states(folder) == ["correct"] * 4
    assert progress_report(folder).splitlines()[-1] == "All exercises are done."
