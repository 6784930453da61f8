"""Tables that must hold: no exercise without a check, no check without wrong answers, no row of bad input forgotten."""

import importlib
import re
from pathlib import Path

import build_notebooks
import pytest
from chapters import NOTEBOOKS

from course_lib import checks

HERE = Path(__file__).parent
EXERCISES = {
    name: exercise
    for path in sorted(HERE.glob("test_checks*.py"))
    for name, exercise in importlib.import_module(path.stem).EXERCISES.items()
}


@pytest.mark.parametrize("name", checks.__all__)
def test_every_check_refuses_at_least_five_wrong_answers_with_different_diagnoses(name):
    _, right, wrong = EXERCISES[name]
    assert len(right) >= 2
    assert len(wrong) >= 5
    assert len(set(wrong.values())) >= 5


@pytest.mark.parametrize("path", sorted(HERE.glob("test_checks*.py")), ids=lambda path: path.stem)
def test_every_wrong_answer_is_tried(path):
    module = importlib.import_module(path.stem)
    (marks,) = [m for m in module.test_a_wrong_answer_is_diagnosed_and_replaced.pytestmark if m.name == "parametrize"]
    tried = [getattr(case, "values", case) for case in marks.args[1]]  # slow ones are wrapped
    wanted = [(name, wrong) for name, (_, _, wrongs) in module.EXERCISES.items() for wrong in wrongs]
    assert [(name, wrong) for name, wrong, _ in tried] == wanted


def test_every_exercise_of_a_chapter_has_a_check_and_every_check_an_exercise():
    cells = [
        cell
        for chapter in build_notebooks.chapters_in(NOTEBOOKS)
        for cell in build_notebooks.read_cells(chapter.source)
    ]
    used = {name for cell in cells for name in re.findall(r"\bchecks\.(\w+)\(", cell.source)}
    assert used == set(checks.__all__)


def test_bad_input_is_refused_in_at_least_sixty_ways_none_of_them_forgotten():
    table = importlib.import_module("test_bad_input")
    assert len(table.REFUSED) >= 60
    (marks,) = [m for m in table.test_refused_in_words_that_help.pytestmark if m.name == "parametrize"]
    assert len(marks.args[1]) == len(table.REFUSED)
    for path in HERE.glob("bad_input_*.py"):
        module = importlib.import_module(path.stem)
        lists = [value for name, value in vars(module).items() if name.startswith("REFUSED")]
        assert lists, path.name
        assert all(row in table.REFUSED for rows in lists for row in rows)
