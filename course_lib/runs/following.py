"""From a model that continues text to one that does what it is told: the course's decoder, tuned on tasks made of real
reviews, and judged on prompts that it has never seen, by rules and by a classifier that shares no text with it."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from course_lib.data import course_tokenizer
from course_lib.finetuning import (
    Encoded,
    GenerationCollator,
    Instruction,
    as_batch,
    encode,
    encode_prompt,
    length_grouped,
)
from course_lib.finetuning.tasks import TASKS, make_examples
from course_lib.generation import generate
from course_lib.model import Decoder
from course_lib.objectives import Batch
from course_lib.optimizers import make_optimizer
from course_lib.peft import LoRA, Strategy, apply
from course_lib.runtime import seeded
from course_lib.schedules import Schedule
from course_lib.training import StepRecord, train

MAX_LEN = 160  # tokens of an example


@dataclass(frozen=True)
class Following:
    """How a decoder learns to follow instructions. examples: of each task, in one epoch, fewer where the reviews give
    no more; they are drawn anew in each epoch. learn: as GenerationCollator's; clear: as
    make_examples'. The rate rises over 50 steps, then falls to 0."""

    examples: dict[str, int] = field(
        default_factory=lambda: {
            "positive": 6000, "negative": 6000, "classify": 8000, "begin": 12000, "continue": 4000, "repeat": 6000,
        }
    )  # fmt: skip
    strategy: Strategy = field(default_factory=lambda: LoRA(rank=64, alpha=128))
    rate: float = 2e-3
    epochs: int = 8
    batch_size: int = 64
    learn: str = "response"
    clear: float = 0.9
    seed: int = 0

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.epochs * -(-len(tuning_examples(self, 0)) // self.batch_size)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 0.7
    top_p: float | None = 0.9
    max_new_tokens: int = 60
    seed: int = 0


def tuning_examples(how: Following, epoch: int) -> list[Encoded]:
    """What a decoder is tuned on in one epoch, task by task, as tokens."""
    made = [
        example
        for name, count in how.examples.items()
        for example in make_examples(TASKS[name], count, seed=1000 * how.seed + epoch, clear=how.clear)
    ]
    return [encode(example, course_tokenizer(), max_len=MAX_LEN) for example in made]


def tuning_batches(how: Following) -> Iterator[Batch]:
    """Batches without end, epoch after epoch, of examples of like length."""
    collate = GenerationCollator(course_tokenizer().vocabulary, learn=how.learn)
    for epoch in itertools.count():
        encoded = tuning_examples(how, epoch)
        lengths = [len(example.input_ids) for example in encoded]
        for numbers in length_grouped(lengths, how.batch_size, generator=seeded(how.seed, epoch)):
            yield as_batch(collate([encoded[n].as_example() for n in numbers]))


def follow(decoder: Decoder, how: Following, *, steps: int | None = None) -> Iterator[StepRecord]:
    """Tune a decoder to follow instructions, a record a step. The strategy is applied to it, unless it has an adapter
    already: that is trained on then.

    steps: of a shorter run (default: how.steps).
    """
    if not hasattr(decoder, "_adaptation"):
        apply(decoder, how.strategy, seed=how.seed)
    steps = steps or how.steps
    rate = Schedule("linear", how.rate, steps, warmup=min(50, steps // 5))
    optimizer = make_optimizer(decoder, weight_decay=0.0, betas=(0.9, 0.98))
    yield from train(decoder, tuning_batches(how), steps=steps, rate=rate, optimizer=optimizer)
    decoder.eval()


def answers(
    decoder: Decoder, asked: Sequence[Instruction], sampling: Sampling = Sampling(), *, batch_size: int = 50
) -> list[str]:
    """What a decoder writes for each instruction."""
    tokenizer = course_tokenizer()
    written = []
    for start in range(0, len(asked), batch_size):
        prompts = [encode_prompt(one, tokenizer, room=MAX_LEN) for one in asked[start : start + batch_size]]
        rows = generate(
            decoder, prompts, tokenizer.vocabulary, max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature, top_p=sampling.top_p, generator=seeded(sampling.seed, start),
        )  # fmt: skip
        written += [tokenizer.decode(row) for row in rows]
    return written
