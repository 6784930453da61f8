"""How many labels does it take? From 50 to 3,000, on reviews and on single sentences: a bag of words, a model of random
weights, the course's own encoder, and MiniLM, fine-tuned in full and by LoRA, and after it has read on.

Every method reads the same stretch of each text and is judged on the same texts.
"""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from course_lib.data import RECORDS_FOLDER, Review, course_tokenizer, reviews_of
from course_lib.evaluation import COMPARISON_TOKENS, first_tokens, fit_bag_of_words, labelled_sample
from course_lib.files import sha256_of
from course_lib.finetuning import Classifier, FineTuning, fine_tune, nearest, predictions
from course_lib.model import Encoder, LanguageModel
from course_lib.peft import LoRA, Strategy, apply
from course_lib.pretrained import CHECKPOINTS_FOLDER, load_checkpoint, minilm, minilm_folder
from course_lib.records import Record, check_same
from course_lib.runs.reading import READER_FOLDER, load_reader
from course_lib.runs.transfer import PRETRAINED, SCRATCH
from course_lib.runtime import pick_device
from course_lib.tokenizer import Tokenizer
from course_lib.training import new_model

SOURCES = ("imdb", "rotten_tomatoes")
Settings = Mapping[int, FineTuning]  # by number of labels; that of the nearest goes for the others


@dataclass(frozen=True)
class Method:
    """base: "minilm", "reader" (MiniLM that has read on), "encoder" (the course's), "scratch" (its random weights), or
    None for a bag of words.
    strategy: how it is fine-tuned, in full where there is none. tokens: how much of a text it reads, in tokens of the
    course's tokenizer. sources: of which texts it is tried on."""

    base: str | None
    settings: Settings
    strategy: Strategy | None = None
    tokens: int = COMPARISON_TOKENS
    sources: tuple[str, ...] = SOURCES

    def setting(self, labels: int) -> FineTuning:
        """That of the nearest number of labels."""
        return nearest(self.settings, labels)


def _settings(by_labels: Mapping[int, tuple[float, int]], **more: object) -> Settings:
    """{labels: (rate, epochs)} as settings."""
    return {
        labels: FineTuning(rate=rate, epochs=epochs, length_grouped=True, **more)
        for labels, (rate, epochs) in by_labels.items()
    }


# MiniLM's head learns together with the rest: fitted first, it holds on to what little the frozen features tell of
# sentiment, and fine-tuning stays there. The course's encoder was trained on reviews, and its head is fitted first.
MINILM = _settings({100: (1e-4, 10), 500: (1e-4, 6), 1000: (1e-4, 4), 3000: (1e-4, 3)}, head_first=False)
MINILM_LORA = _settings({100: (5e-4, 20), 500: (5e-4, 10), 1000: (5e-4, 6), 3000: (5e-4, 4)}, head_first=False)
ENCODER_LORA = _settings({100: (2e-3, 8), 500: (1e-3, 5), 3000: (1e-3, 3)}, head_strength=0.005)
SCRATCH_OF_MANY = FineTuning(rate=1e-4, epochs=8, head_first=False)  # at 3e-4 some samples end in a constant answer
LORA = LoRA(rank=8, alpha=16)
METHODS: dict[str, Method] = {
    "bag of words": Method(None, {}),
    "scratch": Method("scratch", SCRATCH | {3000: SCRATCH_OF_MANY}),
    "encoder": Method("encoder", PRETRAINED),
    "encoder, LoRA": Method("encoder", ENCODER_LORA, LORA),
    "MiniLM": Method("minilm", MINILM),
    "MiniLM, LoRA": Method("minilm", MINILM_LORA, LORA),
    "MiniLM, read on": Method("reader", MINILM, sources=("imdb",)),
    "bag of words, 256": Method(None, {}, tokens=256, sources=("imdb",)),
    "MiniLM, 256": Method("minilm", MINILM, tokens=256, sources=("imdb",)),
}
# Numbers of labels at which two methods beside the question (do more reading, longer texts help?) are not tried.
LEFT_OUT = {"MiniLM, read on": (50, 200, 3000), "MiniLM, 256": (50, 200)}


@dataclass(frozen=True)
class Efficiency:
    """Which samples are learned from: `seeds` of them for each number of labels, fewer from `many` labels up; and how
    many texts of each source they are judged on, at most."""

    labels: tuple[int, ...] = (50, 100, 200, 500, 1000, 3000)
    seeds: int = 5
    seeds_of_many: int = 3
    many: int = 1000
    tests: int = 2000

    def seeds_at(self, labels: int) -> range:
        return range(self.seeds if labels < self.many else self.seeds_of_many)

    def sample(self, source: str, labels: int, seed: int) -> list[Review]:
        """The labelled texts that a method learns from."""
        return labelled_sample(reviews_of("train", source)[: 2 * max(self.labels)], labels, seed)

    def test_texts(self, source: str) -> list[Review]:
        """What every method is judged on."""
        return reviews_of("test", source)[: self.tests]


@cache
def base_of(name: str, seed: int = 0) -> tuple[LanguageModel, Tokenizer]:
    """A base and its tokenizer, read once. Work on a copy of it."""
    if name == "minilm":
        return minilm()
    if name == "reader":
        return load_reader()
    encoder = load_checkpoint("encoder")
    return (new_model(Encoder, encoder.config, seed=seed) if name == "scratch" else encoder), course_tokenizer()


def fitted(method: Method, sample: list[Review], *, seed: int = 0) -> Callable[[list[str]], np.ndarray]:
    """Let a method learn from labelled texts: a function from texts to the probability that each is positive, [N]."""
    cut = lambda texts: first_tokens(texts, course_tokenizer(), method.tokens)  # noqa: E731
    texts, labels = cut([review.text for review in sample]), [review.label for review in sample]
    if method.base is None:
        model = fit_bag_of_words(texts, np.array(labels))
        return lambda asked: model.predict_proba(cut(asked))[:, 1]
    body, tokenizer = base_of(method.base, seed if method.base == "scratch" else 0)
    classifier = Classifier(copy.deepcopy(body)).to(pick_device())
    if method.strategy is not None:
        apply(classifier, method.strategy, modules_to_save=["head"], seed=seed)
    longest = body.config.max_len - 2  # the texts are cut already, and another tokenizer may need more tokens for them
    how = replace(method.setting(len(sample)), seed=seed, max_tokens=longest)
    fine_tune(classifier, texts, labels, tokenizer, how)
    return lambda asked: predictions(classifier, cut(asked), tokenizer, max_tokens=longest)[:, 1]


def record_efficiency(
    *,
    path: Path = RECORDS_FOLDER / "efficiency.jsonl",
    efficiency: Efficiency | None = None,
    progress: Callable[[str], None] = print,
) -> Path:
    """Accuracy of every method at every number of labels, and the share of texts that it calls positive (0 or 1 where
    it has collapsed to a constant answer); goes on where it was stopped.

    Raises ValueError where the file was begun with other models, settings or samples.
    """
    efficiency = efficiency or Efficiency()
    record = Record(path, command="course record efficiency", about=about(efficiency))
    _check_begun(record)
    for source, labels, seed, name in trials(efficiency):
        if not record.has(**_keys(source, labels, seed, name), metric="positive"):
            add_trial(record, efficiency, source, labels, seed, name, progress=progress)
    return path


def trials(efficiency: Efficiency) -> list[tuple[str, int, int, str]]:
    """(source, labels, seed, name of the method) of every trial."""
    return [
        (source, labels, seed, name)
        for labels in efficiency.labels
        for source in SOURCES
        for seed in efficiency.seeds_at(labels)
        for name, method in METHODS.items()
        if source in method.sources and labels not in LEFT_OUT.get(name, ())
    ]


def add_trial(
    record: Record,
    efficiency: Efficiency,
    source: str,
    labels: int,
    seed: int,
    name: str,
    *,
    progress: Callable[[str], None] = print,
) -> None:
    """Run one trial and write its two rows."""
    accuracy, positive = outcome(efficiency, source, labels, seed, name)
    keys = _keys(source, labels, seed, name)
    record.add(**keys, metric="accuracy", value=accuracy)
    record.add(**keys, metric="positive", value=positive)
    progress(f"{source}, {name}, {labels} labels, sample {seed}: {accuracy:.4f}")


def outcome(efficiency: Efficiency, source: str, labels: int, seed: int, name: str) -> tuple[float, float]:
    """Accuracy on the tests, and the share of them that is called positive."""
    tests = efficiency.test_texts(source)
    positive_N = fitted(METHODS[name], efficiency.sample(source, labels, seed), seed=seed)([t.text for t in tests])
    is_positive_N = positive_N >= 0.5
    return float((is_positive_N == np.array([t.label for t in tests])).mean()), float(is_positive_N.mean())


def about(efficiency: Efficiency) -> dict:
    """What the record says of how it was made."""
    return {
        "minilm_sha256": sha256_of(minilm_folder() / "model.safetensors"),
        "reader_sha256": sha256_of(READER_FOLDER / "adapter_model.safetensors"),
        "encoder_sha256": sha256_of(CHECKPOINTS_FOLDER / "encoder" / "model.safetensors"),
        "methods": {
            name: asdict(method) | {"settings": {str(n): how.described() for n, how in method.settings.items()}}
            for name, method in METHODS.items()
        },
        "efficiency": asdict(efficiency),
    }


def _check_begun(record: Record) -> None:
    """A method may be new to the file; those that it knows must be what they are today."""
    now = json.loads(json.dumps(record.about))  # as it is read back
    for sitting in record.provenance() if record.path.exists() else []:
        begun, wanted = ({**about, **about.get("methods", {})} for about in (sitting, now))
        names = (begun.keys() & wanted.keys()) - {"methods"} | {"efficiency"}
        check_same({name: begun.get(name) for name in names}, {name: wanted[name] for name in names})


def _keys(source: str, labels: int, seed: int, name: str) -> dict:
    return {"name": f"{source}, {name}", "seed": seed, "step": labels}
