"""Is it any good: baselines that know nothing of order or of the world, a probe on frozen features, and intervals that
say how far a figure can be trusted.    Axes: N a text, E a feature, V the vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from course_lib.data import Review, pad
from course_lib.model import LanguageModel
from course_lib.objectives import Batch
from course_lib.runtime import autocast, seeded
from course_lib.tokenizer import Tokenizer
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

COMPARISON_TOKENS = 126  # every method reads this much of a text, in tokens of the course's tokenizer


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval that holds the truth in 95 of 100 such measurements."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self:.3g}"

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def holds(self, value: float) -> bool:
        """Whether a value lies within the interval."""
        return self.low <= value <= self.high


def proportion_interval(successes: int, trials: int) -> Interval:
    """95 % interval of a share, Clopper and Pearson's (exact for the binomial distribution).

    Raises ValueError unless 0 <= successes <= trials and there is a trial.

    >>> str(proportion_interval(80, 100))
    '0.8 (0.708 to 0.873)'
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: give 0 <= successes <= trials, at least 1 trial")
    bounds = stats.binomtest(successes, trials).proportion_ci(0.95)
    return Interval(successes / trials, bounds.low, bounds.high)


def mean_interval(values: Sequence[float]) -> Interval:
    """95 % interval of the mean over seeds, by Student's t.

    Raises ValueError for fewer than 2 values, or one that is not finite.

    >>> str(mean_interval([1.0, 2.0, 3.0]))
    '2 (-0.484 to 4.48)'
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} value: a spread over seeds takes at least 2")
    if not np.isfinite(values).all():
        raise ValueError(f"values hold {next(v for v in values if not math.isfinite(v))}: did one of the runs diverge?")
    mean = float(np.mean(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - reach, mean + reach)


def uniform_loss(vocabulary: Vocabulary) -> float:
    """Nats per token of a model that knows nothing at all: the logarithm of the vocabulary's size."""
    return math.log(vocabulary.size)


def unigram_loss(train_ids: Tensor, targets_N: Tensor, vocabulary: Vocabulary) -> float:
    """Nats per target of a model that knows only how often each token occurs in `train_ids` (counted from 1). Targets
    that are IGNORE_INDEX are left out.

    Raises ValueError without a target, or for ids outside the vocabulary.

    >>> round(unigram_loss(torch.tensor([1, 1]), torch.tensor([1]), Vocabulary(4)), 4)  # ln 2: 3 of 6
    0.6931
    """
    targets_N = targets_N[targets_N != IGNORE_INDEX]
    if targets_N.numel() == 0:
        raise ValueError("targets_N is empty: give the labels that were to be predicted")
    vocabulary.check_ids(train_ids)
    vocabulary.check_ids(targets_N)
    count_V = torch.bincount(train_ids.flatten(), minlength=vocabulary.size).double() + 1
    return -(count_V / count_V.sum()).log()[targets_N].mean().item()


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
    frame: tuple[str, str] = ("bos", "eos"),
    batch_size: int = 64,
    dtype: torch.dtype | None = None,
) -> np.ndarray:
    """float32 [N, E]: the model's last hidden state averaged over each text's first tokens. Nothing is trained.

    frame: the special tokens around a text, those that the model was trained with.
    Raises ValueError for no texts, a batch of none, or a model shorter than COMPARISON_TOKENS and their frame.
    """
    if not texts or batch_size < 1:
        raise ValueError(f"{len(texts)} texts in batches of {batch_size}: give at least one of each")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    encoded = tokenizer.encode_all(texts)
    order = sorted(range(len(texts)), key=lambda n: len(encoded[n]))  # texts of like length share a batch
    rows: list[Tensor] = []
    try:
        for start in range(0, len(order), batch_size):
            sequences = [encoded[n] for n in order[start : start + batch_size]]
            ids_BT = pad(sequences, tokenizer.vocabulary, length=COMPARISON_TOKENS + 2, frame=frame).to(device)
            with autocast(device, dtype):
                rows.append(model.features(ids_BT, ids_BT != tokenizer.vocabulary.pad).float().cpu())
    finally:
        model.train(was_training)
    features_NE = torch.cat(rows)
    return features_NE[torch.tensor(order).argsort()].numpy()


def probe_accuracy(
    train_NE: np.ndarray, train_labels: np.ndarray, test_NE: np.ndarray, test_labels: np.ndarray
) -> float:
    """Accuracy of a logistic regression on standardised features: what a linear reader finds in them."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=1000))
    return float(probe.fit(train_NE, train_labels).score(test_NE, test_labels))


def bag_of_words_accuracy(
    train_texts: Sequence[str], train_labels: np.ndarray, test_texts: Sequence[str], test_labels: np.ndarray
) -> float:
    """Accuracy of TF-IDF over words and word pairs with logistic regression: the baseline that must be beaten."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    return float(model.fit(train_texts, train_labels).score(test_texts, test_labels))


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


@torch.no_grad()
def influences(model: LanguageModel, batch: Batch, vocabulary: Vocabulary) -> Tensor:
    """bool [N, T]: whether the prediction at each of the N targets of a batch's only row changes, by as much as one
    bit, when the token at position t is another one. What leaks shows in an untrained model.

    Raises ValueError for a batch of more than one row, or without a target.

    >>> from course_lib.layers import TransformerConfig
    >>> from course_lib.model import Decoder
    >>> from course_lib.objectives import causal
    >>> model = Decoder(TransformerConfig(vocab_size=50, d_model=8, n_layers=2, n_heads=2, d_ff=16, max_len=4))
    >>> influences(model, causal(torch.tensor([[7, 8, 9]]), Vocabulary(50)), Vocabulary(50)).int().tolist()
    [[1, 0, 0], [1, 1, 0]]
    """
    if len(batch.input_ids_BT) != 1 or not batch.is_target_BL.any():
        raise ValueError(f"the batch has {len(batch.input_ids_BT)} rows: give one row with at least one target")
    was_training = model.training
    model.eval()
    before_NV = model.target_logits(batch)
    columns = []
    for t in range(batch.input_ids_BT.shape[1]):  # one at a time: the shape of a product can change its last bit
        changed_BT = batch.input_ids_BT.clone()
        other = vocabulary.ordinary_ids[vocabulary.ordinary_ids != changed_BT[0, t]]
        changed_BT[0, t] = other[t % len(other)]
        after_NV = model.target_logits(replace(batch, input_ids_BT=changed_BT))
        columns.append((after_NV != before_NV).any(-1))
    model.train(was_training)
    return torch.stack(columns, dim=1)
