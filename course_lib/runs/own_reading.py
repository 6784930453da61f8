"""What the shipped decoder learns from a text of your own (continued pre-training, arXiv:2004.10964): in full, by LoRA,
and beside a decoder from nothing, measured at a ladder of tokens."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from course_lib import data
from course_lib.data import RECORDS_FOLDER, Packed, PretrainingDataset, course_tokenizer, normalize, pack
from course_lib.evaluation import Interval, bits_per_byte, bootstrap_interval, stream_nats
from course_lib.files import sha256_of
from course_lib.model import Decoder, LanguageModel
from course_lib.optimizers import Optimizer, make_optimizer
from course_lib.peft import Full, LoRA, Strategy, apply
from course_lib.pretrained import CHECKPOINTS_FOLDER, load_checkpoint
from course_lib.records import Record
from course_lib.runs.own_text import OwnText, own_text
from course_lib.runs.states import restore_state, save_state
from course_lib.runtime import pick_device
from course_lib.schedules import Schedule
from course_lib.training import StepRecord, new_model, train


@dataclass(frozen=True)
class Method:
    """How a decoder comes to read the text: by a strategy on the shipped one, or without one from nothing."""

    strategy: Strategy | None
    rate: float


METHODS = {
    "full": Method(Full(), 5e-4),
    "LoRA": Method(LoRA(rank=16, alpha=32), 3e-3),
    "from nothing": Method(None, 1e-3),
}


@dataclass(frozen=True)
class Reading:
    """Continued pre-training. tokens: read in all, a text shorter than that again and again; rungs: after how many of
    them it is measured. The rate rises over `warmup` steps, stays, and falls over the last fifth.

    Raises ValueError for fewer tokens than a step reads.
    """

    tokens: int = 2_097_152
    rungs: tuple[int, ...] = tuple(2_097_152 >> halvings for halvings in range(7, -1, -1))
    row_length: int = 256
    batch_size: int = 8
    warmup: int = 8
    held_out_tokens: int = 4_096
    seed: int = 0
    methods: dict[str, Method] = field(default_factory=lambda: dict(METHODS))

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"tokens is {self.tokens}, and a step reads {self.tokens_per_step}: give more")

    @property
    def tokens_per_step(self) -> int:
        return self.row_length * self.batch_size

    @property
    def steps(self) -> int:
        return self.tokens // self.tokens_per_step

    def step_of(self, tokens: int) -> int:
        """The step after which at least so many tokens have been read, the last one at most."""
        return min(self.steps, -(-tokens // self.tokens_per_step))

    def rate_of(self, name: str) -> Schedule:
        return Schedule(
            "warmup_stable_decay", self.methods[name].rate, self.steps, min(self.warmup, self.steps // 5),
            decay_share=0.2,
        )  # fmt: skip

    def begin(self, name: str) -> tuple[LanguageModel, Optimizer]:
        """The decoder that a method begins with, and its optimizer."""
        shipped, how = load_checkpoint("decoder"), self.methods[name]
        model = new_model(Decoder, shipped.config, seed=self.seed) if how.strategy is None else shipped
        model.to(pick_device())
        if how.strategy is not None:
            apply(model, how.strategy, seed=self.seed)
        return model, make_optimizer(model)

    def dataset(self, packed: Packed) -> PretrainingDataset:
        vocabulary = course_tokenizer().vocabulary
        return PretrainingDataset(packed, vocabulary, "causal", batch_size=self.batch_size, seed=self.seed)

    def rows(self, text: OwnText) -> Packed:
        """The part to read, as packed rows."""
        return pack(text.ids("read"), self.row_length, vocabulary=course_tokenizer().vocabulary)

    def read(
        self, name: str, model: LanguageModel, optimizer: Optimizer, packed: Packed, *, begin: int = 0, end: int
    ) -> Iterator[StepRecord]:
        """Steps `begin` to `end` of a method; a record a step."""
        dataset = self.dataset(packed)
        batches = map(dataset.batch, itertools.count(begin))
        yield from train(
            model, batches, steps=end - begin, rate=self.rate_of(name), optimizer=optimizer, start=begin,
            tokens=begin * self.tokens_per_step, dtype=torch.float32,
        )  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """Whole texts that nobody reads, as a stream of about so many tokens: how many of these each text has, and their
    bytes in all."""

    ids: tuple[int, ...]
    sizes: tuple[int, ...]
    n_bytes: int

    @classmethod
    def of(cls, texts: list[str], tokens: int) -> "HeldOut":
        """Raises ValueError for no texts."""
        tokenizer, ids, sizes, n_bytes = course_tokenizer(), [], [], 0
        bos, eos = tokenizer.vocabulary.bos, tokenizer.vocabulary.eos
        for text in texts:
            if len(ids) >= tokens:
                break
            found = [bos, *tokenizer.encode(text), eos]
            ids += found
            sizes.append(len(found))
            n_bytes += len(normalize(text).encode())
        if not ids:
            raise ValueError("there is no text to hold out: give at least one")
        return cls(tuple(ids), tuple(sizes), n_bytes)

    def nats(self, model: LanguageModel) -> np.ndarray:
        """float64 [N - 1]: what each token after the first costs a model."""
        return stream_nats(model, torch.tensor(self.ids), dtype=torch.float32)

    def loss(self, model: LanguageModel) -> tuple[float, float]:
        """Nats per token, and bits per byte."""
        return self.loss_of(self.nats(model))

    def loss_of(self, nats_N: np.ndarray) -> tuple[float, float]:
        """Nats per token, and bits per byte, of what `nats` has given."""
        return float(nats_N.mean()), bits_per_byte(float(nats_N.sum()), self.n_bytes)

    def interval(self, values_N: np.ndarray) -> Interval:
        """The mean of one value a token after the first, with its 95% interval by the bootstrap over texts; without
        bounds for a single text. Raises ValueError as `by_text` does."""
        totals, counts = self.by_text(values_N), self.by_text(np.ones(len(values_N)))
        if len(totals) < 2:
            return Interval(float(np.mean(values_N)), -math.inf, math.inf)
        draw = np.random.default_rng(0)
        return bootstrap_interval(
            lambda total_N, count_N: total_N.sum() / count_N.sum(), totals, counts, generator=draw
        )

    def by_text(self, values_N: np.ndarray) -> np.ndarray:
        """float64 [texts]: the sum of one value a token after the first, text by text. Tokens of one text are alike, so
        that texts, not tokens, are what an interval is to draw from.

        Raises ValueError for another number of values.
        """
        if len(values_N) != len(self.ids) - 1:
            raise ValueError(f"{len(values_N)} values for {len(self.ids) - 1} tokens after the first: give one each")
        starts = np.maximum(np.cumsum([0, *self.sizes[:-1]]) - 1, 0)  # the first token of all is never asked for
        return np.add.reduceat(np.asarray(values_N, dtype=np.float64), starts)


def held_out_of(text: OwnText, reading: Reading) -> dict[str, HeldOut]:
    """What a reading is measured on: the text's own dev part, and reviews of the dev split for what is forgotten."""
    reviews = [review.text for review in data.reviews_of("dev")]
    return {
        "own": HeldOut.of(text.words("dev"), reading.held_out_tokens),
        "reviews": HeldOut.of(reviews, reading.held_out_tokens),
    }


def record_own_text(
    *,
    path: Path = RECORDS_FOLDER / "own_text.jsonl",
    reading: Reading | None = None,
    text: OwnText | None = None,
    progress: Callable[[str], None] = print,
) -> Path:
    """Continue pre-training on the installed documentation by every method, measured at a ladder of tokens; goes on
    where it was stopped.

    Raises ValueError where the file was begun with another text, decoder or settings.
    """
    reading, text = reading or Reading(), text or own_text()
    about = {
        "reading": asdict(reading),
        "text": text.name,
        "n_texts": len(text.texts),
        "text_sha256": text.fingerprint,
        "decoder_sha256": sha256_of(CHECKPOINTS_FOLDER / "decoder" / "model.safetensors"),
        "tokenizer_sha256": course_tokenizer().fingerprint,
    }
    record = Record(path, command="course record own_text", about=about)
    record.check_about()
    packed, held_out = reading.rows(text), held_out_of(text, reading)
    for begin, end in itertools.pairwise([None, 0, *map(reading.step_of, reading.rungs)]):
        for name in reading.methods:  # all of them to each rung: a recording that is stopped compares as far as it goes
            _record_stretch(record, name, reading, packed, held_out, begin, end, progress)
    for name in reading.methods:
        _state_path(record, name).unlink(missing_ok=True)
    return path


def _record_stretch(
    record: Record,
    name: str,
    reading: Reading,
    packed: Packed,
    held_out: dict[str, HeldOut],
    begin: int | None,
    end: int,
    progress: Callable[[str], None],
) -> None:
    """One method from one rung to the next, measured there; what is there already is left as it is."""
    keys, tokens = {"name": name, "seed": reading.seed}, end * reading.tokens_per_step
    if record.has(**keys, step=tokens, metric=f"{list(held_out)[-1]}_bits_per_byte"):
        return
    model, optimizer = reading.begin(name)
    if begin:
        done = restore_state(_state_path(record, name), model, optimizer)
        if done not in (begin, end):
            raise ValueError(
                f"{name}: the state after step {begin:,} is not beside {record.path}: remove the record, and begin anew"
            )
        begin = done
    if end > (begin or 0):
        for row in reading.read(name, model, optimizer, packed, begin=begin or 0, end=end):
            record.add(**keys, step=row.tokens, metric="loss", value=row.loss)
        save_state(_state_path(record, name), end, model, optimizer)
    for source, part in held_out.items():
        nats, bits = part.loss(model)
        record.add(**keys, step=tokens, metric=f"{source}_nats", value=nats)
        record.add(**keys, step=tokens, metric=f"{source}_bits_per_byte", value=bits)
        progress(f"{name}, {tokens:,} tokens: {source} {nats:.4f} nats per token, {bits:.4f} bits per byte")


def _state_path(record: Record, name: str) -> Path:
    return record.path.parent / f".{record.path.stem}-{name.replace(' ', '-')}.state"
