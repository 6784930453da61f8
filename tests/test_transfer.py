"""Two recorders at the size of a test: what stands in their files is what the library measures, a second sitting adds
nothing, and one with other models is refused."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tiny import tiny

from course_lib import data, pretrained
from course_lib.data import Review, course_tokenizer, normalize
from course_lib.evaluation import (
    COMPRESSORS,
    Bigram,
    bag_of_words_accuracy,
    bits_per_byte,
    compressed_bits_per_byte,
    copied_share,
    distinct_share,
    first_tokens,
    frozen_features,
    probe_accuracy,
    stream_nats,
    unigram_loss,
)
from course_lib.finetuning import Classifier, FineTuning, fine_tune, predictions
from course_lib.finetuning.tuning import nearest
from course_lib.generation import generate
from course_lib.model import Encoder
from course_lib.pretrained import load_checkpoint, save_model
from course_lib.records import Record
from course_lib.runs import language, transfer
from course_lib.runs.probe import SentimentProbe
from course_lib.runtime import seeded
from course_lib.training import new_model

TOKENIZER = course_tokenizer()
PROBE = SentimentProbe((4, 20), 2, 10)


def often_ending(model):
    """A decoder that likes to write [EOS], as one does that has read short documents."""
    bias_E = model.transformer["ln_f"].bias.detach()
    with torch.no_grad():
        model.transformer["wte"].weight[TOKENIZER.vocabulary.eos] = 6 * bias_E / bias_E.square().sum()
    return model


@pytest.fixture(scope="module", autouse=True)
def stand_ins(tmp_path_factory):
    """Small untrained models under the shipped ones' names, 20 texts to train on and 12 to hold out; in fp32."""
    folder, reviews_of = tmp_path_factory.mktemp("checkpoints"), data.reviews_of
    save_model(tiny("masked", max_len=128, n_layers=2), folder / "encoder")
    for number, name in enumerate(language.RUNGS):
        save_model(often_ending(tiny("causal", shake=0.1 * (number + 1))), folder / name)

    @cache
    def few(split, source=None):
        found = reviews_of(split, source)
        return [*found[:11], next(r for r in found if not r.text.isascii())] if split == "dev" else found[:60]

    texts = [review.text for review in reviews_of("train")[:20]]
    with pytest.MonkeyPatch.context() as patch:
        for module in (pretrained, language, transfer):
            patch.setattr(module, "CHECKPOINTS_FOLDER", folder)
        patch.setattr(data, "training_texts", lambda documents=None: texts[:documents])
        patch.setattr(data, "reviews_of", few)
        patch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)
        patch.setenv("COURSE_DEVICE", "cpu")
        for settings in ("PRETRAINED", "SCRATCH"):
            few_epochs = {n: replace(how, epochs=2) for n, how in getattr(transfer, settings).items()}
            patch.setattr(transfer, settings, few_epochs)
        patch.setattr(language, "SAMPLES", 6)
        patch.setattr(language.samples, "__defaults__", (6, language.SAMPLE_TOKENS))
        yield folder


@contextmanager
def other_weights(folder, name):
    """Another file under this name inside the block."""
    path = folder / name / "model.safetensors"
    before = path.read_bytes()
    path.write_bytes(before + b"other")
    try:
        yield
    finally:
        path.write_bytes(before)


# ---------------------------------------------------------------- the language model and its rivals


@pytest.fixture(scope="module")
def recorded(stand_ins, tmp_path_factory):
    """The record of a whole sitting, and what was said in it."""
    said = []
    path = language.record_language(path=tmp_path_factory.mktemp("record") / "language.jsonl", progress=said.append)
    return Record(path), said


def value(record, name, metric):
    return record.values(metric, name=name)[0][1]


def held_out():
    return [normalize(review.text) for review in data.reviews_of("dev")]


def stream(texts):
    """Documents one behind the other, each between the tokens that training put around it."""
    bos, eos = TOKENIZER.vocabulary.bos, TOKENIZER.vocabulary.eos
    ids = []
    for text in texts:
        ids += [bos, *TOKENIZER.encode(text), eos]
    return torch.tensor(ids)


@pytest.mark.slow
def test_every_rival_is_measured_in_nats_per_token_and_in_bits_per_byte(recorded):
    record, _ = recorded
    test_N, train_N = stream(held_out()), stream(map(normalize, data.training_texts()))
    n_bytes = sum(len(text.encode()) for text in held_out())
    assert n_bytes > sum(map(len, held_out()))  # a byte is not a character
    nats = {name: stream_nats(load_checkpoint(name), test_N).sum() for name in language.RUNGS}
    nats["uniform"] = math.log(8192) * (len(test_N) - 1)
    nats["unigram"] = unigram_loss(train_N, test_N[1:], TOKENIZER.vocabulary) * (len(test_N) - 1)
    nats["bigram"] = Bigram.fit(train_N, TOKENIZER.vocabulary).nats(test_N).sum()
    for name, spent in nats.items():
        assert value(record, name, "nats_per_token") == pytest.approx(spent / (len(test_N) - 1), rel=1e-5)
        assert value(record, name, "bits_per_byte") == pytest.approx(bits_per_byte(spent, n_bytes), rel=1e-5)
    assert len({value(record, name, "bits_per_byte") for name in nats}) == len(nats)
    assert value(record, "unigram", "bits_per_byte") < value(record, "uniform", "bits_per_byte")


@pytest.mark.slow
def test_compressors_read_the_training_text_before_the_text_that_is_measured(recorded):
    training, measured = "\n".join(map(normalize, data.training_texts())), "\n".join(held_out())
    for name in COMPRESSORS:
        found = value(recorded[0], name, "bits_per_byte")
        assert found == compressed_bits_per_byte(name, training, measured)
        assert found != compressed_bits_per_byte(name, "", measured)


@pytest.mark.slow
def test_samples_are_compared_with_as_many_beginnings_of_real_reviews(recorded):
    """One review of the held-out ones is shorter than a sample at least: it is passed over."""
    beginnings = [ids[:60] for ids in TOKENIZER.encode_all(held_out()) if len(ids) >= 60][:6]
    assert len(beginnings) == 6 and any(len(ids) < 60 for ids in TOKENIZER.encode_all(held_out()))
    train_ids = stream(map(normalize, data.training_texts())).tolist()
    for name, texts in (("reviews", beginnings), ("samples", language.samples())):
        assert value(recorded[0], name, "distinct_3") == distinct_share(texts, 3)
        assert value(recorded[0], name, "copied_12") == copied_share(texts, train_ids, 12)
    assert value(recorded[0], "reviews", "distinct_3") < 1


@pytest.mark.slow
def test_a_second_sitting_adds_nothing_and_one_with_other_models_is_refused(recorded, stand_ins):
    record, said = recorded
    assert len(said) == len(record.rows()) == 2 * 6 + 2 * 2 + 2
    before = record.path.read_bytes()
    with (
        other_weights(stand_ins, "decoder_early"),
        pytest.raises(ValueError, match=r"begun with checkpoints_sha256 .*another folder"),
    ):
        language.record_language(path=record.path, progress=said.append)
    assert record.path.read_bytes() == before
    language.record_language(path=record.path, progress=lambda words: None)
    assert record.path.read_bytes() == before


# ---------------------------------------------------------------- samples


@pytest.mark.slow
def test_samples_have_their_length_hold_no_special_token_and_are_fixed_by_their_seed():
    drawn = language.samples(7, 15)
    assert [len(ids) for ids in drawn] == [15] * 7
    assert TOKENIZER.vocabulary.is_ordinary_V[torch.tensor(drawn)].all()
    assert language.samples(7, 15) == drawn
    assert language.samples(7, 15, seed=1) != drawn
    assert len(language.samples(60, 3)) == 60
    assert len({tuple(ids) for ids in language.samples(60, 3)}) == 60


@pytest.mark.slow
def test_samples_are_what_the_decoder_writes_from_nothing_without_an_end():
    vocabulary, generator = TOKENIZER.vocabulary, seeded(0)
    write = lambda **more: generate(load_checkpoint("decoder"), [[vocabulary.bos]] * 50, vocabulary, max_new_tokens=12,
                                    generator=generator, **more)  # fmt: skip
    assert language.samples(60, 12) == [*write(stop_ids=()), *write(stop_ids=())[:10]]
    assert any(len(ids) < 12 for ids in write())  # the control: [EOS] would come


@pytest.mark.slow
def test_a_sample_that_holds_a_slur_is_left_out_and_another_drawn(monkeypatch):
    everything = language.samples(100, 8)
    is_bad = lambda text: "z" in text
    kept = [ids for ids in everything if not is_bad(TOKENIZER.decode(ids))]
    assert 20 < len(kept) < 100
    monkeypatch.setattr(language, "holds_slur", is_bad)
    assert language.samples(20, 8) == kept[:20]


# ---------------------------------------------------------------- transfer


@pytest.fixture(scope="module")
def transferred(stand_ins, tmp_path_factory):
    said = []
    path = tmp_path_factory.mktemp("record") / "transfer.jsonl"
    transfer.record_transfer(path=path, probe=PROBE, progress=said.append)
    return Record(path), said


def read(reviews):
    return [review.text for review in reviews], np.array([review.label for review in reviews])


def tuned(encoder, how, sample, tests, seed):
    classifier, (texts, labels), (test_texts, test_labels) = Classifier(encoder), read(sample), read(tests)
    fine_tune(classifier, texts, labels, TOKENIZER, replace(how, seed=seed))
    return (predictions(classifier, test_texts, TOKENIZER).argmax(1) == test_labels).mean()


@pytest.mark.slow
def test_every_method_is_measured_on_the_same_samples_and_tests(transferred):
    record, said = transferred
    assert len(said) == len(record.rows()) == len(transfer.METHODS) * 2 * 2
    sample, tests = PROBE.sample(20, 1), PROBE.test_reviews
    (texts, labels), (test_texts, test_labels) = read(sample), read(tests)
    encoder = load_checkpoint("encoder")
    scratch = new_model(Encoder, encoder.config, seed=1)
    short, short_tests = first_tokens(texts, TOKENIZER), first_tokens(test_texts, TOKENIZER)
    features_NE, test_NE = frozen_features(encoder, texts, TOKENIZER), frozen_features(encoder, test_texts, TOKENIZER)
    strength = transfer.PRETRAINED[100].head_strength
    wanted = {
        "bag of words": bag_of_words_accuracy(short, labels, short_tests, test_labels),
        "probe": probe_accuracy(features_NE, labels, test_NE, test_labels, strength=strength),
        "fine-tuned": tuned(encoder, transfer.PRETRAINED[100], sample, tests, 1),
        "scratch": tuned(scratch, transfer.SCRATCH[100], sample, tests, 1),
    }
    found = {name: dict(record.values("accuracy", name=name, seed=1))[20] for name in transfer.METHODS}
    assert found == wanted
    line = f"scratch, 20 labels, sample 1: {wanted['scratch']:.4f}"
    assert line in said


@pytest.mark.parametrize("method", transfer.METHODS)
def test_no_method_reads_further_than_the_others(method):
    """What tells stands behind the first 126 tokens, so that an even bet is all there is."""
    filler = " ".join(["the film"] * 70)
    sample = [Review(f"{filler} {'good' if label else 'bad'}", label, "made up") for label in (0, 1) * 4]
    assert transfer.accuracy(method, sample, sample, seed=0) == 0.5
    if method == "bag of words":  # the control: in front of them it is found
        sample = [replace(review, text=" ".join(reversed(review.text.split()))) for review in sample]
        assert transfer.accuracy(method, sample, sample, seed=0) == 1.0


@pytest.mark.slow
def test_scratch_begins_from_other_weights_than_the_shipped_ones_and_with_an_even_head(monkeypatch):
    begun = []

    def note(classifier, texts, labels, tokenizer, how):
        begun.append((classifier.body.state_dict()["encoder.layer.0.output.dense.weight"].clone(), how))
        return fine_tune(classifier, texts, labels, tokenizer, how)

    monkeypatch.setattr(transfer, "fine_tune", note)
    sample, tests = PROBE.sample(4, 0), PROBE.test_reviews[:2]
    for method, seed in (("fine-tuned", 0), ("scratch", 0), ("scratch", 1)):
        transfer.accuracy(method, sample, tests, seed=seed)
    shipped = load_checkpoint("encoder").state_dict()["encoder.layer.0.output.dense.weight"]
    (of_tuned, how), (of_scratch, how_scratch), (of_other, how_other) = begun
    assert torch.equal(of_tuned, shipped)
    assert not torch.equal(of_scratch, shipped) and not torch.equal(of_scratch, of_other)
    assert how.head_first and not how_scratch.head_first
    assert (how_scratch.seed, how_other.seed) == (0, 1)


@pytest.mark.slow
def test_a_stopped_recording_goes_on_row_by_row(transferred, tmp_path, monkeypatch):
    record, _ = transferred
    asked, measure = [], transfer.accuracy

    def stopping(method, sample, tests, *, seed):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append((method, len(sample), seed))
        return measure(method, sample, tests, seed=seed)

    monkeypatch.setattr(transfer, "accuracy", stopping)
    with pytest.raises(KeyboardInterrupt):
        transfer.record_transfer(path=tmp_path / "t.jsonl", probe=PROBE, progress=lambda words: None)
    assert len(Record(tmp_path / "t.jsonl").rows()) == 3
    first, asked[:] = list(asked), []
    quick = lambda method, sample, tests, *, seed: asked.append((method, len(sample), seed)) or 0.5
    monkeypatch.setattr(transfer, "accuracy", quick)
    transfer.record_transfer(path=tmp_path / "t.jsonl", probe=PROBE, progress=lambda words: None)
    assert len(asked) == 13 and not set(asked) & set(first)
    rows = Record(tmp_path / "t.jsonl").rows()
    keys = lambda rows: [(row["name"], row["step"], row["seed"]) for row in rows]
    assert keys(rows) == keys(record.rows())
    assert [row["value"] for row in rows[:3]] == [row["value"] for row in record.rows()[:3]]


@pytest.mark.slow
def test_a_recording_does_not_go_on_with_another_encoder_or_other_samples(transferred, stand_ins):
    record, _ = transferred
    before = record.path.read_bytes()
    for probe in (replace(PROBE, tests=7), replace(PROBE, labels=(4, 10))):
        with pytest.raises(ValueError, match=r"begun with probe .*another folder"):
            transfer.record_transfer(path=record.path, probe=probe, progress=print)
    with other_weights(stand_ins, "encoder"), pytest.raises(ValueError, match="begun with encoder_sha256 "):
        transfer.record_transfer(path=record.path, probe=PROBE, progress=print)
    assert transfer.record_transfer(path=record.path, probe=PROBE, progress=print) == record.path
    assert record.path.read_bytes() == before


def test_an_unknown_method_is_refused_before_anything_is_computed():
    with pytest.raises(ValueError, match="method 'lora' is unknown: choose one of bag of words, scratch, probe"):
        transfer.accuracy("lora", [], [], seed=0)


def test_the_setting_is_that_of_the_nearest_number_of_labels():
    settings = {n: FineTuning(seed=n) for n in (100, 500, 3000)}
    chosen = {labels: nearest(settings, labels).seed for labels in (8, 100, 200, 250, 1000, 1500, 9000)}
    assert chosen == {8: 100, 100: 100, 200: 100, 250: 500, 1000: 500, 1500: 3000, 9000: 3000}
