"""How a classifier errs: counts equal to scikit-learn's and to plain loops, probabilities held to their word, and
intervals that hold the truth as often as they say."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from course_lib.evaluation import (
    Interval,
    Reliability,
    accuracy,
    at_threshold,
    bag_of_words_predictions,
    bootstrap_interval,
    calibration_error,
    confusion,
    fit_bag_of_words,
    macro_f1,
    most_confident_mistakes,
    paired_comparison,
    reliability,
)

# ---------------------------------------------------------------- classes


def drawn_classes(seed):
    """Labels and what was given, half of it copied: many classes or two, balanced or not, some never there."""
    rng = np.random.default_rng(seed)
    n_classes, texts = int(rng.integers(2, 6)), int(rng.integers(1, 60))
    shares = rng.dirichlet(np.full(n_classes, 0.5 if seed % 2 else 20.0))
    labels_N, other_N = rng.choice(n_classes, (2, texts), p=shares)
    return labels_N, np.where(rng.random(texts) < 0.5, labels_N, other_N), n_classes


CLASSES = [drawn_classes(seed) for seed in range(60)]


def confusion_in_loops(labels_N, given_N, n_classes):
    counts_CC = np.zeros((n_classes, n_classes), int)
    for label, given in zip(labels_N, given_N, strict=True):
        counts_CC[label, given] += 1
    return counts_CC


def f1s(labels_N, given_N, n_classes):
    """Each class's F1, 0 where it neither occurs nor is given."""
    for c in range(n_classes):
        hits = sum(label == given == c for label, given in zip(labels_N, given_N, strict=True))
        named = sum(labels_N == c) + sum(given_N == c)
        yield 2 * hits / named if named else 0.0


def is_confusion(count) -> bool:
    return all(np.array_equal(count(*case), confusion_in_loops(*case)) for case in CLASSES)


def is_macro_f1(score) -> bool:
    return all(score(*case) == pytest.approx(np.mean(list(f1s(*case)))) for case in CLASSES)


def test_the_cases_below_hold_a_class_that_never_occurs_and_one_that_is_neither_there_nor_given():
    assert sum(len({*labels_N}) < n_classes for labels_N, _, n_classes in CLASSES) > 5
    assert sum(len({*labels_N, *given_N}) < n_classes for labels_N, given_N, n_classes in CLASSES) > 5


def test_the_confusion_is_that_of_counting():
    assert is_confusion(confusion)
    counts_CC = confusion([0, 0, 2], [0, 2, 2], n_classes=4)
    assert counts_CC.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


CONFUSION_MUTANTS = {
    "columns for rows": lambda labels, given, n: confusion(given, labels, n),
    "only the classes that are there": lambda labels, given, n: metrics.confusion_matrix(labels, given),
    "shares": lambda labels, given, n: confusion(labels, given, n) / len(labels),
}


@pytest.mark.parametrize("mutant", CONFUSION_MUTANTS.values(), ids=CONFUSION_MUTANTS)
@pytest.mark.filterwarnings("ignore:A single label")
def test_the_check_above_refuses_a_confusion_of(mutant):
    assert not is_confusion(mutant)


def test_accuracy_is_the_diagonals_share_and_scikit_learns():
    for labels_N, given_N, n_classes in CLASSES:
        counts_CC = confusion(labels_N, given_N, n_classes)
        assert accuracy(labels_N, given_N) == pytest.approx(np.trace(counts_CC) / counts_CC.sum())
        assert accuracy(labels_N, given_N) == metrics.accuracy_score(labels_N, given_N)
    assert accuracy([0, 1, 2, 2], [0, 1, 2, 0]) == 0.75


def test_macro_f1_is_the_mean_over_all_classes_and_scikit_learns():
    assert is_macro_f1(macro_f1)
    for labels_N, given_N, n_classes in CLASSES[:20]:
        report = metrics.classification_report(
            labels_N, given_N, labels=range(n_classes), output_dict=True, zero_division=0
        )
        assert macro_f1(labels_N, given_N, n_classes) == pytest.approx(report["macro avg"]["f1-score"])


def test_macro_f1_counts_a_class_that_never_occurs_as_0_and_one_class_for_all_as_little():
    assert macro_f1([0, 1], [0, 1], 2) == 1.0
    assert macro_f1([0, 1], [0, 1], 4) == 0.5
    share = 0.9  # always the frequent class: its F1 alone, over two
    labels_N = np.arange(100) >= 100 * share
    assert macro_f1(labels_N, np.zeros(100, int), 2) == pytest.approx(share / (1 + share))


def f1_of_the_means(labels_N, given_N, n_classes):
    """The other macro F1 of the literature: the harmonic mean of mean precision and mean recall."""
    wanted = {"labels": range(n_classes), "average": "macro", "zero_division": 0}
    precision, recall, *_ = metrics.precision_recall_fscore_support(labels_N, given_N, **wanted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


MACRO_F1_MUTANTS = {
    "only the classes that are there": lambda labels, given, n: metrics.f1_score(labels, given, average="macro"),
    "each class by its texts": lambda labels, given, n: metrics.f1_score(labels, given, average="weighted"),
    "all texts alike": lambda labels, given, n: metrics.f1_score(labels, given, average="micro"),
    "means first": f1_of_the_means,
}


@pytest.mark.parametrize("mutant", MACRO_F1_MUTANTS.values(), ids=MACRO_F1_MUTANTS)
@pytest.mark.filterwarnings("ignore:F-score is ill-defined")
def test_the_check_above_refuses_a_macro_f1_of(mutant):
    assert not is_macro_f1(mutant)


# ---------------------------------------------------------------- probabilities


def drawn_probabilities(seed):
    """Probabilities and labels drawn from them, every third time to one decimal: there, some lie on an edge."""
    rng = np.random.default_rng(seed)
    n_classes, texts = int(rng.integers(2, 5)), int(rng.integers(1, 80))
    tenths_NC = rng.multinomial(10, rng.dirichlet(np.ones(n_classes)), texts)
    probabilities_NC = tenths_NC / 10 if seed % 3 == 0 else rng.dirichlet(np.full(n_classes, 0.7), texts)
    labels_N = (probabilities_NC.cumsum(1)[:, :-1] < rng.random((texts, 1))).sum(1)
    return probabilities_NC, labels_N, int(rng.integers(1, 15)) if seed % 2 else 10


PROBABILITIES = [drawn_probabilities(seed) for seed in range(60)]


def bins_in_loops(probabilities_NC, labels_N, bins):
    """[(confidences, hits)], one of each a bin; a bin is (k / bins, (k + 1) / bins]."""
    for k in range(bins):
        inside = [n for n, row in enumerate(probabilities_NC) if k / bins < max(row) <= (k + 1) / bins]
        yield [max(probabilities_NC[n]) for n in inside], [labels_N[n] == probabilities_NC[n].argmax() for n in inside]


def error_in_loops(probabilities_NC, labels_N, bins):
    found = bins_in_loops(probabilities_NC, labels_N, bins)
    return sum(abs(sum(hits) - sum(confidences)) for confidences, hits in found) / len(labels_N)


def is_calibration_error(measure) -> bool:
    return all(measure(*case) == pytest.approx(error_in_loops(*case), abs=1e-12) for case in PROBABILITIES)


def test_the_calibration_error_is_that_of_a_plain_loop():
    assert is_calibration_error(calibration_error)


def equal_weights(probabilities_NC, labels_N, bins):
    found = reliability(probabilities_NC, labels_N, bins)
    return float(np.nanmean(abs(found.accuracy_K - found.confidence_K)))


def signed(probabilities_NC, labels_N, bins):
    found = reliability(probabilities_NC, labels_N, bins)
    return abs(float(np.nansum(found.count_K * (found.accuracy_K - found.confidence_K)))) / len(labels_N)


def lower_edge_inside(probabilities_NC, labels_N, bins):
    confidence_N, is_right_N = probabilities_NC.max(1), probabilities_NC.argmax(1) == labels_N
    bin_N = np.digitize(confidence_N, np.arange(1, bins) / bins)
    gaps = [abs((is_right_N.astype(float) - confidence_N)[bin_N == k].sum()) for k in range(bins)]
    return sum(gaps) / len(labels_N)


CALIBRATION_MUTANTS = {
    "bins of equal weight": equal_weights,
    "errors that cancel": signed,
    "a bin that holds its lower edge": lower_edge_inside,
    "10 bins always": lambda probabilities, labels, bins: calibration_error(probabilities, labels),
    "the last class's probability": lambda probabilities, labels, bins: calibration_error(
        np.stack([1 - probabilities[:, -1], probabilities[:, -1]], 1), labels == probabilities.shape[1] - 1, bins
    ),
}


@pytest.mark.parametrize("mutant", CALIBRATION_MUTANTS.values(), ids=CALIBRATION_MUTANTS)
def test_the_check_above_refuses_an_error_from(mutant):
    assert not is_calibration_error(mutant)


def test_the_reliability_is_that_of_a_plain_loop_and_empty_bins_are_nan():
    for probabilities_NC, labels_N, bins in PROBABILITIES:
        found = reliability(probabilities_NC, labels_N, bins)
        wanted = list(bins_in_loops(probabilities_NC, labels_N, bins))
        mean = lambda values: np.mean(values) if values else math.nan
        assert found.count_K.tolist() == [len(hits) for _, hits in wanted]
        assert found.confidence_K == pytest.approx([mean(confidences) for confidences, _ in wanted], nan_ok=True)
        assert found.accuracy_K == pytest.approx([mean(hits) for _, hits in wanted], nan_ok=True)
        assert found.edges.tolist() == [k / bins for k in range(bins + 1)]
        assert found.count_K.sum() == len(labels_N)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_probability_on_an_edge_falls_into_the_bin_below_in_either_precision(dtype):
    confidence_N = np.arange(5, 11) / 10
    probabilities_NC = np.stack([confidence_N, 1 - confidence_N], 1).astype(dtype)
    count_K = reliability(probabilities_NC, np.zeros(6, int)).count_K
    assert count_K.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("right", [0, 3, 8, 10])
def test_the_calibration_error_of_one_confidence_is_its_distance_from_the_accuracy(right):
    labels_N = [0] * right + [1] * (10 - right)
    assert calibration_error([[0.8, 0.2]] * 10, labels_N) == pytest.approx(abs(0.8 - right / 10))
    assert calibration_error(np.eye(2, dtype=int)[labels_N], labels_N) == 0.0  # certain, and right


def is_believable(found: Reliability) -> bool:
    """Each bin's accuracy within 4.5 standard errors of its mean probability."""
    error_K = np.sqrt(found.confidence_K * (1 - found.confidence_K) / np.maximum(found.count_K, 1))
    return bool(np.nanmax(abs(found.accuracy_K - found.confidence_K) / error_K) < 4.5)


def test_probabilities_that_made_the_labels_are_believable_and_sharpened_ones_are_not():
    rng = np.random.default_rng(0)
    honest_NC = rng.dirichlet(np.ones(3), 20_000)
    labels_N = (honest_NC.cumsum(1)[:, :-1] < rng.random((20_000, 1))).sum(1)
    boastful_NC = honest_NC**2 / (honest_NC**2).sum(1, keepdims=True)
    assert is_believable(reliability(honest_NC, labels_N))
    assert not is_believable(reliability(boastful_NC, labels_N))
    assert calibration_error(honest_NC, labels_N) < 0.02 < 0.08 < calibration_error(boastful_NC, labels_N)


def mistakes_in_order(probabilities_NC, labels_N, count):
    wrong = [n for n, row in enumerate(probabilities_NC) if row.argmax() != labels_N[n]]
    return sorted(wrong, key=lambda n: (-probabilities_NC[n].max(), n))[:count]


def lists_mistakes(find) -> bool:
    return all(list(find(*case)) == mistakes_in_order(*case) for case in PROBABILITIES)


def test_mistakes_come_most_confident_first_and_equals_in_the_order_of_the_texts():
    assert lists_mistakes(most_confident_mistakes)
    assert most_confident_mistakes([[0.9, 0.1]], [0], 5).tolist() == []
    assert most_confident_mistakes(np.eye(2, dtype=bool), [1, 1], 5).tolist() == [0]  # certain


def by_the_true_class(probabilities_NC, labels_N, count):
    mistakes = most_confident_mistakes(probabilities_NC, labels_N, len(labels_N))
    return mistakes[np.argsort(probabilities_NC[mistakes, labels_N[mistakes]], kind="stable")][:count]


MISTAKE_MUTANTS = {
    "least confident": lambda p, labels, count: most_confident_mistakes(p, labels, len(labels))[::-1][:count],
    "equals backwards": lambda p, labels, count: (
        len(p) - 1 - most_confident_mistakes(p[::-1], labels[::-1], len(labels))[:count]
    ),
    "cut before sorted": lambda p, labels, count: [
        n for n in np.argsort(-p.max(1), kind="stable")[:count] if p[n].argmax() != labels[n]
    ],
    "by the true class": by_the_true_class,
}


@pytest.mark.parametrize("mutant", MISTAKE_MUTANTS.values(), ids=MISTAKE_MUTANTS)
def test_the_check_above_refuses_mistakes(mutant):
    assert not lists_mistakes(mutant)


# ---------------------------------------------------------------- a threshold


def drawn_scores(seed):
    """Scores to one decimal, so that many lie on the threshold; some cases without a positive, some all positive."""
    rng = np.random.default_rng(seed)
    texts = int(rng.integers(1, 40))
    labels_N = (rng.random(texts) < rng.choice([0.0, 0.1, 0.5, 1.0])).astype(int)
    return np.clip(rng.normal(0.3 + 0.4 * labels_N, 0.3), 0, 1).round(1), labels_N, int(rng.integers(0, 11)) / 10


SCORES = [drawn_scores(seed) for seed in range(60)]
SHARES = ("precision", "recall", "f1")


def is_scikit_learns(count) -> bool:
    for scores_N, labels_N, threshold in SCORES:
        found, given_N = count(scores_N, labels_N, threshold), (scores_N >= threshold).astype(int)
        wanted = metrics.precision_recall_fscore_support(
            labels_N, given_N, labels=[0, 1], pos_label=1, average="binary", zero_division=np.nan
        )
        if [getattr(found, name) for name in SHARES] != pytest.approx(wanted[:3], nan_ok=True):
            return False
        if found.accuracy != pytest.approx(metrics.accuracy_score(labels_N, given_N)):
            return False
    return True


@pytest.mark.filterwarnings("ignore:Note that pos_label")
def test_shares_at_a_threshold_are_scikit_learns_nan_where_they_are_of_nothing():
    assert is_scikit_learns(at_threshold)
    found = [at_threshold(*case) for case in SCORES]
    assert all(any(math.isnan(getattr(each, name)) for each in found) for name in SHARES)


def positive_above(scores_N, labels_N, threshold):
    return replace(at_threshold(np.clip(scores_N - 1e-9, 0, 1), labels_N, threshold), threshold=threshold)


def kinds_swapped(scores_N, labels_N, threshold):
    found = at_threshold(scores_N, labels_N, threshold)
    return replace(found, false_positives=found.false_negatives, false_negatives=found.false_positives)


THRESHOLD_MUTANTS = {
    "above, not from it on": positive_above,
    "misses taken for false alarms": kinds_swapped,
    "the other class": lambda scores, labels, threshold: at_threshold(1 - scores, 1 - labels, 1 - threshold),
    "0.5 always": lambda scores, labels, threshold: at_threshold(scores, labels, 0.5),
}


@pytest.mark.parametrize("mutant", THRESHOLD_MUTANTS.values(), ids=THRESHOLD_MUTANTS)
@pytest.mark.filterwarnings("ignore:Note that pos_label")
def test_the_check_above_refuses_a_threshold(mutant):
    assert not is_scikit_learns(mutant)


def test_a_higher_threshold_finds_no_more_and_every_text_stands_in_one_of_four():
    for scores_N, labels_N, _ in SCORES[:15]:
        found = [at_threshold(scores_N, labels_N, threshold / 10) for threshold in range(11)]
        given = [each.true_positives + each.false_positives for each in found]
        assert given == sorted(given, reverse=True)
        assert given[0] == len(labels_N)  # from 0 on: all of them
        for each, positive in zip(found, given, strict=True):
            assert positive + each.true_negatives + each.false_negatives == len(labels_N)
            assert each.true_positives + each.false_negatives == labels_N.sum()


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9, np.float64(0.7)])
def test_a_probability_equal_to_the_threshold_is_positive_in_either_precision(threshold):
    for dtype in (np.float32, np.float64):
        assert at_threshold(np.array([threshold], dtype), [1], threshold).true_positives == 1


# ---------------------------------------------------------------- the bootstrap


def share_right(labels_N, given_N):  # accuracy, without scikit-learn's care: it is called 60,000 times here
    return np.count_nonzero(labels_N == given_N) / len(labels_N)


def bootstrap(labels_N, given_N, metric=share_right, *, seed=0, **options):
    return bootstrap_interval(metric, labels_N, given_N, generator=np.random.default_rng(seed), **options)


def test_the_bootstrap_of_a_share_ends_at_the_quantiles_of_its_binomial():
    """Drawing 100 of 100 texts again, 80 of them right, is throwing a coin of 0.8; the ends lie where chance puts the
    quantiles of 4,000 throws."""
    labels_N, given_N = np.zeros(100, int), (np.arange(100) >= 80).astype(int)
    found = bootstrap(labels_N, given_N, resamples=4000)
    coin, slack = stats.binom(100, 0.8), 4.5 * math.sqrt(0.025 * 0.975 / 4000)
    assert found.value == 0.8
    assert coin.ppf(0.025 - slack) / 100 <= found.low <= coin.ppf(0.025 + slack) / 100
    assert coin.ppf(0.975 - slack) / 100 <= found.high <= coin.ppf(0.975 + slack) / 100


def rate_of_holding(interval, *, repetitions=300, texts=150, share=0.75):
    """In how many of so many measurements the interval holds the share that made them."""
    rng = np.random.default_rng(0)
    labels_N = np.arange(texts) % 2
    held = 0
    for seed in range(repetitions):
        given_N = np.where(rng.random(texts) < share, labels_N, 1 - labels_N)
        held += interval(labels_N, given_N, seed=seed).holds(share)
    return held, repetitions


def holds_95_of_100(interval) -> bool:
    return stats.binomtest(*rate_of_holding(interval), 0.95).pvalue > 1e-4


@pytest.mark.slow
def test_the_bootstrap_holds_the_truth_in_95_of_100_measurements():
    assert holds_95_of_100(partial(bootstrap, resamples=200))


def with_draws(draw):
    """A bootstrap that draws in another way: draw() gives, for labels and for given, the texts of each resample."""

    def interval(labels_N, given_N, seed):
        for_labels_RN, for_given_RN = draw(np.random.default_rng(seed), len(labels_N))
        values_R = (labels_N[for_labels_RN] == given_N[for_given_RN]).mean(1)
        return Interval(share_right(labels_N, given_N), *np.quantile(values_R, [0.025, 0.975]))

    return interval


BOOTSTRAP_MUTANTS = {
    "a quarter of the texts": lambda rng, texts: [rng.integers(texts, size=(200, texts // 4))] * 2,
    "four times the texts": lambda rng, texts: [rng.integers(texts, size=(200, texts * 4))] * 2,
    "no text twice": lambda rng, texts: [rng.permuted(np.tile(np.arange(texts), (50, 1)), axis=1)] * 2,
    "labels without what was given": lambda rng, texts: rng.integers(texts, size=(2, 200, texts)),
}


@pytest.mark.parametrize("draw", BOOTSTRAP_MUTANTS.values(), ids=BOOTSTRAP_MUTANTS)
def test_the_check_above_refuses_a_bootstrap_of(draw):
    assert not holds_95_of_100(with_draws(draw))


def test_the_mutants_above_differ_from_a_bootstrap_in_their_draws_alone():
    assert holds_95_of_100(with_draws(lambda rng, texts: [rng.integers(texts, size=(200, texts))] * 2))


def test_the_same_generator_gives_the_same_interval_and_the_input_is_untouched():
    labels_N, given_N = np.arange(60) % 2, np.arange(60) % 3 % 2
    before = labels_N.copy(), given_N.copy()
    assert bootstrap(labels_N, given_N, seed=1) == bootstrap(labels_N, given_N, seed=1)
    assert bootstrap(labels_N, given_N, seed=1) != bootstrap(labels_N, given_N, seed=2)
    assert np.array_equal((labels_N, given_N), before)


def test_the_bootstrap_takes_any_metric_and_keeps_each_text_together():
    probabilities_NC, labels_N = np.random.default_rng(0).dirichlet([1, 1], 50), np.arange(50) % 2
    for metric, given in (
        (partial(macro_f1, n_classes=2), probabilities_NC.argmax(1)),
        (accuracy, probabilities_NC.argmax(1)),
        (lambda labels_N, probabilities_NC: calibration_error(probabilities_NC, labels_N), probabilities_NC),
    ):
        found = bootstrap(labels_N, given, metric, resamples=40)
        assert found.value == metric(labels_N, given)
        assert found.low < found.high
    together = bootstrap(labels_N, labels_N * 10.0, lambda labels_N, given_N: np.ptp(given_N - labels_N * 10))
    assert together == Interval(0.0, 0.0, 0.0)


# ---------------------------------------------------------------- two on the same texts


def outcomes(only_a, only_b, both, neither=0):
    """is_right of a and of b for so many texts of each kind."""
    kinds = [(True, False)] * only_a + [(False, True)] * only_b + [(True, True)] * both + [(False, False)] * neither
    return np.array(kinds).T


def mcnemar_in_sums(only_a, only_b):
    """Coins thrown for the texts on which the two differ: how often as far from even as these, or farther."""
    differing = only_a + only_b
    far = abs(only_a - only_b)
    return sum(math.comb(differing, k) for k in range(differing + 1) if abs(2 * k - differing) >= far) / 2**differing


TABLES = [(a, b, both, neither) for a in range(8) for b in range(8) for both, neither in ((0, 1), (7, 2), (40, 0))]


def is_mcnemar(compare) -> bool:
    return all(
        compare(*outcomes(a, b, both, neither)).p_value == pytest.approx(mcnemar_in_sums(a, b))
        for a, b, both, neither in TABLES
    )


def test_the_comparison_counts_who_alone_was_right_and_mcnemar_throws_coins_for_them():
    assert is_mcnemar(paired_comparison)
    for a, b, both, neither in TABLES:
        found = paired_comparison(*outcomes(a, b, both, neither))
        assert (found.only_a, found.only_b) == (a, b)
        assert found.difference.value == pytest.approx((a - b) / (a + b + both + neither))
    assert paired_comparison(*outcomes(6, 0, 10)).p_value == pytest.approx(2 * 0.5**6)
    assert paired_comparison(*outcomes(0, 0, 10)).p_value == 1.0


def p_value_mutant(p_value):
    def compare(a_N, b_N):
        found = paired_comparison(a_N, b_N)
        return replace(found, p_value=p_value(found, a_N, b_N))

    return compare


MCNEMAR_MUTANTS = {
    "one side": p_value_mutant(
        lambda found, a, b: (
            stats.binomtest(
                max(found.only_a, found.only_b), max(found.only_a + found.only_b, 1), alternative="greater"
            ).pvalue
        )
    ),
    "the chi-squared approximation": p_value_mutant(
        lambda found, a, b: stats.chi2.sf((found.only_a - found.only_b) ** 2 / max(found.only_a + found.only_b, 1), 1)
    ),
    "two separate tests": p_value_mutant(
        lambda found, a, b: stats.fisher_exact([[a.sum(), (~a).sum()], [b.sum(), (~b).sum()]]).pvalue
    ),
}


@pytest.mark.parametrize("mutant", MCNEMAR_MUTANTS.values(), ids=MCNEMAR_MUTANTS)
def test_the_check_above_refuses_a_p_value_of(mutant):
    assert not is_mcnemar(mutant)


def test_the_interval_of_the_difference_is_that_of_rs_propcis():
    """diffpropci.mp(b = 40, c = 20, n = 160) of R's PropCIs, which subtracts the other way round."""
    found = paired_comparison(*outcomes(40, 20, 70, 30)).difference
    assert (found.low, found.high) == pytest.approx((0.03089632, 0.21601726), abs=1e-8)


def test_the_interval_of_the_difference_turns_with_a_and_b_holds_its_value_and_has_a_width():
    for table in TABLES:
        a_N, b_N = outcomes(*table)
        found, turned = paired_comparison(a_N, b_N).difference, paired_comparison(b_N, a_N).difference
        assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))
        assert -1 <= found.low < found.high <= 1
        assert found.holds(found.value)
    assert paired_comparison([True], [False]).difference.holds(1.0)


def coverages(interval, texts=10):
    """How often the interval holds the true difference, exactly: summed over all outcomes of so many texts."""
    counts = [(a, b) for a in range(texts + 1) for b in range(texts + 1 - a)]
    a_X, b_X = np.array(counts).T
    low_X, high_X = np.array([interval(a, b, texts) for a, b in counts]).T
    for share_a, share_b in ((0.02, 0.02), (0.1, 0.1), (0.2, 0.05), (0.3, 0.1), (0.4, 0.3), (0.5, 0.02)):
        shares = [share_a, share_b, 1 - share_a - share_b]
        chance_X = stats.multinomial.pmf(np.stack([a_X, b_X, texts - a_X - b_X], 1), texts, shares)
        yield chance_X[(low_X <= share_a - share_b) & (share_a - share_b <= high_X)].sum()


def holds_its_word(interval) -> bool:
    """Hardly ever below 95 of 100, and not far above where the texts that differ are many."""
    found = list(coverages(interval))
    return min(found) > 0.94 and found[-2] < 0.97


def ours(only_a, only_b, texts):
    found = paired_comparison(*outcomes(only_a, only_b, texts - only_a - only_b)).difference
    return found.low, found.high


def plain_wald(only_a, only_b, texts):
    middle = (only_a - only_b) / texts
    reach = 1.96 * math.sqrt(((only_a + only_b) / texts - middle**2) / texts)
    return middle - reach, middle + reach


def as_if_on_other_texts(only_a, only_b, texts):
    """As if each accuracy had been measured on its own texts; a third of those on which the two agree are right."""
    both = (texts - only_a - only_b) // 3
    a, b = (only_a + both) / texts, (only_b + both) / texts
    reach = 1.96 * math.sqrt((a * (1 - a) + b * (1 - b)) / texts)
    return a - b - reach, a - b + reach


def twice_as_wide(only_a, only_b, texts):
    low, high = ours(only_a, only_b, texts)
    return low - (high - low) / 2, high + (high - low) / 2


def test_the_interval_of_the_difference_holds_the_truth_in_95_of_100_measurements():
    assert holds_its_word(ours)


@pytest.mark.parametrize("mutant", [plain_wald, as_if_on_other_texts, twice_as_wide])
def test_the_check_above_refuses_an_interval(mutant):
    assert not holds_its_word(mutant)


def test_texts_that_both_got_right_change_the_difference_and_not_the_p_value():
    few, many = paired_comparison(*outcomes(9, 2, 0, 5)), paired_comparison(*outcomes(9, 2, 500, 5))
    assert few.p_value == many.p_value
    assert few.difference.value > many.difference.value


# ---------------------------------------------------------------- the bag of words


def test_the_fitted_bag_of_words_is_the_one_that_predicts_and_its_probabilities_agree():
    texts = ["good film", "good actor", "bad plot", "bad music", "a good one", "so bad"]
    labels_N, asked = np.array([1, 1, 0, 0, 1, 0]), ["good music", "bad film", "unheard of"]
    judge = fit_bag_of_words(texts, labels_N)
    probabilities_NC = judge.predict_proba(asked)
    assert judge.predict(asked).tolist() == bag_of_words_predictions(texts, labels_N, asked).tolist()
    assert probabilities_NC[:2].argmax(1).tolist() == [1, 0]
    assert most_confident_mistakes(probabilities_NC[:2], [0, 0], 3).tolist() == [0]


# ---------------------------------------------------------------- what is refused

P = [[0.9, 0.1], [0.4, 0.6]]
RNG = np.random.default_rng(0)
BAD_CLASSES = [
    ([0, 1], [0], "2 labels and 1 given"),
    ([], [], "at least one text"),
    ([[0, 1]], [0, 1], r"labels have shape \(1, 2\)"),
    ([0, 1], [[0], [1]], r"given classes have shape \(2, 1\)"),
    ([0.0, 1.0], [0, 1], "labels are float64.*integer"),
    ([0, 1], [0, math.nan], "given classes are float64"),
    (["pos", "neg"], [0, 1], "labels are <U3"),
    ([0, -100], [0, 1], "labels hold -100.*from 0.*leave out"),
    ([0, 1], [0, -1], "given classes hold -1"),
]
BAD_PROBABILITIES = [
    ([0.9, 0.4], [0, 1], r"shape \(2,\).*\[N, C\]"),
    (np.zeros((0, 2)), [], r"shape \(0, 2\)"),
    ([[1.0], [1.0]], [0, 0], r"shape \(2, 1\).*2 classes"),
    ([[2.0, -1.0]], [0], "hold 2.0.*softmax"),
    ([[math.nan, 1.0]], [0], "hold nan"),
    ([[math.inf, 1.0]], [0], "sum to inf"),
    ([[0.9, 0.1], [0.9, 0.9]], [0, 0], "text 1 sum to 1.8.*softmax"),
    ([[0.2, 0.2]], [0], "text 0 sum to 0.4"),
    (P, [0], "2 rows of probabilities and 1 labels"),
    (P, [0, 2], "labels hold 2.*from 0 to 1"),
]
REFUSED = [
    *[(lambda a=a, b=b: accuracy(a, b), words) for a, b, words in BAD_CLASSES],
    *[(lambda a=a, b=b: confusion(a, b, 2), words) for a, b, words in BAD_CLASSES],
    *[(lambda a=a, b=b: macro_f1(a, b, 2), words) for a, b, words in BAD_CLASSES],
    (lambda: confusion([0, 2], [0, 1], 2), "labels hold 2.*from 0 to 1"),
    (lambda: macro_f1([0, 1], [3, 1], 3), "given classes hold 3.*from 0 to 2"),
    (lambda: confusion([0, 0], [0, 0], 1), "n_classes is 1.*from 2"),
    (lambda: macro_f1([0, 0], [0, 0], 2.0), "n_classes is 2.0.*whole number"),
    *[(lambda p=p, labels=labels: reliability(p, labels), words) for p, labels, words in BAD_PROBABILITIES],
    *[(lambda p=p, labels=labels: calibration_error(p, labels), words) for p, labels, words in BAD_PROBABILITIES],
    *[
        (lambda p=p, labels=labels: most_confident_mistakes(p, labels, 1), words)
        for p, labels, words in BAD_PROBABILITIES
    ],
    (lambda: reliability(P, [0, 1], bins=0), "bins is 0.*from 1"),
    (lambda: calibration_error(P, [0, 1], bins=2.5), "bins is 2.5.*whole number"),
    (lambda: most_confident_mistakes(P, [0, 1], 0), "count is 0.*from 1"),
    (lambda: most_confident_mistakes(P, [0, 1], math.nan), "count is nan"),
    (lambda: at_threshold(P, [0, 1], 0.5), r"shape \(2, 2\).*probabilities_NC\[:, 1\]"),
    (lambda: at_threshold([0.5], [0, 1], 0.5), r"shape \(1,\), labels \(2,\)"),
    (lambda: at_threshold([], [], 0.5), "at least one text"),
    (lambda: at_threshold([0.5, 1.5], [0, 1], 0.5), "hold 1.5.*from 0 to 1"),
    (lambda: at_threshold([0.5, math.nan], [0, 1], 0.5), "hold nan"),
    (lambda: at_threshold([0.5, 0.5], [0, 2], 0.5), "labels hold 2.*from 0 to 1"),
    (lambda: at_threshold([0.5, 0.5], [0, 1], 1.1), "threshold is 1.1.*from 0 to 1"),
    (lambda: at_threshold([0.5, 0.5], [0, 1], math.nan), "threshold is nan"),
    (lambda: bootstrap([0, 1], [0]), r"shape \(2,\), what is given \(1,\)"),
    (lambda: bootstrap([], []), "at least 2 texts"),
    (lambda: bootstrap([0], [0]), "at least 2 texts"),
    (lambda: bootstrap([[0, 1]], [[0, 1]]), r"labels have shape \(1, 2\)"),
    (lambda: bootstrap([0, 1], [0, 1], resamples=39), "resamples is 39.*from 40"),
    (lambda: bootstrap_interval(accuracy, [0, 1], [0, 1], generator=0), "generator is a int.*default_rng"),
    (lambda: bootstrap([0, 1], [0, 1], lambda labels, given: math.nan, resamples=50), "51 of 51 samples.*more texts"),
    (lambda: paired_comparison([True], [True, False]), "1 texts for a and 2 for b.*same texts"),
    (lambda: paired_comparison([], []), r"is_right_a has shape \(0,\).*at least one"),
    (lambda: paired_comparison([True], [[True]]), r"is_right_b has shape \(1, 1\)"),
    (lambda: paired_comparison([True, False], [0, 2]), "is_right_b holds.*labels == given"),
    (lambda: paired_comparison([0.5, 1.0], [True, False]), "is_right_a holds.*labels == given"),
    (lambda: fit_bag_of_words(["good", "bad"], [1]), "inconsistent"),
    (lambda: fit_bag_of_words([], []), "empty vocabulary"),
    (lambda: fit_bag_of_words(["good", "bad"], [1, 1]), "classes"),
]


@pytest.mark.parametrize(("act", "words"), REFUSED)
def test_what_cannot_be_measured_is_refused_with_a_remedy(act, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        act()
