"""A way of reading is taught from samples of labels: what it then gets right is what its own classifiers say."""

import numpy as np
import pytest

from course_lib import runs
from course_lib.data import course_tokenizer, reviews_of
from course_lib.evaluation import (
    bag_of_words_accuracy,
    first_tokens,
    frozen_features,
    majority_baseline,
    probe_accuracy,
)
from course_lib.pretrained import load_checkpoint

PROBE = runs.SentenceProbe(labels=(10, 20), seeds=2, tests=30)
TESTS = PROBE.test_reviews


def parts(sample):
    return [([r.text for r in part], np.array([r.label for r in part])) for part in (sample, TESTS)]


@pytest.fixture(scope="module")
def words():
    return runs.teach(runs.bag_of_words(), PROBE)


@pytest.fixture(scope="module")
def features():
    return runs.teach(runs.frozen(load_checkpoint("encoder"), course_tokenizer()), PROBE)


def test_the_sentences_are_of_their_source_and_split():
    assert {review.source for review in TESTS} == {"rotten_tomatoes"}
    assert set(TESTS) <= set(reviews_of("test", "rotten_tomatoes"))
    assert {review.split for review in PROBE.sample(20, 0)} == {"train"}
    assert {review.source for review in runs.SentimentProbe(tests=5).test_reviews} == {"imdb"}


def test_a_bag_of_words_scores_what_the_librarys_does(words):
    tokenizer = course_tokenizer()
    for labels, seed in ((10, 0), (20, 1)):
        (texts, learned), (tests, wanted) = parts(PROBE.sample(labels, seed))
        score = bag_of_words_accuracy(first_tokens(texts, tokenizer), learned, first_tokens(tests, tokenizer), wanted)
        assert words.accuracies(labels)[seed] == pytest.approx(score)


def test_frozen_features_score_what_the_librarys_probe_does(features):
    (texts, learned), (tests, wanted) = parts(PROBE.sample(20, 1))
    encoder, tokenizer = load_checkpoint("encoder"), course_tokenizer()
    train_NE, test_NE = (frozen_features(encoder, part, tokenizer) for part in (texts, tests))
    assert features.accuracies(20)[1] == pytest.approx(probe_accuracy(train_NE, learned, test_NE, wanted), abs=1 / 30)


def test_a_text_is_judged_as_it_is_in_the_tests(words, features):
    for taught in (words, features):
        for review, is_right in zip(TESTS[:8], taught.right[20, 0], strict=False):
            probability = taught.positive(review.text, 20, 0)
            assert ((probability > 0.5) == review.label) == is_right or abs(probability - 0.5) < 1e-3


def test_samples_differ(features):
    assert features.positive(TESTS[0].text, 20, 0) != features.positive(TESTS[0].text, 20, 1)


def test_what_was_not_taught_is_refused(words):
    with pytest.raises(ValueError, match=r"choose one of \[10, 20\]"):
        words.accuracies(30)
    with pytest.raises(ValueError, match="labels 20, sample 2: choose one of"):
        words.positive("a film", 20, 2)
    with pytest.raises(ValueError, match="the text is empty"):
        words.positive("  \n", 20, 0)


def test_the_majority_of_the_training_labels_is_what_counts():
    assert majority_baseline([2, 2, 0], [2, 0, 0, 0]) == 0.25
    assert majority_baseline([0, 1], [1, 1, 0, 0, 0]) == 0.6  # of equally frequent ones the smallest
    with pytest.raises(ValueError, match="training labels"):
        majority_baseline([], [1])
