"""Ids that are kept are those that would be computed, and nothing goes wrong where they cannot be."""

import os

import numpy as np
import pytest
import torch

from course_lib import data, token_cache
from course_lib.data import course_tokenizer, pack, packed_rows, reviews_of
from course_lib.token_cache import kept_ids

TEXTS = ["ab", "", "a film"]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Call `kept_ids` with a folder of its own: (ids as lists, how many texts were encoded for them)."""
    monkeypatch.setattr(token_cache, "LARGE", 1)
    counts = []

    def encode(texts):
        counts.append(len(texts))
        return [[ord(letter) for letter in text] for text in texts]

    def call(texts=TEXTS, fingerprint="letters", folder=tmp_path / "tokens"):
        before = sum(counts)
        found = kept_ids(texts, fingerprint, encode, folder=folder)
        return [list(ids) for ids in found], sum(counts) - before

    return call


def files(tmp_path):
    return sorted((tmp_path / "tokens").glob("*"))


def test_what_is_kept_is_what_was_computed_and_is_computed_once(kept):
    computed, encoded = kept()
    assert encoded == len(TEXTS) and computed == [[97, 98], [], [97, 32, 102, 105, 108, 109]]
    assert kept() == (computed, 0)


def test_another_tokenizer_and_texts_that_only_look_alike_joined_are_computed_anew(kept):
    kept()
    assert kept(fingerprint="bytes")[1] == 3
    assert kept(["a", "ba film", ""]) == ([[97], [98, 97, 32, 102, 105, 108, 109], []], 3)
    assert kept(TEXTS[:2])[1] == 2
    assert kept(["\ud800"])[1] == 1  # no text of UTF-8, but a str


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_file_is_computed_and_written_anew(kept, tmp_path, damage):
    computed, _ = kept()
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-7] if damage is None else damage)
    assert kept() == (computed, 3)
    assert kept() == (computed, 0)


def test_where_nothing_can_be_written_ids_are_computed(kept, tmp_path):
    (tmp_path / "file").touch()
    assert kept(folder=tmp_path / "file" / "tokens") == kept(folder=tmp_path / "file" / "tokens") == (kept()[0], 3)


def test_few_files_are_kept_and_the_oldest_goes_first(kept, tmp_path):
    for number in range(token_cache.KEPT):
        kept(fingerprint=f"{number}")
        for file in files(tmp_path):
            os.utime(file, (file.stat().st_mtime - 10,) * 2)
    kept(fingerprint="one more")
    assert len(files(tmp_path)) == token_cache.KEPT
    assert [kept(fingerprint=f"{number}")[1] for number in (1, 2, 3, 0)] == [0, 0, 0, 3]


def test_small_corpora_and_installations_without_the_repository_keep_nothing(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "LARGE", 100)
    assert kept()[1] == kept()[1] == 3
    monkeypatch.setattr(token_cache, "LARGE", 1)
    monkeypatch.setattr(token_cache, "FOLDER", None)
    assert kept(folder=None)[1] == kept(folder=None)[1] == 3
    assert not (tmp_path / "tokens").exists()
    monkeypatch.setattr(token_cache, "FOLDER", tmp_path / "tokens")  # the control
    assert (kept(folder=None)[1], kept(folder=None)[1]) == (3, 0)
    assert (tmp_path / "tokens").is_dir()


def test_rows_are_the_same_whether_ids_were_computed_or_kept(tmp_path, monkeypatch):
    texts = [review.text for review in reviews_of("dev", "rotten_tomatoes")[:50]]
    computed = packed_rows(texts, 16)
    monkeypatch.setattr(token_cache, "LARGE", 1)
    monkeypatch.setattr(token_cache, "FOLDER", tmp_path)
    first, second = packed_rows(texts, 16), packed_rows(texts, 16)
    assert len(list(tmp_path.iterdir())) == 1
    for rows in (first, second):
        assert torch.equal(rows.ids_NT, computed.ids_NT)
        assert torch.equal(rows.document_ids_NT, computed.document_ids_NT)
    assert isinstance(data.token_ids(texts, course_tokenizer())[0], np.ndarray)  # read, not computed


def test_packing_takes_lists_and_arrays_alike():
    vocabulary = course_tokenizer().vocabulary
    documents = [[300, 301, 302], [], [303]]
    lists = pack(documents, 3, vocabulary=vocabulary)
    arrays = pack([np.array(ids, np.int32) for ids in documents], 3, vocabulary=vocabulary)
    assert torch.equal(lists.ids_NT, arrays.ids_NT) and lists.ids_NT.dtype == torch.int64
