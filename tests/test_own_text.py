"""A text of one's own: its sides, what is refused, and the paragraphs that a task is made of."""

import csv

import pytest

from course_lib.data import Review, course_tokenizer, reviews_of
from course_lib.runs.own_text import OwnText, class_of, own_text, paragraphs


@pytest.fixture(scope="module")
def texts():
    return (
        reviews_of("train", "rotten_tomatoes")[:2000] + reviews_of("dev", "rotten_tomatoes") + reviews_of("test")[:300]
    )


def test_every_text_is_on_one_side(texts):
    own = OwnText((*texts, *texts[:50]))
    parts = [{t.identity for t in own.part(name)} for name in ("read", "dev", "test")]
    assert all(parts) and sum(map(len, parts)) == len(parts[0] | parts[1] | parts[2]) == len(
        {t.identity for t in texts}
    )


def test_the_order_of_the_texts_changes_nothing(texts):
    one, other = OwnText(tuple(texts)), OwnText(tuple(texts[::-1]))
    assert one.words("read") == other.words("read") and one.fingerprint == other.fingerprint
    assert OwnText(tuple(texts[1:])).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("take", "words"),
    [
        (lambda texts: texts[:40], "tokens to read"),
        (lambda texts: [t for t in texts if t.split != "dev"], "has 0 tokens to dev"),
        (lambda texts: [t for t in texts if t.split != "test"], "has 0 tokens to test"),
    ],
)
def test_a_text_too_small_is_refused_and_says_what_would_do(texts, take, words):
    with pytest.raises(ValueError, match=words) as refused:
        OwnText(tuple(take(texts)), "my text")
    assert str(refused.value).startswith("my text") and "give at least" in str(refused.value)


def test_a_part_that_is_none_is_refused(texts):
    with pytest.raises(ValueError, match="part 'train' is unknown"):
        OwnText(tuple(texts)).part("train")


def test_own_files_become_texts_with_their_classes(tmp_path, texts):
    for name, part in (("one", texts[::2]), ("two", texts[1::2])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(t.text for t in part), "utf-8")
    assert own_text(tmp_path).classes == ["one.txt", "two.txt"]
    assert own_text(tmp_path / "one.txt").classes == ["one.txt"] if len(texts) > 4000 else True
    rows = "".join(f'{t.label},"{t.text.replace(chr(34), "")}"\n' for t in texts)
    (tmp_path / "table.csv").write_text("label,text\n" + rows, "utf-8")
    assert own_text(tmp_path / "table.csv").classes == ["0", "1"]


def test_labels_may_be_names(tmp_path, texts):
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["label", "text"], *([["cat", "dog"][t.label], t.text] for t in texts)])
    named, of = own_text(tmp_path / "table.csv"), {text.identity: text.label for text in texts}
    assert named.classes == ["cat", "dog"]
    assert all(t.label == ["cat", "dog"][of[t.identity]] for t in named.part("dev"))


def test_each_part_is_encoded_once_and_as_it_stands(texts, monkeypatch):
    own = OwnText(tuple(texts))
    assert own.ids("dev") == course_tokenizer().encode_all(own.words("dev")) != own.ids("test")
    monkeypatch.setattr("course_lib.runs.own_text.course_tokenizer", None)
    assert own.n_tokens("read") == sum(map(len, own.ids("read")))


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        own_text(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no \.txt file \(it is empty\)"):
        own_text(tmp_path)
    (tmp_path / "a.md").write_text("a text " * 50)
    with pytest.raises(ValueError, match=r"holds no \.txt file \(it has a\.md\): rename"):
        own_text(tmp_path)
    (tmp_path / "b.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"b\.txt holds no text: give"):
        own_text(tmp_path)


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_does_not_mean_the_folder_one_stands_in(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the path is empty: name a folder or a file, or give None"):
        own_text(path)


def test_one_text_alone_is_told_what_divides_texts(tmp_path, texts):
    lines = [t.text for t in texts[:60]]
    (tmp_path / "one.txt").write_text("\n".join(lines), "utf-8")
    with pytest.raises(ValueError, match="one text, and a text stands on one side: put an empty line"):
        own_text(tmp_path / "one.txt")
    (tmp_path / "one.txt").write_text("\n\n".join(lines), "utf-8")
    with pytest.raises(ValueError, match=r"give at least [0-9,]+\. Some"):
        own_text(tmp_path / "one.txt")


def test_paragraphs_are_as_many_of_each_class_and_no_longer_than_asked(texts):
    found = paragraphs(texts, ["0", "1"], 30, tokens=(10, 12))
    assert [t.label for t in found] == [0] * 30 + [1] * 30
    tokenizer = course_tokenizer()
    assert all(10 <= len(tokenizer.encode(t.text)) <= 13 for t in found)


def test_a_class_with_less_leaves_less_of_all_where_that_will_do(texts):
    few = [t for t in texts if t.label == 0] + [t for t in texts if t.label == 1][:25]
    whole = paragraphs(texts, ["0", "1"], 30, tokens=(1, 12))
    found = paragraphs(few, ["0", "1"], 30, fewest=20, tokens=(1, 12))
    assert found == whole[:25] + whole[30:55]
    for fewest in (None, 26):
        with pytest.raises(ValueError, match=f"{fewest or 30} texts of each class are wanted.*0 30, 1 25: ask"):
            paragraphs(few, ["0", "1"], 30, fewest=fewest, tokens=(1, 12))


STARTS = ("a film about love is what this is", "a FILM about love is what that is", "another one, of {name}")
ALIKE = [
    Review(f"{start.format(name=name)}, and goes on as {name} {n}", None, name)
    for name in "ab"
    for n, start in enumerate(STARTS)
]


def beginnings(count, **how):
    return [t.text for t in paragraphs(ALIKE, ["a", "b"], count, tokens=(3, 4), **how)]


def test_texts_that_begin_alike_are_one_paragraph():
    assert len({t.identity for t in ALIKE}) == 6  # as whole texts all of them differ
    assert beginnings(1) == ["a film about love", "another one, of"]
    with pytest.raises(ValueError, match=r"a 2, b 0: ask for fewer"):
        beginnings(2)


def test_what_is_rewritten_is_compared_as_it_then_stands():
    assert beginnings(1, rewrite=lambda text: text.replace("film", "play"))[0] == "a play about love"
    with pytest.raises(ValueError, match=r"a 1, b 0: ask for fewer"):
        beginnings(1, rewrite=lambda text: "the same words for all")


def test_no_half_of_a_word_that_was_taken_out_is_left_by_the_cut():
    texts = [Review(f"{name} the beautiful film", None, name) for name in "ab"]
    for most in range(1, 5):
        found = paragraphs(texts, ["a", "b"], 1, tokens=(1, most), rewrite=lambda text: text.replace("beautiful", "it"))
        assert all(set(t.text.split()) <= {"the", "a", "b", "it", "film"} for t in found)


def test_a_paragraph_of_the_other_side_is_left_out():
    learned = paragraphs(ALIKE, ["a", "b"], 1, tokens=(3, 4))
    with pytest.raises(ValueError, match=r"a 0, b 0: ask for fewer"):
        beginnings(1, apart_from=learned)
    assert beginnings(1, apart_from=[Review("of other words", None, "a")]) == [t.text for t in learned]


def test_labels_come_before_files():
    assert class_of(Review("a", 1, "x.csv")) == "1" and class_of(Review("a", None, "x.txt")) == "x.txt"
