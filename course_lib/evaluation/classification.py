"""How a classifier errs, beyond the share that it gets right: which classes it takes for which, how far its
probabilities can be believed, and whether it is any better than another.

Axes: N a text, C a class, K a bin of confidence. A label is the true class of a text, "given" the predicted one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import accuracy_score, confusion_matrix

from course_lib.evaluation.intervals import Interval

FEWEST_RESAMPLES = 40  # of fewer, the outer 2.5 % are less than one
SUM_TOLERANCE = 1e-3  # float16 rounds a sum of probabilities by as much


# ---------------------------------------------------------------- classes


def confusion(labels_N: ArrayLike, given_N: ArrayLike, n_classes: int) -> np.ndarray:
    """int [C, C]: how many texts of each class (row) were given each class (column). All texts stand in it once.

    labels_N, given_N: whole numbers in [0, n_classes).
    Raises ValueError for lengths that differ, no texts, classes outside [0, n_classes), or fewer than 2 classes.

    >>> confusion([0, 0, 1, 1], [0, 1, 1, 1], n_classes=3).tolist()
    [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    """
    labels_N, given_N = _labels_and_given(labels_N, given_N, n_classes)
    return confusion_matrix(labels_N, given_N, labels=range(n_classes))


def accuracy(labels_N: ArrayLike, given_N: ArrayLike) -> float:
    """The share of texts that were given their own class.

    labels_N, given_N: whole numbers from 0. Raises ValueError for lengths that differ, no texts, or a class below 0.

    >>> accuracy([0, 0, 1, 1], [0, 1, 1, 1])
    0.75
    """
    return float(accuracy_score(*_labels_and_given(labels_N, given_N)))


def majority_baseline(train_labels_N: ArrayLike, test_labels_M: ArrayLike) -> float:
    """The share of test texts that is right when every one of them is given the class that is most frequent among the
    training texts (of equally frequent ones the smallest): what learning nothing but a count scores.

    Whole numbers from 0. Raises ValueError for no labels on either side, or a class below 0.

    >>> majority_baseline([1, 1, 0], [0, 0, 0, 1])
    0.25
    """
    train_N, test_M = _classes("training labels", train_labels_N), _classes("test labels", test_labels_M)
    return float((test_M == np.bincount(train_N).argmax()).mean())


def macro_f1(labels_N: ArrayLike, given_N: ArrayLike, n_classes: int) -> float:
    """The mean over the classes of each one's F1: a rare class weighs as much as a frequent one (arXiv:1911.03347).

    A class that never occurs and is never given counts with an F1 of 0, as in scikit-learn's f1_score with
    labels=range(n_classes) and zero_division=0: give the number of classes that do occur to leave it out.
    Raises ValueError for what `confusion` refuses.

    >>> f"{macro_f1([0, 0, 0, 1], [0, 0, 0, 0], n_classes=2):.3f}"  # an accuracy of 0.75
    '0.429'
    """
    labels_N, given_N = _labels_and_given(labels_N, given_N, n_classes)
    counts_CC = np.bincount(labels_N * n_classes + given_N, minlength=n_classes**2).reshape(n_classes, n_classes)
    return float((2 * counts_CC.diagonal() / np.maximum(counts_CC.sum(0) + counts_CC.sum(1), 1)).mean())


# ---------------------------------------------------------------- probabilities


@dataclass(frozen=True)
class Reliability:
    """Texts sorted into K bins of equal width by the probability of the class that they were given."""

    edges: np.ndarray  # [K + 1], from 0 to 1; a bin holds its upper edge
    confidence_K: np.ndarray  # mean probability of the given class, NaN in an empty bin
    accuracy_K: np.ndarray  # share of the texts that are right, NaN in an empty bin
    count_K: np.ndarray


def reliability(probabilities_NC: ArrayLike, labels_N: ArrayLike, bins: int = 10) -> Reliability:
    """How often a classifier is right where it claims a probability of so much: the points of a reliability diagram
    (arXiv:1706.04599). The given class is the most probable one, the first of equals.

    Raises ValueError for shapes that differ, no texts, fewer than 2 classes, rows that are no probabilities (nan, below
    0, a sum that is not 1), labels outside [0, C), or less than 1 bin.

    >>> found = reliability([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], [0, 1, 0], bins=2)
    >>> found.count_K.tolist(), found.confidence_K.round(3).tolist(), found.accuracy_K.round(3).tolist()
    ([0, 3], [nan, 0.8], [nan, 0.667])
    """
    probabilities_NC, labels_N = _probabilities_and_labels(probabilities_NC, labels_N)
    _check_whole("bins", bins, 1, "10 is usual")
    confidence_N, is_right_N = probabilities_NC.max(1), probabilities_NC.argmax(1) == labels_N
    edges = np.arange(bins + 1) / bins
    inner = edges[1:-1].astype(confidence_N.dtype)  # so that a float32 0.7 does not land beyond the edge at 0.7
    bin_N = np.searchsorted(inner, confidence_N, side="left")
    count_K = np.bincount(bin_N, minlength=bins)
    mean_K = [
        np.divide(np.bincount(bin_N, values_N, bins), count_K, out=np.full(bins, np.nan), where=count_K > 0)
        for values_N in (confidence_N, is_right_N)
    ]
    return Reliability(edges, *mean_K, count_K)


def calibration_error(probabilities_NC: ArrayLike, labels_N: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error, ECE (arXiv:1706.04599): how far the accuracy lies from the probability of the given
    class, in the mean over the texts, bin by bin. 0 is honest; a few texts in many bins never come near it.

    Raises ValueError for what `reliability` refuses.

    >>> f"{calibration_error([[0.8, 0.2]] * 10, [0] * 6 + [1] * 4):.3f}"
    '0.200'
    """
    found = reliability(probabilities_NC, labels_N, bins)
    held = found.count_K > 0
    gap = np.abs(found.accuracy_K - found.confidence_K)[held]
    return float(np.average(gap, weights=found.count_K[held]))


def most_confident_mistakes(probabilities_NC: ArrayLike, labels_N: ArrayLike, count: int) -> np.ndarray:
    """int [at most count]: the places of the texts that were given a wrong class, the most probable one first, equals
    in the order of the texts. Fewer than `count` where there are fewer mistakes.

    Raises ValueError for what `reliability` refuses, or a count below 1.

    >>> most_confident_mistakes([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2]], [1, 0, 0], count=2).tolist()
    [1, 0]
    """
    probabilities_NC, labels_N = _probabilities_and_labels(probabilities_NC, labels_N)
    _check_whole("count", count, 1, "how many mistakes to read")
    mistakes = np.flatnonzero(probabilities_NC.argmax(1) != labels_N)
    return mistakes[np.argsort(-probabilities_NC.max(1)[mistakes], kind="stable")][:count]


# ---------------------------------------------------------------- a threshold


@dataclass(frozen=True)
class Threshold:
    """What becomes of the texts of two classes where the positive one is given from this probability on.

    A share of nothing is NaN: precision where no text was given the positive class, recall where none is positive, F1
    where both hold. A plot leaves a gap there.
    """

    threshold: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def precision(self) -> float:
        """Share of positive texts among those given the positive class."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the positive texts that were found."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def accuracy(self) -> float:
        """Share of all texts that were given their own class."""
        right = self.true_positives + self.true_negatives
        return _share(right, right + self.false_positives + self.false_negatives)


def at_threshold(positive_probability_N: ArrayLike, labels_N: ArrayLike, threshold: float) -> Threshold:
    """Give the positive class, 1, to each text whose probability of it is `threshold` or more, and count.

    positive_probability_N: in [0, 1], such as probabilities_NC[:, 1]. labels_N: 0 or 1.
    Raises ValueError for shapes that differ, no texts, labels that are neither 0 nor 1, or a probability or threshold
    outside [0, 1].

    >>> found = at_threshold([0.9, 0.6, 0.4, 0.2], [1, 0, 1, 0], threshold=0.5)
    >>> found.true_positives, found.false_positives, found.precision, found.recall
    (1, 1, 0.5, 0.5)
    >>> at_threshold([0.9, 0.6], [1, 0], threshold=0.95).precision
    nan
    """
    positive_probability_N, labels_N = np.asarray(positive_probability_N), _classes("labels", labels_N, 2)
    if positive_probability_N.shape != labels_N.shape:
        shape = positive_probability_N.shape
        raise ValueError(f"probabilities have shape {shape}, labels {labels_N.shape}: give probabilities_NC[:, 1]")
    if not ((positive_probability_N >= 0) & (positive_probability_N <= 1)).all():
        raise ValueError(f"probabilities hold {_first_outside(positive_probability_N)}: give numbers from 0 to 1")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}: give a probability from 0 to 1, 0.5 is usual")
    threshold = float(threshold)  # NumPy compares it in the precision of the probabilities
    counts = confusion_matrix(labels_N, positive_probability_N >= threshold, labels=[0, 1])
    (true_negatives, false_positives), (false_negatives, true_positives) = counts.tolist()
    return Threshold(threshold, true_positives, false_positives, true_negatives, false_negatives)


# ---------------------------------------------------------------- how far to trust it


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    labels_N: ArrayLike,
    given_N: ArrayLike,
    *,
    resamples: int = 1000,
    generator: np.random.Generator,
) -> Interval:
    """95 % interval of any metric(labels, given), by the percentile bootstrap over texts (Efron 1979,
    doi:10.1214/aos/1176344552): the middle 95 % of its values on as many texts, drawn again with replacement.

    It knows the chance of which texts were tested, not that of another training run. given_N: what the metric reads,
    probabilities [N, C] too. A metric that small samples push to one side, such as `calibration_error`, can lie outside
    its own interval.
    Raises ValueError for lengths that differ, fewer than 2 texts or 40 resamples, no NumPy generator, or a metric that
    is not finite on one of the resamples.

    >>> labels, given = [0, 1] * 50, [0, 1] * 40 + [1, 0] * 10
    >>> interval = bootstrap_interval(accuracy, labels, given, generator=np.random.default_rng(0))
    >>> f"{interval:.2f}"
    '0.80 (0.72 to 0.88)'
    """
    labels_N, given_N = np.asarray(labels_N), np.asarray(given_N)
    _check_resampling(labels_N, given_N, resamples, generator)
    draws = (generator.integers(len(labels_N), size=len(labels_N)) for _ in range(resamples))
    values = np.array([metric(labels_N[draw], given_N[draw]) for draw in draws], dtype=float)
    value = float(metric(labels_N, given_N))
    failures = int((~np.isfinite([*values, value])).sum())
    if failures:
        remedy = "give more texts, or a metric that always has a value"
        raise ValueError(f"the metric is no finite number on {failures} of {resamples + 1} samples: {remedy}")
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(value, float(low), float(high))


@dataclass(frozen=True)
class Paired:
    """Two classifiers, a and b, on the same texts."""

    difference: Interval  # accuracy of a minus accuracy of b
    only_a: int  # texts that a alone got right
    only_b: int
    p_value: float  # McNemar's: how often equals would differ by as much or more


def paired_comparison(is_right_a_N: ArrayLike, is_right_b_N: ArrayLike) -> Paired:
    """Is a better than b? Only the texts that one of the two got right and the other wrong can tell.

    The 95 % interval is Wald's for paired shares after half a text is added to each of the four cells (Agresti and Min
    2005, doi:10.1002/sim.1781): it has a width where the two never differ. p_value: McNemar's test, exact and two-sided
    (doi:10.1007/BF02295996). Near 0.05 the two can disagree, for they are found in different ways.
    Raises ValueError for shapes that differ, no texts, or anything but True and False.

    >>> found = paired_comparison([True] * 8 + [False] * 2, [True] * 3 + [False] * 7)
    >>> f"{found.difference:.2f}, {found.only_a} to {found.only_b}, p = {found.p_value:.4f}"
    '0.50 (0.09 to 0.74), 5 to 0, p = 0.0625'
    """
    a_N, b_N = _is_right("is_right_a", is_right_a_N), _is_right("is_right_b", is_right_b_N)
    if len(a_N) != len(b_N):
        raise ValueError(f"{len(a_N)} texts for a and {len(b_N)} for b: give the same texts to both, in one order")
    only_a, only_b, texts = int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum()), len(a_N)
    middle = (only_a - only_b) / (texts + 2)
    variance = ((only_a + only_b + 1) / (texts + 2) - middle**2) / (texts + 2)
    reach = float(stats.norm.ppf(0.975)) * math.sqrt(variance)
    difference = Interval((only_a - only_b) / texts, max(middle - reach, -1.0), min(middle + reach, 1.0))
    differing = only_a + only_b
    p_value = float(stats.binomtest(only_a, differing, 0.5).pvalue) if differing else 1.0
    return Paired(difference, only_a, only_b, p_value)


# ---------------------------------------------------------------- what is refused


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _first_outside(values: np.ndarray) -> float:
    return values[~((values >= 0) & (values <= 1))][0].item()


def _check_whole(name: str, value: int, least: int, remark: str) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is {value}: give a whole number from {least}, {remark}")


def _classes(name: str, values_N: ArrayLike, n_classes: int | None = None) -> np.ndarray:
    values_N = np.asarray(values_N)
    if values_N.ndim != 1 or not len(values_N):
        raise ValueError(f"{name} have shape {values_N.shape}: give [N], one class a text and at least one text")
    if values_N.dtype.kind not in "biu":
        raise ValueError(f"{name} are {values_N.dtype}: give the number of a class, as an integer")
    is_outside_N = (values_N < 0) if n_classes is None else (values_N < 0) | (values_N >= n_classes)
    if is_outside_N.any():
        classes = "from 0" if n_classes is None else f"from 0 to {n_classes - 1}"
        raise ValueError(
            f"{name} hold {values_N[is_outside_N][0]}: give classes {classes}, leave out texts of no class"
        )
    return values_N.astype(np.int64)


def _labels_and_given(
    labels_N: ArrayLike, given_N: ArrayLike, n_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    if n_classes is not None:
        _check_whole("n_classes", n_classes, 2, "there is nothing to choose in one class")
    labels_N, given_N = _classes("labels", labels_N, n_classes), _classes("given classes", given_N, n_classes)
    if len(labels_N) != len(given_N):
        raise ValueError(f"{len(labels_N)} labels and {len(given_N)} given classes: give one of each a text")
    return labels_N, given_N


def _probabilities_and_labels(probabilities_NC: ArrayLike, labels_N: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    probabilities_NC = np.asarray(probabilities_NC)
    shape = probabilities_NC.shape
    if len(shape) != 2 or not shape[0] or shape[1] < 2:
        raise ValueError(
            f"probabilities have shape {shape}: give [N, C], a row a text, a column for each of 2 classes up"
        )
    if not (probabilities_NC >= 0).all():
        raise ValueError(f"probabilities hold {_first_outside(probabilities_NC)}: give softmax(logits), and no nan")
    sums_N = probabilities_NC.sum(1, dtype=float)
    n = int(np.abs(sums_N - 1).argmax())
    if abs(sums_N[n] - 1) > SUM_TOLERANCE:
        raise ValueError(f"the probabilities of text {n} sum to {sums_N[n]:.4g}: give softmax(logits), it sums to 1")
    labels_N = _classes("labels", labels_N, shape[1])
    if len(labels_N) != shape[0]:
        raise ValueError(f"{shape[0]} rows of probabilities and {len(labels_N)} labels: give one of each a text")
    return probabilities_NC if probabilities_NC.dtype.kind == "f" else probabilities_NC.astype(float), labels_N


def _check_resampling(labels_N: np.ndarray, given_N: np.ndarray, resamples: int, generator: object) -> None:
    if labels_N.ndim != 1 or given_N.ndim < 1 or len(labels_N) != len(given_N) or len(labels_N) < 2:
        shapes = f"labels have shape {labels_N.shape}, what is given {given_N.shape}"
        raise ValueError(f"{shapes}: give one of each a text, and at least 2 texts")
    _check_whole("resamples", resamples, FEWEST_RESAMPLES, "1000 is usual")
    if not isinstance(generator, np.random.Generator):
        raise ValueError(f"generator is a {type(generator).__name__}: give numpy.random.default_rng(seed)")


def _is_right(name: str, values_N: ArrayLike) -> np.ndarray:
    values_N = np.asarray(values_N)
    if values_N.ndim != 1 or not len(values_N):
        raise ValueError(f"{name} has shape {values_N.shape}: give [N], True or False a text and at least one text")
    if not np.isin(values_N, [0, 1]).all():
        raise ValueError(f"{name} holds more than True and False: give labels == given")
    return values_N.astype(bool)
