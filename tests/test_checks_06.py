"""The checks of chapter 6 say what is wrong, accept every right answer, and let nothing of a learner's code reach the
notebook."""

import itertools
import math

import numpy as np
import pytest
from exercises import (
    HalfMade,
    assert_accepted,
    assert_diagnosed,
    assert_generators_and_grad_mode_are_left_alone,
    assert_no_function_is_refused,
    assert_not_attempted,
    assert_replaced_by_what_passes,
    assert_solution_is_hidden,
    assert_works_where_gradients_are_off,
)
from scipy.stats import binomtest

from course_lib import checks
from course_lib.checks import capstone
from course_lib.evaluation import copied_share, paired_comparison

# --- bits per byte ----------------------------------------------------------------------------------------------------


def bits_by_log2(nats_per_token, n_tokens, text):
    return nats_per_token * math.log2(math.e) * n_tokens / len(bytes(text, "utf-8"))


def bits_as_numpy(nats_per_token, n_tokens, text):
    return float(np.sum([nats_per_token] * n_tokens) / np.log(2) / sum(len(c.encode()) for c in text))


LN2 = math.log(2)


def bits(count=lambda text: len(text.encode()), unit=LN2, tokens=lambda n: n):
    return lambda nats_per_token, n_tokens, text: nats_per_token * tokens(n_tokens) / unit / count(text)


RIGHT_BITS = [bits_by_log2, bits_as_numpy]
WRONG_BITS = {
    bits(unit=1): "That is nats per byte",
    bits(unit=1 / math.log(2)): "Multiplied by ln 2",
    bits(count=len): "Divided by characters",
    bits(count=lambda text: len(text.split())): "Divided by words",
    bits(tokens=lambda n: 1): "multiply by the number of tokens",
    bits(tokens=lambda n: 1, count=lambda text: 1): "That is bits per token",
    bits(unit=math.log(10)): "Divided by ln 10",
    bits(unit=8 * math.log(2)): "Divided by 8 once too often",
    bits(count=lambda text: len(text.encode("utf-16"))): "cases come out otherwise",
    lambda nats, n, text: str(nats): "should be a number and is str",
    lambda nats, n, text: text[0] / n: "It stopped with TypeError",
    lambda nats, n, text: HalfMade(): "should be a number and is HalfMade",
}

# --- n-grams already read ---------------------------------------------------------------------------------------------


def grams_of(texts, n):
    return [tuple(ids[k : k + n]) for ids in texts for k in range(len(ids) - n + 1)]


def share_by_strings(held_out, read, n):
    asked = [" ".join(map(str, gram)) for gram in grams_of(held_out, n)]
    seen = {" ".join(map(str, gram)) for gram in grams_of(read, n)}
    return float(np.mean([gram in seen for gram in asked])) if asked else 0.0


def share_by_windows(held_out, read, n):
    seen, hits, count = set(), 0, 0
    for ids in read:
        seen.update(zip(*(ids[k:] for k in range(n)), strict=False))
    for ids in held_out:
        for gram in zip(*(ids[k:] for k in range(n)), strict=False):
            hits, count = hits + (gram in seen), count + 1
    return hits / max(count, 1)


def share(held=grams_of, read=grams_of, of=lambda asked, seen: sum(g in set(seen) for g in asked) / max(len(asked), 1)):
    return lambda held_out, texts, n: float(of(held(held_out, n), read(texts, n)))


def joined(texts, n):
    return grams_of([[i for ids in texts for i in ids]], n)


def changed(held_out, read, n):
    held_out.append([1])
    return 0.0


RIGHT_SHARES = [share_by_strings, share_by_windows]
WRONG_SHARES = {
    share(joined, joined): "n-grams run across the border",
    share(read=joined): "n-grams of what was read run across the border",
    share(joined): "n-grams of the held-out texts run across the border",
    lambda held_out, read, n: 100 * share()(held_out, read, n): "That is percent",
    share(lambda texts, n: list(set(grams_of(texts, n)))): "Each kind of n-gram counts once",
    lambda held_out, read, n: share()(read, held_out, n): "turned round",
    lambda held_out, read, n: 1 - share()(held_out, read, n): "are new",
    share(*[lambda texts, n: [tuple(sorted(gram)) for gram in grams_of(texts, n)]] * 2): "The order of the tokens",
    lambda held_out, read, n: share()(held_out, read, n + 1): "one token too long",
    lambda held_out, read, n: share()(held_out, read, n - 1): "one token too short",
    share(*[lambda texts, n: [g for ids in texts for g in grams_of([ids], n)[:-1]]] * 2): "last n-gram of each text",
    share(*[lambda texts, n: [g for ids in texts for g in grams_of([ids], n)[::n]]] * 2): "do not overlap",
    share(*[lambda texts, n: grams_of(texts, 1)] * 2): "Single tokens are looked up",
    changed: "held_out was changed in place",
    lambda held_out, read, n: len(grams_of(held_out, n)) and 1 / len(grams_of(held_out, n)): "cases come out otherwise",
    lambda held_out, read, n: sum(g in grams_of(read, n) for g in grams_of(held_out, n)) / len(
        grams_of(held_out, n)
    ): "It stopped with ZeroDivisionError",
}  # fmt: skip

# --- the better of two ------------------------------------------------------------------------------------------------


def better_by_mcnemar(is_right_a, is_right_b):
    a, b = int((is_right_a & ~is_right_b).sum()), int((is_right_b & ~is_right_a).sum())
    if a + b == 0 or binomtest(a, a + b).pvalue > 0.05:
        return "neither"
    return "a" if a > b else "b"


def better_by_bootstrap(is_right_a, is_right_b):
    differences = is_right_a.astype(float) - is_right_b
    drawn = np.random.default_rng(0).choice(differences, (400, len(differences))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return "a" if low > 0 else "b" if high < 0 else "neither"


def by_gap(least):
    def pick(is_right_a, is_right_b):
        gap = is_right_a.mean() - is_right_b.mean()
        return "a" if gap > least else "b" if gap < -least else "neither"

    return pick


def by_two_intervals(is_right_a, is_right_b):
    (low_a, high_a), (low_b, high_b) = (
        (p - 1.96 * math.sqrt(p * (1 - p) / len(is_right_a)), p + 1.96 * math.sqrt(p * (1 - p) / len(is_right_a)))
        for p in (is_right_a.mean(), is_right_b.mean())
    )
    return "a" if low_a > high_b else "b" if low_b > high_a else "neither"


def renamed(**names):
    return lambda a, b: names.get(better_by_mcnemar(a, b), better_by_mcnemar(a, b))


RIGHT_PICKS = [better_by_mcnemar, better_by_bootstrap]
WRONG_PICKS = {
    by_gap(0.0): "The higher accuracy always wins",
    by_gap(0.05): "A gap of fixed size decides",
    by_gap(0.01): "A gap of fixed size decides",
    by_two_intervals: "Two intervals that overlap",
    renamed(a="b", b="a"): "a and b are exchanged",
    renamed(b="neither"): "b never wins",
    renamed(a="neither"): "a never wins",
    renamed(neither="b"): "There is always a winner",
    lambda a, b: "neither": "It never says that one is better",
    lambda a, b: "a": "Look at the texts on which only one",
    lambda a, b: None: 'Give back "a", "b" or "neither"',
    lambda a, b: a & b: 'Give back "a", "b" or "neither"',
}

EXERCISES = {
    "bits_per_byte": (checks.bits_per_byte, RIGHT_BITS, WRONG_BITS),
    "share_read": (checks.share_read, RIGHT_SHARES, WRONG_SHARES),
    "pick_better": (checks.pick_better, RIGHT_PICKS, WRONG_PICKS),
}
NAMES = list(EXERCISES)
REFERENCES = (capstone.bits_per_byte_reference, capstone.share_read_reference, capstone.pick_better_reference)


def attempt(name, function):
    return EXERCISES[name][0](function)


RIGHT = [(name, function) for name, (_, right, _) in EXERCISES.items() for function in right]
WRONG = [(name, function, words) for name, (_, _, wrong) in EXERCISES.items() for function, words in wrong.items()]


@pytest.mark.parametrize(("name", "function"), RIGHT)
def test_a_right_answer_is_accepted_and_given_back(name, function, capsys):
    assert_accepted(attempt, name, function, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_the_library_s_own_passes(name, capsys):
    assert_replaced_by_what_passes(attempt, name, capsys)


@pytest.mark.parametrize(("name", "function", "words"), WRONG)
def test_a_wrong_answer_is_diagnosed_and_replaced(name, function, words, capsys):
    assert_diagnosed(attempt, name, function, words, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_at_least_five_different_diagnoses(name):
    assert len(set(EXERCISES[name][2].values())) >= 5 and len(EXERCISES[name][1]) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_exercise_is_not_attempted_yet(name, capsys):
    assert_not_attempted(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_fitting_function_is_refused_in_words(name, capsys):
    assert_no_function_is_refused(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_the_verdict_never_holds_the_solution(name, capsys):
    codes = (*REFERENCES, *(right for _, right in RIGHT))
    assert_solution_is_hidden(attempt, name, EXERCISES[name][2], codes, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_a_check_leaves_the_random_generators_and_grad_mode_alone(name, capsys):
    assert_generators_and_grad_mode_are_left_alone(attempt, name, EXERCISES[name][1][0])


@pytest.mark.parametrize("name", NAMES)
def test_a_check_works_where_gradients_are_off(name, capsys):
    assert_works_where_gradients_are_off(attempt, name, EXERCISES[name][1][0], capsys)


# --- what the checks hand over shows what it should -------------------------------------------------------------------


def values(function, cases):
    return tuple(round(function(*case), 9) for case in cases)


@pytest.mark.parametrize(
    ("reference", "mistakes", "cases"),
    [
        (capstone.bits_per_byte_reference, capstone.BITS_MISTAKES, capstone.BITS_CASES),
        (capstone.share_read_reference, capstone.SHARE_MISTAKES, capstone.SHARE_CASES),
    ],
)
def test_no_two_mistakes_give_the_same_values_and_none_the_right_ones(reference, mistakes, cases):
    found = {"right": values(reference, cases)} | {
        cause: values(mistaken, cases) for cause, mistaken in mistakes.items()
    }
    for (one, a), (other, b) in itertools.combinations(found.items(), 2):
        assert a != b, (one, other)


def test_no_two_mistaken_picks_agree_on_all_pairs_of_models():
    found = {"right": tuple(duel.wanted for duel in capstone.DUELS)}
    found |= {cause: tuple(map(pick, capstone.DUELS)) for cause, pick in capstone.PICK_MISTAKES.items()}
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("duel", capstone.DUELS)
def test_each_pair_of_models_is_clearly_what_it_is_said_to_be(duel):
    a, b = duel.answers()
    found = paired_comparison(a, b)
    assert (found.only_a, found.only_b) == (duel.only_a, duel.only_b)
    assert capstone.pick_better_reference(a, b) == better_by_mcnemar(a, b) == duel.wanted
    assert found.p_value < 0.03 or found.p_value > 0.1  # other tests agree
    mirrored = {"a": "b", "b": "a"}.get(duel.wanted, "neither")
    assert capstone.pick_better_reference(b, a) == mirrored


def test_the_share_of_one_read_text_is_the_library_s():
    held_out, read = [[1, 2, 3, 1, 2], [2, 3, 1]], [[1, 2, 3, 9, 3, 1]]
    assert capstone.share_read_reference(held_out, read, 2) == copied_share(held_out, read[0], 2)
