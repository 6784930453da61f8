"""What holds for the check of every exercise. attempt(name, function) hands an answer to the check of that name, and
gives back what the check does."""

import inspect
import math
import random
import time

import numpy as np
import torch
from torch import nn

from course_lib import checkpoint


def untouched(*_arguments, **_options):
    raise NotImplementedError


class HalfMade(nn.Module):
    def __init__(self):
        pass  # without super().__init__(), so that repr raises


HOSTILE = [  # what no exercise asks for
    None,
    "text",
    b"12",
    1 + 1j,
    math.nan,
    math.inf,
    -math.inf,
    -1,
    10**400,
    (None, None),
    [],
    [[]],
    [None],
    {},
    {1: torch.zeros(1)},
    object(),
    HalfMade(),
    (HalfMade(), HalfMade()),
    torch.zeros(0),
    torch.zeros(()),
    torch.full((3, 3), math.nan),
    torch.zeros(3, 3, device="meta"),
    torch.eye(3).to_sparse(),
    torch.zeros(3, 3, dtype=torch.complex64),
    np.zeros((3, 3)),
    nn.Linear(3, 3),
    lambda: None,
]


def cases_of(exercises):
    """(name, right answer) and (name, wrong answer, words of the diagnosis) of all exercises."""
    right = [(name, right) for name, (_, rights, _) in exercises.items() for right in rights]
    wrong = [(name, wrong, words) for name, (_, _, wrongs) in exercises.items() for wrong, words in wrongs.items()]
    return right, wrong


def ids_of(cases):
    return [f"{name}-{getattr(rest[-1], '__name__', rest[-1])}" for name, *rest in cases]


def assert_accepted(attempt, name, function, capsys):
    assert attempt(name, function) is function
    verdict = capsys.readouterr().out
    assert f"✓ {name}: correct. Verified: " in verdict, verdict
    assert "✗" not in verdict and "·" not in verdict and "library's version" not in verdict


def assert_diagnosed(attempt, name, function, words, capsys, *, clock=time.process_time):
    began = clock()
    given_back = attempt(name, function)
    seconds = clock() - began
    verdict = capsys.readouterr().out
    assert f"✗ {name}: not right yet." in verdict, verdict
    assert words in verdict, verdict
    assert "The chapter goes on with the library's version." in verdict
    assert given_back is not function
    assert seconds < 3


def assert_replaced_by_what_passes(attempt, name, capsys):
    given_back = attempt(name, untouched)
    capsys.readouterr()
    attempt(name, given_back)
    assert f"✓ {name}: correct." in capsys.readouterr().out


def assert_not_attempted(attempt, name, capsys):
    given_back = attempt(name, untouched)
    verdict = capsys.readouterr().out
    assert f"· {name}: not attempted yet." in verdict
    assert "✗" not in verdict
    assert given_back is not untouched


def assert_enough_diagnoses(right, wrong, *, diagnoses=5):
    assert len(right) >= 2
    assert len(set(wrong.values())) >= diagnoses


def assert_crash_is_reported(attempt, name, capsys):
    def crashes(*_arguments, **_options):
        return {}["the line that failed"]

    def stops_in_torch(*_arguments, **_options):
        return torch.ones(2, 3) @ torch.ones(2, 3)

    for function, words in ((crashes, "KeyError: 'the line that failed'"), (stops_in_torch, "RuntimeError: mat1")):
        attempt(name, function)
        verdict = capsys.readouterr().out
        assert f"line {inspect.getsourcelines(function)[1] + 1}: return" in verdict
        assert words in verdict


def assert_no_function_is_refused(attempt, name, capsys):
    def exits(*_arguments, **_options):
        raise SystemExit(1)

    for function, words in [(None, "pass it without ()"), (lambda: 1, "arguments ("), (exits, "SystemExit")]:
        attempt(name, function)
        assert words in capsys.readouterr().out


def assert_solution_is_hidden(attempt, name, wrong, codes, capsys):
    """No line of these codes stands in what the check says of wrong answers."""
    for function in wrong:
        attempt(name, function)
    lines = capsys.readouterr().out.splitlines()
    verdicts = "\n".join(line for line in lines if not line.lstrip().startswith("at "))  # the learner's own line
    for code in codes:
        for line in map(str.strip, inspect.getsource(code).splitlines()):
            if len(line) > 20 and not line.startswith(('"', "#", ">>>", "def ", "raise")):
                assert line not in verdicts


def assert_generators_and_grad_mode_are_left_alone(attempt, name, right):
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    before = checkpoint.random_states()
    wanted = draw()
    checkpoint.restore_random_states(before)
    attempt(name, right)
    assert draw() == wanted

    def turns_gradients_off(*_arguments, **_options):
        torch.set_grad_enabled(False)

    attempt(name, turns_gradients_off)
    assert torch.is_grad_enabled()


def assert_works_where_gradients_are_off(attempt, name, right, capsys):
    with torch.no_grad():
        attempt(name, right)
        assert not torch.is_grad_enabled()
    assert "✓" in capsys.readouterr().out
