"""Checks say what is wrong, accept every right answer, and let nothing of a learner's code reach the notebook."""

import inspect
import itertools
import random

import pytest
import torch
from exercises import (
    HOSTILE,
    assert_accepted,
    assert_crash_is_reported,
    assert_diagnosed,
    assert_enough_diagnoses,
    assert_no_function_is_refused,
    assert_not_attempted,
    cases_of,
    ids_of,
)

from course_lib import checks, data, masks, objectives
from course_lib.checks.corruptions import SENTINELS, corrupt_reference, restore_reference
from course_lib.checks.report import Part, report
from course_lib.runtime import seeded
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

# --- shift the labels: right and wrong answers ------------------------------------------------------------------------


def shift_by_slices(input_ids_BT, pad_id):
    labels_BT = torch.full_like(input_ids_BT, -100)
    labels_BT[:, :-1] = input_ids_BT[:, 1:]
    labels_BT[(labels_BT == pad_id) | (input_ids_BT == pad_id)] = -100
    return labels_BT


def shift_by_roll(input_ids_BT, pad_id):
    labels_BT = input_ids_BT.roll(-1, 1)
    labels_BT[:, -1] = -100
    return labels_BT.masked_fill((labels_BT == pad_id) | (input_ids_BT == pad_id), -100)


def shift_row_by_row(input_ids_BT, pad_id):
    rows = []
    for row in input_ids_BT.tolist():
        pairs = itertools.zip_longest(row, row[1:], fillvalue=pad_id)
        rows.append([-100 if pad_id in pair else pair[1] for pair in pairs])
    return torch.tensor(rows)


def not_shifted(input_ids_BT, pad_id):
    return input_ids_BT.masked_fill(input_ids_BT == pad_id, -100)


def shifted_backwards(input_ids_BT, pad_id):
    labels_BT = input_ids_BT.roll(1, 1)
    labels_BT[:, 0] = -100
    return labels_BT.masked_fill((labels_BT == pad_id) | (input_ids_BT == pad_id), -100)


def shift_wraps(input_ids_BT, pad_id):
    labels_BT = input_ids_BT.roll(-1, 1)
    return labels_BT.masked_fill((labels_BT == pad_id) | (input_ids_BT == pad_id), -100)


def shift_keeps_padding(input_ids_BT, pad_id):
    labels_BT = input_ids_BT.roll(-1, 1)
    labels_BT[:, -1] = -100
    return labels_BT


def shift_asks_padding(input_ids_BT, pad_id):
    labels_BT = input_ids_BT.roll(-1, 1)
    labels_BT[:, -1] = -100
    return labels_BT.masked_fill(labels_BT == pad_id, -100)


def shift_short(input_ids_BT, pad_id):
    return input_ids_BT[:, 1:]


def shift_in_place(input_ids_BT, pad_id):
    input_ids_BT[:, :-1] = input_ids_BT[:, 1:].clone()
    input_ids_BT[:, -1] = -100
    return input_ids_BT


def shift_float(input_ids_BT, pad_id):
    return shift_by_slices(input_ids_BT, pad_id).float()


def shift_last_is_padding(input_ids_BT, pad_id):
    labels_BT = torch.full_like(input_ids_BT, pad_id)
    labels_BT[:, :-1] = input_ids_BT[:, 1:]
    labels_BT[:, :-1][labels_BT[:, :-1] == pad_id] = -100
    return labels_BT


RIGHT_SHIFTS = [shift_by_slices, shift_by_roll, shift_row_by_row]


def shift_knows_one_padding_id(input_ids_BT, pad_id):
    return shift_by_slices(input_ids_BT, 0)


WRONG_SHIFTS = {
    shift_knows_one_padding_id: "did you use pad_id?",
    not_shifted: "only has to copy",
    shifted_backwards: "the wrong way",
    shift_wraps: "wrap around",
    shift_keeps_padding: "before padding there is no next token",
    shift_asks_padding: "padding predicts nothing",
    shift_short: "one column short",
    shift_in_place: "changed in place",
    shift_float: "dtype torch.float32",
    shift_last_is_padding: "padding id 0",
}

# --- mask tokens ------------------------------------------------------------------------------------------------------


def mask_in_one_draw(input_ids_BT, vocabulary, mask_prob, generator):
    fate = torch.rand(input_ids_BT.shape, generator=generator)
    chosen = (fate < mask_prob) & vocabulary.is_ordinary_V[input_ids_BT]
    shown = torch.where(chosen & (fate < 0.8 * mask_prob), vocabulary.mask, input_ids_BT)
    swapped = chosen & (fate >= 0.8 * mask_prob) & (fate < 0.9 * mask_prob)
    shown[swapped] = vocabulary.draw_ordinary(int(swapped.sum()), generator)
    return shown, input_ids_BT.masked_fill(~chosen, -100)


def mask_as_hugging_face(
    input_ids_BT, vocabulary, mask_prob, generator, hide=0.8, swap=0.5, chosen=None, ordinary=None, exclusive=True
):
    shown, labels = input_ids_BT.clone(), input_ids_BT.clone()

    def coin(prob):
        return torch.rand(input_ids_BT.shape, generator=generator) < prob

    chosen = coin(mask_prob) & vocabulary.is_ordinary_V[input_ids_BT] if chosen is None else chosen(coin)
    labels[~chosen] = IGNORE_INDEX
    hidden = coin(hide) & chosen
    shown[hidden] = vocabulary.mask
    swapped = coin(swap) & chosen & ~(hidden & exclusive)
    ids = vocabulary.ordinary_ids if ordinary is None else torch.arange(vocabulary.size)
    shown[swapped] = ids[torch.randint(len(ids), input_ids_BT.shape, generator=generator)][swapped]
    return shown, labels


def mask_token_by_token(input_ids_BT, vocabulary, mask_prob, generator):
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    ordinary, is_ordinary = vocabulary.ordinary_ids.tolist(), vocabulary.is_ordinary_V.tolist()
    shown, labels = input_ids_BT.tolist(), torch.full_like(input_ids_BT, -100).tolist()
    for b, t in itertools.product(range(len(shown)), range(len(shown[0]))):
        if is_ordinary[shown[b][t]] and rng.random() < mask_prob:
            labels[b][t], fate = shown[b][t], rng.random()
            if fate < 0.9:
                shown[b][t] = vocabulary.mask if fate < 0.8 else rng.choice(ordinary)
    return torch.tensor(shown), torch.tensor(labels)


def hide_all(*arguments):
    return mask_as_hugging_face(*arguments, hide=1.0)


def keep_none(*arguments):
    return mask_as_hugging_face(*arguments, swap=1.0)


def swap_none(*arguments):
    return mask_as_hugging_face(*arguments, swap=0.0)


def overlapping_fates(*arguments):
    return mask_as_hugging_face(*arguments, swap=0.1, exclusive=False)


def half_and_half(*arguments):
    return mask_as_hugging_face(*arguments, hide=0.5)


def shares_reversed(*arguments):
    return mask_as_hugging_face(*arguments, hide=0.1, swap=0.9)


def specials_chosen(input_ids_BT, vocabulary, mask_prob, generator):
    return mask_as_hugging_face(input_ids_BT, vocabulary, mask_prob, generator, chosen=lambda coin: coin(mask_prob))


def specials_drawn(*arguments):
    return mask_as_hugging_face(*arguments, ordinary=False)


def labels_everywhere(input_ids_BT, *rest):
    return mask_in_one_draw(input_ids_BT, *rest)[0], input_ids_BT.clone()


def labels_of_the_shown(*arguments):
    shown, labels = mask_in_one_draw(*arguments)
    return shown, shown.masked_fill(labels == -100, -100)


def labels_of_the_unchosen(input_ids_BT, *rest):
    shown, labels = mask_in_one_draw(input_ids_BT, *rest)
    return shown, input_ids_BT.masked_fill(labels != -100, -100)


def mask_in_place(input_ids_BT, vocabulary, mask_prob, generator):
    shown, labels = mask_in_one_draw(input_ids_BT, vocabulary, mask_prob, generator)
    return input_ids_BT.copy_(shown), labels


def global_draws(input_ids_BT, vocabulary, mask_prob, generator):
    return mask_in_one_draw(input_ids_BT, vocabulary, mask_prob, torch.default_generator)


def own_seed(input_ids_BT, vocabulary, mask_prob, generator):
    return mask_in_one_draw(input_ids_BT, vocabulary, mask_prob, seeded(0))


def same_for_all_rows(input_ids_BT, vocabulary, mask_prob, generator):
    row = torch.rand(input_ids_BT.shape[1], generator=generator) < mask_prob
    return mask_as_hugging_face(
        input_ids_BT,
        vocabulary,
        mask_prob,
        generator,
        chosen=lambda coin: row & vocabulary.is_ordinary_V[input_ids_BT],
    )


def too_many(input_ids_BT, vocabulary, mask_prob, generator):
    return mask_in_one_draw(input_ids_BT, vocabulary, min(1.0, 1.5 * mask_prob), generator)


def one_swap_for_all(input_ids_BT, vocabulary, mask_prob, generator):
    shown, labels = mask_in_one_draw(input_ids_BT, vocabulary, mask_prob, generator)
    swapped = (labels != -100) & (shown != input_ids_BT) & (shown != vocabulary.mask)
    return shown.masked_fill(swapped, int(vocabulary.draw_ordinary(1, generator))), labels


def mask_gives_one_value(*arguments):
    return mask_in_one_draw(*arguments)[0]


RIGHT_MASKS = [mask_in_one_draw, mask_as_hugging_face, mask_token_by_token]


def swap_a_tenth_of_the_rest(input_ids_BT, vocabulary, mask_prob, generator):
    chosen_BT, hidden_BT, swapped_BT = (torch.rand(input_ids_BT.shape, generator=generator) for _ in range(3))
    chosen_BT = (chosen_BT < mask_prob) & vocabulary.is_ordinary_V[input_ids_BT]
    hidden_BT = chosen_BT & (hidden_BT < 0.8)
    swapped_BT = chosen_BT & ~hidden_BT & (swapped_BT < 0.1)
    shown_BT = input_ids_BT.masked_fill(hidden_BT, vocabulary.mask)
    shown_BT[swapped_BT] = vocabulary.draw_ordinary(int(swapped_BT.sum()), generator)
    return shown_BT, input_ids_BT.masked_fill(~chosen_BT, IGNORE_INDEX)


def label_only_what_changed(input_ids_BT, *rest):
    shown_BT, labels_BT = mask_in_one_draw(input_ids_BT, *rest)
    return shown_BT, labels_BT.masked_fill(shown_BT == input_ids_BT, IGNORE_INDEX)


def hide_below_eight_tenths(input_ids_BT, vocabulary, mask_prob, generator):
    fate_BT = torch.rand(input_ids_BT.shape, generator=generator)
    chosen_BT = (fate_BT < mask_prob) & vocabulary.is_ordinary_V[input_ids_BT]
    shown_BT = input_ids_BT.masked_fill(chosen_BT & (fate_BT < 0.8), vocabulary.mask)
    return shown_BT, input_ids_BT.masked_fill(~chosen_BT, IGNORE_INDEX)


WRONG_MASKS = {
    swap_a_tenth_of_the_rest: "a tenth of the rest",
    label_only_what_changed: "need a label too",
    hide_below_eight_tenths: "or with 0.8 of mask_prob",
    hide_all: "all are hidden",
    keep_none: "chosen tokens stayed unchanged; the paper keeps 10%: is the last tenth drawn separately?",
    swap_none: "swaps 10% for a random token",
    overlapping_fates: "must exclude each other",
    half_and_half: "It should be 80, 10 and 10%",
    shares_reversed: "the wrong way round",
    specials_chosen: "special tokens were chosen",
    specials_drawn: "swapped for a special token",
    labels_everywhere: "not chosen need the label -100",
    labels_of_the_shown: "not what is shown now",
    labels_of_the_unchosen: "the choice is the wrong way round",
    mask_in_place: "input_ids_BT was changed in place",
    global_draws: "some draw ignores the generator",
    own_seed: "Two different generators gave the same result",
    same_for_all_rows: "Every row has the same positions",
    too_many: "ordinary tokens were chosen; mask_prob 0.15 asks for",
    one_swap_for_all: "became only 1 different ones",
    mask_gives_one_value: "Give back two values",
}

# --- the visibility of a permutation ----------------------------------------------------------------------------------


def visibility_by_cells(order_BT, is_target_BT):
    rows, length = order_BT.shape
    content, query = (torch.zeros(rows, length, length, dtype=torch.bool) for _ in range(2))
    for b, q, k in itertools.product(range(rows), range(length), range(length)):
        earlier = bool(is_target_BT[b, q]) and order_BT[b, k] < order_BT[b, q]
        query[b, q, k] = not is_target_BT[b, k] or earlier
        content[b, q, k] = query[b, q, k] or q == k
    return content, query


def visibility_by_place(order_BT, is_target_BT):
    place_BT = torch.where(is_target_BT, order_BT, -1)  # the given ones all come before the first target
    content = place_BT[:, None, :] <= place_BT[:, :, None]
    own = torch.eye(order_BT.shape[1], dtype=torch.bool) & is_target_BT[:, :, None]
    return content, content & ~own


def variant(change):
    """A wrong answer made from the right one; its name is for the test's id."""

    def wrong(order_BT, is_target_BT):
        return change(order_BT, is_target_BT, *masks.permutation(order_BT, is_target_BT))

    return wrong


def earlier(order_BT):
    return order_BT[:, None, :] < order_BT[:, :, None]


WRONG_VISIBILITIES = {
    variant(lambda o, t, c, q: (c, c)): "sees itself",
    variant(lambda o, t, c, q: (q, q)): "does not see itself",
    variant(lambda o, t, c, q: (q, c)): "streams are swapped",
    variant(lambda o, t, c, q: (~c, ~q)): "inverted",
    variant(lambda o, t, c, q: (c.mT, q.mT)): "Rows and columns are exchanged",
    variant(lambda o, t, c, q: masks.permutation(o.argsort(1), t)): "each position's place",
    variant(lambda o, t, c, q: masks.permutation(o.shape[1] - 1 - o, t)): "The order is reversed",
    variant(lambda o, t, c, q: (c | earlier(o), q | earlier(o))): "a non-target must see no target",
    variant(lambda o, t, c, q: (earlier(o) | torch.eye(o.shape[1]).bool(), earlier(o))): "non-targets are given",
    variant(lambda o, t, c, q: (c | t[:, :, None], q)): "which comes later in the order",
    variant(lambda o, t, c, q: (c.float(), q.float())): "dtype torch.float32",
    variant(lambda o, t, c, q: (c[0], q[0])): "has shape (4, 4) and should have (1, 4, 4)",
    variant(lambda o, t, c, q: c): "Give back two values",
    variant(lambda o, t, c, q: (c, q, t.logical_not_())[:2]): "is_target_BT was changed in place",
}

# --- spans and sentinels ----------------------------------------------------------------------------------------------


def corrupt_in_a_loop(ids, is_noise, sentinels):
    shown, target, n, before = [], [], 0, False
    for token, noisy in zip(ids, is_noise, strict=True):
        if noisy and not before:
            shown.append(sentinels[n])
            target.append(sentinels[n])
            n += 1
        (target if noisy else shown).append(token)
        before = noisy
    return shown, [*target, sentinels[n]]


def corrupt_in_a_loop_as_tensors(ids, is_noise, sentinels):
    return tuple(torch.tensor(part, dtype=torch.int64) for part in corrupt_in_a_loop(ids, is_noise, sentinels))


def restore_by_dictionary(shown, target, sentinels):
    spans, current = {}, None
    for token in target:
        if token in sentinels:
            current = spans[token] = []
        else:
            current.append(token)
    return [t for token in shown for t in spans.get(token, [token])]


def restore_by_position(shown, target, sentinels):
    ids = []
    for token in shown:
        if token in sentinels:
            start = target.index(token) + 1
            ids += itertools.takewhile(lambda t: t not in sentinels, target[start:])
        else:
            ids.append(token)
    return ids


def sentinel_for_each(ids, is_noise, sentinels):
    shown, target, unused = [], [], iter(sentinels)
    for token, noisy in zip(ids, is_noise, strict=True):
        mark = next(unused) if noisy else None
        shown.append(mark if noisy else token)
        target += [mark, token] if noisy else []
    return shown, [*target, next(unused)]


def same_sentinel(ids, is_noise, sentinels):
    return tuple(
        [sentinels[0] if token in sentinels else token for token in part]
        for part in corrupt_in_a_loop(ids, is_noise, sentinels)
    )


def no_last_sentinel(*arguments):
    shown, target = corrupt_in_a_loop(*arguments)
    return shown, target[:-1]


def exchanged(*arguments):
    return corrupt_in_a_loop(*arguments)[::-1]


def sentinel_behind(ids, is_noise, sentinels):
    shown, target = corrupt_in_a_loop(ids, is_noise, sentinels)
    spans = restore_by_dictionary([s for s in sentinels if s in target], target, sentinels)
    marks = [token for token in target if token in sentinels]
    return shown, spans + marks


def last_span_lost(ids, is_noise, sentinels):
    shown, target = corrupt_in_a_loop(ids, is_noise, sentinels)
    return (shown[:-1] if is_noise[-1] else shown), target


def noise_stays(ids, is_noise, sentinels):
    return list(ids), corrupt_in_a_loop(ids, is_noise, sentinels)[1]


def target_is_the_text(ids, is_noise, sentinels):
    return corrupt_in_a_loop(ids, is_noise, sentinels)[0], list(ids)


def sentinels_out_of_turn(ids, is_noise, sentinels):
    return corrupt_in_a_loop(ids, is_noise, sentinels[1:])


def eats_the_ids(ids, is_noise, sentinels):
    shown, target = corrupt_in_a_loop(ids, is_noise, sentinels)
    ids[:] = shown
    return ids, target


def eats_the_sentinels(ids, is_noise, sentinels):
    result = corrupt_in_a_loop(ids, is_noise, sentinels)
    sentinels.pop(0)
    return result


def gives_words(ids, is_noise, sentinels):
    return "a <extra_id_0>", "<extra_id_0> film"


def noise_inverted(ids, is_noise, sentinels):
    return corrupt_in_a_loop(ids, [not noisy for noisy in is_noise], sentinels)


def looks_before_the_start(ids, is_noise, sentinels):
    shown, target, used = [], [], 0
    for t, token in enumerate(ids):
        if is_noise[t] and not is_noise[t - 1]:
            shown.append(sentinels[used])
            target.append(sentinels[used])
            used += 1
        (target if is_noise[t] else shown).append(token)
    return shown, [*target, sentinels[used]]


def ends_with_the_very_last(ids, is_noise, sentinels):
    shown, target = corrupt_in_a_loop(ids, is_noise, sentinels)
    return shown, [*target[:-1], sentinels[-1]]


WRONG_CORRUPTIONS = {
    noise_inverted: "those that stay",
    looks_before_the_start: "at the start",
    ends_with_the_very_last: "no span has used",
    sentinel_for_each: "side by side are one span",
    same_sentinel: "used twice",
    no_last_sentinel: "lacks the last sentinel",
    exchanged: "exchanged",
    sentinel_behind: "a sentinel comes before",
    last_span_lost: "what if the span stands at the end",
    noise_stays: "lacks a sentinel where a span was removed",
    target_is_the_text: "The target should hold the removed tokens",
    sentinels_out_of_turn: "out of turn",
    eats_the_ids: "ids was changed in place",
    eats_the_sentinels: "sentinels was changed in place",
    gives_words: "lists of token ids",
}
WRONG_RESTORATIONS = {
    (lambda shown, target, sentinels: [t for t in shown if t not in sentinels]): "nothing has taken their place",
    (lambda shown, target, sentinels: [*restore_by_dictionary(shown, target, sentinels), sentinels[0]]): "is left in",
    (
        lambda shown, target, sentinels: [t for t in shown + target if t not in sentinels]
    ): "each span belongs where its sentinel stands",
    (lambda shown, target, sentinels: restore_by_dictionary(shown, target[:-2], sentinels)): "the last span's too",
    (lambda shown, target, sentinels: (target.pop(), [1])[1]): "target was changed in place",
}

EXERCISES = {
    "shift_labels": (checks.shift_labels, RIGHT_SHIFTS, WRONG_SHIFTS),
    "mask_tokens": (checks.mask_tokens, RIGHT_MASKS, WRONG_MASKS),
    "permutation_mask": (checks.permutation_mask, [visibility_by_cells, visibility_by_place], WRONG_VISIBILITIES),
    "corrupt_spans": (
        lambda f: checks.corrupt_spans(f, restore_by_dictionary)[0],
        [corrupt_in_a_loop, corrupt_in_a_loop_as_tensors],
        WRONG_CORRUPTIONS,
    ),
    "restore_spans": (
        lambda f: checks.corrupt_spans(corrupt_in_a_loop, f)[1],
        [restore_by_dictionary, restore_by_position],
        WRONG_RESTORATIONS,
    ),
}
RIGHT, WRONG = cases_of(EXERCISES)


def attempt(name, function):
    return EXERCISES[name][0](function)


@pytest.mark.parametrize(("name", "function"), RIGHT, ids=ids_of(RIGHT))
def test_a_right_answer_is_accepted_and_given_back(name, function, capsys):
    assert_accepted(attempt, name, function, capsys)


@pytest.mark.parametrize(("name", "function", "words"), WRONG, ids=ids_of(WRONG))
def test_a_wrong_answer_is_diagnosed_and_replaced(name, function, words, capsys):
    assert_diagnosed(attempt, name, function, words, capsys)
    given_back = attempt(name, function)
    assert attempt(name, given_back) is given_back, "the library's own version must pass"


@pytest.mark.parametrize("name", EXERCISES)
def test_there_are_enough_different_diagnoses(name):
    _, right, wrong = EXERCISES[name]
    assert_enough_diagnoses(right, wrong)


@pytest.mark.parametrize("name", EXERCISES)
def test_an_untouched_exercise_is_not_attempted(name, capsys):
    assert_not_attempted(attempt, name, capsys)


def test_a_half_done_exercise_gets_a_verdict_for_each_half(capsys):
    def untouched(*_arguments):
        raise NotImplementedError("write me")

    corrupt, restore = checks.corrupt_spans(corrupt_in_a_loop, untouched)
    verdict = capsys.readouterr().out
    assert "✓ corrupt_spans" in verdict and "· restore_spans: not attempted yet." in verdict
    assert corrupt is corrupt_in_a_loop
    assert restore is restore_reference


@pytest.mark.parametrize("name", EXERCISES)
def test_a_crash_is_reported_with_its_line(name, capsys):
    assert_crash_is_reported(attempt, name, capsys)


ANSWERS = [
    *HOSTILE,
    ([[1]], "x"),
    (torch.zeros(1, 4, 4), None),
    (torch.tensor([[1]]), torch.tensor([[1]])),
]


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_nothing_that_comes_back_raises(name, answer, capsys):
    attempt(name, lambda *_arguments: answer)
    assert f"✗ {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXERCISES)
def test_what_is_no_function_of_these_arguments_is_refused(name, capsys):
    assert_no_function_is_refused(attempt, name, capsys)


def test_a_fault_of_torch_is_no_untouched_exercise(capsys):
    def through_torch(*_arguments):
        return torch.zeros(1, device="meta").nonzero()

    with pytest.raises(NotImplementedError):
        through_torch()
    checks.shift_labels(through_torch)
    assert "not right yet" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXERCISES)
def test_the_verdict_never_holds_the_solution(name, capsys):
    check, _, wrong = EXERCISES[name]
    for function in wrong:
        check(function)
    verdicts = capsys.readouterr().out
    for code in (objectives.causal, objectives.masked, masks.permutation, corrupt_reference, restore_reference):
        body = [line.strip() for line in inspect.getsource(code).splitlines()]
        for line in body:
            if len(line) > 30 and not line.startswith(('"', "#", ">>>", "def ")) and "=" in line:
                assert line not in verdicts


def test_a_check_leaves_torchs_own_generator_alone(capsys):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    checks.mask_tokens(mask_in_one_draw)
    assert torch.equal(torch.rand(3), wanted)


def test_a_mistake_in_a_check_itself_does_not_reach_the_notebook(capsys):
    def broken(_function):
        raise ZeroDivisionError

    report(Part("broken", len, broken, len))
    assert "could make nothing of what it gave back" in capsys.readouterr().out


def test_the_reference_for_spans_is_the_librarys_corruption():
    vocabulary = data.course_tokenizer().vocabulary
    ids_BT = torch.randint(200, vocabulary.size, (8, 60), generator=seeded(0))
    batch = objectives.span_corrupted(ids_BT, vocabulary, noise_density=0.3, generator=seeded(1))
    for ids, shown, labels in zip(ids_BT.tolist(), batch.input_ids_BT.tolist(), batch.labels_BL.tolist(), strict=True):
        shown = [token for token in shown if token != vocabulary.pad]
        target = [token for token in labels if token != IGNORE_INDEX]
        is_noise, rest = [], iter(shown)
        kept = [token for token in shown if token not in vocabulary.sentinels]
        for token in ids:  # ids are drawn from thousands: a kept one is met in its turn
            is_kept = bool(kept) and token == kept[0]
            is_noise.append(not is_kept)
            kept = kept[1:] if is_kept else kept
        assert corrupt_reference(ids, is_noise, list(vocabulary.sentinels)) == (shown, target)
        assert restore_reference(shown, target, list(vocabulary.sentinels)) == ids
        assert list(rest) == shown


def test_the_sentinels_of_the_checks_are_no_tokens_of_their_texts():
    from course_lib.checks.corruptions import _span_cases

    assert not {token for ids, _ in _span_cases() for token in ids} & set(SENTINELS)
    assert Vocabulary(300, sentinels=tuple(SENTINELS)).sentinels == tuple(SENTINELS)
