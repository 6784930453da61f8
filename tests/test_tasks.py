"""Tasks of real reviews: what answers a rule takes, wordings that are kept apart, examples that a seed decides. The
quick tests see a few hundred reviews; the slow ones all of them."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from course_lib import data
from course_lib.data import Review, holds_slur, normalize, reviews_of
from course_lib.evaluation import fit_bag_of_words
from course_lib.finetuning import Instruction, parse, render, tasks
from course_lib.finetuning.tasks import TASKS, WORDS, Task, clear_sentences, make_examples, sentences

SPLITS = ("train", "dev", "test", "judge")
TUNED = [name for name, task in TASKS.items() if not task.is_held_out]
HELD_OUT = [name for name, task in TASKS.items() if task.is_held_out]
ASKED = []  # which splits the quick tests have read
FRESH = {  # what the library remembers of all reviews, remembered anew of a few
    name: cache(f.__wrapped__)
    for name, f in vars(tasks).items()
    if hasattr(f, "cache_clear") and f.__module__ == tasks.__name__
}


@cache
def few_of(split):
    return [*reviews_of(split, "imdb")[:80], *reviews_of(split, "rotten_tomatoes")[:120]]


@cache
def normal_texts(split):
    """{normalised text: label}"""
    return {normalize(review.text): review.label for review in few_of(split)}


@pytest.fixture
def few(monkeypatch):
    """A few hundred reviews of each split in place of all."""
    assert {"labelled_sentences", "clear_sentences"} <= FRESH.keys()
    for name, function in FRESH.items():
        monkeypatch.setattr(tasks, name, function)
    monkeypatch.setattr(tasks, "reviews_of", lambda split: ASKED.append(split) or few_of(split))


def forget(monkeypatch):
    """What is remembered of the few reviews, for the rest of a test."""
    for name, function in FRESH.items():
        monkeypatch.setattr(tasks, name, cache(function.__wrapped__))


# ---------------------------------------------------------------- wordings


def mixed(asked) -> set[str]:
    """Wordings that stand on both sides, of whichever task."""
    trained = {normalize(wording) for name in TUNED for wording in asked(TASKS[name], False)}
    return trained & {normalize(wording) for task in TASKS.values() for wording in asked(task, True)}


def test_no_held_out_wording_is_trained_in_any_task():
    assert mixed(lambda task, held_out: task.asked(held_out=held_out)) == set()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda task, held_out: task.wordings,
        lambda task, held_out: task.wordings[::5] if held_out else task.wordings,
        lambda task, held_out: [w for n, w in enumerate(task.wordings) if hash((w, held_out)) % 5 or not held_out],
    ],
)
def test_the_check_above_tells_wordings_that_are_not_kept_apart(wrong):
    assert len(mixed(wrong)) > 5


@pytest.mark.parametrize("name", TUNED)
def test_every_fifth_wording_is_kept_and_all_are_used(name):
    task = TASKS[name]
    trained, kept = task.asked(held_out=False), task.asked(held_out=True)
    assert kept == task.wordings[2::5] and len(kept) >= 2
    assert [w for w in task.wordings if w not in kept] == list(trained)
    assert 0.15 < len(kept) / len(task.wordings) < 0.25


def test_a_held_out_task_is_asked_for_in_all_its_wordings_and_all_of_them_are_new():
    assert HELD_OUT == ["positive, begun", "negative, begun"]
    trained = {normalize(wording) for name in TUNED for wording in TASKS[name].wordings}
    for name in HELD_OUT:
        task = TASKS[name]
        assert task.asked(held_out=True) == task.asked(held_out=False) == task.wordings
        assert not trained & set(map(normalize, task.wordings))


def test_a_wording_asks_for_one_thing_and_is_plain_text():
    everything = [normalize(wording) for task in TASKS.values() for wording in task.wordings]
    assert len(set(everything)) == len(everything) > 300
    assert not any("{" in wording or "  " in wording for task in TASKS.values() for wording in task.wordings)
    for task in TASKS.values():
        for wording in task.wordings:
            assert wording[-1] in ".?" and wording[0].isupper()


def test_what_a_wording_says_is_what_its_task_wants():
    """Read, not generated: wordings of either sentiment, of each kind."""
    for name, words in {
        "negative": ("a scathing comment", "hated", "a failure", "Warn me of"),
        "positive": ("a glowing review", "enjoyed", "worth seeing", "Recommend"),
        "negative, begun": ("a negative", "an unfavourable", "starts with these words"),
        "positive, begun": ("a positive", "a favourable", "opens with the words below"),
        "classify": ("Classify", "sentiment", "positive or negative?"),
        "begin": ("begins with these words",),
        "continue": ("Continue", "next sentence"),
        "repeat": ("Repeat", "Copy"),
    }.items():
        for word in words:
            assert any(word in wording for wording in TASKS[name].wordings), (name, word)
    good, bad = (TASKS[name].wordings for name in ("positive", "negative"))
    assert not set(good) & set(bad)
    assert [task.sentiment for task in TASKS.values()] == [1, 0, None, None, None, None, 1, 0]


# ---------------------------------------------------------------- rules

WRITE = Instruction("Write a positive review.")
BEGIN = Instruction("Write a review that begins with these words.", "It is a rare")
CONTINUE = Instruction("Continue this review in one sentence.", "The cast is good, and the film is short.")
REPEAT = Instruction("Repeat these words.", "A Good  film")
CLASSIFY = Instruction("Classify the review.", "a good film")

OBEYED = [
    ("positive", WRITE, "a good film"),
    ("positive", WRITE, "It is bad, and I say so."),  # what sentiment it has is not looked at
    ("negative", WRITE, "two words"),
    ("classify", CLASSIFY, "positive"),
    ("classify", CLASSIFY, " Negative\n"),  # whether it is right is not looked at
    ("repeat", REPEAT, "a good film"),
    ("repeat", REPEAT, "A  GOOD FILM "),
    ("begin", BEGIN, "it is a rare thing"),
    ("begin", BEGIN, "It is a  rare, good film."),
    ("continue", CONTINUE, "It is over soon."),
    ("continue", CONTINUE, "it was directed by mr. smith"),
    ("continue", CONTINUE, "dr. no is in it, and mrs. robinson, for 3.5 minutes."),
    ("begin", BEGIN, "it is a rare, if short, film"),
    ("begin", BEGIN, "it is a rare... what?"),
    ("positive, begun", BEGIN, "it is a rare thing"),
    ("negative, begun", BEGIN, "it is a rare failure"),
]
DISOBEYED = [
    ("positive", WRITE, ""),
    ("positive", WRITE, "  \n"),
    ("negative", WRITE, "bad"),
    ("classify", CLASSIFY, ""),
    ("classify", CLASSIFY, "positive."),
    ("classify", CLASSIFY, "positive or negative"),
    ("classify", CLASSIFY, "good"),
    ("classify", CLASSIFY, "it is positive"),
    ("repeat", REPEAT, ""),
    ("repeat", REPEAT, "a good"),
    ("repeat", REPEAT, "a good film."),
    ("repeat", REPEAT, "a good film a good film"),
    ("begin", BEGIN, ""),
    ("begin", BEGIN, "it is a rare"),  # nothing added
    ("begin", BEGIN, "it is a good film"),
    ("begin", BEGIN, "see, it is a rare film"),
    ("begin", BEGIN, '"it is a rare film"'),
    ("continue", CONTINUE, ""),
    ("continue", CONTINUE, "good"),
    ("continue", CONTINUE, "The film is short."),  # no: "and the film is short."
    ("continue", CONTINUE, "The cast is good, and the film is short."),
    ("continue", CONTINUE, "the film is short"),
    ("continue", CONTINUE, "It is over soon. I was glad."),
    ("continue", CONTINUE, "Hurrah."),
    ("positive, begun", BEGIN, "it is good"),
    ("negative, begun", BEGIN, "a rare failure"),
]


@pytest.mark.parametrize(("name", "asked", "written"), OBEYED)
def test_an_answer_of_the_right_form_obeys(name, asked, written):
    assert TASKS[name].obeyed(asked, written) is True


@pytest.mark.parametrize(("name", "asked", "written"), DISOBEYED)
def test_an_answer_of_another_form_does_not(name, asked, written):
    assert TASKS[name].obeyed(asked, written) is False


def test_the_tables_hold_right_and_wrong_answers_of_every_task():
    for table in (OBEYED, DISOBEYED):
        assert {name for name, *_ in table} == set(TASKS)


@pytest.mark.parametrize(
    "written", ["it is over soon. i was glad.", "it is over! i was glad", "is it over? yes, it is."]
)
def test_two_sentences_are_two_in_lower_case_too(written):
    """The course's tokenizer folds case: a decoder's answers are never written otherwise."""
    assert data.course_tokenizer().normalize(written.upper()) == written
    assert not TASKS["continue"].obeyed(CONTINUE, written)


@pytest.mark.parametrize("written", ["it is a rarefied film", "it is a rareness", "it is a rare2"])
def test_a_longer_word_is_not_the_word_that_was_given(written):
    assert not TASKS["begin"].obeyed(BEGIN, written)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A good film. I liked it a lot!", ["A good film.", "I liked it a lot!"]),
        ("Is it? (Yes, it is! 3 of 5.", ["Is it?", "(Yes, it is! 3 of 5."]),
        ("No end", ["No end"]),
        ("a 3.5 of 5. so there", ["a 3.5 of 5.", "so there"]),
        ("A 3.5 of 5. so there", ["A 3.5 of 5. so there"]),  # in a text with capitals a sentence begins with one
        ("he met mr. bean. so there", ["he met mr. bean.", "so there"]),
        ("  Padded.  Twice.  ", ["Padded.", "Twice."]),
        ("", []),
        (" ", []),
    ],
)
def test_a_text_is_cut_behind_its_sentences_roughly(text, parts):
    assert sentences(text) == parts


# ---------------------------------------------------------------- examples

COUNT = 60


def made(name, count=COUNT, **options):
    return make_examples(TASKS[name], count, **options)


def labels_of(split, sentence):
    """The labels of all reviews that hold it."""
    return {label for text, label in normal_texts(split).items() if normalize(sentence) in text}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", TASKS)
def test_an_answer_from_a_review_obeys_the_rule_and_survives_the_template(few, name, split):
    examples = made(name, split=split, clear=0.5)
    assert len(examples) >= 30
    for one in examples:
        assert TASKS[name].obeyed(one, one.output), one
        assert parse(render(one)) == one
        assert one.instruction in TASKS[name].asked(held_out=False)
    for one, other in pairwise(examples):  # the control: the answer to another question
        if TASKS[name].repeats or TASKS[name].begins:
            assert not TASKS[name].obeyed(one, other.output)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.sentiment is not None])
def test_a_sentence_of_a_sentiment_comes_from_a_review_of_it(few, name):
    for one in made(name):
        assert labels_of("train", one.output) == {TASKS[name].sentiment}
        assert len(one.output.split()) in WORDS


@pytest.mark.parametrize("name", TASKS)
def test_an_answer_as_a_decoder_would_write_it_obeys_nearly_always(few, name):
    """Without capitals, and so with sentences that are told apart less well."""
    tokenizer, examples = data.course_tokenizer(), made(name, 200)
    written = [tokenizer.decode(tokenizer.encode(one.output)) for one in examples]
    obeyed = [TASKS[name].obeyed(one, text) for one, text in zip(examples, written, strict=True)]
    assert sum(obeyed) > (0.9 if TASKS[name].continues else 0.999) * len(examples)


def test_a_written_review_begins_with_the_words_given_and_is_asked_for_without_any_else(few):
    for name in ("begin", *HELD_OUT):
        counts = set()
        for one in made(name):
            counts.add(len(one.input.split()))
            assert one.output.split()[: len(one.input.split())] == one.input.split()
        assert counts == {2, 3, 4, 5}
    for name in ("positive", "negative"):
        assert {one.input for one in made(name)} == {""}


def test_words_to_repeat_are_the_first_of_a_sentence_in_or_out_of_order_and_of_many_lengths(few):
    examples = made("repeat", 150)
    assert all(one.output == one.input for one in examples)
    assert {len(one.output.split()) for one in examples} == set(range(2, 13))
    starts = {tuple(s.split()[:n]) for s in tasks.all_sentences("train") for n in range(2, 13)}
    in_order = Counter(tuple(one.output.split()) in starts for one in examples)
    assert min(in_order.values()) > 50  # every other time out of order
    assert {tuple(sorted(one.output.split())) for one in examples} <= {tuple(sorted(start)) for start in starts}


def test_a_sentence_that_goes_on_stands_behind_the_one_given(few):
    between = r"[\s\"')]+"  # what ends a quotation may be lost
    for one in made("continue"):
        pair = re.escape(one.input) + between + re.escape(one.output)
        assert any(re.search(pair, review.text) for review in few_of("train")), one
        for part in (one.input, one.output):
            assert len(part.split()) in WORDS and len(sentences(part)) == 1


def test_a_review_is_classified_by_its_label(few):
    answers = set()
    for one in made("classify"):
        assert one.output == ("negative", "positive")[normal_texts("train")[normalize(one.input)]]
        answers.add(one.output)
    assert answers == {"negative", "positive"}


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_decides_the_examples_and_another_decides_otherwise(few, name):
    one, again, other = made(name), made(name), made(name, seed=1)
    assert one == again != other
    assert [e.instruction for e in one] != [e.instruction for e in other]
    assert [e.output for e in one] != [e.output for e in other]
    assert made(name, 5) == one[:5] == made(name, 5, seed=0, split="train", held_out=False)


def test_each_task_takes_its_own_order(few):
    """Else a sentence would stand in one epoch as a review begun and as words to repeat."""
    begun, repeated = ([one.output.split()[:2] for one in made(name, 30)] for name in ("begin", "repeat"))
    assert begun != repeated


@pytest.mark.parametrize("name", TASKS)
def test_no_source_is_used_twice_and_there_are_fewer_examples_where_reviews_end(few, name):
    everything = made(name, 10**6)
    assert len(everything) < 10**4 and made(name, 10**7) == everything
    if not TASKS[name].repeats:
        whole = [(one.input, one.output) if TASKS[name].classifies else one.output for one in everything]
        assert len(set(whole)) == len(whole)
    assert len(made(name, len(everything) - 1)) == len(everything) - 1
    assert len(made(name, 1)) == 1


@pytest.mark.parametrize("name", TASKS)
def test_wordings_of_either_side_are_used_all_of_them(few, name):
    for held_out in (False, True):
        wordings = TASKS[name].asked(held_out=held_out)
        used = {one.instruction for seed in range(40) for one in made(name, 40, held_out=held_out, seed=seed)}
        assert used == set(wordings)


def test_a_held_out_wording_is_put_to_the_same_examples(few):
    """So that the wording is all that differs."""
    for name in TUNED:
        some, other = made(name), made(name, held_out=True)
        assert [(one.input, one.output) for one in some] == [(one.input, one.output) for one in other]
        assert not {one.instruction for one in some} & {one.instruction for one in other}


def test_the_clearer_the_fewer_and_clear_ones_are_among_the_others(few):
    for label in (0, 1):
        found = [set(clear_sentences("test", label, clear)) for clear in (0.0, 0.45, 0.5, 0.55, 1.0)]
        assert all(more >= less for more, less in pairwise(found))
        assert len({len(some) for some in found}) >= 4
        assert not found[-1]
    negative, positive = (set(clear_sentences("test", label, 0.0)) for label in (0, 1))
    assert not negative & positive
    assert negative | positive == set(tasks.labelled_sentences("test")[0])


def test_what_judges_how_clear_a_sentence_is_has_read_training_reviews_alone(few, monkeypatch):
    forget(monkeypatch)
    read, fit = [], tasks.fit_bag_of_words
    monkeypatch.setattr(tasks, "fit_bag_of_words", lambda *given: read.append(given) or fit(*given))
    ASKED.clear()
    for label in (0, 1):
        assert tasks.clear_sentences("test", label, 0.5)
    ((texts, labels),) = read  # fitted once
    assert dict(zip(map(normalize, texts), labels.tolist(), strict=True)) == normal_texts("train")
    assert set(ASKED) == {"train", "test"}


def test_how_clear_a_sentence_is_is_the_probability_of_its_reviews_label(few):
    reviews = few_of("train")
    judge = fit_bag_of_words([r.text for r in reviews], np.array([r.label for r in reviews]))
    for label in (0, 1):
        everything = clear_sentences("test", label, 0.0)
        of_label_N = judge.predict_proba(list(everything))[:, label]
        wanted = [text for text, sure in zip(everything, of_label_N, strict=True) if sure >= 0.55]
        assert list(clear_sentences("test", label, 0.55)) == wanted and wanted
        assert tasks.sentiment_by_words(wanted) == pytest.approx(judge.predict_proba(wanted)[:, 1])


def test_nothing_is_fitted_where_nobody_asks_how_clear_a_sentence_is(few, monkeypatch):
    forget(monkeypatch)
    monkeypatch.setattr(tasks, "fit_bag_of_words", None)
    for name in TASKS:
        assert made(name, 5, clear=0.0)
    with pytest.raises(TypeError):  # the control
        made("positive", 5)


def test_a_review_with_a_slur_is_left_out_whole(few, monkeypatch):
    """What stands on the list stands there as a hash alone: here a common word is put on it."""
    forget(monkeypatch)
    before = {name: made(name, 10**6) for name in ("begin", "continue", "classify")}
    forget(monkeypatch)
    monkeypatch.setattr(data, "_is_slur", lambda word: word == "bad")
    for name, examples in before.items():
        found = made(name, 10**6)
        assert any("bad" in normalize(one.input + " " + one.output).split() for one in examples)
        assert not any("bad" in normalize(one.input + " " + one.output).split() for one in found)
        assert 0 < len(found) < len(examples)


def test_sentences_are_cut_from_reviews_of_imdb_and_others_stand_as_they_are(monkeypatch):
    words = " ".join(["fine"] * 9)
    reviews = [
        Review(f"First {words}. Middle {words}. Last {words}.", 1, "imdb"),
        Review(f"Short. Also {words}.", 0, "imdb"),
        Review(f"whole {words}. Not cut {words}.", 0, "rotten_tomatoes"),
        Review("too short", 1, "rotten_tomatoes"),
        Review(" ".join(["long"] * 46), 1, "rotten_tomatoes"),
        Review(" ".join(["just"] * 45), 1, "rotten_tomatoes"),
        Review(" ".join(["few"] * 8), 1, "rotten_tomatoes"),
        Review("is it o´clock" + " now" * 4, 0, "rotten_tomatoes"),  # normalised, the accent stands behind a space
    ]
    forget(monkeypatch)
    monkeypatch.setattr(tasks, "reviews_of", lambda split: reviews if split == "dev" else [])
    assert dict(zip(*tasks.labelled_sentences("dev"), strict=True)) == {
        f"first {words}.": 1,
        f"last {words}.": 1,
        f"also {words}.": 0,
        f"whole {words}. not cut {words}.": 0,
        " ".join(["just"] * 45): 1,
        " ".join(["few"] * 8): 1,
        normalize("is it o´clock" + " now" * 4): 0,  # eight words as it is written
    }
    (pair,) = made("continue", split="dev")
    assert (pair.input, pair.output) == (f"First {words}.", f"Middle {words}.")


def test_a_sentence_of_a_training_review_is_in_no_other_split(monkeypatch):
    words = " ".join(["fine"] * 9)
    known, own = Review(f"Once {words}. Twice {words}.", 1, "imdb"), Review(f"Alone {words}. TWICE {words}.", 0, "imdb")
    forget(monkeypatch)
    monkeypatch.setattr(tasks, "reviews_of", lambda split: [known] if split == "train" else [own])
    assert tasks.labelled_sentences("test") == ((f"alone {words}.",), (0,))
    assert tasks.all_sentences("test") == (f"alone {words}.",)
    assert not made("continue", split="test")
    assert len(made("continue")) == 1  # the control: in training it stays


# ---------------------------------------------------------------- all reviews


@cache
def all_examples(name, split):
    return make_examples(TASKS[name], 10**6, split=split)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_of_all_reviews_every_example_obeys_and_none_holds_a_slur(name):
    for split in ("dev", "test"):
        examples = all_examples(name, split)
        assert len(examples) > 150
        for one in examples:
            assert TASKS[name].obeyed(one, one.output), one
            assert not holds_slur(f"{one.input} {one.output}")
            assert parse(render(one)) == one


@cache
def texts_of(name, split):
    """What is to be written, and what it is made of, as one text is one text to the course. A few words to begin with
    are no sentence, and stand in many."""
    texts = [text for one in all_examples(name, split) for text in (one.input, one.output)]
    return frozenset(normalize(text) for text in texts if name != "begin" or len(text.split()) in tasks.WORDS)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["test", "judge"])
@pytest.mark.parametrize("name", ["begin", "continue", "classify"])
def test_no_sentence_of_the_test_is_trained_on(name, split):
    shared = texts_of(name, split) & texts_of(name, "train") - {"negative", "positive", ""}
    assert not shared, sorted(shared)[:5]


@pytest.mark.slow
def test_the_check_above_tells_examples_of_one_split():
    """The control."""
    some, other = ({normalize(one.output) for one in made("begin", 20_000, seed=seed)} for seed in (0, 1))
    assert len(some & other) > 100


# ---------------------------------------------------------------- refused

REFUSED = [
    ("no example", lambda: made("begin", 0), "0 examples of 'begin' in 29 wordings: give at least 1 of each"),
    ("fewer than none", lambda: made("repeat", -3), "-3 examples of 'repeat'"),
    ("no such wording", lambda: make_examples(Task("mine", ("Do it.",)), 1, held_out=True), "'mine' in 0 wordings"),
    ("unknown split", lambda: made("begin", 1, split="training"), "split 'training' is unknown: choose one of judge,"),
    ("clear in per cent", lambda: made("positive", 5, clear=80), "clear is 80: give a share from 0 to 1, such as 0.8"),
    ("clear below 0", lambda: made("classify", 5, clear=-0.1), "clear is -0.1"),
    ("clear nan", lambda: made("positive", 5, clear=float("nan")), "clear is nan"),
    ("negative seed", lambda: made("begin", 1, seed=-1), "give one or more whole numbers from 0 up"),
]


@pytest.mark.parametrize(("act", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words_that_help(act, words):
    with pytest.raises(ValueError) as refusal:
        act()
    assert words in str(refusal.value)


def test_a_task_of_ones_own_is_made_and_judged_as_the_others(few):
    mine = replace(TASKS["begin"], name="mine", wordings=tuple(f"Begin so, way {n}." for n in range(10)))
    examples = make_examples(mine, 30)
    assert {one.instruction for one in examples} <= set(mine.asked(held_out=False))
    assert all(mine.obeyed(one, one.output) for one in examples)
