"""What counting, compressing and predicting spend on a text, what is repeated and copied in it, and how a loss falls:
each against a slower twin, and with a control that must fail."""

import itertools
import math
import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from tiny import corrupted, differ, tiny

from course_lib.data import course_tokenizer, reviews_of
from course_lib.evaluation import (
    COMPRESSORS,
    Bigram,
    PowerLaw,
    bits_per_byte,
    compressed_bits_per_byte,
    copied_share,
    distinct_share,
    stream_nats,
    uniform_loss,
    unigram_loss,
)
from course_lib.training import held_out_loss
from course_lib.vocabulary import Vocabulary

TOKENIZER = course_tokenizer()
FP32 = torch.float32
SIZE = 12  # of the small vocabulary; its last two ids are in no stream below
STREAMS = {
    "random": random.Random(0).choices(range(10), k=60),
    "no pair twice": [1, 2, 3, 4, 5, 1, 3],
    "no pair once": [1, 2] * 4 + [1],
    "two tokens": [3, 3],
}


@cache
def stream(split, n_reviews):
    texts = [review.text for review in reviews_of(split)[:n_reviews]]
    return torch.tensor(list(itertools.chain.from_iterable(TOKENIZER.encode_all(texts))))


# ---------------------------------------------------------------- pairs of words


def kneser_ney(ids, size=SIZE, *, by_kinds=True):
    """Interpolated Kneser-Ney as it is defined. by_kinds: the back-off counts how many others a token follows, not how
    often it stands there."""
    pairs = Counter(itertools.pairwise(ids))
    once, twice = (sum(n == count for n in pairs.values()) for count in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5

    def back_off(second):
        weight = lambda token: 1 + sum(1 if by_kinds else n for (_, b), n in pairs.items() if b == token)
        return weight(second) / sum(map(weight, range(size)))

    def probability(first, second):
        behind = {b: n for (a, b), n in pairs.items() if a == first}
        if not behind:
            return back_off(second)
        begun = sum(behind.values())
        return max(behind.get(second, 0) - discount, 0) / begun + discount * len(behind) / begun * back_off(second)

    return np.array([[probability(first, second) for second in range(size)] for first in range(size)])


def table(model):
    """[first, second]: the probability of every pair."""
    rows = []
    for first in range(SIZE):
        pairs = torch.tensor([[first, second] for second in range(SIZE)]).flatten()
        rows.append(np.exp(-model.nats(pairs)[::2]))
    return np.array(rows)


@pytest.mark.parametrize("name", STREAMS)
def test_a_bigram_is_interpolated_kneser_ney(name):
    ids = STREAMS[name]
    found = table(Bigram.fit(torch.tensor(ids), Vocabulary(SIZE)))
    assert found == pytest.approx(kneser_ney(ids), rel=1e-12)
    assert found.sum(1) == pytest.approx(1, rel=1e-12)
    assert found.min() > 0


def test_the_comparison_above_tells_counting_kinds_from_counting_pairs():
    ids = STREAMS["random"]
    wrong = kneser_ney(ids, by_kinds=False)
    assert wrong.sum(1) == pytest.approx(1)
    assert np.abs(table(Bigram.fit(torch.tensor(ids), Vocabulary(SIZE))) / wrong - 1).max() > 0.01


def test_a_bigram_beats_counting_words_on_held_out_reviews_and_on_their_words_in_disorder_it_does_not():
    train_N, test_N = stream("train", 200), stream("dev", 30)
    model = Bigram.fit(train_N, TOKENIZER.vocabulary)
    mixed_N = test_N[torch.from_numpy(np.random.default_rng(0).permutation(len(test_N)))]
    in_order, in_disorder = model.nats(test_N), model.nats(mixed_N)
    assert len(in_order) == len(test_N) - 1
    assert np.isfinite(in_order).all() and np.isfinite(in_disorder).all()
    one_by_one = unigram_loss(train_N, test_N, TOKENIZER.vocabulary)
    assert in_order.mean() < one_by_one - 0.5
    assert in_disorder.mean() > one_by_one
    assert one_by_one < uniform_loss(TOKENIZER.vocabulary)


def test_a_bigram_bets_on_what_it_has_never_seen_as_if_it_knew_the_context_and_the_word_alone():
    model = Bigram.fit(torch.tensor(STREAMS["random"]), Vocabulary(SIZE))
    never = SIZE - 1
    assert np.isfinite(model.nats(torch.tensor([never, never, 0, never]))).all()
    after_unseen = table(model)[never]
    assert after_unseen[0] > after_unseen[never] > 0


# ---------------------------------------------------------------- a model on a stream

LENGTH = 9


@pytest.fixture(scope="module")
def decoder():
    return tiny("causal").eval()


def one_by_one(model, ids_N, length=LENGTH, *, step=None):
    """Every token predicted alone, from the beginning of its window. step: from one window to the next."""
    step, nats = step or length - 1, []
    for n in range(1, len(ids_N)):
        start = (n - 1) // step * step
        with torch.no_grad():
            scores_V = model(ids_N[None, start:n]).logits[0, -1]
        nats.append(-scores_V.log_softmax(-1)[ids_N[n]].item())
    return torch.tensor(nats, dtype=torch.float64)


def spent(model, ids_N, **options):
    return torch.from_numpy(stream_nats(model, ids_N, **({"length": LENGTH, "dtype": FP32} | options)))


@pytest.mark.parametrize("count", [2, 5, LENGTH - 1, LENGTH, LENGTH + 1, 3 * LENGTH - 2, 25, 31])
def test_each_token_of_a_stream_is_predicted_once_from_the_beginning_of_its_window(decoder, count):
    ids_N = stream("dev", 2)[:count]
    found = spent(decoder, ids_N)
    assert found.shape == (count - 1,)
    assert found.dtype == torch.float64
    assert differ(found, one_by_one(decoder, ids_N)) < 1e-5
    for size in (1, 2):
        assert differ(spent(decoder, ids_N, batch_size=size), found) < 1e-5


def test_the_comparison_above_tells_windows_that_overlap_by_one_from_others(decoder):
    ids_N = stream("dev", 2)[:25]
    found = spent(decoder, ids_N)
    for wrong in (LENGTH, LENGTH - 2):
        assert differ(found, one_by_one(decoder, ids_N, step=wrong)) > 1e-3
    assert differ(found, spent(decoder, ids_N, length=LENGTH + 1)) > 1e-3


def test_one_window_is_what_held_out_loss_measures_and_the_longest_is_what_is_read_unless_told(decoder):
    ids_N = stream("dev", 2)[: decoder.config.max_len]
    found = spent(decoder, ids_N, length=None)
    assert found.mean().item() == pytest.approx(held_out_loss(decoder, [corrupted("causal", ids_N[None])], dtype=FP32))
    assert differ(found, spent(decoder, ids_N, length=decoder.config.max_len)) == 0
    assert differ(found, spent(decoder, ids_N)) > 1e-3


def test_a_stream_is_measured_without_dropout_and_the_mode_comes_back():
    model, ids_N = tiny("causal", dropout=0.5).train(), stream("dev", 2)[:30]
    found = spent(model, ids_N)
    assert model.training
    assert torch.equal(found, spent(model.eval(), ids_N))
    assert not model.training
    with pytest.raises(ValueError, match="token id 8192 lies outside"):
        spent(model.train(), torch.tensor([8191, 8192]))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------- bits per byte


def test_bits_per_byte_are_eight_for_bytes_that_tell_nothing_and_none_for_what_is_certain():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8)
    assert bits_per_byte(math.log(2), 1) == pytest.approx(1)
    assert bits_per_byte(0.0, 5) == 0


def test_bits_per_byte_do_not_depend_on_how_the_text_is_cut_while_nats_per_token_do():
    """Two readers that believe the same: one byte at a time, or pairs of bytes as tokens."""
    text = reviews_of("dev")[0].text.encode()
    text = text[: len(text) // 2 * 2]
    share = {byte: count / len(text) for byte, count in Counter(text).items()}
    by_bytes = [-math.log(share[byte]) for byte in text]
    by_pairs = [-math.log(share[a] * share[b]) for a, b in zip(text[::2], text[1::2], strict=True)]
    assert bits_per_byte(sum(by_pairs), len(text)) == pytest.approx(bits_per_byte(sum(by_bytes), len(text)), rel=1e-9)
    assert np.mean(by_pairs) == pytest.approx(2 * np.mean(by_bytes))


def hex_text(length, seed=0):
    return f"{random.Random(seed).getrandbits(4 * length):0{length}x}"


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressor_pays_nothing_for_what_it_has_read_and_four_bits_for_a_random_hex_digit(name):
    read, unread = hex_text(20_000), hex_text(20_000, seed=1)
    assert compressed_bits_per_byte(name, read, read) < (0.05 if name == "xz" else 2.0)  # bzip2 codes it again
    assert compressed_bits_per_byte(name, read, unread) == pytest.approx(4, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESSORS)
def test_which_text_was_read_and_which_is_measured_matters(name):
    review, digits = " ".join(r.text for r in reviews_of("train")[:20]), hex_text(20_000)
    assert compressed_bits_per_byte(name, review, digits) == pytest.approx(4, rel=0.15)
    assert compressed_bits_per_byte(name, digits, review) < 3.8
    assert compressed_bits_per_byte(name, review, review[5000:9000]) < 0.7 * compressed_bits_per_byte(
        name, digits, review[5000:9000]
    )


@pytest.mark.slow
def test_compressed_bits_are_what_the_size_grows_by_for_each_byte_of_the_text_behind():
    train, test = "aé" + hex_text(500), "é" * 400 + hex_text(300, seed=1)
    for name, compress in COMPRESSORS.items():
        grown = len(compress((train + test).encode())) - len(compress(train.encode()))
        assert compressed_bits_per_byte(name, train, test) == 8 * grown / (2 * 400 + 300)


@pytest.mark.slow
def test_bzip2_forgets_what_lies_a_block_behind():
    early = hex_text(20_000)
    assert compressed_bits_per_byte("bzip2", early + "0" * 10_000, early) < 2
    assert compressed_bits_per_byte("bzip2", early + hex_text(950_000, seed=2), early) > 3.5


# ---------------------------------------------------------------- repeated and copied


def grams_in_loops(sequences, n):
    return [tuple(ids[k : k + n]) for ids in sequences for k in range(len(ids) - n + 1)]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shares_of_distinct_and_of_copied_stretches_are_those_of_counting(n):
    rng = random.Random(n)
    texts = [rng.choices(range(4), k=length) for length in (0, 1, n - 1, n, n + 1, 30, 40)]
    train = rng.choices(range(4), k=50)
    grams = grams_in_loops(texts, n)
    assert distinct_share(texts, n) == len(set(grams)) / len(grams)
    copied = [gram for gram in grams if any(tuple(train[k : k + n]) == gram for k in range(len(train)))]
    assert copied_share(texts, train, n) == len(copied) / len(grams)
    if 1 < n < 7:  # the control: neither none nor all, and another length is another share
        assert 0 < copied_share(texts, train, n) < 1
        assert distinct_share(texts, n) != distinct_share(texts, n + 1)


def test_no_stretch_goes_from_one_text_into_the_next():
    assert copied_share([[1, 2], [3, 4]], [2, 3], n=2) == 0
    assert copied_share([[1, 2, 3, 4]], [2, 3], n=2) == pytest.approx(1 / 3)  # the control
    assert distinct_share([[1, 1], [1, 1]], n=2) == 0.5
    assert distinct_share([[1, 2], [2, 1]], n=2) == 1


def test_a_stretch_counts_where_it_stands_at_either_end_and_no_longer_one_is_found():
    train = [1, 2, 3, 4, 5]
    for n in (1, 2, 5):
        assert copied_share([train[:n]], train, n) == copied_share([train[-n:]], train, n) == 1
    assert copied_share([[*train, 6]], train, 6) == 0
    assert copied_share([train], train[:4], 5) == 0


@pytest.mark.parametrize("make", [torch.tensor, np.array, tuple], ids=["tensor", "array", "tuple"])
def test_ids_count_the_same_in_whatever_they_come(make):
    texts, train = [[1, 2, 1, 2, 3], [2, 3, 4]], [9, 1, 2, 3]
    assert distinct_share(list(map(make, texts)), 2) == distinct_share(texts, 2) == 4 / 6
    assert copied_share(list(map(make, texts)), make(train), 2) == copied_share(texts, train, 2) == 4 / 6


def test_the_defaults_are_the_lengths_that_the_measures_are_known_by():
    ids = list(range(12))
    assert distinct_share([ids * 2]) == distinct_share([ids * 2], 3) != distinct_share([ids * 2], 2)
    assert copied_share([[*ids, 0]], ids) == 0.5


# ---------------------------------------------------------------- how a loss falls

TOKENS = np.geomspace(1e5, 36e6, 40)
SEEN = TOKENS < 9e6  # what is fitted is a quarter of the run


@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.2])
@pytest.mark.parametrize("floor", [0.5, 3.0])
def test_a_law_without_noise_is_found_again(floor, exponent):
    law = PowerLaw(floor, 2.0, exponent)
    found = PowerLaw.fit(TOKENS[SEEN], law(TOKENS[SEEN]))
    assert (found.floor, found.scale, found.exponent) == pytest.approx((floor, 2.0, exponent), rel=1e-3)
    assert found(36e6) == pytest.approx(law(36e6), rel=1e-5)


def test_a_law_with_noise_foretells_the_end_of_the_run_and_one_of_another_exponent_does_not():
    law, off, missed = PowerLaw(3.0, 2.0, 0.4), [], []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(1, 0.01, SEEN.sum())
        found = PowerLaw.fit(TOKENS[SEEN].tolist(), (law(TOKENS[SEEN]) * noise).tolist())
        off.append(abs(found(36e6) / law(36e6) - 1))
        missed.append(abs(PowerLaw(found.floor, found.scale, 2 * found.exponent)(36e6) / law(36e6) - 1))
    assert np.mean(off) < 0.03
    assert max(off) < 0.1
    assert np.mean(missed) > 2 * np.mean(off)


def test_a_law_is_the_floor_in_the_end_and_counts_in_millions():
    law = PowerLaw(floor=3.0, scale=2.0, exponent=0.5)
    assert law(1e6) == 5.0
    assert law(25e6) == pytest.approx(3.4)
    assert law(1e30) == pytest.approx(3.0)


# ---------------------------------------------------------------- refused

MODEL = tiny("causal")
BIGRAM = Bigram.fit(torch.tensor(STREAMS["random"]), Vocabulary(SIZE))
FALLING = [4.0, 3.0, 2.5, 2.2]
MILLIONS = [1e6, 2e6, 3e6, 4e6]
REFUSED = [
    ("one token", lambda: Bigram.fit(torch.tensor([1]), Vocabulary(4)), "ids_N has shape (1,): give one stream of at"),
    ("rows", lambda: Bigram.fit(torch.ones(2, 3).long(), Vocabulary(4)), "ids_N has shape (2, 3)"),
    ("foreign id", lambda: Bigram.fit(torch.tensor([1, 4]), Vocabulary(4)), "token id 4 lies outside"),
    ("ids as floats", lambda: Bigram.fit(torch.tensor([1.0, 2.0]), Vocabulary(4)), "convert them with .long()"),
    ("foreign id asked", lambda: BIGRAM.nats(torch.tensor([1, SIZE])), "token id 12 lies outside"),
    ("label asked", lambda: BIGRAM.nats(torch.tensor([1, -1])), "token id -1 lies outside"),
    ("nothing to predict", lambda: BIGRAM.nats(torch.tensor([1])), "ids_N has shape (1,)"),
    ("stream of one", lambda: stream_nats(MODEL, torch.tensor([1])), "ids_N has shape (1,)"),
    ("batch for a stream", lambda: stream_nats(MODEL, torch.ones(2, 3).long()), "ids_N has shape (2, 3)"),
    ("window of one", lambda: stream_nats(MODEL, torch.ones(9).long(), length=1), "windows of 1 tokens"),
    ("window of none", lambda: stream_nats(MODEL, torch.ones(9).long(), length=0), "windows of 0 tokens"),
    ("window too long", lambda: stream_nats(MODEL, torch.ones(9).long(), length=65), "none longer than max_len 64"),
    ("no window", lambda: stream_nats(MODEL, torch.ones(99).long(), batch_size=0), "0 windows of 64 tokens at a time"),
    ("minus a window", lambda: stream_nats(MODEL, torch.ones(99).long(), batch_size=-1), "-1 windows of 64"),
    ("an encoder", lambda: stream_nats(tiny("masked"), torch.ones(9).long()), "model is a Encoder: only a Decoder"),
    ("no byte", lambda: bits_per_byte(1.0, 0), "n_bytes is 0: give the size of the text in UTF-8"),
    (
        "other compressor",
        lambda: compressed_bits_per_byte("zip", "a", "a"),
        "'zip' is unknown: choose one of xz, bzip2",
    ),
    ("empty text", lambda: compressed_bits_per_byte("xz", "a", ""), "test_text is empty"),
    ("short texts", lambda: distinct_share([[1, 2], []], 3), "no text has 3 tokens: give longer ones"),
    ("no texts", lambda: distinct_share([]), "no text has 3 tokens"),
    ("short copies", lambda: copied_share([[1, 2]], [1, 2, 3], 3), "no text has 3 tokens"),
    ("grams of none", lambda: distinct_share([[1, 2]], 0), "n is 0: an n-gram has at least 1 token"),
    ("copies of less", lambda: copied_share([[1, 2]], [1, 2], -1), "n is -1"),
    ("three points", lambda: PowerLaw.fit(MILLIONS[:3], FALLING[:3]), "3 tokens and 3 losses: give at least 4 of each"),
    ("uneven points", lambda: PowerLaw.fit(MILLIONS, [*FALLING, 2.0]), "4 tokens and 5 losses"),
    ("no tokens read", lambda: PowerLaw.fit([0, *MILLIONS[1:]], FALLING), "give finite ones above 0"),
    ("a loss of nan", lambda: PowerLaw.fit(MILLIONS, [4.0, math.nan, 2.5, 2.2]), "give finite ones above 0"),
    ("a loss without end", lambda: PowerLaw.fit(MILLIONS, [math.inf, 3.0, 2.5, 2.2]), "give finite ones above 0"),
    ("losses below 0", lambda: PowerLaw.fit(MILLIONS, [1.0, 0.5, 0.0, -0.5]), "give finite ones above 0"),
    ("rising losses", lambda: PowerLaw.fit(MILLIONS, FALLING[::-1]), "losses go from 2.2 to 4.0: a power law falls"),
    ("level losses", lambda: PowerLaw.fit(MILLIONS, [3.0] * 4), "losses go from 3.0 to 3.0"),
]


@pytest.mark.parametrize(("act", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words_that_help(act, words):
    with pytest.raises((ValueError, TypeError)) as refusal:
        act()
    assert words in str(refusal.value)


def test_what_the_rows_above_get_wrong_is_accepted_once_it_is_right():
    assert PowerLaw.fit(MILLIONS, FALLING)(8e6) < 2.2
    assert len(stream_nats(MODEL, torch.ones(9).long(), length=2, dtype=FP32)) == 8
    assert len(BIGRAM.nats(torch.tensor([1, SIZE - 1]))) == 1
