"""A text of one's own: its sides, what is refused, and a reading of it that goes on where it was stopped."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import CONFIG

from course_lib.data import Review, reviews_of
from course_lib.model import Decoder
from course_lib.peft import Full, LoRA
from course_lib.records import Record
from course_lib.runs import own_text as module
from course_lib.runs.own_text import HeldOut, Method, OwnText, Reading, own_text, paragraphs, record_own_text
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


def test_every_text_is_on_one_side(texts):
    own = OwnText((*texts, *texts[:50]))
    parts = [{t.identity for t in own.part(name)} for name in ("read", "dev", "test")]
    assert all(parts) and sum(map(len, parts)) == len(parts[0] | parts[1] | parts[2]) == len(
        {t.identity for t in texts}
    )


def test_the_order_of_the_texts_changes_nothing(texts):
    one, other = OwnText(tuple(texts)), OwnText(tuple(texts[::-1]))
    assert one.words("read") == other.words("read") and one.fingerprint == other.fingerprint
    assert OwnText(tuple(texts[1:])).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("take", "words"),
    [
        (lambda texts: texts[:40], "tokens to read"),
        (lambda texts: [t for t in texts if t.split != "dev"], "has 0 tokens to dev"),
        (lambda texts: [t for t in texts if t.split != "test"], "has 0 tokens to test"),
    ],
)
def test_a_text_too_small_is_refused_and_says_what_would_do(texts, take, words):
    with pytest.raises(ValueError, match=words) as refused:
        OwnText(tuple(take(texts)), "my text")
    assert str(refused.value).startswith("my text") and "give at least" in str(refused.value)


def test_a_part_that_is_none_is_refused(texts):
    with pytest.raises(ValueError, match="part 'train' is unknown"):
        OwnText(tuple(texts)).part("train")


def test_own_files_become_texts_with_their_classes(tmp_path, texts):
    for name, part in (("one", texts[::2]), ("two", texts[1::2])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(t.text for t in part), "utf-8")
    assert own_text(tmp_path).classes == ["one.txt", "two.txt"]
    assert own_text(tmp_path / "one.txt").classes == ["one.txt"] if len(texts) > 4000 else True
    rows = "".join(f'{t.label},"{t.text.replace(chr(34), "")}"\n' for t in texts)
    (tmp_path / "table.csv").write_text("label,text\n" + rows, "utf-8")
    assert own_text(tmp_path / "table.csv").classes == ["0", "1"]


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        own_text(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no text"):
        own_text(tmp_path)


def test_paragraphs_are_as_many_of_each_class_and_no_longer_than_asked(texts):
    found = paragraphs(texts, ["0", "1"], 30, tokens=(10, 12))
    assert [t.label for t in found] == [0] * 30 + [1] * 30
    tokenizer = module.course_tokenizer()
    assert all(10 <= len(tokenizer.encode(t.text)) <= 13 for t in found)


@pytest.mark.parametrize(
    ("classes", "count", "words"), [(["0"], 3, "of one class, 0"), (["0", "1"], 10**6, "0 [0-9]+, 1 [0-9]+: ask for")]
)
def test_a_task_that_the_text_does_not_hold_is_refused(texts, classes, count, words):
    with pytest.raises(ValueError, match=words):
        paragraphs(texts, classes, count)


def test_bits_per_byte_go_by_the_bytes_of_whole_texts(tiny_decoder):
    held, model = HeldOut.of(["A good FILM", "größer"], 1000), module.load_checkpoint("decoder")
    assert held.n_bytes == len("a good film") + len("größer".encode())
    nats, bits = held.loss(model)
    n_targets = len(held.ids) - 1
    assert bits == pytest.approx(nats * n_targets / held.n_bytes / 0.6931471805599453)


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


def test_labels_come_before_files():
    assert module.class_of(Review("a", 1, "x.csv")) == "1" and module.class_of(Review("a", None, "x.txt")) == "x.txt"


def test_the_shipped_record_is_about_the_shipped_decoder():
    record = Record(module.RECORDS_FOLDER / "own_text.jsonl")
    weights = module.sha256_of(module.CHECKPOINTS_FOLDER / "decoder" / "model.safetensors")
    about = [(p["decoder_sha256"], p["tokenizer_sha256"], p["reading"]["tokens"]) for p in record.provenance()]
    assert set(about) == {(weights, module.course_tokenizer().fingerprint, Reading().tokens)}
    found = {name: dict(record.values("own_nats", name=name)) for name in Reading().methods}
    assert found["full"][0] == found["LoRA"][0] < found["from nothing"][0]
    assert all(curve[max(curve)] < curve[0] for curve in found.values())
