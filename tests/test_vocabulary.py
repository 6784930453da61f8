import pytest
import torch
from oracles import fits

from course_lib.runtime import seeded
from course_lib.vocabulary import N_SENTINELS, SENTINEL_TOKENS, SPECIAL_TOKENS, Vocabulary

TINY = Vocabulary(size=12, pad=0, unk=1, bos=2, eos=3, cls=4, sep=5, mask=11, sentinels=(7, 6))


def test_every_id_is_special_or_ordinary_and_none_is_both():
    special = set(TINY.special_ids)
    ordinary = set(TINY.ordinary_ids.tolist())
    assert special == {0, 1, 2, 3, 4, 5, 6, 7, 11}
    assert ordinary == {8, 9, 10}
    assert [i for i in range(12) if TINY.is_ordinary_V[i]] == sorted(ordinary)


def test_without_special_tokens_all_ids_are_ordinary():
    assert Vocabulary(3).ordinary_ids.tolist() == [0, 1, 2]
    assert Vocabulary(3).special_ids == ()


def draws_ordinary_uniformly(draw) -> bool:
    counts = torch.bincount(draw(30_000, seeded(1)), minlength=12).tolist()
    return sum(counts[8:11]) == 30_000 and fits(counts[8:11], [10_000] * 3)


def test_drawn_ids_are_ordinary_and_equally_likely():
    assert draws_ordinary_uniformly(TINY.draw_ordinary)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda count, generator: torch.randint(12, (count,), generator=generator),  # special ones too
        lambda count, generator: TINY.ordinary_ids[torch.randint(2, (count,), generator=generator)],  # never the last
        lambda count, generator: 8 + (torch.rand(count, generator=generator).square() * 3).long(),  # not uniform
    ],
)
def test_the_check_above_refuses(mutant):
    assert not draws_ordinary_uniformly(mutant)


def test_a_required_token_is_found_even_when_its_id_is_0():
    assert Vocabulary(5, pad=0).require("pad", "padding") == 0


def test_the_names_are_those_of_the_house():
    assert SPECIAL_TOKENS == ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[CLS]", "[SEP]", "[MASK]")
    assert (SENTINEL_TOKENS[0], SENTINEL_TOKENS[-1], len(SENTINEL_TOKENS)) == ("<extra_id_0>", "<extra_id_99>", 100)
    assert N_SENTINELS == 100


@pytest.mark.parametrize("ids", [[0], [11], [[0, 11], [3, 3]]])
def test_ids_within_the_vocabulary_pass(ids):
    TINY.check_ids(torch.tensor(ids))


@pytest.mark.parametrize(("ids", "wrong"), [([-1], -1), ([12], 12), ([3, 400, 5], 400), ([-100, 99], -100)])
def test_the_id_outside_is_named(ids, wrong):
    with pytest.raises(ValueError, match=rf"token id {wrong} lies outside the vocabulary of 12"):
        TINY.check_ids(torch.tensor(ids))
