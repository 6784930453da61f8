"""Laws that hold for any rows: lengths 1 to 512, any rate, padding, special tokens anywhere or nowhere else, one row
or several. Each is checked against tests/oracles.py, which goes token by token."""

from functools import cache

import oracles
import pytest
import torch
from few import few
from hypothesis import example, given
from hypothesis import strategies as st

from course_lib.objectives import (
    causal,
    infilled,
    masked,
    permuted,
    prefix_lm,
    restore_spans,
    span_corrupted,
)
from course_lib.runtime import seeded
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

N_SENTINELS = 520  # more than any row of 512 can need
SIZE = 3000
PAD, UNK, BOS, EOS, CLS, SEP, MASK = range(7)
GOES_ON_V = torch.rand(SIZE, generator=seeded(0)) < 0.4
VOCABULARY = Vocabulary(
    SIZE, PAD, UNK, BOS, EOS, CLS, SEP, MASK, sentinels=tuple(range(7, 7 + N_SENTINELS)), continues_word_V=GOES_ON_V
)
SPECIAL = set(VOCABULARY.special_ids)
SENTINELS = VOCABULARY.sentinels


def make_rows(batch: int, length: int, special: float, padded: bool, seed: int) -> torch.Tensor:
    """int64 [batch, length]: distinct ordinary ids, a share of special ones anywhere among them, padding behind."""
    generator = seeded(seed)
    rows = [VOCABULARY.ordinary_ids[torch.randperm(SIZE - len(SPECIAL), generator=generator)[:length]]] * batch
    ids_BT = torch.stack(rows).gather(1, torch.rand(batch, length, generator=generator).argsort(1))
    is_special_BT = torch.rand(batch, length, generator=generator) < special
    ids_BT[is_special_BT] = torch.randint(UNK, SEP + 1, (int(is_special_BT.sum()),), generator=generator)
    if padded:
        real_B = torch.randint(0, length + 1, (batch, 1), generator=generator)
        ids_BT[torch.arange(length) >= real_B] = PAD
    return ids_BT


rows = st.builds(
    make_rows,
    batch=st.integers(1, 4),
    length=st.integers(1, 24) | st.integers(1, 512) | st.sampled_from([2, 511, 512]),
    special=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    padded=st.booleans(),
    seed=st.integers(0, 2**20),
)
shares = st.sampled_from([0.0, 1.0, 0.15, 0.5]) | st.floats(0, 1)
mean_spans = st.sampled_from([1.0, 3.0, 1e12]) | st.floats(1, 20)
seeds = st.integers(0, 2**20)

SHORTEST, LONGEST = make_rows(1, 1, 0.0, False, 1), make_rows(2, 512, 0.05, True, 2)
ALL_SPECIAL, ALL_PADDING = make_rows(3, 40, 1.0, True, 3), torch.zeros(2, 5, dtype=torch.long)


def on_hard_rows(*more):
    """The same rows for every property, whatever hypothesis finds."""

    def decorate(test):
        for ids_BT in (SHORTEST, LONGEST, ALL_SPECIAL, ALL_PADDING):
            test = example(ids_BT, *more)(test)
        return test

    return decorate


def real(row: list[int]) -> list[int]:
    return [token for token in row if token != PAD]


def ordinary(row: list[int]) -> list[int]:
    return [token for token in row if token not in SPECIAL]


def target_of(labels: list[int]) -> list[int]:
    return [token for token in labels if token != IGNORE_INDEX]


def check_decoder(batch, targets: list[list[int]]):
    """The decoder reads [BOS] and then what it has predicted so far, and sees padding nowhere in its labels."""
    for row, target in enumerate(targets):
        assert target_of(batch.labels_BL[row].tolist()) == target
        assert batch.labels_BL[row, len(target) :].eq(IGNORE_INDEX).all()
        assert batch.decoder_input_ids_BS[row, : len(target)].tolist() == [BOS, *target][: len(target)]
    assert torch.equal(batch.may_attend_BQK[:, 0], batch.input_ids_BT != PAD)


# ---------------------------------------------------------------- causal, prefix


@cache
def causal_visibility(length: int) -> torch.Tensor:
    return torch.tensor(oracles.causal_visibility(length))


@given(rows)
@on_hard_rows()
def test_causal_predicts_the_next_real_token_of_each_real_token(ids_BT):
    batch = causal(ids_BT, VOCABULARY)
    length = ids_BT.shape[1]
    visible = causal_visibility(length)
    for row, labels, sees in zip(ids_BT, batch.labels_BL.tolist(), batch.may_attend_BQK, strict=True):
        assert labels == [
            int(row[t + 1]) if t + 1 < length and PAD not in row[t : t + 2] else IGNORE_INDEX for t in range(length)
        ]
        assert torch.equal(sees, visible & (row != PAD))


@pytest.mark.slow
@given(rows, st.integers(1, 9))
@on_hard_rows(3)
def test_documents_of_a_row_neither_see_nor_predict_each_other(ids_BT, n):
    document_ids_BT = (torch.arange(ids_BT.shape[1]) // n).expand_as(ids_BT)
    apart, together = causal(ids_BT, VOCABULARY, document_ids_BT=document_ids_BT), causal(ids_BT, VOCABULARY)
    for t in range(ids_BT.shape[1]):
        first, behind = t // n * n, (t // n + 1) * n
        assert not apart.may_attend_BQK[:, t, :first].any()
        assert torch.equal(apart.may_attend_BQK[:, t, first:], together.may_attend_BQK[:, t, first:])
        ends = t + 1 == behind
        assert torch.equal(
            apart.labels_BL[:, t], together.labels_BL[:, t].masked_fill(torch.tensor(ends), IGNORE_INDEX)
        )


@given(rows, seeds)
@on_hard_rows(1)
def test_a_prefix_is_read_whole_and_the_rest_predicted(ids_BT, seed):
    length = ids_BT.shape[1]
    visible = causal_visibility(length)
    prefix_length_B = torch.randint(0, length + 1, (len(ids_BT),), generator=seeded(seed))
    batch = prefix_lm(ids_BT, VOCABULARY, prefix_length_B=prefix_length_B)
    after = causal(ids_BT, VOCABULARY).labels_BL
    for b, prefix in enumerate(prefix_length_B.tolist()):
        of_all = torch.arange(length) < prefix
        assert torch.equal(batch.may_attend_BQK[b], (visible | of_all) & (ids_BT[b] != PAD))
        inside = max(prefix - 1, 0)  # the last token of the prefix predicts the first that follows
        assert batch.labels_BL[b].tolist() == [IGNORE_INDEX] * inside + after[b, inside:].tolist()


@given(rows, seeds)
@on_hard_rows(1)
def test_a_drawn_prefix_leaves_something_to_read_and_something_to_predict(ids_BT, seed):
    batch = prefix_lm(ids_BT, VOCABULARY, generator=seeded(seed))
    for row, labels in zip(ids_BT.tolist(), batch.labels_BL.tolist(), strict=True):
        n = len(real(row))
        if n >= 2:
            assert 1 <= len(target_of(labels)) <= n - 1
            assert target_of(labels) == real(row)[n - len(target_of(labels)) :]


# ---------------------------------------------------------------- masked


@given(rows, shares, seeds)
@on_hard_rows(1.0, 1)
@on_hard_rows(0.15, 2)
def test_masking_asks_about_ordinary_tokens_alone_and_changes_no_other(ids_BT, mask_prob, seed):
    batch = masked(ids_BT, VOCABULARY, mask_prob=mask_prob, generator=seeded(seed))
    for row, shown, labels in zip(ids_BT.tolist(), batch.input_ids_BT.tolist(), batch.labels_BL.tolist(), strict=True):
        for token, given_token, fate in zip(row, shown, oracles.roles(row, shown, labels, MASK), strict=True):
            assert fate == "untouched" or token not in SPECIAL
            assert fate != "swapped" or given_token not in SPECIAL
            if mask_prob in (0.0, 1.0):
                assert (fate == "untouched") == (mask_prob == 0.0 or token in SPECIAL)
    assert torch.equal(batch.may_attend_BQK[:, 0], ids_BT != PAD)


@given(rows, shares, seeds, st.booleans())
@on_hard_rows(0.5, 1, True)
def test_all_tokens_of_a_word_share_a_fate(ids_BT, mask_prob, seed, weighted):
    weight_V = torch.rand(SIZE, generator=seeded(seed, 1)) if weighted else None
    batch = masked(ids_BT, VOCABULARY, mask_prob=mask_prob, whole_words=True, weight_V=weight_V, generator=seeded(seed))
    for row, shown, labels in zip(ids_BT.tolist(), batch.input_ids_BT.tolist(), batch.labels_BL.tolist(), strict=True):
        fates = oracles.roles(row, shown, labels, MASK)
        for word in oracles.words(row, GOES_ON_V.tolist().__getitem__, SPECIAL):
            assert len({fates[position] for position in word}) == 1


# ---------------------------------------------------------------- permuted


@given(rows, shares, seeds)
@on_hard_rows(0.5, 1)
@on_hard_rows(1.0, 2)
def test_permutation_predicts_its_share_by_the_rule_of_xlnet(ids_BT, share, seed):
    batch = permuted(ids_BT, VOCABULARY, predict_share=share, generator=seeded(seed))
    assert torch.equal(batch.input_ids_BT, ids_BT)  # nothing hidden, nothing moved
    for row, labels, content, query in zip(
        ids_BT, batch.labels_BL, batch.may_attend_BQK, batch.may_query_BQK, strict=True
    ):
        is_target = labels != IGNORE_INDEX
        assert is_target.sum() == round(len(ordinary(row.tolist())) * share)
        assert torch.equal(labels[is_target], row[is_target])
        assert not SPECIAL & set(row[is_target].tolist())
        places = query[:, is_target].sum(1)  # of the n targets the first sees none, the last n - 1
        assert sorted(places[is_target].tolist()) == list(range(int(is_target.sum())))
        if len(row) <= 64:
            rule = oracles.permutation_visibility(places.tolist(), is_target.tolist())
            assert torch.equal(content, torch.tensor(rule[0]) & (row != PAD))
            assert torch.equal(query, torch.tensor(rule[1]) & (row != PAD))


# ---------------------------------------------------------------- spans


@given(rows, shares, mean_spans, seeds)
@on_hard_rows(0.5, 1.0, 1)
@on_hard_rows(1.0, 3.0, 2)
@on_hard_rows(0.0, 3.0, 3)
def test_span_corruption_has_the_papers_format_and_an_exact_inverse(ids_BT, density, mean_span, seed):
    batch = span_corrupted(ids_BT, VOCABULARY, noise_density=density, mean_span=mean_span, generator=seeded(seed))
    targets = []
    for row, shown, labels in zip(ids_BT.tolist(), batch.input_ids_BT.tolist(), batch.labels_BL.tolist(), strict=True):
        row, shown, target = real(row), real(shown), target_of(labels)
        assert oracles.restore(shown, target, SENTINELS) == row
        spans = oracles.spans_in(shown, target, SENTINELS)
        assert (shown, target) == oracles.corrupt_spans(row, spans, SENTINELS)  # unique sentinels, in order, one more
        removed = [token for start, stop in spans for token in row[start:stop]]
        assert all(start < stop for start, stop in spans)
        assert len(removed) == oracles.share_of(len(ordinary(row)), density)
        assert not SPECIAL & set(removed)
        targets.append(target)
    check_decoder(batch, targets)
    assert restore_spans(batch.input_ids_BT, batch.labels_BL, VOCABULARY) == [real(row) for row in ids_BT.tolist()]


@given(rows, shares, mean_spans, seeds)
def test_span_corruption_makes_as_many_spans_as_the_paper(ids_BT, density, mean_span, seed):
    """round(noise / mean_span), at least one, and no more than there are tokens to remove or to keep apart."""
    ids_BT = torch.where(ids_BT == PAD, PAD, ids_BT.clamp(min=7 + N_SENTINELS))  # special tokens cut spans: have none
    batch = span_corrupted(ids_BT, VOCABULARY, noise_density=density, mean_span=mean_span, generator=seeded(seed))
    for row, shown in zip(ids_BT.tolist(), batch.input_ids_BT.tolist(), strict=True):
        n, n_noise = len(real(row)), oracles.share_of(len(real(row)), density)
        wanted = min(max(round(n_noise / mean_span), 1), n_noise, max(n - n_noise, 1))
        assert len(set(SENTINELS) & set(shown)) == wanted


@given(rows, shares, mean_spans, seeds)
@on_hard_rows(0.5, 1.0, 1)
@on_hard_rows(1.0, 3.0, 2)
@on_hard_rows(0.0, 3.0, 3)
def test_infilling_removes_its_exact_share_behind_masks_and_predicts_the_whole_text(ids_BT, density, mean_span, seed):
    ids_BT = torch.where((ids_BT > PAD) & (ids_BT < 7), 7 + N_SENTINELS, ids_BT)  # one special, told apart by its place
    vocabulary = Vocabulary(SIZE, pad=PAD, bos=BOS, mask=MASK, sentinels=(7 + N_SENTINELS,))
    batch = infilled(ids_BT, vocabulary, noise_density=density, mean_span=mean_span, generator=seeded(seed))
    for row, shown in zip(ids_BT.tolist(), batch.input_ids_BT.tolist(), strict=True):
        row, shown = told_apart(real(row)), told_apart(real(shown))
        spans = oracles.infilled_spans(row, shown, MASK)
        assert shown == oracles.infill(row, spans, MASK)
        removed = [token for start, stop in spans for token in row[start:stop]]
        assert len(removed) == oracles.share_of(sum(token < SIZE for token in row), density)
        assert all(token < SIZE for token in removed)
        assert (density == 0.0 or not ordinary(row)) <= (shown == row)
    check_decoder(batch, [real(row) for row in ids_BT.tolist()])


def told_apart(row: list[int]) -> list[int]:
    """The special token of the test above as 3000, 3001, ...: infilling removes none, so the counts agree."""
    seen = 0
    out = []
    for token in row:
        if token == 7 + N_SENTINELS:
            token, seen = SIZE + seen, seen + 1
        out.append(token)
    return out


@pytest.mark.parametrize(
    ("shown", "complaint"),
    [
        ([1000, 1002, MASK], "without a mask"),  # lost
        ([MASK, 1001, 1000, MASK], "moved"),
        ([1000, MASK, 1000, 1003], "moved"),  # twice
    ],
)
def test_the_oracle_of_infilling_refuses(shown, complaint):
    with pytest.raises(AssertionError, match=complaint):
        oracles.infilled_spans([1000, 1001, 1002, 1003], shown, MASK)


# ---------------------------------------------------------------- of all objectives

DRAWING = {
    "prefix": prefix_lm,
    "masked": masked,
    "whole words": lambda ids, v, generator: masked(ids, v, whole_words=True, generator=generator),
    "permuted": permuted,
    "span": span_corrupted,
    "infilled": infilled,
}


def tensors(batch) -> list[torch.Tensor]:
    return [value for value in vars(batch).values() if value is not None]


def same(one, other) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.parametrize("corrupt", few(DRAWING.values(), masked), ids=DRAWING)
@given(ids_BT=rows, seed=seeds)
def test_the_same_generator_gives_the_same_batch_and_the_input_is_untouched(corrupt, ids_BT, seed):
    before = ids_BT.clone()
    one = corrupt(ids_BT, VOCABULARY, generator=seeded(seed))
    torch.manual_seed(seed)  # the global generator has no say
    assert same(one, corrupt(ids_BT, VOCABULARY, generator=seeded(seed)))
    assert torch.equal(ids_BT, before)
    assert same(one, corrupt(ids_BT.T.contiguous().T, VOCABULARY, generator=seeded(seed)))  # nor how it lies in memory


@pytest.mark.parametrize("corrupt", DRAWING.values(), ids=DRAWING)
def test_another_seed_gives_another_batch(corrupt):
    ids_BT = make_rows(3, 60, 0.1, False, 1)
    assert not same(corrupt(ids_BT, VOCABULARY, generator=seeded(1)), corrupt(ids_BT, VOCABULARY, generator=seeded(2)))


def first_row(batch) -> list[list[int]]:
    """Row 0 of every tensor without what widens it for the sake of longer rows."""
    n, m = int((batch.input_ids_BT[0] != PAD).sum()), int((batch.labels_BL[0] != IGNORE_INDEX).nonzero().amax()) + 1
    shown = [batch.input_ids_BT[0, :n].tolist(), batch.labels_BL[0, :m].tolist()]
    sees = [] if batch.may_query_BQK is None else [batch.may_query_BQK[0].tolist(), batch.may_attend_BQK[0].tolist()]
    return [*shown, *sees]


@pytest.mark.parametrize("corrupt", DRAWING.values(), ids=DRAWING)
def test_a_row_does_not_depend_on_the_texts_beside_it(corrupt):
    """As long as they are as long: all draws are made for the whole batch at once."""
    mine = make_rows(1, 80, 0.1, False, 1)
    beside = [torch.cat([mine, make_rows(3, 80, 0.0, False, seed)]) for seed in (2, 3)]
    one, other = (corrupt(ids_BT, VOCABULARY, generator=seeded(9)) for ids_BT in beside)
    assert first_row(one) == first_row(other)
    assert not same(one, other)
