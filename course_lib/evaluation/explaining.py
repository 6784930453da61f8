"""A text judged, with the reasons: how probable it is that it is positive, and which way each token pulls.

Axes: T position in the text, C class.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from torch import nn

from course_lib.evaluation.attributions import token_attributions
from course_lib.evaluation.probes import COMPARISON_TOKENS, first_tokens
from course_lib.model import evaluating
from course_lib.tokenizer import Tokenizer


@dataclass(frozen=True)
class Judged:
    """What a model says of a text. positive: the probability that it is positive. values: how far each of `tokens`
    moves the log-odds of that, or none where a model does not say.

    Raises ValueError for a probability outside [0, 1], a value that is not finite, or numbers that do not fit.
    """

    positive: float
    tokens: tuple[str, ...] = ()
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.positive <= 1:
            raise ValueError(f"positive is {self.positive}: give a probability from 0 to 1")
        if self.values and len(self.values) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens and {len(self.values)} values: give one each, or no values")
        if not all(map(math.isfinite, self.values)):
            raise ValueError("values hold nan or inf: give none where a model cannot say")


Judge = Callable[[str], Judged]


def judge_with(
    classifier: nn.Module,
    tokenizer: Tokenizer,
    max_tokens: int = COMPARISON_TOKENS,
    *,
    tolerance: float = 0.02,
    most_steps: int = 128,
) -> Judge:
    """Judges texts with a classifier of two classes, 1 the positive one, that reads their first `max_tokens` tokens
    between the vocabulary's special tokens.

    The values are `token_attributions` against a text of [PAD] between the same special tokens: their sum is how much
    higher the log-odds are than those of that text. tolerance, most_steps: as there; a text of 126 tokens may take
    seconds.
    The judge raises ValueError for a text without a token, or a classifier of other classes.
    """
    vocabulary = tokenizer.vocabulary
    pad, (first, last) = vocabulary.require("pad", "judging a text"), vocabulary.frame_ids("judging a text")

    def judge(text: str) -> Judged:
        ids = tokenizer.encode(text)[:max_tokens]
        if not ids:
            raise ValueError(f"the text {text[:40]!r} holds no token: write a sentence")
        framed_T = torch.tensor([first, *ids, last])
        found = token_attributions(
            classifier, framed_T, baseline_id=pad, fixed=[True, *[False] * len(ids), True],
            tolerance=tolerance, most_steps=most_steps,
        )  # fmt: skip
        return Judged(
            _positive(classifier, framed_T), tuple(map(tokenizer.token, ids)), tuple(found.values_T[1:-1].tolist())
        )

    return judge


@torch.no_grad()
def _positive(classifier: nn.Module, input_ids_T: torch.Tensor) -> float:
    input_ids_1T = input_ids_T[None].to(next(classifier.parameters()).device)
    with evaluating(classifier):
        logits_C = classifier(input_ids_1T, torch.ones_like(input_ids_1T, dtype=torch.bool))[0]
    if len(logits_C) != 2:
        raise ValueError(f"the classifier tells {len(logits_C)} classes apart: give one of 2, negative and positive")
    return logits_C.double().softmax(-1)[1].item()


def judge_with_bag_of_words(
    pipeline: Pipeline, tokenizer: Tokenizer | None = None, max_tokens: int = COMPARISON_TOKENS
) -> Judge:
    """Judges texts with what `fit_bag_of_words` gave for labels 0 and 1. tokenizer: read only the stretch that a text's
    first `max_tokens` tokens cover, as in a comparison; without it the whole text.

    The values are exact: an n-gram adds its coefficient times its TF-IDF value to the log-odds, shared out evenly among
    its occurrences and their words. Their sum is the log-odds less the intercept.
    Raises ValueError for a pipeline of other parts or classes. The judge raises one for a text without a word.
    """
    parts = [step for _, step in pipeline.steps]
    if [type(part) for part in parts] != [TfidfVectorizer, LogisticRegression]:
        raise ValueError(f"the pipeline holds {[type(part).__name__ for part in parts]}: make it with fit_bag_of_words")
    vectorizer, regression = parts
    if list(regression.classes_) != [0, 1]:
        raise ValueError(f"the classes are {list(regression.classes_)}: fit it on labels 0 and 1")
    weight_V = regression.coef_[0]
    prepare, split, analyze = vectorizer.build_preprocessor(), vectorizer.build_tokenizer(), vectorizer.build_analyzer()
    shortest, longest = vectorizer.ngram_range

    def judge(text: str) -> Judged:
        text = text if tokenizer is None else first_tokens([text], tokenizer, max_tokens)[0]
        words = split(prepare(text))
        if not words:
            raise ValueError(f"the text {text[:40]!r} holds no word: write a sentence")
        spans = [slice(n, n + size) for size in range(shortest, longest + 1) for n in range(len(words) - size + 1)]
        grams = [" ".join(words[span]) for span in spans]
        if sorted(grams) != sorted(analyze(text)):
            raise ValueError("the vectorizer reads other things than words in a row: make it with fit_bag_of_words")
        columns = [vectorizer.vocabulary_.get(gram) for gram in grams]
        times, found_V = Counter(columns), vectorizer.transform([text])
        value_T = np.zeros(len(words))
        for span, column in zip(spans, columns, strict=True):
            if column is not None:
                share = weight_V[column] * found_V[0, column] / times[column]
                value_T[span] += share / (span.stop - span.start)
        return Judged(float(pipeline.predict_proba([text])[0, 1]), tuple(words), tuple(value_T.tolist()))

    return judge
