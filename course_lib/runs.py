"""Whole runs from a config: what notebooks, the command line and, later, ranks all call."""

import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from course_lib import data
from course_lib.data import DATA_FOLDER, Packed, PretrainingDataset, Review, corpus_path, course_tokenizer, pack
from course_lib.evaluation import bag_of_words_accuracy, first_tokens, frozen_features, labelled_sample, probe_accuracy
from course_lib.files import sha256_of, write_atomically
from course_lib.layers import TransformerConfig
from course_lib.model import MODEL_OF_OBJECTIVE, LanguageModel
from course_lib.objectives import Batch
from course_lib.records import Record
from course_lib.runtime import fast_dtype, pick_device
from course_lib.tokenizer import train_tokenizer
from course_lib.training import StepRecord, held_out_loss, make_optimizer, new_model, train

RECORDS_FOLDER = DATA_FOLDER / "records"


@dataclass(frozen=True)
class Laboratory:
    """One experiment for every objective: the same text, rows, width, number of blocks, optimiser and token budget.

    tokens: read by the model in all, per objective. rates: peak learning rates of objectives that do not bear the
    common one (at 1e-3 the encoder of span corruption collapses: `record_span_collapse`). probe_labels, probe_seeds:
    how many labelled reviews the frozen probe learns from, and how many samples of them are drawn.
    Raises ValueError for an unknown objective, or a budget below one step.
    """

    objectives: tuple[str, ...] = ("causal", "masked", "permuted", "span", "infilled")
    tokens: int = 8_000_000
    row_length: int = 128
    batch_size: int = 32
    peak_rate: float = 1e-3
    rates: dict[str, float] = field(default_factory=lambda: {"span": 3e-4})
    warmup: int = 100
    seed: int = 0
    probe_labels: tuple[int, ...] = (100, 500, 2000)
    probe_seeds: int = 5
    probe_tests: int = 2000
    config: TransformerConfig = field(default_factory=lambda: TransformerConfig(vocab_size=8192, max_len=160))

    def __post_init__(self) -> None:
        for objective in self.objectives:
            _check_objective(objective)
        if self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}: the rate rises over at least 1 step")
        if self.steps < 1:
            raise ValueError(
                f"tokens is {self.tokens}, less than one step of {self.batch_size} rows of {self.row_length}: give more"
            )

    @property
    def steps(self) -> int:
        return self.tokens // (self.row_length * self.batch_size)

    @property
    def rungs(self) -> list[int]:
        """The steps at which the model is probed: none, an eighth, a quarter, half and all of the budget."""
        return [0, *(self.steps // 8 * k for k in (1, 2, 4)), self.steps]

    def rate(self, step: int) -> float:
        """Linear warm-up, constant, linear decay to a tenth over the last 30 % of the budget."""
        decay_from = 0.7 * self.steps
        decay = 1.0 if step < decay_from else 1 - 0.9 * (step - decay_from) / (self.steps - decay_from)
        return self.peak_rate * min(1.0, (step + 1) / self.warmup) * decay

    def rate_of(self, objective: str) -> Callable[[int], float]:
        """The schedule of one objective: `rate`, scaled to its own peak where it has one."""
        scale = self.rates.get(objective, self.peak_rate) / self.peak_rate
        return lambda step: scale * self.rate(step)

    def model(self, objective: str) -> LanguageModel:
        """The freshly initialised model of an objective: positions as its layout has them.

        Raises ValueError for an unknown objective.
        """
        _check_objective(objective)
        positions = "learned" if objective in ("causal", "prefix") else "rotary"
        return new_model(MODEL_OF_OBJECTIVE[objective], self.config.with_(positions=positions), seed=self.seed)

    def dataset(self, objective: str, packed: Packed) -> PretrainingDataset:
        vocabulary = course_tokenizer().vocabulary
        return PretrainingDataset(packed, vocabulary, objective, batch_size=self.batch_size, seed=self.seed)

    def live(self, objective: str, packed: Packed, *, steps: int) -> Iterator[StepRecord]:
        """The first steps of the recorded run, on this machine."""
        return train(self.model(objective), self.dataset(objective, packed), steps=steps, rate=self.rate_of(objective))


def training_rows(length: int = 128, *, split: str = "train", documents: int | None = None) -> Packed:
    """The packaged reviews as packed rows, those with slurs left out; the first `documents` of them, or all."""
    texts = data.training_texts() if split == "train" else [review.text for review in data.reviews_of(split)]
    tokenizer = course_tokenizer()
    return pack(tokenizer.encode_all(texts[:documents]), length, vocabulary=tokenizer.vocabulary)


@dataclass(frozen=True)
class SentimentProbe:
    """Frozen features, then logistic regression on few labels: accuracy on held-out IMDB reviews, over samples.

    Every method reads the same stretch of each text.
    """

    labels: Sequence[int] = (100, 500, 2000)
    seeds: int = 5
    tests: int = 2000

    @cached_property
    def _pools(self) -> tuple[list[Review], list[Review]]:
        pool, tests = data.reviews_of("train", "imdb"), data.reviews_of("test", "imdb")
        return pool[: 2 * max(self.labels)], tests[: self.tests]

    def accuracies(self, features: Callable[[list[str]], np.ndarray]) -> dict[tuple[int, int], float]:
        """{(labels, seed): accuracy} of a probe on `features(texts)`, computed once for each text."""
        return self._each(features, probe_accuracy)

    def of_model(self, model: LanguageModel) -> dict[tuple[int, int], float]:
        """The same for the mean-pooled last hidden state of one of the course's models."""
        return self.accuracies(lambda texts: frozen_features(model, texts, course_tokenizer()))

    def bag_of_words(self) -> dict[tuple[int, int], float]:
        """The same for words and word pairs with TF-IDF, which learns its own features from the labelled texts."""
        read = lambda texts: np.array(first_tokens(texts, course_tokenizer()), dtype=object)  # noqa: E731
        return self._each(read, bag_of_words_accuracy)

    def _each(self, read: Callable, accuracy: Callable) -> dict[tuple[int, int], float]:
        pool, tests = self._pools
        samples = {(n, seed): labelled_sample(pool, n, seed) for n in self.labels for seed in range(self.seeds)}
        texts = list({review.text: None for sample in samples.values() for review in sample})
        place = {text: n for n, text in enumerate(texts)}
        train_NE, test_NE = read(texts), read([review.text for review in tests])
        test_labels = np.array([review.label for review in tests])
        return {
            key: accuracy(
                train_NE[[place[review.text] for review in sample]],
                np.array([review.label for review in sample]),
                test_NE,
                test_labels,
            )
            for key, sample in samples.items()
        }


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
        _add_probe(record, "bag of words", 0, probe.bag_of_words())
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


RECORDERS: dict[str, Callable[..., Path]] = {
    "tokenizer": record_tokenizer,
    "objectives": record_objectives,
    "span_collapse": record_span_collapse,
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
    done = _restore(state_path, model, optimizer)
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
        _add_probe(record, objective, end, probe.of_model(model))
        loss = held_out_loss(model, dev_batches)
        record.add(name=objective, seed=lab.seed, step=end, metric="held_out", value=loss)
        _save(state_path, end, model, optimizer)
    state_path.unlink(missing_ok=True)


def _check_objective(objective: str) -> None:
    if objective not in MODEL_OF_OBJECTIVE:
        raise ValueError(f"objective {objective!r} is unknown: choose one of {', '.join(MODEL_OF_OBJECTIVE)}")


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


def _add_probe(record: Record, name: str, step: int, accuracies: dict[tuple[int, int], float]) -> None:
    for (labels, seed), accuracy in accuracies.items():
        record.add(name=name, seed=seed, step=step, metric=f"probe_{labels}", value=accuracy)


def _save(path: Path, step: int, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    buffer = io.BytesIO()
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    write_atomically(path, buffer.getvalue())


def _restore(path: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> int:
    """The step that a stopped recording had reached: -1 where there was none."""
    if not path.exists():
        return -1
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
