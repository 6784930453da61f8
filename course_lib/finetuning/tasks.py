"""Tasks whose answers can be checked, made of real reviews: write a positive or a negative one, begin with given words,
repeat them, go on in one sentence, classify. And one that no model is tuned on, which asks for two of them at once.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from course_lib.data import SENTIMENTS, Review, holds_slur, normalize, reviews_of
from course_lib.evaluation import fit_bag_of_words
from course_lib.finetuning.instructions import Instruction
from course_lib.runtime import seeded

WORDS = range(8, 46)  # how long a sentence is that is written
_END = re.compile(r"(?<=[.!?])[\s\"')]+(?=[A-Z\"'(])")
_END_IN_LOWER_CASE = re.compile(
    r"(?<!\bmr\.)(?<!\bms\.)(?<!\bdr\.)(?<!\bst\.)(?<!\bmrs\.)(?<=[.!?])[\s\"')]+(?=[\w\"'(])"
)


@dataclass(frozen=True)
class Task:
    """wordings: all ways of asking for it; every fifth is kept for the test (`asked`). sentiment: which one is asked
    for, 0 or 1, where one is. begins, continues, repeats, classifies: what must be true of an answer (`obeyed`).
    is_held_out: no model is tuned on it at all."""

    name: str
    wordings: tuple[str, ...]
    sentiment: int | None = None
    begins: bool = False
    continues: bool = False
    repeats: bool = False
    classifies: bool = False
    is_held_out: bool = False

    def asked(self, *, held_out: bool) -> tuple[str, ...]:
        """The wordings that no model has been tuned on, or the others."""
        return tuple(w for n, w in enumerate(self.wordings) if self.is_held_out or (n % 5 == 2) == held_out)

    def obeyed(self, asked: Instruction, written: str) -> bool:
        """Whether an answer has the right form, by rules alone: what sentiment it has, and whether a classification is
        right, is not looked at."""
        text, given = normalize(written), normalize(asked.input)
        if self.classifies:
            return text in SENTIMENTS
        if self.repeats:
            return text == given
        if self.begins:
            behind = text.removeprefix(given)
            return text.startswith(given) and bool(behind.strip()) and not behind[0].isalnum()
        if self.continues:
            return len(text.split()) > 1 and len(sentences(written)) == 1 and text not in given
        return len(text.split()) > 1


def _phrases(pattern: str, *choices: Sequence[str]) -> list[str]:
    return [pattern.format(*chosen) for chosen in itertools.product(*choices)]


_WRITE = ("Write", "Compose", "Give me")
_REVIEW = ("review", "film review", "review of a film", "comment on a film")
_TEXT = ("review", "text", "comment")
_OPENS = ("begins with these words", "starts with these words", "opens with the words below")
_KINDS = (
    ("a negative", "an unfavourable", "a bad", "a scathing", "a harsh", "a critical"),
    ("a positive", "a favourable", "a good", "a glowing", "an enthusiastic", "a kind"),
)
_FELT = (("hated", "disliked", "regretted", "did not enjoy"), ("loved", "liked", "admired", "enjoyed"))
_IS = (("bad", "dull", "a failure", "not worth seeing"), ("good", "great", "a success", "worth seeing"))
_DO = (("Criticize", "Pan", "Warn me of"), ("Praise", "Applaud", "Recommend"))


def _write(label: int) -> Task:
    wordings = (
        *_phrases("{} {} {}.", _WRITE, _KINDS[label], _REVIEW),
        *_phrases("{} a film that you {}.", ("Write about", "Describe", "Tell me of"), _FELT[label]),
        *_phrases("{} a film is {}.", ("Say why", "Tell me why"), _IS[label]),
        *_phrases("{} a {}.", _DO[label], ("film", "movie")),
    )
    return Task(SENTIMENTS[label], wordings, sentiment=label)


def _write_begun(label: int) -> Task:
    wordings = _phrases("{} {} {} that {}.", _WRITE, _KINDS[label][:2], _REVIEW[:2], _OPENS)
    return Task(f"{SENTIMENTS[label]}, begun", tuple(wordings), sentiment=label, begins=True, is_held_out=True)


TASKS = {
    task.name: task
    for task in (
        _write(1),
        _write(0),
        Task(
            "classify",
            (
                *_phrases("{} {} {}.", ("Classify", "Judge", "Rate"), ("the", "this"), _TEXT),
                *_phrases("Is {} {} positive or negative?", ("the", "this"), _TEXT),
                *_phrases("What is the sentiment of {} {}?", ("the", "this"), _TEXT),
                *_phrases("Does {} {} praise the film or pan it?", ("the", "this"), _TEXT),
            ),
            classifies=True,
        ),
        Task("begin", tuple(_phrases("{} a {} that {}.", _WRITE, _REVIEW, _OPENS)), begins=True),
        Task(
            "continue",
            (
                *_phrases(
                    "{} {} {} {} one sentence.", ("Continue", "Go on with"), ("the", "this"), _TEXT, ("in", "by")
                ),
                *_phrases("{} the next sentence of this {}.", _WRITE, _TEXT),
            ),
            continues=True,
        ),
        Task(
            "repeat",
            tuple(_phrases("{} {}.", ("Repeat", "Copy", "Say again"), ("these words", "the words below", "this text"))),
            repeats=True,
        ),
        _write_begun(1),
        _write_begun(0),
    )
}


def sentences(text: str) -> list[str]:
    """A text cut where a sentence ends, roughly: behind . ! or ? where a capital letter follows, or any word in a text
    without capitals.

    >>> sentences("A good film. I liked it a lot!"), sentences("a good film. i liked mr. bean!")
    (['A good film.', 'I liked it a lot!'], ['a good film.', 'i liked mr. bean!'])
    """
    end = _END_IN_LOWER_CASE if text == text.lower() else _END
    return [part.strip() for part in end.split(text) if part.strip()]


def make_examples(
    task: Task, count: int, *, seed: int = 0, split: str = "train", held_out: bool = False, clear: float = 0.8
) -> list[Instruction]:
    """Instructions with answers from real reviews of a split, in an order that the seed decides; fewer where the
    reviews give no more.

    held_out: in wordings that no model has been tuned on. clear: for a sentiment, how sure a bag of words must be of
    a sentence.
    Raises ValueError for a count below 1, or a task that has no such wordings.
    """
    wordings = task.asked(held_out=held_out)
    if count < 1 or not wordings:
        raise ValueError(f"{count} examples of {task.name!r} in {len(wordings)} wordings: give at least 1 of each")
    if not 0 <= clear <= 1:
        raise ValueError(f"clear is {clear}: give a share from 0 to 1, such as 0.8")
    generator = seeded(seed, sum(map(ord, task.name)))
    sources = _sources(task, split, clear)
    order = torch.randperm(len(sources), generator=generator)[:count].tolist()
    draws = torch.randint(2**31, (len(order), 2), generator=generator).tolist()
    return [
        _example(task, sources[place], wordings[first % len(wordings)], second)
        for place, (first, second) in zip(order, draws, strict=True)
    ]


def _sources(task: Task, split: str, clear: float) -> Sequence[Any]:
    """What a task's examples are made of: reviews, pairs of sentences, or sentences."""
    if task.classifies:
        return _clean_reviews(split)
    if task.continues:
        return _neighbours(split)
    if task.sentiment is not None:
        return clear_sentences(split, task.sentiment, clear)
    return all_sentences(split)


def _example(task: Task, source: Any, wording: str, draw: int) -> Instruction:
    if task.classifies:
        return Instruction(wording, source.text, SENTIMENTS[source.label])
    if task.continues:
        return Instruction(wording, *source)
    if task.repeats:
        return Instruction(wording, words := _words_to_repeat(source, draw), words)
    return Instruction(wording, _first_words(source, 2 + draw % 4) if task.begins else "", source)


@cache
def clear_sentences(split: str, label: int, clear: float = 0.8) -> tuple[str, ...]:
    """Sentences of a split's reviews with this label of whose sentiment a bag of words is as sure as `clear`: one of
    Rotten Tomatoes, or the first or last of an IMDB review, whose label goes for the whole of it. The bag of words has
    read the training reviews only."""
    texts, labels = labelled_sentences(split)
    positive_N = _sentiments(split) if clear > 0 else np.full(len(texts), 0.5)  # half a minute, where it is asked for
    sure_N = positive_N if label else 1 - positive_N
    return tuple(text for text, of, sure in zip(texts, labels, sure_N, strict=True) if of == label and sure >= clear)


def sentiment_by_words(texts: Sequence[str]) -> np.ndarray:
    """float [N]: how likely each text is positive for a bag of words that has read the training reviews. Not the judge:
    what chooses texts to learn from must not be what judges the result."""
    return _bag_of_words().predict_proba(list(texts))[:, 1]


@cache
def _sentiments(split: str) -> np.ndarray:
    return sentiment_by_words(labelled_sentences(split)[0])


@cache
def _bag_of_words() -> object:
    reviews = _clean_reviews("train")
    return fit_bag_of_words([review.text for review in reviews], np.array([review.label for review in reviews]))


@cache
def labelled_sentences(split: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Sentences that can stand alone, with the labels of their reviews: those of Rotten Tomatoes, and the first and
    last of each IMDB review. What stands in a training review too, as reviewers' formulas do, is left out of any other
    split."""
    found: dict[str, int] = {}
    known = _read_in_training(split)
    for parts, label in _normalised_sentences(split):
        for text in (parts[0], parts[-1]):
            if len(text.split()) in WORDS and text not in known:
                found[text] = label
    return tuple(found), tuple(found.values())


@cache
def all_sentences(split: str) -> tuple[str, ...]:
    """Every sentence of a split's reviews of a length that can be written; of other splits none that stands in a
    training review too. So many that hardly one is met twice: words to begin with must be read, and not recognised."""
    known = _read_in_training(split)
    found = (text for parts, _ in _normalised_sentences(split) for text in parts)
    return tuple(dict.fromkeys(text for text in found if len(text.split()) in WORDS and text not in known))


@cache
def _neighbours(split: str) -> tuple[tuple[str, str], ...]:
    """Two neighbouring sentences of an IMDB review, the second short enough to be written; none that stands in a
    training review too where the split is another."""
    pairs, known = [], _read_in_training(split)
    for review in _clean_reviews(split):
        parts = sentences(review.text) if review.source == "imdb" else []
        for before, after in zip(parts[:6:2], parts[1:7:2], strict=False):
            fits = all(len(part.split()) in WORDS and normalize(part) not in known for part in (before, after))
            if fits and len(sentences(after)) == 1:  # alone, a stretch without capitals may be cut again
                pairs.append((before, after))
    return tuple(pairs)


@cache
def _read_in_training(split: str) -> frozenset[str]:
    """The sentences of the training reviews, for every other split."""
    if split == "train":
        return frozenset()
    return frozenset(text for parts, _ in _normalised_sentences("train") for text in parts)


@cache
def _normalised_sentences(split: str) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Of each review its sentences, normalised, and its label."""
    return tuple((tuple(map(normalize, _parts(review))), review.label) for review in _clean_reviews(split))


def _parts(review: Review) -> list[str]:
    return [review.text] if review.source == "rotten_tomatoes" else sentences(review.text)


@cache
def _clean_reviews(split: str) -> tuple[Review, ...]:
    return tuple(review for review in reviews_of(split) if not holds_slur(review.text))


def _words_to_repeat(text: str, draw: int) -> str:
    """The first words of a sentence, every other time out of order: who knows what people write can guess the next
    word of a sentence, and of these must read it."""
    words = _first_words(text, 2 + draw % 11).split()
    order = torch.randperm(len(words), generator=seeded(draw)).tolist() if draw // 11 % 2 else range(len(words))
    return " ".join(words[n] for n in order)


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])
