"""Collators: padding that a model does not see, labels that are moved once, batches of like length. What stands in a
batch is checked against its examples one by one; what a model makes of it, against each example alone."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import differ, tiny

from course_lib import masks
from course_lib.finetuning import (
    ClassificationCollator,
    DefaultCollator,
    GenerationCollator,
    Padding,
    Seq2SeqCollator,
    as_batch,
    grouped_batches,
    length_grouped,
)
from course_lib.generation import generate
from course_lib.objectives import Batch
from course_lib.runtime import seeded
from course_lib.spans import shift_right
from course_lib.training import batch_loss
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

PAD, UNK, BOS, EOS, CLS, SEP, MASK = range(7)
VOCABULARY = Vocabulary(200, PAD, UNK, BOS, EOS, CLS, SEP, MASK)
OF_BERT = Vocabulary(200, pad=PAD, cls=CLS, sep=SEP)

texts = st.lists(st.integers(7, 199), max_size=12)
paddings = st.builds(
    lambda max_len, multiple_of, fill, side: Padding(max_len, multiple_of, min(fill, max_len or 99), side),
    max_len=st.none() | st.integers(3, 20),
    multiple_of=st.sampled_from([1, 1, 4, 8]),
    fill=st.sampled_from([0, 0, 7, 16]),
    side=st.sampled_from(["right", "left"]),
)


def is_padded_right(padded_BT, rows, fill, how: Padding) -> bool:
    """Whether this is what `how` makes of the rows, by its description alone."""
    longest = max(map(len, rows))
    allowed = how.max_len or 10**6
    length = next(n for n in range(longest, allowed + 1) if n % how.multiple_of == 0 or n == allowed)
    length = max(length, how.fill_to)
    for padded, row in zip(padded_BT.tolist(), rows, strict=True):
        gap = [fill] * (length - len(row))
        if padded != (gap + list(row) if how.side == "left" else list(row) + gap):
            return False
    return padded_BT.dtype == torch.int64


# ---------------------------------------------------------------- padding


@given(st.lists(texts.filter(len), min_size=1, max_size=5), paddings)
def test_rows_are_padded_as_far_as_is_asked_and_no_further(rows, how):
    if how.max_len is not None and max(map(len, rows)) > how.max_len:
        with pytest.raises(ValueError, match=rf"a row has \d+ tokens and max_len is {how.max_len}: shorten its text"):
            how.pad(rows, PAD)
    else:
        assert is_padded_right(how.pad(rows, PAD), rows, PAD, how)


def test_the_check_above_tells_other_padding():
    rows, how = [[7, 8, 9], [7]], Padding(multiple_of=4)
    right_BT = how.pad(rows, PAD)
    assert is_padded_right(right_BT, rows, PAD, how)
    for wrong_BT in (right_BT[:, :3], right_BT.flip(1), right_BT + (right_BT == PAD), right_BT.int(), right_BT.roll(1)):
        assert not is_padded_right(wrong_BT, rows, PAD, how)


@pytest.mark.parametrize(
    ("how", "length"),
    [
        (Padding(), 5),
        (Padding(multiple_of=8), 8),
        (Padding(multiple_of=5), 5),
        (Padding(max_len=7, multiple_of=8), 7),
        (Padding(fill_to=12), 12),
        (Padding(fill_to=2), 5),
        (Padding(max_len=12, fill_to=12), 12),
        (Padding(max_len=12, fill_to=10, multiple_of=8), 10),
    ],
)
def test_five_tokens_are_padded_to(how, length):
    assert how.pad([[9] * 5, [9]], 1).shape == (2, length)
    assert Padding().side == "right"


# ---------------------------------------------------------------- classification


@given(st.lists(texts, min_size=1, max_size=5), paddings, st.sampled_from([VOCABULARY, OF_BERT]), st.booleans())
def test_a_text_stands_whole_between_its_special_tokens_or_loses_its_end(rows, how, vocabulary, labelled):
    examples = [{"input_ids": row} | ({"label": n % 3} if labelled else {}) for n, row in enumerate(rows)]
    batch = ClassificationCollator(vocabulary, how)(examples)
    first, last = (BOS, EOS) if vocabulary is VOCABULARY else (CLS, SEP)
    room = 10**6 if how.max_len is None else how.max_len - 2
    framed = [[first, *row[:room], last] for row in rows]
    assert is_padded_right(batch["input_ids"], framed, PAD, how)
    assert is_padded_right(batch["attention_mask"], [[1] * len(row) for row in framed], 0, how)
    assert batch.keys() == {"input_ids", "attention_mask", *(["labels"] if labelled else [])}
    if labelled:
        assert batch["labels"].tolist() == [n % 3 for n in range(len(rows))]
        assert batch["labels"].dtype == torch.int64


def test_labels_may_be_numbers_of_any_library_and_ids_may_be_arrays():
    collate = ClassificationCollator(VOCABULARY)
    for label in (1, np.int64(1), np.uint8(1), torch.tensor(1)):
        assert collate([{"input_ids": [7], "label": label}])["labels"].tolist() == [1]
    for ids in ([7, 8], (7, 8), np.array([7, 8]), torch.tensor([7, 8])):
        assert collate([{"input_ids": ids}])["input_ids"].tolist() == [[BOS, 7, 8, EOS]]


def test_what_is_padding_is_said_by_where_it_stands_and_not_by_its_id():
    batch = ClassificationCollator(VOCABULARY)([{"input_ids": [7, PAD, 8]}, {"input_ids": [PAD]}])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_examples_are_left_as_they_were():
    examples = [{"input_ids": [7, 8], "label": 1}, {"input_ids": [9], "label": 0}]
    ClassificationCollator(VOCABULARY, Padding(max_len=3, side="left"))(examples)
    assert examples == [{"input_ids": [7, 8], "label": 1}, {"input_ids": [9], "label": 0}]


# ---------------------------------------------------------------- a decoder's labels

pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=5)


def prompted(rows):
    return [{"prompt": prompt, "response": response} for prompt, response in rows]


@given(pairs, paddings.map(lambda how: Padding(None, how.multiple_of, how.fill_to, how.side)), st.booleans())
def test_labels_stand_where_their_tokens_stand_and_only_on_what_is_to_be_learned(rows, how, learn_all):
    batch = GenerationCollator(VOCABULARY, how, "all" if learn_all else "response")(prompted(rows))
    whole = [[BOS, *prompt, *response, EOS] for prompt, response in rows]
    labels = [
        [IGNORE_INDEX, *(prompt if learn_all else [IGNORE_INDEX] * len(prompt)), *response, EOS]
        for prompt, response in rows
    ]
    assert is_padded_right(batch["input_ids"], whole, PAD, how)
    assert is_padded_right(batch["attention_mask"], [[1] * len(row) for row in whole], 0, how)
    assert is_padded_right(batch["labels"], labels, IGNORE_INDEX, how)
    places = {"position_ids"} if how.side == "left" else set()
    assert batch.keys() == {"input_ids", "attention_mask", "labels"} | places


@given(pairs, st.sampled_from(["right", "left"]), st.sampled_from(["response", "all"]))
def test_what_somebody_else_has_put_together_is_read_as_prompt_and_response(rows, side, learn):
    collate = GenerationCollator(VOCABULARY, Padding(side=side), learn)
    given_rows = [
        {
            "input_ids": (BOS, *prompt, *response, EOS),
            "completion_mask": [0] * (1 + len(prompt)) + [1] * (1 + len(response)),
        }
        for prompt, response in rows
    ]
    ours, theirs = collate(given_rows), collate(prompted(rows))
    assert all(torch.equal(ours[name], theirs[name]) for name in ("input_ids", "attention_mask", "labels"))


def test_several_answers_in_one_row_carry_loss_each():
    example = {"input_ids": [BOS, 7, 8, EOS, 9, 10, EOS], "completion_mask": [False, False, True, True, False, True, 1]}
    labels = GenerationCollator(VOCABULARY)([example])["labels"]
    assert labels.tolist() == [[-100, -100, 8, EOS, -100, 10, EOS]]
    labels = GenerationCollator(VOCABULARY, learn="all")([example])["labels"]
    assert labels.tolist() == [[-100, 7, 8, EOS, 9, 10, EOS]]


def predicted(batch: Batch):
    """What each position is asked about, and what it sees by then: {(row, position): (tokens seen, token wanted)}."""
    return {
        (b, t): (
            batch.input_ids_BT[b, batch.may_attend_BQK.expand(len(batch.labels_BL), -1, -1)[b, t]].tolist(),
            wanted,
        )
        for b, row in enumerate(batch.labels_BL.tolist())
        for t, wanted in enumerate(row)
        if wanted != IGNORE_INDEX
    }


def asks_for_the_next_token(rows, batch) -> bool:
    """Whether the rows' learned tokens are asked for in their order, each from all that stands before it and nothing
    else."""
    wanted = []
    for number, (prompt, response) in enumerate(rows):
        whole = [BOS, *prompt, *response, EOS]
        wanted += [(number, whole[:n], whole[n]) for n in range(1 + len(prompt), len(whole))]
    return wanted == [(b, *asked) for (b, _), asked in sorted(predicted(batch).items())]


@given(pairs, st.sampled_from(["right", "left"]))
def test_every_token_to_be_learned_is_asked_of_the_position_before_it(rows, side):
    batch = as_batch(GenerationCollator(VOCABULARY, Padding(side=side))(prompted(rows)))
    assert asks_for_the_next_token(rows, batch)


ROWS = [([11, 12, 13], [14, 15]), ([21], [22, 23, 24, 25, 26]), ([31, 32], [])]


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_check_above_tells_labels_that_are_moved_twice_or_never(side):
    collated = GenerationCollator(VOCABULARY, Padding(side=side))(prompted(ROWS))
    moved = {0: collated["labels"]}
    for times in (1, 2):
        moved[times] = shift_right(moved[times - 1].flip(1), fill=IGNORE_INDEX).flip(1)
    batch = as_batch(collated)
    right = {
        times: asks_for_the_next_token(
            ROWS, Batch(batch.input_ids_BT, labels_BT, batch.may_attend_BQK, position_BT=batch.position_BT)
        )
        for times, labels_BT in moved.items()
    }
    assert right == {0: False, 1: True, 2: False}


@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1], sorted(ROWS, key=lambda row: -len(row[0] + row[1]))])
@pytest.mark.parametrize("side", ["right", "left"])
def test_positions_count_from_a_texts_first_token(side, rows):
    batch = as_batch(GenerationCollator(VOCABULARY, Padding(side=side))(prompted(rows)))
    if side == "right":  # there the row's first is the text's first
        assert batch.position_BT is None
        return
    for row, real, places in zip(batch.input_ids_BT, batch.input_ids_BT != PAD, batch.position_BT, strict=True):
        assert places[real].tolist() == list(range(int(real.sum()))), row
        assert (places[~real] == 0).all()
    even = as_batch(GenerationCollator(VOCABULARY, Padding(side=side))(prompted(ROWS[:1])))
    assert even.position_BT[0].tolist() == list(range(even.input_ids_BT.shape[1]))  # nothing is padded


def test_a_batch_is_moved_whole():
    for batch in (batch_of("causal", how=Padding(side="left")), batch_of("span")):
        moved = vars(batch.to("meta"))
        assert {name for name, tensor in vars(batch).items() if tensor is not None} == {
            name for name, tensor in moved.items() if tensor is not None and tensor.device.type == "meta"
        }
    assert batch_of("causal", how=Padding(side="left")).position_BT is not None


def test_nobody_is_asked_for_a_rows_first_token():
    """Not even the last position, which it would come round to."""
    collated = GenerationCollator(VOCABULARY)([{"input_ids": [7, 8], "completion_mask": [1, 1]}])
    assert collated["labels"].tolist() == [[7, 8]]
    assert as_batch(collated).labels_BL.tolist() == [[8, IGNORE_INDEX]]


def test_as_batch_leaves_what_it_is_given_as_it_was():
    collated = GenerationCollator(VOCABULARY, Padding(side="left"))(prompted(ROWS))
    before = {name: tensor.clone() for name, tensor in collated.items()}
    as_batch(collated)
    assert collated.keys() == before.keys()
    assert all(torch.equal(collated[name], tensor) for name, tensor in before.items())


# ---------------------------------------------------------------- an encoder-decoder's

targets = paddings.map(lambda how: Padding(None, how.multiple_of, how.fill_to))


@given(pairs, paddings, targets)
def test_the_decoder_reads_its_target_one_behind_and_predicts_it_with_its_end(rows, how, how_target):
    examples = [{"source": source, "target": target} for source, target in rows]
    batch = Seq2SeqCollator(VOCABULARY, how, how_target)(examples)
    sources = ClassificationCollator(VOCABULARY, how)([{"input_ids": source} for source, _ in rows])
    assert all(torch.equal(batch[name], sources[name]) for name in ("input_ids", "attention_mask"))
    assert is_padded_right(batch["labels"], [[*target, EOS] for _, target in rows], IGNORE_INDEX, how_target)
    assert is_padded_right(batch["decoder_input_ids"], [[BOS, *target] for _, target in rows], PAD, how_target)
    ours = as_batch(batch)
    assert torch.equal(ours.labels_BL, batch["labels"])  # nothing to move
    assert torch.equal(ours.decoder_input_ids_BS, batch["decoder_input_ids"])
    assert torch.equal(ours.may_attend_BQK, batch["attention_mask"].bool()[:, None])
    assert ours.position_BT is None


def test_a_target_beyond_its_longest_is_refused_and_a_source_loses_its_end():
    collate = Seq2SeqCollator(VOCABULARY, Padding(max_len=4), Padding(max_len=3))
    batch = collate([{"source": [7, 8, 9, 10], "target": [11, 12]}])
    assert batch["input_ids"].tolist() == [[BOS, 7, 8, EOS]]
    with pytest.raises(ValueError, match="a row has 4 tokens and max_len is 3"):
        collate([{"source": [7], "target": [11, 12, 13]}])


# ---------------------------------------------------------------- a batch equals its examples

EXAMPLES = [
    (row[: 1 + n // 4], row[1 + n // 4 :])
    for n in (4, 11, 7, 3)
    for row in [torch.randint(7, 200, (n,), generator=seeded(n)).tolist()]
]
SHORTEST = Padding()


def model_of(objective, positions=None):
    return tiny(objective, positions, vocab_size=200, n_layers=2).eval()


def batch_of(objective, rows=EXAMPLES, how=SHORTEST, how_target=SHORTEST):
    if objective == "causal":
        return as_batch(GenerationCollator(VOCABULARY, how, "all")(prompted(rows)))
    examples = [{"source": source, "target": target} for source, target in rows]
    return as_batch(Seq2SeqCollator(VOCABULARY, how, how_target)(examples))


def logits_and_loss(model, batch):
    with torch.no_grad():
        return model.target_logits(batch), batch_loss(model, batch)


def as_alone(model, batch, objective) -> float:
    """How far the predictions for a batch are from those for its examples one by one."""
    logits_NV, (total, count) = logits_and_loss(model, batch)
    each = [logits_and_loss(model, batch_of(objective, [row])) for row in EXAMPLES]
    assert count == sum(count for _, (_, count) in each) > 10
    if total.item() != pytest.approx(sum(total.item() for _, (total, _) in each), rel=1e-5):
        return 1.0
    return differ(logits_NV, torch.cat([logits_NV for logits_NV, _ in each]))


WIDER = [Padding(side=side, **more) for side in ("right", "left") for more in ({}, {"multiple_of": 8}, {"fill_to": 30})]


@pytest.mark.parametrize("how", WIDER, ids=str)
@pytest.mark.parametrize(("objective", "positions"), [("causal", "learned"), ("span", "rotary")])
def test_a_batch_is_predicted_as_its_examples_alone(objective, positions, how):
    assert as_alone(model_of(objective, positions), batch_of(objective, how=how), objective) < 1e-5


@pytest.mark.parametrize("how", [h for h in WIDER if h.side == "right"], ids=str)
def test_so_is_a_batch_of_sources_with_learned_positions_and_of_padded_targets(how):
    assert as_alone(model_of("span", "learned"), batch_of("span", how=how, how_target=how), "span") < 1e-5


def without_positions(batch):
    return Batch(batch.input_ids_BT, batch.labels_BL, batch.may_attend_BQK)


def seeing_padding(batch):
    all_BT = torch.ones_like(batch.input_ids_BT, dtype=torch.bool)
    may_attend_BQK = masks.causal(all_BT.shape[1]) if batch.decoder_input_ids_BS is None else masks.padding(all_BT)
    return Batch(
        batch.input_ids_BT,
        batch.labels_BL,
        may_attend_BQK,
        decoder_input_ids_BS=batch.decoder_input_ids_BS,
        position_BT=batch.position_BT,
    )


@pytest.mark.parametrize(
    ("objective", "side", "wrong"),
    [
        ("causal", "left", without_positions),
        ("causal", "left", seeing_padding),
        ("span", "right", seeing_padding),
        ("span", "left", seeing_padding),
    ],
)
def test_the_comparison_above_tells_padding_that_is_seen_or_counted(objective, side, wrong):
    batch = wrong(batch_of(objective, how=Padding(side=side)))
    assert as_alone(model_of(objective), batch, objective) > 1e-3


def test_behind_a_text_a_decoders_padding_needs_no_mask():
    """Why so many forget it: it is the other side that gives it away."""
    batch = seeing_padding(batch_of("causal"))
    assert as_alone(model_of("causal"), batch, "causal") < 1e-5


def test_a_target_behind_padding_is_refused():
    with pytest.raises(ValueError, match="pad targets on the right"):
        batch_of("span", how_target=Padding(side="left"))


# ---------------------------------------------------------------- generation


def next_of(decoder, prompts, side):
    """The best token behind each prompt of a batch: at its last real position."""
    ids_BT = Padding(side=side).pad(prompts, PAD)
    is_real_BT = Padding(side=side).pad([[1] * len(prompt) for prompt in prompts], 0)
    labels_BT = torch.full_like(ids_BT, IGNORE_INDEX)
    batch = as_batch({"input_ids": ids_BT, "attention_mask": is_real_BT, "labels": labels_BT})
    with torch.no_grad():
        logits_BTV = decoder(ids_BT, batch.may_attend_BQK, position_BT=batch.position_BT).logits
    last_B = (is_real_BT.cumsum(1) * is_real_BT).argmax(1)
    ordinary_BV = logits_BTV[torch.arange(len(prompts)), last_B].masked_fill(~VOCABULARY.is_ordinary_V, -1e9)
    return ordinary_BV.argmax(1).tolist()


def test_the_next_token_is_the_same_alone_in_a_batch_and_on_either_side():
    decoder = model_of("causal")
    prompts = [[BOS, *torch.randint(7, 200, (n,), generator=seeded(n)).tolist()] for n in (1, 5, 12, 3, 8, 8, 2)]
    alone = [
        generate(decoder, [prompt], VOCABULARY, max_new_tokens=6, temperature=0, stop_ids=()) for prompt in prompts
    ]
    assert generate(decoder, prompts, VOCABULARY, max_new_tokens=6, temperature=0, stop_ids=()) == [a[0] for a in alone]
    first = [written[0][0] for written in alone]
    assert len(set(first)) > 2
    assert next_of(decoder, prompts, "left") == next_of(decoder, prompts, "right") == first
    blind = Padding(side="left").pad(prompts, PAD)  # the control: what one gets who counts and sees the padding
    with torch.no_grad():
        logits_BV = decoder(blind).logits[:, -1].masked_fill(~VOCABULARY.is_ordinary_V, -1e9)
    assert logits_BV.argmax(1).tolist() != first


# ---------------------------------------------------------------- like lengths

LENGTHS = torch.randint(3, 60, (230,), generator=seeded(8)).tolist()


def padded(batches, lengths=LENGTHS):
    return sum(max(lengths[n] for n in batch) * len(batch) - sum(lengths[n] for n in batch) for batch in batches)


def shuffled(batch_size, seed):
    return [rows.tolist() for rows in torch.randperm(len(LENGTHS), generator=seeded(seed)).split(batch_size)]


@pytest.mark.parametrize("pool", [1, 3, 50])
@pytest.mark.parametrize("batch_size", [1, 7, 10, 230, 500])
def test_every_text_comes_once_in_full_batches_but_one(batch_size, pool):
    batches = list(length_grouped(LENGTHS, batch_size, generator=seeded(0), pool=pool))
    assert sorted(n for batch in batches for n in batch) == list(range(230))
    sizes = Counter(map(len, batches))
    assert sizes == Counter(min(batch_size, 230 - start) for start in range(0, 230, batch_size))
    assert all(type(n) is int for batch in batches for n in batch)


def test_the_generator_decides_the_batches():
    one, again, other = (list(length_grouped(LENGTHS, 8, generator=seeded(seed))) for seed in (0, 0, 1))
    assert one == again != other
    generator = seeded(0)
    first, second = (list(length_grouped(LENGTHS, 8, generator=generator)) for _ in range(2))
    assert first == one != second


def test_batches_of_like_length_pad_a_fraction_of_what_random_ones_do():
    grouped = [padded(length_grouped(LENGTHS, 8, generator=seeded(seed), pool=4)) for seed in range(5)]
    all_at_once = [padded(length_grouped(LENGTHS, 8, generator=seeded(seed))) for seed in range(5)]
    random = [padded(shuffled(8, seed)) for seed in range(5)]
    assert max(all_at_once) < min(grouped) and max(grouped) < 0.4 * min(random)
    assert max(all_at_once) < 0.1 * min(random)
    unsorted = [padded(length_grouped(LENGTHS, 8, generator=seeded(seed), pool=1)) for seed in range(5)]
    assert min(unsorted) > 0.7 * min(random)  # the control: a pool of one batch has nothing to sort


def test_the_lengths_of_a_pools_batches_do_not_overlap_and_the_batches_come_in_any_order():
    batches = list(length_grouped(LENGTHS, 10, generator=seeded(3)))
    spans = [(min(LENGTHS[n] for n in batch), max(LENGTHS[n] for n in batch)) for batch in batches]
    ordered = sorted(spans)
    assert all(before[1] <= after[0] for before, after in pairwise(ordered))
    assert spans != ordered and spans != ordered[::-1]


def test_texts_of_one_length_are_shuffled_all_the_same():
    first, second = (list(length_grouped([5] * 40, 4, generator=seeded(seed))) for seed in (0, 1))
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert sorted(first[0]) != list(range(min(first[0]), min(first[0]) + 4))


def test_nothing_makes_no_batch_and_batches_are_collated_by_their_numbers():
    assert list(length_grouped([], 4, generator=seeded(0))) == []
    for examples, collate in (
        ([{"prompt": [7] * (n % 5), "response": [8] * n} for n in range(1, 13)], GenerationCollator(VOCABULARY)),
        ([{"source": [7] * n, "target": [8]} for n in range(1, 13)], Seq2SeqCollator(VOCABULARY)),
    ):
        made = list(grouped_batches(examples, collate, 4, generator=seeded(3)))
        lengths = [sum(len(example[name]) for name in example) for example in examples]
        order = list(length_grouped(lengths, 4, generator=seeded(3)))
        assert order != list(length_grouped(lengths[::-1], 4, generator=seeded(3)))  # the control: lengths matter
        for batch, numbers in zip(made, order, strict=True):
            wanted = as_batch(collate([examples[n] for n in numbers]))
            assert torch.equal(batch.input_ids_BT, wanted.input_ids_BT)
            assert torch.equal(batch.labels_BL, wanted.labels_BL)


# ---------------------------------------------------------------- stacking


def test_the_default_collator_stacks_every_field_as_it_is():
    batch = DefaultCollator()(
        [{"a": np.ones((2, 3)), "b": True, "c": 1.5}, {"a": np.zeros((2, 3)), "b": False, "c": 2}]
    )
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in batch.items()} == {
        "a": ((2, 2, 3), torch.float64),
        "b": ((2,), torch.bool),
        "c": ((2,), torch.float32),
    }
    assert list(batch) == ["a", "b", "c"]


# ---------------------------------------------------------------- refused


def collating(make, *examples):
    return lambda: make(examples)


CLASSIFY, WRITE, TRANSLATE = (
    make(VOCABULARY) for make in (ClassificationCollator, GenerationCollator, Seq2SeqCollator)
)
TWO = {"prompt": [7], "response": [8]}
GIVEN = {"input_ids": [7, 8], "completion_mask": [0, 1]}

REFUSED = [
    ("no examples", collating(CLASSIFY), "examples are empty: give at least one"),
    ("no examples to write", collating(WRITE), "examples are empty"),
    ("no examples to stack", collating(DefaultCollator()), "examples are empty"),
    ("no examples to translate", collating(TRANSLATE), "examples are empty"),
    ("field missing", collating(CLASSIFY, {"label": 1}), "the examples lack the field 'input_ids': they have label"),
    ("response missing", collating(WRITE, {"prompt": [7]}), "the examples lack the field 'response': they have prompt"),
    ("target missing", collating(TRANSLATE, {"source": [7]}), "the examples lack the field 'target'"),
    ("mask missing", collating(WRITE, {"input_ids": [7]}), "lack the field 'completion_mask': they have input_ids"),
    ("field surplus", collating(CLASSIFY, {"input_ids": [7], "text": "a"}), "the field 'text' has no place here: give"),
    ("field misnamed", collating(CLASSIFY, {"input_ids": [7], "labels": 1}), "'labels' has no place here: give input_"),
    ("label to write", collating(WRITE, TWO | {"label": 1}), "the field 'label' has no place here: give prompt, resp"),
    ("kinds mixed", collating(WRITE, TWO, GIVEN), "example 1 has the field 'completion_mask' and example 0 does not"),
    ("kinds mixed otherwise", collating(WRITE, GIVEN, GIVEN, TWO), "example 2 lacks the field 'completion_mask'"),
    (
        "some with labels",
        collating(CLASSIFY, {"input_ids": [7], "label": 1}, {"input_ids": [7]}),
        "example 1 lacks the field 'label'",
    ),
    ("label a word", collating(CLASSIFY, {"input_ids": [7], "label": "good"}), "example 0: label is 'good', and a cla"),
    ("label of floats", collating(CLASSIFY, {"input_ids": [7], "label": 1.0}), "label is 1.0, and a class is a whole"),
    ("label a bool", collating(CLASSIFY, {"input_ids": [7], "label": True}), "label is True, and a class is a whole"),
    (
        "label unknown",
        collating(CLASSIFY, {"input_ids": [7], "label": 0}, {"input_ids": [7], "label": None}),
        "example 1: label is None",
    ),
    (
        "label to ignore",
        collating(CLASSIFY, {"input_ids": [7], "label": -100}),
        "label is -100: leave out texts without",
    ),
    ("id outside", collating(CLASSIFY, {"input_ids": [7, 200]}), "token id 200 lies outside the vocabulary of 200"),
    ("id below 0", collating(WRITE, TWO | {"response": [-1]}), "token id -1 lies outside the vocabulary of 200"),
    ("ids of floats", collating(CLASSIFY, {"input_ids": [7.5]}), "dtype torch.float32: token ids are int64"),
    (
        "mask too short",
        collating(WRITE, GIVEN, GIVEN | {"completion_mask": [1]}),
        "example 1: 2 input_ids and 1 of com",
    ),
    (
        "row too long",
        collating(GenerationCollator(VOCABULARY, Padding(max_len=3)), TWO),
        "a row has 4 tokens and max_len is 3: shorten its text first",
    ),
    (
        "unknown to learn",
        lambda: GenerationCollator(VOCABULARY, learn="prompt"),
        "learn is 'prompt': choose 'response'",
    ),
    ("max_len 2", lambda: Padding(2), "max_len 2, multiple_of 1: give at least 3 and 1"),
    ("multiple of 0", lambda: Padding(multiple_of=0), "multiple_of 0: give at least 3 and 1"),
    ("fill below 0", lambda: Padding(fill_to=-1), "fill_to is -1: give a length from 0"),
    ("fill beyond", lambda: Padding(8, fill_to=9), "fill_to is 9: give a length from 0 to max_len 8"),
    ("unknown side", lambda: Padding(side="both"), "side is 'both': choose 'right' (to read and to train) or 'left'"),
    ("no [PAD]", collating(ClassificationCollator(Vocabulary(200, cls=4, sep=5)), {"input_ids": [7]}), "needs a [PAD]"),
    ("no frame", collating(ClassificationCollator(Vocabulary(200, pad=0)), {"input_ids": [7]}), "needs a [CLS] token"),
    ("no [BOS]", collating(GenerationCollator(OF_BERT), TWO), "a prompt with its response needs a [BOS] token"),
    ("no [EOS]", collating(GenerationCollator(Vocabulary(200, pad=0, bos=2)), TWO), "needs a [EOS] token"),
    (
        "no [BOS] of a target",
        collating(Seq2SeqCollator(OF_BERT), {"source": [7], "target": [7]}),
        "a target needs a [BO",
    ),
    (
        "shapes differ",
        collating(DefaultCollator(), {"x": [1, 2]}, {"x": [1]}),
        "field 'x' has the shapes [(1,), (2,)]: cut to one length, or take a collator that pads",
    ),
    ("fields differ", collating(DefaultCollator(), {"x": 1}, {"y": 1}), "example 1 lacks the field 'x'"),
    (
        "a class for each text",
        lambda: as_batch(CLASSIFY([{"input_ids": [7], "label": 1}])),
        "the batch has no label for each token: make it with GenerationCollator or Seq2SeqCollator",
    ),
    ("a tensor of bool", collating(CLASSIFY, {"input_ids": [7], "label": torch.tensor(True)}), "example 0: label"),
    ("a tensor of float", collating(CLASSIFY, {"input_ids": [7], "label": torch.tensor(1.0)}), "example 0: label"),
    ("no labels at all", lambda: as_batch(CLASSIFY([{"input_ids": [7]}])), "the batch has no label for each token"),
    ("batches of none", lambda: list(length_grouped([1], 0, generator=seeded(0))), "batch_size 0, pool 50: give at le"),
    (
        "pool of none",
        lambda: list(length_grouped([1], 1, generator=seeded(0), pool=0)),
        "batch_size 1, pool 0: give at",
    ),
    ("a row of nothing beside others", collating(WRITE, GIVEN, {"input_ids": [], "completion_mask": []}), "example 1"),
    ("a row of nothing", collating(WRITE, {"input_ids": [], "completion_mask": []}), "example 0"),
    ("target's id outside", collating(TRANSLATE, {"source": [7], "target": [200]}), "token id 200 lies outside"),
    ("target of floats", collating(TRANSLATE, {"source": [7], "target": [7.5]}), "token ids are int64"),
    ("text for ids", collating(CLASSIFY, {"input_ids": "a film"}), "example 0"),
    ("texts to stack", collating(DefaultCollator(), {"text": "a film"}), "field 'text'"),
    ("examples that are rows", collating(CLASSIFY, [7, 8]), "example 0"),
    ("batch without its mask", lambda: as_batch({"input_ids": torch.ones(1, 2), "labels": torch.ones(1, 2)}), "attent"),
]


def check_refused(act, words):
    with pytest.raises((ValueError, TypeError)) as refusal:
        act()
    assert words in str(refusal.value)


@pytest.mark.parametrize(("act", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words_that_help(act, words):
    check_refused(act, words)


def test_what_the_rows_get_wrong_is_accepted_once_it_is_right():
    """The control: the helpers above refuse nothing by themselves."""
    for make, example in ((CLASSIFY, {"input_ids": [7], "label": 1}), (WRITE, TWO), (WRITE, GIVEN)):
        collating(make, example, example)()
    collating(TRANSLATE, {"source": [7], "target": [7]})()
    collating(DefaultCollator(), {"x": 1}, {"x": 2})()
