"""The check of chapter 0's warm-up: what the most frequent training label scores on the tests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from course_lib.checks.report import Part, Wrong, call, described, near, number, report
from course_lib.evaluation.classification import majority_baseline as majority_reference

MajorityBaseline = Callable[[list[int], list[int]], float]


def majority_baseline(function: MajorityBaseline) -> MajorityBaseline:
    """Check f(train_labels, test_labels) -> share of the tests that is right when all are given the label that is most
    frequent in training. Both are lists of whole numbers from 0. Prints a verdict; gives back f if it is right, else
    the library's."""
    return report(Part("majority_baseline", function, verify_majority_baseline, majority_reference))[0]


@dataclass(frozen=True)
class Case:
    """Labels to count, and labels to be right about. In training none are equally frequent."""

    title: str
    train: list[int]
    test: list[int]

    def in_words(self) -> dict[str, Any]:
        """As a verdict shows it."""
        return {"case": self.title, "train_labels": self.train, "test_labels": self.test}

    @property
    def wanted(self) -> float:
        return majority_reference(self.train, self.test)


CASES = [
    Case("mostly 1", [1, 0, 1, 1, 0, 1, 1], [1, 1, 0, 1, 0, 1, 1, 1]),
    Case("mostly 0", [0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0, 0, 0, 0, 0]),
    Case("another majority in the tests", [1, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0, 0]),
    Case("a label that no test has", [1, 1, 0], [0, 0, 0]),
    Case("three labels", [2, 0, 2, 1, 2, 2, 1], [2, 1, 1, 0, 0, 2, 1, 0, 2, 2]),
    Case("a label among many that are not it", [3, 1, 3, 2, 0], [3, 0, 1, 2, 2, 3, 0, 1]),
    Case("a label that is second in both", [0, 0, 0, 1, 1], [2, 1, 2, 0, 1, 2]),
    Case("three labels, none of them half of all", [0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 2]),
    Case("one test", [0, 0, 1], [0]),
    Case("200 tests", [n % 3 % 2 for n in range(100)], [n * n % 7 % 2 for n in range(200)]),
]


def verify_majority_baseline(function: MajorityBaseline) -> str:
    """Compare values. Raises Wrong or NotAttempted; says what was verified."""
    values = [
        _share(call(function, train_labels=list(case.train), test_labels=list(case.test)), case) for case in CASES
    ]
    for case, value in zip(CASES, values, strict=True):
        if not near(value, case.wanted):
            raise Wrong(_explained(values), **case.in_words(), wanted=f"{case.wanted:.6g}", given=f"{value:.6g}")
    return f"{len(CASES)} pairs of lists: {', '.join(case.title for case in CASES)}"


def _share(value: Any, case: Case) -> float:
    """The value as a plain number. Raises Wrong if it is none, or not finite."""
    evidence = case.in_words()
    if value is None:
        raise Wrong("It gives back nothing: is there a return?", **evidence, given=None)
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf":
        value = value.item()
    if isinstance(value, list | tuple | np.ndarray):
        cause = "Give back one number."
        if len(np.atleast_1d(np.asarray(value, dtype=object))) == len(case.test):
            cause = "That is a value for each test text: the share of them that is right is wanted, one number."
        raise Wrong(cause, **evidence, given=described(value))
    value = number(value, "The share", **evidence)
    if not np.isfinite(value):
        raise Wrong("The answer is no finite number: what is divided by 0?", **evidence, given=described(value))
    return value


def _explained(values: list[float]) -> str:
    """The usual mistake that gives exactly these values, one for each case."""
    for mistaken in zip(*map(_mistakes, CASES), strict=True):
        if all(near(value, float(wrong)) for value, (_, wrong) in zip(values, mistaken, strict=True)):
            return mistaken[0][0]
    if not all(0 <= value <= 1 for value in values):
        return "A share lies from 0 to 1: what is divided by what?"
    return "It is none of the usual mistakes: write down the most frequent training label, then count the tests of it."


def _mistakes(case: Case) -> Iterator[tuple[str, float]]:
    """What to say, and what it gives. The more usual comes first where two give the same."""
    train, test = np.array(case.train), np.array(case.test)
    most, rarest = np.bincount(train).argmax(), min(set(case.train), key=case.train.count)
    yield (
        "The label that is most frequent in the tests was taken. Whoever chooses by the test labels has seen the "
        "answers: count the training labels.",
        np.bincount(test).max() / len(test),
    )
    yield "That is the label's share of the training texts: it is to be tried on the tests.", (train == most).mean()
    yield "All tests were given label 1: which label is frequent can be another.", (test == 1).mean()
    yield "All tests were given label 0: which label is frequent can be another.", (test == 0).mean()
    yield "That is how many tests are right: their share is wanted.", (test == most).sum()
    yield "That is in per cent: a share lies from 0 to 1.", 100 * case.wanted
    yield "That is the label itself: what does it score on the tests?", most
    yield "That is the share of mistakes.", 1 - case.wanted
    yield "The rarest training label was taken: the most frequent one is wanted.", (test == rarest).mean()
    yield "The right ones are divided by the number of training texts.", (test == most).sum() / len(train)
    yield "The largest label was taken, not the most frequent one.", (test == train.max()).mean()
    yield "The middle label was taken, not the most frequent one.", (test == np.median(train)).mean()
    yield "The mean of the labels was rounded: that is not the most frequent one.", (test == round(train.mean())).mean()
    yield "The division dropped the fraction: // divides whole numbers, / does not.", case.wanted // 1
    yield "Both lists were counted together: the tests choose nothing.", _of_both(train, test)
    for digits in (3, 2, 1):
        yield "Rounded: round where it is shown, not where it is computed.", round(case.wanted, digits)


def _of_both(train: np.ndarray, test: np.ndarray) -> float:
    return float((test == np.bincount(np.concatenate([train, test])).argmax()).mean())
