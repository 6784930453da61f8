"""What a simple classifier finds in frozen features, and in a bag of words, from few labels.

Axes: N a text, E a feature.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from course_lib.data import Review, pad
from course_lib.model import LanguageModel, evaluating
from course_lib.runtime import autocast, seeded
from course_lib.tokenizer import Tokenizer

COMPARISON_TOKENS = 126  # every method reads this much of a text, in tokens of the course's tokenizer


def first_tokens(texts: Iterable[str], tokenizer: Tokenizer, count: int = COMPARISON_TOKENS) -> list[str]:
    """The stretch of each text that its first `count` tokens cover: what every method of a comparison reads.

    Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}: a comparison reads at least 1 token")
    return [tokenizer.decode(ids[:count]) for ids in tokenizer.encode_all(texts)]


@torch.no_grad()
def frozen_features(
    model: LanguageModel,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    frame: tuple[str, str] | None = None,
    max_tokens: int = COMPARISON_TOKENS,
    batch_size: int = 64,
    dtype: torch.dtype | None = None,
) -> np.ndarray:
    """float32 [N, E]: the model's `features` of each text's first tokens: for a language model its last hidden state,
    averaged. Nothing is trained.

    frame: the special tokens around a text, those that the model was trained with (default: the vocabulary's).
    max_tokens: how many of a text are read.
    Raises ValueError for no texts, a batch of none, or a model shorter than max_tokens and their frame.
    """
    if not texts or batch_size < 1 or max_tokens < 1:
        raise ValueError(
            f"{len(texts)} texts of {max_tokens} tokens in batches of {batch_size}: give at least one of each"
        )
    device = next(model.parameters()).device
    encoded, vocabulary = tokenizer.encode_all(texts), tokenizer.vocabulary
    frame = frame or vocabulary.frame
    order = sorted(range(len(texts)), key=lambda n: len(encoded[n]))  # texts of like length share a batch
    rows: list[Tensor] = []
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            sequences = [encoded[n] for n in order[start : start + batch_size]]
            ids_BT = pad(sequences, vocabulary, length=max_tokens + 2, frame=frame).to(device)
            with autocast(device, dtype):
                rows.append(model.features(ids_BT, ids_BT != vocabulary.pad).float().cpu())
    features_NE = torch.cat(rows)
    return features_NE[torch.tensor(order).argsort()].numpy()


def fit_probe(features_NE: np.ndarray, labels: np.ndarray, *, strength: float = 0.05) -> Pipeline:
    """Logistic regression on standardised features, fitted: what a linear reader makes of them. Its `predict_proba`
    gives the probabilities [N, C] of other texts.

    strength: scikit-learn's C, how far the labels may pull the weights.
    Raises scikit-learn's ValueError for lengths that differ, or labels all of one class.

    >>> fit_probe(np.array([[0.0], [1.0]]), np.array([0, 1])).predict(np.array([[0.9], [0.2]])).tolist()
    [1, 0]
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    return probe.fit(features_NE, labels)


def probe_accuracy(
    train_NE: np.ndarray,
    train_labels: np.ndarray,
    test_NE: np.ndarray,
    test_labels: np.ndarray,
    *,
    strength: float = 0.05,
) -> float:
    """Accuracy of `fit_probe` on the training features: what a linear reader finds in them."""
    return float(fit_probe(train_NE, train_labels, strength=strength).score(test_NE, test_labels))


def fit_bag_of_words(texts: Sequence[str], labels: np.ndarray) -> Pipeline:
    """TF-IDF over words and word pairs with logistic regression, fitted: the baseline that must be beaten.

    Its `predict` gives the labels [N] of other texts, `predict_proba` their probabilities [N, C].
    Raises scikit-learn's ValueError for lengths that differ, texts without a word, or labels all of one class.

    >>> judge = fit_bag_of_words(["a good film", "a bad film"], np.array([1, 0]))
    >>> judge.predict(["good, very good", "bad"]).tolist()
    [1, 0]
    """
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    return model.fit(texts, labels)


def bag_of_words_predictions(
    train_texts: Sequence[str], train_labels: np.ndarray, test_texts: Sequence[str]
) -> np.ndarray:
    """[N]: the labels that `fit_bag_of_words` on the training texts gives to the test texts."""
    return fit_bag_of_words(train_texts, train_labels).predict(test_texts)


def bag_of_words_accuracy(
    train_texts: Sequence[str], train_labels: np.ndarray, test_texts: Sequence[str], test_labels: np.ndarray
) -> float:
    """Accuracy of `bag_of_words_predictions`."""
    return float((bag_of_words_predictions(train_texts, train_labels, test_texts) == test_labels).mean())


def labelled_sample(reviews: Sequence[Review], count: int, seed: int) -> list[Review]:
    """`count` reviews, half of them positive, fixed by the seed.

    Raises ValueError for an odd count, or more than there are of either kind.
    """
    kinds = [[review for review in reviews if review.label == label] for label in (0, 1)]
    least = min(map(len, kinds))
    if count % 2 or not 2 <= count <= 2 * least:
        raise ValueError(f"count is {count}: give an even number from 2 to {2 * least}, half of each kind is taken")
    generator = seeded(seed, count)
    picked = [kind[i] for kind in kinds for i in torch.randperm(len(kind), generator=generator)[: count // 2].tolist()]
    return [picked[i] for i in torch.randperm(count, generator=generator).tolist()]
