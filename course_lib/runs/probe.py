"""How much of a text's sentiment a model's frozen features tell, from few labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from course_lib import data
from course_lib.data import Review, course_tokenizer
from course_lib.evaluation import bag_of_words_accuracy, first_tokens, frozen_features, labelled_sample, probe_accuracy
from course_lib.model import LanguageModel
from course_lib.records import Record


@dataclass(frozen=True)
class SentimentProbe:
    """Frozen features, then logistic regression on few labels: accuracy on held-out IMDB reviews, over samples.

    Every method reads the same stretch of each text.
    """

    source: ClassVar[str] = "imdb"
    labels: Sequence[int] = (100, 500, 2000)
    seeds: int = 5
    tests: int = 2000

    @cached_property
    def _pools(self) -> tuple[list[Review], list[Review]]:
        pool, tests = (data.reviews_of(split, self.source) for split in ("train", "test"))
        return pool[: 2 * max(self.labels)], tests[: self.tests]

    @property
    def test_reviews(self) -> list[Review]:
        """What every method is tested on."""
        return self._pools[1]

    def sample(self, labels: int, seed: int) -> list[Review]:
        """The labelled reviews that a method learns from."""
        return labelled_sample(self._pools[0], labels, seed)

    def accuracies(self, features: Callable[[list[str]], np.ndarray]) -> dict[tuple[int, int], float]:
        """{(labels, seed): accuracy} of a probe on `features(texts)`, computed once for each text."""
        return self._each(features, probe_accuracy)

    def of_model(self, model: LanguageModel) -> dict[tuple[int, int], float]:
        """The same for the mean-pooled last hidden state of one of the course's models."""
        return self.accuracies(lambda texts: frozen_features(model, texts, course_tokenizer()))

    def bag_of_words(self) -> dict[tuple[int, int], float]:
        """The same for words and word pairs with TF-IDF, which learns its own features from the labelled texts."""
        read = lambda texts: np.array(first_tokens(texts, course_tokenizer()), dtype=object)  # noqa: E731
        return self._each(read, bag_of_words_accuracy)

    def add_to(self, record: Record, name: str, step: int, accuracies: dict[tuple[int, int], float]) -> None:
        """Write accuracies as rows of a record, one for each sample."""
        for (labels, seed), accuracy in accuracies.items():
            record.add(name=name, seed=seed, step=step, metric=f"probe_{labels}", value=accuracy)

    def rows(self, read: Callable[[list[str]], Any]) -> tuple[dict[tuple[int, int], tuple], tuple]:
        """{(labels, seed): (rows, labels) to learn from}, and (rows, labels) to be tested on. A row is what `read`
        gives for a text: each text is read once."""
        samples = {(n, seed): self.sample(n, seed) for n in self.labels for seed in range(self.seeds)}
        texts = list({review.text: None for sample in samples.values() for review in sample})
        place, of_texts = {text: n for n, text in enumerate(texts)}, read(texts)
        learned = {
            key: (of_texts[[place[review.text] for review in sample]], np.array([review.label for review in sample]))
            for key, sample in samples.items()
        }
        tests = self.test_reviews
        return learned, (read([review.text for review in tests]), np.array([review.label for review in tests]))

    def _each(self, read: Callable, accuracy: Callable) -> dict[tuple[int, int], float]:
        learned, tests = self.rows(read)
        return {key: accuracy(*sample, *tests) for key, sample in learned.items()}


class SentenceProbe(SentimentProbe):
    """The same on single Rotten Tomatoes sentences."""

    source = "rotten_tomatoes"
