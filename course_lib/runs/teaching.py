"""A task taught from few labels, in seconds: ways to read a text, each with the simplest classifier on top, over
several samples of labels. Nothing is fine-tuned.

Axes: N a text, E a feature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from course_lib.data import course_tokenizer
from course_lib.evaluation import first_tokens, fit_bag_of_words, fit_probe, frozen_features
from course_lib.model import LanguageModel
from course_lib.runs.probe import SentimentProbe
from course_lib.tokenizer import Tokenizer

Key = tuple[int, int]  # how many labels, and which sample of so many


@dataclass(frozen=True)
class Way:
    """read: texts to rows, an array. fit: rows and labels 0 and 1 to a classifier of rows."""

    read: Callable[[Sequence[str]], np.ndarray]
    fit: Callable[[np.ndarray, np.ndarray], Pipeline]


@dataclass(frozen=True)
class Taught:
    """What a way has learned from each sample. right: bool [N], which of the test texts it then gets right."""

    way: Way
    fitted: dict[Key, Pipeline]
    right: dict[Key, np.ndarray]

    def accuracies(self, labels: int) -> list[float]:
        """One for each sample of so many labels.

        Raises ValueError for a number of labels that was not taught.
        """
        found = [float(right_N.mean()) for (count, _), right_N in sorted(self.right.items()) if count == labels]
        if not found:
            raise ValueError(f"labels is {labels}: choose one of {sorted({count for count, _ in self.right})}")
        return found

    def positive(self, text: str, labels: int, sample: int) -> float:
        """How probable it holds that a text is positive, after that sample of so many labels.

        Raises ValueError for a text without a word, or a sample that was not taught.
        """
        if not text.strip():
            raise ValueError("the text is empty: write a sentence about a film")
        if (labels, sample) not in self.fitted:
            raise ValueError(f"labels {labels}, sample {sample}: choose one of {sorted(self.fitted)}")
        return float(self.fitted[labels, sample].predict_proba(self.way.read([text]))[0, 1])


def bag_of_words() -> Way:
    """Words and pairs of words with TF-IDF: it knows no others than those of its labelled texts."""
    return Way(_stretch, fit_bag_of_words)


def frozen(model: LanguageModel, tokenizer: Tokenizer) -> Way:
    """The mean of a model's last hidden states, as it is, and a logistic regression on it."""
    longest = model.config.max_len - 2

    def read(texts: Sequence[str]) -> np.ndarray:
        return frozen_features(model, _stretch(texts).tolist(), tokenizer, max_tokens=longest)

    return Way(read, fit_probe)


def teach(way: Way, probe: SentimentProbe) -> Taught:
    """Let a way learn from every sample of the probe, and test it. Every way reads the same stretch of each text.

    >>> from course_lib.runs.probe import SentenceProbe
    >>> taught = teach(bag_of_words(), SentenceProbe(labels=(20,), seeds=2, tests=30))
    >>> len(taught.accuracies(20)), 0 < taught.positive("a good film", 20, 0) < 1
    (2, True)
    """
    learned, (test_rows, test_labels) = probe.rows(way.read)
    fitted = {key: way.fit(*sample) for key, sample in learned.items()}
    return Taught(way, fitted, {key: model.predict(test_rows) == test_labels for key, model in fitted.items()})


def _stretch(texts: Sequence[str]) -> Any:
    return np.array(first_tokens(texts, course_tokenizer()), dtype=object)
