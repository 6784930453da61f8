"""From a model that continues text to one that does what it is told: the course's decoder, tuned on tasks made of real
reviews, and judged on prompts that it has never seen, by rules and by a classifier that shares no text with it."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from course_lib.data import ADAPTERS_FOLDER, RECORDS_FOLDER, SENTIMENTS, course_tokenizer, holds_slur, normalize
from course_lib.evaluation import Interval, share_interval
from course_lib.files import sha256_of
from course_lib.finetuning import (
    Encoded,
    GenerationCollator,
    Instruction,
    encode,
    encode_prompt,
    grouped_batches,
)
from course_lib.finetuning.tasks import (
    TASKS,
    WORDS,
    Task,
    all_sentences,
    clear_sentences,
    make_examples,
    sentiment_by_words,
)
from course_lib.generation import generate
from course_lib.model import Decoder
from course_lib.objectives import Batch
from course_lib.optimizers import make_optimizer
from course_lib.peft import LoRA, Strategy, apply, load_adapter, save_adapter
from course_lib.peft.strategy import STATE
from course_lib.pretrained import CHECKPOINTS_FOLDER, load_checkpoint
from course_lib.records import Record
from course_lib.runs.judging import Judge, load_judge
from course_lib.runtime import pick_device, seeded
from course_lib.schedules import Schedule
from course_lib.training import StepRecord, train

MAX_LEN = 160  # tokens of an example
RUN = 8  # words in a row that make a copy


@dataclass(frozen=True)
class Own:
    """The second stage, in rounds: the model writes `count` reviews of each sentiment, and learns from those of whose
    sentiment a bag of words is as sure as `sure`, and that copy no run of words from the text of tuning (rejection
    sampling, arXiv:2308.01825), beside examples of the other tasks."""

    rounds: int = 2
    count: int = 4000
    sure: float = 0.95
    others: dict[str, int] = field(
        default_factory=lambda: {"classify": 3000, "begin": 16000, "continue": 1500, "repeat": 8000}
    )
    epochs: int = 2
    rate: float = 1e-3


@dataclass(frozen=True)
class Following:
    """How a decoder learns to follow instructions. examples: of each task, in one epoch, fewer where the reviews give
    no more; they are drawn anew in each epoch. learn: as GenerationCollator's; clear: as
    make_examples'. The rate rises over 50 steps, then falls to 0."""

    examples: dict[str, int] = field(
        default_factory=lambda: {
            "positive": 6000, "negative": 6000, "classify": 8000, "begin": 12000, "continue": 4000, "repeat": 8000,
        }
    )  # fmt: skip
    strategy: Strategy = field(default_factory=lambda: LoRA(rank=64, alpha=128))
    rate: float = 2e-3
    epochs: int = 5
    batch_size: int = 64
    learn: str = "response"
    clear: float = 0.9
    own: Own = field(default_factory=lambda: Own())
    seed: int = 0

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.epochs * -(-len(_made(self.examples, self, 0)) // self.batch_size)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: here, where many are right."""

    temperature: float = 1.0
    top_p: float | None = 0.9
    max_new_tokens: int = 60
    seed: int = 0


LIKELIEST = Sampling(temperature=0.0, top_p=None)  # where the words of the answer are given


def tuning_examples(how: Following, epoch: int) -> list[Encoded]:
    """What a decoder is tuned on in one epoch, task by task, as tokens."""
    return _encoded(_made(how.examples, how, 1000 * how.seed + epoch))


def tuning_batches(how: Following) -> Iterator[Batch]:
    """Batches without end, epoch after epoch, of examples of like length."""
    return _batches(lambda epoch: tuning_examples(how, epoch), how)


def follow(decoder: Decoder, how: Following, *, steps: int | None = None) -> Iterator[StepRecord]:
    """Tune a decoder to follow instructions, a record a step. The strategy is applied to it, unless it has an adapter
    already: that is trained on then.

    steps: of a shorter run (default: how.steps).
    """
    if not hasattr(decoder, STATE):
        apply(decoder, how.strategy, seed=how.seed)
    steps = how.steps if steps is None else steps
    rate = Schedule("linear", how.rate, steps, warmup=min(50, steps // 5))
    optimizer = make_optimizer(decoder, weight_decay=0.0, betas=(0.9, 0.98))
    yield from train(decoder, tuning_batches(how), steps=steps, rate=rate, optimizer=optimizer)
    decoder.eval()


def refine(decoder: Decoder, how: Following) -> Iterator[StepRecord]:
    """The second stage of tuning, a record a step: learn from the best of what the decoder writes itself."""
    for number in range(how.own.rounds):
        yield from refine_once(decoder, how, number)


def refine_once(decoder: Decoder, how: Following, number: int) -> Iterator[StepRecord]:
    """One round of it, counted from 0."""
    seed = 1000 * how.seed + 500 + 100 * number
    own = [example for name in ("positive", "negative") for example in clear_reviews(decoder, TASKS[name], how, seed)]
    epochs = [[*own, *_made(how.own.others, how, seed + epoch)] for epoch in range(how.own.epochs)]
    steps = sum(-(-len(examples) // how.batch_size) for examples in epochs)
    batches = _batches(lambda epoch: _encoded(epochs[epoch]), how)
    rate = Schedule("linear", how.own.rate, steps, warmup=min(20, steps // 5))
    optimizer = make_optimizer(decoder, weight_decay=0.0, betas=(0.9, 0.98))
    yield from train(decoder, batches, steps=steps, rate=rate, optimizer=optimizer)
    decoder.eval()


def clear_reviews(decoder: Decoder, task: Task, how: Following, seed: int) -> list[Instruction]:
    """Of the reviews that a decoder writes on demand, those with the sentiment that was asked for, as sure as
    how.own.sure: each once, and none with a run of words that it has copied."""
    asked = make_examples(task, how.own.count, seed=seed)
    written = answers(decoder, asked, Sampling(temperature=1.0, top_p=0.95, seed=seed))
    positive_N = sentiment_by_words(written)
    sure_N = positive_N if task.sentiment else 1 - positive_N
    kept: dict[str, Instruction] = {}
    for one, text, sure in zip(asked, written, sure_N, strict=True):
        is_own = len(text.split()) in WORDS and not any(_is_copied(text))
        if sure >= how.own.sure and is_own and "###" not in text and not holds_slur(text):  # no header in it
            kept.setdefault(normalize(text), Instruction(one.instruction, "", text))
    return list(kept.values())


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


@dataclass(frozen=True)
class Assessed:
    """What a decoder wrote for the prompts of one task. obeyed: whether each answer has the right form, by rules;
    as_asked: whether it has the sentiment that was asked for (by the judge), or is the right class; None where the task
    has no such thing."""

    task: Task
    asked: tuple[Instruction, ...]
    written: tuple[str, ...]
    obeyed: np.ndarray
    as_asked: np.ndarray | None

    def share_obeyed(self) -> Interval:
        return share_interval(self.obeyed)

    def share_as_asked(self) -> Interval:
        return share_interval(self.as_asked)


def held_out_prompts(task: Task, count: int) -> list[Instruction]:
    """Prompts made of test reviews, in wordings that no model has been tuned on."""
    return make_examples(task, count, split="test", held_out=True, clear=0.0)


def exchanged_prompts(task: Task, count: int) -> list[Instruction]:
    """Requests for a held-out task's sentiment, with words from reviews of the other sentiment to begin with: what is
    met here as well is owed to the request, and not to the words."""
    other = TASKS[task.name.replace(SENTIMENTS[task.sentiment], SENTIMENTS[1 - task.sentiment])]
    pairs = zip(held_out_prompts(task, count), held_out_prompts(other, count), strict=False)
    return [Instruction(one.instruction, words.input, words.output) for one, words in pairs]


def assess(
    decoder: Decoder,
    task: Task,
    asked: Sequence[Instruction],
    sampling: Sampling | None = None,
    *,
    judge: Judge | None = None,
) -> Assessed:
    """Let a decoder answer prompts of a task, and judge the answers. sampling: where none is given, LIKELIEST for a
    task whose answer, or how it begins, is settled by the prompt."""
    is_settled = task.classifies or task.begins or task.repeats
    written = answers(decoder, asked, sampling or (LIKELIEST if is_settled else Sampling()))
    obeyed = np.array([task.obeyed(one, text) for one, text in zip(asked, written, strict=True)])
    as_asked = None
    if task.classifies:
        as_asked = np.array([normalize(text) == one.output for one, text in zip(asked, written, strict=True)])
    elif task.sentiment is not None:
        as_asked = ((judge or load_judge()).positive(written) >= 0.5) == bool(task.sentiment)
    return Assessed(task, tuple(asked), tuple(written), obeyed, as_asked)


def originality(written: Sequence[str]) -> tuple[float, float]:
    """The share of the runs of RUN words of written texts that stand in the text of tuning word for word, and the same
    share for as many sentences that people wrote and no model has read: what any reviews have in common."""
    people = [text for label in (0, 1) for text in clear_sentences("test", label, 0.9)[: len(written) // 2]]
    flags = [[flag for text in texts for flag in _is_copied(text)] for texts in (written, people)]
    return tuple(sum(part) / max(1, len(part)) for part in flags)


def record_following(
    *,
    path: Path = RECORDS_FOLDER / "following.jsonl",
    folder: Path = ADAPTERS_FOLDER / "instructions",
    how: Following | None = None,
    count: int = 100,
    progress: Callable[[str], None] = print,
) -> Path:
    """Tune the decoder to follow instructions, save its adapter, and write down how it answers `count` prompts of each
    task: before tuning, after the first stage, and after both. An adapter that is there already is only judged."""
    how = how or Following()
    about = {"following": asdict(how), "sampling": [asdict(Sampling()), asdict(LIKELIEST)], "count": count}
    about["decoder_sha256"] = sha256_of(CHECKPOINTS_FOLDER / "decoder" / "model.safetensors")
    record = Record(path, command="course record following", about=about)
    record.check_about()
    decoder = load_checkpoint("decoder").to(pick_device())
    _add_assessment(record, "before", decoder, count, progress)
    if not (folder / "adapter_config.json").exists():
        _report(follow(decoder, how), progress)
        _add_assessment(record, "first stage", decoder, count, progress)
        _report(refine(decoder, how), progress)
        save_adapter(decoder, folder)
    else:
        load_adapter(decoder, folder)
    _add_assessment(record, "after", decoder, count, progress)
    return path


def load_follower() -> Decoder:
    """The course's decoder with the adapter that it ships for following instructions."""
    decoder = load_checkpoint("decoder")
    load_adapter(decoder, ADAPTERS_FOLDER / "instructions")
    return decoder.to(pick_device()).eval()


def _report(rows: Iterator[StepRecord], progress: Callable[[str], None]) -> None:
    for row in rows:
        if row.step % 100 == 0:
            progress(f"step {row.step}, loss {row.loss:.3f}")


def _add_assessment(record: Record, when: str, decoder: Decoder, count: int, progress: Callable[[str], None]) -> None:
    reviews = []
    for name, task in TASKS.items():
        done = assess(decoder, task, held_out_prompts(task, count))
        keys = {"name": f"{when}, {name}", "seed": 0, "step": count}
        record.add(**keys, metric="obeyed", value=done.obeyed.mean())
        if done.as_asked is not None:
            record.add(**keys, metric="as asked", value=done.as_asked.mean())
        if task.is_held_out:
            record.add(**keys, metric="both", value=(done.obeyed & done.as_asked).mean())
            other = assess(decoder, task, exchanged_prompts(task, count))
            record.add(**keys, metric="as asked, words exchanged", value=other.as_asked.mean())
        progress(f"{when}, {name}: obeyed {done.obeyed.mean():.3f}")
        if task.sentiment is not None and not task.begins:
            reviews += done.written
    copied, common = originality(reviews)
    values = {
        "distinct": len({normalize(text) for text in reviews}) / len(reviews),
        "median words": float(np.median([len(text.split()) for text in reviews])),
        "copied": copied,
        "copied by people": common,
    }
    for metric, value in values.items():
        record.add(name=f"{when}, reviews", seed=0, step=len(reviews), metric=metric, value=value)


def _is_copied(text: str) -> list[bool]:
    """For every run of words whether it stands in what a decoder is tuned to write."""
    return [hash(run) in _tuning_runs() for run in _runs(text)]


@cache
def _tuning_runs() -> frozenset[int]:
    """All of those, as hashes, for they are millions."""
    return frozenset(hash(run) for text in all_sentences("train") for run in _runs(text))


def _runs(text: str) -> list[tuple[str, ...]]:
    words = normalize(text).split()
    return list(zip(*(words[n:] for n in range(RUN)), strict=False))


def _made(counts: Mapping[str, int], how: Following, seed: int) -> list[Instruction]:
    return [
        example
        for name, count in counts.items()
        for example in make_examples(TASKS[name], count, seed=seed, clear=how.clear)
    ]


def _encoded(examples: Sequence[Instruction]) -> list[Encoded]:
    return [encode(example, course_tokenizer(), max_len=MAX_LEN) for example in examples]


def _batches(examples_of: Callable[[int], list[Encoded]], how: Following) -> Iterator[Batch]:
    collate = GenerationCollator(course_tokenizer().vocabulary, learn=how.learn)
    for epoch in itertools.count():
        examples = [encoded.as_example() for encoded in examples_of(epoch)]
        yield from grouped_batches(examples, collate, how.batch_size, generator=seeded(how.seed, epoch))
