"""Five ways of fine-tuning the same model on the same sentences: MiniLM, Rotten Tomatoes, few labels."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from course_lib.data import RECORDS_FOLDER, Review, course_tokenizer, reviews_of
from course_lib.evaluation import bag_of_words_predictions, first_tokens, frozen_features, labelled_sample
from course_lib.files import sha256_of
from course_lib.finetuning import Classifier, FineTuning, fine_tune, fit_head, predictions
from course_lib.peft import Adapter, Applied, BitFit, Full, LoRA, Prefix, Strategy, apply
from course_lib.pretrained import minilm, minilm_folder
from course_lib.records import Record, check_same
from course_lib.runtime import pick_device

BASELINES = ("bag of words", "head alone")


@dataclass(frozen=True)
class Trial:
    """A strategy and how it is trained. The head is fitted on frozen features first, and trains with the rest."""

    strategy: Strategy
    training: FineTuning


# The rates: of two tried for each strategy the better, or the lower of two that were as good, on other sentences at 100
# labels (three samples). Other numbers of labels were not tried out.
TRIALS = {
    "full": Trial(Full(), FineTuning(rate=1e-4, epochs=3, head_strength=0.005)),
    "lora": Trial(LoRA(rank=8, alpha=16), FineTuning(rate=1e-3, epochs=3, head_strength=0.005)),
    "prefix": Trial(Prefix(length=16), FineTuning(rate=2e-3, epochs=3, head_strength=0.005)),
    "adapter": Trial(Adapter(bottleneck=32), FineTuning(rate=2e-3, epochs=3, head_strength=0.005)),
    "bitfit": Trial(BitFit(), FineTuning(rate=3e-3, epochs=3, head_strength=0.005)),
}


@dataclass(frozen=True)
class Comparison:
    """The sentences of the comparison. labels: how many are learned from; seeds: samples at each of these, fewer from
    `many` labels up. first_tests: of the test sentences, those that a live run looks at.

    The same model, samples, tests and head for every strategy.
    """

    labels: tuple[int, ...] = (20, 50, 100, 300, 1000)
    seeds: int = 5
    seeds_of_many: int = 3
    many: int = 1000
    first_tests: int = 300

    @cached_property
    def pool(self) -> list[Review]:
        return reviews_of("train", "rotten_tomatoes")

    @cached_property
    def tests(self) -> list[Review]:
        return reviews_of("test", "rotten_tomatoes")

    def sample(self, labels: int, seed: int) -> list[Review]:
        """The sentences that a strategy learns from."""
        return labelled_sample(self.pool, labels, seed)

    def seeds_at(self, labels: int) -> range:
        return range(self.seeds if labels < self.many else self.seeds_of_many)


def fresh_classifier() -> Classifier:
    """A copy of MiniLM with a head that has learned nothing."""
    return Classifier(copy.deepcopy(minilm()[0])).to(pick_device())


@dataclass(frozen=True)
class Adapted:
    """A classifier on MiniLM, fine-tuned by a strategy: what that changed, and the mean loss of every epoch."""

    classifier: Classifier
    applied: Applied
    losses: list[float]


def adapted(trial: Trial, sample: list[Review], *, seed: int = 0) -> Adapted:
    """Fine-tune a copy of MiniLM by a strategy on labelled texts."""
    classifier = fresh_classifier()
    applied = apply(classifier, trial.strategy, modules_to_save=["head"], seed=seed)
    texts, labels = [review.text for review in sample], [review.label for review in sample]
    losses = fine_tune(classifier, texts, labels, minilm()[1], replace(trial.training, seed=seed))
    return Adapted(classifier, applied, losses)


def is_right(classifier: Classifier, tests: list[Review]) -> np.ndarray:
    """bool [N]: which texts a classifier on MiniLM judges rightly."""
    given = predictions(classifier, [review.text for review in tests], minilm()[1]).argmax(1)
    return given == np.array([review.label for review in tests])


def baseline_is_right(name: str, sample: list[Review], tests: list[Review]) -> np.ndarray:
    """bool [N], for one of BASELINES: a bag of words on the same stretch of text, or the head on a frozen MiniLM.

    Raises ValueError for another name.
    """
    if name not in BASELINES:
        raise ValueError(f"baseline {name!r} is unknown: choose one of {', '.join(BASELINES)}")
    texts, labels = [review.text for review in sample], [review.label for review in sample]
    if name == "head alone":
        classifier = fresh_classifier()
        features_NE = frozen_features(classifier.body, texts, minilm()[1])
        fit_head(classifier, features_NE, labels, strength=TRIALS["lora"].training.head_strength)
        return is_right(classifier, tests)
    read, asked = (first_tokens([review.text for review in part], course_tokenizer()) for part in (sample, tests))
    return bag_of_words_predictions(read, np.array(labels), asked) == np.array([review.label for review in tests])


def record_strategies(
    *,
    path: Path = RECORDS_FOLDER / "strategies.jsonl",
    comparison: Comparison | None = None,
    progress: Callable[[str], None] = print,
) -> Path:
    """Accuracy of every strategy and baseline at every number of labels, over samples; goes on where it was stopped.

    Raises ValueError where the file was begun with another model, other settings or another comparison; only the
    numbers of labels may be others.
    """
    comparison = comparison or Comparison()
    about = {
        "minilm_sha256": sha256_of(minilm_folder() / "model.safetensors"),
        "trials": {name: {"strategy": asdict(trial.strategy), "training": trial.training.described()}
                   for name, trial in TRIALS.items()},
        "comparison": asdict(comparison),
    }  # fmt: skip
    record = Record(path, command="course record strategies", about=about)
    _check_same_comparison(record, about)
    for labels in comparison.labels:
        for seed in comparison.seeds_at(labels):
            sample = comparison.sample(labels, seed)
            for name in (*BASELINES, *TRIALS):
                keys = {"name": name, "seed": seed, "step": labels}
                if record.has(**keys, metric="accuracy"):
                    continue
                right_N = _right(name, sample, comparison.tests, seed=seed)
                record.add(**keys, metric="accuracy_first", value=right_N[: comparison.first_tests].mean())
                record.add(**keys, metric="accuracy", value=right_N.mean())
                progress(f"{name}, {labels} labels, sample {seed}: {right_N.mean():.4f}")
    return path


def _check_same_comparison(record: Record, about: dict) -> None:
    def comparable(settings: dict) -> dict:
        return {**settings, "comparison": {k: v for k, v in settings["comparison"].items() if k != "labels"}}

    wanted = comparable(json.loads(json.dumps(about)))  # as it is read back
    for sitting in record.provenance() if record.path.exists() else []:
        check_same({name: value for name, value in comparable(sitting).items() if name in wanted}, wanted)


def _right(name: str, sample: list[Review], tests: list[Review], *, seed: int) -> np.ndarray:
    if name in BASELINES:
        return baseline_is_right(name, sample, tests)
    return is_right(adapted(TRIALS[name], sample, seed=seed).classifier, tests)
