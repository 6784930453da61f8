"""What holds for the check of every exercise. attempt(name, function) hands an answer to the check of that name, and
gives back what the check does."""

import inspect
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
