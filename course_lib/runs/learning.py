"""The two ways of learning behind `finetune`: classes from labelled texts, answers from instructions. Both report epoch
by epoch, and end with the model as it was after the epoch with the lowest held-out loss.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from course_lib.finetuning import (
    Classifier,
    Encoded,
    FineTuning,
    GenerationCollator,
    Instruction,
    as_batch,
    encode,
    encode_prompt,
    epochs,
    length_grouped,
)
from course_lib.model import Decoder
from course_lib.objectives import Batch
from course_lib.optimizers import make_optimizer
from course_lib.peft import Applied, Prefix, Strategy, apply, fold
from course_lib.runs.examples import Examples, Text
from course_lib.runs.tuned import Base, Tuned, TunedClassifier, TunedWriter
from course_lib.runtime import seeded
from course_lib.schedules import Schedule
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
    """A model that has learned. test: of the examples to test on, those that it can read. test_losses: of a writer,
    nats per token of the test's answers before it had learned anything, and after. too_long: examples left out for
    their length."""

    tuned: Tuned
    applied: Applied
    points: tuple[Point, ...]
    test: tuple[Text | Instruction, ...]
    test_losses: tuple[float, float] | None = None
    too_long: int = 0

    @property
    def best(self) -> Point:
        """The epoch whose model was kept."""
        found = [point for point in self.points if point.is_best]
        if not found:
            raise FloatingPointError("the held-out loss was never a finite number: lower the rate")
        return found[-1]


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
    return Learned(tuned, applied, tuple(points), examples.test)


def learn_instructions(
    examples: Examples, base: Base, strategy: Strategy, how: FineTuning, progress: Callable[[str], None]
) -> Learned:
    """Fine-tune a decoder on responses alone; lines for steps and epochs go to `progress`.

    Raises ValueError where all examples of a part are too long for how.max_tokens.
    """
    decoder, vocabulary = base.model, base.tokenizer.vocabulary
    readable = _readable(examples, base, how.max_tokens)
    collate = GenerationCollator(vocabulary)
    held_out, test = (list(_batches(readable.encoded[name], how, collate)) for name in ("held out", "to test"))
    points = [Point(0, None, held_out_loss(decoder, held_out))]
    before = held_out_loss(decoder, test)
    progress(f"before: {points[0]}")
    applied = apply(decoder, strategy, seed=how.seed)
    progress(str(applied))
    points += _taught(decoder, readable.encoded["to learn from"], collate, how, held_out, progress)
    _fold_away(decoder, strategy)
    losses = (before, held_out_loss(decoder, test))
    tuned = TunedWriter(decoder, base.tokenizer, how.max_tokens, readable.max_new_tokens)
    return Learned(tuned, applied, tuple(points), readable.test, losses, readable.too_long)


@dataclass(frozen=True)
class _Readable:
    """Instructions that a model has room for. test: those to test on; encoded: all, by part."""

    encoded: dict[str, list[Encoded]]
    test: tuple[Instruction, ...]
    max_new_tokens: int
    too_long: int


def _readable(examples: Examples, base: Base, max_tokens: int) -> _Readable:
    """An answer may be as long as the longest that is learned from, and take half of max_tokens at most; a prompt must
    leave so much room when it is to be answered, without its input if need be."""
    tokenizer = base.tokenizer
    whole = {name: [(one, encoded) for one in part if (encoded := _encoded(one, base, max_tokens))]
             for name, part in examples.parts.items()}  # fmt: skip
    longest = max((sum(encoded.completion_mask) for _, encoded in whole["to learn from"]), default=1)
    max_new_tokens = min(longest, max(1, max_tokens // 2))
    kept = {name: [pair for pair in part if _leaves(pair[0], tokenizer, max_tokens - max_new_tokens)]
            for name, part in whole.items()}  # fmt: skip
    if empty := [name for name, part in kept.items() if not part]:
        raise ValueError(
            f"of the {len(examples.parts[empty[0]])} examples {empty[0]} none fits into max_tokens {max_tokens}: raise "
            "it, as far as the base goes, or shorten instructions and answers"
        )
    encoded = {name: [pair[1] for pair in part] for name, part in kept.items()}
    too_long = sum(map(len, examples.parts.values())) - sum(map(len, kept.values()))
    return _Readable(encoded, tuple(one for one, _ in kept["to test"]), max_new_tokens, too_long)


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
    """Train through all epochs, and go back to the best one."""
    an_epoch = math.ceil(len(encoded) / how.batch_size)
    total, every = how.epochs * an_epoch, math.ceil(an_epoch / LINES_AN_EPOCH)
    points, rows, best = [], [], {}
    lowest = math.inf
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)  # of dropout
        for row in train(
            decoder,
            (batch for epoch in range(how.epochs) for batch in _batches(encoded, how, collate, epoch)),
            steps=total,
            rate=Schedule("linear", how.rate, total, warmup=min(50, total // 10)),
            optimizer=make_optimizer(decoder, weight_decay=0.0, betas=(0.9, 0.98)),
            validate=lambda: held_out_loss(decoder, held_out),
            validate_every=an_epoch,
        ):
            rows.append(row)
            if row.held_out is None:
                if row.step % every == 0:
                    progress(f"step {row.step} of {total}: loss {row.loss:.3f}")
                continue
            points.append(Point(row.step // an_epoch, _mean_loss(rows), row.held_out, is_best=row.held_out < lowest))
            progress(f"epoch {points[-1].epoch} of {how.epochs}: {points[-1]}")
            rows = []
            if points[-1].is_best:
                lowest, best = row.held_out, {name: p.detach().clone() for name, p in _trained(decoder)}
    decoder.load_state_dict(best, strict=False)
    decoder.eval()
    return points


def _batches(
    encoded: Sequence[Encoded], how: FineTuning, collate: GenerationCollator, epoch: int = 0
) -> Iterator[Batch]:
    lengths = [len(example.input_ids) for example in encoded]
    for numbers in length_grouped(lengths, how.batch_size, generator=seeded(how.seed, epoch)):
        yield as_batch(collate([encoded[n].as_example() for n in numbers]))


def _mean_loss(rows: Sequence[StepRecord]) -> float:
    return sum(row.loss * row.targets for row in rows) / sum(row.targets for row in rows)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _fold_away(model: nn.Module, strategy: Strategy) -> None:
    """A prefix is saved as the keys and values that it has come to: what is judged is what is saved."""
    if isinstance(strategy, Prefix):
        fold(model)
