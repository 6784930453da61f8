"""Five ways to train a model, each from outside: where they begin, what they train and what they leave alone, how much
that is, and what they refuse. Adapters beside one another are in test_peft_switching, files in test_peft_saving, the
models of transformers and the comparison with peft in parity/test_peft.
"""

import copy
import math
from contextlib import suppress
from functools import partial

import pytest
import torch
from few import few
from peft_models import (
    CASES,
    CONFIG,
    HEADS,
    IDS_BT,
    INNER,
    LAYERS,
    MAX_LEN,
    MODELS,
    OURS,
    REAL_BT,
    ROTARY,
    STRATEGIES,
    VOCAB,
    WIDTH,
    WRITTEN_BS,
    X_NI,
    adapted,
    gradients,
    looks,
    loss_of,
    make,
    mostly_slow,
    own_weights,
    prefixes,
    said,
    scramble,
    train,
    unequal,
)
from tiny import differ, shaken, tiny
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_lib import masks
from course_lib.data import course_tokenizer, pad, reviews_of
from course_lib.evaluation import COMPARISON_TOKENS, labelled_sample
from course_lib.finetuning import Classifier, FineTuning, fine_tune, predictions
from course_lib.generation import generate
from course_lib.layers import BertBlock, GPTBlock
from course_lib.model import Decoder, Encoder, TwoStream
from course_lib.peft import (
    STRATEGIES as REGISTRY,
)
from course_lib.peft import (
    Adapter,
    BitFit,
    Full,
    LoRA,
    Prefix,
    apply,
    fold,
    strategy,
)
from course_lib.peft import adapter as adapter_module
from course_lib.peft.prefix import PrefixKeysValues
from course_lib.peft.slots import is_added, parts_of
from course_lib.runtime import seeded
from course_lib.vocabulary import Vocabulary

TOLERANCE = 1e-5  # relative to the largest value compared, fp32
BEGIN_AS_BASE = [case for case in CASES if case[1] not in ("prefix", "adapter")]
WRITE = {
    "vocabulary": Vocabulary(VOCAB, eos=3),
    "max_new_tokens": 8,
    "stop_ids": (),
    "temperature": 0,
    "allow_special": True,
}


# where training begins


@pytest.mark.parametrize(("family", "kind"), mostly_slow(BEGIN_AS_BASE))
def test_training_begins_from_the_base_to_the_bit(family, kind):
    model, _ = adapted(family, kind)
    assert torch.equal(said(model), said(make(family)))


@pytest.mark.parametrize("family", OURS)
def test_adapter_layers_begin_within_a_hundredth_of_the_base(family):
    model, _ = adapted(family, "adapter")
    assert 0 < differ(said(model), said(make(family))) < 0.01


def test_the_check_above_refuses_a_bottleneck_that_begins_as_other_layers_do(monkeypatch):
    monkeypatch.setattr(adapter_module, "INIT_STD", 0.2)
    model, _ = adapted("decoder", "adapter")
    assert differ(said(model), said(make("decoder"))) > 0.01


@pytest.mark.parametrize("family", OURS)
def test_a_prefix_is_seen_from_the_start(family):
    """Attention shares 1 out among all keys: what goes to the prefix is missing elsewhere."""
    model, _ = adapted(family, "prefix")
    assert differ(said(model), said(make(family))) > 0.01


def one_sided(family):
    """A model whose queries all point one way: channel 6 of every head is 8, in the pair that rotary positions turn
    least."""
    model = make(family)
    channels = [head * (WIDTH // HEADS) + channel for head in range(HEADS) for channel in (6, 7)]
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("self.query", "attn.c_attn")):
                (module.weight.T if family == "decoder" else module.weight)[channels] = 0
                module.bias[channels] = torch.tensor([8.0, 0.0]).repeat(HEADS)
    return model


def shifted(model, by):
    """The model where every text begins at position `by`; rotary positions have no table, and know no beginning."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("position_embeddings", "wpe")):
                module.weight.copy_(module.weight.roll(-by, 0))
    return model


@pytest.mark.parametrize("family", OURS)
def test_a_prefix_that_nobody_looks_at_does_nothing_but_shift_the_positions(family):
    model = one_sided(family)
    apply(model, Prefix(length=4, hidden=None))
    scramble(model)
    for prefix in prefixes(model):
        with torch.no_grad():
            keys_PLHD = prefix.embedding.view(4, LAYERS, 2, HEADS, -1)[:, :, 0]
            keys_PLHD.copy_(torch.eye(WIDTH // HEADS)[6] * -1e4)  # scores of about -28,000
    assert differ(said(model), said(shifted(one_sided(family), 4))) < TOLERANCE
    if family != "rotary encoder":
        assert differ(said(model), said(one_sided(family))) > 1000 * TOLERANCE


def left_behind(text_1P):
    """Keys and values that a text leaves behind in the decoder, laid out as a prefix."""
    with torch.no_grad():
        layers = [torch.stack(pair)[:, 0] for pair in make("decoder")(text_1P).cache]
    return torch.stack(layers).permute(3, 0, 1, 2, 4).flatten(1)


@pytest.mark.parametrize("swap", [False, True], ids=["keys and values", "values as keys"])
def test_a_prefix_that_holds_what_a_text_left_behind_is_that_text(swap):
    text_1P = torch.tensor([[11, 23, 5, 42, 8]])
    model, _ = adapted("decoder", Prefix(length=5, hidden=None))
    stored = left_behind(text_1P).view(5, LAYERS, 2, -1)
    with torch.no_grad():
        prefixes(model)[0].embedding.copy_((stored.flip(2) if swap else stored).flatten(1))
    whole_BT = torch.cat([text_1P.expand(3, -1), IDS_BT], dim=1)
    distance = differ(said(model), make("decoder")(whole_BT).logits[:, 5:])
    assert distance > 0.01 if swap else distance < TOLERANCE


def test_the_seed_alone_decides_what_new_parts_begin_with():
    def begun(seed):
        model, _ = adapted("decoder", "lora", seed=seed)
        return {name: p for name, p in model.named_parameters() if name.endswith(".A")}

    before = torch.random.get_rng_state()
    assert not unequal(begun(1), begun(1))
    assert len(unequal(begun(1), begun(2))) == 4 * LAYERS
    assert torch.equal(torch.random.get_rng_state(), before)


# what trains


def trained_alone(before, after, kind):
    """Whether a strategy has changed of the model's own weights what it may, all of it, and nothing else."""
    changed = unequal(before, after)
    may = {"full": list(before), "bitfit": [name for name in before if name.endswith("bias")]}.get(kind, [])
    return changed == sorted(may)


@pytest.mark.parametrize(("family", "kind"), mostly_slow(CASES))
def test_steps_change_what_the_model_says_and_of_its_weights_only_what_the_strategy_trains(family, kind):
    model, _ = adapted(family, kind)
    begun, weights = said(model).detach(), own_weights(model)
    train(model)
    assert differ(said(model), begun) > 1e-3
    assert trained_alone(weights, own_weights(model), kind)


def test_the_check_above_sees_one_weight_that_was_not_frozen():
    model, _ = adapted("decoder", "lora")
    weights = own_weights(model)
    model.transformer["ln_f"].bias.requires_grad_(True)
    assert not trained_alone(weights, own_weights(train(model)), "lora")


@pytest.mark.parametrize(("family", "kind"), mostly_slow(CASES))
def test_what_is_listed_as_trained_gets_gradients_and_nothing_else_does(family, kind):
    model = make(family)
    loss_of(model).backward()  # gradients of an earlier training are not left behind
    applied = apply(model, STRATEGIES[kind])
    assert [name for name, p in model.named_parameters() if p.grad is not None and name not in applied.trained] == []
    have = [name for name, gradient in gradients(model).items() if gradient is not None]
    assert have == list(applied.trained) == [name for name, p in model.named_parameters() if p.requires_grad]


def test_the_two_streams_train_by_what_acts_on_their_layers():
    def predict(model):
        wanted_BT = torch.ones_like(IDS_BT, dtype=torch.bool)
        content_BTT, query_BTT = masks.permutation(torch.arange(7).expand(3, -1), wanted_BT)
        return model.predict(IDS_BT, content_BTT, query_BTT, wanted_BT)

    for kind in ("full", "lora", "adapter", "bitfit"):
        model = shaken(TwoStream(ROTARY), 0.2)
        base = predict(model).detach()
        applied = apply(model, STRATEGIES[kind])
        assert differ(predict(model), base) < 0.01
        predict(model).square().sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is not None] == list(applied.trained)


def test_a_module_to_save_trains_whole_beside_the_adapter_and_without_an_update_of_its_own():
    model, applied = adapted("classifier", "lora", modules_to_save=["head"])
    assert [name for name in applied.trained if not is_added(name)] == ["head.weight", "head.bias"]
    assert "head" not in applied.places and applied.modules_to_save == ("head",)
    before = own_weights(model)
    assert unequal(before, own_weights(train(model))) == ["head.bias", "head.weight"]


# how much trains

LINEAR = {  # channels in and out, of all linear layers together, and how many blocks' halves there are
    "decoder": LAYERS * (WIDTH * 6 + 2 * (WIDTH + INNER)),
    "encoder": LAYERS * (WIDTH * 8 + 2 * (WIDTH + INNER)) + 2 * WIDTH,
    "encoder-decoder": LAYERS * (WIDTH * 24 + 4 * (WIDTH + INNER)) + 2 * WIDTH,
}
HALVES = {"decoder": 2 * LAYERS, "encoder": 2 * LAYERS, "encoder-decoder": 5 * LAYERS}
BIASES = {
    "decoder": LAYERS * (7 * WIDTH + INNER) + WIDTH,
    "encoder": WIDTH + LAYERS * (7 * WIDTH + INNER) + 2 * WIDTH + VOCAB,
    "encoder-decoder": 2 * WIDTH + LAYERS * (19 * WIDTH + 2 * INNER) + 2 * WIDTH + VOCAB,
}


@pytest.mark.parametrize("family", few(LINEAR, "decoder", "encoder"))
def test_the_number_of_trained_parameters_is_what_the_papers_say(family):
    n_prefixes = 2 if family == "encoder-decoder" else 1
    made = LAYERS * 2 * WIDTH  # keys and values of one position
    for how, count in [
        (LoRA(rank=3), 3 * LINEAR[family]),
        (Adapter(bottleneck=5), HALVES[family] * (2 * WIDTH * 5 + 5 + WIDTH)),
        (Prefix(length=4, hidden=None), n_prefixes * 4 * made),
        (Prefix(length=4, hidden=6), n_prefixes * (4 * WIDTH + (WIDTH + 1) * 6 + (6 + 1) * made)),
        (BitFit(), BIASES[family]),
        (Full(), make(family).n_parameters()),
    ]:
        _, applied = adapted(family, how)
        assert applied.n_trained == count, how
        added = 0 if how.kind in ("bitfit", "full") else count
        assert applied.n_parameters == make(family).n_parameters() + added
        assert applied.share == count / applied.n_parameters


def test_a_rank_pattern_gives_some_layers_another_rank_and_the_scale_that_goes_with_it():
    how = LoRA(rank=2, alpha=6, targets=["c_attn"], rank_pattern={r"1\.attn\.c_attn": 5})
    model, applied = adapted("decoder", how)
    assert [len(update.A) for update in parts_of(model, "default").values()] == [2, 5]
    assert [update.scale for update in parts_of(model, "default").values()] == [3, 6 / 5]
    assert applied.n_trained == (2 + 5) * 4 * WIDTH


def test_rank_stabilisation_divides_by_the_root_of_the_rank():
    model, _ = adapted("decoder", LoRA(rank=4, alpha=6, rank_stabilized=True))
    assert {update.scale for update in parts_of(model, "default").values()} == {6 / math.sqrt(4)}


def test_a_report_says_what_trains_and_where():
    _, applied = adapted("decoder", LoRA(rank=3, targets=["mlp.c_proj"]))
    assert applied.places == ("transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj")
    assert str(applied) == "lora 'default': 240 of 5,664 parameters train (4.24%), at 2 places"


# LoRA, written out


@pytest.mark.parametrize("how", [LoRA(rank=3, alpha=7), LoRA(rank=3, alpha=7, rank_stabilized=True)], ids=repr)
def test_a_layer_with_an_update_is_w_x_plus_scale_b_a_x(how):
    layer = nn.Linear(6, 4)
    apply(layer, how)
    scramble(layer)
    update = parts_of(layer, "default")[""]
    scale = 7 / math.sqrt(3) if how.rank_stabilized else 7 / 3
    wanted = X_NI @ layer.weight.T + layer.bias + scale * (X_NI @ update.A.T) @ update.B.T
    assert differ(layer(X_NI), wanted) < TOLERANCE
    assert differ(update.delta(), scale * update.B @ update.A) < TOLERANCE


def test_dropout_falls_on_the_update_alone_and_only_in_training():
    model, _ = adapted("plain", LoRA(rank=3, dropout=0.5), weights=1)
    assert torch.equal(said(model), said(model))
    model.train()
    assert not torch.equal(said(model), said(model))
    without, _ = adapted("plain", LoRA(rank=3), weights=1)
    many = torch.stack([model[0](X_NI) for _ in range(2000)])
    error = many.std(0) / 2000**0.5
    assert ((many.mean(0) - without[0](X_NI)).abs() < 5 * error).all()  # right on average


@pytest.mark.parametrize("targets", [["0"], "0", "all-linear"], ids=repr)
def test_targets_are_ends_of_names_or_one_expression_for_whole_names(targets):
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    places = apply(model, LoRA(rank=2, targets=targets)).places
    assert places == {"['0']": ("0", "1.0"), "'0'": ("0",), "'all-linear'": ("0", "1.0", "1.1")}[repr(targets)]


def test_all_linear_leaves_out_what_no_update_can_stand_beside():
    words = nn.Embedding(9, 6)
    model = nn.ModuleDict({"words": words, "attention": nn.MultiheadAttention(6, 2), "inner": nn.Linear(6, 6),
                           "out": nn.Linear(6, 9, bias=False)})  # fmt: skip
    model["out"].weight = words.weight
    assert apply(model, LoRA(rank=2)).places == ("inner",)


# prefix


def right_padded(model):
    """Logits of real tokens, and a model's options for a row of 7, 5 and 2 tokens and for one of them alone."""
    for row, length in enumerate((7, 5, 2)):
        alone = model(IDS_BT[row : row + 1, :length]).logits[0]
        may_attend_BQK = masks.padding(REAL_BT)
        if isinstance(model, Decoder):
            may_attend_BQK = may_attend_BQK & masks.causal(7)
        yield model(IDS_BT, may_attend_BQK).logits[row, :length], alone


def left_padded(model):
    is_real_BT = REAL_BT.flip(1)
    for row, length in enumerate((7, 5, 2)):
        alone = model(IDS_BT[row : row + 1, 7 - length :]).logits[0]
        position_BT = (is_real_BT.cumsum(1) - 1).clamp(min=0)
        may_attend_BQK = masks.causal(7) & masks.padding(is_real_BT)
        yield model(IDS_BT, may_attend_BQK, position_BT=position_BT).logits[row, 7 - length :], alone


# an encoder is not told where its tokens stand: what is padded on the left stands farther on, and farther from a prefix
PADDED = [("decoder", right_padded), ("encoder", right_padded), ("rotary encoder", right_padded),
          ("decoder", left_padded)]  # fmt: skip


@pytest.mark.parametrize(("family", "padded"), few(PADDED, *[case for case in PADDED if case[0] == "decoder"]))
@pytest.mark.parametrize("kind", ["lora", "prefix", "adapter"])
def test_padding_changes_nothing_of_a_real_token(family, padded, kind):
    model, _ = adapted(family, kind, weights=4)
    assert max(differ(some, alone) for some, alone in padded(model)) < TOLERANCE


def test_padding_of_the_read_text_changes_nothing_of_what_is_written():
    model, _ = adapted("encoder-decoder", "prefix", weights=4)
    together = model(IDS_BT, WRITTEN_BS, masks.padding(REAL_BT)).logits
    for row, length in enumerate((7, 5, 2)):
        alone = model(IDS_BT[row : row + 1, :length], WRITTEN_BS[row : row + 1]).logits
        assert differ(together[row : row + 1], alone) < TOLERANCE


def test_the_checks_above_see_positions_that_are_not_shifted(monkeypatch):
    into_ours = PrefixKeysValues._into_ours

    def unshifted(self, host, given, dtype):
        position_BT = given.get("position_BT")
        into_ours(self, host, given, dtype)
        given |= {} if position_BT is None else {"position_BT": position_BT}

    monkeypatch.setattr(PrefixKeysValues, "_into_ours", unshifted)
    model, _ = adapted("decoder", "prefix", weights=4)
    assert max(differ(some, alone) for some, alone in left_padded(model)) > 0.01


@pytest.mark.parametrize("kind", ["lora", "prefix", "adapter"])
def test_a_batch_of_prompts_is_written_on_as_each_of_them_alone_with_or_without_a_cache(kind):
    model, _ = adapted("decoder", kind, weights=4)
    prompts = [IDS_BT[row, :length].tolist() for row, length in enumerate((7, 5, 2))]
    together = generate(model, prompts, **WRITE)
    for prompt, written in zip(prompts, together, strict=True):
        assert generate(model, [prompt], **WRITE) == [written]
        ids = list(prompt)
        for _ in written:  # all over again for every token
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        assert ids[len(prompt) :] == written
    assert together != generate(make("decoder"), prompts, **WRITE)


@pytest.mark.parametrize("family", ["decoder", "encoder", "rotary encoder"])
def test_a_prefix_and_the_longest_text_beside_it_fill_the_model(family):
    model, _ = adapted(family, Prefix(length=4))
    assert model(torch.full((1, MAX_LEN - 4), 7)).logits.shape == (1, MAX_LEN - 4, VOCAB)
    with pytest.raises(ValueError, match=rf"exceeds max_len {MAX_LEN}"):
        model(torch.full((1, MAX_LEN - 3), 7))


def test_a_text_that_only_the_prefix_makes_too_long_is_refused_in_words_that_say_so():
    model, _ = adapted("decoder", Prefix(length=4))
    with pytest.raises(ValueError, match="prefix"):
        model(torch.full((1, MAX_LEN - 3), 7))


@pytest.mark.parametrize("family", OURS)
def test_folding_the_network_away_changes_no_bit_of_what_is_said(family):
    model, _ = adapted(family, "prefix", weights=2)
    before = said(model)
    fold(model)
    assert torch.equal(said(model), before)
    assert {tuple(prefix.embedding.shape) for prefix in prefixes(model)} == {(4, LAYERS * 2 * WIDTH)}
    trained = [name for name, gradient in gradients(model).items() if gradient is not None]
    assert len(trained) == len(prefixes(model)) and all(name.endswith(".embedding") for name in trained)


# in training as people train


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("family", few(OURS, "decoder"))
def test_checkpointed_blocks_give_the_same_gradients(family, kind):
    model, _ = adapted(family, kind, weights=3)
    plain, runs = gradients(model), []
    for block in model.modules():
        if isinstance(block, (GPTBlock, BertBlock)):
            block.register_forward_pre_hook(lambda *_: runs.append(1))
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    again = gradients(model)
    assert not unequal(*({n: g for n, g in some.items() if g is not None} for some in (plain, again)))
    assert runs  # the blocks did run through the wrapper


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("family", few(["decoder", "rotary encoder", "encoder-decoder"], "decoder"))
def test_bf16_autocast_gives_almost_the_same_gradients(family, kind):
    """bf16 keeps 8 bits of a number: with parts of a size that training makes, 1 to 2% of the gradient's norm are lost
    here, and more the larger they are."""
    model, _ = adapted(family, kind)
    if kind not in ("full", "bitfit"):
        scramble(model, size=0.1)
    exact = torch.cat([g.flatten() for g in gradients(model).values() if g is not None])
    with torch.autocast("cpu", torch.bfloat16):
        rough = torch.cat([g.flatten() for g in gradients(model).values() if g is not None])
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(("family", "kind"), mostly_slow(CASES))
def test_a_base_in_bf16_stays_in_bf16_and_trains(family, kind):
    model = make(family).bfloat16()
    base = said(model)
    applied = apply(model, STRATEGIES[kind])
    assert said(model).dtype == torch.bfloat16
    assert (family, kind) not in BEGIN_AS_BASE or torch.equal(said(model), base)
    weights = own_weights(train(model))
    assert all(weight.dtype == torch.bfloat16 for weight in weights.values())
    assert [name for name, p in model.named_parameters() if p.grad is not None] == list(applied.trained)
    assert trained_alone(own_weights(make(family).bfloat16()), weights, kind)


@pytest.mark.parametrize(("family", "kind"), mostly_slow(case for case in CASES if case[0] != "plain"))
def test_an_adapted_model_can_be_cast_to_bf16_afterwards(family, kind):
    """Values of size 1 or so: 8 bits are a fair few percent after two layers."""
    model, _ = adapted(family, kind, weights=3)
    before = said(model)
    assert differ(said(copy.deepcopy(model).bfloat16()).float(), before) < 0.1


def test_parts_take_over_whether_the_model_trains_or_not():
    model = make("plain").train()
    apply(model, LoRA(rank=2, dropout=0.5))
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in model.eval().modules())


def test_a_model_that_was_partly_frozen_is_trained_as_any_other():
    model = make("decoder")
    for parameter in model.transformer["h"][0].parameters():
        parameter.requires_grad_(False)
    assert apply(model, BitFit()).n_trained == adapted("decoder", "bitfit")[1].n_trained


def test_a_strategy_may_stand_on_a_part_of_a_model():
    model = make("classifier")
    model.head.requires_grad_(False)
    apply(model.body, LoRA(rank=2))
    before = own_weights(model)
    train(model)
    assert not unequal(before, own_weights(model))


@pytest.mark.parametrize("saved", few([["head"], []], ["head"]), ids=["head trained whole", "head with an update"])
def test_fine_tuning_trains_a_classifier_by_its_strategy_and_its_predictions_are_its_own(saved, monkeypatch):
    monkeypatch.setattr("course_lib.runtime.fast_dtype", lambda device: torch.float32)
    reviews = labelled_sample(reviews_of("dev", "rotten_tomatoes")[:100], 8, seed=0)
    texts, labels = [review.text[:80] for review in reviews], [review.label for review in reviews]
    model = Classifier(tiny("masked", "learned", max_len=COMPARISON_TOKENS + 2, n_layers=1))
    apply(model, LoRA(rank=2), modules_to_save=saved)
    before = own_weights(model)
    fine_tune(model, texts, labels, course_tokenizer(), FineTuning(rate=1e-2, epochs=1, batch_size=3, head_first=False))
    assert unequal(before, own_weights(model)) == (["head.bias", "head.weight"] if saved else [])
    words = course_tokenizer().vocabulary
    ids_BT = pad(course_tokenizer().encode_all(texts), words, length=COMPARISON_TOKENS + 2, frame=words.frame)
    with torch.no_grad():
        forward = model(ids_BT, ids_BT != words.pad).softmax(-1)
    assert differ(torch.from_numpy(predictions(model, texts, course_tokenizer())), forward) < 100 * TOLERANCE


@pytest.mark.parametrize("outer_first", [False, True])
def test_a_strategy_on_the_whole_and_one_on_a_part_are_refused_or_do_not_silence_each_other(outer_first):
    model = make("classifier")
    for part in (model, model.body) if outer_first else (model.body, model):
        before = said(model)
        with suppress(ValueError):
            apply(part, LoRA(rank=2))
        assert torch.equal(said(model), before)
        scramble(part)


def test_an_update_acts_in_layers_of_torch_that_have_a_fast_path_around_their_modules():
    model = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).eval()
    assert apply(model, LoRA(rank=2)).places == ("linear1", "linear2")
    scramble(model)
    trained = model(X_NI[None])
    with torch.no_grad():
        assert torch.equal(model(X_NI[None]), trained)


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 3, 4, 6)], ids=str)
@pytest.mark.parametrize("how", [LoRA(rank=2), Adapter(bottleneck=2, targets=["0", "3"])], ids=lambda how: how.kind)
def test_a_layer_takes_every_shape_that_it_took_before(shape, how):
    x = torch.randn(shape, generator=seeded(4))
    model = make("plain")
    base = model(x)
    apply(model, how)
    assert model(x).shape == base.shape
    assert how.kind != "lora" or torch.equal(model(x), base)


def test_a_layer_may_be_called_with_its_argument_by_name():
    layer = nn.Linear(6, 4)
    base = layer(X_NI)
    apply(layer, LoRA(rank=2))
    assert torch.equal(layer(input=X_NI), base)


@pytest.mark.parametrize("name", ["für später", "sentiment-2", "handle"])
def test_a_word_without_dots_can_be_a_name(name):
    model, applied = adapted("plain", "lora", name=name)
    assert applied.name == name and set(applied.trained) == set(gradients(model)) - set(make("plain").state_dict())


def test_a_module_of_the_model_itself_that_is_called_as_the_library_calls_its_own_is_pointed_out():
    model = nn.ModuleDict({"body": nn.Linear(6, 6), "adapters": nn.ModuleDict({"english": nn.Linear(6, 6)})})
    with pytest.raises(ValueError, match=r"a module called adapters of its own, .* rename it"):
        apply(model, LoRA(rank=2))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"strategy": Adapter(bottleneck=3)}, {"strategy": BitFit()}),
        ({"strategy": Prefix(length=4, hidden=5)}, {"strategy": BitFit()}),
        ({"strategy": LoRA(rank=2)}, {"strategy": LoRA(rank=2), "modules_to_save": ["head"]}),
        ({"strategy": LoRA(rank=2)}, {"strategy": BitFit(), "modules_to_save": ["encoder"]}),
    ],
)
def test_what_a_second_adapter_trains_is_none_of_the_first(first, second):
    alone = apply(make("classifier"), **second)
    model = make("classifier")
    apply(model, **first, name="first")
    beside = apply(model, **second)
    assert set(beside.trained) == set(alone.trained)
    assert (beside.n_trained, beside.n_parameters) == (alone.n_trained, alone.n_parameters)


# what is refused


def prepared(family, how, **options):
    return lambda: adapted(family, how, **options)[0]


def tied():
    model = nn.ModuleDict({"words": nn.Embedding(9, 4), "out": nn.Linear(4, 9, bias=False)})
    model["out"].weight = model["words"].weight
    return model


DECODER, CLASSIFIER, PLAIN = (partial(make, family) for family in ("decoder", "classifier", "plain"))
REFUSED = [
    # name, the model, what is done to it, words
    ("rank 0", DECODER, lambda m: apply(m, LoRA(rank=0)), "rank is 0: give a whole number of at least 1"),
    ("rank with a fraction", DECODER, lambda m: apply(m, LoRA(rank=2.5)), "rank is 2.5: give a whole number"),
    ("rank 0 in a pattern", DECODER, lambda m: apply(m, LoRA(rank_pattern={"c_fc": 0})), "rank is 0"),
    ("rank too large", DECODER, lambda m: apply(m, LoRA(rank=17)), ("rank 17 at 'transformer.h.0.attn.c_attn'", "16")),
    (
        "rank too large in a pattern",
        DECODER,
        lambda m: apply(m, LoRA(rank=2, rank_pattern={"1.mlp.c_fc": 20})),
        ("rank 20 at 'transformer.h.1.mlp.c_fc' is larger than its matrix", "24 x 16"),
    ),
    ("alpha 0", DECODER, lambda m: apply(m, LoRA(alpha=0)), "alpha is 0: give a number above 0"),
    ("alpha nan", DECODER, lambda m: apply(m, LoRA(alpha=math.nan)), "alpha is nan"),
    ("dropout 1", DECODER, lambda m: apply(m, LoRA(dropout=1)), "dropout is 1: give a probability of at least 0"),
    ("dropout below 0", DECODER, lambda m: apply(m, LoRA(dropout=-0.1)), "dropout is -0.1"),
    ("bottleneck 0", DECODER, lambda m: apply(m, Adapter(bottleneck=0)), "bottleneck is 0: give a whole number"),
    ("prefix of 0", DECODER, lambda m: apply(m, Prefix(length=0)), "length is 0: give a whole number of at least 1"),
    ("network of 0", DECODER, lambda m: apply(m, Prefix(hidden=0)), "hidden is 0: give a whole number of at least 1"),
    ("unknown strategy", DECODER, lambda m: apply(m, strategy("lorra")), ("'lorra' is unknown", ", ".join(REGISTRY))),
    ("foreign setting", DECODER, lambda m: apply(m, strategy("bitfit", rank=3)), ("BitFit", "'rank'")),
    ("strategy by name", DECODER, lambda m: apply(m, "lora"), ("strategy is 'lora'", "LoRA(rank=8)")),
    ("strategy without brackets", DECODER, lambda m: apply(m, LoRA), ("strategy is", "LoRA(rank=8)")),
    (
        "target not there",
        DECODER,
        lambda m: apply(m, LoRA(targets=["query"])),
        ("no layer matches ['query']", "this Decoder has transformer.h.*.attn.c_attn, transformer.h.*.attn.c_proj"),
    ),
    ("target by half its name", DECODER, lambda m: apply(m, LoRA(targets="c_attn")), "no layer matches 'c_attn'"),
    ("no targets", DECODER, lambda m: apply(m, LoRA(targets=[])), ("no layer matches []", "transformer.h.*.mlp.c_fc")),
    ("pattern is a glob", DECODER, lambda m: apply(m, LoRA(targets="*.c_attn")), "*.c_attn"),
    ("rank pattern is a glob", DECODER, lambda m: apply(m, LoRA(rank_pattern={"*.c_attn": 2})), "*.c_attn"),
    (
        "target is a block",
        DECODER,
        lambda m: apply(m, LoRA(targets=["attn"])),
        "'transformer.h.0.attn' is a ModuleDict",
    ),
    (
        "target is a table",
        DECODER,
        lambda m: apply(m, LoRA(targets=["wte"])),
        ("'transformer.wte' is a Embedding", "c_fc"),
    ),
    ("target is a norm", PLAIN, lambda m: apply(m, LoRA(targets=["1"])), ("target '1' is a LayerNorm", "has 0, 3")),
    ("target is tied", tied, lambda m: apply(m, LoRA(targets=["out"])), ("'out' shares its weight", "'words'")),
    (
        "target is never called",
        lambda: nn.Sequential(nn.MultiheadAttention(6, 2)),
        lambda m: apply(m, LoRA(targets=["out_proj"])),
        ("target '0.out_proj' lies in torch's MultiheadAttention", "nothing would act"),
    ),
    (
        "nothing to adapt",
        lambda: nn.Sequential(nn.MultiheadAttention(6, 2)),
        lambda m: apply(m, LoRA()),
        "no layer matches",
    ),
    ("adapter on plain layers", PLAIN, lambda m: apply(m, Adapter()), ("no layer matches", "this Sequential has 0, 3")),
    ("no bias", lambda: nn.Linear(6, 4, bias=False), lambda m: apply(m, BitFit()), "no parameter called bias"),
    (
        "prefix fills the model",
        DECODER,
        lambda m: apply(m, Prefix(length=MAX_LEN)),
        (f"length {MAX_LEN} leaves no position of the model's {MAX_LEN}", "shorten it"),
    ),
    (
        "prefix on two streams",
        lambda: TwoStream(CONFIG),
        lambda m: apply(m, Prefix()),
        ("this TwoStream takes no earlier keys and values", "a decoder, an encoder or an encoder-decoder"),
    ),
    ("prefix on a layer", lambda: nn.Linear(6, 4), lambda m: apply(m, Prefix()), "this Linear takes no earlier keys"),
    ("one name twice", prepared("decoder", "lora"), lambda m: apply(m, BitFit()), "has an adapter 'default' already"),
    (
        "name with a dot",
        DECODER,
        lambda m: apply(m, LoRA(), name="a.b"),
        "name is 'a.b': give another word, without dots",
    ),
    ("name of a method", DECODER, lambda m: apply(m, LoRA(), name="train"), "name is 'train': give another word"),
    ("name of an attribute", DECODER, lambda m: apply(m, LoRA(), name="active"), "name is 'active'"),
    ("empty name", DECODER, lambda m: apply(m, LoRA(), name=""), "name is ''"),
    ("full beside lora", prepared("decoder", "lora"), lambda m: apply(m, Full(), name="b"), "full fine-tuning changes"),
    ("lora beside full", prepared("decoder", "full"), lambda m: apply(m, LoRA(), name="b"), "load the model again"),
    (
        "module to save not there",
        CLASSIFIER,
        lambda m: apply(m, LoRA(), modules_to_save=["heads"]),
        ("names 'heads', which is not there", "this model has body, head"),
    ),
    ("module to save as a text", CLASSIFIER, lambda m: apply(m, LoRA(), modules_to_save="head"), "['head']"),
    (
        "nothing left to adapt",
        PLAIN,
        lambda m: apply(m, LoRA(targets=["0"]), modules_to_save=["0"]),
        "no layer matches",
    ),
    ("fold without a prefix", prepared("decoder", "lora"), fold, "'default' is no prefix of this model"),
    ("fold of another name", prepared("decoder", "prefix"), lambda m: fold(m, "b"), "adapter 'b' is not there"),
]


@pytest.mark.parametrize(("made", "act", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words_that_help_and_nothing_is_changed(made, act, words):
    model = made()
    before, weights = looks(model), copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError)) as refusal:
        act(model)
    for part in (words,) if isinstance(words, str) else words:
        assert part in str(refusal.value)
    assert looks(model) == before
    assert not unequal(weights, model.state_dict())


def test_what_the_rows_get_wrong_is_accepted_once_it_is_right():
    """The control: the models above refuse nothing by themselves."""
    for made in (DECODER, CLASSIFIER, PLAIN):
        apply(made(), LoRA(rank=1))
    assert len({row[0] for row in REFUSED}) == len(REFUSED)
    assert set(REGISTRY) == set(STRATEGIES)
    assert {type(how) for how in STRATEGIES.values()} == set(REGISTRY.values())
    assert strategy("prefix", length=3) == Prefix(length=3)
    assert isinstance(MODELS["encoder"](), Encoder)
