"""Byte-level BPE (arXiv:1508.07909; on bytes as in GPT-2), trained, saved and used through Hugging Face `tokenizers`.

Any Unicode text survives the way there and back, up to the tokenizer's own normalisation.
"""

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from course_lib.files import read_text, write_atomically
from course_lib.vocabulary import SENTINEL_TOKENS, SPECIAL_TOKENS, Vocabulary

SLICE = 1024  # texts encoded at a time: the backend's own results take a hundred times the memory of the ids

ROLES = {  # what each role is called in the vocabularies we meet: our own and BERT's share these names
    name.strip("[]").lower(): name for name in SPECIAL_TOKENS
}


@dataclass(frozen=True)
class Tokenizer:
    """A trained tokenizer. Special tokens written in a text are ordinary characters unless `special=True`.

    >>> tokenizer = train_tokenizer(["a good film", "a bad film"] * 5, vocab_size=400)
    >>> tokenizer.decode(tokenizer.encode("A good film"))
    'a good film'
    >>> [tokenizer.token(i) for i in tokenizer.encode("a [MASK] film", special=True)]
    ['a', '[MASK]', ' film']
    """

    backend: Backend

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special ids by role; None for a role that this tokenizer does not know."""
        find = self.backend.token_to_id
        return Vocabulary(
            size=self.backend.get_vocab_size(),
            **{role: find(name) for role, name in ROLES.items()},
            sentinels=tuple(i for name in SENTINEL_TOKENS if (i := find(name)) is not None),
            continues_word_V=self._continues_word_V(),
        )

    def normalize(self, text: str) -> str:
        """The text as this tokenizer sees it: what `decode(encode(text))` gives back."""
        return self.backend.normalizer.normalize_str(text) if self.backend.normalizer else text

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text, without any added. special: read "[MASK]" and its like as the tokens they name."""
        return self.encode_all([text], special=special)[0]

    def encode_all(self, texts: Iterable[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of many texts, in parallel.

        Raises TypeError for what is not text, or for one text where a list of them belongs.
        """
        texts = _list_of_texts(texts)
        self.backend.encode_special_tokens = not special
        slices = (texts[start : start + SLICE] for start in range(0, len(texts), SLICE))
        encode = self.backend.encode_batch_fast
        return [encoding.ids for part in slices for encoding in encode(part, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special tokens show by name.

        Raises ValueError for an id outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        outside = [i for i in ids if not 0 <= i < self.vocabulary.size]
        if outside:
            raise ValueError(f"token id {outside[0]} lies outside the vocabulary of {self.vocabulary.size}")
        return self.backend.decode(ids, skip_special_tokens=False)

    def token(self, token_id: int) -> str:
        """How one token reads: its text with the space before it; a part of a character shows as a replacement."""
        return self.decode([token_id])

    def save(self, path: Path | str) -> Path:
        """Write one JSON file that `load_tokenizer` and Hugging Face's libraries open."""
        return write_atomically(path, self.to_json())

    def to_json(self) -> str:
        """The whole tokenizer as Hugging Face's JSON."""
        return self.backend.to_str(pretty=True)

    def framed(self, *parts: str) -> "Tokenizer":
        """A copy that puts special tokens around a text wherever they are asked for, as `transformers` does by default;
        `encode` here adds none. parts: roles and, once, "text", in order.

        Raises ValueError for a role that this tokenizer does not know.

        >>> tokenizer = train_tokenizer(["a good film"] * 5, vocab_size=400).framed("cls", "text", "sep")
        >>> tokenizer.backend.encode("film").ids[0] == tokenizer.vocabulary.cls
        True
        """
        ids = {ROLES[role]: self.vocabulary.require(role, "a frame") for role in parts if role != "text"}
        copied = Backend.from_str(self.to_json())
        copied.post_processor = processors.TemplateProcessing(
            single=["$A" if role == "text" else ROLES[role] for role in parts], special_tokens=list(ids.items())
        )
        return Tokenizer(copied)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the JSON: what a checkpoint remembers of its tokenizer."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def _continues_word_V(self) -> torch.Tensor:
        pieces = [self.backend.id_to_token(i) or "" for i in range(self.backend.get_vocab_size())]
        if any(piece.startswith("##") for piece in pieces):  # WordPiece, as MiniLM's
            return torch.tensor([piece.startswith("##") for piece in pieces])
        return torch.tensor([_goes_on(piece) for piece in pieces])


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 8192, lowercase: bool = True) -> Tokenizer:
    """Train byte-level BPE on texts. Ids 0 to 6 are pad, unk, bos, eos, cls, sep, mask; then 100 sentinels, then the
    256 bytes, then merges.

    lowercase: fold case, which a model of a few million parameters needs. NFKC is always applied.
    Raises ValueError for a vocabulary too small for bytes and special tokens, or texts that are empty; TypeError for
    what is not text.
    """
    special = [  # a mask stands for a word together with the space before it
        AddedToken(name, special=True, normalized=False, lstrip=name == "[MASK]")
        for name in (*SPECIAL_TOKENS, *SENTINEL_TOKENS)
    ]
    least = len(special) + 256
    if vocab_size < least:
        raise ValueError(f"vocab_size is {vocab_size}: special tokens and bytes alone take {least}, give more")
    texts = [text for text in _list_of_texts(texts) if text.strip()]
    if not texts:
        raise ValueError("texts hold no text: give at least one that is not empty")
    backend = Backend(models.BPE(unk_token=None))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return Tokenizer(backend)


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Open a `tokenizer.json`, ours or another's. A length that it cuts or pads texts to is left out: that is for
    `course_lib.data` to do.

    Raises FileNotFoundError if it is not there, ValueError if it is no tokenizer.
    """
    text = read_text(path)
    try:
        backend = Backend.from_str(text)
    except Exception as error:  # noqa: BLE001 the backend raises bare Exception
        raise ValueError(f"{path} is no tokenizer.json ({error}): make one with train_tokenizer(...).save") from None
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend)


def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE writes a byte as one visible character: its own, else the next one from U+0100 on (as GPT-2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


BYTE_OF_CHAR = _byte_of_char()


def _goes_on(piece: str) -> bool:
    """Whether a piece of byte-level BPE goes on with a word: it begins with a letter, a digit or an accent, or within a
    character. Punctuation begins a word, and letters right behind it belong to that word."""
    if all(char in BYTE_OF_CHAR for char in piece):
        data = bytes(BYTE_OF_CHAR[char] for char in piece)
        if data and data[0] & 0xC0 == 0x80:  # UTF-8: the first byte of a character never looks like this
            return True
        piece = (data + b"\xa0\xa0\xa0").decode("utf-8", errors="replace")  # a character cut off shows its region
    return unicodedata.category(piece[:1] or " ")[0] in "LNM"


def _list_of_texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"texts is a single str ({texts!r:.40}): give a list of texts")
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a text is {type(text).__name__} ({text!r:.40}): give str")
        text.encode()  # half a surrogate pair is no Unicode text: UnicodeEncodeError says where it stands
    return texts
