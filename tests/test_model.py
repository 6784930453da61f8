"""What each model may know where it predicts, and identities that hold whatever the weights are.

The leak test changes one token of the input at a time and looks at every target: where its logits change by as little
as one bit, the target knows of that token. What comes out must be exactly what the objective allows, neither more nor
less; the oracle is told nothing but the text and the labels.
"""

from dataclasses import replace

import oracles
import pytest
import torch
from few import few
from tiny import (
    CASES,
    CONFIG,
    LENGTH,
    corrupted,
    dataset,
    differ,
    framed_rows,
    logits_everywhere,
    packed,
    row_of,
    shaken,
    tiny,
)

from course_lib import layers, masks
from course_lib.data import course_tokenizer
from course_lib.layers import attend
from course_lib.model import MODEL_OF_OBJECTIVE, Decoder, Encoder, EncoderDecoder, TwoStream
from course_lib.objectives import Batch, masked
from course_lib.runtime import autocast, seeded
from course_lib.training import batch_loss, new_model
from course_lib.vocabulary import IGNORE_INDEX

FP32 = 1e-5  # relative to the largest value
VOCABULARY = course_tokenizer().vocabulary
PAD, EOS, BOS, MASK = VOCABULARY.pad, VOCABULARY.eos, VOCABULARY.bos, VOCABULARY.mask
MOST_SLOW = few(CASES, ("causal", "learned"), ("permuted", "learned"), ("span", "rotary"))
ROWS = ("packed", "framed")  # both with [EOS] [BOS] in the middle; the framed one also with [CLS], [SEP], padding


def text_of(kind):
    """int64 [1, LENGTH] of real text."""
    rows = packed().ids_NT if kind == "packed" else framed_rows()[4:]
    found = next(row for row in rows if {EOS, BOS} <= set(row[8:-8].tolist()))
    assert (PAD in found) == (kind == "framed")
    return found[None]


# ---------------------------------------------------------------- who knows what


def other_ordinary(ids):
    """Another ordinary token for each id, special ones included."""
    first = len(VOCABULARY.special_ids)
    return first + (ids + 4000) % (VOCABULARY.size - first)


def knows(model, batch, field="input_ids_BT"):
    """bool [N, T]: whether the logits of each target of a batch of one row change with each position of `field`.

    Every position is changed in a copy of the row; changed and unchanged copies stand in the same place of batches of
    the same shape, so that all that is not touched is computed in the same order, and equal to the bit.
    """
    length = getattr(batch, field).shape[1]
    copies = Batch(**{name: None if t is None else t.expand(length, *t.shape[1:]).contiguous()
                      for name, t in vars(batch).items()})  # fmt: skip
    ids_TT = getattr(copies, field).clone()
    ids_TT.diagonal().copy_(other_ordinary(ids_TT.diagonal()))
    with torch.no_grad():
        before, after = (model.target_logits(b) for b in (copies, replace(copies, **{field: ids_TT})))
    return (before != after).any(-1).view(length, -1).T


def reached(content, first):
    """All positions whose content comes to `first`, through any number of layers."""
    found, waiting = set(first), list(first)
    while waiting:
        new = {k for k, sees in enumerate(content[waiting.pop()]) if sees} - found
        found |= new
        waiting += new
    return found


def visibility(objective, text, labels):
    """What the objective allows, from text and labels alone: content and query visibility as nested lists."""
    length, real = len(text), [token != PAD for token in text]
    targets = [t for t, label in enumerate(labels) if label != IGNORE_INDEX]
    if objective == "causal":
        content = oracles.causal_visibility(length)
    elif objective == "causal, documents apart":
        document = [text[: t + 1].count(BOS) for t in range(length)]
        content = [[k <= q and document[k] == document[q] for k in range(length)] for q in range(length)]
    elif objective == "prefix":  # the last position of the prefix is the first that predicts
        content = oracles.prefix_visibility(targets[0] + 1, length)
    else:
        content = [[True] * length for _ in range(length)]
    return [[sees and real[k] for k, sees in enumerate(row)] for row in content]


def allowed(objective, batch, text):
    """bool [N, T]: whether each target may know of each position of the input."""
    labels = batch.labels_BL[0].tolist()
    targets = [t for t, label in enumerate(labels) if label != IGNORE_INDEX]
    if objective == "permuted":
        content, query = xlnet_visibility(batch, text)
        sets = [reached(content, [k for k, sees in enumerate(query[t]) if sees]) for t in targets]
    else:
        content = visibility(objective, text, labels)
        sets = [reached(content, [t]) for t in targets]
    return torch.tensor([[k in known for k in range(len(text))] for known in sets])


def xlnet_visibility(batch, text):
    """The oracle's rule for the order in which this batch predicts: how many targets each target's query may see."""
    is_target = batch.is_target_BL[0].tolist()
    order = (batch.may_query_BQK[0] & batch.is_target_BL[0]).sum(1)
    assert sorted(order[batch.is_target_BL[0]].tolist()) == list(range(sum(is_target)))
    return [
        [[sees and text[k] != PAD for k, sees in enumerate(row)] for row in rows]
        for rows in oracles.permutation_visibility(order.tolist(), is_target)
    ]


ONE_ROW = [(o, p, kind) for o, p in CASES if MODEL_OF_OBJECTIVE[o] is not EncoderDecoder for kind in ROWS]


@pytest.mark.parametrize(("objective", "positions", "kind"), ONE_ROW)
def test_a_target_knows_what_its_objective_allows_and_nothing_else(objective, positions, kind):
    text = text_of(kind)
    batch = corrupted(objective, text, **({"predict_share": 0.5} if objective == "permuted" else {}))
    known = knows(tiny(objective, positions).eval(), batch)
    assert torch.equal(known, allowed(objective, batch, batch.input_ids_BT[0].tolist()))
    assert known.any()
    assert known.all() == (objective == "masked" and kind == "packed")  # all the others hide something


def test_documents_kept_apart_know_nothing_of_each_other():
    data = dataset("causal", keep_documents_apart=True)
    model = tiny("causal").eval()
    with_border = 0
    for n in range(8):
        batch = row_of(data.batch(0), n)
        text = batch.input_ids_BT[0].tolist()
        ok = allowed("causal, documents apart", batch, text)
        assert torch.equal(knows(model, batch), ok)
        with_border += BOS in text[1:]
    assert with_border >= 4


@pytest.mark.parametrize("positions", few(["learned", "rotary"], "rotary"))
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("objective", ["span", "infilled"])
def test_a_decoder_knows_its_input_and_what_it_has_written(objective, kind, positions):
    batch = corrupted(objective, text_of(kind))
    model = tiny(objective, positions).eval()
    targets = batch.is_target_BL[0].nonzero().squeeze(1)
    is_shown_T = batch.input_ids_BT[0] != PAD
    assert torch.equal(knows(model, batch), is_shown_T.expand(len(targets), -1))
    written = torch.arange(batch.labels_BL.shape[1]) <= targets[:, None]
    assert torch.equal(knows(model, batch, "decoder_input_ids_BS"), written)


def test_a_decoder_as_long_as_its_input_does_not_take_one_for_the_other():
    text = text_of("framed")
    batch = replace(corrupted("infilled", text), input_ids_BT=text, may_attend_BQK=masks.padding(text != PAD))
    assert batch.decoder_input_ids_BS.shape == text.shape
    model, targets = tiny("infilled").eval(), batch.is_target_BL[0].nonzero()
    assert torch.equal(knows(model, batch), (text != PAD).expand(len(targets), -1))
    assert torch.equal(knows(model, batch, "decoder_input_ids_BS"), torch.arange(LENGTH) <= targets)


@pytest.mark.parametrize("objective", ["masked", "span", "infilled"])
def test_the_text_that_was_hidden_cannot_be_told_from_what_is_shown(objective):
    """Another text, corrupted by the same draws: where only hidden tokens differ, the models compute the same."""
    text = text_of("packed")
    options = {"mask_prob": 0.6} if objective == "masked" else {"noise_density": 0.6}
    batch = corrupted(objective, text, **options)
    if objective == "masked":
        hidden = batch.input_ids_BT == MASK
    else:
        hidden = VOCABULARY.is_ordinary_V[text] & ~torch.isin(text, batch.input_ids_BT)
    assert hidden.sum() >= 5
    twin = corrupted(objective, torch.where(hidden, other_ordinary(text), text), **options)
    model = tiny(objective).eval()
    first = torch.zeros_like(batch.is_target_BL)
    first[:, 0] = True  # a decoder is told the answer as it goes: only its first position has heard nothing of it
    first = batch.is_target_BL if objective == "masked" else first
    with torch.no_grad():
        one, two = (logits_everywhere(model, b)[first] for b in (batch, twin))
    assert torch.equal(one, two)
    assert not torch.equal(batch.labels_BL, twin.labels_BL)


def test_a_permuted_text_is_not_overwritten():
    """Not even where a token is asked for: what hides it is who may look, not what stands there."""
    for kind in ROWS:
        batch = corrupted("permuted", text_of(kind), predict_share=0.5)
        assert torch.equal(batch.input_ids_BT, text_of(kind))
        assert MASK not in batch.input_ids_BT


def slipped(batch):
    """Each position also sees the next."""
    return replace(batch, may_attend_BQK=torch.ones(1, LENGTH, LENGTH, dtype=torch.bool).tril(1))


def padding_seen(batch):
    return replace(batch, may_attend_BQK=torch.ones_like(batch.may_attend_BQK))


def query_is_content(batch):
    return replace(batch, may_query_BQK=batch.may_attend_BQK)


def one_target_sees_itself(batch):
    may_query = batch.may_query_BQK.clone()
    at = batch.is_target_BL[0].nonzero()[0].item()
    may_query[0, at, at] = True
    return replace(batch, may_query_BQK=may_query)


def non_targets_see_targets(batch):
    """The common mistake: what is given reads in both directions, and carries a target's content back to its query."""
    return replace(batch, may_attend_BQK=batch.may_attend_BQK | ~batch.is_target_BL[..., None])


def queries_see_later_ones(batch):
    return replace(batch, may_query_BQK=~torch.eye(LENGTH, dtype=torch.bool)[None])


@pytest.mark.parametrize(
    ("objective", "kind", "mutant"),
    [
        ("causal", "packed", slipped),
        ("prefix", "packed", slipped),
        ("masked", "framed", padding_seen),
        ("permuted", "packed", query_is_content),
        ("permuted", "packed", one_target_sees_itself),
        ("permuted", "packed", non_targets_see_targets),
        ("permuted", "packed", queries_see_later_ones),
    ],
)
def test_the_leak_test_sees_a_leak_by(objective, kind, mutant):
    batch = corrupted(objective, text_of(kind), **({"predict_share": 0.5} if objective == "permuted" else {}))
    leaky = mutant(batch)
    known = knows(tiny(objective).eval(), leaky)
    assert (known & ~allowed(objective, batch, batch.input_ids_BT[0].tolist())).any()


def test_a_detour_takes_two_layers_so_that_one_would_hide_the_leak():
    batch = corrupted("permuted", text_of("packed"), predict_share=0.5)
    ok = allowed("permuted", batch, batch.input_ids_BT[0].tolist())
    leaky = non_targets_see_targets(batch)
    assert not (knows(tiny("permuted", n_layers=1).eval(), leaky) & ~ok).any()
    assert (knows(tiny("permuted", n_layers=2).eval(), leaky) & ~ok).any()


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_rows_of_a_batch_know_nothing_of_each_other(objective, positions):
    model, batch = tiny(objective, positions).eval(), corrupted(objective, framed_rows())
    other = replace(batch, input_ids_BT=torch.cat([other_ordinary(batch.input_ids_BT[:1]), batch.input_ids_BT[1:]]))
    n_first = int(batch.is_target_BL[0].sum())
    with torch.no_grad():
        before, after = model.target_logits(batch), model.target_logits(other)
    assert torch.equal(before[n_first:], after[n_first:])
    assert not torch.equal(before[:n_first], after[:n_first])


# ---------------------------------------------------------------- identities of every model


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_logits_at_targets_are_the_full_logits_indexed(objective, positions):
    model, batch = tiny(objective, positions).eval(), corrupted(objective, framed_rows())
    with torch.no_grad():
        some, full = model.target_logits(batch), logits_everywhere(model, batch)
    assert len(some) == batch.is_target_BL.sum() > 8
    assert differ(some, full[batch.is_target_BL]) < FP32
    assert differ(some, full[batch.is_target_BL.roll(1, 1)][: len(some)]) > 100 * FP32  # the control: one off


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_a_batch_of_8_equals_its_rows_one_by_one(objective, positions):
    model, batch = tiny(objective, positions).eval(), corrupted(objective, framed_rows())
    with torch.no_grad():
        together = model.target_logits(batch)
        alone = [model.target_logits(row_of(batch, n)) for n in range(8)]
    assert differ(torch.cat(alone), together) < FP32
    assert differ(torch.cat(alone[::-1]), together) > 0.1


def wider(batch, more, fill):
    """The same batch with columns of padding behind; whatever `fill` stands there, nobody may look."""
    may_look = {name: t for name in ("may_attend_BQK", "may_query_BQK") if (t := getattr(batch, name)) is not None}
    padded = {
        name: torch.nn.functional.pad(t, (0, more, 0, more if t.shape[1] > 1 else 0)) for name, t in may_look.items()
    }
    padded["input_ids_BT"] = torch.nn.functional.pad(batch.input_ids_BT, (0, more), value=fill)
    if batch.decoder_input_ids_BS is None:
        padded["labels_BL"] = torch.nn.functional.pad(batch.labels_BL, (0, more), value=IGNORE_INDEX)
    return replace(batch, **padded)


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_padding_changes_nothing_for_real_positions(objective, positions):
    model, batch = tiny(objective, positions).eval(), corrupted(objective, packed().ids_NT[:8])
    with torch.no_grad():
        logits, padded = model.target_logits(batch), model.target_logits(wider(batch, 5, PAD))
        assert differ(padded, logits) < FP32
        assert torch.equal(padded, model.target_logits(wider(batch, 5, 300)))  # whatever stands there


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_features_are_the_mean_over_real_tokens(objective, positions):
    model, ids_BT = tiny(objective, positions).eval(), framed_rows()
    with torch.no_grad():
        features = model.features(ids_BT, ids_BT != PAD)
        for n, row in enumerate(ids_BT):
            real = row[row != PAD][None]
            hidden = model.encode(real, torch.ones_like(real, dtype=torch.bool))
            assert hidden.shape == (1, real.shape[1], CONFIG.d_model)
            assert differ(features[n], hidden[0].mean(0)) < FP32
        assert differ(model.encode(ids_BT, ids_BT != PAD).mean(1), features) > 0.01  # the control: padding counted


@torch.no_grad()
def test_a_text_is_encoded_as_it_was_read_in_training():
    """A decoder looks back alone, whoever reads its states; an encoder looks both ways."""
    ids_BT = packed().ids_NT[:3]
    later = ids_BT.clone()
    later[:, 12:] = other_ordinary(later[:, 12:])
    for objective, looks_back_alone in [("causal", True), ("masked", False), ("permuted", False), ("span", False)]:
        model, everything = tiny(objective).eval(), torch.ones_like(ids_BT, dtype=torch.bool)
        encoded = model.encode(ids_BT, everything)
        assert torch.equal(encoded[:, :12], model.encode(later, everything)[:, :12]) == looks_back_alone
        reader = model.encoder if objective == "span" else model
        assert torch.equal(encoded, reader(ids_BT).hidden_states[-1])


@pytest.mark.parametrize("objective", ["causal", "masked", "span"])
def test_hidden_states_are_the_embeddings_and_every_block(objective):
    model, batch = tiny(objective).eval(), corrupted(objective, framed_rows())
    inputs = [batch.input_ids_BT] + [batch.decoder_input_ids_BS] * (objective == "span")
    out = model(*inputs, batch.may_attend_BQK, **{"wanted_BS" if objective == "span" else "wanted_BT": None})
    assert len(out.hidden_states) == 1 + CONFIG.n_layers
    assert {h.shape for h in out.hidden_states} == {(*inputs[-1].shape, CONFIG.d_model)}
    assert out.logits.shape == (*inputs[-1].shape, CONFIG.vocab_size)


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_without_dropout_training_computes_what_evaluation_does(objective, positions):
    batch = corrupted(objective, framed_rows())
    model, dropped = tiny(objective, positions), tiny(objective, positions, dropout=0.2)
    with torch.no_grad():
        logits = model.eval().target_logits(batch)
        assert torch.equal(model.train().target_logits(batch), logits)
        assert torch.equal(dropped.eval().target_logits(batch), logits)
        assert differ(dropped.train().target_logits(batch), dropped.target_logits(batch)) > 0.01


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_dropout_meets_embeddings_attention_and_both_halves_of_a_block(objective, positions, monkeypatch):
    """The rate reaches every attention while the model trains, and none while it is evaluated."""
    batch = corrupted(objective, framed_rows())
    model, rates = tiny(objective, positions, dropout=0.5), []

    def spy(*tensors, dropout=0.0):
        rates.append(dropout)
        return attend(*tensors, dropout=dropout)

    monkeypatch.setattr(layers, "attend", spy)
    model.target_logits(batch)
    model.eval().target_logits(batch)
    half = len(rates) // 2
    assert rates == [0.5] * half + [0.0] * half
    kinds = {type(module).__name__ for module in model.modules() if any(
        isinstance(child, torch.nn.Dropout) and child.p == 0.5 for child in module.children())}  # fmt: skip
    assert kinds >= ({"Decoder", "GPTBlock"} if objective in ("causal", "prefix") else
                     {"Embeddings", "BertAttention", "BertBlock"})  # fmt: skip


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_bf16_is_close_to_fp32_and_is_not_fp32(objective, positions):
    model, batch = tiny(objective, positions, shake=0.1), corrupted(objective, framed_rows())

    def loss_and_gradient(dtype):
        model.zero_grad()
        with autocast(torch.device("cpu"), dtype):
            total, count = batch_loss(model, batch)
        (total / count).backward()
        return total.item() / count, torch.cat([p.grad.flatten() for p in model.parameters()])

    loss, gradient = loss_and_gradient(torch.float32)
    loss_bf16, gradient_bf16 = loss_and_gradient(torch.bfloat16)
    rounding = 2**-8  # half a unit in the last of bf16's 8 bits
    assert 0 < abs(loss_bf16 - loss) / loss < rounding
    error = (gradient_bf16 - gradient).norm() / gradient.norm()
    assert rounding / 100 < error < 10 * rounding


def rows_that_act(name, parameter):
    """Which rows of a parameter can act on the loss of this batch: all, but for those that it does not name."""
    if "token_type_embeddings" in name:
        return slice(0, 1)  # the course uses segment type 0 alone
    if "position_embeddings" in name or "wpe" in name:
        return slice(0, 15)  # positions that rows of the batch surely reach
    return slice(None)


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_the_loss_reacts_to_every_parameter_but_the_bias_of_keys(objective, positions):
    """Softmax takes no notice of what is added to all scores of a query, so the keys' bias has a gradient of 0."""
    model, batch = tiny(objective, positions).double(), corrupted(objective, framed_rows())
    batch_loss(model, batch)[0].backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad[rows_that_act(name, parameter)]
        largest = gradient.abs().max()
        if (name.endswith("key.bias") and positions == "learned") or name.endswith("crossattention.self.key.bias"):
            assert largest < 1e-9, name
        elif name.endswith("c_attn.bias"):
            query, key, value = gradient.chunk(3)
            assert key.abs().max() < 1e-9 < query.abs().min()
            assert value.abs().min() > 1e-9
        else:
            assert largest > 1e-9, name
            if parameter.dim() == 1 and "key.bias" not in name:
                assert gradient.ne(0).all(), name


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_tied_weights_count_once(objective, positions):
    """The numbers of a formula: embeddings, blocks, head."""
    V, E, F, T, L = CONFIG.vocab_size, CONFIG.d_model, CONFIG.d_ff, CONFIG.max_len, CONFIG.n_layers
    attention, feed_forward, norm = 4 * (E * E + E), 2 * E * F + E + F, 2 * E
    block = attention + feed_forward + 2 * norm
    table = T * E if positions == "learned" else 0
    embeddings, head = table + 2 * E + norm, E * E + E + norm + V
    wanted = {
        Decoder: V * E + T * E + L * block + norm,
        Encoder: V * E + embeddings + L * block + head,
        TwoStream: V * E + embeddings + L * block + head + E,
        EncoderDecoder: V * E + 2 * embeddings + L * (block + block + attention + norm) + head,
    }[MODEL_OF_OBJECTIVE[objective]]
    assert tiny(objective, positions).n_parameters() == wanted


@pytest.mark.parametrize(("objective", "positions"), MOST_SLOW)
def test_the_output_layer_is_the_table_of_word_embeddings(objective, positions):
    """Adding to one word's embedding along the last hidden state raises that word's logit, and no other."""
    model = tiny(objective, positions)
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.num_embeddings == CONFIG.vocab_size]
    assert len({id(table.weight) for table in tables}) == 1
    unread = 4242
    batch = corrupted(objective, framed_rows())
    assert unread not in batch.input_ids_BT
    with torch.no_grad():
        before = model.target_logits(batch)
        tables[0].weight[unread] += 1.0
        after = model.target_logits(batch)
    changed = (before != after).any(0).nonzero().squeeze(1).tolist()
    assert changed == [unread]


def test_a_model_is_fixed_by_its_seed_and_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (new_model(Encoder, CONFIG, seed=seed, device="cpu") for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    assert differ(one.embeddings.word_embeddings.weight, other.embeddings.word_embeddings.weight) > 0.1


# ---------------------------------------------------------------- the decoder's cache


def in_pieces(model, ids_BT, cuts):
    """Logits of a text that is read in pieces, each with the cache of those before it."""
    logits, cache = [], None
    for start, stop in zip([0, *cuts], [*cuts, ids_BT.shape[1]], strict=True):
        out = model(ids_BT[:, start:stop], cache=cache)
        logits.append(out.logits)
        cache = out.cache
    return torch.cat(logits, 1), cache


@pytest.mark.parametrize("cuts", [range(1, LENGTH), [11], [1, 7, 8, 20]], ids=["by token", "halves", "ragged"])
@torch.no_grad()
def test_reading_with_a_cache_is_reading_at_once(cuts):
    model, ids_BT = tiny("causal").eval(), packed().ids_NT[:3]
    whole = model(ids_BT)
    logits, cache = in_pieces(model, ids_BT, cuts)
    assert differ(logits, whole.logits) < FP32
    assert len(cache) == CONFIG.n_layers
    for (k, v), (whole_k, whole_v) in zip(cache, whole.cache, strict=True):
        assert k.shape == (3, CONFIG.n_heads, LENGTH, CONFIG.d_head)
        assert differ(k, whole_k) < FP32
        assert differ(v, whole_v) < FP32


@torch.no_grad()
def test_the_comparison_above_sees_a_cache_that_is_dropped_and_positions_that_begin_anew():
    model, ids_BT = tiny("causal").eval(), packed().ids_NT[:3]
    whole = model(ids_BT).logits
    no_cache = torch.cat([model(part).logits for part in ids_BT.split(8, 1)], 1)
    assert differ(no_cache, whole) > 100 * FP32
    model._positions = lambda ids, start=0: type(model)._positions(model, ids)
    assert differ(in_pieces(model, ids_BT, [11])[0], whole) > 100 * FP32


@torch.no_grad()
def test_a_cache_can_be_read_under_a_mask_of_ones_own():
    """Padding in the earlier part stays unseen when later pieces are read."""
    model, is_real_BT = tiny("causal").eval(), torch.ones(3, LENGTH, dtype=torch.bool)
    is_real_BT[1, 4:9] = False
    may_attend = masks.causal(LENGTH) & masks.padding(is_real_BT)
    ids_BT = packed().ids_NT[:3]
    first = model(ids_BT[:, :10], may_attend[:, :10, :10])
    second = model(ids_BT[:, 10:], may_attend[:, 10:], cache=first.cache)
    assert differ(second.logits, model(ids_BT, may_attend).logits[:, 10:]) < FP32
    assert differ(second.logits, model(ids_BT).logits[:, 10:]) > 100 * FP32


def test_a_cache_counts_towards_the_longest_sequence():
    model = tiny("causal", max_len=LENGTH).eval()
    cache = model(packed().ids_NT[:1]).cache
    with pytest.raises(
        ValueError, match=r"sequence length 25 \(24 of it in the cache, or a prefix\) exceeds max_len 24: shorten"
    ):
        model(packed().ids_NT[:1, :1], cache=cache)


# ---------------------------------------------------------------- rotary positions and two streams


def moved(model, by):
    """What an encoder makes of three rows behind `by` tokens that nobody sees."""
    ids_BT = torch.nn.functional.pad(packed().ids_NT[:3], (by, 0), value=PAD)
    with torch.no_grad():
        return model.encode(ids_BT, torch.arange(ids_BT.shape[1]).expand(3, -1) >= by)[:, by:]


def test_with_rotary_positions_a_text_means_the_same_wherever_it_stands():
    rotary, learned = (tiny("masked", positions).eval() for positions in ("rotary", "learned"))
    assert differ(moved(rotary, 9), moved(rotary, 0)) < FP32
    assert differ(moved(learned, 9), moved(learned, 0)) > 100 * FP32
    ids_BT = packed().ids_NT[:3]
    is_real_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    with torch.no_grad():  # and it is no bag of words
        backwards = rotary.encode(ids_BT.flip(1), is_real_BT).flip(1)
    assert differ(backwards, moved(rotary, 0)) > 0.01


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@torch.no_grad()
def test_the_content_stream_alone_is_an_encoder_with_the_same_weights(positions):
    both, batch = tiny("permuted", positions).eval(), corrupted("permuted", framed_rows())
    encoder = Encoder(both.config).eval()
    encoder.load_state_dict({n: t for n, t in both.state_dict().items() if n != "query_embedding"})
    ours, theirs = (m(batch.input_ids_BT, batch.may_attend_BQK) for m in (both, encoder))
    assert torch.equal(ours.logits, theirs.logits)
    assert all(torch.equal(a, b) for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@torch.no_grad()
def test_the_query_stream_is_the_formula_of_the_paper(positions):
    """XLNet, section 2.3: g attends to h of the layer below, h to itself, with the same weights; g begins as one vector
    at every place. Here both streams are computed at all positions, one text at a time."""
    model, batch = tiny("permuted", positions).eval(), corrupted("permuted", framed_rows(), predict_share=0.5)
    found = model.target_logits(batch)
    wanted = []
    for n in range(8):
        row = row_of(batch, n)
        place = torch.arange(row.input_ids_BT.shape[1])[None]
        h = model.embeddings(row.input_ids_BT, place)
        g = model.query_embedding.expand_as(h)
        if positions == "learned":
            g = g + model.embeddings.position_embeddings.weight[: h.shape[1]]
        g, turn = model.embeddings.LayerNorm(g), model._turn(place)
        for block in model.encoder["layer"]:
            g, h = (
                block(g, row.may_query_BQK, source_BKE=h, turn=turn)[0],
                block(h, row.may_attend_BQK, turn=turn)[0],
            )
        wanted.append(model.head(g)[row.is_target_BL])
    assert differ(found, torch.cat(wanted)) < FP32


@torch.no_grad()
def test_wanted_positions_come_row_by_row_from_left_to_right_however_ragged():
    model, batch = tiny("permuted").eval(), corrupted("permuted", packed().ids_NT[:3], predict_share=0.5)
    full = logits_everywhere(model, batch)
    wanted_BT = torch.zeros(3, LENGTH, dtype=torch.bool)
    wanted_BT[0, [1, 5, 22]] = True
    wanted_BT[2, 4] = True  # and none of row 1
    some = model.predict(batch.input_ids_BT, batch.may_attend_BQK, batch.may_query_BQK, wanted_BT)
    assert differ(some, full[wanted_BT]) < FP32
    none = model.predict(batch.input_ids_BT, batch.may_attend_BQK, batch.may_query_BQK, torch.zeros_like(wanted_BT))
    assert none.shape == (0, CONFIG.vocab_size)


# ---------------------------------------------------------------- what a model refuses

MODELS = ["causal", "masked", "permuted", "infilled"]


@pytest.mark.parametrize("objective", MODELS)
@pytest.mark.parametrize("field", ["input_ids_BT", "decoder_input_ids_BS"])
def test_sequences_longer_than_the_model_and_ids_of_another_are_refused_by_every_model(objective, field):
    batch = corrupted(objective, packed().ids_NT[:2])
    if getattr(batch, field) is None:
        return
    ids = getattr(batch, field)
    with pytest.raises(ValueError, match=rf"sequence length {ids.shape[1]} exceeds max_len {ids.shape[1] - 1}"):
        tiny(objective, max_len=ids.shape[1] - 1).target_logits(batch)
    model = tiny(objective)
    model.target_logits(batch)
    for wrong in (CONFIG.vocab_size, -1):
        with pytest.raises(ValueError, match=f"token id {wrong} lies outside the model's vocabulary of 8192"):
            model.target_logits(replace(batch, **{field: ids.clone().index_fill_(1, torch.tensor([3]), wrong)}))


@pytest.mark.parametrize("objective", MODELS)
@pytest.mark.parametrize("other", MODELS)
def test_a_batch_made_for_another_kind_of_model_is_refused(objective, other):
    """A two-stream batch in an encoder would train, on a model that sees every answer."""
    model, batch = tiny(objective), corrupted(other, packed().ids_NT[:2])
    if MODEL_OF_OBJECTIVE[objective] is MODEL_OF_OBJECTIVE[other] or {objective, other} == {"causal", "masked"}:
        model.target_logits(batch)  # one stream and who may look is all that these two need
    else:
        with pytest.raises(ValueError, match="MODEL_OF_OBJECTIVE names the model of each objective"):
            model.target_logits(batch)


def test_an_encoder_without_a_head_has_no_logits():
    model = shaken(Encoder(CONFIG, head=False), 0.1)
    assert model(packed().ids_NT[:1]).logits is None
    assert MODEL_OF_OBJECTIVE["masked"] is Encoder
    batch = masked(packed().ids_NT[:2], VOCABULARY, generator=seeded(0))
    with pytest.raises(ValueError, match="head"):
        model.target_logits(batch)


def test_a_decoder_has_learned_positions():
    with pytest.raises(ValueError, match="GPT-2's layout has learned positions"):
        Decoder(CONFIG.with_(positions="rotary"))


@pytest.mark.parametrize("shape", [(LENGTH,), (0, 3), (2, 0), (1, 2, 3)])
def test_ids_that_are_no_batch_are_refused(shape):
    for objective in ("causal", "masked"):
        with pytest.raises(ValueError, match=r"give \[batch, length\], not empty"):
            tiny(objective)(torch.zeros(shape, dtype=torch.long))
