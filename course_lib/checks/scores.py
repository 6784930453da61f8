"""The check of chapter 4's macro F1: a rare class weighs as much as a frequent one, and one that never comes up is 0.

Axes: N text, C class. A label is the true class of a text, "given" the predicted one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from course_lib.checks.report import Wrong, described, invoke, near, number
from course_lib.evaluation.classification import macro_f1

MacroF1 = Callable[..., float]
macro_f1_reference = macro_f1


@dataclass(frozen=True)
class Answers:
    """What a classifier gave for texts of known classes."""

    title: str
    labels: list[int]
    given: list[int]
    n_classes: int

    @property
    def hits(self) -> np.ndarray:
        """[C], right answers of each class, as the next two are counts of each."""
        return self._count([label for label, given in zip(self.labels, self.given, strict=True) if label == given])

    @property
    def true(self) -> np.ndarray:
        return self._count(self.labels)

    @property
    def claimed(self) -> np.ndarray:
        return self._count(self.given)

    def arguments(self) -> dict[str, Any]:
        """By the names of the exercise's arguments."""
        return {"labels": np.array(self.labels), "given": np.array(self.given), "n_classes": self.n_classes}

    def in_words(self) -> dict[str, Any]:
        """As a verdict shows them."""
        named = {"labels": self.labels, "given classes": self.given, "n_classes": self.n_classes}
        return {"case": self.title} | named

    def unused(self) -> list[int]:
        """The classes that no text has and no text was given."""
        return np.flatnonzero(self.true + self.claimed == 0).tolist()

    def _count(self, values: list[int]) -> np.ndarray:
        return np.bincount(np.array(values, dtype=int), minlength=self.n_classes)


CASES = [
    Answers(
        "four classes",
        [0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 3, 0, 2],
        [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 2, 3, 2, 3, 0, 2],
        4,
    ),
    Answers("two classes", [1, 0, 0, 0, 1, 0, 1, 0], [1, 0, 0, 1, 0, 0, 1, 0], 2),
    Answers("every answer right", [0, 1, 2, 3, 1], [0, 1, 2, 3, 1], 4),
    Answers("every answer wrong", [0, 1, 2, 2], [1, 2, 0, 1], 3),
    Answers("a class that is true and never given", [0, 0, 1, 2, 2, 0], [0, 0, 2, 2, 2, 2], 3),
    Answers("a class that is given and never true", [0, 0, 2, 2, 0], [0, 1, 2, 0, 0], 3),
    Answers("a class without any text", [0, 0, 1, 3, 3, 3], [0, 1, 1, 3, 3, 0], 4),
    Answers("the last classes without any text", [0, 1, 1, 0], [0, 1, 0, 0], 4),
    Answers("one class for all", [0, 0, 0, 1], [0, 0, 0, 0], 2),
    Answers("one text", [1], [1], 3),
    Answers("120 texts", [n * n % 5 for n in range(120)], [(n * n + n % 4 // 3) % 5 for n in range(120)], 5),
]


def verify_macro_f1(function: MacroF1) -> str:
    """Compare values. Raises Wrong or NotAttempted; says what was verified."""
    for case in CASES:
        wanted = macro_f1_reference(*case.arguments().values())
        value = judged(_called(function, case), case)
        if not near(value, wanted):
            raise Wrong(explained(value, case), **case.in_words(), **_compared(wanted, value))
    return f"{len(CASES)} sets of answers: {', '.join(case.title for case in CASES)}"


def _called(function: MacroF1, case: Answers) -> Any:
    """What the function gives back for copies of the arrays."""
    before, handed_over = case.arguments(), case.arguments()
    try:
        with np.errstate(all="ignore"):  # of 0 / 0 the verdict speaks
            value = invoke(function, *handed_over.values(), shown=before)
    except Wrong as wrong:
        if "ZeroDivisionError" in wrong.cause:
            raise Wrong(
                f"{wrong.cause}. {_nothing_to_divide_by(case)}", **{"case": case.title} | wrong.evidence
            ) from None
        raise
    for name in ("labels", "given"):
        if not np.array_equal(before[name], handed_over[name]):
            raise Wrong(
                f"{name} was changed in place: the caller still needs the original.",
                before=before[name].tolist(),
                after=handed_over[name].tolist(),
            )
    return value


def judged(value: Any, case: Answers) -> float:
    """The value as a plain number. Raises Wrong if it is none, or not finite."""
    evidence = case.in_words()
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf":
        value = value.item()
    if isinstance(value, np.ndarray | list | tuple):
        cause = "Give back one number."
        if len(np.atleast_1d(np.asarray(value, dtype=object))) == case.n_classes:
            cause = "That is a value for each class: the mean over the classes is wanted, one number."
        raise Wrong(cause, **evidence, given=described(value))
    try:
        value = number(value, "macro F1", **evidence)
    except OverflowError:  # an int beyond every float
        value = math.inf
    wanted = macro_f1_reference(*case.arguments().values())
    if math.isnan(value):
        cause = f"The answer is NaN, which 0 / 0 gives. {_nothing_to_divide_by(case)}"
        raise Wrong(cause, **evidence, **_compared(wanted, value))
    if math.isinf(value):
        cause = "The answer is infinite, and a share lies from 0 to 1: what is divided by 0?"
        raise Wrong(cause, **evidence, **_compared(wanted, value))
    return value


def _nothing_to_divide_by(case: Answers) -> str:
    if unused := case.unused():
        return f"Class {unused[0]} has no text, neither true nor given: its F1 counts as 0."
    if never := np.flatnonzero(case.claimed == 0).tolist():
        return f"No text was given class {never[0]}, so that its precision has nothing to divide by: its F1 is 0."
    if never := np.flatnonzero(case.true == 0).tolist():
        return f"No text is of class {never[0]}, so that its recall has nothing to divide by: its F1 is 0."
    return "A class has no right answer, so that precision and recall are both 0: its F1 is 0."


# --- what may be wrong ------------------------------------------------------------------------------------------------


def _shares(case: Answers, empty: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[C] each: precision, recall and F1; `empty` where there is nothing to divide by."""

    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.full(case.n_classes, empty), where=whole > 0)

    return (
        ratio(case.hits, case.claimed),
        ratio(case.hits, case.true),
        ratio(2.0 * case.hits, case.claimed + case.true),
    )


def mistakes(case: Answers) -> Iterator[tuple[str, float]]:
    """What to say, and what it gives. The more usual comes first where two give the same."""
    precision, recall, f1 = _shares(case)
    true, claimed = case.true, case.claimed
    comes_up = true + claimed > 0
    nothing = "{} and counts as 0: it was left out of the mean, which then is over {} classes instead of {}."
    for head, is_in in [
        ("A class without any text, true or given, is one of n_classes", comes_up),
        ("A class that no text has, though it may be given, is one of n_classes", true > 0),
        ("A class that no text was given is one of n_classes", claimed > 0),
        ("A class that is not both true and given somewhere is one of n_classes", (true > 0) & (claimed > 0)),
        ("A class without a right answer is one of n_classes", case.hits > 0),
    ]:
        if is_in.any() and not is_in.all():
            yield nothing.format(head, int(is_in.sum()), case.n_classes), f1[is_in].mean()
    yield (
        "That is the accuracy (the micro F1 is the same number): a frequent class outweighs a rare one. Each class "
        "has its own F1 here, and all weigh the same.",
        case.hits.sum() / true.sum(),
    )
    yield "Each class is weighted by its number of texts: the plain mean is wanted.", np.average(f1, weights=true)
    yield (
        "The F1 of the mean precision and the mean recall: each class's F1 comes first, and then the mean.",
        _harmonic(precision.mean(), recall.mean()),
    )
    yield "A class without any text counts as 1: it should count as 0.", _shares(case, 1.0)[2].mean()
    yield "Only class 1 is looked at, as if it were the positive one of two: the mean is over all classes.", f1[1]
    yield "Only class 0 is looked at: the mean is over all classes.", f1[0]
    yield "Class 0 is left out of the mean.", f1[1:].mean()
    yield "The last class is left out of the mean: classes go from 0 to n_classes - 1.", f1[:-1].mean()
    yield "Each class is weighted by how often it was given: the plain mean is wanted.", np.average(f1, weights=claimed)
    yield "The mean precision: recall belongs to F1 as well.", precision.mean()
    yield "The mean recall (balanced accuracy): precision belongs to F1 as well.", recall.mean()
    yield "Precision and recall are averaged: F1 is their harmonic mean.", ((precision + recall) / 2).mean()
    yield "Precision times recall is no mean: F1 is the harmonic one.", (precision * recall).mean()
    yield "The geometric mean of precision and recall: F1 is the harmonic one.", np.sqrt(precision * recall).mean()
    yield "Half of what it should be: the harmonic mean of two has a factor 2.", f1.mean() / 2
    yield (
        "Right answers over all that are true or given (Jaccard): F1 counts the right ones twice, above and below.",
        (f1 / (2 - f1)).mean(),
    )
    yield "That is the sum over the classes: divide by their number.", f1.sum()
    yield "The sum is divided by n_classes - 1.", f1.sum() / (case.n_classes - 1)
    yield "The sum is divided by n_classes + 1.", f1.sum() / (case.n_classes + 1)
    yield "The sum is divided by the number of texts: divide by the number of classes.", f1.sum() / true.sum()
    yield "That is in per cent: F1 lies from 0 to 1.", 100 * f1.mean()
    yield "The answer is the share of mistakes: 1 minus F1.", 1 - f1.mean()
    yield "The best class alone: the mean is wanted.", f1.max()
    yield "The worst class alone: the mean is wanted.", f1.min()
    yield "The median of the classes: the mean is wanted.", np.median(f1)
    for digits in (4, 3, 2, 1):
        yield (
            f"Rounded to {digits} digits: round where it is shown, not where it is computed.",
            round(f1.mean(), digits),
        )


def explained(value: float, case: Answers) -> str:
    """The usual mistake that gives exactly this."""
    for cause, mistaken in mistakes(case):
        if near(value, float(mistaken)):
            return cause
    if not 0 <= value <= 1:
        return "F1 lies from 0 to 1: which counts are divided by which?"
    return (
        "It is none of the usual mistakes: write down, for each class, its right answers, its true and its given texts."
    )


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def _compared(wanted: float, value: float) -> dict[str, str]:
    return {"wanted": f"{wanted:.6g}", "given": f"{value:.6g}"}
