"""Recorded runs: what `course record NAME` makes again, row by row, going on where it was stopped."""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from course_lib import data
from course_lib.checkpoint import Checkpoints
from course_lib.data import DATA_FOLDER, RECORDS_FOLDER, Packed, corpus_path, training_rows
from course_lib.files import read_text, sha256_of, write_atomically
from course_lib.objectives import Batch
from course_lib.optimizers import make_optimizer
from course_lib.records import Record
from course_lib.runs.efficiency import record_efficiency
from course_lib.runs.following import record_following
from course_lib.runs.judging import record_judge
from course_lib.runs.laboratory import Laboratory
from course_lib.runs.language import record_language
from course_lib.runs.own_reading import record_own_text
from course_lib.runs.pretraining import pretrain
from course_lib.runs.probe import SentimentProbe
from course_lib.runs.reading import record_reader
from course_lib.runs.recipes import recipe
from course_lib.runs.states import restore_state, save_state
from course_lib.runs.strategies import record_strategies
from course_lib.runs.transfer import record_transfer
from course_lib.runs.variants import record_variants
from course_lib.runtime import fast_dtype, pick_device
from course_lib.tokenizer import train_tokenizer
from course_lib.training import held_out_loss, train


def record(name: str, *, progress: Callable[[str], None] = print) -> Path:
    """Make a record (or the tokenizer) of the course again, and say where it is.

    Raises ValueError for a name that is none.
    """
    if name not in RECORDERS:
        raise ValueError(f"record {name!r} is unknown: choose one of {', '.join(RECORDERS)}")
    return RECORDERS[name](progress=progress)


def record_tokenizer(*, progress: Callable[[str], None] = print) -> Path:
    """Train the course's tokenizer on the training split, those texts with slurs left out."""
    texts = data.training_texts()
    progress(f"training the tokenizer on {len(texts):,} texts")
    return train_tokenizer(texts).save(DATA_FOLDER / "tokenizer.json")


def record_objectives(
    *,
    path: Path = RECORDS_FOLDER / "objectives.jsonl",
    laboratory: Laboratory | None = None,
    progress: Callable[[str], None] = print,
) -> Path:
    """Run the objective laboratory and write its rows; goes on where an earlier call was stopped.

    Raises ValueError where the file was begun with other settings.
    """
    lab = laboratory or Laboratory()
    about = {
        "laboratory": asdict(lab),
        "dtype": str(fast_dtype(pick_device())),
        "corpus_sha256": sha256_of(corpus_path()),
        "tokenizer_sha256": sha256_of(DATA_FOLDER / "tokenizer.json"),
    }
    record = Record(path, command=f"course record {path.stem}", about=about)
    _check_same_run(record, lab)
    probe = SentimentProbe(lab.probe_labels, lab.probe_seeds, lab.probe_tests)
    if not record.has(name="bag of words", seed=lab.probe_seeds - 1, step=0, metric=f"probe_{lab.probe_labels[-1]}"):
        probe.add_to(record, "bag of words", 0, probe.bag_of_words())
    packed, held_out = training_rows(lab.row_length), training_rows(lab.row_length, split="dev")
    for objective in lab.objectives:
        dev = lab.dataset(objective, held_out)
        dev_batches = [dev.batch(k) for k in range(min(24, dev.batches_per_epoch))]
        _record_objective(record, lab, objective, packed, dev_batches, probe, progress)
    return path


def record_span_collapse(*, progress: Callable[[str], None] = print) -> Path:
    """Span corruption at the rate that the other objectives bear: its loss falls, and its encoder learns nothing."""
    at_common_rate = Laboratory(objectives=("span",), rates={})
    path = RECORDS_FOLDER / "span_collapse.jsonl"
    return record_objectives(path=path, laboratory=at_common_rate, progress=progress)


def record_pretraining(name: str, *, begin_with: str | None = None, progress: Callable[[str], None] = print) -> Path:
    """Pre-train one of the course's own models again, and write its curve; the run itself stays beside it, hidden.

    begin_with: the name of a run that was recorded here before, whose model this one goes on with.
    """
    folder = RECORDS_FOLDER / f".pretraining_{name}"
    begun = {"begin_with": str(RECORDS_FOLDER / f".pretraining_{begin_with}" / "model")} if begin_with else {}
    run = recipe(name, **begun)
    for row in pretrain(run, folder, resume=bool(Checkpoints(folder).steps())):
        if row.held_out is not None:
            progress(f"{name}: step {row.step} of {run.steps}, held-out loss {row.held_out:.3f}")
    return write_atomically(RECORDS_FOLDER / f"pretraining_{name}.jsonl", read_text(folder / "record.jsonl"))


RECORDERS: dict[str, Callable[..., Path]] = {
    "tokenizer": record_tokenizer,
    "objectives": record_objectives,
    "span_collapse": record_span_collapse,
    "pretraining_encoder": partial(record_pretraining, "encoder"),
    "pretraining_encoder_longer": partial(record_pretraining, "encoder_longer", begin_with="encoder"),
    "pretraining_decoder": partial(record_pretraining, "decoder"),
    "variants": record_variants,
    "language": record_language,
    "transfer": record_transfer,
    "strategies": record_strategies,
    "reader": record_reader,
    "efficiency": record_efficiency,
    "judge": record_judge,
    "following": record_following,
    "own_text": record_own_text,
}


def _record_objective(
    record: Record,
    lab: Laboratory,
    objective: str,
    packed: Packed,
    dev_batches: list[Batch],
    probe: SentimentProbe,
    progress: Callable[[str], None],
) -> None:
    """Train one objective's model from rung to rung of the ladder; at each rung probe it, measure it, and save it, so
    that a recording that was stopped goes on from there."""
    state_path = record.path.parent / f".{record.path.stem}-{objective}.state"
    if record.has(name=objective, seed=lab.seed, step=lab.steps, metric="held_out"):
        state_path.unlink(missing_ok=True)
        return
    if not record.has(name=objective, seed=lab.seed, step=0, metric="held_out"):
        state_path.unlink(missing_ok=True)  # of a record that was removed: each of its own states comes after this row
    model, dataset = lab.model(objective), lab.dataset(objective, packed)
    optimizer = make_optimizer(model)
    done = restore_state(state_path, model, optimizer)
    for begin, end in itertools.pairwise([0, *lab.rungs]):
        if end <= done:
            continue
        batches = (dataset.batch(k) for k in itertools.count(begin))
        if end > begin:
            for row in train(
                model, batches, steps=end - begin, rate=lab.rate_of(objective), optimizer=optimizer, start=begin
            ):
                if row.step <= 40 or row.step % 10 == 0:
                    record.add(name=objective, seed=lab.seed, step=row.step, metric="loss", value=row.loss)
                if row.step % 100 == 0:
                    progress(f"{objective}: step {row.step} of {lab.steps}, loss {row.loss:.3f}")
        probe.add_to(record, objective, end, probe.of_model(model))
        loss = held_out_loss(model, dev_batches)
        record.add(name=objective, seed=lab.seed, step=end, metric="held_out", value=loss)
        save_state(state_path, end, model, optimizer)
    state_path.unlink(missing_ok=True)


def _check_same_run(record: Record, lab: Laboratory) -> None:
    """Refuses to mix rows of two experiments in one file; only the list of objectives may grow."""
    wanted = json.loads(json.dumps(asdict(lab)))
    for sitting in record.provenance() if record.path.exists() else []:
        begun = sitting.get("laboratory", wanted)
        if differing := [n for n in wanted if n != "objectives" and begun.get(n, wanted[n]) != wanted[n]]:
            name = differing[0]
            raise ValueError(
                f"{record.path} was begun with {name} {begun.get(name)}, and this laboratory has {wanted[name]}: "
                "record it into another file"
            )
