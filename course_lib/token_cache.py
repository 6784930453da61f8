"""Token ids of a large corpus, kept in the course's own `work/tokens`: cutting the reviews into tokens takes seconds,
reading the ids back a fraction of one. A file's name follows from tokenizer and texts, so none is ever out of date; who
deletes them loses nothing.
"""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from course_lib import WORK
from course_lib.files import write_atomically

FOLDER = WORK and WORK / "tokens"
LARGE = 5_000_000  # characters; what is smaller is read as quickly as looked up
KEPT = 4  # files; the oldest goes first


def kept_ids(
    texts: Sequence[str],
    fingerprint: str,
    encode: Callable[[Sequence[str]], list[list[int]]],
    *,
    folder: Path | None = None,
) -> list[Sequence[int]]:
    """The ids of each text, as `encode` gives them: computed once, then read. fingerprint: of the tokenizer that
    `encode` uses. folder: where they are kept; by default in the course's own, and nowhere if there is none, as after
    an installation without the repository.

    Where nothing can be written or read, they are computed: a cache is no reason to fail.

    >>> kept_ids(["ab", "a"], "letters", lambda texts: [[ord(letter) for letter in text] for text in texts])
    [[97, 98], [97]]
    """
    folder = folder or FOLDER
    if folder is None or sum(map(len, texts)) < LARGE:
        return encode(texts)
    path = folder / f"{_name(texts, fingerprint)}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        kept = load_file(path)
        return np.split(kept["ids"], kept["ends"][:-1])
    found = encode(texts)
    ids = np.fromiter((i for one in found for i in one), np.int32)
    with contextlib.suppress(OSError):
        write_atomically(path, save({"ids": ids, "ends": np.cumsum([len(one) for one in found])}))
        for old in sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink()
    return found


def _name(texts: Sequence[str], fingerprint: str) -> str:
    """Of the corpus and its tokenizer; lengths count too, or ["ab", "c"] and ["a", "bc"] would share a name."""
    told = hashlib.sha256(fingerprint.encode())
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        told.update(len(content).to_bytes(8, "big") + content)
    return told.hexdigest()[:32]
