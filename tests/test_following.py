"""Learning to follow instructions at the size of a test: what a decoder is tuned on, what it may learn from its own
writing, how its answers are judged, and what the record holds. A tiny decoder and a few hundred reviews; the adapters
that the course ships are in the slow tests.
"""

import copy
import re
from collections import Counter
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import islice, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import within_binomial
from tiny import shaken, tiny

from course_lib import data
from course_lib.data import course_tokenizer, normalize, reviews_of
from course_lib.evaluation import first_tokens
from course_lib.finetuning import Classifier, FineTuning, Instruction, encode, fine_tune, predictions, tasks
from course_lib.finetuning.tasks import TASKS, WORDS, make_examples
from course_lib.generation import generate
from course_lib.model import Encoder
from course_lib.peft import Full, LoRA, active_adapter, apply, load_adapter, save_adapter, switch
from course_lib.peft.slots import is_added
from course_lib.peft.strategy import adaptation
from course_lib.pretrained import load_checkpoint
from course_lib.records import Record
from course_lib.runs import following, judging
from course_lib.runs.following import (
    LIKELIEST,
    MAX_LEN,
    RUN,
    Following,
    Own,
    Sampling,
    answers,
    assess,
    clear_reviews,
    exchanged_prompts,
    follow,
    held_out_prompts,
    load_follower,
    originality,
    record_following,
    refine,
    tuning_batches,
    tuning_examples,
)
from course_lib.runs.judging import Judge, judge_texts, load_judge, record_judge
from course_lib.training import held_out_loss, train
from course_lib.vocabulary import IGNORE_INDEX

TUNED = [name for name, task in TASKS.items() if not task.is_held_out]
HELD_OUT = [name for name, task in TASKS.items() if task.is_held_out]
TASK_OF = {normalize(wording): name for name, task in TASKS.items() for wording in task.wordings}
TASK_OF_TUNED = {normalize(wording) for name in TUNED for wording in TASKS[name].asked(held_out=False)}
HOW = Following(  # a few reviews are clear to no bag of words
    examples=dict.fromkeys(TUNED, 8),
    strategy=LoRA(rank=4, alpha=16),
    rate=0.1,
    epochs=2,
    batch_size=16,
    clear=0.5,
    own=Own(rounds=2, count=12, sure=0.0, others={"classify": 6, "repeat": 9}, epochs=2, rate=0.01),
)
SHORT = Sampling(max_new_tokens=6, top_p=None)
FRESH = {  # what the library remembers of all reviews, remembered anew of a few
    function: cache(function.__wrapped__)
    for module in (tasks, following)
    for function in vars(module).values()
    if hasattr(function, "cache_clear") and function.__module__ == module.__name__
}


@cache
def few_of(split, source=None):
    reviews = [*reviews_of(split, "imdb")[:80], *reviews_of(split, "rotten_tomatoes")[:120]]
    return [review for review in reviews if source in (None, review.source)]


@cache
def normal_texts(split):
    """{normalised text of a review: label}"""
    return {normalize(review.text): review.label for review in few_of(split)}


def see_few(monkeypatch):
    for module in (tasks, following, judging):
        for name, value in list(vars(module).items()):
            if hasattr(value, "cache_clear") and value in FRESH:
                monkeypatch.setattr(module, name, FRESH[value])
    for module in (tasks, judging):
        monkeypatch.setattr(module, "reviews_of", few_of)
    monkeypatch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)
    monkeypatch.setenv("COURSE_DEVICE", "cpu")


@pytest.fixture
def few(monkeypatch):
    """A few hundred reviews of each split in place of all."""
    see_few(monkeypatch)


def decoder():
    """A tiny one that has learned nothing."""
    return tiny("causal", n_layers=1, max_len=256, shake=0.5).eval()


def short(*given, **options):
    return generate(*given, **options | {"max_new_tokens": 12, "top_p": None})  # sorting takes most of the time


def labelled(split):
    """{sentence: label}"""
    return dict(zip(*tasks.labelled_sentences(split), strict=True))


def sentences_of(split):
    """All that a review may begin with and go on to."""
    return {normalize(one.output) for one in make_examples(TASKS["begin"], 10**6, split=split)}


# ---------------------------------------------------------------- what a decoder is tuned on


def read(ids):
    """The wording, the input and the answer of an example's tokens."""
    text = course_tokenizer().decode(ids)
    template = r"\[BOS\]### instruction:\n(.+?)(?:\n\n### input:\n(.+?))?\n\n### response:\n(.*)\[EOS\]"
    return re.fullmatch(template, text, re.DOTALL).groups()


def is_tuned_on(examples):
    """Whether they are asked for in wordings for training alone, of tasks that are not held out."""
    return {read(example.input_ids)[0] for example in examples} <= TASK_OF_TUNED


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_a_decoder_is_tuned_on_wordings_for_training_of_tasks_that_are_not_held_out(few, monkeypatch, epoch):
    examples = tuning_examples(HOW, epoch)
    assert is_tuned_on(examples)
    assert Counter(TASK_OF[read(example.input_ids)[0]] for example in examples) == HOW.examples
    assert not is_tuned_on(tuning_examples(replace(HOW, examples={"negative, begun": 3}), epoch))  # the control
    monkeypatch.setattr(following, "make_examples", partial(make_examples, held_out=True))
    assert not is_tuned_on(tuning_examples(HOW, epoch))  # and another


def test_by_default_no_held_out_task_is_tuned_on_in_either_stage():
    whole = Following()
    for examples in (whole.examples, whole.own.others):
        assert set(examples) <= set(TUNED) and min(examples.values()) > 0
    assert set(whole.examples) == set(TUNED)
    assert not set(whole.own.others) & {"positive", "negative"}  # of these the decoder writes its own


def test_a_decoder_is_tuned_on_training_reviews_as_clear_as_is_said(few):
    how = replace(HOW, examples={"positive": 500, "negative": 500, "begin": 10**4}, clear=0.7)
    written = {}
    for example in tuning_examples(how, 0):
        wording, _, answer = read(example.input_ids)
        written.setdefault(TASK_OF[wording], set()).add(normalize(answer))
    clear = tasks.clear_sentences
    for name, label in (("positive", 1), ("negative", 0)):
        assert written[name] == set(map(normalize, clear("train", label, 0.7)))
        assert written[name] != set(map(normalize, clear("train", label, 0.5)))  # the control
    assert written["begin"] == sentences_of("train") and not written["begin"] & sentences_of("test")
    everything = " | ".join(normal_texts("train"))
    assert all(text in everything for text in written["begin"])


def test_examples_are_drawn_anew_in_each_epoch_and_fixed_by_the_seed(few):
    def drawn(seed, epoch):
        return tuple(tuning_examples(replace(HOW, seed=seed), epoch))

    assert drawn(0, 0) == drawn(0, 0) and drawn(1, 2) == drawn(1, 2)
    assert len({drawn(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def real_rows(batch):
    pad = course_tokenizer().vocabulary.pad
    return [tuple(ids_T[ids_T != pad].tolist()) for ids_T in batch.input_ids_BT]


def asks_for_answers_alone(batch):
    """Whether each row is asked for its answer and [EOS], each token at the place before it, and for nothing else."""
    for row, labels_T in zip(real_rows(batch), batch.labels_BL, strict=True):
        places = (labels_T != IGNORE_INDEX).nonzero().flatten().tolist()
        wanted = labels_T[places].tolist()
        if wanted != [row[place + 1] for place in places]:
            return False
        if course_tokenizer().decode(wanted) != read(row)[2] + "[EOS]" or places[-1] != len(row) - 2:
            return False
    return True


def test_batches_put_loss_on_answers_alone(few):
    for batch in islice(tuning_batches(HOW), HOW.steps):
        assert asks_for_answers_alone(batch)
    for batch in islice(tuning_batches(replace(HOW, learn="all")), 3):  # the control
        assert not asks_for_answers_alone(batch)


def test_an_epoch_of_batches_holds_each_of_its_examples_once(few):
    how = replace(HOW, examples=HOW.examples | {"repeat": 9}, epochs=3)  # the last batch of an epoch is not full
    assert how.steps == 3 * 4
    batches = list(islice(tuning_batches(how), how.steps))
    for epoch in range(3):
        rows = Counter(row for batch in batches[4 * epoch : 4 * epoch + 4] for row in real_rows(batch))
        for other in range(3):
            wanted = Counter(example.input_ids for example in tuning_examples(how, other))
            assert (rows == wanted) == (epoch == other)


def test_a_batch_holds_examples_of_like_length(few):
    """Sorted, no batch of an epoch begins before another ends: one has the shortest rows, one the next, and so on."""
    rows = [real_rows(batch) for batch in islice(tuning_batches(HOW), 3)]
    lengths = sorted([len(row) for row in batch] for batch in map(partial(sorted, key=len), rows))
    assert all(one[-1] <= other[0] for one, other in pairwise(lengths))
    in_order = [len(example.input_ids) for example in tuning_examples(HOW, 0)]  # the control
    assert max(in_order[:16]) > min(in_order[16:32]) or max(in_order[16:32]) > min(in_order[32:])


def test_steps_are_fewer_where_reviews_give_fewer_examples(few):
    everything = len(make_examples(TASKS["continue"], 10**6))
    how = replace(HOW, examples={"continue": 10**6}, batch_size=10)
    assert 100 < everything < 1000 and everything % 10
    assert how.steps == 2 * (everything // 10 + 1)


# ---------------------------------------------------------------- tuning


def loss_on_answers(model, how=HOW):
    return held_out_loss(model, islice(tuning_batches(how), 3))


def own_weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if not is_added(name)}


def same_weights(model, weights):
    now = own_weights(model)
    return now.keys() == weights.keys() and all(torch.equal(now[name], weights[name]) for name in now)


def test_following_lowers_the_loss_on_answers_and_leaves_the_base_as_it_was(few):
    model = decoder()
    before, weights = loss_on_answers(model), own_weights(model)
    rows = list(follow(model, HOW))
    assert [row.step for row in rows] == list(range(1, HOW.steps + 1))
    assert loss_on_answers(model) < before - 1 and not model.training
    assert same_weights(model, weights)
    switch(model, None)
    assert loss_on_answers(model) == pytest.approx(before, rel=1e-6)  # what it was without the adapter


def test_the_checks_above_tell_a_run_that_learns_nothing_and_one_that_changes_the_base(few):
    still, full = decoder(), decoder()
    before, weights = loss_on_answers(still), own_weights(full)
    list(follow(still, replace(HOW, rate=1e-9)))
    assert loss_on_answers(still) == pytest.approx(before, abs=0.01)
    list(follow(full, replace(HOW, strategy=Full(), rate=1e-3), steps=1))
    assert not same_weights(full, weights)


def first_loss(model, how=HOW):
    """Of a step that changes nothing."""
    return next(follow(model, replace(how, rate=1e-9), steps=1)).loss


def test_the_strategy_is_applied_once_and_a_second_run_goes_on_with_the_adapter(few, tmp_path):
    model = decoder()
    untuned = first_loss(model)
    assert adaptation(model).lookup().strategy == HOW.strategy
    list(follow(model, HOW))
    assert list(adaptation(model).applied) == ["default"]
    tuned = held_out_loss(model, islice(tuning_batches(HOW), 1))
    assert first_loss(model) == pytest.approx(tuned, abs=1e-3) and tuned < untuned - 1
    assert list(adaptation(model).applied) == ["default"]

    loaded = decoder()
    load_adapter(loaded, save_adapter(model, tmp_path / "adapter"), name="loaded")
    other = replace(HOW, strategy=LoRA(rank=2))
    assert first_loss(loaded, other) == pytest.approx(tuned, abs=1e-3)
    assert list(adaptation(loaded).applied) == ["loaded"] == [active_adapter(loaded)]
    fresh = decoder()
    assert first_loss(fresh, other) == pytest.approx(untuned, abs=1e-3)  # the control: without it, what is asked for
    assert adaptation(fresh).lookup().strategy == LoRA(rank=2)


def test_the_rate_rises_then_falls_and_a_shorter_run_is_as_long_as_is_said(few):
    rates = [row.rate for row in follow(decoder(), replace(HOW, epochs=4), steps=11)]
    assert len(rates) == 11 and max(rates) == HOW.rate
    top = rates.index(HOW.rate)
    assert top == 1  # a fifth of the steps
    assert all(one < other for one, other in pairwise(rates[: top + 1]))
    assert all(one > other for one, other in pairwise(rates[top + 1 :])) and 0 < rates[-1] < HOW.rate / 8


def test_a_seed_decides_what_becomes_of_a_decoder(few):
    def tuned(seed):
        model = decoder()
        list(follow(model, replace(HOW, seed=seed), steps=2))
        return torch.cat([p.flatten() for name, p in model.named_parameters() if is_added(name)])

    one, again, other = tuned(0), tuned(0), tuned(1)
    assert torch.equal(one, again) and not torch.equal(one, other)
    for seed in (0, 1):  # what the adapter begins with, by hand
        begun, wanted = decoder(), decoder()
        first_loss(begun, replace(HOW, seed=seed))
        apply(wanted, HOW.strategy, seed=1)
        parts = zip(begun.named_parameters(), wanted.named_parameters(), strict=True)
        same = [torch.allclose(p, q, atol=1e-5) for (name, p), (_, q) in parts if name.endswith(".A")]
        assert all(same) == any(same) == (seed == 1)


# ---------------------------------------------------------------- answers


def prompts(name="begin", count=7):
    return held_out_prompts(TASKS[name], count)


def test_a_seed_decides_the_answers(few):
    model = decoder()
    one, again, other = (answers(model, prompts(), replace(SHORT, seed=seed)) for seed in (0, 0, 1))
    assert one == again and len(one) == 7
    assert all(text != changed for text, changed in zip(one, other, strict=True))
    assert (
        max(len(text.split()) for text in one) <= 6 < max(len(text.split()) for text in answers(model, prompts()[:2]))
    )


def test_the_same_prompt_is_answered_otherwise_in_every_row_and_batch(few):
    written = answers(decoder(), prompts()[:1] * 7, SHORT, batch_size=3)
    assert len(set(written)) == len(written) == 7
    greedy = answers(decoder(), prompts()[:1] * 7, replace(SHORT, temperature=0), batch_size=3)
    assert len(set(greedy)) == 1  # the control: the best token alone
    assert answers(decoder(), prompts()[:1], replace(SHORT, top_p=1e-9)) == greedy[:1]  # and by another option


def test_a_decoder_goes_on_from_the_prompt_that_it_was_tuned_on(few, monkeypatch):
    """And from the beginning of an input that is too long."""
    read_prompts = []
    monkeypatch.setattr(following, "generate", lambda model, rows, *a, **k: read_prompts.extend(rows) or rows)
    for name in ("positive", "begin", "repeat", "classify"):
        read_prompts.clear()
        answers(decoder(), prompts(name), SHORT)
        for one, ids in zip(prompts(name), read_prompts, strict=True):
            encoded = encode(one, course_tokenizer(), max_len=2 * MAX_LEN)
            prompt = [i for i, learned in zip(encoded.input_ids, encoded.completion_mask, strict=True) if not learned]
            assert len(ids) <= MAX_LEN
            assert (ids == prompt) == (len(prompt) <= MAX_LEN)
    assert any(len(ids) == MAX_LEN for ids in read_prompts)  # some reviews are longer


# ---------------------------------------------------------------- prompts


def stands_in(split, task, one):
    """Whether a prompt and its answer are made of a split's reviews."""
    if task.repeats:
        words = one.input.split()
        return any(sorted(text.split()[: len(words)]) == sorted(words) for text in sentences_of(split))
    parts = [one.input] if task.classifies else [one.input, one.output]
    return all(any(normalize(part) in text for text in normal_texts(split)) for part in parts)


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_made_of_test_reviews_in_wordings_that_no_model_was_tuned_on(few, name):
    task = TASKS[name]
    found = held_out_prompts(task, 20)
    assert len(found) == 20 and found == held_out_prompts(task, 20)
    assert not {normalize(one.instruction) for one in found} & TASK_OF_TUNED
    assert {one.instruction for one in found} <= set(task.asked(held_out=True))
    assert all(stands_in("test", task, one) for one in found)
    tuned = make_examples(task, 20, clear=0.0)  # the control
    assert not all(stands_in("test", task, one) for one in tuned)
    assert task.is_held_out or {normalize(one.instruction) for one in tuned} <= TASK_OF_TUNED


@pytest.mark.parametrize(("name", "other"), [HELD_OUT, HELD_OUT[::-1]])
def test_exchanged_prompts_keep_the_request_and_take_the_words_of_the_other_sentiment(few, name, other):
    task, labels = TASKS[name], labelled("test")
    found, asked, others = exchanged_prompts(task, 20), held_out_prompts(task, 20), held_out_prompts(TASKS[other], 20)
    assert [one.instruction for one in found] == [one.instruction for one in asked]
    assert [(one.input, one.output) for one in found] == [(one.input, one.output) for one in others]
    assert {labels[one.output] for one in found} == {1 - task.sentiment}
    assert {labels[one.output] for one in asked} == {task.sentiment}  # the control
    assert all(one.output.startswith(one.input) for one in found)


# ---------------------------------------------------------------- what a decoder may learn of its own


def invented(count, start=0):
    """Words that nobody has written."""
    return " ".join(f"zq{number}" for number in range(start, start + count))


def kept(monkeypatch, texts, positive=0.99, *, name="positive", sure=0.95):
    """What is kept of written texts, for a bag of words that is so sure of them (all, or each)."""
    monkeypatch.setattr(following, "answers", lambda decoder, asked, sampling: list(texts))
    monkeypatch.setattr(following, "sentiment_by_words", lambda given: np.broadcast_to(positive, len(given)))
    how = replace(HOW, own=replace(HOW.own, count=len(texts), sure=sure))
    return [one.output for one in clear_reviews(None, TASKS[name], how, seed=0)]


def planted(words):
    """Texts that hold so many words in a row of what a decoder is tuned to write, in different places."""
    sentence, *_ = (text for text in labelled("train") if len(text.split()) > 12)
    goes_on = next(one.output for one in make_examples(TASKS["continue"], 50) if len(one.output.split()) > 12)
    assert normalize(goes_on) not in labelled("train")
    copied = [sentence.split()[:words], sentence.split()[-words:], goes_on.split()[2 : 2 + words]]
    return [
        f"{' '.join(copied[0])} {invented(5)}",
        f"{invented(6)} {' '.join(copied[1])}",
        f"{invented(7)} {' '.join(copied[2])} {invented(8, 20)}",
        f"{invented(4)} {'  '.join(copied[0]).upper()} {invented(3, 30)}",
    ]


def test_a_review_with_a_run_of_words_from_the_text_of_tuning_is_not_learned(few, monkeypatch):
    own = invented(12)
    assert kept(monkeypatch, [*planted(RUN), own]) == [own]
    shorter = planted(RUN - 1)
    assert kept(monkeypatch, [*shorter, own]) == [*shorter, own]  # one word less is no copy
    monkeypatch.setattr(following, "RUN", 99)
    assert len(kept(monkeypatch, planted(RUN))) == 4  # the control: where nothing is a run


def test_words_of_a_test_review_are_no_copy(few, monkeypatch):
    texts = [text for text in labelled("test") if len(text.split()) > RUN][:20]
    assert kept(monkeypatch, texts) == texts
    assert kept(monkeypatch, [text for text in labelled("train") if len(text.split()) > RUN][:20]) == []


def test_a_review_of_another_length_is_not_learned(few, monkeypatch):
    texts = [invented(count, 100 * count) for count in (0, 1, 7, 8, 9, 44, 45, 46, 60)]
    assert [len(text.split()) for text in kept(monkeypatch, texts)] == [8, 9, 44, 45]
    monkeypatch.setattr(following, "WORDS", range(99))
    assert kept(monkeypatch, texts) == texts  # the control


def test_a_review_of_unsure_or_of_the_other_sentiment_is_not_learned(few, monkeypatch):
    texts, positive = [invented(9, 50 * n) for n in range(5)], [1.0, 0.95, 0.9499, 0.06, 0.04]
    assert kept(monkeypatch, texts, positive) == texts[:2]
    assert kept(monkeypatch, texts, positive, name="negative") == texts[4:]
    assert kept(monkeypatch, texts, positive, sure=0.5) == texts[:3]
    assert kept(monkeypatch, texts, positive, name="negative", sure=0.5) == texts[3:]


def test_a_review_is_learned_once_and_beside_the_request_that_it_answers(few, monkeypatch):
    texts = [invented(7), invented(9), invented(9).upper(), invented(10), invented(9).replace(" ", "  "), invented(11)]
    assert kept(monkeypatch, texts) == [texts[1], texts[3], texts[5]]
    how = replace(HOW, own=replace(HOW.own, count=len(texts), sure=0.9))
    for seed in (0, 1):
        asked = make_examples(TASKS["positive"], len(texts), seed=seed)
        found = clear_reviews(None, TASKS["positive"], how, seed)
        assert [(one.instruction, one.input, one.output) for one in found] == [
            (asked[place].instruction, "", texts[place]) for place in (1, 3, 5)
        ]
        assert {normalize(one.instruction) for one in found} <= TASK_OF_TUNED


def test_a_review_with_a_slur_is_not_learned(few, monkeypatch):
    """What stands on the list stands there as a hash alone: here an invented word is put on it."""
    texts = [invented(9), invented(9, 5)]
    assert kept(monkeypatch, texts) == texts
    monkeypatch.setattr(data, "_is_slur", lambda word: word == "zq3")
    assert kept(monkeypatch, texts) == texts[1:]


def test_a_decoder_is_asked_for_as_many_reviews_as_is_said_and_its_own_words_are_judged(few, monkeypatch):
    """Nothing stands in for the decoder, nor for the bag of words."""
    monkeypatch.setattr(following, "generate", short)
    how, model = replace(HOW, own=replace(HOW.own, count=30, sure=0.5)), decoder()
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=3)
    asked = make_examples(TASKS["negative"], 30, seed=3)
    written = answers(model, asked, sampling)
    positive_N = tasks.sentiment_by_words(written)
    found = clear_reviews(model, TASKS["negative"], how, 3)
    wanted = [text for text, p in zip(written, positive_N, strict=True) if p <= 0.5 and len(text.split()) in WORDS]
    assert [one.output for one in found] == wanted and 0 < len(wanted) < 30
    assert clear_reviews(model, TASKS["negative"], how, 4) != found  # the control: another seed


# ---------------------------------------------------------------- originality


def test_copied_texts_are_all_copy_and_invented_ones_none(few, monkeypatch):
    copied = [text for text in labelled("train") if len(text.split()) > 9][:20]
    invention = [invented(20, 100 * n) for n in range(20)]
    monkeypatch.setattr(following, "clear_sentences", lambda split, label, clear: (copied[0], invention[0]))
    assert originality(copied)[0] == 1.0
    assert originality([text.upper() for text in copied])[0] == 1.0
    assert originality(invention)[0] == 0.0
    runs = [len(text.split()) - RUN + 1 for text in (copied[0], copied[1], invention[0])]
    share = (runs[0] + runs[1]) / (sum(runs) + runs[2])
    assert originality([*copied[:2], *invention[:2]])[0] == pytest.approx(share)  # every run counts alike
    assert 0 < share < 1


def test_beside_it_stands_what_as_many_sentences_of_people_share(few, monkeypatch):
    """As many of each sentiment, which no model has read."""
    copied = [text for text in labelled("train") if len(text.split()) == 12][:2]
    asked, own = [], [invented(12, 100 * n) for n in range(9)]

    def clear(split, label, sure):
        asked.append((split, label, sure))
        return (own[0], copied[label], own[1 + label], copied[label], copied[label])

    monkeypatch.setattr(following, "clear_sentences", clear)
    shares = [originality(own[:count])[1] for count in (2, 4, 6, 8)]
    assert shares == [0.0, 0.5, pytest.approx(1 / 3), 0.5]
    assert set(asked) == {("test", 0, 0.9), ("test", 1, 0.9)}


def test_a_run_is_counted_as_a_search_in_the_texts_would_count_it(few, monkeypatch):
    monkeypatch.setattr(following, "clear_sentences", lambda split, label, clear: tuple(labelled(split)))
    tuned = (make_examples(TASKS[name], 10**6, clear=0.0) for name in ("positive", "negative", "begin", "continue"))
    everything = "".join(f" {normalize(one.output)} |" for examples in tuned for one in examples)
    texts = [*labelled("test"), *planted(RUN), *planted(RUN - 1)]
    words = [normalize(text).split() for text in texts]
    runs = [row[n : n + RUN] for row in words for n in range(len(row) - RUN + 1)]
    share = np.mean([f" {' '.join(run)} " in everything for run in runs])
    assert originality(texts)[0] == pytest.approx(share) and 0 < share < 0.1


# ---------------------------------------------------------------- judging answers


class MadeUp:
    """A judge that likes one word."""

    def positive(self, texts):
        return np.array([0.5 if "good" in text else 0.4999 for text in texts], np.float32)


ASKED = Instruction("Whatever.", "it is", "positive")
WRITTEN = ["it is good", "it is bad", "good", "It was, and it is good. And bad.", "", " Positive ", "Negative", "it is"]
JUDGED = {  # which of these answers obey, and which are as asked
    "positive": ([1, 1, 0, 1, 0, 0, 0, 1], [1, 0, 1, 1, 0, 0, 0, 0]),
    "negative": ([1, 1, 0, 1, 0, 0, 0, 1], [0, 1, 0, 0, 1, 1, 1, 1]),
    "classify": ([0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0, 0]),
    "begin": ([1, 1, 0, 0, 0, 0, 0, 0], None),
    "continue": ([1, 1, 0, 0, 0, 0, 0, 0], None),
    "repeat": ([0, 0, 0, 0, 0, 0, 0, 1], None),
    "positive, begun": ([1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0, 0, 0]),
    "negative, begun": ([1, 1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_counted_as_the_rules_and_the_judge_say(monkeypatch, name):
    monkeypatch.setattr(following, "answers", lambda decoder, asked, sampling: list(WRITTEN))
    done = assess(None, TASKS[name], [ASKED] * len(WRITTEN), judge=MadeUp())
    obeyed, as_asked = JUDGED[name]
    assert done.obeyed.tolist() == list(map(bool, obeyed))
    assert done.share_obeyed().value == sum(obeyed) / 8 and done.share_obeyed().holds(sum(obeyed) / 8)
    if as_asked is None:
        assert done.as_asked is None
    else:
        assert done.as_asked.tolist() == list(map(bool, as_asked))
        assert done.share_as_asked().value == sum(as_asked) / 8
    assert (done.task, done.asked, done.written) == (TASKS[name], (ASKED,) * 8, tuple(WRITTEN))


@pytest.mark.parametrize("name", TASKS)
def test_the_likeliest_answer_counts_where_the_prompt_settles_it_and_a_drawn_one_elsewhere(monkeypatch, name):
    used = []
    monkeypatch.setattr(following, "answers", lambda decoder, asked, sampling: used.append(sampling) or list(WRITTEN))
    for sampling in (None, SHORT):
        assess(None, TASKS[name], [ASKED] * len(WRITTEN), sampling, judge=MadeUp())
    is_drawn = name in ("positive", "negative", "continue")
    assert used == [Sampling() if is_drawn else LIKELIEST, SHORT]


def test_a_decoder_is_assessed_by_what_it_writes(few):
    model, task, sampling = decoder(), TASKS["negative"], replace(SHORT, max_new_tokens=3, seed=2)
    asked = held_out_prompts(task, 30)
    done = assess(model, task, asked, sampling, judge=MadeUp())
    assert list(done.written) == answers(model, asked, sampling) != answers(model, asked, replace(sampling, seed=3))
    assert done.obeyed.tolist() == [len(text.split()) > 1 for text in done.written]
    assert 0 < done.obeyed.sum() < 30
    assert done.as_asked.tolist() == ["good" not in text for text in done.written]


# ---------------------------------------------------------------- the second stage


def test_the_second_stage_learns_from_its_own_clear_reviews_beside_examples_of_other_tasks(few, monkeypatch):
    """In every round anew: the decoder's own reviews in each epoch, and the others drawn for it."""
    rounds, written = [], []

    def noted(model, batches, *, steps, **more):
        batches = list(islice(batches, steps))
        rounds.append([row for batch in batches for row in real_rows(batch)])
        assert all(asks_for_answers_alone(batch) for batch in batches)
        yield from train(model, iter(batches), steps=steps, **more)

    def clear(decoder, task, how, seed):
        found = clear_reviews(decoder, task, how, seed)
        written.append((task.name, seed, found))
        return found

    model = decoder()
    list(follow(model, HOW, steps=1))
    base = own_weights(model)
    monkeypatch.setattr(following, "generate", short)
    monkeypatch.setattr(following, "train", noted)
    monkeypatch.setattr(following, "clear_reviews", clear)
    rows = list(refine(model, HOW))
    assert [name for name, _, _ in written] == ["positive", "negative"] * 2
    assert len({seed for _, seed, _ in written}) == 2
    assert same_weights(model, base) and not model.training
    others = []
    for learned, pair in zip(rounds, (written[:2], written[2:]), strict=True):
        own = [encode(one, course_tokenizer(), max_len=MAX_LEN).input_ids for *_, found in pair for one in found]
        assert own and len(learned) == 2 * (len(own) + 15)
        half = len(learned) // 2
        for epoch in (learned[:half], learned[half:]):
            assert not Counter(own) - Counter(epoch)
            others.append(Counter(epoch) - Counter(own))
            assert Counter(TASK_OF[read(row)[0]] for row in others[-1].elements()) == HOW.own.others
            assert {normalize(read(row)[0]) for row in epoch} <= TASK_OF_TUNED
    assert all(one != other for n, one in enumerate(others) for other in others[:n])
    assert len(rows) == sum(2 * -(-len(learned) // 2 // 16) for learned in rounds)
    assert [one.output for one in written[0][2]] != [one.output for one in written[2][2]]
    rates = [row.rate for row in rows]
    assert max(rates) == HOW.own.rate and rates[-1] < HOW.own.rate / 2


# ---------------------------------------------------------------- the record


def stand_in(monkeypatch, folder):
    """A tiny decoder, a made-up judge and short answers for the recorder."""
    see_few(monkeypatch)
    (folder / "decoder").mkdir(exist_ok=True)
    (folder / "decoder" / "model.safetensors").write_bytes(b"tiny")
    read = []
    monkeypatch.setattr(following, "load_checkpoint", lambda name: read.append(decoder()) or read[-1])
    monkeypatch.setattr(following, "CHECKPOINTS_FOLDER", folder)
    monkeypatch.setattr(following, "load_judge", MadeUpByLength)
    monkeypatch.setattr(following, "generate", short)
    monkeypatch.setattr(following, "clear_sentences", lambda split, label, clear: tuple(labelled(split))[label::2])
    return read


class MadeUpByLength:
    def positive(self, texts):
        return np.array([len(text) % 2 for text in texts], np.float32)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """One whole recording: its file, its adapter's folder, and the decoder behind it."""
    folder = tmp_path_factory.mktemp("recording")
    with pytest.MonkeyPatch.context() as monkeypatch:
        read, said = stand_in(monkeypatch, folder), []
        path = record_following(
            path=folder / "following.jsonl", folder=folder / "instructions", how=HOW, count=4, progress=said.append
        )
    (tuned,) = read
    return SimpleNamespace(path=path, folder=folder / "instructions", home=folder, tuned=tuned, said=said)


def values(path):
    return {(row["name"], row["metric"]): row["value"] for row in Record(path).rows()}


def metrics_of(name):
    task = TASKS[name]
    judged = ["as asked"] * (task.classifies or task.sentiment is not None)
    return ["obeyed", *judged, *["both", "as asked, words exchanged"] * task.is_held_out]


def wanted_rows(*stages):
    of_reviews = ("distinct", "median words", "copied", "copied by people")
    return [
        (f"{when}, {name}", metric)
        for when in stages
        for name, metrics in [*((name, metrics_of(name)) for name in TASKS), ("reviews", of_reviews)]
        for metric in metrics
    ]


def test_the_record_holds_all_metrics_of_every_stage(recording):
    rows = Record(recording.path).rows()
    assert [(row["name"], row["metric"]) for row in rows] == wanted_rows("before", "first stage", "after")
    assert {row["step"] for row in rows if not row["name"].endswith("reviews")} == {4}
    assert {row["step"] for row in rows if row["name"].endswith("reviews")} == {8}
    (sitting,) = Record(recording.path).provenance()
    assert (
        sitting["following"] == asdict(HOW)
        and sitting["sampling"] == [asdict(Sampling()), asdict(LIKELIEST)]
        and sitting["count"] == 4
    )
    stages = [[row["value"] for row in rows if row["name"].startswith(when)] for when in ("before", "first", "after")]
    assert stages[0] != stages[1] != stages[2] != stages[0]  # the control: tuning changes what is measured
    assert len(recording.said) == 3 * len(TASKS)


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_recorded_is_what_is_assessed(recording, monkeypatch, when):
    stand_in(monkeypatch, recording.home)
    model, found = decoder() if when == "before" else recording.tuned, values(recording.path)
    written = []
    for name, task in TASKS.items():
        done = assess(model, task, held_out_prompts(task, 4))
        assert found[f"{when}, {name}", "obeyed"] == done.obeyed.mean()
        if done.as_asked is not None:
            assert found[f"{when}, {name}", "as asked"] == done.as_asked.mean()
        if task.is_held_out:
            assert found[f"{when}, {name}", "both"] == (done.obeyed & done.as_asked).mean()
            other = assess(model, task, exchanged_prompts(task, 4))
            assert found[f"{when}, {name}", "as asked, words exchanged"] == other.as_asked.mean()
        if name in ("positive", "negative"):
            written += done.written
    of_reviews = (found[f"{when}, reviews", metric] for metric in ("distinct", "median words"))
    assert tuple(of_reviews) == (len(set(map(normalize, written))) / 8, np.median([len(t.split()) for t in written]))
    shares = (found[f"{when}, reviews", metric] for metric in ("copied", "copied by people"))
    assert tuple(shares) == originality(written)


def test_the_saved_adapter_gives_the_same_answers(recording, few):
    loaded, asked = decoder(), prompts()
    load_adapter(loaded, recording.folder)
    assert answers(loaded, asked, SHORT) == answers(recording.tuned, asked, SHORT) != answers(decoder(), asked, SHORT)


def test_an_adapter_that_is_there_is_only_judged(recording, monkeypatch, tmp_path):
    stand_in(monkeypatch, recording.home)
    before = {file.name: file.read_bytes() for file in recording.folder.iterdir()}
    path = record_following(
        path=tmp_path / "again.jsonl", folder=recording.folder, how=HOW, count=4, progress=lambda words: None
    )
    assert {file.name: file.read_bytes() for file in recording.folder.iterdir()} == before
    assert list(values(path)) == wanted_rows("before", "after")
    assert values(path).items() <= values(recording.path).items()


def test_repeated_and_copied_reviews_are_counted(recording, monkeypatch, tmp_path):
    stand_in(monkeypatch, recording.home)
    copied = next(text for text in labelled("train") if len(text.split()) == 12)
    written = [copied, copied.upper(), invented(12), invented(34)]
    monkeypatch.setattr(following, "answers", lambda decoder, asked, sampling: list(written))
    path = record_following(
        path=tmp_path / "copied.jsonl", folder=recording.folder, how=HOW, count=4, progress=lambda words: None
    )
    found = {metric: value for (name, metric), value in values(path).items() if name == "after, reviews"}
    assert found["distinct"] == 3 / 8 and found["median words"] == 12
    assert found["copied"] == pytest.approx((5 + 5) / (5 + 5 + 5 + 27)) and found["copied by people"] < 0.05


CHANGED = [
    ({"how": replace(HOW, epochs=3)}, "following .*'epochs': 2.* not .*'epochs': 3"),
    ({"how": replace(HOW, strategy=LoRA(rank=5, alpha=16))}, "following .*'rank': 4.* not .*'rank': 5"),
    ({"how": replace(HOW, own=replace(HOW.own, sure=0.9))}, r"following .*'sure': 0\.0.* not .*'sure': 0\.9"),
    ({"how": Following()}, "following .*'epochs': 2.* not .*'epochs': 5"),
    ({"count": 5}, "count 4, not 5"),
]


@pytest.mark.parametrize(("change", "words"), CHANGED)
def test_a_recording_does_not_go_on_with_another_following(recording, monkeypatch, change, words):
    read = stand_in(monkeypatch, recording.home)
    before, options = recording.path.read_bytes(), {"how": HOW, "count": 4} | change
    with pytest.raises(ValueError, match=f"begun with {words}.*give the same again, or start another run"):
        record_following(path=recording.path, folder=recording.folder, progress=print, **options)
    assert recording.path.read_bytes() == before and read == []


def test_a_recording_does_not_go_on_with_another_decoder_and_a_second_sitting_adds_nothing(recording, monkeypatch):
    read, before = stand_in(monkeypatch, recording.home), recording.path.read_bytes()

    def again():
        record_following(path=recording.path, folder=recording.folder, how=HOW, count=4, progress=lambda words: None)

    (recording.home / "decoder" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="begun with decoder_sha256 "):
        again()
    assert read == []
    (recording.home / "decoder" / "model.safetensors").write_bytes(b"tiny")
    again()
    assert recording.path.read_bytes() == before and len(read) == 1


# ---------------------------------------------------------------- the judge


@cache
def tiny_body():
    body = tiny("masked", n_layers=1, max_len=256, shake=0.5)
    assert isinstance(body, Encoder)
    return body.eval()


def tiny_judge():
    return Judge(shaken(Classifier(copy.deepcopy(tiny_body())), 0.5).eval(), course_tokenizer())


def test_a_judge_is_undecided_about_a_text_without_a_word(few):
    judge, texts = tiny_judge(), ["a good film", "", "  ", "a bad film", "\n\t"]
    found = judge.positive(texts)
    assert found.shape == (5,) and found.dtype == np.float32
    assert (found == 0.5).tolist() == [False, True, True, False, True]
    assert judge.positive(["a good film", "a bad film"]) == pytest.approx(found[[0, 3]], abs=1e-5)
    assert (predictions(judge.classifier, ["."], judge.tokenizer)[:, 1] != 0.5).all()  # the control: what is shown


def test_a_judge_ignores_what_stands_behind_the_stretch(few):
    judge = tiny_judge()
    texts = [review.text for review in few_of("judge", "imdb") if len(review.text.split()) > 200][:8]
    assert len(texts) == 8
    behind = [" ".join([*text.split()[:126], *["a", "dull", "mess"] * 50]) for text in texts]  # a token a word or more
    assert np.array_equal(judge.positive(behind), judge.positive(texts))
    before = [" ".join([*text.split()[:40], *["a", "dull", "mess"] * 50]) for text in texts]
    assert (judge.positive(before) != judge.positive(texts)).all()  # the control


def test_a_text_is_judged_right_by_its_label(few):
    judge = tiny_judge()
    texts = [review.text for review in few_of("judge", "rotten_tomatoes")]
    given = judge.positive(texts)
    with torch.no_grad():  # half of them on either side
        judge.classifier.head.bias[1] -= float(np.median(np.log(given / (1 - given))))
    called = judge.positive(texts) >= 0.5
    assert 0 < called.sum() < len(texts)
    assert judge.is_right(texts, called.astype(int).tolist()).all()
    assert not judge.is_right(texts, (~called).tolist()).any()
    assert judge.is_right(["", ""], [1, 0]).tolist() == [True, False]  # undecided counts as positive


def test_the_judge_learns_from_reviews_that_are_kept_for_it_and_from_their_sentences(few):
    texts, labels = judge_texts()
    known = normal_texts("judge")
    assert texts[: len(known)] == [review.text for review in few_of("judge")]
    assert dict(zip(texts[len(known) :], labels[len(known) :], strict=True)) == labelled("judge")
    for text, label in zip(texts, labels, strict=True):
        normal = normalize(text)
        assert any(of == label and normal in review for review, of in known.items())
    for split in ("train", "test"):
        others = {*normal_texts(split), *labelled(split)}
        assert not others & set(map(normalize, texts))


def test_a_judge_that_is_trained_again_is_saved_as_it_was_trained(few, monkeypatch, tmp_path):
    bare = lambda: (Classifier(copy.deepcopy(tiny_body())), course_tokenizer())
    quick = FineTuning(rate=0.02, epochs=2, max_tokens=200, head_strength=0.005, length_grouped=True)
    texts, labels = (part[:24] for part in judge_texts())
    monkeypatch.setattr(judging, "_bare", bare)
    monkeypatch.setattr(judging, "TRAINING", quick)
    monkeypatch.setattr(judging, "STRATEGY", LoRA(rank=2))
    monkeypatch.setattr(judging, "judge_texts", lambda: (texts, labels))
    folder = record_judge(folder=tmp_path / "judge", progress=lambda words: None)
    monkeypatch.setattr(judging, "ADAPTERS_FOLDER", folder.parent)
    loaded = load_judge.__wrapped__()

    trained, tokenizer = bare()  # by hand
    apply(trained, LoRA(rank=2), modules_to_save=["head"])
    fine_tune(trained, first_tokens(texts, tokenizer), labels, tokenizer, quick)
    asked = [review.text for review in few_of("test", "rotten_tomatoes")[:20]]
    wanted = Judge(trained, tokenizer).positive(asked)
    assert loaded.positive(asked) == pytest.approx(wanted, abs=1e-6)
    monkeypatch.setattr(judging, "judge_texts", lambda: (texts, [1 - label for label in labels]))  # the control
    record_judge(folder=tmp_path / "other" / "judge", progress=lambda words: None)
    monkeypatch.setattr(judging, "ADAPTERS_FOLDER", tmp_path / "other")
    assert np.abs(load_judge.__wrapped__().positive(asked) - wanted).max() > 0.01


# ---------------------------------------------------------------- what the course ships

SHIPPED = data.DATA_FOLDER / "records" / "following.jsonl"


def test_the_shipped_record_holds_all_metrics_of_every_stage_and_was_made_with_todays_settings(monkeypatch):
    if not SHIPPED.is_file():
        pytest.skip("data/records/following.jsonl is not recorded yet: `course record following` makes it")
    before, found = SHIPPED.read_bytes(), values(SHIPPED)
    assert sorted(found) == sorted(wanted_rows("before", "first stage", "after"))
    assert len(Record(SHIPPED).rows()) == len(found)
    shares = {key: value for key, value in found.items() if key[1] != "median words"}
    assert all(0 <= value <= 1 for value in shares.values())
    of_tasks = {key: 100 * value for key, value in shares.items() if not key[0].endswith("reviews")}
    assert all(abs(count - round(count)) < 1e-6 for count in of_tasks.values())  # of a hundred prompts

    def begin(name):
        raise InterruptedError("the settings are the same")

    monkeypatch.setattr(following, "load_checkpoint", begin)
    with pytest.raises(InterruptedError):
        record_following(path=SHIPPED)
    with pytest.raises(ValueError, match="begun with following"):  # the control
        record_following(path=SHIPPED, how=Following(seed=1))
    assert SHIPPED.read_bytes() == before


@pytest.mark.slow
def test_the_shipped_judge_is_right_about_texts_that_it_has_not_read():
    judge, reviews = load_judge(), reviews_of("test", "rotten_tomatoes")[:200]
    texts, labels = [review.text for review in reviews], [review.label for review in reviews]
    right = judge.is_right(texts, labels).sum()
    assert right > 0.7 * len(texts) and not within_binomial(int(right), len(texts), 0.5)
    bare = Judge(*judging._bare())  # the control: an even head
    assert set(bare.positive(texts).tolist()) == {0.5}
    assert judge.positive(["", " "]).tolist() == [0.5, 0.5]


@pytest.mark.slow
def test_no_generator_has_read_what_the_judge_learned_from():
    read = {normalize(text) for text in data.training_texts()}
    texts, _ = judge_texts()
    assert len(texts) > 3000 and not read & set(map(normalize, texts))
    tuned = {normalize(text) for text in tasks.labelled_sentences("train")[0]}
    assert not tuned & set(map(normalize, texts))
    assert len(read & {normalize(review.text) for review in reviews_of("train")}) == len(read)  # the control


@pytest.mark.slow
def test_the_shipped_follower_does_what_the_decoder_alone_does_not():
    base, follower = load_checkpoint("decoder"), load_follower().cpu()
    assert same_weights(follower, own_weights(base))
    for name in ("begin", "repeat", "classify"):
        asked = held_out_prompts(TASKS[name], 20)
        before, after = (assess(model, TASKS[name], asked).obeyed.mean() for model in (base, follower))
        assert before <= 0.2 and after >= 0.7, (name, before, after)
