"""The two ways of learning behind `finetune`: classes from labelled texts, answers from instructions. Both report epoch
by epoch, and end with the model as it was after the epoch with the lowest held-out loss.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from course_lib.finetuning import (
    Classifier,
    Encoded,
    FineTuning,
    GenerationCollator,
    Instruction,
    encode,
    encode_prompt,
    epochs,
    grouped_batches,
)
from course_lib.model import Decoder
from course_lib.objectives import Batch
from course_lib.optimizers import make_optimizer
from course_lib.peft import Applied, Prefix, Strategy, apply, fold
from course_lib.runs.finetuning.examples import Examples
from course_lib.runs.finetuning.tuned import Base, Tuned, TunedClassifier, TunedWriter
from course_lib.runtime import seeded
from course_lib.schedules import Schedule
from course_lib.stopping import BestWeights
from course_lib.tokenizer import Tokenizer
from course_lib.training import StepRecord, held_out_loss, train

LINES_AN_EPOCH = 4  # of steps, where an epoch is long enough


@dataclass(frozen=True)
class Point:
    """What an epoch came to: mean training loss (None before the first), held-out loss, and accuracy on the held-out
    texts where there are classes."""

    epoch: int
    loss: float | None
    held_out: float
    accuracy: float | None = None
    is_best: bool = False

    def __str__(self) -> str:
        loss = "" if self.loss is None else f"loss {self.loss:.3f}, "
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.3f}"
        return f"{loss}held out {self.held_out:.3f}{accuracy}{' (best so far)' if self.is_best else ''}"


@dataclass(frozen=True)
class Learned:
    """A model that has learned. examples: those that it had room for. test_losses: of a writer, nats per token of the
    test's answers before it had learned anything, and after."""

    tuned: Tuned
    applied: Applied
    points: tuple[Point, ...]
    examples: Examples
    test_losses: tuple[float, float] | None = None

    @property
    def best(self) -> Point:
        """The epoch whose model was kept."""
        return [point for point in self.points if point.is_best][-1]


def learn_classes(
    examples: Examples, base: Base, strategy: Strategy, pooling: str, how: FineTuning, progress: Callable[[str], None]
) -> Learned:
    """Fine-tune a classifier on the base by a strategy, its head with it; a line for every epoch goes to `progress`."""
    classifier = Classifier(base.model, len(examples.classes), pooling=pooling)
    applied = apply(classifier, strategy, modules_to_save=["head"], seed=how.seed)
    progress(str(applied))
    train_on, held_out = (
        ([example.text for example in part], [example.label for example in part])
        for part in (examples.train, examples.held_out)
    )
    points = []
    for epoch in epochs(classifier, *train_on, base.tokenizer, how, held_out=held_out):
        points.append(Point(epoch.number, epoch.loss, epoch.held_out, epoch.accuracy, epoch.is_best))
        progress(f"epoch {epoch.number} of {how.epochs}: {points[-1]}")
    _fold_away(classifier, strategy)
    tuned = TunedClassifier(classifier, base.tokenizer, examples.classes, how.max_tokens)
    return Learned(tuned, applied, tuple(points), examples)


def learn_instructions(
    examples: Examples, base: Base, strategy: Strategy, how: FineTuning, progress: Callable[[str], None]
) -> Learned:
    """Fine-tune a decoder on responses alone; lines for steps and epochs go to `progress`.

    Raises ValueError where all examples of a part are too long for how.max_tokens.
    """
    decoder, collate = base.model, GenerationCollator(base.tokenizer.vocabulary)
    examples, encoded, max_new_tokens = _readable(examples, base, how.max_tokens)
    held_out, test = (list(_batches(encoded[name], how, collate)) for name in ("held out", "to test"))
    points = [Point(0, None, held_out_loss(decoder, held_out))]
    before = held_out_loss(decoder, test)
    progress(f"before: {points[0]}")
    applied = apply(decoder, strategy, seed=how.seed)
    progress(str(applied))
    points += _taught(decoder, encoded["to learn from"], collate, how, held_out, progress)
    _fold_away(decoder, strategy)
    losses = (before, held_out_loss(decoder, test))
    tuned = TunedWriter(decoder, base.tokenizer, how.max_tokens, max_new_tokens)
    return Learned(tuned, applied, tuple(points), examples, losses)


def _readable(examples: Examples, base: Base, max_tokens: int) -> tuple[Examples, dict[str, list[Encoded]], int]:
    """The examples that there is room for, as they are and as tokens, by part, and how long an answer may become: as
    long as the longest that is learned from, and half of max_tokens at most. A prompt must leave so much room when it
    is to be answered, without its input if need be."""
    pairs = {
        name: [(one, encoded) for one in part if (encoded := _encoded(one, base, max_tokens))]
        for name, part in examples.parts.items()
    }
    longest = max((sum(encoded.completion_mask) for _, encoded in pairs["to learn from"]), default=1)
    max_new_tokens = min(longest, max(1, max_tokens // 2))
    room = max_tokens - max_new_tokens
    kept = {name: [pair for pair in part if _leaves(pair[0], base.tokenizer, room)] for name, part in pairs.items()}
    for name, part in kept.items():
        if not part:
            raise ValueError(
                f"of the {len(examples.parts[name])} examples {name} none fits into max_tokens {max_tokens}: raise it, "
                "as far as the base goes, or shorten instructions and answers"
            )
    train, held_out, test = (tuple(one for one, _ in part) for part in kept.values())
    too_long = sum(map(len, examples.parts.values())) - sum(map(len, kept.values()))
    notes = (f"examples left out because they are too long: {too_long}",) if too_long else ()
    examples = replace(examples, train=train, held_out=held_out, test=test, notes=(*examples.notes, *notes))
    return examples, {name: [encoded for _, encoded in part] for name, part in kept.items()}, max_new_tokens


def _encoded(example: Instruction, base: Base, max_tokens: int) -> Encoded | None:
    base.tokenizer.vocabulary.require("eos", "an instruction")  # what is missing there is no matter of length
    try:
        return encode(example, base.tokenizer, max_len=max_tokens)
    except ValueError:
        return None


def _leaves(example: Instruction, tokenizer: Tokenizer, room: int) -> bool:
    try:
        encode_prompt(example, tokenizer, room=room)
    except ValueError:
        return False
    return True


def _taught(
    decoder: Decoder,
    encoded: Sequence[Encoded],
    collate: GenerationCollator,
    how: FineTuning,
    held_out: Sequence[Batch],
    progress: Callable[[str], None],
) -> list[Point]:
    """Train epoch by epoch, and go back to the best one."""
    an_epoch = math.ceil(len(encoded) / how.batch_size)
    points, rows, best = [], [], BestWeights(decoder, how.patience)
    for row in _steps(decoder, encoded, collate, how, lambda: held_out_loss(decoder, held_out)):
        rows.append(row)
        if row.held_out is None:
            if row.step % math.ceil(an_epoch / LINES_AN_EPOCH) == 0:
                progress(f"step {row.step} of {how.epochs * an_epoch}: loss {row.loss:.3f}")
            continue
        is_over = best.update(row.held_out)
        points.append(Point(row.step // an_epoch, _mean_loss(rows), row.held_out, is_best=best.is_best))
        progress(f"epoch {points[-1].epoch} of {how.epochs}: {points[-1]}")
        rows = []
        if is_over:
            break
    best.restore()
    decoder.eval()
    return points


def _steps(
    decoder: Decoder,
    encoded: Sequence[Encoded],
    collate: GenerationCollator,
    how: FineTuning,
    validate: Callable[[], float],
) -> Iterator[StepRecord]:
    """A record a step, with the held-out loss behind every epoch. Dropout draws by the seed."""
    an_epoch = math.ceil(len(encoded) / how.batch_size)
    total = how.epochs * an_epoch
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        yield from train(
            decoder,
            (batch for epoch in range(how.epochs) for batch in _batches(encoded, how, collate, epoch)),
            steps=total,
            rate=Schedule("linear", how.rate, total, warmup=min(50, total // 10)),
            optimizer=make_optimizer(decoder, weight_decay=0.0, betas=(0.9, 0.98)),
            validate=validate,
            validate_every=an_epoch,
        )


def _batches(
    encoded: Sequence[Encoded], how: FineTuning, collate: GenerationCollator, epoch: int = 0
) -> Iterator[Batch]:
    examples = [example.as_example() for example in encoded]
    return grouped_batches(examples, collate, how.batch_size, generator=seeded(how.seed, epoch))


def _mean_loss(rows: Sequence[StepRecord]) -> float:
    return sum(row.loss * row.targets for row in rows) / sum(row.targets for row in rows)


def _fold_away(model: nn.Module, strategy: Strategy) -> None:
    """A prefix is saved as the keys and values that it has come to: what is judged is what is saved."""
    if isinstance(strategy, Prefix):
        fold(model)
