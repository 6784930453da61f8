"""The comparison of five strategies at the size of a test: every one gets the same sentences, what stands in the record
is what the library measures, and a recording that was stopped goes on row by row. MiniLM itself is in the slow tests.
"""

import copy
import math
import shutil
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import within_binomial
from tiny import shaken

from course_lib import pretrained
from course_lib.data import DATA_FOLDER, course_tokenizer, reviews_of
from course_lib.evaluation import bag_of_words_predictions, first_tokens, frozen_features
from course_lib.finetuning import Classifier, FineTuning, fine_tune, fit_head, predictions
from course_lib.layers import TransformerConfig
from course_lib.model import Encoder
from course_lib.peft import STRATEGIES as KINDS
from course_lib.peft import Full, LoRA, apply
from course_lib.peft.slots import is_added
from course_lib.pretrained import minilm_folder
from course_lib.records import Record
from course_lib.runs import strategies
from course_lib.runs.strategies import (
    BASELINES,
    TRIALS,
    Adapted,
    Comparison,
    Trial,
    adapted,
    baseline_is_right,
    fresh_classifier,
    is_right,
    record_strategies,
)
from course_lib.tokenizer import load_tokenizer
from course_lib.training import new_model

RECORD = DATA_FOLDER / "records" / "strategies.jsonl"
NAMES = (*BASELINES, *TRIALS)
FEW = Comparison(labels=(4, 8), seeds=2, seeds_of_many=1, many=8, first_tests=5)
RUNS = [(4, 0), (4, 1), (8, 0)]  # labels and sample
WHOLE = Comparison()


@cache
def sentences(split, source):
    """60 to learn from, 12 to be tested on."""
    return reviews_of(split, source)[: 60 if split == "train" else 12]


@cache
def tiny_minilm():
    """A tiny encoder for the tokens of MiniLM."""
    tokenizer = load_tokenizer(minilm_folder() / "tokenizer.json")
    config = TransformerConfig(tokenizer.vocabulary.size, 8, 2, 2, 40, 160)
    return shaken(new_model(partial(Encoder, head=False), config, device="cpu"), 0.3).eval(), tokenizer


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The comparison with a tiny model in MiniLM's place, one short epoch and few sentences."""
    (tmp_path / "model.safetensors").write_bytes(b"tiny")
    quick = {name: replace(trial, training=replace(trial.training, epochs=1)) for name, trial in TRIALS.items()}
    quick["lora"] = replace(quick["lora"], strategy=LoRA(rank=2))
    monkeypatch.setattr(strategies, "minilm", tiny_minilm)
    monkeypatch.setattr(strategies, "minilm_folder", lambda: tmp_path)
    monkeypatch.setattr(strategies, "TRIALS", quick)
    monkeypatch.setattr(strategies, "reviews_of", sentences)
    monkeypatch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    return tmp_path


def record(folder, **options):
    return record_strategies(path=folder / "strategies.jsonl", comparison=FEW, progress=lambda words: None, **options)


def keys_of(rows):
    return [(row["name"], row["step"], row["seed"], row["metric"]) for row in rows]


# the sentences


def test_fewer_samples_are_drawn_where_there_are_many_labels():
    assert [list(FEW.seeds_at(labels)) for labels in FEW.labels] == [[0, 1], [0]]
    assert [len(WHOLE.seeds_at(labels)) for labels in (2, 998, 1000, 4000)] == [5, 5, 3, 3]


def test_no_test_sentence_is_in_any_training_sample():
    tests = {review.identity for review in WHOLE.tests}
    sampled = {
        review.identity
        for labels in WHOLE.labels
        for seed in WHOLE.seeds_at(labels)
        for review in WHOLE.sample(labels, seed)
    }
    assert len(tests) == len(WHOLE.tests) > 2 * WHOLE.first_tests
    assert len(sampled) > WHOLE.labels[-1] and not sampled & tests
    assert sampled <= {review.identity for review in WHOLE.pool}  # the control: what is there is found


@pytest.mark.parametrize("labels", WHOLE.labels)
def test_a_sample_has_as_many_sentences_of_each_kind_is_fixed_by_its_seed_and_holds_none_twice(labels):
    first, again, other = (WHOLE.sample(labels, seed) for seed in (0, 0, 1))
    assert sum(review.label for review in first) == labels / 2 == len(first) / 2
    assert len({review.identity for review in first}) == labels
    assert first == again != other


def test_every_strategy_and_baseline_gets_the_same_sample_and_the_same_tests(small, monkeypatch):
    given = []

    def note(name, sample, tests, *, seed):
        given.append((name, len(sample), seed, [r.identity for r in sample], [r.identity for r in tests]))
        return np.ones(len(tests), bool)

    monkeypatch.setattr(strategies, "_right", note)
    record(small)
    assert [case[:3] for case in given] == [(name, labels, seed) for labels, seed in RUNS for name in NAMES]
    for labels, seed in RUNS:
        samples = [case[3] for case in given if case[1:3] == (labels, seed)]
        assert samples == [[review.identity for review in FEW.sample(labels, seed)]] * len(NAMES)
    assert all(case[4] == [review.identity for review in sentences("test", "rotten_tomatoes")] for case in given)
    assert len({tuple(case[3]) for case in given}) == len(RUNS)  # the control: samples differ


# what is measured


def test_the_trials_are_the_five_strategies_each_with_the_head_first():
    assert {name: trial.strategy.kind for name, trial in TRIALS.items()} == {kind: kind for kind in KINDS}
    settings = [replace(trial.training, rate=1.0) for trial in TRIALS.values()]
    assert len(set(settings)) == 1 and settings[0].head_first  # what differs is the rate


def right_by_hand(name, sample, tests, seed):
    """The same from the library's parts, without the recorder's."""
    encoder, tokenizer = strategies.minilm()
    texts, labels = [r.text for r in sample], [r.label for r in sample]
    asked, wanted = [r.text for r in tests], np.array([r.label for r in tests])
    if name == "bag of words":
        read, tested = (first_tokens(part, course_tokenizer()) for part in (texts, asked))
        return bag_of_words_predictions(read, np.array(labels), tested) == wanted
    classifier = Classifier(copy.deepcopy(encoder))
    if name == "head alone":
        fit_head(classifier, frozen_features(encoder, texts, tokenizer), labels, strength=0.005)
    else:
        trial = strategies.TRIALS[name]
        apply(classifier, trial.strategy, modules_to_save=["head"], seed=seed)
        fine_tune(classifier, texts, labels, tokenizer, replace(trial.training, seed=seed))
    return predictions(classifier, asked, tokenizer).argmax(1) == wanted


@pytest.mark.slow
def test_the_record_holds_the_accuracy_on_all_tests_and_on_the_first_of_them(small):
    said = []
    path = record_strategies(path=small / "strategies.jsonl", comparison=FEW, progress=said.append)
    rows = Record(path).rows()
    metrics = ("accuracy_first", "accuracy")
    assert keys_of(rows) == [(name, *run, metric) for run in RUNS for name in NAMES for metric in metrics]
    assert len(said) == len(rows) / 2 and said[0].startswith("bag of words, 4 labels, sample 0: 0.")
    found = dict(zip(keys_of(rows), (row["value"] for row in rows), strict=True))
    for name in NAMES:
        right_N = right_by_hand(name, FEW.sample(4, 1), FEW.tests, seed=1)
        assert len(right_N) == 12
        assert found[name, 4, 1, "accuracy"] == right_N.mean()
        assert found[name, 4, 1, "accuracy_first"] == right_N[:5].mean()


def test_the_first_accuracy_is_of_the_first_tests_and_not_of_the_last(small, monkeypatch):
    right_N = np.arange(12) < 4
    monkeypatch.setattr(strategies, "_right", lambda name, sample, tests, *, seed: right_N)
    rows = Record(record(small)).rows()
    assert {row["value"] for row in rows if row["metric"] == "accuracy_first"} == {4 / 5}
    assert {row["value"] for row in rows if row["metric"] == "accuracy"} == {4 / 12}


@pytest.mark.parametrize("name", TRIALS)
def test_a_strategy_works_on_a_copy_and_trains_what_it_says_and_the_head(small, name):
    encoder, _ = strategies.minilm()
    before = {key: p.clone() for key, p in encoder.state_dict().items()}
    done = adapted(strategies.TRIALS[name], FEW.sample(8, 0))
    assert isinstance(done, Adapted) and len(done.losses) == 1 and math.isfinite(done.losses[0])
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
    assert done.applied.strategy == strategies.TRIALS[name].strategy
    assert {"head.weight", "head.bias"} <= set(done.applied.trained)
    own = {key: p for key, p in done.classifier.body.named_parameters() if not is_added(key)}
    moved = {f"body.{key}" for key, p in own.items() if not torch.equal(p, before[key])}
    may = {key for key in done.applied.trained if not is_added(key) and not key.startswith("head")}
    assert moved <= may and bool(moved) == (name in ("full", "bitfit"))


def test_the_seed_decides_what_a_strategy_begins_with_and_the_order_of_its_batches(small):
    sample = FEW.sample(8, 0)
    weights = [adapted(strategies.TRIALS["lora"], sample, seed=seed).classifier.head.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_fresh_classifier_has_learned_nothing_and_shares_nothing(small):
    one, other = fresh_classifier(), fresh_classifier()
    assert not one.head.weight.any() and not one.head.bias.any()
    with torch.no_grad():
        next(one.body.parameters()).zero_()
    assert next(other.body.parameters()).any() and next(strategies.minilm()[0].parameters()).any()


def test_what_is_right_goes_by_the_labels(small):
    classifier, tests = fresh_classifier(), FEW.tests
    with torch.no_grad():
        classifier.head.bias.copy_(torch.tensor([0.0, 1.0]))  # everything is called positive
    assert is_right(classifier, tests).tolist() == [review.label == 1 for review in tests]
    turned = [replace(review, label=1 - review.label) for review in tests]
    assert (is_right(classifier, turned) == ~is_right(classifier, tests)).all()


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_that_learned_from_turned_labels_gives_turned_answers(small, name):
    sample, other = FEW.sample(8, 0), FEW.sample(8, 1)
    turned = [replace(review, label=1 - review.label) for review in sample]
    right_N = baseline_is_right(name, sample, FEW.tests)
    assert (baseline_is_right(name, turned, FEW.tests) == ~right_N).all()
    assert (baseline_is_right(name, other, FEW.tests) != right_N).any()  # the control: it depends on the sample


@pytest.mark.parametrize("name", ["lora", "probe", ""])
def test_an_unknown_baseline_is_refused_before_anything_is_computed(name):
    with pytest.raises(ValueError, match=f"baseline '{name}' is unknown: choose one of bag of words, head alone"):
        baseline_is_right(name, [], [])


# going on


@pytest.fixture
def counted(small, monkeypatch):
    """Measuring that notes what it was asked, takes no time, and stops where it is told to."""
    asked = []

    def measure(name, sample, tests, *, seed):
        if len(asked) == measure.most:
            raise KeyboardInterrupt
        asked.append((name, len(sample), seed))
        return (np.arange(len(tests)) + len(sample) + seed + len(name)) % 3 > 0

    measure.most, measure.asked = math.inf, asked
    monkeypatch.setattr(strategies, "_right", measure)
    return measure


@pytest.mark.parametrize("most", [1, 7, 10])
def test_a_stopped_recording_goes_on_row_by_row(counted, small, tmp_path_factory, most):
    whole = Record(record(tmp_path_factory.mktemp("whole"))).rows()
    counted.asked.clear()
    counted.most = most
    with pytest.raises(KeyboardInterrupt):
        record(small)
    assert len(Record(small / "strategies.jsonl").rows()) == 2 * most
    first, counted.most = list(counted.asked), math.inf
    counted.asked.clear()
    rows = Record(record(small)).rows()
    assert len(counted.asked) == len(RUNS) * len(NAMES) - most and not set(counted.asked) & set(first)
    assert [(*key, row["value"]) for key, row in zip(keys_of(rows), rows, strict=True)] == [
        (*key, row["value"]) for key, row in zip(keys_of(whole), whole, strict=True)
    ]


def test_a_measurement_that_a_crash_cut_in_two_is_made_again_and_no_row_is_twice(counted, small):
    """The row of the first tests is there, the other was cut off."""
    path = record(small)
    whole = path.read_text()
    path.write_text(whole[: whole.rfind("\n", 0, -1) + 20])
    counted.asked.clear()
    record(small)
    assert counted.asked == [("bitfit", 8, 0)]
    rows = Record(path).rows()
    assert len(set(keys_of(rows))) == len(rows) == 2 * len(RUNS) * len(NAMES)


def test_a_second_sitting_adds_nothing(counted, small):
    before = record(small).read_bytes()
    counted.asked.clear()
    assert record(small).read_bytes() == before and counted.asked == []


OTHER = {
    "full": (Trial(Full(), FineTuning(rate=1e-5)), r"'rate': 0\.0001.* not .*'rate': 1e-05"),
    "lora": (Trial(LoRA(rank=3), TRIALS["lora"].training), "'rank': 2.* not .*'rank': 3"),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_recording_does_not_go_on_with_other_trials(counted, small, monkeypatch, name):
    before = record(small).read_bytes()
    counted.asked.clear()
    trial, words = OTHER[name]
    monkeypatch.setitem(strategies.TRIALS, name, trial)
    with pytest.raises(ValueError, match=f"begun with trials .*{words}.*give the same again, or start another run"):
        record(small)
    assert (small / "strategies.jsonl").read_bytes() == before and counted.asked == []


def test_a_recording_does_not_go_on_with_another_model(counted, small):
    before = record(small).read_bytes()
    (small / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"begun with minilm_sha256 .*give the same again, or start another run"):
        record(small)
    assert (small / "strategies.jsonl").read_bytes() == before


@pytest.mark.parametrize("change", [{"seeds": 3}, {"first_tests": 6}, {"many": 9}], ids=str)
def test_a_recording_does_not_go_on_with_another_comparison(counted, small, change):
    before = record(small).read_bytes()
    (name,) = change
    with pytest.raises(ValueError, match=rf"begun with comparison .*'{name}': .* not .*'{name}': "):
        record_strategies(path=small / "strategies.jsonl", comparison=replace(FEW, **change), progress=print)
    assert (small / "strategies.jsonl").read_bytes() == before


def test_other_numbers_of_labels_are_added_to_what_was_recorded(counted, small):
    rows = Record(record(small)).rows()
    counted.asked.clear()
    more = replace(FEW, labels=(2, 4))
    record_strategies(path=small / "strategies.jsonl", comparison=more, progress=lambda words: None)
    assert counted.asked == [(name, 2, seed) for seed in (0, 1) for name in NAMES]
    assert Record(small / "strategies.jsonl").rows()[: len(rows)] == rows
    counted.asked.clear()
    record(small)
    assert counted.asked == []


# MiniLM itself


def test_the_model_of_the_comparison_is_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(pretrained, "load_minilm", lambda: read.append(1) or ("model", "tokenizer"))
    strategies.minilm.cache_clear()
    assert strategies.minilm() == strategies.minilm() == ("model", "tokenizer") and read == [1]
    strategies.minilm.cache_clear()


@pytest.mark.slow
def test_minilm_learns_from_fifty_labels_what_it_did_not_know():
    tests = WHOLE.tests[: WHOLE.first_tests]
    right_N = is_right(adapted(TRIALS["lora"], WHOLE.sample(50, 0)).classifier, tests)
    assert right_N.mean() > 0.6 and not within_binomial(int(right_N.sum()), len(tests), 0.5)
    unlearned = is_right(fresh_classifier(), tests)  # the control: an even head calls everything 0
    assert unlearned.tolist() == [review.label == 0 for review in tests]


@pytest.mark.slow
def test_the_recorded_accuracy_is_measured_again():
    """Another machine sums in another order, or in bf16: a few of 300 sentences may fall on the other side."""
    values = recorded()
    tests, sample = WHOLE.tests[: WHOLE.first_tests], WHOLE.sample(50, 0)
    heads = baseline_is_right("head alone", sample, tests).mean()
    assert heads == pytest.approx(values["head alone", 50, 0, "accuracy_first"], abs=0.02)
    bitfit = is_right(adapted(TRIALS["bitfit"], sample).classifier, tests).mean()
    assert bitfit == pytest.approx(values["bitfit", 50, 0, "accuracy_first"], abs=0.05)


# the shipped record


def recorded():
    if not RECORD.is_file():
        pytest.skip("data/records/strategies.jsonl is not recorded yet: `course record strategies` makes it")
    return {key: row["value"] for row in Record(RECORD).rows() for key in keys_of([row])}


def test_the_shipped_record_has_every_row():
    """Five samples below 1,000 labels and three from there; more numbers of labels may be there than are asked for."""
    assert len(WHOLE.labels) == 5
    wanted = {
        (name, labels, seed, metric)
        for labels in WHOLE.labels
        for seed in range(5 if labels < 1000 else 3)
        for name in NAMES
        for metric in ("accuracy", "accuracy_first")
    }
    values = recorded()
    assert {key for key in values if key[1] in WHOLE.labels} == wanted
    assert len(Record(RECORD).rows()) == len(values)
    assert all(0 <= value <= 1 for value in values.values())
    for (*_, metric), value in values.items():  # shares of 300 sentences, or of all
        count = value * (WHOLE.first_tests if metric == "accuracy_first" else len(WHOLE.tests))
        assert count == pytest.approx(round(count), abs=1e-6)


def test_the_shipped_record_was_made_with_todays_settings_and_is_finished(tmp_path, monkeypatch):
    recorded()
    copied = Path(shutil.copy(RECORD, tmp_path))

    def refuse(name, *_arguments, **_options):
        raise AssertionError(f"{name} is not recorded")

    monkeypatch.setattr(strategies, "_right", refuse)
    record_strategies(path=copied, progress=print)
    assert copied.read_bytes() == RECORD.read_bytes()
