"""Writing on: against a slow twin that reads everything again at each step, one prompt at a time, in plain loops; and
the frequencies of what is drawn against the distribution that it should be drawn from."""

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile

import pytest
import torch
from few import few
from hypothesis import given
from hypothesis import strategies as st
from tiny import differ, tiny

from course_lib import generation
from course_lib.data import course_tokenizer
from course_lib.generation import complete, draw_tokens, fill_in, generate, next_token_probabilities
from course_lib.model import Encoder
from course_lib.runtime import seeded
from course_lib.vocabulary import Vocabulary

FP32 = 1e-5  # relative to the largest value
SIZE = 60
VOCABULARY = Vocabulary(SIZE, pad=0, unk=1, bos=2, eos=3, cls=4, sep=5, mask=6, sentinels=(7, 8))
MODEL = tiny("causal", vocab_size=SIZE).eval()
PROMPTS = [torch.randint(9, SIZE, (n,), generator=seeded(1, n)).tolist() for n in (4, 1, 17, 9)]
NEW = 12
GREEDY = {"temperature": 0}
SAMPLINGS = {
    "greedy": GREEDY,
    "greedy, repeating less": {"temperature": 0, "repetition_penalty": 1.4},
    "plain": {},
    "cool": {"temperature": 0.6},
    "top k": {"temperature": 1.3, "top_k": 5},
    "nucleus": {"top_p": 0.7},
    "all": {"temperature": 0.9, "top_k": 12, "top_p": 0.8, "repetition_penalty": 1.3},
}


def written(prompts=PROMPTS, *, model=MODEL, vocabulary=VOCABULARY, seed=5, **options):
    options = {"max_new_tokens": NEW, "generator": seeded(seed)} | options
    return generate(model, prompts, vocabulary, **options)


# ---------------------------------------------------------------- the slow twin


def probabilities_in_loops(
    logits, *, temperature=1.0, top_k=None, top_p=None, repetition_penalty=1.0, seen=(), allowed=range(10**6)
):
    """One row of plain floats, from the papers' words."""
    scores = {}
    for token, score in enumerate(logits):
        if token in seen:
            score = score / repetition_penalty if score > 0 else score * repetition_penalty
        if token in allowed:
            scores[token] = score
    ranked = sorted(scores, key=lambda token: (-scores[token], token))
    if temperature == 0:
        return [float(token == ranked[0]) for token in range(len(logits))]
    if top_k is not None:
        ranked = [token for token in ranked if scores[token] >= scores[ranked[:top_k][-1]]]
    weights = {token: math.exp((scores[token] - scores[ranked[0]]) / temperature) for token in ranked}
    total, nucleus, share = sum(weights.values()), [], 0.0
    for token in ranked:
        if share < (top_p or 1.0) or top_p == 1.0:
            nucleus.append(token)
        share += weights[token] / total
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in range(len(logits))]


def drawn_in_loops(probabilities, number):
    token = next(token for token, probability in enumerate(probabilities) if probability > 0)
    passed = 0.0
    for candidate, probability in enumerate(probabilities):
        if probability > 0 and number >= passed:
            token = candidate
        passed += probability
    return token


@torch.no_grad()
def written_slowly(prompt, *, generator, model=MODEL, **sampling):
    """The new tokens of one prompt, and the logits behind each prefix, without cache, padding or batch."""
    ids, rows = list(prompt), []
    allowed = set(VOCABULARY.ordinary_ids.tolist())
    for number in torch.rand(NEW, generator=generator, dtype=torch.float64).tolist():
        rows.append(model(torch.tensor([ids])).logits[0, -1])
        probabilities = probabilities_in_loops(rows[-1].tolist(), seen=ids, allowed=allowed, **sampling)
        ids.append(drawn_in_loops(probabilities, number))
    return ids[len(prompt) :], torch.stack(rows)


def is_as_if_slow(sampling) -> bool:
    generator = seeded(5)
    slow = [written_slowly(prompt, generator=generator, **sampling)[0] for prompt in PROMPTS]
    return written(stop_ids=(), seed=5, **sampling) == slow


@contextmanager
def watched(model=MODEL, change=lambda logits: logits):
    """What the model was given and gave, call by call; `change` stands between it and the caller."""
    calls = []

    def hook(_, args, options, output):
        output = replace(output, logits=change(output.logits))
        calls.append((args[0], options, output))
        return output

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def cached_logits():
    """float [4, NEW, V]: what the batch's logits were at each step, greedy."""
    with watched() as calls:
        written(stop_ids=(), **GREEDY)
    return torch.stack([output.logits for _, _, output in calls], dim=1)


def slow_logits():
    return torch.stack([written_slowly(prompt, generator=seeded(5), **GREEDY)[1] for prompt in PROMPTS])


# ---------------------------------------------------------------- cache, padding and batch change nothing


@pytest.mark.parametrize("sampling", few(SAMPLINGS.values(), GREEDY, SAMPLINGS["all"]), ids=SAMPLINGS)
def test_a_batch_with_a_cache_writes_what_each_prompt_does_alone_and_without(sampling):
    assert is_as_if_slow(sampling)


@pytest.mark.slow
def test_a_batch_is_its_prompts_one_after_another_with_the_same_generator():
    for sampling in SAMPLINGS.values():
        for stop_ids in ((), range(9, 20)):  # where a row stops early, the next still begins with the same number
            generator = seeded(8)
            options = sampling | {"stop_ids": stop_ids}
            alone = [row for prompt in PROMPTS for row in written([prompt], generator=generator, **options)]
            assert written(seed=8, **options) == alone


def test_logits_with_a_cache_are_those_without():
    assert differ(cached_logits(), slow_logits()) < FP32


def test_each_step_reads_one_new_token_a_row():
    with watched() as calls:
        written(stop_ids=(), **GREEDY)
    assert [tuple(ids.shape) for ids, *_ in calls] == [(4, 17)] + [(4, 1)] * (NEW - 1)
    assert all(output.logits.shape == (4, SIZE) for *_, output in calls)  # and predicts at the last position alone


def without_positions(monkeypatch):
    """Positions counted from the left edge of the batch, as if padding were text."""
    forward = MODEL.forward
    monkeypatch.setattr(MODEL, "forward", lambda *a, position_BT, **more: forward(*a, **more), raising=False)


def padding_seen(monkeypatch):
    monkeypatch.setattr(generation.masks, "padding", lambda is_real_BT: torch.ones_like(is_real_BT)[:, None])


def positions_late_by_one(monkeypatch):
    forward = MODEL.forward
    late = lambda *a, position_BT, **more: forward(*a, position_BT=position_BT + 1, **more)
    monkeypatch.setattr(MODEL, "forward", late, raising=False)


def cache_forgotten(monkeypatch):
    read = generation._read

    def forgetful(model, input_ids_BT, is_real_BK, cache):
        return read(model, input_ids_BT, is_real_BK[:, -input_ids_BT.shape[1] :], None)

    monkeypatch.setattr(generation, "_read", forgetful)


@pytest.mark.parametrize("mutant", [without_positions, padding_seen, positions_late_by_one, cache_forgotten])
def test_the_comparisons_above_see(mutant, monkeypatch):
    mutant(monkeypatch)
    logits, texts = cached_logits(), [written(stop_ids=(), **sampling) for sampling in (GREEDY, {})]
    monkeypatch.undo()
    assert differ(logits, slow_logits()) > 100 * FP32
    assert all(text != written(stop_ids=(), **sampling) for text, sampling in zip(texts, (GREEDY, {}), strict=True))


# ---------------------------------------------------------------- the distribution

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.3, 0.8, 1.0, 2.5]),
        "top_k": st.sampled_from([1, 2, 3, 7, 50]),
        "top_p": st.sampled_from([1e-9, 0.13, 0.37, 0.61, 0.83, 0.97, 1.0]),
        "repetition_penalty": st.sampled_from([0.7, 1.0, 1.3, 4.0]),
    },
)
LOGITS = st.lists(st.integers(-9, 9).map(lambda n: 0.37 * n), min_size=2, max_size=8)  # equal ones are common


def probabilities_of(logits, seen, allowed, **options):
    tables = (torch.tensor([i in ids for i in range(len(logits))]) for ids in (seen, allowed))
    seen_V, allowed_V = tables
    logits_BV = torch.tensor([logits], dtype=torch.float64)
    return next_token_probabilities(logits_BV, seen_BV=seen_V[None], allowed_V=allowed_V, **options)[0].tolist()


@given(logits=LOGITS, options=OPTIONS, data=st.data())
def test_the_distribution_is_what_the_papers_say(logits, options, data):
    ids = st.integers(0, len(logits) - 1)
    seen, allowed = data.draw(st.sets(ids)), data.draw(st.sets(ids, min_size=1))
    expected = probabilities_in_loops(logits, seen=seen, allowed=allowed, **options)
    assert probabilities_of(logits, seen, allowed, **options) == pytest.approx(expected, abs=1e-12)


@given(logits=LOGITS, options=OPTIONS)
def test_it_is_a_distribution_and_keeps_the_order_of_the_scores(logits, options):
    probabilities = probabilities_of(logits, (), range(len(logits)), **options)
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities[logits.index(max(logits))] == max(probabilities)
    for some, other in zip(range(len(logits) - 1), range(1, len(logits)), strict=True):
        assert (logits[some] - logits[other]) * (probabilities[some] - probabilities[other]) >= 0


WORKED = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [n / 34.5 for n in (25, 6.25, 2.25, 1)]),  # probabilities squared
        ({"temperature": 1e-300}, [1, 0, 0, 0]),
        ({"temperature": 1e300}, [0.25] * 4),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 9}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 0.49}, [1, 0, 0, 0]),
        ({"top_p": 0.51}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 1.0}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 3, "top_p": 0.8}, [2 / 3, 1 / 3, 0, 0]),  # of 3 the first two have 5/6, of 4 only 3/4
        ({"temperature": 2.0, "top_p": 0.51}, [0.585786, 0.414214, 0, 0]),  # the roots: 0.37, 0.26, ...
    ],
)
def test_worked_by_hand(options, expected):
    assert next_token_probabilities(WORKED, **options)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_equal_tokens_stay_together_at_top_k_and_the_first_of_them_at_top_p():
    equal_BV = torch.zeros(1, 4)
    assert next_token_probabilities(equal_BV, top_k=1)[0].tolist() == [0.25] * 4
    assert next_token_probabilities(equal_BV, top_p=0.5)[0].tolist() == [0.5, 0.5, 0, 0]  # half is enough for a half
    assert next_token_probabilities(equal_BV, temperature=0)[0].tolist() == [1, 0, 0, 0]


def test_seen_tokens_lose_whatever_the_sign_of_their_score():
    logits_BV, seen_BV = torch.tensor([[2.0, -2.0, 0.5]]), torch.tensor([[True, True, False]])
    before = next_token_probabilities(logits_BV).log()[0]
    after = next_token_probabilities(logits_BV, repetition_penalty=2.0, seen_BV=seen_BV).log()[0]
    assert (after - after[2]).tolist() == pytest.approx([1.0 - 0.5, -4.0 - 0.5, 0.0])
    assert ((after - after[2]) < (before - before[2]))[:2].all()


def test_the_distribution_is_a_pure_function():
    logits_BV, seen_BV = torch.randn(3, 9, generator=seeded(2)), torch.ones(3, 9, dtype=torch.bool)
    allowed_V = torch.arange(9) > 2
    before = [t.clone() for t in (logits_BV, seen_BV, allowed_V)]
    options = {"top_k": 4, "top_p": 0.8, "repetition_penalty": 1.2, "seen_BV": seen_BV, "allowed_V": allowed_V}
    first, again = (next_token_probabilities(logits_BV, **options) for _ in range(2))
    assert torch.equal(first, again)
    assert all(torch.equal(t, b) for t, b in zip((logits_BV, seen_BV, allowed_V), before, strict=True))
    rows = torch.cat([next_token_probabilities(logits_BV[n : n + 1], **options | {"seen_BV": seen_BV[:1]})
                      for n in range(3)])  # fmt: skip
    assert torch.equal(first, rows)


# ---------------------------------------------------------------- the draw


def test_equal_steps_through_the_numbers_draw_each_token_by_its_share():
    probabilities_V = torch.tensor([0.0, 0.22, 0.0, 0.43, 0.35, 0.0])
    numbers_B = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ids = draw_tokens(probabilities_V.expand(1000, -1), numbers_B)
    assert torch.bincount(ids, minlength=6).tolist() == [0, 220, 0, 430, 350, 0]


@pytest.mark.parametrize("scale", [1, 0.999999, 1.000001])  # a sum of floats is seldom 1
def test_a_token_without_probability_is_never_drawn(scale):
    probabilities_BV = scale * torch.tensor([[0.0, 1 / 3, 0.0, 1 / 3, 1 / 3, 0.0]] * 3, dtype=torch.float64)
    numbers_B = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw_tokens(probabilities_BV, numbers_B).tolist() == [1, 3, 4]


COPIES = 4000
SOME = {"temperature": 0.8, "top_k": 12}


def fits(counts, expected) -> float:
    """The p-value of a chi-square test."""
    assert set(counts) <= set(expected) and min(expected.values()) * COPIES > 5
    seen = torch.tensor([counts[cell] for cell in expected])
    wanted = torch.tensor([share * COPIES for share in expected.values()])
    freedom = torch.tensor(len(expected) - 1.0)
    return torch.special.gammaincc(freedom / 2, ((seen - wanted) ** 2 / wanted).sum() / 2).item()


@torch.no_grad()
def shares_of_pairs(prompt, **options):
    """{two tokens: how likely they come in this order}, counted out."""
    allowed_V = VOCABULARY.is_ordinary_V

    def following(ids):
        return next_token_probabilities(MODEL(torch.tensor([ids])).logits[:, -1], allowed_V=allowed_V, **options)[0]

    first_V = following(prompt)
    pairs = {}
    for first in first_V.nonzero()[:, 0].tolist():
        second_V = following([*prompt, first])
        pairs |= {
            (first, second): (first_V[first] * second_V[second]).item() for second in second_V.nonzero()[:, 0].tolist()
        }
    return pairs


def pairs_written(**options):
    rows = written([PROMPTS[0]] * COPIES, max_new_tokens=2, stop_ids=(), seed=3, **options)
    return Counter(tuple(row) for row in rows)


def test_pairs_of_tokens_come_as_often_as_they_should():
    expected = shares_of_pairs(PROMPTS[0], **SOME)
    assert sum(expected.values()) == pytest.approx(1)
    assert fits(pairs_written(**SOME), expected) > 0.01


def test_the_check_above_refuses_another_temperature():
    assert fits(pairs_written(temperature=1.2, top_k=12), shares_of_pairs(PROMPTS[0], **SOME)) < 1e-6


def test_the_check_above_refuses_one_number_for_both_tokens(monkeypatch):
    uniform = generation._uniform
    monkeypatch.setattr(generation, "_uniform", lambda *a, **k: uniform(*a, **k)[:, :1].expand(-1, 2))
    assert fits(pairs_written(**SOME), shares_of_pairs(PROMPTS[0], **SOME)) < 1e-6


def test_same_generator_same_text_another_seed_another_text():
    assert written(seed=1) == written(seed=1)
    assert all(one != two for one, two in zip(written(seed=1), written(seed=2), strict=True))
    one, two = written([PROMPTS[0]] * 2, seed=1)
    assert one != two  # each row has numbers of its own


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    written()
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_needs_no_generator_and_moves_none():
    generator = seeded(5)
    before = generator.get_state()
    assert written(**GREEDY, generator=None) == written(**GREEDY, generator=generator)
    assert torch.equal(generator.get_state(), before)


# ---------------------------------------------------------------- what is written, and when it ends


def favouring(*ids, by=3.0):
    def change(logits):
        return logits + by * torch.isin(torch.arange(logits.shape[-1]), torch.tensor(ids))

    return change


def test_special_tokens_are_not_written_unless_allowed():
    specials = set(VOCABULARY.special_ids) - {VOCABULARY.eos}
    with watched(change=favouring(*specials)):
        by_default = {i for row in written() for i in row}
        allowed = {i for row in written(allow_special=True) for i in row}
        banned = {i for row in written(allow_special=True, banned_ids=[0, 1, 2]) for i in row}
    assert by_default and not by_default & set(VOCABULARY.special_ids)
    assert len(allowed & specials) >= 4
    assert banned & specials and not banned & {0, 1, 2}


def test_banned_tokens_are_not_written_and_the_others_share_what_they_had():
    usual = written(**GREEDY, stop_ids=())
    banned = {row[0] for row in usual}
    other = written(**GREEDY, stop_ids=(), banned_ids=banned)
    assert not banned & {i for row in other for i in row}
    assert not set(VOCABULARY.special_ids) & {i for row in other for i in row}  # these are banned besides


def test_no_token_is_written_that_the_tokenizer_does_not_have():
    small = Vocabulary(50, eos=3)
    prompts = [[10, 11], [12]]
    with watched(change=favouring(*range(50, SIZE), by=50)):
        rows = written(prompts, vocabulary=small, allow_special=True)
        control = written(prompts, vocabulary=Vocabulary(SIZE, eos=3))
    assert max(i for row in rows for i in row) < 50
    assert min(i for row in control for i in row) >= 50


@pytest.mark.parametrize("sampling", few(SAMPLINGS.values(), GREEDY, SAMPLINGS["all"]), ids=SAMPLINGS)
def test_a_row_ends_before_its_first_stop_and_the_others_go_on(sampling):
    full = written(stop_ids=(), **sampling)
    assert [len(row) for row in full] == [NEW] * 4
    stops = {full[0][4]}
    rows = written(stop_ids=stops, **sampling)
    assert rows == [list(takewhile(lambda i: i not in stops, row)) for row in full]
    assert len(rows[0]) <= 4


def test_eos_ends_a_row_by_default_and_never_comes_where_nothing_stops():
    with watched(change=favouring(VOCABULARY.eos)):
        rows = written(max_new_tokens=40)
        full = written(max_new_tokens=40, stop_ids=())
        with_eos = written(max_new_tokens=40, stop_ids=(), allow_special=True)
    assert len({len(row) for row in rows}) > 1 and min(map(len, rows)) < 40
    assert all(len(row) == 40 for row in full + with_eos)
    assert not any(VOCABULARY.eos in row for row in rows + full)
    assert any(VOCABULARY.eos in row for row in with_eos)  # the control: it would have come


def test_a_special_token_that_stops_may_come_and_a_banned_one_may_not():
    sep = VOCABULARY.sep
    with watched(change=favouring(sep, by=50)):
        assert written(stop_ids=[sep]) == [[]] * 4
        assert [len(row) for row in written(stop_ids=[sep], banned_ids=[sep])] == [NEW] * 4


def test_nothing_is_read_once_all_rows_have_stopped():
    with watched(change=favouring(VOCABULARY.eos, by=50)) as calls:
        assert written() == [[]] * 4
    assert len(calls) == 1


def test_rows_that_stop_at_different_steps_are_read_until_the_last_has_stopped():
    ends = [2, 5, 1, 3]  # steps until each row draws its only [EOS]

    def each_at_its_own(logits_BV):
        turn = len(calls) + 1
        logits_BV = torch.zeros_like(logits_BV)
        for row, end in enumerate(ends):
            logits_BV[row, VOCABULARY.eos if turn == end else 9] = 50.0
        return logits_BV

    with watched(change=each_at_its_own) as calls:
        assert [len(row) for row in written(max_new_tokens=9)] == [end - 1 for end in ends]
    assert len(calls) == max(ends)


def test_penalised_is_what_a_row_holds_its_prompt_included_and_no_other():
    rows = [[9, 10, 11], [12]]
    with watched(change=lambda logits: torch.full_like(logits, 5.0)):
        new = written(rows, max_new_tokens=4, repetition_penalty=2.0, stop_ids=(), **GREEDY)
    assert new == [[12, 13, 14, 15], [9, 10, 11, 13]]  # the first that the row does not hold, each time


def test_the_model_may_be_filled_to_its_length():
    longest = MODEL.config.max_len - len(PROMPTS[2])
    assert [len(row) for row in written(max_new_tokens=longest, stop_ids=())] == [longest] * 4


# ---------------------------------------------------------------- the model is left as it was


def mixed():
    """In training mode, with one part that is not."""
    model = tiny("causal", vocab_size=SIZE, dropout=0.5).train()
    model.transformer["h"][1].eval()
    return model, [part.training for part in model.modules()]


def test_dropout_is_off_and_every_part_is_in_its_mode_again():
    model, modes = mixed()
    assert written(model=model) == written(model=model.eval())
    model, modes = mixed()
    written(model=model)
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_modes_come_back_where_the_model_fails():
    model, modes = mixed()
    with pytest.raises(ValueError, match="diverged"), watched(model, lambda logits: logits * math.nan):
        written(model=model)
    assert [part.training for part in model.modules()] == modes


# ---------------------------------------------------------------- texts

TOKENIZER = course_tokenizer()
WRITER = tiny("causal").eval()


def test_completing_a_text_is_generating_behind_bos():
    text, options = "A good film, but", {"max_new_tokens": 9, "top_k": 40}
    bos, ids = TOKENIZER.vocabulary.bos, TOKENIZER.encode(text)
    [expected] = generate(WRITER, [[bos, *ids]], TOKENIZER.vocabulary, generator=seeded(1), **options)
    given_bos = complete(WRITER, TOKENIZER, text, generator=seeded(1), **options)
    assert given_bos == TOKENIZER.decode(expected)
    [expected] = generate(WRITER, [ids], TOKENIZER.vocabulary, generator=seeded(1), **options)
    without = complete(WRITER, TOKENIZER, text, generator=seeded(1), bos=False, **options)
    assert without == TOKENIZER.decode(expected) != given_bos


def test_several_texts_give_several_and_an_empty_one_begins_by_itself():
    texts = ["a good film", "", "it is"]
    several = complete(WRITER, TOKENIZER, texts, max_new_tokens=6, temperature=0)
    assert several == [complete(WRITER, TOKENIZER, text, max_new_tokens=6, temperature=0) for text in texts]
    assert len(set(several)) == 3
    assert complete(WRITER, TOKENIZER, [texts[0]], max_new_tokens=6, temperature=0) == several[:1]


def test_a_masked_place_is_filled_from_the_models_distribution():
    model = tiny("masked").eval()
    bos, eos = TOKENIZER.vocabulary.bos, TOKENIZER.vocabulary.eos
    text = "a [MASK] film and a [MASK] cast"
    ids = [bos, *TOKENIZER.encode(text, special=True), eos]
    with torch.no_grad():
        probabilities_TV = model(torch.tensor([ids])).logits[0].softmax(-1)
    filled = fill_in(model, TOKENIZER, text, top=3)
    places = [place for place, i in enumerate(ids) if i == TOKENIZER.vocabulary.mask]
    assert len(filled) == len(places) == 2
    for found, place in zip(filled, places, strict=True):
        best = probabilities_TV[place].topk(3)
        assert [token for token, _ in found] == [TOKENIZER.token(i) for i in best.indices.tolist()]
        assert [share for _, share in found] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert filled[0] != filled[1]
    assert filled != fill_in(model, TOKENIZER, text, top=3, frame=("cls", "sep"))


# ---------------------------------------------------------------- what is refused, and in which words

ZEROS, HEADLESS = torch.zeros(1, 4), Encoder(WRITER.config, head=False)
REFUSED = [
    ("model of the wrong kind", {"model": tiny("masked", vocab_size=SIZE)}, ("is a Encoder", "Decoder")),
    ("no model", {"model": None}, ("model is a NoneType", "Decoder")),
    ("tokenizer for vocabulary", {"vocabulary": TOKENIZER}, ("vocabulary is a Tokenizer", "tokenizer.vocabulary")),
    ("vocabulary too large", {"vocabulary": Vocabulary(90)}, ("90 tokens", "model 60", "trained with")),
    ("temperature negative", {"temperature": -0.1}, ("temperature is -0.1", "give 0 for the best token")),
    ("temperature nan", {"temperature": math.nan}, ("temperature is nan", "such as 0.8")),
    ("temperature infinite", {"temperature": math.inf}, ("temperature is inf", "such as 0.8")),
    ("top_k 0", {"top_k": 0}, ("top_k is 0", "at least 1", "None")),
    ("top_k with a fraction", {"top_k": 2.5}, ("top_k is 2.5", "whole number")),
    ("top_p 0", {"top_p": 0.0}, ("top_p is 0.0", "above 0 and at most 1")),
    ("top_p above 1", {"top_p": 90}, ("top_p is 90", "above 0 and at most 1")),
    ("top_p nan", {"top_p": math.nan}, ("top_p is nan", "such as 0.9")),
    ("penalty 0", {"repetition_penalty": 0}, ("repetition_penalty is 0", "above 0; 1 changes nothing")),
    ("penalty negative", {"repetition_penalty": -1.2}, ("repetition_penalty is -1.2", "above 0")),
    ("penalty nan", {"repetition_penalty": math.nan}, ("repetition_penalty is nan", "above 0")),
    ("no new tokens", {"max_new_tokens": 0}, ("max_new_tokens is 0", "at least 1")),
    ("half a token", {"max_new_tokens": 1.5}, ("max_new_tokens is 1.5", "whole number")),
    ("no prompts", {"prompts": []}, ("prompts are empty", "[[vocabulary.bos]]")),
    ("empty prompt", {"prompts": [[9], []]}, ("prompts[1] is empty", "[BOS]")),
    ("one prompt for many", {"prompts": [9, 10]}, ("prompts[0] is 9", "a list of token ids for each prompt")),
    ("text for ids", {"prompts": ["a film"]}, ("prompts[0] is 'a film'", "token ids")),
    ("id too high", {"prompts": [[9], [9, 60]]}, "token id 60 lies outside the vocabulary of 60"),
    ("id negative", {"prompts": [[-1]]}, "token id -1 lies outside"),
    ("ids with fractions", {"prompts": [[9.5]]}, ("dtype torch.float32", "int64")),
    ("too long together", {"max_new_tokens": 48}, ("prompts[2] has 17", "is 48, together 65", "max_len 64", "shorten")),
    ("prompt too long", {"prompts": [[9] * 70]}, ("prompts[0] has 70 tokens", "max_len 64", "shorten the prompt")),
    ("stop outside", {"stop_ids": [60]}, ("stop_ids hold 60", "vocabulary of 60")),
    ("stop as a number", {"stop_ids": 3}, ("stop_ids is 3", "[3]")),
    ("ban outside", {"banned_ids": [9, -2]}, ("banned_ids hold -2", "vocabulary of 60")),
    ("everything banned", {"banned_ids": range(SIZE)}, ("banned_ids leave no token", "ban fewer")),
    ("all ordinary ones banned", {"banned_ids": range(9, SIZE), "stop_ids": ()}, "banned_ids leave no token"),
    ("no generator", {"generator": None}, ("generator is None", "seeded(0)", "temperature=0")),
]


@pytest.mark.parametrize(("options", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_before_anything_is_computed_or_drawn(options, words):
    generator = seeded(5)
    before = generator.get_state()
    with watched() as calls, pytest.raises((ValueError, TypeError)) as refusal:
        written(**{"generator": generator} | options)
    for part in (words,) if isinstance(words, str) else words:
        assert part in str(refusal.value)
    assert calls == [] and torch.equal(generator.get_state(), before)


REFUSED_ELSEWHERE = [
    ("temperature", lambda: next_token_probabilities(ZEROS, temperature=-1.0), "temperature is -1.0"),
    ("top_k", lambda: next_token_probabilities(ZEROS, top_k=0), "top_k is 0"),
    ("top_p", lambda: next_token_probabilities(ZEROS, top_p=1.01), "top_p is 1.01"),
    ("penalty", lambda: next_token_probabilities(ZEROS, repetition_penalty=0.0), "repetition_penalty is 0.0"),
    ("penalty for nothing", lambda: next_token_probabilities(ZEROS, repetition_penalty=1.2), "seen_BV is not given"),
    ("logits nan", lambda: next_token_probabilities(ZEROS * math.nan, temperature=0), "hold nan or inf"),
    ("logits inf", lambda: next_token_probabilities(ZEROS + math.inf), "hold nan or inf"),
    ("nothing allowed", lambda: next_token_probabilities(ZEROS, allowed_V=ZEROS[0] > 0), "a row without a token"),
    ("empty text", lambda: complete(WRITER, TOKENIZER, "", bos=False, temperature=0), "prompts[0] is empty"),
    ("unknown option", lambda: complete(WRITER, TOKENIZER, "a", temprature=0), "temprature"),
    ("long text", lambda: complete(WRITER, TOKENIZER, "a film " * 40, temperature=0), "more than max_len 64"),
    ("nothing masked", lambda: fill_in(tiny("masked"), TOKENIZER, "a film"), "holds no [MASK]"),
    ("filled by a decoder", lambda: fill_in(WRITER, TOKENIZER, "a [MASK]"), "model is a Decoder: only an Encoder"),
    ("filled without a head", lambda: fill_in(HEADLESS, TOKENIZER, "a [MASK]"), "has no prediction head"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("act", "words"), [row[1:] for row in REFUSED_ELSEWHERE], ids=[r[0] for r in REFUSED_ELSEWHERE]
)
def test_refused_in_words_that_help(act, words):
    with pytest.raises((ValueError, TypeError)) as refusal:
        act()
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0}, {"top_k": 1}, {"top_k": 99}, {"top_p": 1}, {"repetition_penalty": 0.5},
     {"max_new_tokens": 47}, {"prompts": torch.tensor([[9, 10]])}, {"prompts": ((59,),)}, {"stop_ids": {59}},
     {"vocabulary": Vocabulary(60)}, {"banned_ids": range(10, SIZE)}],
)  # fmt: skip
def test_what_the_rows_get_wrong_is_accepted_once_it_is_right(options):
    """The control: nothing is refused that is in range."""
    assert len(written(**options)) == len(options.get("prompts", PROMPTS))
