"""Figures that can be trusted: intervals that hold what they promise, baselines, and a probe that finds nothing where
nothing is."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import differ, packed, tiny

from course_lib.data import Review, course_tokenizer, pad, reviews_of
from course_lib.evaluation import (
    COMPARISON_TOKENS,
    Interval,
    bag_of_words_accuracy,
    first_tokens,
    frozen_features,
    labelled_sample,
    mean_interval,
    probe_accuracy,
    proportion_interval,
    uniform_loss,
    unigram_loss,
)
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

TOKENIZER = course_tokenizer()
FP32 = torch.float32
LONG = 160  # room for the comparison's tokens and their frame
LONG_TEXT = next(r.text for r in reviews_of("dev", "imdb") if len(TOKENIZER.encode(r.text)) > COMPARISON_TOKENS + 20)


# ---------------------------------------------------------------- intervals


def upper_bound(successes, trials):
    """The share at which so few successes become a rarity of 2.5 %, found by halving the binomial sum."""
    low, high = successes / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = sum(math.comb(trials, k) * middle**k * (1 - middle) ** (trials - k) for k in range(successes + 1))
        low, high = (middle, high) if tail > 0.025 else (low, middle)
    return high if successes < trials else 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 80), (1, 1)])
def test_the_interval_of_a_share_is_clopper_and_pearsons(successes, trials):
    interval = proportion_interval(successes, trials)
    assert interval.value == successes / trials
    assert interval.high == pytest.approx(upper_bound(successes, trials), abs=1e-9)
    assert interval.low == pytest.approx(1 - upper_bound(trials - successes, trials), abs=1e-9)


def normal_approximation(successes, trials):
    share = successes / trials
    reach = 1.96 * math.sqrt(share * (1 - share) / trials)
    return Interval(share, share - reach, share + reach)


def worst_coverage(interval, trials=30) -> float:
    """How often the interval holds the truth where it does so least, exactly: summed over all outcomes."""
    intervals = [interval(k, trials) for k in range(trials + 1)]
    return min(
        sum(stats.binom.pmf(range(trials + 1), trials, share)[[found.holds(share) for found in intervals]])
        for share in np.linspace(0.01, 0.99, 50)
    )


def test_the_interval_of_a_share_holds_the_truth_in_95_of_100_measurements_or_more():
    assert worst_coverage(proportion_interval) >= 0.95
    assert worst_coverage(normal_approximation) < 0.6  # the control: the rule of thumb, at the ends


def by_the_normal(values):
    mean, error = np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    return Interval(mean, mean - 1.96 * error, mean + 1.96 * error)


def by_the_wrong_spread(values):
    mean, error = np.mean(values), np.std(values) / math.sqrt(len(values))
    reach = stats.t.ppf(0.975, len(values) - 1) * error
    return Interval(mean, mean - reach, mean + reach)


def holds_95_of_100(interval) -> bool:
    """5 seeds, 4,000 times over; what is believable is the binomial's."""
    rng = np.random.default_rng(0)
    held = sum(interval(rng.normal(70, 3, 5)).holds(70) for _ in range(4000))
    return stats.binomtest(held, 4000, 0.95).pvalue > 1e-4


@pytest.mark.slow
def test_the_interval_of_a_mean_over_seeds_holds_the_truth_in_95_of_100_measurements():
    assert holds_95_of_100(mean_interval)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [by_the_normal, by_the_wrong_spread])
def test_the_check_above_refuses_an_interval(mutant):
    assert not holds_95_of_100(mutant)


def test_the_interval_of_a_mean_is_students():
    values = [3.1, 4.7, 2.2, 3.9]
    interval = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.value, interval.low, interval.high) == pytest.approx((np.mean(values), low, high))
    assert mean_interval([2.0, 2.0]) == Interval(2.0, 2.0, 2.0)


# ---------------------------------------------------------------- what knows nothing


def unigram_in_loops(train, targets, size):
    counts = Counter(train)
    return -sum(math.log((counts[t] + 1) / (len(train) + size)) for t in targets) / len(targets)


def test_the_unigram_loss_is_that_of_counting():
    rng = random.Random(0)
    train, targets = ([rng.randrange(12) for _ in range(n)] for n in (300, 70))
    vocabulary = Vocabulary(15)
    loss = unigram_loss(torch.tensor(train).view(3, 100), torch.tensor(targets), vocabulary)
    assert loss == pytest.approx(unigram_in_loops(train, targets, 15), rel=1e-12)
    assert loss < uniform_loss(vocabulary) == math.log(15)
    unseen = unigram_loss(torch.tensor(train), torch.tensor([14]), vocabulary)
    assert unseen == pytest.approx(math.log(315))  # never seen, and not impossible


def test_labels_that_are_no_targets_are_left_out_of_the_unigram_loss():
    """-100 as an index would quietly mean the hundredth id from the end."""
    ids, vocabulary = torch.arange(150), Vocabulary(200)
    labels = torch.tensor([[5, IGNORE_INDEX, 160]])
    assert unigram_loss(ids, labels, vocabulary) == unigram_loss(ids, torch.tensor([5, 160]), vocabulary)


def test_the_unigram_loss_of_the_training_text_itself_is_close_to_its_entropy():
    ids = packed().ids_NT
    share = torch.bincount(ids.flatten()).double() / ids.numel()
    entropy = -(share[share > 0] * share[share > 0].log()).sum().item()
    loss = unigram_loss(ids, ids.flatten(), Vocabulary(int(ids.max()) + 1))
    assert entropy < loss < uniform_loss(TOKENIZER.vocabulary)


# ---------------------------------------------------------------- what every method reads


def test_first_tokens_are_the_stretch_that_the_model_reads():
    texts = [review.text for review in reviews_of("dev", "imdb")[:40]] + ["", "short", "naïve café, 你好 " * 30]
    stretches = first_tokens(texts, TOKENIZER)
    read_BT = pad(TOKENIZER.encode_all(texts), TOKENIZER.vocabulary, length=COMPARISON_TOKENS + 2, frame=("bos", "eos"))
    shorter = 0
    for text, stretch, row in zip(texts, stretches, read_BT, strict=True):
        whole, cut = TOKENIZER.normalize(text), stretch.rstrip("\ufffd")  # a cut may go through a character
        assert whole.startswith(cut)
        ids = row[TOKENIZER.vocabulary.is_ordinary_V[row]].tolist()
        assert TOKENIZER.decode(ids) == stretch
        assert len(ids) <= COMPARISON_TOKENS
        shorter += len(cut) < len(whole)
    assert shorter >= 30  # most real reviews are cut


@pytest.mark.parametrize("count", [1, 5])
def test_first_tokens_are_as_many_as_asked_for(count):
    assert first_tokens(["a good film, and long"], TOKENIZER, count) == [
        TOKENIZER.decode(TOKENIZER.encode("a good film, and long")[:count])
    ]


# ---------------------------------------------------------------- frozen features

TEXTS = [review.text[: 60 + 37 * n] for n, review in enumerate(reviews_of("dev", "imdb")[:13])]


def features(model, texts=TEXTS, **options):
    return torch.from_numpy(frozen_features(model, texts, TOKENIZER, dtype=FP32, **options))


@pytest.fixture(scope="module", params=["causal", "masked", "permuted", "span"])
def model(request):
    return tiny(request.param, max_len=LONG)


def test_features_do_not_depend_on_the_batch_nor_on_the_order(model):
    whole = features(model)
    assert whole.shape == (len(TEXTS), model.config.d_model)
    assert whole.dtype == FP32
    for size in (1, 4, 100):
        assert differ(features(model, batch_size=size), whole) < 1e-5
    backwards = features(model, TEXTS[::-1])
    assert differ(backwards.flip(0), whole) < 1e-5
    assert differ(backwards, whole) > 0.01


def test_features_are_those_of_a_text_alone_between_the_tokens_that_the_model_knows(model):
    whole, vocabulary = features(model), TOKENIZER.vocabulary
    for frame in (("bos", "eos"), ("cls", "sep")):
        found = features(model, frame=frame)
        for n, text in enumerate(TEXTS):
            first, last = (getattr(vocabulary, name) for name in frame)
            ids_BT = torch.tensor([[first, *TOKENIZER.encode(text)[:COMPARISON_TOKENS], last]])
            with torch.no_grad():
                hidden = model.eval().encode(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool))
            assert differ(found[n], hidden[0].mean(0)) < 1e-5
    assert differ(found, whole) > 1e-3


def test_features_read_so_much_of_a_text_and_no_more(model):
    ids = TOKENIZER.encode(LONG_TEXT)
    changed_behind = TOKENIZER.decode(ids[:COMPARISON_TOKENS]) + " something else entirely"
    changed_within = "Never. " + LONG_TEXT
    assert len(TOKENIZER.encode(changed_behind)) > COMPARISON_TOKENS
    one, same, other = features(model, [LONG_TEXT, changed_behind, changed_within], batch_size=1)
    assert TOKENIZER.encode(changed_behind)[:COMPARISON_TOKENS] == ids[:COMPARISON_TOKENS]
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_features_are_the_state_of_no_training_and_leave_the_mode_as_it_was():
    model = tiny("masked", max_len=LONG, dropout=0.5).train()
    assert torch.equal(features(model), features(model))
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    short = tiny("masked", max_len=40).train()
    with pytest.raises(ValueError, match="sequence length 128 exceeds max_len 40"):
        features(short, [LONG_TEXT])
    assert short.training


# ---------------------------------------------------------------- probes


def points(n, seed, gap):
    """Two clouds in 20 dimensions, `gap` apart in a direction that is no axis."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)
    return rng.normal(size=(n, 20)) + gap * (labels[:, None] - 0.5), labels


def test_a_probe_is_perfect_on_features_that_tell_and_at_chance_on_shuffled_labels():
    (train_NE, train_labels), (test_NE, test_labels) = points(400, 0, 6.0), points(1000, 1, 6.0)
    assert probe_accuracy(train_NE, train_labels, test_NE, test_labels) == 1.0
    shuffled = np.random.default_rng(2).permutation
    hits = [
        round(1000 * probe_accuracy(train_NE, shuffled(train_labels), test_NE, shuffled(test_labels))) for _ in range(3)
    ]
    for right in hits:
        assert proportion_interval(right, 1000).holds(0.5) or stats.binomtest(right, 1000, 0.5).pvalue > 1e-4


def test_a_probe_reads_features_whatever_their_scale():
    (train_NE, train_labels), (test_NE, test_labels) = points(200, 3, 1.0), points(500, 4, 1.0)
    scale, shift = 10.0 ** np.arange(-10, 10), np.arange(20) * 7.0
    plain = probe_accuracy(train_NE, train_labels, test_NE, test_labels)
    scaled = probe_accuracy(
        train_NE * scale + shift * scale, train_labels, test_NE * scale + shift * scale, test_labels
    )
    assert scaled == plain
    assert 0.7 < plain < 1.0


def test_a_bag_of_words_counts_words_and_pairs_and_learns_nothing_from_shuffled_labels():
    rng = random.Random(5)
    filler = ["film", "scene", "actor", "plot", "music"]
    labels = np.arange(200) % 2
    texts = [" ".join([*rng.choices(filler, k=8), "good" if label else "bad"]) for label in labels]
    assert bag_of_words_accuracy(texts[:100], labels[:100], texts[100:], labels[100:]) == 1.0
    ends = {1: "not good but bad", 0: "not bad but good"}
    pairs = [" ".join([*rng.choices(filler, k=3), ends[label]]) for label in labels]
    assert bag_of_words_accuracy(pairs[:100], labels[:100], pairs[100:], labels[100:]) == 1.0
    noise = np.random.default_rng(6).permutation(labels)
    right = round(100 * bag_of_words_accuracy(texts[:100], noise[:100], texts[100:], noise[100:]))
    assert stats.binomtest(right, 100, 0.5).pvalue > 1e-4


# ---------------------------------------------------------------- labelled samples

POOL = [Review(f"text {n}", n % 3 % 2, "made up") for n in range(300)] + [Review("?", None, "made up")] * 50


@pytest.mark.parametrize("count", [2, 10, 200])
def test_a_labelled_sample_is_balanced_distinct_and_fixed_by_its_seed(count):
    sample = labelled_sample(POOL, count, seed=1)
    assert Counter(review.label for review in sample) == {0: count // 2, 1: count // 2}
    assert len({review.text for review in sample}) == count
    assert labelled_sample(POOL, count, seed=1) == sample
    assert labelled_sample(POOL, count, seed=2) != sample


def test_labelled_samples_draw_every_review_equally_often_and_mix_the_kinds():
    """Of the 200 negative reviews each sample of 40 holds a tenth; in each place half of the labels are positive."""
    drawn, positive_in = Counter(), np.zeros(40)
    for seed in range(300):
        sample = labelled_sample(POOL, 40, seed)
        drawn.update(review.text for review in sample if review.label == 0)
        positive_in += [review.label for review in sample]
    assert len(drawn) == 200
    assert max(abs(count - 30) for count in drawn.values()) < 5 * math.sqrt(300 * 0.1 * 0.9)
    assert np.abs(positive_in - 150).max() < 5 * math.sqrt(300 * 0.25)


def test_no_labelled_text_is_a_text_of_the_test_split():
    tests = {review.identity for review in reviews_of("test", "imdb")}
    for seed in range(3):
        sample = labelled_sample(reviews_of("train", "imdb")[:4000], 2000, seed)
        assert not tests & {review.identity for review in sample}
        assert {review.split for review in sample} == {"train"}
