"""A head on a pre-trained model: fit the head on frozen features first, then train everything (arXiv:2202.10054).

Axes: B text of the batch, T position in it, N text, C class, E channel of the model.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.data import pad
from course_lib.evaluation import COMPARISON_TOKENS, frozen_features
from course_lib.model import LanguageModel
from course_lib.optimizers import make_optimizer
from course_lib.runtime import autocast, seeded
from course_lib.schedules import Schedule
from course_lib.tokenizer import Tokenizer

DEAD = 1e-8  # a feature whose spread is below this share of the largest says nothing


class Classifier(nn.Module):
    """A model's last hidden state, averaged over the text, and a linear layer on it."""

    def __init__(self, body: LanguageModel, n_classes: int = 2) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.d_model, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
        """[B, C]: logits of the classes."""
        return self.head(self.body.features(input_ids_BT, is_real_BT))


@dataclass(frozen=True)
class FineTuning:
    """How a classifier is trained on labelled texts.

    rate: peak, after a warm-up over the first tenth, falling linearly. dropout: of the body's layers of that name while
    it is trained; attention weights keep what the body's config says. head_first: fit the head on frozen features
    before anything else is trained; head_strength: scikit-learn's C of that fit, small where labels are few.
    Raises ValueError for numbers that are none, or too small.
    """

    rate: float = 3e-4
    epochs: int = 5
    batch_size: int = 16
    weight_decay: float = 0.05
    dropout: float = 0.1
    head_first: bool = True
    head_strength: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate is {self.rate}: give a learning rate above 0, such as 3e-4")
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(f"epochs {self.epochs}, batch_size {self.batch_size}: give at least 0 and 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: give a share of at least 0 and below 1")
        if not 0 < self.head_strength < math.inf:
            raise ValueError(f"head_strength is {self.head_strength}: give a number above 0, such as 0.05")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}: give a number of at least 0, such as 0.05")
        seeded(self.seed)


def fit_head(classifier: Classifier, features_NE: np.ndarray, labels: Sequence[int], *, strength: float = 0.05) -> None:
    """Set a two-class head to the logistic regression on standardised features, the standardisation folded into it.

    strength: as FineTuning.head_strength.
    Raises ValueError for labels other than 0 and 1, where one of them is missing, or for a head of other classes.
    """
    if set(labels) != {0, 1}:
        raise ValueError(f"labels are {sorted(set(labels), key=str)}: give texts of both kinds, labelled 0 and 1")
    if (n_classes := classifier.head.out_features) != 2:
        raise ValueError(f"the head has {n_classes} classes: fit one of 2, or train with head_first=False")
    spread_E = features_NE.std(0)
    moves_E = spread_E > DEAD * spread_E.max()  # MiniLM has a channel that never moves: dividing by that overflows
    scaler = StandardScaler().fit(features_NE[:, moves_E])
    probe = LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(features_NE[:, moves_E]), labels)
    weight_E = torch.zeros(len(moves_E))
    weight_E[torch.from_numpy(moves_E)] = torch.tensor(probe.coef_[0] / scaler.scale_).float()
    bias = torch.tensor(probe.intercept_[0] - (probe.coef_[0] * scaler.mean_ / scaler.scale_).sum()).float()
    with torch.no_grad():  # half the difference of the two logits on each side
        classifier.head.weight.copy_(torch.stack([-weight_E, weight_E]) / 2)
        classifier.head.bias.copy_(torch.stack([-bias, bias]) / 2)


def fine_tune(
    classifier: Classifier, texts: Sequence[str], labels: Sequence[int], tokenizer: Tokenizer, how: FineTuning
) -> list[float]:
    """Train on labelled texts, their first COMPARISON_TOKENS tokens; the mean loss of every epoch, in nats a text. The
    classifier is ready for evaluation then, its dropout and torch's global generator as they were.

    Raises ValueError unless there is one label for each text, at least one text, and no label but 0 to C - 1;
    FloatingPointError where the loss is not finite.
    """
    if len(texts) != len(labels) or not texts:
        raise ValueError(f"{len(texts)} texts and {len(labels)} labels: give one label for each text, and at least one")
    classes = range(classifier.head.out_features)
    if outside := [label for label in labels if label not in classes]:
        raise ValueError(f"label {outside[0]} is no class: this classifier tells 0 to {classes[-1]} apart")
    if how.head_first:
        features_NE = frozen_features(classifier.body, texts, tokenizer)
        fit_head(classifier, features_NE, labels, strength=how.head_strength)
    encoded, generator = tokenizer.encode_all(texts), seeded(how.seed)
    total = how.epochs * math.ceil(len(texts) / how.batch_size)
    rates = iter(map(Schedule("linear", how.rate, max(1, total), warmup=total // 10), range(total)))
    optimizer = make_optimizer(classifier, weight_decay=how.weight_decay, betas=(0.9, 0.999))
    losses = []
    with _training(classifier, how.dropout), torch.random.fork_rng():
        torch.manual_seed(how.seed)  # dropout draws from the global generator
        for _ in range(how.epochs):
            summed = 0.0
            for rows in torch.randperm(len(texts), generator=generator).split(how.batch_size):
                batch = [encoded[n] for n in rows.tolist()]
                wanted_B = torch.tensor([int(labels[n]) for n in rows.tolist()])
                summed += _update(classifier, batch, wanted_B, tokenizer, optimizer, next(rates)) * len(rows)
            losses.append(summed / len(texts))
    return losses


@torch.no_grad()
def predictions(
    classifier: Classifier, texts: Sequence[str], tokenizer: Tokenizer, *, batch_size: int = 64
) -> np.ndarray:
    """float32 [N, C]: the probability of each class, for the first COMPARISON_TOKENS tokens of each text.

    Raises ValueError for no texts.
    """
    features_NE = torch.from_numpy(frozen_features(classifier.body, texts, tokenizer, batch_size=batch_size))
    logits_NC = classifier.head(features_NE.to(classifier.head.weight))
    return logits_NC.float().softmax(-1).cpu().numpy()


def _update(
    classifier: Classifier,
    sequences: list[list[int]],
    labels_B: Tensor,
    tokenizer: Tokenizer,
    optimizer: torch.optim.Optimizer,
    rate: float,
) -> float:
    device = classifier.head.weight.device
    vocabulary = tokenizer.vocabulary
    ids_BT = pad(sequences, vocabulary, length=COMPARISON_TOKENS + 2, frame=vocabulary.frame).to(device)
    with autocast(device):
        logits_BC = classifier(ids_BT, ids_BT != vocabulary.pad)
    loss = F.cross_entropy(logits_BC.float(), labels_B.to(device))
    if not loss.isfinite():
        raise FloatingPointError(f"the loss is {loss.item()}: lower the rate, now at {rate:.3g}")
    loss.backward()
    nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@contextlib.contextmanager
def _training(classifier: Classifier, dropout: float) -> Iterator[None]:
    """In training mode with this dropout inside the block, ready for evaluation and with its own behind it."""
    before = {layer: layer.p for layer in classifier.modules() if isinstance(layer, nn.Dropout)}
    for layer in before:
        layer.p = dropout
    classifier.train()
    try:
        yield
    finally:
        for layer, share in before.items():
            layer.p = share
        classifier.eval()
