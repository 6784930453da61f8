"""The check of chapter 0's warm-up says what is wrong, and accepts every right answer."""

import statistics
from collections import Counter

import numpy as np
import pytest
from exercises import (
    assert_accepted,
    assert_diagnosed,
    assert_generators_and_grad_mode_are_left_alone,
    assert_no_function_is_refused,
    assert_not_attempted,
    assert_replaced_by_what_passes,
    assert_solution_is_hidden,
)

from course_lib import checks
from course_lib.checks.start import CASES
from course_lib.evaluation import classification

NAME = "majority_baseline"


def attempt(name, function):
    assert name == NAME
    return checks.majority_baseline(function)


def by_counter(train_labels, test_labels):
    (most, _), *_ = Counter(train_labels).most_common()
    return test_labels.count(most) / len(test_labels)


def by_arrays(train_labels, test_labels):
    values, counts = np.unique(train_labels, return_counts=True)
    return (np.array(test_labels) == values[counts.argmax()]).mean()  # a numpy number


def by_mode(train_labels, test_labels):
    most = statistics.mode(train_labels)
    return sum(label == most for label in test_labels) / len(test_labels)


def of_label(choose):
    return lambda train, test: test.count(choose(train, test)) / len(test)


def changes_its_argument(train_labels, test_labels):
    train_labels.sort()
    return by_mode(train_labels, test_labels)


RIGHT = [by_counter, by_arrays, by_mode]
WRONG = {
    of_label(lambda train, test: statistics.mode(test)): "has seen the answers",
    (lambda train, test: train.count(statistics.mode(train)) / len(train)): "share of the training texts",
    of_label(lambda train, test: 1): "given label 1",
    of_label(lambda train, test: 0): "given label 0",
    (lambda train, test: test.count(statistics.mode(train))): "how many tests are right",
    (lambda train, test: 100 * by_mode(train, test)): "in per cent",
    (lambda train, test: statistics.mode(train)): "the label itself",
    (lambda train, test: 1 - by_mode(train, test)): "share of mistakes",
    of_label(lambda train, test: min(set(train), key=train.count)): "rarest training label",
    (lambda train, test: test.count(statistics.mode(train)) / len(train)): "divided by the number of training",
    of_label(lambda train, test: max(train)): "largest label",
    of_label(lambda train, test: round(statistics.mean(train))): "mean of the labels was rounded",
    (lambda train, test: test.count(statistics.mode(train)) // len(test)): "// divides whole numbers",
    of_label(lambda train, test: statistics.mode([*train, *test])): "counted together",
    (lambda train, test: round(by_mode(train, test), 2)): "Rounded",
    (lambda train, test: [label == statistics.mode(train) for label in test]): "one number",
    (lambda train, test: None): "is there a return?",
    (lambda train, test: float("nan")): "no finite number",
    (lambda train, test: -3.5): "lies from 0 to 1",
    (lambda train, test: 0.123): "none of the usual",
    changes_its_argument: "changed in place",
}


EXERCISES = {NAME: (checks.majority_baseline, RIGHT, WRONG)}


@pytest.mark.parametrize("function", RIGHT)
def test_a_right_answer_is_accepted_and_given_back(function, capsys):
    assert_accepted(attempt, NAME, function, capsys)


@pytest.mark.parametrize(("name", "function", "words"), [(NAME, *case) for case in WRONG.items()], ids=WRONG.values())
def test_a_wrong_answer_is_diagnosed_and_replaced(name, function, words, capsys):
    assert_diagnosed(attempt, name, function, words, capsys)


def test_no_case_depends_on_how_a_tie_is_broken():
    for case in CASES:
        first, *others = sorted(Counter(case.train).values(), reverse=True)
        assert not others or first > others[0], case.title


def test_an_untouched_exercise_is_not_attempted(capsys):
    assert_not_attempted(attempt, NAME, capsys)
    assert_replaced_by_what_passes(attempt, NAME, capsys)


def test_what_is_no_function_of_these_arguments_is_refused(capsys):
    assert_no_function_is_refused(attempt, NAME, capsys)


def test_the_verdict_never_holds_the_solution(capsys):
    assert_solution_is_hidden(attempt, NAME, WRONG, [classification.majority_baseline], capsys)


def test_generators_and_gradients_are_left_alone():
    assert_generators_and_grad_mode_are_left_alone(attempt, NAME, by_mode)


@pytest.mark.parametrize(
    "answer", ["text", (None, None), [], object(), np.zeros(0), {}, True], ids=lambda one: type(one).__name__
)
def test_nothing_that_comes_back_raises(answer, capsys):
    attempt(NAME, lambda *_labels: answer)
    assert f"✗ {NAME}" in capsys.readouterr().out
