"""A reading of one's own text: what it is measured by, and that it goes on where it was stopped."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CONFIG

from course_lib.data import packed_rows, reviews_of
from course_lib.model import Decoder
from course_lib.peft import Full, LoRA
from course_lib.records import Record
from course_lib.runs import own_reading as module
from course_lib.runs.own_reading import HeldOut, Method, Reading, record_own_text
from course_lib.runs.own_text import OwnText
from course_lib.training import new_model

READING = Reading(
    tokens=512,
    rungs=(128, 512),
    row_length=16,
    batch_size=4,
    warmup=1,
    held_out_tokens=100,
    methods={"full": Method(Full(), 1e-2), "LoRA": Method(LoRA(rank=2), 1e-2), "from nothing": Method(None, 1e-2)},
)


@pytest.fixture(scope="module")
def texts():
    return (
        reviews_of("train", "rotten_tomatoes")[:2000] + reviews_of("dev", "rotten_tomatoes") + reviews_of("test")[:300]
    )


@pytest.fixture
def tiny_decoder(monkeypatch):
    monkeypatch.setattr(module, "load_checkpoint", lambda name: new_model(Decoder, CONFIG, seed=5, device="cpu"))


def test_bits_per_byte_go_by_the_bytes_of_whole_texts(tiny_decoder):
    held, model = HeldOut.of(["A good FILM", "größer"], 1000), module.load_checkpoint("decoder")
    assert held.n_bytes == len("a good film") + len("größer".encode())
    nats, bits = held.loss(model)
    n_targets = len(held.ids) - 1
    assert bits == pytest.approx(nats * n_targets / held.n_bytes / 0.6931471805599453)


def test_values_are_summed_text_by_text():
    held = HeldOut.of(["a good film", "größer", "bad"], 1000)
    assert held.by_text(np.ones(len(held.ids) - 1)).tolist() == [held.sizes[0] - 1, *held.sizes[1:]]
    text_of = np.repeat(np.arange(3), held.sizes)[1:]
    values = np.arange(len(text_of)) ** 2.0
    assert held.by_text(values).tolist() == [values[text_of == n].sum() for n in range(3)]
    with pytest.raises(ValueError, match="give one each"):
        held.by_text(np.ones(len(held.ids)))


def test_an_interval_draws_texts_and_not_tokens():
    """Texts of a hundred equal tokens each tell no more than one token of each would."""
    generator = np.random.default_rng(5)
    sizes = (101, *[100] * 39)
    held = HeldOut(tuple(range(sum(sizes))), sizes, 1)
    level = generator.normal(size=40)
    found = held.interval(np.repeat(level, 100))
    by_hand = 1.96 * level.std() / np.sqrt(40)
    assert found.value == pytest.approx(level.mean())
    assert (found.high - found.low) / 2 == pytest.approx(by_hand, rel=0.15)
    apart = held.interval(generator.normal(size=4000))  # the control: tokens that know nothing of their text
    assert (apart.high - apart.low) / 2 == pytest.approx(1.96 / np.sqrt(4000), rel=0.3)


def test_one_text_alone_has_no_interval():
    found = HeldOut.of(["a good film"], 100).interval(np.array([1.0, 2.0, 3.0, 6.0]))
    assert (found.value, found.low, found.high) == (3.0, -np.inf, np.inf)


def test_the_rows_are_those_of_the_packed_texts(texts):
    own = OwnText(tuple(texts))
    assert torch.equal(READING.rows(own).ids_NT, packed_rows(own.words("read"), READING.row_length).ids_NT)


def test_a_reading_too_short_is_refused():
    with pytest.raises(ValueError, match="tokens is 60, and a step reads 64"):
        replace(READING, tokens=60, rungs=())


def rows_of(path):
    return {(r["name"], r["step"], r["metric"]): r["value"] for r in Record(path).rows()}


@pytest.mark.slow
def test_a_recording_that_was_stopped_goes_on_to_the_same_figures(tmp_path, texts, tiny_decoder):
    own, said = OwnText(tuple(texts)), []
    whole = record_own_text(path=tmp_path / "whole.jsonl", reading=READING, text=own, progress=said.append)
    wanted = rows_of(whole)
    assert {step for _, step, metric in wanted if metric == "own_nats"} == {0, 128, 512}

    def stop_later(line):
        said.append(line)
        if "LoRA, 512 tokens: own" in line:
            raise KeyboardInterrupt

    stopped = tmp_path / "stopped.jsonl"
    with pytest.raises(KeyboardInterrupt):
        record_own_text(path=stopped, reading=READING, text=own, progress=stop_later)
    assert len(rows_of(stopped)) < len(wanted)
    record_own_text(path=stopped, reading=READING, text=own, progress=said.append)
    assert rows_of(stopped) == wanted
    assert [p.name for p in tmp_path.iterdir() if "state" in p.name] == []
    before = stopped.read_text("utf-8")
    record_own_text(path=stopped, reading=READING, text=own, progress=said.append)
    assert stopped.read_text("utf-8") == before


@pytest.mark.slow
def test_another_text_is_not_mixed_in(tmp_path, texts, tiny_decoder):
    path = record_own_text(
        path=tmp_path / "r.jsonl", reading=replace(READING, rungs=()), text=OwnText(tuple(texts)), progress=str
    )
    with pytest.raises(ValueError, match="text_sha256"):
        record_own_text(path=path, reading=replace(READING, rungs=()), text=OwnText(tuple(texts[1:])), progress=str)


def test_the_three_begin_where_they_should(tiny_decoder):
    shipped = module.load_checkpoint("decoder")
    ids_BT = torch.tensor([[120, 130, 140]])
    for name in ("full", "LoRA"):
        assert torch.equal(READING.begin(name)[0](ids_BT).logits, shipped(ids_BT).logits)
    fresh = READING.begin("from nothing")[0]
    assert not torch.equal(fresh(ids_BT).logits, shipped(ids_BT).logits)
    assert json.dumps(module.asdict(READING.methods["from nothing"])) == '{"strategy": null, "rate": 0.01}'


def test_the_shipped_record_is_about_the_shipped_decoder():
    record = Record(module.RECORDS_FOLDER / "own_text.jsonl")
    weights = module.sha256_of(module.CHECKPOINTS_FOLDER / "decoder" / "model.safetensors")
    about = [(p["decoder_sha256"], p["tokenizer_sha256"], p["reading"]["tokens"]) for p in record.provenance()]
    assert set(about) == {(weights, module.course_tokenizer().fingerprint, Reading().tokens)}
    found = {name: dict(record.values("own_nats", name=name)) for name in Reading().methods}
    assert found["full"][0] == found["LoRA"][0] < found["from nothing"][0]
    assert all(curve[max(curve)] < curve[0] for curve in found.values())
