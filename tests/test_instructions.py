"""Instructions: a template that can be read back, loss on the answer and nothing else however short the row, and rows
of several examples that do not see each other. Each law stands beside a plausible wrong version that it tells."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from few import few
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import differ, tiny

from course_lib.data import course_tokenizer
from course_lib.finetuning import (
    HEADERS,
    Encoded,
    GenerationCollator,
    Instruction,
    Turn,
    as_batch,
    encode,
    encode_chat,
    encode_prompt,
    pack,
    parse,
    prompt_of,
    render,
)
from course_lib.runtime import seeded
from course_lib.training import batch_loss
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

TOKENIZER = course_tokenizer()
BOS, EOS = TOKENIZER.vocabulary.bos, TOKENIZER.vocabulary.eos
WORDS = ("a", "good", "film", "Überraschung", "###", "\n", "\n\n", ".", "it", "was", "日本", " ", "42", "não")

# ---------------------------------------------------------------- the template

SHREDS = (
    "###",
    " ",
    "\n",
    "\n\n",
    "Response:",
    "### Input",
    "### Response: x",
    " ### Input:",
    "é",
    "#",
    "\r",
    "\u2028",
)
texts = st.text(max_size=12) | st.lists(st.sampled_from((*SHREDS, *HEADERS.values(), "a")), max_size=8).map("".join)


def has_header(*fields):
    """A line that is one of the template's."""
    return any(line in HEADERS.values() for text in fields for line in text.split("\n"))


@given(texts, texts, texts)
@example("a", "", "")
@example("\n", "\n", "\n")
@example("a\n\n", "\n\nb\n\n", "\n\nc\n\n")
@example("### Input: a", "a\n### Response:\r\nb", " ### Response:")
@example("### Response:", "", "a")
@example("a", "b\n\n### Response:", "c")
@example("a", "", "### Input:\nb")
@example("a", "### System:", "b")
def test_what_is_rendered_is_read_back_and_what_could_not_be_is_refused(instruction, given_text, output):
    if not instruction or has_header(instruction, given_text, output):
        with pytest.raises(ValueError, match=r"instruction is empty|which the template uses: write it otherwise"):
            Instruction(instruction, given_text, output)
        return
    one = Instruction(instruction, given_text, output)
    assert parse(render(one)) == one
    assert render(one) == prompt_of(one) + output


def unchecked(*fields):
    """An Instruction that nobody has looked at."""
    one = object.__new__(Instruction)
    for name, text in zip(("instruction", "input", "output"), fields, strict=True):
        object.__setattr__(one, name, text)
    return one


@pytest.mark.parametrize(
    ("some", "other"),
    [
        (("a", "b", "c"), ("a\n\n### Input:\nb", "", "c")),
        (("a", "", "b\n\n### Response:\nc"), ("a\n\n### Response:\nb", "", "c")),
        (("a", "b\n\n### Response:\nc", "d"), ("a", "b", "c\n\n### Response:\nd")),
    ],
)
def test_without_the_refusal_two_examples_would_be_one_text(some, other):
    """The control: these are no inventions of the test."""
    assert render(unchecked(*some)) == render(unchecked(*other))
    assert some != other
    for fields in (some, other):
        if has_header(*fields):
            with pytest.raises(ValueError, match="which the template uses"):
                Instruction(*fields)


@given(st.lists(st.sampled_from((*SHREDS, *HEADERS.values(), "a")), max_size=12).map("".join) | texts)
@example("### Instruction:\na\n\n### Input:\n\n\n### Response:\nb")
@example("### Instruction:\n\n\n### Response:\n")
@example("### Instruction:\na\n\n### Response:\nb\n\n### Response:\nc")
@example("x### Instruction:\na\n\n### Response:\n")
@example("### Instruction:\na\n\n### Response:")
def test_what_is_read_is_what_would_be_written_and_the_rest_is_refused(text):
    try:
        found = parse(text)
    except ValueError:
        return
    assert render(found) == text


def test_the_template_is_alpacas():
    assert render(Instruction("Do it.", "this", "done")) == (
        "### Instruction:\nDo it.\n\n### Input:\nthis\n\n### Response:\ndone"
    )
    assert render(Instruction("Do it.", output="done")) == "### Instruction:\nDo it.\n\n### Response:\ndone"


@pytest.mark.parametrize("line", ["### response:", "### RESPONSE:", "＃＃＃ Response：", "### Ｒesponse:"])
def test_a_line_that_is_a_header_once_it_is_encoded_is_refused_too(line):
    """A model would see the template's own tokens, in the middle of what it is asked about."""
    assert TOKENIZER.encode(line) == TOKENIZER.encode(HEADERS["assistant"])
    with pytest.raises(ValueError, match="which the template uses"):
        Instruction("Classify.", f"a good film\n\n{line}\nnegative")


# ---------------------------------------------------------------- which tokens are learned


def made_up(seed, *, least_input=0):
    """An example of random words, its answer sometimes empty, its input too where that may be."""
    generator = seeded(seed)

    def words(least, most):
        count = max(least, int(torch.randint(-2, most + 1, (1,), generator=generator)))
        return " ".join(WORDS[n] for n in torch.randint(len(WORDS), (max(0, count),), generator=generator).tolist())

    return Instruction(words(1, 5), words(least_input, 8), words(0, 6))


@cache
def pieces(one):
    """The tokens that a row is made of: what stands before the input, the input, what stands behind it, the answer."""
    head, tail = prompt_of(replace(one, input="\0")).split("\0") if one.input else (prompt_of(one), "")
    if not one.input:
        tail = f"\n\n{HEADERS['assistant']}\n"
        head = head.removesuffix(tail)
    return (*TOKENIZER.encode_all([head, one.input, tail]), [*TOKENIZER.encode(one.output), EOS])


def wanted(one, max_len, *, may_cut_output=False, learn="response"):
    """What `encode` must give, written down from its contract: None where it must refuse."""
    head, given_ids, tail, answer = pieces(one)
    left = max_len - 1 - len(head) - len(tail) - len(answer)
    kept = given_ids[: max(0, left)]
    over = max(0, -left)
    if over and (not may_cut_output or over >= len(answer)):
        return None
    prompt, answer = [BOS, *head, *kept, *tail], answer[: len(answer) - over]
    is_learned = [n >= (1 if learn == "all" else len(prompt)) for n in range(len(prompt) + len(answer))]
    return Encoded((*prompt, *answer), tuple(is_learned), len(given_ids) - len(kept), over)


def encoded(one, max_len, encode=encode, **options):
    try:
        return encode(one, TOKENIZER, max_len=max_len, **options)
    except ValueError:
        return None


def first_difference(examples, encode=encode, **options):
    """The first length at which an example is not encoded as it must be; None where there is none."""
    for one in examples:
        full = 1 + sum(map(len, pieces(one)))
        for max_len in range(full + 3):
            if encoded(one, max_len, encode, **options) != wanted(one, max_len, **options):
                return one, max_len
    return None


ASKED = [
    {"may_cut_output": may_cut_output, "learn": learn}
    for may_cut_output in (False, True)
    for learn in ("response", "all")
]


@pytest.mark.parametrize("count", few([12, 500], 12))
@pytest.mark.parametrize("options", ASKED, ids=str)
def test_at_every_length_the_answer_alone_is_learned_and_only_the_input_gives_way(count, options):
    examples = [made_up(seed) for seed in range(count)]
    assert first_difference(examples, **options) is None


def test_the_examples_above_reach_every_case():
    examples = [made_up(seed) for seed in range(12)]
    assert {(bool(one.input), bool(one.output)) for one in examples} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    found = [wanted(one, n, may_cut_output=True) for one in examples for n in range(1 + sum(map(len, pieces(one))) + 3)]
    cuts = {None if e is None else (bool(e.cut_input), bool(e.cut_output)) for e in found}
    assert cuts == {None, (False, False), (True, False), (True, True), (False, True)}


def whole(one):
    return wanted(one, 10**6)


def cut_at_the_end(one, tokenizer, *, max_len, **_):
    """As a tokenizer truncates: the answer goes first, and nobody is told."""
    row = whole(one)
    if not any(row.completion_mask[:max_len]):
        raise ValueError("nothing is left")
    return Encoded(row.input_ids[:max_len], row.completion_mask[:max_len])


def cut_at_the_front(one, tokenizer, *, max_len, **_):
    """As left truncation: the instruction goes first."""
    row = whole(one)
    if max_len < 1:
        raise ValueError("nothing is left")
    return Encoded(row.input_ids[-max_len:], row.completion_mask[-max_len:])


def learned_one_late(one, tokenizer, **options):
    """The first token of the answer is forgotten: the classic slip of a start."""
    row = encode(one, tokenizer, **options)
    start = row.completion_mask.index(True)
    return replace(row, completion_mask=tuple(flag and n > start for n, flag in enumerate(row.completion_mask)))


def learned_one_early(one, tokenizer, **options):
    row = encode(one, tokenizer, **options)
    return replace(row, completion_mask=(*row.completion_mask[1:], True))


def never_taught_to_stop(one, tokenizer, **options):
    row = encode(one, tokenizer, **options)
    return replace(row, completion_mask=(*row.completion_mask[:-1], False))


def more_cut_than_must_be(one, tokenizer, *, max_len, **options):
    return encode(one, tokenizer, max_len=max_len - 1, **options)


@pytest.mark.parametrize(
    "wrong",
    [
        cut_at_the_end,
        cut_at_the_front,
        learned_one_late,
        learned_one_early,
        never_taught_to_stop,
        more_cut_than_must_be,
    ],
)
def test_the_check_above_tells_another_cut_and_another_mask(wrong):
    examples = [made_up(seed, least_input=1) for seed in range(3)]
    assert first_difference(examples, wrong) is not None


def loss_tokens(encoded):
    """The tokens that the loss asks for, in order, once an example has gone through collator and batch."""
    batch = as_batch(GenerationCollator(TOKENIZER.vocabulary)([encoded.as_example()]))
    return batch.labels_BL[batch.is_target_BL].tolist()


def test_the_loss_asks_for_the_answer_and_its_end_at_every_length():
    for seed in range(6):
        one = made_up(seed)
        *_, answer = pieces(one)
        full = 1 + sum(map(len, pieces(one)))
        asked = [loss_tokens(row) for n in range(full + 1) if (row := encoded(one, n)) is not None]
        assert asked and all(tokens == answer for tokens in asked)
        shortened = [
            (loss_tokens(row), row.cut_output)
            for n in range(full + 1)
            if (row := encoded(one, n, may_cut_output=True)) is not None
        ]
        assert all(tokens == answer[: len(answer) - cut] and tokens for tokens, cut in shortened)


def test_a_row_that_is_long_enough_holds_the_text():
    for seed in range(20):
        one = made_up(seed)
        row = encode(one, TOKENIZER, max_len=10**6)
        assert TOKENIZER.decode(row.input_ids) == f"[BOS]{TOKENIZER.normalize(render(one))}[EOS]"
        assert (row.cut_input, row.cut_output) == (0, 0)
        assert encode(one, TOKENIZER) == row  # in 256 tokens


def test_special_tokens_written_in_a_text_are_ordinary_characters():
    row = encode(Instruction("Say [EOS].", "[BOS] [PAD]", "[EOS] [MASK]"), TOKENIZER)
    is_special = ~TOKENIZER.vocabulary.is_ordinary_V[torch.tensor(row.input_ids)]
    assert is_special.nonzero().squeeze(1).tolist() == [0, len(row.input_ids) - 1]


# ---------------------------------------------------------------- a prompt to go on from


@pytest.mark.parametrize("count", few([12, 200], 12))
def test_the_prompt_is_what_encode_writes_before_the_answer_at_every_length(count):
    for seed in range(count):
        one = made_up(seed)
        *parts, answer = pieces(one)
        least = 1 + len(parts[0]) + len(parts[2])
        for room in range(least, least + len(parts[1]) + 3):
            row = encode(one, TOKENIZER, max_len=room + len(answer))
            prompt = encode_prompt(one, TOKENIZER, room=room)
            assert tuple(prompt) == row.input_ids[: row.completion_mask.index(True)]
            assert len(prompt) <= room and prompt[0] == BOS
        with pytest.raises(
            ValueError, match=rf"the instruction takes {least} tokens and there is room for {least - 1}"
        ):
            encode_prompt(one, TOKENIZER, room=least - 1)


def test_the_answer_is_not_looked_at_where_it_is_still_to_be_written():
    one = made_up(3)
    assert encode_prompt(one, TOKENIZER, room=200) == encode_prompt(replace(one, output="else"), TOKENIZER, room=200)


# ---------------------------------------------------------------- conversations


@pytest.mark.parametrize("seed", range(12))
def test_one_turn_of_each_is_an_instruction_without_input(seed):
    one = replace(made_up(seed), input="")
    chat = encode_chat([Turn("user", one.instruction), Turn("assistant", one.output)], TOKENIZER)
    assert chat == encode(one, TOKENIZER)
    other = encode(replace(one, input="x"), TOKENIZER)  # the control
    assert chat != other


def conversation(seed, n_turns, *, system=False):
    parts = [made_up(1000 * seed + n) for n in range(n_turns)]
    turns = [Turn("user" if n % 2 == 0 else "assistant", one.instruction) for n, one in enumerate(parts)]
    return [*([Turn("system", "be kind")] if system else []), *turns]


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("n_turns", [1, 2, 3, 6])
def test_every_answer_is_learned_with_its_end_and_nothing_else(n_turns, system):
    turns = conversation(1, n_turns, system=system)
    row = encode_chat(turns, TOKENIZER, max_len=1000)
    learned = [token for token, flag in zip(row.input_ids, row.completion_mask, strict=True) if flag]
    said = [turn.text for turn in turns if turn.role == "assistant"]
    assert learned == [token for text in said for token in (*TOKENIZER.encode(text), EOS)]
    assert row.input_ids[0] == BOS and row.input_ids.count(BOS) == 1
    assert row.input_ids.count(EOS) == len(said)
    assert (row.cut_input, row.cut_output) == (0, 0)
    text = ""
    for n, turn in enumerate(turns):
        gap = "" if n == 0 or turns[n - 1].role == "assistant" else "\n\n"
        text += f"{gap}{HEADERS[turn.role]}\n{turn.text}" + "[EOS]" * (turn.role == "assistant")
    assert TOKENIZER.decode(row.input_ids) == f"[BOS]{TOKENIZER.normalize(text).replace('[eos]', '[EOS]')}"


def test_a_conversation_is_its_rounds_one_behind_the_other():
    """What has been said does not change how a later round is written: a cache of its keys and values stays good."""
    turns = conversation(2, 6)
    rows = [encode_chat(turns[n : n + 2], TOKENIZER) for n in (0, 2, 4)]
    joined = encode_chat(turns, TOKENIZER, max_len=1000)
    assert joined.input_ids == (BOS, *(token for row in rows for token in row.input_ids[1:]))
    assert joined.completion_mask == (False, *(flag for row in rows for flag in row.completion_mask[1:]))
    for n in range(1, 7):
        begun = encode_chat(turns[:n], TOKENIZER, max_len=1000)
        assert joined.input_ids[: len(begun.input_ids)] == begun.input_ids


def test_a_conversation_fits_to_the_token_or_is_refused():
    turns = conversation(3, 4, system=True)
    size = len(encode_chat(turns, TOKENIZER, max_len=1000).input_ids)
    assert len(encode_chat(turns, TOKENIZER, max_len=size).input_ids) == size
    with pytest.raises(ValueError, match=rf"has {size} tokens and max_len is {size - 1}: leave out its first turns"):
        encode_chat(turns, TOKENIZER, max_len=size - 1)


# ---------------------------------------------------------------- several examples in a row

SMALL = Vocabulary(200, pad=0, unk=1, bos=2, eos=3, cls=4, sep=5, mask=6)
LENGTH = 24


def examples_of(*lengths, seed=0):
    """Examples of these lengths, of tokens that stand nowhere else as far as that is possible."""
    generator = seeded(seed, *lengths)
    rows = [torch.randint(7, 200, (length - 2,), generator=generator).tolist() for length in lengths]
    starts = [1 + int(torch.randint(0, length - 1, (1,), generator=generator)) for length in lengths]
    return [
        Encoded((2, *row, 3), tuple(n >= start for n in range(len(row) + 2)))
        for row, start in zip(rows, starts, strict=True)
    ]


FIVE = examples_of(9, 5, 14, 8, 6)
lengths = st.lists(st.integers(2, LENGTH), min_size=1, max_size=9)


def documents(packed):
    """Every example that stands in packed rows: its tokens, labels and places."""
    found = []
    for ids, labels, document, places, real in zip(
        *(packed[name].tolist() for name in ("input_ids", "labels", "document_ids", "position_ids", "attention_mask")),
        strict=True,
    ):
        for number in range(max(document) + 1):
            here = [n for n, of in enumerate(document) if of == number]
            assert here == list(range(here[0], here[-1] + 1)) and all(real[n] == 1 for n in here)
            found.append(tuple(tuple(row[n] for n in here) for row in (ids, labels, places)))
        for n, of in enumerate(document):
            assert of >= 0 or (ids[n], labels[n], real[n], places[n]) == (0, IGNORE_INDEX, 0, 0)
    return found


@given(lengths, st.integers(0, 99))
def test_every_example_stands_in_the_rows_once_and_whole(sizes, seed):
    examples = examples_of(*sizes, seed=seed)
    found = documents(pack(examples, LENGTH, SMALL))
    alone = [
        (
            e.input_ids,
            tuple(
                i if flag and n else IGNORE_INDEX
                for n, (i, flag) in enumerate(zip(e.input_ids, e.completion_mask, strict=True))
            ),
            tuple(range(len(e.input_ids))),
        )
        for e in examples
    ]
    assert sorted(found) == sorted(alone)


@given(lengths)
def test_a_row_is_begun_where_no_earlier_one_has_room_longest_first(sizes):
    packed = pack(examples_of(*sizes), LENGTH, SMALL)
    rows = [
        [document.count(number) for number in range(max(document) + 1)] for document in packed["document_ids"].tolist()
    ]
    assert packed["input_ids"].shape == (len(rows), LENGTH)
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)
    for number, row in enumerate(rows):
        assert row == sorted(row, reverse=True)
        room = LENGTH - sum(row)
        assert all(size > room for later in rows[number + 1 :] for size in later)


def test_packing_reads_an_iterator_once_and_leaves_the_list_as_it_was():
    given_examples = list(FIVE)
    packed, again = pack(iter(given_examples), LENGTH, SMALL), pack(given_examples, LENGTH, SMALL)
    assert all(torch.equal(packed[name], again[name]) for name in packed)
    assert given_examples == FIVE


def decoder():
    return tiny("causal", vocab_size=200, n_layers=2).eval()


def whole_batch(packed, **dropped):
    return as_batch({name: tensor for name, tensor in packed.items() if name not in dropped})


def predictions_of(batch):
    """{the row's tokens up to a target, from its example's first: logits there}, and the loss."""
    model = decoder()
    with torch.no_grad():
        logits_NV = model.target_logits(batch)
        total, count = batch_loss(model, batch)
    return logits_NV, total.item(), count


def in_packed_order(examples):
    packed = pack(examples, LENGTH, SMALL)
    by_ids = {e.input_ids: e for e in examples}
    return packed, [by_ids[ids] for ids, *_ in documents(packed)]


def packed_and_alone(change=lambda packed: packed):
    """How far the logits of packed examples are from those of each alone, and of the losses."""
    packed, ordered = in_packed_order(FIVE)
    logits_NV, total, count = predictions_of(as_batch(change(packed)))
    alone = [predictions_of(as_batch(GenerationCollator(SMALL)([e.as_example()]))) for e in ordered]
    assert count == sum(count for *_, count in alone) > 10
    loss_alone = sum(total for _, total, _ in alone)
    return differ(logits_NV, torch.cat([logits_NV for logits_NV, *_ in alone])), abs(total / loss_alone - 1)


def without(name):
    return lambda packed: {key: tensor for key, tensor in packed.items() if key != name}


def test_packed_examples_are_predicted_as_each_alone():
    assert pack(FIVE, LENGTH, SMALL)["input_ids"].shape == (2, LENGTH)
    apart, loss_apart = packed_and_alone()
    assert apart < 1e-5
    assert loss_apart < 1e-5


@pytest.mark.parametrize("name", ["document_ids", "position_ids"])
def test_the_comparison_above_tells_packing_that_leaks_or_counts_on(name):
    apart, loss_apart = packed_and_alone(without(name))
    assert apart > 1e-2
    assert loss_apart > 1e-4


def test_the_first_token_of_an_example_is_asked_of_nobody():
    """The control: labels taken over as they are, it would be asked of the example before."""
    everything = [replace(e, completion_mask=(True,) * len(e.input_ids)) for e in FIVE]
    batch = as_batch(pack(everything, LENGTH, SMALL))
    assert int(batch.is_target_BL.sum()) == sum(len(e.input_ids) - 1 for e in FIVE)
    packed = pack(everything, LENGTH, SMALL)
    packed["labels"] = packed["input_ids"].masked_fill(packed["attention_mask"] == 0, IGNORE_INDEX)
    assert int(as_batch(packed).is_target_BL.sum()) == sum(len(e.input_ids) for e in FIVE) - 2  # of two rows


@pytest.mark.parametrize("changed", range(5))
def test_no_example_sees_anything_of_another(changed):
    """To the bit: nothing of it reaches the others' logits, not even as rounding."""
    other = [
        replace(e, input_ids=(2, *[i % 190 + 9 for i in e.input_ids[1:-1]], 3)) if n == changed else e
        for n, e in enumerate(FIVE)
    ]

    def by_example(examples, change=lambda packed: packed):
        packed, ordered = in_packed_order(examples)
        logits_NV, *_ = predictions_of(as_batch(change(packed)))
        sizes = [sum(e.completion_mask[1:]) for e in ordered]
        places = [next(n for n, one in enumerate(examples) if one is e) for e in ordered]
        return dict(zip(places, logits_NV.split(sizes), strict=True))

    before, after = by_example(FIVE), by_example(other)
    same = {n for n in range(5) if torch.equal(before[n], after[n])}
    assert same == {0, 1, 2, 3, 4} - {changed}
    before, after = (by_example(examples, without("document_ids")) for examples in (FIVE, other))
    leaked = {n for n in range(5) if n != changed and not torch.equal(before[n], after[n])}
    is_last_of_its_row = changed in {n for n, e in enumerate(FIVE) if e.input_ids in last_of_rows()}
    assert bool(leaked) != is_last_of_its_row  # the control


def last_of_rows():
    packed = pack(FIVE, LENGTH, SMALL)
    rows = zip(packed["input_ids"].tolist(), packed["document_ids"].tolist(), strict=True)
    return {tuple(i for i, of in zip(ids, document, strict=True) if of == max(document)) for ids, document in rows}


# ---------------------------------------------------------------- refused

WORDY = Instruction("Classify the review.", "a good film", "positive")
REFUSED = [
    ("nothing asked", lambda: Instruction(""), "instruction is empty: say what is to be done"),
    ("a number", lambda: Instruction(3), "instruction is 3: give text"),
    ("no input", lambda: Instruction("a", None), "input is None: give text"),
    ("bytes", lambda: Instruction("a", output=b"b"), "output is b'b': give text"),
    ("header in the instruction", lambda: Instruction("### Input:"), "instruction holds the line '### Input:', which"),
    ("header in the input", lambda: Instruction("a", "b\n### System:"), "input holds the line '### System:'"),
    ("header in the answer", lambda: Instruction("a", "", "### Response:\nb"), "output holds the line '### Response:'"),
    ("unknown role", lambda: Turn("bot", "a"), "role is 'bot': choose one of system, user, assistant"),
    ("header in a turn", lambda: Turn("user", "### Instruction:"), "the user's text holds the line '### Instruction:'"),
    ("number in a turn", lambda: Turn("assistant", 3), "the assistant's text is 3: give text"),
    ("no template", lambda: parse("a good film"), "the text 'a good film' does not follow the template: make it with"),
    ("learn the prompt", lambda: encode(WORDY, TOKENIZER, learn="prompt"), "learn is 'prompt': choose 'response' or"),
    (
        "no room",
        lambda: encode(WORDY, TOKENIZER, max_len=8),
        "there is room for 4: shorten it or the answer, raise max_len, or leave this example out",
    ),
    ("no room at all", lambda: encode(WORDY, TOKENIZER, max_len=-5), "there is room for 0"),
    (
        "nothing left of the answer",
        lambda: encode(WORDY, TOKENIZER, max_len=8, may_cut_output=True),
        "of max_len 8 tokens, and nothing of the answer would be left: shorten the instruction or raise max_len",
    ),
    (
        "no room for a prompt",
        lambda: encode_prompt(WORDY, TOKENIZER, room=4),
        "tokens and there is room for 4: shorten",
    ),
    ("no turns", lambda: encode_chat([], TOKENIZER), "the turns are none: user and assistant take turns, the user fir"),
    ("answer first", lambda: encode_chat([Turn("assistant", "a")], TOKENIZER), "the turns are assistant: user and"),
    ("two users", lambda: encode_chat([Turn("user", "a")] * 2, TOKENIZER), "the turns are user, user: user and assist"),
    ("system alone", lambda: encode_chat([Turn("system", "a")], TOKENIZER), "the turns are none"),
    (
        "system later",
        lambda: encode_chat([Turn("user", "a"), Turn("system", "b")], TOKENIZER),
        "system's turn stands fi",
    ),
    (
        "two systems",
        lambda: encode_chat([Turn("system", "a"), Turn("system", "b"), Turn("user", "c")], TOKENIZER),
        "the system's turn stands first, and there is at most one",
    ),
    ("nothing to pack", lambda: pack([], 9, SMALL), "there is no example to pack: give at least one"),
    ("too long to pack", lambda: pack(FIVE, 13, SMALL), "an example has 14 tokens and a row 13: encode with max_len"),
    ("packing without [PAD]", lambda: pack(FIVE, 20, Vocabulary(200)), "packing needs a [PAD] token"),
    ("foreign ids to pack", lambda: pack([Encoded((7, 200), (False, True))], 9, SMALL), "token id 200 lies outside"),
    ("nothing in an example", lambda: pack([*FIVE, Encoded((), ())], LENGTH, SMALL), "empty"),
    ("a mask too short", lambda: pack([Encoded((7, 8), (True,))], 9, SMALL), "2 input_ids and 1 of completion_mask"),
    ("turns as pairs", lambda: encode_chat([("user", "a")], TOKENIZER), "Turn"),
]


def check_refused(act, words):
    with pytest.raises((ValueError, TypeError)) as refusal:
        act()
    assert words in str(refusal.value)


@pytest.mark.parametrize(("act", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words_that_help(act, words):
    check_refused(act, words)
