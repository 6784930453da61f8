"""The capstone: a text of your own, split, refused where it cannot carry an experiment, and what the shipped decoder
learns from it, in full, by LoRA, and beside a decoder from nothing, at a ladder of tokens."""

import csv
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch

from course_lib import data
from course_lib.data import RECORDS_FOLDER, Packed, PretrainingDataset, Review, course_tokenizer, normalize, packed_rows
from course_lib.documentation import PACKAGES, documentation
from course_lib.evaluation import bits_per_byte, stream_nats
from course_lib.files import read_text, sha256_of
from course_lib.model import Decoder, LanguageModel
from course_lib.optimizers import Optimizer, make_optimizer
from course_lib.peft import Full, LoRA, Strategy, apply
from course_lib.pretrained import CHECKPOINTS_FOLDER, load_checkpoint
from course_lib.records import Record
from course_lib.runs.states import restore_state, save_state
from course_lib.runtime import pick_device
from course_lib.schedules import Schedule
from course_lib.training import StepRecord, new_model, train

LEAST_TO_READ, LEAST_HELD_OUT = 20_000, 1_000  # tokens: below that a run shows chance


@dataclass(frozen=True)
class OwnText:
    """Texts, each distinct one once, and on one side only: to read, to look at on the way (dev), to test.

    Raises ValueError where one of the three is too small for an experiment.
    """

    texts: tuple[Review, ...]
    name: str = "your text"

    def __post_init__(self) -> None:
        least = {"read": LEAST_TO_READ, "dev": LEAST_HELD_OUT, "test": LEAST_HELD_OUT}
        for part, wanted in least.items():
            if (found := self.n_tokens(part)) < wanted:
                raise ValueError(
                    f"{self.name} has {found:,} tokens to {part}, in {len(self.part(part))} of {len(self.texts)} "
                    f"distinct texts: give at least {wanted:,}. Some 500,000 characters in a few hundred "
                    "paragraphs with an empty line between them are enough"
                )

    @cached_property
    def _parts(self) -> dict[str, list[Review]]:
        parts: dict[str, list[Review]] = {"read": [], "dev": [], "test": []}
        for text in sorted(self.texts, key=lambda text: text.identity):
            parts[text.split if text.split in parts else "read"].append(text)
        return parts

    def part(self, name: str) -> list[Review]:
        """The texts of "read", "dev" or "test", shuffled alike on every machine: by identity.

        Raises ValueError for another name.
        """
        if name not in self._parts:
            raise ValueError(f"part {name!r} is unknown: choose one of {', '.join(self._parts)}")
        return self._parts[name]

    def words(self, name: str) -> list[str]:
        """The texts of a part as they stand."""
        return [text.text for text in self.part(name)]

    def n_tokens(self, name: str) -> int:
        """How many of the course's tokens a part has."""
        return sum(map(len, course_tokenizer().encode_all(self.words(name))))

    @cached_property
    def classes(self) -> list[str]:
        """What a text can be told by: its label where there are two, else the file or package that it comes from."""
        return sorted({class_of(text) for text in self.texts})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the identities of all texts: the same for the same texts in whatever order."""
        return sha256("".join(sorted(text.identity for text in self.texts)).encode()).hexdigest()


def own_text(path: Path | str | None = None) -> OwnText:
    """The text of the capstone: yours, or where `path` is None the documentation of the installed packages.

    path: a folder of .txt or one .txt (texts divided by empty lines), or a .csv with a column `text` and, if there is
    one, a column `label` of 0s and 1s.
    Raises FileNotFoundError, and ValueError as `read_own_texts` and `OwnText` do.
    """
    if path is None:
        return OwnText(tuple(documentation()), "the documentation of " + ", ".join(PACKAGES))
    path = Path(path)
    files = list(data.own_files(path).values()) or [path]  # an empty folder: the reader says so
    found = (text for file in files for text in data.read_own_texts(file, label_column=_label_column(file)))
    return OwnText(tuple({text.identity: text for text in found}.values()), path.name)


def class_of(text: Review) -> str:
    """What a text is told by: its label where it has one, else where it comes from."""
    return text.source if text.label is None else str(text.label)


def paragraphs(texts: list[Review], classes: list[str], per_class: int, *, tokens: tuple[int, int] = (24, 64)) -> list:
    """The first `per_class` texts of each class, in the order that they stand in: of each its beginning, up to the most
    tokens, and none with fewer than the least.

    Raises ValueError for fewer than 2 classes, or a class with too few texts (with how many there are).
    """
    if len(classes) < 2:
        raise ValueError(
            f"all texts are of one class, {classes[0] if classes else 'none'}: give a folder of several .txt, or a "
            ".csv with a column label of 0s and 1s"
        )
    tokenizer, least = course_tokenizer(), tokens[0]
    kept: dict[str, list[Review]] = {name: [] for name in classes}
    for text, ids in zip(texts, tokenizer.encode_all([text.text for text in texts]), strict=True):
        mine = kept.get(class_of(text))
        if mine is not None and len(mine) < per_class and len(ids) >= least:
            mine.append(Review(tokenizer.decode(ids[: tokens[1]]), text.label, text.source))
    few = min(kept, key=lambda name: len(kept[name]))
    if len(kept[few]) < per_class:
        counts = ", ".join(f"{name} {len(mine)}" for name, mine in kept.items())
        raise ValueError(f"{per_class} texts of each class are wanted, and there are {counts}: ask for fewer")
    return [text for mine in kept.values() for text in mine]


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
        return packed_rows(text.words("read"), self.row_length)

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
    """Whole texts that nobody reads, as a stream of about so many tokens, and their bytes."""

    ids: tuple[int, ...]
    n_bytes: int

    @classmethod
    def of(cls, texts: list[str], tokens: int) -> "HeldOut":
        """Raises ValueError for no texts."""
        tokenizer, ids, n_bytes = course_tokenizer(), [], 0
        bos, eos = tokenizer.vocabulary.bos, tokenizer.vocabulary.eos
        for text in texts:
            if len(ids) >= tokens:
                break
            ids += [bos, *tokenizer.encode(text), eos]
            n_bytes += len(normalize(text).encode())
        if not ids:
            raise ValueError("there is no text to hold out: give at least one")
        return cls(tuple(ids), n_bytes)

    def loss(self, model: LanguageModel) -> tuple[float, float]:
        """Nats per token, and bits per byte."""
        nats_N = stream_nats(model, torch.tensor(self.ids), dtype=torch.float32)
        return float(nats_N.mean()), bits_per_byte(float(nats_N.sum()), self.n_bytes)


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


def _label_column(file: Path) -> str | None:
    if file.suffix.lower() != ".csv" or not file.exists():
        return None
    columns = csv.DictReader(io.StringIO(read_text(file), newline="")).fieldnames or []
    return "label" if "label" in columns else None
