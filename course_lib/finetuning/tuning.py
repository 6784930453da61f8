"""Train a classifier on labelled texts: its head on frozen features first, then everything (arXiv:2202.10054), epoch by
epoch, and go back to the best one.

Axes: B text of the batch, T position in it, N text, C class, E channel of the model.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from course_lib.evaluation import COMPARISON_TOKENS, frozen_features
from course_lib.finetuning.collators import ClassificationCollator, Collated, Padding, length_grouped
from course_lib.finetuning.heads import Classifier
from course_lib.optimizers import Optimizer, make_optimizer
from course_lib.runtime import autocast, seeded
from course_lib.schedules import Schedule
from course_lib.stopping import BestWeights
from course_lib.tokenizer import Tokenizer

Setting = TypeVar("Setting")
DEAD = 1e-8  # a feature whose spread is below this share of the largest says nothing


@dataclass(frozen=True)
class FineTuning:
    """How a classifier is trained on labelled texts.

    rate: peak, after a warm-up over the first tenth, falling linearly. dropout: of the body's layers of that name while
    it is trained; attention weights keep what the body's config says. head_first: fit the head on frozen features
    before anything else is trained; head_strength: scikit-learn's C of that fit, small where labels are few.
    max_tokens: how many tokens of a text are read. length_grouped: put texts of like length into one batch.
    pad_to_most: pad every batch to max_tokens, for comparison. patience: with held-out texts, stop after so many epochs
    in a row without a better one.
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
    max_tokens: int = COMPARISON_TOKENS
    length_grouped: bool = False
    pad_to_most: bool = False
    patience: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate is {self.rate}: give a learning rate above 0, such as 3e-4")
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(f"epochs {self.epochs}, batch_size {self.batch_size}: give at least 0 and 1")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}: read at least 1 token of a text, such as 126")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: give a share of at least 0 and below 1")
        if not 0 < self.head_strength < math.inf:
            raise ValueError(f"head_strength is {self.head_strength}: give a number above 0, such as 0.05")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}: give a number of at least 0, such as 0.05")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}: wait for at least 1 epoch, or None")
        seeded(self.seed)

    def described(self) -> dict:
        """All settings by name, for a record; of the last four only those that are not at their default."""
        defaults = {f.name: f.default for f in fields(self)[-4:]}
        return {name: value for name, value in asdict(self).items() if defaults.get(name, ...) != value}

    @property
    def padding(self) -> Padding:
        longest = self.max_tokens + 2  # two special tokens
        return Padding(longest, fill_to=longest if self.pad_to_most else 0)


def nearest(by_number: Mapping[int, Setting], number: int) -> Setting:
    """What suits the nearest number, by ratio.

    >>> nearest({100: "ten epochs", 1000: "three"}, 300)
    'ten epochs'
    """
    return by_number[min(by_number, key=lambda known: abs(math.log(known / number)))]


@dataclass(frozen=True)
class Epoch:
    """What one epoch did. losses: of each of its steps, before the update, in nats a text; loss: their mean over texts.
    held_out, accuracy: on the held-out texts after it, where there are any; is_best: whether held_out is the lowest so
    far. tokens, padding: read in it, and how many of them were padding."""

    number: int
    losses: tuple[float, ...]
    loss: float
    tokens: int
    padding: int
    held_out: float | None = None
    accuracy: float | None = None
    is_best: bool = False


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
    classifier: Classifier,
    texts: Sequence[str],
    labels: Sequence[int],
    tokenizer: Tokenizer,
    how: FineTuning,
    *,
    held_out: tuple[Sequence[str], Sequence[int]] | None = None,
) -> list[float]:
    """All of `epochs`: the mean loss of every epoch, in nats a text."""
    return [epoch.loss for epoch in epochs(classifier, texts, labels, tokenizer, how, held_out=held_out)]


def epochs(
    classifier: Classifier,
    texts: Sequence[str],
    labels: Sequence[int],
    tokenizer: Tokenizer,
    how: FineTuning,
    *,
    held_out: tuple[Sequence[str], Sequence[int]] | None = None,
) -> Iterator[Epoch]:
    """Train on labelled texts, the first max_tokens tokens of each, and yield a record after each epoch. Between two
    records, and behind the last, the classifier is ready for evaluation, its dropout and torch's global generator as
    they were.

    held_out: texts and labels to measure after each epoch; behind the last one the classifier is what it was after the
    epoch with the lowest loss there, and with how.patience it stops early.
    Raises ValueError unless there is one label for each text, at least one text, and no label but 0 to C - 1;
    FloatingPointError where the loss is not finite. Nothing is trained before the first record is asked for.
    """
    _check_labelled(texts, labels, classifier)
    if held_out is not None:
        _check_labelled(*held_out, classifier)
    if how.head_first:
        features_NE = frozen_features(classifier, texts, tokenizer, max_tokens=how.max_tokens)
        fit_head(classifier, features_NE, labels, strength=how.head_strength)
    encoded = tokenizer.encode_all(texts)
    examples = [{"input_ids": ids, "label": int(label)} for ids, label in zip(encoded, labels, strict=True)]
    collate, order = ClassificationCollator(tokenizer.vocabulary, how.padding), seeded(how.seed)
    total = how.epochs * math.ceil(len(texts) / how.batch_size)
    rates = iter(map(Schedule("linear", how.rate, max(1, total), warmup=total // 10), range(total)))
    optimizer = make_optimizer(classifier, weight_decay=how.weight_decay, betas=(0.9, 0.999))
    randomness: list[torch.Tensor] = []
    best = BestWeights(classifier, how.patience)
    for number in range(how.epochs):
        batches = [collate([examples[n] for n in numbers]) for numbers in _batches(encoded, how, order)]
        with _training(classifier, how.dropout), _drawing_from(randomness, how.seed):
            losses = [_update(classifier, batch, optimizer, next(rates)) for batch in batches]
        sizes = [len(batch["labels"]) for batch in batches]
        measured = {} if held_out is None else _measured(classifier, *held_out, tokenizer, how.max_tokens)
        if measured:
            best.update(measured["held_out"])
            measured["is_best"] = best.is_best
        read = sum(batch["input_ids"].numel() for batch in batches)
        yield Epoch(
            number=number + 1,
            losses=tuple(losses),
            loss=sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / len(texts),
            tokens=read,
            padding=read - sum(int(batch["attention_mask"].sum()) for batch in batches),
            **measured,
        )
        if best.is_over:
            break
    if held_out is not None and how.epochs:
        best.restore()
    classifier.eval()  # also without an epoch


@torch.no_grad()
def predictions(
    classifier: Classifier,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_tokens: int = COMPARISON_TOKENS,
    batch_size: int = 64,
) -> np.ndarray:
    """float32 [N, C]: the probability of each class, for the first max_tokens tokens of each text.

    Raises ValueError for no texts.
    """
    features_NE = frozen_features(classifier, texts, tokenizer, max_tokens=max_tokens, batch_size=batch_size)
    logits_NC = classifier.head(torch.from_numpy(features_NE).to(classifier.head.weight))
    return logits_NC.float().softmax(-1).cpu().numpy()


def _batches(encoded: list[list[int]], how: FineTuning, order: torch.Generator) -> list[list[int]]:
    if how.length_grouped:
        return list(length_grouped([len(ids) for ids in encoded], how.batch_size, generator=order))
    return [rows.tolist() for rows in torch.randperm(len(encoded), generator=order).split(how.batch_size)]


def _update(classifier: Classifier, batch: Collated, optimizer: Optimizer, rate: float) -> float:
    device = classifier.head.weight.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with autocast(device):
        logits_BC = classifier(batch["input_ids"], batch["attention_mask"].bool())
    loss = F.cross_entropy(logits_BC.float(), batch["labels"])
    if not loss.isfinite():
        raise FloatingPointError(f"the loss is {loss.item()}: lower the rate, now at {rate:.3g}")
    loss.backward()
    nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _measured(
    classifier: Classifier, texts: Sequence[str], labels: Sequence[int], tokenizer: Tokenizer, max_tokens: int
) -> dict[str, float]:
    given_NC = predictions(classifier, texts, tokenizer, max_tokens=max_tokens).astype(np.float64)
    of_label_N = given_NC[np.arange(len(labels)), list(labels)]
    return {
        "held_out": float(-np.log(np.maximum(of_label_N, 1e-30)).mean()),
        "accuracy": float((given_NC.argmax(1) == np.array(labels)).mean()),
    }


def _check_labelled(texts: Sequence[str], labels: Sequence[int], classifier: Classifier) -> None:
    if len(texts) != len(labels) or not texts:
        raise ValueError(f"{len(texts)} texts and {len(labels)} labels: give one label for each text, and at least one")
    classes = range(classifier.head.out_features)
    if outside := [label for label in labels if label not in classes]:
        raise ValueError(f"label {outside[0]} is no class: this classifier tells 0 to {classes[-1]} apart")


@contextlib.contextmanager
def _drawing_from(state: list[torch.Tensor], seed: int) -> Iterator[None]:
    """Dropout draws from torch's global generators: inside the block they go on where this run's last block left them,
    or begin with the seed; behind it they are as they were."""
    on_cuda = torch.cuda.is_available()
    with torch.random.fork_rng():
        if state:
            torch.set_rng_state(state[0])
            if on_cuda:
                torch.cuda.set_rng_state_all(state[1:])
        else:
            torch.manual_seed(seed)
        yield
        state[:] = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if on_cuda else [])]


@contextlib.contextmanager
def _training(classifier: Classifier, dropout: float) -> Iterator[None]:
    """In training mode with this dropout inside the block, ready for evaluation and with its own behind it."""
    layers = [layer for layer in classifier.modules() if isinstance(layer, nn.Dropout)]
    before = {layer: layer.p for layer in layers if layer is not classifier.head_dropout}
    for layer in before:
        layer.p = dropout
    classifier.train()
    try:
        yield
    finally:
        for layer, share in before.items():
            layer.p = share
        classifier.eval()
