"""Is a language model any good: what betting blindly, counting words or pairs of them, and a general compressor reach
on the same text, bits per byte, and whether what a model writes holds up beside what people wrote.

Axes: N a target, V the vocabulary, W a window of the text, T position in it.
"""

import bz2
import itertools
import lzma
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from course_lib.model import Decoder, evaluating
from course_lib.runtime import autocast
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary


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


@dataclass(frozen=True)
class Bigram:
    """A model of word pairs with interpolated Kneser-Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1999,
    section 2.7): each pair's count less a discount, and what that frees goes to tokens by how many others they follow.

    >>> model = Bigram.fit(torch.tensor([1, 2, 1, 2, 1, 3]), Vocabulary(4))
    >>> after_1 = model.nats(torch.tensor([1, 0, 1, 1, 1, 2, 1, 3]))[::2]
    >>> round(float(np.exp(-after_1).sum()), 6)
    1.0
    """

    pairs: np.ndarray  # first * V + second of every pair seen, sorted
    counts: np.ndarray  # of each pair
    starts_V: np.ndarray  # how often each token begins a pair
    kinds_V: np.ndarray  # how many kinds of pairs it begins
    back_off_V: np.ndarray  # probability of a token by how many others it follows
    discount: float

    @classmethod
    def fit(cls, ids_N: Tensor, vocabulary: Vocabulary) -> "Bigram":
        """Count the pairs of one stream of tokens.

        Raises ValueError for fewer than two tokens, or ids outside the vocabulary.
        """
        _check_stream(ids_N)
        vocabulary.check_ids(ids_N)
        size, ids = vocabulary.size, ids_N.numpy()
        pairs, counts = np.unique(ids[:-1] * size + ids[1:], return_counts=True)
        starts_V = np.bincount(ids[:-1], minlength=size)
        kinds_V = np.bincount(pairs // size, minlength=size)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        follows_V = np.bincount(pairs % size, minlength=size) + 1.0  # counted from 1: nothing is impossible
        discount = once / (once + 2 * twice) if once and twice else 0.5
        return cls(pairs, counts, starts_V, kinds_V, follows_V / follows_V.sum(), discount)

    def nats(self, ids_N: Tensor) -> np.ndarray:
        """float64 [N - 1]: minus the logarithm of the probability of every token after the first.

        Raises ValueError for fewer than two tokens, or ids outside the vocabulary.
        """
        _check_stream(ids_N)
        Vocabulary(len(self.starts_V)).check_ids(ids_N)
        ids, size = ids_N.numpy(), len(self.starts_V)
        first, second = ids[:-1], ids[1:]
        place = np.minimum(np.searchsorted(self.pairs, first * size + second), len(self.pairs) - 1)
        count = np.where(self.pairs[place] == first * size + second, self.counts[place], 0)
        starts = np.maximum(self.starts_V[first], 1)
        freed = np.where(self.starts_V[first] > 0, self.discount * self.kinds_V[first] / starts, 1.0)
        return -np.log(np.maximum(count - self.discount, 0) / starts + freed * self.back_off_V[second])


@torch.no_grad()
def stream_nats(
    model: Decoder, ids_N: Tensor, *, length: int | None = None, batch_size: int = 16, dtype: torch.dtype | None = None
) -> np.ndarray:
    """float64 [N - 1]: minus the logarithm of the probability that a model gives to every token after the first, each
    predicted once, in windows of `length` tokens (default: the longest that the model reads) that overlap by one.

    Raises TypeError for a model that is no Decoder: others see the token that they are asked for. ValueError for fewer
    than two tokens, a length that the model cannot read, or a batch of none.
    """
    if not isinstance(model, Decoder):
        raise TypeError(f"model is a {type(model).__name__}: only a Decoder predicts each token from those before it")
    _check_stream(ids_N)
    length = model.config.max_len if length is None else length
    if not 2 <= length <= model.config.max_len or batch_size < 1:
        raise ValueError(
            f"{batch_size} windows of {length} tokens at a time: give at least 1 of at least 2, and none longer than "
            f"max_len {model.config.max_len}"
        )
    device = next(model.parameters()).device
    windows = [ids_N[start : start + length] for start in range(0, len(ids_N) - 1, length - 1)]
    shorter = [windows.pop()[None]] if len(windows[-1]) < length else []
    whole = [torch.stack(windows[n : n + batch_size]) for n in range(0, len(windows), batch_size)]
    found = []
    with evaluating(model):
        for ids_WT in whole + shorter:
            ids_WT = ids_WT.to(device)
            with autocast(device, dtype):
                logits_WTV = model(ids_WT).logits[:, :-1]
            log_prob_WTV = logits_WTV.float().log_softmax(-1)
            found.append(-log_prob_WTV.gather(2, ids_WT[:, 1:, None]).flatten().double().cpu().numpy())
    return np.concatenate(found)


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Bits that a model spends on each byte of a text, from the nats it spends on all of it: what models with different
    tokenizers, and compressors, can be compared by.

    Raises ValueError for fewer than 1 byte.

    >>> round(bits_per_byte(8 * math.log(2), 4), 3)
    2.0
    """
    if n_bytes < 1:
        raise ValueError(f"n_bytes is {n_bytes}: give the size of the text in UTF-8")
    return nats / math.log(2) / n_bytes


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
    "bzip2": lambda text: bz2.compress(text, 9),
}


def compressed_bits_per_byte(name: str, train_text: str, test_text: str) -> float:
    """Bits per byte of `test_text` for a compressor that has read `train_text`: size of both together, less that of the
    first. Takes a minute for xz on the whole training text; bzip2 remembers no more than its last 900 kB.

    Raises ValueError for an unknown compressor, or an empty test text.

    >>> compressed_bits_per_byte("xz", "a good film. " * 50, "a good film. " * 50) < 1
    True
    """
    if name not in COMPRESSORS:
        raise ValueError(f"compressor {name!r} is unknown: choose one of {', '.join(COMPRESSORS)}")
    if not test_text:
        raise ValueError("test_text is empty: give the text to be measured")
    train, test = train_text.encode(), test_text.encode()
    grown = len(COMPRESSORS[name](train + test)) - len(COMPRESSORS[name](train))
    return 8 * grown / len(test)


def distinct_share(sequences: Iterable[Sequence[int]], n: int = 3) -> float:
    """The share of distinct n-grams among all of a set of texts (arXiv:1510.03055, section 5): low where a model
    repeats itself. It falls with the amount of text, so compare equal amounts.

    Raises ValueError where no text has n tokens, or n is below 1.

    >>> distinct_share([[1, 2, 1, 2, 1]], n=2)
    0.5
    """
    grams = _grams_of_all(sequences, n)
    return len(set(grams)) / len(grams)


def copied_share(sequences: Iterable[Sequence[int]], train_ids: Sequence[int], n: int = 12) -> float:
    """The share of the n-grams of a set of texts that stand in the training text word for word: what is copied.

    Raises ValueError where no text has n tokens, or n is below 1.

    >>> copied_share([[1, 2, 3]], [7, 1, 2], n=2)
    0.5
    """
    grams = _grams_of_all(sequences, n)
    wanted = set(grams)
    seen = {gram for gram in _grams(train_ids, n) if gram in wanted}
    return sum(gram in seen for gram in grams) / len(grams)


def _grams_of_all(sequences: Iterable[Sequence[int]], n: int) -> list[tuple[int, ...]]:
    if n < 1:
        raise ValueError(f"n is {n}: an n-gram has at least 1 token")
    grams = [gram for sequence in sequences for gram in _grams(sequence, n)]
    if not grams:
        raise ValueError(f"no text has {n} tokens: give longer ones")
    return grams


def _grams(sequence: Sequence[int] | Tensor, n: int) -> Iterable[tuple[int, ...]]:
    if isinstance(sequence, Tensor):  # its elements are tensors, none of which equals another as a key
        sequence = sequence.tolist()
    return zip(*(itertools.islice(sequence, k, None) for k in range(n)), strict=False)


def _check_stream(ids_N: Tensor) -> None:
    if ids_N.dim() != 1 or len(ids_N) < 2:
        raise ValueError(f"ids_N has shape {tuple(ids_N.shape)}: give one stream of at least 2 tokens")
