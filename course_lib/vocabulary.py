"""What an objective must know of a vocabulary: the special tokens by name and id, and which ids are ordinary.

Axes: V the vocabulary.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

IGNORE_INDEX = -100  # labels with this value carry no loss: what torch's cross-entropy skips

DOCUMENT = ("bos", "eos")  # what stands around a document, by name

# In the course's tokenizer: ids 0 to 6, then 7 to 106.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[CLS]", "[SEP]", "[MASK]")
N_SENTINELS = 100
SENTINEL_TOKENS = tuple(f"<extra_id_{i}>" for i in range(N_SENTINELS))


def look_up(table_V: Tensor, ids: Tensor) -> Tensor:
    """`table_V[ids]`, several times as fast."""
    return table_V.index_select(0, ids.reshape(-1)).view(ids.shape)


@dataclass(frozen=True)
class Vocabulary:
    """Special ids by name, None where a tokenizer has no such token; everything that is not special is ordinary.

    continues_word_V: bool, True where a token goes on with the word of the token before it (for whole-word masking).
    Raises ValueError if an id lies outside the vocabulary or stands for two tokens, or if no id is left for ordinary
    tokens.

    >>> tiny = Vocabulary(size=10, pad=0, mask=1)
    >>> tiny.is_ordinary_V.tolist()
    [False, False, True, True, True, True, True, True, True, True]
    >>> tiny.require("cls", "a pooled classifier")
    Traceback (most recent call last):
    ...
    ValueError: a pooled classifier needs a [CLS] token and this vocabulary has none: use the course's tokenizer, \
or pass Vocabulary(cls=...)
    """

    size: int
    pad: int | None = None
    unk: int | None = None
    bos: int | None = None
    eos: int | None = None
    cls: int | None = None
    sep: int | None = None
    mask: int | None = None
    sentinels: tuple[int, ...] = ()
    continues_word_V: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        outside = [i for i in self.special_ids if not 0 <= i < self.size]
        if outside:
            raise ValueError(f"special id {outside[0]} lies outside a vocabulary of {self.size}: raise Vocabulary.size")
        if len(set(self.special_ids)) < len(self.special_ids):
            raise ValueError(f"two special tokens share an id in {self.special_ids}: give each its own")
        if len(self.special_ids) >= self.size:
            raise ValueError(f"all {self.size} ids are special: raise Vocabulary.size to make room for ordinary tokens")
        table = self.continues_word_V
        if table is not None and (table.dtype != torch.bool or table.shape != (self.size,)):
            raise ValueError(
                f"continues_word_V is {table.dtype} of shape {tuple(table.shape)}: give one bool per id, ({self.size},)"
            )

    @property
    def special_ids(self) -> tuple[int, ...]:
        named = (self.pad, self.unk, self.bos, self.eos, self.cls, self.sep, self.mask)
        return tuple(i for i in named if i is not None) + self.sentinels

    @property
    def frame(self) -> tuple[str, str]:
        """What stands around a text: [BOS] and [EOS], as in all of the course's own training, or [CLS] and [SEP] where
        a vocabulary has only those, as BERT's."""
        return DOCUMENT if self.bos is not None and self.eos is not None else ("cls", "sep")

    @cached_property
    def is_ordinary_V(self) -> Tensor:  # a table to look up beats a search for every token
        return torch.ones(self.size, dtype=torch.bool).index_fill_(0, torch.tensor(self.special_ids).long(), False)

    @cached_property
    def is_sentinel_V(self) -> Tensor:
        return torch.zeros(self.size, dtype=torch.bool).index_fill_(0, torch.tensor(self.sentinels).long(), True)

    @cached_property
    def ordinary_ids(self) -> Tensor:
        return self.is_ordinary_V.nonzero().squeeze(1)

    def draw_ordinary(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` ordinary ids, uniformly."""
        return self.ordinary_ids[torch.randint(len(self.ordinary_ids), (count,), generator=generator)]

    def require(self, name: str, purpose: str) -> int:
        """The id of the special token `name`; ValueError says what needs it where there is none."""
        if (special_id := getattr(self, name)) is None:
            raise ValueError(
                f"{purpose} needs a [{name.upper()}] token and this vocabulary has none: "
                f"use the course's tokenizer, or pass Vocabulary({name}=...)"
            )
        return special_id

    def frame_ids(self, purpose: str, frame: tuple[str, str] | None = None) -> tuple[int, int]:
        """The ids of the two special tokens around a text: those that `frame` names, else the vocabulary's own.
        ValueError says what needs them where one is missing.

        >>> Vocabulary(size=10, bos=2, eos=3, cls=4, sep=5).frame_ids("a text")
        (2, 3)
        """
        first, last = frame or self.frame
        return self.require(first, purpose), self.require(last, purpose)

    def check_ids(self, input_ids: Tensor) -> None:
        """TypeError unless `input_ids` is a tensor, ValueError unless it holds int64 ids of this vocabulary, at least
        one."""
        if not isinstance(input_ids, Tensor):
            raise TypeError(f"input_ids is a {type(input_ids).__name__}: give a tensor, torch.tensor(ids)")
        if input_ids.dtype != torch.int64:
            raise ValueError(f"input_ids have dtype {input_ids.dtype}: token ids are int64, convert them with .long()")
        if input_ids.numel() == 0:
            raise ValueError(f"input_ids of shape {tuple(input_ids.shape)} hold no token: give at least one")
        low, high = (bound.item() for bound in torch.aminmax(input_ids))
        if low < 0 or high >= self.size:
            wrong = low if low < 0 else high
            raise ValueError(f"token id {wrong} lies outside the vocabulary of {self.size}: is it another tokenizer's?")
