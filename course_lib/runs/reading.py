"""MiniLM reads on: it has read far more than the course's encoder, and nothing about films in particular. Here it fills
in masked words of the training reviews, by LoRA, before it sees a label (domain-adaptive pre-training,
arXiv:2004.10964)."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from course_lib.data import ADAPTERS_FOLDER, PretrainingDataset, frequency_weights, pack, token_ids, training_texts
from course_lib.model import Encoder
from course_lib.optimizers import make_optimizer
from course_lib.peft import LoRA, Strategy, apply, load_adapter, merge_and_unload, save_adapter
from course_lib.pretrained import load_minilm
from course_lib.runtime import pick_device
from course_lib.schedules import Schedule
from course_lib.tokenizer import Tokenizer
from course_lib.training import StepRecord, train

READER_FOLDER = ADAPTERS_FOLDER / "reader"
HEAD = "cls"  # MiniLM was published without one: this one begins random, and is trained whole


@dataclass(frozen=True)
class Reading:
    """How MiniLM reads on. The rate rises over 50 steps, then falls to 0."""

    steps: int = 3000
    batch_size: int = 16
    row_length: int = 128
    rate: float = 1e-3
    mask_prob: float = 0.3
    strategy: Strategy = field(default_factory=lambda: LoRA(rank=64, alpha=128))
    seed: int = 0


def read_on(reader: Encoder, tokenizer: Tokenizer, how: Reading) -> Iterator[StepRecord]:
    """Train `bare_reader()`, a strategy applied to it, on masked words of the training reviews; a record a step."""
    ends = tokenizer.vocabulary
    vocabulary = replace(ends, bos=ends.cls, eos=ends.sep, cls=None, sep=None)  # as packing calls the ends of a text
    packed = pack(token_ids(training_texts(), tokenizer), how.row_length, vocabulary=vocabulary)
    options = {"mask_prob": how.mask_prob, "weight_V": frequency_weights(packed.ids_NT, vocabulary)}
    dataset = PretrainingDataset(
        packed, vocabulary, "masked", batch_size=how.batch_size, seed=how.seed, options=options
    )
    optimizer = make_optimizer(reader, weight_decay=0.01, betas=(0.9, 0.98))
    rate = Schedule("linear", how.rate, how.steps, warmup=min(50, how.steps // 5))
    batches = map(dataset.batch, itertools.count())
    yield from train(reader, batches, steps=how.steps, rate=rate, optimizer=optimizer)
    reader.eval()


def bare_reader() -> tuple[Encoder, Tokenizer]:
    """MiniLM with a fresh head for masked words, and its tokenizer."""
    minilm, tokenizer = load_minilm()
    reader = Encoder(minilm.config)
    reader.load_state_dict(minilm.state_dict(), strict=False)  # all but the head
    return reader, tokenizer


@cache
def load_reader() -> tuple[Encoder, Tokenizer]:
    """MiniLM after it has read on, as `load_minilm` gives the one of before: without a head. Work on a copy of it."""
    reader, tokenizer = bare_reader()
    load_adapter(reader, READER_FOLDER)
    merge_and_unload(reader)
    body = Encoder(reader.config, head=False)
    body.load_state_dict({n: w for n, w in reader.state_dict().items() if not n.startswith(f"{HEAD}.")})
    return body.eval(), tokenizer


def record_reader(
    *, folder: Path = READER_FOLDER, how: Reading | None = None, progress: Callable[[str], None] = print
) -> Path:
    """Let MiniLM read on, and save the adapter."""
    how = how or Reading()
    reader, tokenizer = bare_reader()
    reader.to(pick_device())
    apply(reader, how.strategy, modules_to_save=[HEAD], seed=how.seed)
    for row in read_on(reader, tokenizer, how):
        if row.step % 50 == 0:
            progress(f"step {row.step} of {how.steps}, loss {row.loss:.3f}")
    return save_adapter(reader, folder)
