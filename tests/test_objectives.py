"""The laws of chance that the objectives promise, each with variants that it must refuse, and the exact cases."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import oracles
import pytest
import torch
from few import few
from oracles import fits, same_distribution, within_binomial

from course_lib import masks, spans
from course_lib.layers import TransformerConfig
from course_lib.model import MODEL_OF_OBJECTIVE
from course_lib.objectives import Batch, causal, infilled, masked, permuted, prefix_lm, restore_spans, span_corrupted
from course_lib.runtime import seeded
from course_lib.training import batch_loss, new_model
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

PAD, UNK, BOS, EOS, CLS, SEP, MASK = range(7)
SENTINELS = tuple(range(7, 107))
SIZE = 507
N_ORDINARY = SIZE - 107
GOES_ON_V = torch.arange(SIZE) % 5 < 2  # two ordinary ids of five go on with a word
VOCABULARY = Vocabulary(SIZE, PAD, UNK, BOS, EOS, CLS, SEP, MASK, SENTINELS, GOES_ON_V)
IDS_BT = torch.randint(1, SIZE, (64, 512), generator=seeded(0))
IDS_BT[(IDS_BT >= 7) & (IDS_BT < 107)] = SEP  # a fifth of the tokens is special
IS_ORDINARY_BT = IDS_BT >= 107


def draws(text: list[int], corrupt: Callable, count: int, seed: int = 1, **options) -> Batch:
    """`count` corruptions of one text, as a batch."""
    return corrupt(torch.tensor([text]).expand(count, -1), VOCABULARY, generator=seeded(seed), **options)


# ---------------------------------------------------------------- masked


def fates(ids_BT, batch) -> Counter:
    chosen = batch.labels_BL != IGNORE_INDEX
    shown, original = batch.input_ids_BT[chosen], ids_BT[chosen]
    hidden, same = int((shown == MASK).sum()), int((shown == original).sum())
    return Counter(chosen=len(shown), hidden=hidden, kept=same, swapped=len(shown) - hidden - same)


SAME_BY_CHANCE = 0.1 / N_ORDINARY  # a swap that draws the token that it replaces


def follows_the_paper(corrupt, mask_prob: float) -> bool:
    """The chosen share of ordinary tokens, and 80/10/10 of the chosen."""
    count = fates(IDS_BT, corrupt(IDS_BT, VOCABULARY, mask_prob=mask_prob, generator=seeded(1)))
    n = count["chosen"]
    return (
        within_binomial(n, int(IS_ORDINARY_BT.sum()), mask_prob)
        and within_binomial(count["hidden"], n, 0.8)
        and within_binomial(count["swapped"], n, 0.1 - SAME_BY_CHANCE)
        and within_binomial(count["kept"], n, 0.1 + SAME_BY_CHANCE)
    )


def two_draws(ids_BT, vocabulary, *, mask_prob, generator):
    """The classic mistake: 80 % hidden, and of what is left 10 % swapped in a draw of its own."""
    batch = masked(ids_BT, vocabulary, mask_prob=mask_prob, generator=generator)
    swapped = (batch.labels_BL != IGNORE_INDEX) & (batch.input_ids_BT != MASK) & (batch.input_ids_BT != ids_BT)
    undone = swapped & (torch.rand(ids_BT.shape, generator=generator) < 0.8)
    return Batch(torch.where(undone, ids_BT, batch.input_ids_BT), batch.labels_BL, batch.may_attend_BQK)


def all_hidden(ids_BT, vocabulary, *, mask_prob, generator):
    batch = masked(ids_BT, vocabulary, mask_prob=mask_prob, generator=generator)
    shown_BT = batch.input_ids_BT.masked_fill(batch.labels_BL != IGNORE_INDEX, MASK)
    return Batch(shown_BT, batch.labels_BL, batch.may_attend_BQK)


def special_tokens_count(ids_BT, vocabulary, *, mask_prob, generator):
    """The share is of all tokens, special ones included: too many of the ordinary are chosen."""
    return masked(ids_BT, vocabulary, mask_prob=min(1.0, mask_prob * 1.25), generator=generator)


@pytest.mark.parametrize("mask_prob", [0.15, 0.5, 1.0])
def test_ordinary_tokens_are_chosen_at_the_rate_asked_for_and_treated_80_10_10(mask_prob):
    assert follows_the_paper(masked, mask_prob)


@pytest.mark.parametrize("mutant", [two_draws, all_hidden, special_tokens_count])
def test_the_check_above_refuses_masking_by(mutant):
    assert not follows_the_paper(mutant, 0.15)


def swaps_are_uniform(corrupt) -> bool:
    ids_BT = IDS_BT.clamp(min=107)
    batch = corrupt(ids_BT, VOCABULARY, mask_prob=1.0, generator=seeded(2))
    swapped = batch.input_ids_BT[(batch.input_ids_BT != ids_BT) & (batch.input_ids_BT != MASK)]
    counts = torch.bincount(swapped, minlength=SIZE)
    if counts[:107].any():
        return False
    tenth = [part.sum().item() for part in counts[107:].split(40)]
    return fits(tenth, [len(swapped) / len(tenth)] * len(tenth))


def swaps_for_any_id(ids_BT, vocabulary, **more):
    return masked(ids_BT, Vocabulary(SIZE, mask=MASK), **more)


def swaps_for_a_neighbour(ids_BT, vocabulary, **more):
    batch = masked(ids_BT, vocabulary, **more)
    swapped = (batch.input_ids_BT != ids_BT) & (batch.input_ids_BT != MASK)
    return Batch(torch.where(swapped, ids_BT.clamp(max=300) + 1, batch.input_ids_BT), batch.labels_BL, None)


def test_swapped_tokens_become_any_ordinary_token_with_equal_chance():
    assert swaps_are_uniform(masked)
    assert not swaps_are_uniform(swaps_for_any_id)
    assert not swaps_are_uniform(swaps_for_a_neighbour)


def chooses_without_bias(corrupt) -> bool:
    """Every position is as likely, and one choice says nothing of the next."""
    ids_BT = torch.full((4000, 16), 200)
    batch = corrupt(ids_BT, VOCABULARY, mask_prob=0.3, generator=seeded(3))
    chosen = batch.labels_BL != IGNORE_INDEX
    positions = all(within_binomial(n, 4000, 0.3) for n in chosen.sum(0).tolist())
    pairs = chosen[:, 1:] & chosen[:, :-1]
    return positions and within_binomial(int(pairs[:, ::2].sum()), pairs[:, ::2].numel(), 0.09)


def chooses_in_pairs(ids_BT, vocabulary, **more):
    half = masked(ids_BT[:, ::2], vocabulary, **more)
    return Batch(ids_BT, half.labels_BL.repeat_interleave(2, 1), None)


def chooses_late_positions_more(ids_BT, vocabulary, *, mask_prob, generator):
    fate_BT = torch.rand(ids_BT.shape, generator=generator) + torch.linspace(0.1, -0.1, ids_BT.shape[1])
    return Batch(ids_BT, ids_BT.masked_fill(fate_BT >= mask_prob, IGNORE_INDEX), None)


def test_tokens_are_chosen_one_by_one_and_everywhere_alike():
    assert chooses_without_bias(masked)
    assert not chooses_without_bias(chooses_in_pairs)
    assert not chooses_without_bias(chooses_late_positions_more)


WEIGHT_V = torch.linspace(0, 1, SIZE)


def weighs(corrupt) -> bool:
    """Each id is chosen at mask_prob times its weight, and treated 80/10/10 whatever its weight."""
    for token in (107, 200, 400, 506):
        ids_BT = torch.full((40, 512), token)
        batch = corrupt(ids_BT, VOCABULARY, mask_prob=0.5, weight_V=WEIGHT_V, generator=seeded(4))
        count = fates(ids_BT, batch)
        right = within_binomial(count["chosen"], ids_BT.numel(), 0.5 * WEIGHT_V[token].item())
        if not (right and within_binomial(count["hidden"], count["chosen"], 0.8)):
            return False
    return True


def weight_forgotten(ids_BT, vocabulary, *, weight_V, **more):
    return masked(ids_BT, vocabulary, **more)


def weight_forgotten_after_the_choice(ids_BT, vocabulary, *, mask_prob, weight_V, generator):
    """0.8 of mask_prob hidden, not of the token's own probability: rare choices are always hidden."""
    fate_BT = torch.rand(ids_BT.shape, generator=generator)
    is_target_BT = fate_BT < mask_prob * weight_V[ids_BT]
    shown_BT = ids_BT.masked_fill(is_target_BT & (fate_BT < 0.8 * mask_prob), MASK)
    return Batch(shown_BT, ids_BT.masked_fill(~is_target_BT, IGNORE_INDEX), None)


def test_weights_multiply_the_probability_and_change_nothing_else():
    assert weighs(masked)
    assert not weighs(weight_forgotten)
    assert not weighs(weight_forgotten_after_the_choice)
    zero = masked(IDS_BT, VOCABULARY, mask_prob=1.0, weight_V=torch.zeros(SIZE), generator=seeded(5))
    assert torch.equal(zero.input_ids_BT, IDS_BT)
    assert not zero.is_target_BL.any()
    half, whole = (
        masked(IDS_BT, VOCABULARY, mask_prob=prob, weight_V=torch.full((SIZE,), weight), generator=seeded(5))
        for prob, weight in ((1.0, 0.5), (0.5, 1.0))
    )
    assert torch.equal(half.input_ids_BT, whole.input_ids_BT)


def words_of(row: list[int]) -> list[list[int]]:
    return oracles.words(row, GOES_ON_V.tolist().__getitem__, set(VOCABULARY.special_ids))


def treats_words_whole(corrupt) -> bool:
    """All tokens of a word share a fate; words are chosen and hidden at the rates of single tokens, one by one."""
    batch = corrupt(IDS_BT, VOCABULARY, mask_prob=0.3, whole_words=True, generator=seeded(6))
    trials = chosen = hidden = pairs = both = 0
    for row, shown, labels in zip(IDS_BT.tolist(), batch.input_ids_BT.tolist(), batch.labels_BL.tolist(), strict=True):
        of_token = oracles.roles(row, shown, labels, MASK)
        is_chosen = []
        for word in words_of(row):
            if row[word[0]] < 107:
                continue
            kinds = {"kept or swapped" if of_token[p] in ("kept", "swapped") else of_token[p] for p in word}
            if len(kinds) > 1:
                return False
            is_chosen.append(kinds != {"untouched"})
            hidden += kinds == {"hidden"}
        trials, chosen = trials + len(is_chosen), chosen + sum(is_chosen)
        pairs, both = pairs + len(is_chosen) // 2, both + sum(map(min, is_chosen[::2], is_chosen[1::2]))
    rates = [(chosen, trials, 0.3), (hidden, chosen, 0.8), (both, pairs, 0.09)]
    return all(within_binomial(*rate) for rate in rates)


def any_token_takes_its_word_along(ids_BT, vocabulary, *, mask_prob, whole_words, generator):
    """Long words are chosen more often than short ones: a draw for each token, and one is enough."""
    batch = masked(ids_BT, vocabulary, mask_prob=mask_prob, generator=generator)
    shown, labels = batch.input_ids_BT.clone(), batch.labels_BL.clone()
    for b, row in enumerate(ids_BT.tolist()):
        for word in words_of(row):
            if row[word[0]] >= 107 and batch.is_target_BL[b, word].any():
                shown[b, word], labels[b, word] = MASK, ids_BT[b, word]
    return Batch(shown, labels, None)


def token_by_token(ids_BT, vocabulary, *, whole_words, **more):
    return masked(ids_BT, vocabulary, **more)


def words_go_on_over_special_tokens(ids_BT, vocabulary, **more):
    """The last token of one sentence and the first of the next, with [SEP] between, as one word."""
    first_BT = torch.arange(ids_BT.shape[1]).masked_fill(GOES_ON_V[ids_BT] | (ids_BT < 107), 0).cummax(1).values
    fate_BT = torch.rand(ids_BT.shape, generator=more["generator"]).gather(1, first_BT)
    chosen_BT = (fate_BT < more["mask_prob"]) & (ids_BT >= 107)
    shown_BT = ids_BT.masked_fill(chosen_BT & (fate_BT < 0.8 * more["mask_prob"]), MASK)
    return Batch(shown_BT, ids_BT.masked_fill(~chosen_BT, IGNORE_INDEX), None)


def test_whole_words_share_one_draw():
    assert treats_words_whole(masked)


WRONG_WORDS = [any_token_takes_its_word_along, token_by_token, words_go_on_over_special_tokens]


@pytest.mark.parametrize("mutant", few(WRONG_WORDS, *WRONG_WORDS[1:]))
def test_the_check_above_refuses_words_by(mutant):
    assert not treats_words_whole(mutant)


def test_a_word_weighs_as_its_first_token_and_never_as_a_special_one_before_it():
    goes_on, begins = 110, 112  # of five ids the first two go on with a word
    assert GOES_ON_V[goes_on] and not GOES_ON_V[begins]
    weight_V = torch.zeros(SIZE).index_fill(0, torch.tensor([goes_on]), 1.0)
    batch = draws(
        [CLS, goes_on, goes_on, SEP, goes_on, begins, goes_on, SEP],
        masked,
        200,
        mask_prob=1.0,
        whole_words=True,
        weight_V=weight_V,
    )
    assert batch.is_target_BL.unique(dim=0).tolist() == [[False, True, True, False, True, False, False, False]]


# ---------------------------------------------------------------- permuted, prefix


def orders_are_uniform(corrupt) -> bool:
    """Of 4 tokens between special ones, all predicted: each of the 24 orders is as likely."""
    batch = draws([CLS, 110, 111, SEP, 112, 113, PAD], corrupt, 6000, predict_share=1.0)
    places = batch.may_query_BQK[:, [1, 2, 4, 5]][:, :, [1, 2, 4, 5]].sum(2).tolist()
    counts = Counter(map(tuple, places))
    return set(counts) == set(itertools.permutations(range(4))) and fits(list(counts.values()), [250] * 24)


def left_to_right(ids_BT, vocabulary, **more):
    batch = permuted(ids_BT, vocabulary, **more)
    places = torch.tensor([0, 0, 1, 0, 2, 3, 0])
    earlier = places[None, :] < places[:, None]
    return Batch(batch.input_ids_BT, batch.labels_BL, batch.may_attend_BQK, earlier.expand(len(ids_BT), -1, -1))


def test_orders_of_prediction_are_uniform():
    assert orders_are_uniform(permuted)
    assert not orders_are_uniform(left_to_right)


def targets_are_uniform(corrupt) -> bool:
    text = [CLS, *range(110, 120), SEP, PAD, PAD]
    chosen = draws(text, corrupt, 5000, predict_share=0.4).is_target_BL.sum(0)[1:11].tolist()
    return fits(chosen, [2000] * 10)


def the_end_of_the_text(ids_BT, vocabulary, **more):
    return Batch(ids_BT, ids_BT.masked_fill(torch.arange(ids_BT.shape[1]) < 7, IGNORE_INDEX), None)


def test_any_ordinary_token_is_as_likely_a_target_of_permutation():
    assert targets_are_uniform(permuted)
    assert not targets_are_uniform(the_end_of_the_text)


def prefixes_are_uniform(corrupt) -> bool:
    """Of 6 real tokens the first 1 to 5 are the prefix."""
    batch = draws([110, 111, 112, 113, 114, 115, PAD, PAD], corrupt, 5000)
    counts = Counter((6 - batch.is_target_BL.sum(1)).tolist())
    return set(counts) == set(range(1, 6)) and fits([counts[n] for n in range(1, 6)], [1000] * 5)


@pytest.mark.parametrize(("low", "high"), [(0, 5), (1, 6), (1, 4), (1, 8)])
def test_prefixes_are_uniform_and_the_check_refuses_other_borders(low, high):
    def wrong(ids_BT, vocabulary, *, generator):
        lengths = torch.randint(low, high + 1, (len(ids_BT),), generator=generator)
        return prefix_lm(ids_BT, vocabulary, prefix_length_B=lengths)

    assert prefixes_are_uniform(prefix_lm)
    assert not prefixes_are_uniform(wrong)


# ---------------------------------------------------------------- span corruption


def ways(total: int, parts: int):
    """Every sum of `parts` positive numbers that makes `total`."""
    for cuts in itertools.combinations(range(1, total), parts - 1):
        yield tuple(stop - start for start, stop in zip((0, *cuts), (*cuts, total), strict=True))


def spans_are_uniform(corrupt) -> bool:
    """10 tokens, 4 removed in 2 spans: kept and removed stretches alternate, kept first, in 5 x 3 equal ways."""
    text = list(range(110, 120))
    batch = draws(text, corrupt, 6000, noise_density=0.4, mean_span=2.0)
    counts = Counter(
        tuple(oracles.spans_in(shown, target, SENTINELS))
        for shown, target in zip(batch.input_ids_BT.tolist(), batch.labels_BL.tolist(), strict=True)
    )
    wanted = {((a, a + x), (a + x + b, a + x + b + y)) for (a, b), (x, y) in itertools.product(ways(6, 2), ways(4, 2))}
    return set(counts) == wanted and fits(list(counts.values()), [400] * 15)


def in_loops(draw_spans):
    """Span corruption by the loops of oracles.py, with this way to draw."""

    def corrupt(ids_BT, vocabulary, *, noise_density, mean_span, generator):
        rng = random.Random(7)
        pairs = [
            oracles.corrupt_spans(row, draw_spans(len(row), noise_density, mean_span, rng), SENTINELS)
            for row in ids_BT.tolist()
        ]
        shown, targets = (torch.tensor(part) for part in zip(*pairs, strict=True))
        return Batch(shown, targets, None)

    return corrupt


def first_cut_low(n, density, mean_span, rng):
    """Cuts that are not uniform: the first stretch is drawn, the second takes the rest."""
    kept, noise = rng.choice([1, 1, 2, 3, 4, 5]), rng.randint(1, 3)
    return [(kept, kept + noise), (6 + noise, 10)]


def moved_round(n, density, mean_span, rng):
    """Spans that may begin with the text, or end before it does."""
    spans = oracles.draw_t5_spans(n - 1, 4 / 9, mean_span, rng)
    shift = rng.randint(0, 1)
    return [(start + shift, stop + shift) for start, stop in spans]


def even_lengths(n, density, mean_span, rng):
    kept = oracles.split_randomly(6, 2, rng)
    return [(kept[0], kept[0] + 2), (8, 10)]


@pytest.mark.slow
def test_every_way_to_place_spans_is_as_likely():
    assert spans_are_uniform(span_corrupted)
    assert spans_are_uniform(in_loops(oracles.draw_t5_spans))
    assert spans_are_uniform(in_loops(partial(oracles.draw_t5_spans, split=oracles.split_by_shuffling)))


@pytest.mark.parametrize("mutant", few([first_cut_low, moved_round, even_lengths], moved_round))
def test_the_check_above_refuses_spans_by(mutant):
    assert not spans_are_uniform(in_loops(mutant))


def test_special_tokens_cut_spans_and_stay():
    batch = draws([CLS, 110, 111, SEP, 112, SEP], span_corrupted, 1, noise_density=1.0)
    assert batch.input_ids_BT.tolist() == [[CLS, 7, SEP, 8, SEP]]
    assert batch.labels_BL.tolist() == [[7, 110, 111, 8, 112, 9]]
    assert batch.decoder_input_ids_BS.tolist() == [[BOS, 7, 110, 111, 8, 112]]


def test_rows_of_different_length_are_padded_and_padding_is_neither_seen_nor_predicted():
    ids_BT = torch.tensor([[110, 111, 112, 113, 114, 115], [110, 111, PAD, PAD, PAD, PAD]])
    batch = span_corrupted(ids_BT, VOCABULARY, noise_density=0.5, mean_span=3, generator=seeded(0))
    assert batch.input_ids_BT.tolist() == [[110, 111, 112, 7], [110, 7, PAD, PAD]]
    assert batch.labels_BL.tolist() == [[7, 113, 114, 115, 8], [7, 111, 8, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch.may_attend_BQK.tolist() == [[[True] * 4], [[True, True, False, False]]]
    assert batch.decoder_input_ids_BS.tolist() == [[BOS, 7, 113, 114, 115], [BOS, 7, 111, 8, PAD]]


@pytest.mark.parametrize("n_spans", [1, 3, 8])
def test_a_text_is_refused_by_one_sentinel_too_few_and_not_before(n_spans):
    text = torch.arange(110, 110 + 2 * n_spans)[None]
    too_few, enough = (Vocabulary(SIZE, pad=0, bos=2, sentinels=SENTINELS[:n]) for n in (n_spans, n_spans + 1))
    batch = span_corrupted(text, enough, noise_density=0.5, mean_span=1.0, generator=seeded(0))
    assert batch.labels_BL[0, -1] == SENTINELS[n_spans]
    with pytest.raises(ValueError, match=rf"needs {n_spans + 1} sentinels and this vocabulary has {n_spans}"):
        span_corrupted(text, too_few, noise_density=0.5, mean_span=1.0, generator=seeded(0))


def test_what_a_target_stands_for_must_be_plain():
    def back(shown, target):
        return restore_spans(torch.tensor([shown]), torch.tensor([target]), VOCABULARY)

    assert back([110, 7, 113, PAD], [7, 111, 112, 8, PAD, IGNORE_INDEX]) == [[110, 111, 112, 113]]
    for shown, target, words in [
        ([110, 8], [7, 111, 8][:2], "sentinel 8 of the input has no span"),
        ([110], [7, 111, 8], "sentinel 7 of the target stands nowhere"),
        ([7], [111, 7, 8], "begins with token 111"),
        ([7], [7, 111, 7, 112], "sentinel 7 stands twice"),
    ]:
        with pytest.raises(ValueError, match=words):
            back(shown, target)


# ---------------------------------------------------------------- infilling

LAMBDA = 3.0


def lengths_are_poisson(draw_lengths) -> bool:
    """The first 20 lengths of rows that need hundreds of tokens, none of which was cut."""
    lengths = draw_lengths(torch.full((1500,), 400), LAMBDA, seeded(8))[0][:, :20].flatten()
    pmf = [math.exp(-LAMBDA) * LAMBDA**k / math.factorial(k) for k in range(10)]
    counts = torch.bincount(lengths.clamp(max=10), minlength=11).tolist()
    return fits(counts, [len(lengths) * p for p in [*pmf, 1 - sum(pmf)]])


def of_rate(rate):
    return lambda n_B, mean, generator: (torch.poisson(torch.full((len(n_B), 20), rate), generator=generator).long(),)


def geometric(n_B, mean, generator):
    """The right mean, the wrong law."""
    uniform = torch.rand(len(n_B), 20, generator=generator)
    return ((uniform.log() / math.log(mean / (1 + mean))).long(),)


def never_empty(n_B, mean, generator):
    return (of_rate(mean - 1)(n_B, mean, generator)[0] + 1,)


def test_lengths_of_infilled_spans_follow_poisson():
    assert lengths_are_poisson(spans.poisson_lengths)


@pytest.mark.parametrize("mutant", [of_rate(2.9), geometric, never_empty], ids=["2.9", "geometric", "never empty"])
def test_the_check_above_refuses_lengths_by(mutant):
    assert not lengths_are_poisson(mutant)


def test_lengths_cover_the_noise_even_if_every_draw_is_empty(monkeypatch):
    monkeypatch.setattr(torch, "poisson", lambda rate, generator: torch.zeros_like(rate))
    length_BN, n_spans_B = spans.poisson_lengths(torch.tensor([0, 1, 40]), LAMBDA, seeded(9))
    assert length_BN.sum(1).tolist() == [0, 1, 40]
    assert n_spans_B.tolist() == [0, length_BN.shape[1], length_BN.shape[1]]


@pytest.mark.parametrize("n_noise", [0, 1, 7, 150])
def test_lengths_cover_the_noise_exactly_and_their_number_counts_the_empty_ones(n_noise):
    length_BN, n_spans_B = spans.poisson_lengths(torch.tensor([n_noise] * 200), LAMBDA, seeded(9))
    assert length_BN.sum(1).eq(n_noise).all()
    for lengths, n_spans in zip(length_BN.tolist(), n_spans_B.tolist(), strict=True):
        assert not any(lengths[n_spans:])
        assert (lengths[n_spans - 1] > 0) if n_noise else n_spans == 0  # the span that completes the noise is the last


TEXT = [CLS, 110, 111, 112, 113, 114, SEP]


def outcomes(corrupt, seed: int) -> list[tuple[int, ...]]:
    batch = draws(TEXT, corrupt, 8000, seed=seed, noise_density=0.4, mean_span=1.5)
    return [tuple(token for token in row if token != PAD) for row in batch.input_ids_BT.tolist()]


def infilled_in_loops(draw_spans) -> list[tuple[int, ...]]:
    rng = random.Random(11)
    return [(CLS, *oracles.infill(TEXT[1:-1], draw_spans(5, 0.4, 1.5, rng), MASK), SEP) for _ in range(8000)]


def only_full_spans(n, density, mean_span, rng):
    return [span for span in oracles.draw_bart_spans(n, density, mean_span, rng) if span[0] < span[1]]


def empty_spans_in_front(n, density, mean_span, rng):
    spans = oracles.draw_bart_spans(n, density, mean_span, rng)
    return [(0, 0) for a, b in spans if a == b] + [span for span in spans if span[0] < span[1]]


def spans_before_what_is_kept(n, density, mean_span, rng):
    """The right spans, but in front of the text more often than they should be."""
    spans = oracles.draw_bart_spans(n, density, mean_span, rng)
    return spans if rng.random() < 0.9 or spans[0][0] == 0 else [(a - spans[0][0], b - spans[0][0]) for a, b in spans]


def never_behind_the_text(n, density, mean_span, rng):
    while (spans := oracles.draw_bart_spans(n, density, mean_span, rng))[-1] == (n, n):
        pass
    return spans


def cut_one_last(n, density, mean_span, rng):
    """Lengths stay in the order in which they were drawn: the last span is the one that was cut, and never empty."""
    while (spans := oracles.draw_bart_spans(n, density, mean_span, rng))[-1][0] == spans[-1][1]:
        pass
    return spans


@pytest.mark.slow
def test_infilled_texts_are_those_of_a_plain_loop_and_as_frequent():
    ours = outcomes(infilled, seed=12)
    assert len(set(ours)) > 60
    assert same_distribution(ours, infilled_in_loops(oracles.draw_bart_spans))
    assert same_distribution(ours, outcomes(infilled, seed=13))


MUTANTS = [only_full_spans, empty_spans_in_front, spans_before_what_is_kept, never_behind_the_text, cut_one_last]


@pytest.mark.parametrize("mutant", few(MUTANTS, spans_before_what_is_kept))
def test_the_check_above_refuses_infilling_by(mutant):
    assert not same_distribution(outcomes(infilled, seed=12), infilled_in_loops(mutant))


@pytest.mark.parametrize("mean_span", [1e6, 1e30])
def test_a_single_span_stands_anywhere_with_equal_chance(mean_span):
    batch = draws(list(range(110, 120)), infilled, 5500, noise_density=0.4, mean_span=mean_span)
    assert batch.input_ids_BT.shape == (5500, 7)
    assert batch.input_ids_BT.eq(MASK).sum(1).eq(1).all()  # as long as asked for, cut to the share
    assert fits(batch.input_ids_BT.eq(MASK).sum(0).tolist(), [5500 / 7] * 7)


def test_masks_are_never_put_outside_the_frame_of_special_tokens():
    batch = draws([CLS, 110, 111, 112, SEP, PAD, PAD], infilled, 2000, noise_density=0.4, mean_span=1.0)
    for row in batch.input_ids_BT.tolist():
        row = [token for token in row if token != PAD]
        assert row[0] == CLS
        assert row[-1] == SEP


def test_infilling_everything_leaves_a_mask_a_span_and_special_tokens_cut_it():
    batch = draws([CLS, 110, SEP, 111, SEP], infilled, 50, noise_density=1.0, mean_span=1e6)
    assert batch.input_ids_BT.unique(dim=0).tolist() == [[CLS, MASK, SEP, MASK, SEP]]
    assert batch.labels_BL[0].tolist() == [CLS, 110, SEP, 111, SEP]


# ---------------------------------------------------------------- batches and refusals


def test_a_batch_moves_whole_and_what_is_absent_stays_absent():
    batch = draws(TEXT, infilled, 3).to("meta")
    assert {t.device.type for t in vars(batch).values() if t is not None} == {"meta"}
    assert batch.may_query_BQK is None
    assert draws(TEXT, permuted, 3).to("cpu").may_query_BQK is not None


ROWS = {
    "causal": causal(IDS_BT[:7, :24], VOCABULARY),
    "masked": masked(IDS_BT[:7, :24], VOCABULARY, mask_prob=0.3, generator=seeded(1)),
    "prefix": prefix_lm(IDS_BT[:7, :24], VOCABULARY, generator=seeded(1)),
    "permuted": permuted(IDS_BT[:7, :24], VOCABULARY, generator=seeded(1)),
    "span": span_corrupted(IDS_BT[:7, :24], VOCABULARY, generator=seeded(1)),
    "infilled": infilled(IDS_BT[:7, :24], VOCABULARY, generator=seeded(1)),
    "one mask for all rows": Batch(IDS_BT[:7, :24], IDS_BT[:7, :24], masks.causal(24)),
    "one row of positions": replace(causal(IDS_BT[:7, :24], VOCABULARY), position_BT=torch.arange(3, 27)[None]),
}
CUTS = {
    "of two ranks": [slice(0, None, 2), slice(1, None, 2)],
    "of three ranks": [slice(number, None, 3) for number in range(3)],
    "one after the other": [slice(0, 1), slice(1, 6), slice(6, None)],
}


def model_and_batch(name):
    """In fp64, so that no order of summing shows."""
    objective = name if name in MODEL_OF_OBJECTIVE else "causal"
    positions = "learned" if MODEL_OF_OBJECTIVE[objective].__name__ == "Decoder" else "rotary"
    config = TransformerConfig(SIZE, d_model=16, n_layers=1, n_heads=2, d_ff=32, max_len=32, positions=positions)
    return new_model(MODEL_OF_OBJECTIVE[objective], config, device="cpu").double(), ROWS[name]


def losses(name, parts):
    model, batch = model_and_batch(name)
    pairs = [batch_loss(model, batch.rows(which)) for which in parts]
    return sum(total.item() for total, _ in pairs), sum(count for _, count in pairs)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ROWS)
def test_the_losses_of_a_batchs_rows_sum_to_that_of_the_batch(name, cut):
    model, batch = model_and_batch(name)
    total, count = batch_loss(model, batch)
    summed, counted = losses(name, CUTS[cut])
    assert counted == count == int(batch.is_target_BL.sum())
    assert summed == pytest.approx(total.item(), rel=1e-6)
    doubled, _ = losses(name, [*CUTS[cut], CUTS[cut][0]])  # the control: a row that two take
    assert doubled > 1.05 * summed


@pytest.mark.parametrize("name", ROWS)
def test_each_row_keeps_all_that_is_its_own_and_what_is_for_all_stays(name):
    batch = ROWS[name]
    part = batch.rows(slice(1, None, 2))
    for field, tensor in vars(batch).items():
        if tensor is None:
            assert getattr(part, field) is None
        else:
            assert torch.equal(getattr(part, field), tensor if len(tensor) == 1 else tensor[[1, 3, 5]])
    assert len(batch.input_ids_BT) == 7  # that of the caller is as it was


def test_one_row_is_a_batch_of_which_rows_can_be_taken():
    one = causal(torch.tensor([[110, 111, 112]]), VOCABULARY)
    assert torch.equal(one.rows(slice(0, None, 2)).may_attend_BQK, one.may_attend_BQK)


@pytest.mark.parametrize(
    ("corrupt", "options"),
    [
        (masked, {"mask_prob": 1.5}),
        (masked, {"weight_V": torch.ones(3)}),
        (masked, {"weight_V": torch.full((SIZE,), 2.0)}),
        (permuted, {"predict_share": -0.1}),
        (span_corrupted, {"mean_span": 0.5}),
        (infilled, {"noise_density": math.nan}),
    ],
)
def test_a_refusal_draws_nothing(corrupt, options):
    generator = seeded(1)
    before = generator.get_state()
    with pytest.raises(ValueError, match=next(iter(options))):
        corrupt(IDS_BT, VOCABULARY, generator=generator, **options)
    assert torch.equal(generator.get_state(), before)


def test_whole_words_are_refused_before_a_draw_where_they_are_unknown():
    generator = seeded(1)
    before = generator.get_state()
    with pytest.raises(ValueError, match="continues_word_V"):
        masked(IDS_BT, Vocabulary(SIZE, mask=MASK), whole_words=True, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_causal_needs_no_special_token_at_all():
    batch = causal(torch.tensor([[0, 1, 2]]), Vocabulary(3))
    assert batch.labels_BL.tolist() == [[1, 2, IGNORE_INDEX]]
    assert batch.is_target_BL.tolist() == [[True, True, False]]
