"""A whole pre-training run, small: stopped anywhere it goes on to the bit, and what cannot go on is refused by name."""

import itertools
import os
import random
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import kill_campaign
import numpy as np
import pytest
import torch
from few import few

from course_lib import data, records
from course_lib.checkpoint import Checkpoints, random_states
from course_lib.data import PretrainingDataset, course_tokenizer
from course_lib.layers import TransformerConfig
from course_lib.model import Decoder
from course_lib.optimizers import make_optimizer
from course_lib.pretrained import load_model, save_model
from course_lib.records import Record
from course_lib.runs import pretraining, recipes
from course_lib.runs.pretraining import pretrain
from course_lib.runs.recipes import Pretraining
from course_lib.schedules import Schedule
from course_lib.tokenizer import train_tokenizer
from course_lib.training import held_out_loss

CONFIG = TransformerConfig(vocab_size=8192, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_len=64, dropout=0.1)
CAUSAL = Pretraining(
    name="small",
    tokens=32 * 4 * 8,
    row_length=32,
    batch_size=4,
    peak_rate=1e-2,
    warmup=2,
    config=CONFIG,
    save_every=3,
    held_out_batches=2,
)
MASKED = replace(
    CAUSAL,
    objective="masked",
    optimizer="muon",
    options={"mask_prob": 0.3},
    frequency_weighted=True,
    config=CONFIG.with_(positions="rotary"),
)
ACCUMULATED = replace(CAUSAL, accumulate=2, batch_size=2, shape="cosine", floor=0.1, seed=1)
SCALED = replace(CAUSAL, dtype="float16", peak_rate=3e-3)  # with steps that are left out, until the scale fits
RUNS = {"causal, adamw": CAUSAL, "accumulated": ACCUMULATED, "scaled": SCALED, "masked, rotary, muon": MASKED}
FIRST_IS_QUICK = few(RUNS, "causal, adamw")


@pytest.fixture(scope="module", autouse=True)
def few_texts(tmp_path_factory):
    """40 of the 26,000 training texts, and as few of the others. What costs time and is tested elsewhere, the commit in
    a record's provenance, the fingerprint of the whole corpus and waiting for the disk, is left out."""
    texts, reviews_of = [review.text for review in data.reviews_of("train")[:40]], data.reviews_of
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.csv"
    corpus.write_text("\n".join(texts), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "training_texts", lambda documents=None: texts[:documents])
        patch.setattr(data, "reviews_of", cache(lambda split, source=None: reviews_of(split, source)[:40]))
        patch.setattr(data, "corpus_path", lambda: corpus)
        patch.setattr(records, "_commit", lambda: "unknown")
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="module")
def undisturbed(request, tmp_path_factory):
    """{name of a run: its folder}, left in peace from the first step to the last; the slow ones where they are asked
    for."""
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {item.callspec.params.get("name") for item in items}
    folders = {name: tmp_path_factory.mktemp("undisturbed") for name in RUNS if name in asked | {"causal, adamw"}}
    for name, folder in folders.items():
        unlike(0)
        rows = list(pretrain(RUNS[name], folder, device="cpu"))
        assert [row.step for row in rows] == list(range(1, 9))
    return folders


# ---------------------------------------------------------------- what two runs have in common


def flat(state):
    """Every number of a nested state, in order."""
    if isinstance(state, torch.Tensor):
        return state.double().flatten().tolist()
    if isinstance(state, dict):
        return [number for key in sorted(state, key=str) for number in flat(state[key])]
    if isinstance(state, list | tuple):
        return [number for part in state for number in flat(part)]
    return [state]


def curve(folder):
    """All rows but the durations, {(metric, step): value}, each there once."""
    rows = [row for row in Record(folder / "record.jsonl").rows() if row["metric"] != "seconds"]
    found = {(row["metric"], row["step"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    return found


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def differing(folder, other) -> list[str]:
    """In what two finished runs do not agree to the bit, of all that they leave behind."""
    one, two = Checkpoints(folder), Checkpoints(other)
    last, its_twin = one.load(one.steps()[-1]), two.load(two.steps()[-1])
    agree = {
        "model": weights(folder / "model") == weights(other / "model"),
        "step and score": (last.step, last.score) == (its_twin.step, its_twin.score),
        "last weights": weights(last.folder) == weights(its_twin.folder),
        "curve": curve(folder) == curve(other),
    }
    agree |= {name: flat(last.state[name]) == flat(its_twin.state[name]) for name in its_twin.state}
    return [name for name, is_same in agree.items() if not is_same]


def distance(folder, other) -> float:
    """The largest difference between two finished models' weights."""
    ours, theirs = (load_model(path / "model").state_dict() for path in (folder, other))
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def unlike(number):
    """Global generators somewhere else than a run would have them, as in another process."""
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)


def sitting(run, folder, *, leave_after=None, stop_at=None, resume=False):
    """One sitting in the way of a stop button that closes the generator (leave_after), or of a signal that is noted and
    obeyed when the step is done (stop_at). What it yields, row by row."""
    unlike(os.getpid() if resume else 0)
    torch.manual_seed(os.getpid())  # a new run seeds what it draws from
    taken = lambda: max((step for metric, step in curve(folder) if metric == "loss"), default=0)
    should_stop = (lambda: taken() >= stop_at) if stop_at else (lambda: False)
    rows = pretrain(run, folder, resume=resume, device="cpu", should_stop=should_stop)
    seen = []
    for row in rows:
        seen.append(row)
        if row.step == leave_after:
            rows.close()
    return seen


# ---------------------------------------------------------------- stopped and resumed


@pytest.mark.parametrize("name", FIRST_IS_QUICK)
def test_a_run_that_is_stopped_after_every_step_ends_as_the_undisturbed_one_to_the_bit(name, undisturbed, tmp_path):
    for step in range(1, 9):
        rows = sitting(RUNS[name], tmp_path, stop_at=step, resume=step > 1)
        assert [row.step for row in rows] == [step]
        assert Checkpoints(tmp_path).steps()[-1] == step
        assert (tmp_path / "model").exists() == (step == 8)
    assert differing(tmp_path, undisturbed[name]) == []


@pytest.mark.parametrize("name", FIRST_IS_QUICK)
@pytest.mark.parametrize("step", few([2, 3, 7], 7))
def test_a_run_whose_generator_is_closed_goes_on_from_the_checkpoint_before(name, step, undisturbed, tmp_path):
    first = sitting(RUNS[name], tmp_path, leave_after=step)
    assert Checkpoints(tmp_path).steps()[-1] == step // 3 * 3
    second = sitting(RUNS[name], tmp_path, resume=True)
    assert [row.step for row in first + second] == [*range(1, step + 1), *range(step // 3 * 3 + 1, 9)]
    assert [row.tokens for row in second] == [row.step * 32 * 4 for row in second]
    assert differing(tmp_path, undisturbed[name]) == []


@pytest.mark.slow
def test_the_held_out_loss_comes_with_the_row_and_is_that_of_the_weights_saved_there(tmp_path):
    rows = list(pretrain(CAUSAL, tmp_path, device="cpu", keep=9))
    assert [row.step for row in rows if row.held_out is not None] == [3, 6, 8]
    held_out = CAUSAL.dataset(CAUSAL.rows()[1])
    for row in rows:
        if row.held_out is not None:
            saved = load_model(tmp_path / f"step_{row.step}")
            assert held_out_loss(saved, [held_out.batch(0), held_out.batch(1)]) == row.held_out
            assert curve(tmp_path)["held_out", row.step] == Checkpoints(tmp_path).load(row.step).score == row.held_out
    assert Checkpoints(tmp_path).steps() == [0, 3, 6, 8]


@pytest.mark.parametrize("step", [3, 4])
def test_a_stop_that_is_asked_for_while_a_row_is_out_loses_no_step(step, tmp_path):
    """As Ctrl-C does while the caller draws its progress bar."""
    asked = []
    for row in pretrain(CAUSAL, tmp_path, device="cpu", should_stop=lambda: bool(asked)):
        if row.step == step:
            asked.append("stop")
    assert row.step < CAUSAL.steps
    assert Checkpoints(tmp_path).latest().step == row.step


def test_a_finished_run_that_is_resumed_takes_no_step_more(undisturbed):
    before = weights(undisturbed["causal, adamw"] / "model")
    assert sitting(CAUSAL, undisturbed["causal, adamw"], resume=True) == []
    assert weights(undisturbed["causal, adamw"] / "model") == before


# what a careless programmer forgets at step 6, of 8 ----------------------------------------------------------------


def forget_in_the_file(run, folder, **forgotten):
    checkpoints = Checkpoints(folder)
    begun = checkpoints.load(6)
    files = {path.name: path.read_bytes() for path in begun.folder.iterdir() if path.name[0] in "mc"}
    files.pop("checkpoint.json")
    checkpoints.save(6, files, begun.state | forgotten, about=begun.about, score=begun.score)


def no_optimizer(run, folder, monkeypatch):
    fresh = make_optimizer(load_model(folder / "step_6"), run.optimizer, weight_decay=run.weight_decay)
    forget_in_the_file(run, folder, optimizer=fresh.state_dict())


def no_random_state(run, folder, monkeypatch):
    unlike(99)
    forget_in_the_file(run, folder, random=random_states())


def no_schedule_position(run, folder, monkeypatch):
    rate = Schedule.__call__
    monkeypatch.setattr(Schedule, "__call__", lambda self, step: rate(self, step - 6))


def no_data_position(run, folder, monkeypatch):
    batch, first = PretrainingDataset.batch, 6 * run.accumulate
    monkeypatch.setattr(PretrainingDataset, "batch", lambda self, n: batch(self, n - first if n >= first else n))


def nothing(run, folder, monkeypatch):
    forget_in_the_file(run, folder)


FORGETFUL = [no_optimizer, no_random_state, no_schedule_position, no_data_position, nothing]


@pytest.mark.parametrize("forget", few(FORGETFUL, no_optimizer, nothing))
@pytest.mark.parametrize("name", FIRST_IS_QUICK)
def test_each_piece_of_state_is_missed_where_it_is_forgotten(name, forget, undisturbed, tmp_path, monkeypatch):
    sitting(RUNS[name], tmp_path, leave_after=6)
    forget(RUNS[name], tmp_path, monkeypatch)
    sitting(RUNS[name], tmp_path, resume=True)
    if forget is nothing:  # the control of the controls
        assert differing(tmp_path, undisturbed[name]) == []
    else:
        assert distance(tmp_path, undisturbed[name]) > 1e-5


@pytest.mark.slow
def test_tokens_and_patience_are_state_too(undisturbed, tmp_path):
    sitting(CAUSAL, tmp_path, leave_after=6)
    forget_in_the_file(CAUSAL, tmp_path, tokens=0)
    assert [row.tokens for row in sitting(CAUSAL, tmp_path, resume=True)] == [128, 256]
    assert differing(tmp_path, undisturbed["causal, adamw"]) == ["tokens"]


@pytest.mark.slow
def test_a_run_goes_on_in_the_number_format_that_it_began_in(tmp_path, monkeypatch):
    """What a measurement finds to pay changes with what else the machine does."""
    found = {"now": torch.float32}
    monkeypatch.setattr(pretraining, "fast_dtype", lambda device: found["now"])
    whole, stopped, mixed = (tmp_path / name for name in ("whole", "stopped", "mixed"))
    sitting(CAUSAL, whole)
    for folder in (stopped, mixed):
        sitting(CAUSAL, folder, leave_after=6)
    forget_in_the_file(CAUSAL, mixed, dtype="bfloat16")
    found["now"] = torch.bfloat16
    for folder in (stopped, mixed):
        sitting(CAUSAL, folder, resume=True)
    assert differing(stopped, whole) == []
    assert distance(mixed, whole) > 1e-5


# ---------------------------------------------------------------- what is refused


def trained_a_little(folder, run=CAUSAL):
    sitting(run, folder, leave_after=1)
    return run


def resumed(run, folder):
    return list(pretrain(run, folder, resume=True, device="cpu"))


OTHER_SETTINGS = [
    ({"seed": 1}, "begun with seed 0, not 1"),
    ({"peak_rate": 2e-2}, r"peak_rate 0\.01, not 0\.02"),
    ({"batch_size": 2}, "batch_size 4, not 2"),
    ({"config": CONFIG.with_(dropout=0.2)}, r"config .*'dropout': 0\.1.*not .*'dropout': 0\.2"),
    ({"objective": "prefix", "clip": 2.0}, r"objective causal, not prefix, clip 1\.0, not 2\.0"),
    ({"tokens": 32 * 4 * 9}, "tokens 1024, not 1152"),
]


@pytest.mark.parametrize(("changes", "words"), few(OTHER_SETTINGS, *OTHER_SETTINGS[3:5]))
def test_a_run_does_not_go_on_with_other_settings(tmp_path, changes, words):
    run = trained_a_little(tmp_path)
    with pytest.raises(ValueError, match=f"{words}.*give the same again, or start another run in another folder"):
        resumed(run.with_(**changes), tmp_path)


@pytest.mark.slow
def test_a_name_is_no_setting(tmp_path):
    """Negative control: what computes nothing may change."""
    assert resumed(trained_a_little(tmp_path).with_(name="other"), tmp_path)[-1].step == 8


def test_a_run_does_not_go_on_with_another_tokenizer(tmp_path, monkeypatch):
    run = trained_a_little(tmp_path)
    other = train_tokenizer(["a good film", "a bad film"] * 20, vocab_size=400)
    monkeypatch.setattr(recipes, "course_tokenizer", lambda: other)
    with pytest.raises(ValueError, match=f"tokenizer_sha256 {course_tokenizer().fingerprint}, not {other.fingerprint}"):
        resumed(run, tmp_path)


def own_text(folder, n_texts=30):
    """A file of real reviews, one document each, two in three of them of the training split."""
    path = Path(folder) / "own.txt"
    three = zip(data.reviews_of("train"), data.reviews_of("train")[20:], data.reviews_of("dev"), strict=False)
    reviews = list(itertools.chain.from_iterable(three))[:n_texts]
    path.write_text("\n\n".join(" ".join(review.text.split()) for review in reviews), "utf-8")
    return path


@pytest.mark.slow
def test_a_run_does_not_go_on_with_a_text_that_has_changed(tmp_path):
    run = trained_a_little(tmp_path / "run", CAUSAL.with_(text=str(own_text(tmp_path))))
    assert len(resumed(run, tmp_path / "run")) == 8  # the control: the same text
    own_text(tmp_path, 31)
    with pytest.raises(ValueError, match=r"corpus_sha256 .*, not "):
        resumed(run, tmp_path / "run")


@pytest.mark.slow
def test_a_run_does_not_go_on_from_another_model_than_it_began_with(tmp_path):
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_model(Decoder(CONFIG), tmp_path / f"model_{seed}")
    run = CAUSAL.with_(begin_with=str(tmp_path / "model_1"))
    trained_a_little(tmp_path / "run", run)
    with pytest.raises(ValueError, match="begins_with_sha256 "):
        resumed(run.with_(begin_with=str(tmp_path / "model_2")), tmp_path / "run")
    (tmp_path / "model_1").rename(tmp_path / "moved")
    assert resumed(run.with_(begin_with=str(tmp_path / "moved")), tmp_path / "run")[-1].step == 8


def test_a_run_begins_with_the_model_that_it_is_given(tmp_path):
    torch.manual_seed(1)
    save_model(Decoder(CONFIG), tmp_path / "model")
    trained_a_little(tmp_path / "run", CAUSAL.with_(begin_with=str(tmp_path / "model")))
    assert weights(tmp_path / "run" / "step_0") == weights(tmp_path / "model")
    trained_a_little(tmp_path / "new", CAUSAL)
    assert weights(tmp_path / "new" / "step_0") != weights(tmp_path / "model")


def test_a_model_that_the_objective_cannot_train_is_refused_and_nothing_is_written(tmp_path):
    save_model(Decoder(CONFIG), tmp_path / "model")
    run = MASKED.with_(begin_with=str(tmp_path / "model"), optimizer="adamw")
    with pytest.raises(ValueError, match="model of class Decoder: the masked objective trains one of class Encoder"):
        next(pretrain(run, tmp_path / "run", device="cpu"))
    assert os.listdir(tmp_path) == ["model"]


def test_a_recipe_takes_its_dimensions_from_the_model_that_it_goes_on_with(tmp_path):
    save_model(Decoder(CONFIG), tmp_path / "model")
    changes = {"begin_with": str(tmp_path / "model"), "tokens": 9999, "row_length": 64}
    assert recipes.recipe("decoder", **changes).config == CONFIG
    for wrong in ({"width": 32}, {"layers": 3}, {"dropout": 0.5}):
        with pytest.raises(ValueError, match="the model of begin_with brings its own "):
            recipes.recipe("decoder", **changes, **wrong)
    with pytest.raises(ValueError, match="row_length 65 exceeds max_len 64"):
        recipes.recipe("decoder", **changes | {"row_length": 65})
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        recipes.recipe("decoder", begin_with=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="encoder_longer goes on with a model"):
        recipes.recipe("encoder_longer")


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_with_the_same_settings_alone(tmp_path):
    next(pretrain(CAUSAL, tmp_path, device="cpu"))
    shutil.rmtree(tmp_path / "step_0")
    with pytest.raises(ValueError, match="begun with seed 0, not 1"):
        next(pretrain(CAUSAL.with_(seed=1), tmp_path, device="cpu"))
    assert len(list(pretrain(CAUSAL, tmp_path, device="cpu"))) == 8


def test_a_file_is_no_folder_for_a_run_and_a_text_that_is_not_there_is_named(tmp_path):
    (tmp_path / "run").write_text("something else")
    with pytest.raises(ValueError, match=r"run is a file: name a folder for the run"):
        next(pretrain(CAUSAL, tmp_path / "run", device="cpu"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt is not there: check the name"):
        next(pretrain(CAUSAL.with_(text=str(tmp_path / "nowhere.txt")), tmp_path / "other", device="cpu"))
    assert os.listdir(tmp_path) == ["run"]


def test_two_files_of_one_name_in_two_folders_are_both_part_of_the_corpus(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.txt").write_text(f"a film of {folder}")
    run = CAUSAL.with_(text=str(tmp_path))
    before = run.about()
    (tmp_path / "a" / "own.txt").write_text("another film")
    assert run.about()["corpus_sha256"] != before["corpus_sha256"]
    assert run.about()["corpus_sha256"].keys() == {"a/own.txt", "b/own.txt"}


def test_a_folder_that_holds_a_run_is_left_alone_without_resume(undisturbed):
    folder = undisturbed["causal, adamw"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="holds a run already: resume it, or choose another folder"):
        next(pretrain(CAUSAL, folder, device="cpu"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint to go on from: start without --resume"):
        resumed(CAUSAL, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(undisturbed, tmp_path):
    sitting(CAUSAL, tmp_path, leave_after=7)
    path = tmp_path / "step_6" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="step_6.*is damaged.*the checkpoint before it is used"):
        rows = sitting(CAUSAL, tmp_path, resume=True)
    assert rows[0].step == 4
    assert differing(tmp_path, undisturbed["causal, adamw"]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "bert"}, "objective 'bert' is unknown"),
        ({"row_length": 65, "tokens": 9999}, "row_length 65 exceeds max_len 64: shorten the rows or raise"),
        ({"batch_size": 0}, "batch_size is 0: take at least 1"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"save_every": 0}, "save_every is 0"),
        ({"dtype": "float8"}, "dtype 'float8' is unknown: choose one of auto, float32, bfloat16, float16"),
        ({"tokens": 127}, "tokens is 127, less than one step of 128: give more"),
        ({"rungs": (0.0,)}, "rungs are .*above 0 and at most 1"),
        ({"rungs": (1.1,)}, "rungs are "),
        ({"optimizer": "sgd"}, "optimizer 'sgd' is unknown"),
        ({"patience": 0}, "patience is 0"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"warmup": 9}, "warmup is 9 steps"),
        ({"shape": "step"}, "shape 'step' is unknown"),
        ({"learning_rate": 1.0}, "setting 'learning_rate' is unknown: choose from .*peak_rate"),
    ],
)
def test_settings_of_no_run_are_refused_before_anything_is_read(changes, words):
    with pytest.raises(ValueError, match=words):
        CAUSAL.with_(**changes)


# ---------------------------------------------------------------- own text


def as_rows(packed):
    return [tuple(row) for row in packed.ids_NT.tolist()]


def test_own_documents_are_held_out_whole(tmp_path):
    run = CAUSAL.with_(text=str(own_text(tmp_path, 40)))
    train_rows, held_out = map(as_rows, run.rows())
    assert train_rows and held_out
    assert not set(train_rows) & set(held_out)
    decode = lambda rows: course_tokenizer().decode(list(itertools.chain(*rows)))
    own = data.read_own_texts(run.text)
    first = next(review for review in own if review.split != "train")
    start = course_tokenizer().normalize(first.text)[:60]
    assert start in decode(held_out) and start not in decode(train_rows)


@pytest.mark.slow
def test_one_own_document_gives_its_last_twentieth(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(" ".join(review.text for review in data.reviews_of("train")[:20]), "utf-8")
    run = CAUSAL.with_(text=str(path))
    train_rows, held_out = map(as_rows, run.rows())
    everything = as_rows(recipes.packed_rows([review.text for review in data.read_own_texts(path)], 32))
    assert train_rows + held_out == everything
    assert len(held_out) == len(everything) // 20 > 0
    rows = list(pretrain(run, tmp_path / "run", device="cpu"))
    assert rows[-1].step == 8
    assert rows[-1].held_out < curve(tmp_path / "run")["held_out", 0]


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ("film " * 100, "batch_size is 4 and there are 2 rows"),
        ("film " * 35, "makes 1 row of tokens: give more text"),
        ("film", "hold 3 tokens, less than one row of 32: give more text"),
    ],
)
def test_a_text_of_fewer_rows_than_a_batch_is_refused_and_no_folder_made(tmp_path, words, refusal):
    (tmp_path / "own.txt").write_text(words)
    with pytest.raises(ValueError, match=refusal):
        next(pretrain(CAUSAL.with_(text=str(tmp_path / "own.txt")), tmp_path / "run", device="cpu"))
    assert os.listdir(tmp_path) == ["own.txt"]


# ---------------------------------------------------------------- when it ends


# Each step does harm.
WORSE = CAUSAL.with_(tokens=32 * 4 * 20, save_every=2, peak_rate=0.3, warmup=0, patience=2, dtype="float32")


@pytest.mark.slow
def test_patience_ends_a_run_that_gets_worse_and_the_model_is_the_best_checkpoint(tmp_path):
    rows = list(pretrain(WORSE, tmp_path, device="cpu"))
    losses = {row.step: row.held_out for row in rows if row.held_out is not None}
    assert max(losses) == rows[-1].step < WORSE.steps
    lowest = min(losses, key=losses.get)
    assert list(losses)[-2:] == [lowest + 2, lowest + 4]
    best = Checkpoints(tmp_path).best()
    assert best.score == min(losses[lowest], curve(tmp_path)["held_out", 0])
    assert weights(tmp_path / "model") == weights(best.folder) != weights(tmp_path / f"step_{rows[-1].step}")


@pytest.mark.slow
def test_without_patience_it_goes_on_to_the_end(tmp_path):
    """The control."""
    assert list(pretrain(WORSE.with_(patience=None), tmp_path, device="cpu"))[-1].step == WORSE.steps


@pytest.mark.slow
def test_a_run_that_patience_has_ended_takes_no_step_more_when_it_is_resumed(tmp_path):
    """Killed before its model was written, it still has to write it."""
    list(pretrain(WORSE, tmp_path, device="cpu"))
    before = weights(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert resumed(WORSE, tmp_path) == []
    assert weights(tmp_path / "model") == before


@pytest.mark.slow
def test_patience_is_remembered_across_a_stop(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    end = list(pretrain(WORSE, whole, device="cpu"))[-1].step
    sitting(WORSE, stopped, leave_after=end - 1)
    assert sitting(WORSE, stopped, resume=True)[-1].step == end
    assert differing(stopped, whole) == []


@pytest.mark.slow
def test_rungs_are_kept_and_the_last_two(tmp_path):
    list(pretrain(CAUSAL.with_(rungs=(0.125, 0.5), save_every=1), tmp_path, device="cpu"))
    best = Checkpoints(tmp_path).best().step
    assert Checkpoints(tmp_path).steps() == sorted({1, 4, 7, 8, best})


def test_a_rate_that_breaks_the_model_names_the_step_and_leaves_the_last_good_checkpoint(tmp_path):
    run = CAUSAL.with_(peak_rate=1e20, warmup=0)
    with pytest.raises(FloatingPointError, match=r"step [23]: loss (nan|inf) with gradient norm .*lower the rate"):
        list(pretrain(run, tmp_path, device="cpu"))
    assert Checkpoints(tmp_path).latest().step == 0
    assert not (tmp_path / "model").exists()
    with pytest.raises(FloatingPointError, match=r"step [23]: "):
        resumed(run, tmp_path)


def test_a_held_out_loss_that_is_not_finite_names_its_step_too(tmp_path):
    """Measured after the step that broke the model, before the next loss is."""
    with pytest.raises(FloatingPointError, match="step 1"):
        list(pretrain(CAUSAL.with_(peak_rate=1e20, warmup=0, save_every=1), tmp_path, device="cpu"))


def test_the_model_of_a_finished_run_opens_with_its_tokenizer(undisturbed):
    for name, folder in undisturbed.items():
        model = load_model(folder / "model")
        assert model.config == RUNS[name].config
        assert not model.training
        assert (folder / "model" / "tokenizer.json").is_file()


# ---------------------------------------------------------------- real kills


@pytest.mark.slow
def test_the_campaign_counts_what_is_damaged_and_compares_what_came_out(undisturbed, tmp_path):
    """Negative control of the test below."""
    folder = undisturbed["causal, adamw"]
    assert kill_campaign.count_corrupt(folder) == 0
    sitting(CAUSAL, tmp_path, leave_after=4)
    sitting(CAUSAL, tmp_path, resume=True)
    assert kill_campaign.curve(tmp_path) == kill_campaign.curve(folder)
    assert kill_campaign.weights(tmp_path) == kill_campaign.weights(folder)
    os.truncate(tmp_path / "step_8" / "state.pt", 1000)
    (tmp_path / "step_6" / "checkpoint.json").unlink()
    assert kill_campaign.count_corrupt(tmp_path) == 2
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other")
    assert kill_campaign.weights(tmp_path) != kill_campaign.weights(folder)
    assert not kill_campaign.Tally(kills=3, resumed=3, same_weights=False, same_curve=True).is_clean
    assert not kill_campaign.Tally(corrupt=1, same_weights=True, same_curve=True).is_clean


@pytest.mark.slow
def test_a_process_that_is_killed_and_resumed_ends_as_the_undisturbed_one_to_the_bit(tmp_path):
    tally = kill_campaign.campaign(tmp_path, kills=2, seed=1, tell=lambda _words: None)
    assert tally.kills == tally.resumed == 2
    assert tally.is_clean, str(tally)
