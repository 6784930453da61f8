"""Tasks whose answers can be checked, made of real training reviews: write a positive or a negative review, begin with
given words, go on in one sentence, classify. And one that no model is tuned on, which asks for two of them at once.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from course_lib.data import Review, holds_slur, normalize, reviews_of
from course_lib.evaluation import fit_bag_of_words
from course_lib.finetuning.instructions import Instruction
from course_lib.runtime import seeded

SENTIMENTS = ("negative", "positive")  # by label
WORDS = range(8, 46)  # how long a sentence is that is written
_END = re.compile(r"(?<=[.!?])[\s\"')]+(?=[A-Z\"'(])")


@dataclass(frozen=True)
class Task:
    """wordings: how it is asked for in tuning; held_out: wordings that no model has been tuned on. sentiment: which one
    is asked for, 0 or 1, where one is. begins, continues, classifies: what must be true of an answer (`obeyed`).
    is_held_out: no model is tuned on it at all."""

    name: str
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]
    sentiment: int | None = None
    begins: bool = False
    continues: bool = False
    classifies: bool = False
    is_held_out: bool = False

    def obeyed(self, asked: Instruction, written: str) -> bool:
        """Whether an answer has the right form, by rules alone: what sentiment it has, and whether a classification is
        right, is not looked at."""
        text, given = normalize(written), normalize(asked.input)
        if self.classifies:
            return text in SENTIMENTS
        if self.begins:
            return text.startswith(given) and len(text) > len(given)
        if self.continues:
            return bool(text) and len(sentences(written)) == 1 and text not in given
        return bool(text)


TASKS = {
    task.name: task
    for task in (
        Task(
            "positive",
            ("Write a positive review.", "Write a review of a film that you liked.", "Praise a film.",
             "Say why a film is good.", "Recommend a film in a sentence."),
            ("Write a favourable review.", "Write a review of a film that you loved.", "Say something good of a film."),
            sentiment=1,
        ),
        Task(
            "negative",
            ("Write a negative review.", "Write a review of a film that you disliked.", "Criticize a film.",
             "Say why a film is bad.", "Warn of a film in a sentence."),
            ("Write an unfavourable review.", "Write a review of a film that you hated.",
             "Say something bad of a film."),
            sentiment=0,
        ),
        Task(
            "classify",
            ("Classify the review.", "Is this review positive or negative?", "What is the sentiment of this review?"),
            ("Does the writer like the film? Answer positive or negative.", "Name the sentiment of the review."),
            classifies=True,
        ),
        Task(
            "begin",
            ("Begin a review with these words.", "Write a review that begins with these words.",
             "Complete the review that begins so."),
            ("Write a review. Its first words are these.", "Start a review with these words."),
            begins=True,
        ),
        Task(
            "continue",
            ("Continue the review in one sentence.", "Write the next sentence of this review.",
             "Add one sentence to this review."),
            ("Go on with one sentence.", "What could the next sentence of this review be?"),
            continues=True,
        ),
        Task(
            "positive, begun",
            (),
            ("Write a positive review that begins with these words.",),
            sentiment=1, begins=True, is_held_out=True,
        ),
        Task(
            "negative, begun",
            (),
            ("Write a negative review that begins with these words.",),
            sentiment=0, begins=True, is_held_out=True,
        ),
    )
}  # fmt: skip


def sentences(text: str) -> list[str]:
    """A text cut where a sentence ends, roughly: behind . ! or ? where a capital letter follows.

    >>> sentences("A good film. I liked it a lot!")
    ['A good film.', 'I liked it a lot!']
    """
    return [part.strip() for part in _END.split(text) if part.strip()]


def make_examples(
    task: Task, count: int, *, seed: int = 0, split: str = "train", held_out: bool = False, clear: float = 0.8
) -> list[Instruction]:
    """Instructions with answers from real reviews of a split, in an order that the seed decides; fewer where the
    reviews give no more.

    held_out: in wordings that no model has been tuned on. clear: for a sentiment, how sure a bag of words must be of
    a sentence.
    Raises ValueError for a count below 1, or a task that has no such wordings.
    """
    wordings = task.held_out if held_out else task.wordings
    if count < 1 or not wordings:
        raise ValueError(f"{count} examples of {task.name!r} in {len(wordings)} wordings: give at least 1 of each")
    generator = seeded(seed, sum(map(ord, task.name)))
    maker = _maker(task, split, clear)
    order = torch.randperm(len(maker.sources), generator=generator).tolist()
    examples = []
    for place in order[:count]:
        drawn = torch.randint(2**31, (2,), generator=generator).tolist()
        examples.append(maker.make(maker.sources[place], wordings[drawn[0] % len(wordings)], drawn[1]))
    return examples


@dataclass(frozen=True)
class _Maker:
    sources: Sequence
    make: Callable[..., Instruction]


def _maker(task: Task, split: str, clear: float) -> _Maker:
    if task.classifies:
        return _Maker(
            _clean_reviews(split), lambda review, asked, _: Instruction(asked, review.text, SENTIMENTS[review.label])
        )
    if task.continues:
        return _Maker(_neighbours(split), lambda pair, asked, _: Instruction(asked, *pair))
    if task.begins:
        of = range(2) if task.sentiment is None else [task.sentiment]
        texts = [text for label in of for text in clear_sentences(split, label, clear)]
        return _Maker(texts, lambda text, asked, draw: Instruction(asked, _first_words(text, 2 + draw % 4), text))
    return _Maker(clear_sentences(split, task.sentiment, clear), lambda text, asked, _: Instruction(asked, "", text))


@cache
def clear_sentences(split: str, label: int, clear: float = 0.8) -> tuple[str, ...]:
    """Sentences of a split's reviews with this label of whose sentiment a bag of words is as sure as `clear`: one of
    Rotten Tomatoes, or the first or last of an IMDB review, whose label goes for the whole of it. The bag of words has
    read the training reviews only."""
    found, labels = _candidates(split)
    is_asked_N = np.array([n for n, of in enumerate(labels) if of == label], dtype=int)
    sure_N = _sureness(split)[is_asked_N]
    return tuple(found[n] for n in is_asked_N[sure_N >= clear])


@cache
def _sureness(split: str) -> np.ndarray:
    found, labels = _candidates(split)
    return _bag_of_words().predict_proba(list(found))[np.arange(len(found)), list(labels)]


@cache
def _bag_of_words() -> object:
    reviews = _clean_reviews("train")
    return fit_bag_of_words([review.text for review in reviews], np.array([review.label for review in reviews]))


@cache
def _candidates(split: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    found: dict[str, int] = {}
    for review in _clean_reviews(split):
        parts = [review.text] if review.source == "rotten_tomatoes" else sentences(review.text)
        for text in (parts[0], parts[-1]):
            if len(text.split()) in WORDS:
                found[normalize(text)] = review.label
    return tuple(found), tuple(found.values())


@cache
def _neighbours(split: str) -> tuple[tuple[str, str], ...]:
    """Two neighbouring sentences of an IMDB review, the second short enough to be written."""
    pairs = []
    for review in _clean_reviews(split):
        parts = sentences(review.text) if review.source == "imdb" else []
        for before, after in zip(parts[:6:2], parts[1:7:2], strict=False):
            if len(before.split()) in WORDS and len(after.split()) in WORDS:
                pairs.append((before, after))
    return tuple(pairs)


@cache
def _clean_reviews(split: str) -> tuple[Review, ...]:
    return tuple(review for review in reviews_of(split) if not holds_slur(review.text))


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])
