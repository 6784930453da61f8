"""Fine-tuning from a config: a classifier, or a decoder that follows instructions, from data to a folder with a report,
a picture of the curves, and what `load_tuned` reads. Nothing is written before the model has learned.
"""

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from course_lib import __version__
from course_lib.data import corpus_path
from course_lib.evaluation import COMPARISON_TOKENS
from course_lib.files import sha256_of
from course_lib.finetuning import POOLINGS, FineTuning, nearest
from course_lib.model import Decoder
from course_lib.peft import LoRA, Strategy
from course_lib.runs.efficiency import ENCODER_LORA, MINILM, MINILM_LORA, Settings
from course_lib.runs.finetuning.examples import CLASSIFICATION, Examples, own_examples, packaged_examples
from course_lib.runs.finetuning.learning import Learned, learn_classes, learn_instructions
from course_lib.runs.finetuning.outcome import judge_classifier, judge_writer
from course_lib.runs.finetuning.reports import Report, write_report
from course_lib.runs.finetuning.tuned import SETTINGS, Base, load_base
from course_lib.runs.strategies import TRIALS
from course_lib.runs.transfer import PRETRAINED
from course_lib.runtime import describe_machine, pick_device

LABELS, TESTS = 100, 500  # of the packaged reviews, where nothing is said
PATIENCE = 5  # epochs without a lower held-out loss, after which it stops
LONGEST_EXAMPLE = 256  # tokens of a prompt with its answer, where nothing is said
STRATEGIES: dict[str, Strategy] = {name: trial.strategy for name, trial in TRIALS.items()}
ByNumber = Mapping[int, tuple[float, int]]  # {examples to learn from: (rate, epochs)}; the nearest number counts


def _table(full: ByNumber, other: ByNumber, **rates: float) -> dict[str, ByNumber]:
    """By strategy: full and LoRA as given, the others as long as LoRA, at rates of their own."""
    return {"full": full, "lora": other} | {
        name: {number: (rate, epochs) for number, (_, epochs) in other.items()} for name, rate in rates.items()
    }


def _pairs(settings: Settings) -> ByNumber:
    return {number: (how.rate, how.epochs) for number, how in settings.items()}


# Full and LoRA on MiniLM and the encoder: as in the records `efficiency` and `transfer`; BitFit on MiniLM: as in
# `strategies`. All others: of one or two rates the one with the lower held-out loss, on one sample of 100 sentences, of
# writers on one of 416 instructions. Other numbers of examples were not tried out.
OF_MINILM = _table(_pairs(MINILM), _pairs(MINILM_LORA), prefix=5e-3, adapter=2e-3, bitfit=3e-3)
OF_COURSE = _table(_pairs(PRETRAINED), _pairs(ENCODER_LORA), prefix=2e-3, adapter=2e-3, bitfit=3e-3)
OF_WRITER = _table(
    {100: (3e-4, 10), 1000: (3e-4, 6), 10000: (3e-4, 3)},
    {100: (2e-3, 10), 1000: (2e-3, 6), 10000: (2e-3, 3)},
    prefix=1e-2,
    adapter=2e-3,
    bitfit=1e-2,
)


@dataclass(frozen=True)
class FineTune:
    """Everything that decides what a fine-tuning computes. What is None takes a default that suits base, strategy and
    number of examples.

    source: "imdb" or "rotten_tomatoes", packaged reviews; labels: how many of them are learned from, half of each kind.
    data: a .csv or .jsonl of your own instead (`own_examples` says of what form, and how it is split). tests: at most
    so many texts are tested on. base: "minilm", "encoder", "decoder" (the course's), or a folder with a model and its
    tokenizer.json. strategy: a key of STRATEGIES; rank: LoRA's, alpha is twice that. max_tokens: how much of a text is
    read, or how long a prompt may be with its answer. pooling: of a classifier's tokens, one of POOLINGS.
    Raises ValueError for what cannot be run, before anything is read.
    """

    source: str | None = None
    labels: int | None = None
    data: str | None = None
    tests: int | None = None
    base: str | None = None
    strategy: str = "lora"
    rank: int | None = None
    rate: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    max_tokens: int | None = None
    pooling: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.source is None) == (self.data is None):
            raise ValueError("give one of source (packaged reviews: imdb or rotten_tomatoes) and data (your own file)")
        if self.data is not None and self.labels is not None:
            raise ValueError("labels is for the packaged reviews: your own file says itself how many there are")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy {self.strategy!r} is unknown: choose one of {', '.join(STRATEGIES)}")
        if self.rank is not None and self.strategy != "lora":
            raise ValueError(f"rank is LoRA's, and the strategy is {self.strategy}: leave it out, or take lora")
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ValueError(f"pooling {self.pooling!r} is unknown: choose one of {', '.join(POOLINGS)}")
        for name, least in {"labels": 2, "tests": 2, "epochs": 1, "batch_size": 1, "max_tokens": 1}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} is {value}: give at least {least}")
        self.adaptation()
        FineTuning(**self._given(), seed=self.seed)

    def adaptation(self) -> Strategy:
        """The strategy as it is applied."""
        return STRATEGIES[self.strategy] if self.rank is None else LoRA(rank=self.rank, alpha=2 * self.rank)

    def examples(self) -> Examples:
        """The data, read and checked. Raises what `packaged_examples` or `own_examples` raises."""
        if self.data is not None:
            return own_examples(self.data, self.tests)
        labels, tests = self.labels or LABELS, self.tests or TESTS
        return packaged_examples(self.source, labels, tests, seed=self.seed)

    def command(self, out: Path | str) -> str:
        """The line that starts it from a shell.

        >>> FineTune(source="imdb", labels=50, rank=2).command("runs/first")
        'course finetune --source imdb --labels 50 --rank 2 --out runs/first'
        """
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return shlex.join(["course", "finetune", *options, "--out", str(out)])

    def training(self, examples: Examples, base: Base) -> FineTuning:
        """How it is trained: what suits, and what is given.

        Raises ValueError where base and data do not go together, or max_tokens is more than the base reads.
        """
        reach = base.model.config.max_len - (self.adaptation().length if self.strategy == "prefix" else 0)
        if examples.kind == CLASSIFICATION:
            most, usual = reach - 2, COMPARISON_TOKENS  # two special tokens
            how = _suiting_classes(base, self.strategy, examples)
        else:
            most, usual = reach, LONGEST_EXAMPLE
            _check_writes(self, base)
            how = _nearest(OF_WRITER[self.strategy], len(examples.train))
        if (self.max_tokens or 0) > most:
            raise ValueError(f"max_tokens is {self.max_tokens}, and {base.name} reads {most} at most: lower it")
        return replace(how, **({"max_tokens": min(usual, most)} | self._given()), seed=self.seed)

    def _given(self) -> dict:
        names = ("rate", "epochs", "batch_size", "max_tokens")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def finetune(
    run: FineTune, out: Path | str, *, device: str | None = None, progress: Callable[[str], None] = print
) -> Report:
    """Fine-tune, judge on texts that were kept apart, and write a folder: `report.md`, `metrics.json`, `curves.png`,
    and what `load_tuned` and `course predict` read. A line for every epoch goes to `progress`.

    Raises ValueError for a folder that is not empty, and before anything is written for data, a base or settings that
    will not do; FileNotFoundError for data or a base that is not there; FloatingPointError where the loss is not
    finite.
    """
    out, device = _free(out), pick_device(device)
    examples = run.examples()
    base = load_base(run.base or ("minilm" if examples.kind == CLASSIFICATION else "decoder"))
    how = run.training(examples, base)
    progress(f"{examples.origin}: {', '.join(f'{len(part):,} {name}' for name, part in examples.parts.items())}")
    for note in examples.notes:
        progress(f"note: {note}")
    base.model.to(device)
    began = time.perf_counter()
    if examples.kind == CLASSIFICATION:
        learned = learn_classes(examples, base, run.adaptation(), _pooling(run, base), how, progress)
    else:
        learned = learn_instructions(examples, base, run.adaptation(), how, progress)
    metrics = _metrics(run, out, base, how, learned, time.perf_counter() - began)
    return write_report(out, metrics, learned.tuned, base)


def _metrics(run: FineTune, out: Path, base: Base, how: FineTuning, learned: Learned, seconds: float) -> dict:
    """All that is known of a run, as `metrics.json` holds it."""
    strategy, examples = run.adaptation(), learned.examples
    judge = judge_classifier if examples.kind == CLASSIFICATION else judge_writer
    return {
        "kind": examples.kind,
        "command": run.command(out),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "course": __version__,
        "data_sha256": sha256_of(run.data or corpus_path()),
        "base": base.name,
        "base_sha256": base.sha256[0],
        "strategy": {"kind": strategy.kind, **asdict(strategy)},
        "trained_parameters": learned.applied.n_trained,
        "parameters": learned.applied.n_parameters,
        "training": {name: getattr(how, name) for name in ("rate", "epochs", "batch_size", "max_tokens", "seed")},
        "origin": examples.origin,
        "classes": list(examples.classes),
        "sizes": {name: len(part) for name, part in examples.parts.items()},
        "notes": list(examples.notes),
        "epochs": [asdict(point) for point in learned.points],
        "best_epoch": learned.best.epoch,
        "seconds": seconds,
        "machine": describe_machine(),
        "test": judge(learned),
    }


def _free(out: Path | str) -> Path:
    """The folder to write to. Refuses one that holds anything: another run may be in it."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: name a folder for what is fine-tuned")
    if out.exists() and any(out.iterdir()):
        held = "holds a run already" if (out / SETTINGS).exists() else "is not empty"
        raise ValueError(f"{out} {held}: choose another folder")
    return out


def _pooling(run: FineTune, base: Base) -> str:
    return run.pooling or ("last" if isinstance(base.model, Decoder) else "mean")


def _suiting_classes(base: Base, strategy: str, examples: Examples) -> FineTuning:
    """What was measured to work on the packaged reviews. BERT's layout is MiniLM's: its head learns with the rest."""
    if base.model.layout == "bert":
        return _nearest(OF_MINILM[strategy], len(examples.train), head_first=False)
    return _nearest(OF_COURSE[strategy], len(examples.train), head_first=len(examples.classes) == 2)


def _nearest(by_number: ByNumber, number: int, **more: object) -> FineTuning:
    rate, epochs = nearest(by_number, number)
    return FineTuning(rate=rate, epochs=epochs, head_strength=0.005, length_grouped=True, patience=PATIENCE, **more)


def _check_writes(run: FineTune, base: Base) -> None:
    if not isinstance(base.model, Decoder):
        raise ValueError(f"{base.name} is a {type(base.model).__name__}, and only a decoder follows instructions: take "
                         "--base decoder, or a folder with one")  # fmt: skip
    if run.pooling is not None:
        raise ValueError("pooling is a classifier's, and the data holds instructions: leave it out")
