"""How many labels it takes, at the size of a test: every method learns from the same sample and reads the same stretch,
what stands in the record is what `outcome` measures, and a recording that was stopped goes on trial by trial. The tests
of all reviews are slow.
"""

import copy
import json
import math
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import within_binomial
from tiny import shaken, tiny

from course_lib.data import DATA_FOLDER, Review, course_tokenizer, reviews_of
from course_lib.evaluation import COMPARISON_TOKENS, first_tokens, fit_bag_of_words
from course_lib.finetuning import Classifier, FineTuning, fine_tune, predictions
from course_lib.layers import TransformerConfig
from course_lib.model import Encoder
from course_lib.peft import LoRA, apply
from course_lib.pretrained import minilm_folder
from course_lib.records import Record
from course_lib.runs import efficiency
from course_lib.runs.efficiency import (
    METHODS,
    SCRATCH_OF_MANY,
    SOURCES,
    Efficiency,
    Method,
    about,
    base_of,
    fitted,
    outcome,
    record_efficiency,
    trials,
)
from course_lib.tokenizer import load_tokenizer
from course_lib.training import new_model

RECORD = DATA_FOLDER / "records" / "efficiency.jsonl"
WHOLE = Efficiency()
FEW = Efficiency(labels=(4, 8), seeds=2, seeds_of_many=1, many=8, tests=10)
RUNS = [(4, 0), (4, 1), (8, 0)]  # labels and sample
QUICK = {n: FineTuning(rate=0.02, epochs=n // 2, head_first=False) for n in (4, 8)}
SMALL = {  # a method of each kind
    "bag of words": Method(None, {}),
    "scratch": Method("scratch", QUICK),
    "encoder": Method("encoder", QUICK),
    "MiniLM, LoRA": Method("minilm", QUICK, LoRA(rank=2)),
    "MiniLM, read on": Method("reader", QUICK),
    "bag of words, 12": Method(None, {}, tokens=12, sources=("imdb",)),
}
WORDS = {"bag of words": Method(None, {})}  # the method that is quickest


@cache
def some(split, source):
    """40 reviews to learn from, 12 to be tested on, positive and negative in turn."""
    kinds = [[review for review in reviews_of(split, source) if review.label == label] for label in (1, 0)]
    return [review for pair in zip(*kinds, strict=False) for review in pair][: 40 if split == "train" else 12]


@cache
def tiny_minilm():
    """A tiny encoder for the tokens of MiniLM."""
    tokenizer = load_tokenizer(minilm_folder() / "tokenizer.json")
    config = TransformerConfig(tokenizer.vocabulary.size, 8, 1, 2, 16, 400)
    return shaken(new_model(partial(Encoder, head=False), config, device="cpu"), 0.3).eval(), tokenizer


@cache
def tiny_reader():
    """Another one."""
    minilm, tokenizer = tiny_minilm()
    return shaken(copy.deepcopy(minilm), 0.3).eval(), tokenizer


@cache
def tiny_encoder():
    return tiny("masked", n_layers=1, max_len=260).eval()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Tiny models in place of the real ones, a few reviews in place of all, and quick methods."""
    (tmp_path / "encoder").mkdir()
    for file in ("model.safetensors", "encoder/model.safetensors", "adapter_model.safetensors"):
        (tmp_path / file).write_bytes(b"tiny")
    monkeypatch.setattr(efficiency, "METHODS", SMALL)
    monkeypatch.setattr(efficiency, "base_of", cache(base_of.__wrapped__))
    monkeypatch.setattr(efficiency, "minilm", tiny_minilm)
    monkeypatch.setattr(efficiency, "load_reader", tiny_reader)
    monkeypatch.setattr(efficiency, "READER_FOLDER", tmp_path)
    monkeypatch.setattr(efficiency, "load_checkpoint", {"encoder": tiny_encoder()}.__getitem__)
    monkeypatch.setattr(efficiency, "minilm_folder", lambda: tmp_path)
    monkeypatch.setattr(efficiency, "CHECKPOINTS_FOLDER", tmp_path)
    monkeypatch.setattr(efficiency, "reviews_of", some)
    monkeypatch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    return tmp_path


def record(folder, asked=FEW, *, progress=lambda words: None):
    return record_efficiency(path=folder / "efficiency.jsonl", efficiency=asked, progress=progress)


def keys_of(rows):
    return [(row["name"], row["step"], row["seed"], row["metric"]) for row in rows]


def values_of(rows):
    return [(*key, row["value"]) for key, row in zip(keys_of(rows), rows, strict=True)]


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("labels", "nearest"), [(2, 100), (100, 100), (223, 100), (224, 500), (500, 500), (1224, 500), (1225, 3000)]
)
def test_a_setting_is_that_of_the_nearest_number_of_labels(labels, nearest):
    settings = {n: FineTuning(rate=n * 1e-6) for n in (3000, 100, 500)}
    assert Method("minilm", settings).setting(labels) is settings[nearest]


def test_nearest_is_by_ratio_and_not_by_difference():
    settings = {n: FineTuning(rate=n * 1e-6) for n in (100, 500)}
    for labels in range(224, 300):
        assert Method("minilm", settings).setting(labels) is settings[500]
        assert min(settings, key=lambda known: abs(known - labels)) == 100  # the control: the other rule


def test_every_method_has_a_setting_for_every_number_of_labels_and_a_bag_of_words_none():
    for method in METHODS.values():
        assert bool(method.settings) == (method.base is not None)
    assert METHODS["scratch"].setting(3000) == SCRATCH_OF_MANY != METHODS["scratch"].setting(1000)
    pairs = [("encoder", "encoder, LoRA"), ("MiniLM", "MiniLM, LoRA")]
    assert all(METHODS[full].strategy is None and METHODS[low].strategy == efficiency.LORA for full, low in pairs)
    assert METHODS["MiniLM"].settings == METHODS["MiniLM, 256"].settings  # what differs is the stretch


# ---------------------------------------------------------------- samples


@cache
def numbered(split, source):
    return [Review(f"{split} {number}", number % 2, source) for number in range(9000)]


@pytest.mark.parametrize("labels", WHOLE.labels)
def test_a_sample_has_as_many_of_each_kind_none_twice_and_is_the_same_on_every_call(monkeypatch, labels):
    monkeypatch.setattr(efficiency, "reviews_of", numbered)
    first, again, other = (WHOLE.sample("imdb", labels, seed) for seed in (0, 0, 1))
    assert sum(review.label for review in first) == labels / 2 == len(first) / 2
    assert len(set(first)) == labels
    assert first == again != other
    assert set(first) <= set(numbered("train", "imdb")[:6000])  # twice the most labels, for every number of them


def test_samples_are_drawn_independently_of_each_other(monkeypatch):
    """Of a pool twice as large as the largest one, each holds half of any other as large, and is no part of a larger
    one."""
    monkeypatch.setattr(efficiency, "reviews_of", numbered)
    drawn = {(n, seed): set(WHOLE.sample("imdb", n, seed)) for n, seed in ((1000, 0), (1000, 1), (3000, 0), (3000, 1))}
    for one, other in combinations(drawn, 2):
        fewer, more = sorted((one, other))
        shared = len(drawn[fewer] & drawn[more])
        assert within_binomial(shared, fewer[0], more[0] / 6000)
        assert not within_binomial(len(drawn[fewer]), fewer[0], more[0] / 6000)  # the control: if it were a part of it


def test_the_tests_are_the_first_of_their_split(monkeypatch):
    monkeypatch.setattr(efficiency, "reviews_of", numbered)
    assert WHOLE.test_texts("imdb") == numbered("test", "imdb")[:2000]
    assert replace(WHOLE, tests=10**6).test_texts("imdb") == numbered("test", "imdb")


@pytest.mark.slow
def test_every_method_gets_the_same_sample_and_the_same_tests(small, monkeypatch):
    given = []

    def note(method, sample, *, seed):
        name = next(name for name, known in SMALL.items() if known is method)
        return lambda asked: given.append((name, len(sample), seed, sample, asked)) or np.ones(len(asked))

    monkeypatch.setattr(efficiency, "fitted", note)
    record(small)
    assert [case[:3] for case in given] == [
        (name, labels, seed)
        for labels in FEW.labels
        for source in SOURCES
        for seed in FEW.seeds_at(labels)
        for name, method in SMALL.items()
        if source in method.sources
    ]
    met = set()
    for name, labels, seed, sample, asked in given:
        source = sample[0].source
        met.add((source, name))
        assert sample == FEW.sample(source, labels, seed)
        assert asked == [review.text for review in some("test", source)[:10]]
    assert len(met) == 11
    assert len({tuple(review.identity for review in case[3]) for case in given}) == 6  # the control: samples differ


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_no_test_text_is_in_any_sample(source):
    tests = {review.identity for review in WHOLE.test_texts(source)}
    runs = [(labels, seed) for labels in WHOLE.labels for seed in WHOLE.seeds_at(labels)]
    sampled = {review.identity for run in runs for review in WHOLE.sample(source, *run)}
    assert len(tests) == {"imdb": 2000, "rotten_tomatoes": 769}[source] and not sampled & tests
    pool = {review.identity for review in reviews_of("train", source)[:6000]}
    assert len(sampled) > 5000 and sampled <= pool  # the control: what is there is found


# ---------------------------------------------------------------- trials


def test_trials_are_listed_once_with_fewer_samples_of_many_labels_and_only_of_a_methods_sources():
    listed = trials(WHOLE)
    left_out = {("MiniLM, 256", 50), ("MiniLM, 256", 200), *(("MiniLM, read on", n) for n in (50, 200, 3000))}
    assert len(set(listed)) == len(listed)
    samples = Counter((source, labels, name) for source, labels, _, name in listed)
    assert samples == {
        (source, labels, name): 3 if labels in (1000, 3000) else 5
        for labels in (50, 100, 200, 500, 1000, 3000)
        for source in SOURCES
        for name in METHODS
        if (source == "imdb" or name not in ("bag of words, 256", "MiniLM, 256", "MiniLM, read on"))
        and (name, labels) not in left_out
    }
    assert {seed for _, labels, seed, _ in listed if labels < 1000} == set(range(5))
    assert {seed for _, labels, seed, _ in listed if labels >= 1000} == set(range(3))


def test_many_begins_at_its_own_number():
    assert [len(WHOLE.seeds_at(labels)) for labels in (2, 998, 1000, 4000)] == [5, 5, 3, 3]
    assert [(labels, seed) for labels in FEW.labels for seed in FEW.seeds_at(labels)] == RUNS


# ---------------------------------------------------------------- what is read, and what is learned


def with_other_words(reviews, place):
    """The same reviews with other words from this one on."""
    return [replace(r, text=" ".join([*r.text.split()[:place], *["a", "dull", "mess"] * 99])) for r in reviews]


def with_another_beginning(reviews):
    return [replace(r, text="dull, dull mess! " + r.text) for r in reviews]


@cache
def long_reviews():
    """Four to learn from and four to judge, all longer than any method reads."""
    found = [review for review in reviews_of("train", "imdb") if len(review.text.split()) > 300]
    kinds = [[review for review in found if review.label == label][:4] for label in (0, 1)]
    return [*kinds[0][:2], *kinds[1][:2]], [*kinds[0][2:], *kinds[1][2:]]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_reads_its_stretch_of_a_text_and_nothing_behind_it(small, name):
    """A word is a token or more: behind as many words as it reads tokens, nothing counts."""
    method = replace(METHODS[name], settings=QUICK if METHODS[name].base else {})
    if isinstance(method.strategy, LoRA):
        method = replace(method, strategy=LoRA(rank=2))
    sample, asked = long_reviews()

    def learned(reviews):
        model = fitted(method, reviews)
        return lambda reviews: model([review.text for review in reviews])

    beyond, within = (partial(with_other_words, place=place) for place in (method.tokens, method.tokens // 2))
    model = learned(sample)
    given = model(asked)
    assert np.array_equal(model(beyond(asked)), given)
    assert np.array_equal(learned(beyond(sample))(asked), given)
    assert (model(within(asked)) != given).all() and (
        model(with_another_beginning(asked)) != given
    ).all()  # the control
    assert (learned(within(sample))(asked) != given).any()


def test_all_methods_read_the_same_stretch_but_for_those_that_say_another():
    assert {name: method.tokens for name, method in METHODS.items() if method.tokens != COMPARISON_TOKENS} == {
        "bag of words, 256": 256,
        "MiniLM, 256": 256,
    }


def by_hand(name, sample, asked, seed):
    """What `fitted` gives, from the library's parts."""
    method, tokenizer = SMALL[name], course_tokenizer()
    read, tested = (first_tokens(part, tokenizer, method.tokens) for part in ([r.text for r in sample], asked))
    labels = [review.label for review in sample]
    if method.base is None:
        return fit_bag_of_words(read, np.array(labels)).predict_proba(tested)[:, 1]
    body = {
        "encoder": tiny_encoder,
        "scratch": lambda: new_model(Encoder, tiny_encoder().config, seed=seed, device="cpu"),
        "minilm": lambda: tiny_minilm()[0],
        "reader": lambda: tiny_reader()[0],
    }[method.base]()
    tokenizer = tiny_minilm()[1] if method.base in ("minilm", "reader") else tokenizer
    classifier = Classifier(copy.deepcopy(body))
    if method.strategy is not None:
        apply(classifier, method.strategy, modules_to_save=["head"], seed=seed)
    room = body.config.max_len - 2
    fine_tune(classifier, read, labels, tokenizer, replace(QUICK[len(sample)], seed=seed, max_tokens=room))
    return predictions(classifier, tested, tokenizer, max_tokens=room)[:, 1]


@pytest.mark.parametrize("name", SMALL)
def test_a_method_learns_as_its_setting_strategy_and_seed_say(small, name):
    asked = [review.text for review in FEW.test_texts("imdb")]
    for labels, seed in ((4, 1), (8, 0)):
        sample = FEW.sample("imdb", labels, seed)
        found = fitted(SMALL[name], sample, seed=seed)(asked)
        assert found.shape == (len(asked),) and np.array_equal(found, by_hand(name, sample, asked, seed))
    other = fitted(SMALL[name], sample, seed=1)(asked)  # the control: another seed for the same sample
    assert np.array_equal(other, found) == (SMALL[name].base is None)


def spoiled(name):
    """Whether learning has changed what the next one starts from."""
    base, _ = efficiency.base_of(SMALL[name].base, 0)
    before = {key: p.clone() for key, p in base.state_dict().items()}
    fitted(SMALL[name], FEW.sample("imdb", 4, 0))
    after = base.state_dict()
    return before.keys() != after.keys() or any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", [name for name, method in SMALL.items() if method.base])
def test_a_method_works_on_a_copy_of_its_base(small, monkeypatch, name):
    assert not spoiled(name)
    monkeypatch.setattr(efficiency, "minilm", lambda: copy.deepcopy(tiny_minilm()))
    monkeypatch.setattr(efficiency, "load_reader", lambda: copy.deepcopy(tiny_reader()))
    monkeypatch.setattr(efficiency, "load_checkpoint", lambda name: copy.deepcopy(tiny_encoder()))
    monkeypatch.setattr(efficiency, "base_of", cache(base_of.__wrapped__))
    monkeypatch.setattr(efficiency, "copy", SimpleNamespace(deepcopy=lambda model: model))
    assert spoiled(name)  # the control


def test_random_weights_are_the_seeds_and_of_the_encoders_shape(small):
    encoder, *drawn, again = (
        efficiency.base_of.__wrapped__(name, seed)[0]
        for name, seed in (("encoder", 0), ("scratch", 0), ("scratch", 1), ("scratch", 0))
    )
    weights = [model.embeddings.word_embeddings.weight for model in (encoder, *drawn)]
    assert all(model.config == encoder.config for model in drawn)
    assert not any(torch.equal(one, other) for one, other in combinations(weights, 2))
    assert torch.equal(weights[1], again.embeddings.word_embeddings.weight)


def test_a_text_is_called_positive_from_one_half_on(small, monkeypatch):
    asked = replace(FEW, tests=9)
    assert [review.label for review in asked.test_texts("imdb")] == [1, 0, 1, 0, 1, 0, 1, 0, 1]
    for positive, right in ([0.5, 5], [0.4999, 4]):
        monkeypatch.setattr(efficiency, "fitted", lambda *_, seed, p=positive: lambda texts: np.full(len(texts), p))
        assert outcome(asked, "imdb", 4, 0, "encoder") == (right / 9, float(positive == 0.5))


# ---------------------------------------------------------------- the record


@pytest.mark.slow
def test_the_record_holds_two_rows_a_trial_which_are_what_is_measured(small):
    said, asked = [], replace(FEW, seeds=1)
    rows = Record(record(small, asked, progress=said.append)).rows()
    assert keys_of(rows) == [
        (f"{source}, {name}", labels, seed, metric)
        for source, labels, seed, name in trials(asked)
        for metric in ("accuracy", "positive")
    ]
    for accuracy, positive, trial in zip(rows[::2], rows[1::2], trials(asked), strict=True):
        assert (accuracy["value"], positive["value"]) == outcome(asked, *trial)
    assert len({row["value"] for row in rows}) > 5  # the control: not all alike
    assert len(said) == len(trials(asked)) == 22
    assert said[0] == f"imdb, bag of words, 4 labels, sample 0: {rows[0]['value']:.4f}"


def after(count):
    """Progress that stops the recording behind so many trials."""
    said = []

    def progress(words):
        said.append(words)
        if len(said) == count:
            raise KeyboardInterrupt

    return progress


@pytest.fixture
def counted(small, monkeypatch):
    """Real measuring, of a bag of words alone, that notes what it was asked."""
    asked = []
    monkeypatch.setattr(efficiency, "METHODS", WORDS)
    monkeypatch.setattr(efficiency, "outcome", lambda *given: asked.append(given[1:]) or outcome(*given))
    return asked


@pytest.mark.parametrize("count", [1, 5])
def test_a_stopped_recording_goes_on_without_repeating(counted, small, tmp_path_factory, count):
    whole = Record(record(tmp_path_factory.mktemp("whole"))).rows()
    counted.clear()
    with pytest.raises(KeyboardInterrupt):
        record(small, progress=after(count))
    begun = (small / "efficiency.jsonl").read_bytes()
    path = record(small)
    assert counted == trials(FEW) and len(counted) == 6
    assert path.read_bytes().startswith(begun)
    assert values_of(Record(path).rows()) == values_of(whole)
    counted.clear()
    before = path.read_bytes()
    assert record(small).read_bytes() == before and counted == []  # and a third sitting adds nothing


def test_a_trial_that_a_crash_cut_in_two_is_made_again_and_no_row_is_twice(counted, small):
    """Its accuracy is there, the other row was cut off."""
    path = record(small)
    whole = path.read_text()
    path.write_text(whole[: whole.rfind("\n", 0, -1) + 20])
    counted.clear()
    record(small)
    assert counted == trials(FEW)[-1:]
    rows = Record(path).rows()
    assert len(set(keys_of(rows))) == len(rows) == 12


def test_a_method_that_is_new_is_added_to_what_was_recorded(counted, small, monkeypatch):
    begun = record(small).read_bytes()
    counted.clear()
    monkeypatch.setattr(efficiency, "METHODS", WORDS | {"bag of words, 12": SMALL["bag of words, 12"]})
    path = record(small)
    assert counted == [("imdb", labels, seed, "bag of words, 12") for labels, seed in RUNS]
    assert path.read_bytes().startswith(begun)
    assert len(Record(path).rows()) == 18
    changed = replace(SMALL["bag of words, 12"], tokens=13)  # known to the second sitting alone
    monkeypatch.setattr(efficiency, "METHODS", WORDS | {"bag of words, 12": changed})
    with pytest.raises(ValueError, match=r"begun with bag of words, 12 .*'tokens': 12.* not .*'tokens': 13"):
        record(small)


def test_a_method_that_an_earlier_sitting_alone_knows_must_be_what_it_was(counted, small, monkeypatch):
    both = WORDS | {"bag of words, 12": SMALL["bag of words, 12"]}
    monkeypatch.setattr(efficiency, "METHODS", both)
    with pytest.raises(KeyboardInterrupt):
        record(small, progress=after(2))
    monkeypatch.setattr(efficiency, "METHODS", WORDS)  # a sitting that does not know the other
    path = record(small)
    assert [len(sitting["methods"]) for sitting in Record(path).provenance()] == [2, 1]
    monkeypatch.setattr(efficiency, "METHODS", WORDS | {"bag of words, 12": Method(None, {}, tokens=13)})
    with pytest.raises(ValueError, match="begun with bag of words, 12 "):
        record(small)
    monkeypatch.setattr(efficiency, "METHODS", both)
    assert len(Record(record(small)).rows()) == 18  # the control


LOW = SMALL["MiniLM, LoRA"]
CHANGED = [
    (LOW, replace(LOW, settings=QUICK | {8: FineTuning(rate=1e-5)}), r"'rate': 0\.02.* not .*'rate': 1e-05"),
    (LOW, replace(LOW, settings={4: QUICK[4]}), "'8': .*, not "),
    (LOW, replace(LOW, strategy=LoRA(rank=3)), "'rank': 2.* not .*'rank': 3"),
    (LOW, replace(LOW, strategy=None), "'rank': 2.* not .*'strategy': None"),
    (LOW, replace(LOW, base="encoder"), "'base': 'minilm'.* not .*'base': 'encoder'"),
    (LOW, replace(LOW, tokens=100), "'tokens': 126.* not .*'tokens': 100"),
    (LOW, replace(LOW, sources=("imdb",)), r"'rotten_tomatoes'\]\}, not .*'sources': \['imdb'\]"),
]


@pytest.fixture
def instant(small, monkeypatch):
    """Measuring that takes no time, for what is refused before it."""
    asked = []
    monkeypatch.setattr(efficiency, "outcome", lambda *given: asked.append(given[1:]) or (0.5, 0.25))
    return asked


@pytest.mark.parametrize(("method", "other", "words"), CHANGED)
def test_a_recording_does_not_go_on_with_another_setting_of_a_method_that_it_knows(
    instant, small, monkeypatch, method, other, words
):
    monkeypatch.setattr(efficiency, "METHODS", WORDS | {"low": method})
    with pytest.raises(KeyboardInterrupt):
        record(small, progress=after(1))
    before = (small / "efficiency.jsonl").read_bytes()
    instant.clear()
    monkeypatch.setattr(efficiency, "METHODS", WORDS | {"low": other})
    with pytest.raises(ValueError, match=f"begun with low .*{words}.*give the same again, or start another run"):
        record(small)
    assert (small / "efficiency.jsonl").read_bytes() == before and instant == []
    monkeypatch.setattr(efficiency, "METHODS", WORDS | {"low": method})
    assert len(Record(record(small)).rows()) == 24  # the control: with the same again it goes on


@pytest.mark.parametrize(
    "change",
    [{"labels": (4,)}, {"seeds": 3}, {"seeds_of_many": 2}, {"many": 9}, {"tests": 9}],
    ids=str,
)
def test_a_recording_does_not_go_on_with_another_efficiency(instant, small, change):
    before = record(small).read_bytes()
    instant.clear()
    (name,) = change
    with pytest.raises(ValueError, match=rf"begun with efficiency .*'{name}': .* not .*'{name}': "):
        record(small, replace(FEW, **change))
    assert (small / "efficiency.jsonl").read_bytes() == before and instant == []


@pytest.mark.parametrize(
    ("file", "name"),
    [("model", "minilm"), ("encoder/model", "encoder"), ("adapter_model", "reader")],
)
def test_a_recording_does_not_go_on_with_another_model(instant, small, file, name):
    before = record(small).read_bytes()
    (small / f"{file}.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=f"begun with {name}_sha256 .*give the same again, or start another run"):
        record(small)
    assert (small / "efficiency.jsonl").read_bytes() == before


def test_a_recording_does_not_go_on_with_the_record_of_another_command(instant, small):
    Record(small / "efficiency.jsonl", about={"probe": 1}).add(name="probe", seed=0, step=1, metric="loss", value=1.0)
    before = (small / "efficiency.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"begun with efficiency None, not .*start another run in another folder"):
        record(small)
    assert (small / "efficiency.jsonl").read_bytes() == before


# ---------------------------------------------------------------- the shipped record


@cache
def recorded():
    if not RECORD.is_file():
        pytest.skip("data/records/efficiency.jsonl is not recorded yet: `course record efficiency` makes it")
    return tuple(Record(RECORD).rows())


@cache
def shipped():
    """{(source, name, labels, seed): {metric: value}}"""
    found = {}
    for row in recorded():
        source, name = row["name"].split(", ", 1)
        found.setdefault((source, name, row["step"], row["seed"]), {})[row["metric"]] = row["value"]
    return found


def test_the_shipped_record_was_made_with_todays_models_methods_and_samples(monkeypatch):
    recorded()
    begun = Record(RECORD, about=about(WHOLE))
    efficiency._check_begun(begun)
    assert all(sitting["efficiency"] == json.loads(json.dumps(begun.about["efficiency"])) for sitting in
               begun.provenance())  # fmt: skip
    with pytest.raises(ValueError, match="begun with efficiency"):  # the control
        efficiency._check_begun(Record(RECORD, about=about(replace(WHOLE, tests=1999))))
    monkeypatch.setattr(efficiency, "METHODS", METHODS | {"bag of words": Method(None, {}, tokens=64)})
    with pytest.raises(ValueError, match="begun with bag of words"):
        efficiency._check_begun(Record(RECORD, about=about(WHOLE)))


def test_the_shipped_record_holds_trials_of_the_course_each_once_with_both_rows():
    known = {(source, name, labels, seed) for source, labels, seed, name in trials(WHOLE)}
    assert shipped().keys() <= known
    assert all(set(values) == {"accuracy", "positive"} for values in shipped().values())
    assert len(recorded()) == 2 * len(shipped()) > 0


def test_all_shipped_rows_are_shares_of_the_tests():
    counts = {"imdb": 2000, "rotten_tomatoes": 769}
    for (source, *_), values in shipped().items():
        for value in values.values():
            assert 0 <= value <= 1
            assert value * counts[source] == pytest.approx(round(value * counts[source]), abs=1e-6)


def test_minilm_never_collapsed_to_a_constant_answer():
    shares = {trial: values["positive"] for trial, values in shipped().items() if trial[1].startswith("MiniLM")}
    assert len(shares) > 20 and all(0 < share < 1 for share in shares.values())


@pytest.mark.slow
def test_the_two_rows_of_a_shipped_trial_belong_together():
    """Right answers and positive ones leave a whole number of true positives: (right + called - negatives) / 2."""

    labels = {source: [review.label for review in WHOLE.test_texts(source)] for source in SOURCES}

    def fits(source, accuracy, positive, more=0):
        negatives, positives = (labels[source].count(label) for label in (0, 1))
        right, called = (round(share * (negatives + positives)) for share in (accuracy, positive))
        twice = right + called + more - negatives
        return twice % 2 == 0 and max(0, called - negatives) <= twice / 2 <= min(called, positives)

    assert all(fits(source, **values) for (source, *_), values in shipped().items())
    assert not any(fits(source, **values, more=1) for (source, *_), values in shipped().items())  # the control


@pytest.mark.slow
@pytest.mark.parametrize(("source", "labels", "seed"), [("rotten_tomatoes", 500, 2), ("imdb", 1000, 1)])
def test_a_recorded_row_is_what_is_measured_now(source, labels, seed):
    wanted = shipped()[source, "bag of words", labels, seed]
    accuracy, positive = outcome(WHOLE, source, labels, seed, "bag of words")
    assert (accuracy, positive) == pytest.approx((wanted["accuracy"], wanted["positive"]), abs=1e-3)
    other = outcome(WHOLE, source, labels, seed + 1 if seed < 2 else 0, "bag of words")  # the control: another sample
    assert not math.isclose(other[0], wanted["accuracy"], abs_tol=1e-3)
