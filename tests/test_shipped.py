"""What the repository ships: checkpoints that are what their cards say, made of text that no test was in."""

import functools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from few import few
from safetensors.torch import load_file

from course_lib import data, runs
from course_lib.data import DATA_FOLDER, holds_slur, reviews_of
from course_lib.files import sha256_of
from course_lib.optimizers import make_optimizer
from course_lib.pretrained import CHECKPOINTS_FOLDER, ROTARY_TABLE, load_checkpoint, load_model
from course_lib.records import Record
from course_lib.training import held_out_loss, train

NAMES = [name + rung for name in ("encoder", "decoder") for rung in ("_early", "_middle", "")]
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
TOLERANCE = 1e-4  # of a loss: bf16 or fp32, see tests/test_runs.py


def record_of(name):
    return Record(runs.RECORDS_FOLDER / f"pretraining_{name}.jsonl")


@functools.cache
def rows_of(name):
    """What a shipped model has read, and what was held out."""
    return runs.RECIPES[name].rows()


@pytest.mark.slow
def test_no_training_text_stands_in_another_split():
    trained = {data.identity(text) for text in data.training_texts()}
    for split in ("test", "dev", "judge"):
        kept_out = {review.identity for review in reviews_of(split)}
        assert kept_out and not trained & kept_out
    assert trained & {
        review.identity for review in reviews_of("train")
    }  # the control: the comparison finds what is there


def test_pretraining_reads_training_texts_and_no_others(monkeypatch):
    asked = []

    def few(split, source=None):
        asked.append(split)
        return reviews_of(split, source)[:9]

    monkeypatch.setattr(data, "training_texts", lambda documents=None: ["a film of its own kind " * 200])
    monkeypatch.setattr(data, "reviews_of", few)
    train_rows, _ = runs.RECIPES["decoder"].rows()
    assert asked == ["dev"]
    assert "film of its own kind" in data.course_tokenizer().decode(train_rows.ids_NT[0].tolist())


@pytest.mark.parametrize("name", few(NAMES, "encoder"))
def test_a_checkpoint_is_what_its_card_says(name):
    folder = CHECKPOINTS_FOLDER / name
    card = (folder / "README.md").read_text("utf-8")
    assert sha256_of(folder / "model.safetensors") in card
    dtypes = {key: tensor.dtype for key, tensor in load_file(folder / "model.safetensors").items()}
    if name == "encoder":  # the two rungs were written when this table was still rounded with the weights
        assert dtypes.pop(ROTARY_TABLE) == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    model = load_checkpoint(name)
    assert f"{model.n_parameters():,} parameters" in card
    assert data.course_tokenizer().fingerprint in card and sha256_of(data.corpus_path()) in card
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_the_recorded_held_out_loss_is_that_of_the_shipped_weights(name):
    run, found = runs.RECIPES[name], load_checkpoint(name)
    held_out = run.dataset(rows_of(name)[1])
    batches = [held_out.batch(k) for k in range(4)]
    card = (CHECKPOINTS_FOLDER / name / "README.md").read_text("utf-8")
    recorded = float(re.search(r"([\d.]+) nats per target", card)[1])
    assert held_out_loss(found, batches) == pytest.approx(recorded, rel=0.03)  # a quarter of what the run measured on
    assert held_out_loss(load_checkpoint(f"{name}_early"), batches) > 1.05 * recorded  # the control: an earlier rung


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_pretraining_begins_as_it_was_recorded(name):
    run = runs.RECIPES[name]
    rows, _ = rows_of(name)
    recorded = dict(record_of(name).values("loss", name=name))

    def off(seed, steps=3):
        begun = run.with_(seed=seed)
        model = begun.model()
        optimizer = make_optimizer(model, begun.optimizer, weight_decay=begun.weight_decay)
        loop = train(model, begun.dataset(rows), steps=steps, rate=begun.schedule, optimizer=optimizer, clip=begun.clip)
        return max(abs(row.loss / recorded[row.step] - 1) for row in loop)

    assert off(run.seed) < TOLERANCE
    assert off(run.seed + 1) > 3 * TOLERANCE


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_long_run_falls_along_its_record_and_its_first_loss_is_that_of_an_even_bet(name):
    curve = [loss for _, loss in record_of(name).values("held_out", name=name)]
    assert curve[0] == pytest.approx(math.log(8192), rel=0.05)
    assert curve[-1] == min(curve) < 0.6 * curve[0]


def test_data_stays_small():
    assert sum(path.stat().st_size for path in DATA_FOLDER.rglob("*") if path.is_file()) < 100e6


def test_no_committed_output_holds_a_slur():
    shown = []
    for path in [*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("solutions/*.ipynb")]:
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                for text in (output.get("text", []), *(output.get("data", {}).get(k, []) for k in TEXTS)):
                    shown.append("".join(text))
    assert shown and not any(holds_slur(text) for text in shown)


TEXTS = ("text/plain", "text/markdown", "text/html")


def test_an_unknown_checkpoint_is_refused_with_those_that_are_there():
    with pytest.raises(ValueError, match="checkpoint 'bert' is unknown: choose one of decoder, decoder_early"):
        load_checkpoint("bert")
    with pytest.raises(FileNotFoundError):
        load_model(CHECKPOINTS_FOLDER)
