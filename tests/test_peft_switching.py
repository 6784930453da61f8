"""Several adapters on one model: switching, merging, combining and removing them, and copies of the whole. What can be
undone is undone to the bit.
"""

import copy
import io
import pickle
from contextlib import suppress

import pytest
import torch
from few import few
from peft_models import (
    CASES,
    LAYERS,
    OURS,
    STRATEGIES,
    WIDTH,
    adapted,
    gradients,
    looks,
    make,
    mostly_slow,
    own_weights,
    said,
    scramble,
    train,
    unequal,
)
from tiny import differ
from torch import nn

from course_lib.model import Decoder
from course_lib.peft import (
    Adapter,
    BitFit,
    Full,
    LoRA,
    Prefix,
    active_adapter,
    adapter_state,
    apply,
    combine,
    fold,
    load_adapter,
    merge,
    merge_and_unload,
    remove,
    save_adapter,
    switch,
    unmerge,
)
from course_lib.peft.lora import LowRankUpdate
from course_lib.peft.slots import is_added, parts_of
from course_lib.pretrained import load_model, save_model

TOLERANCE = 1e-5  # relative to the largest value compared, fp32
BF16_TOLERANCE = 0.05  # 8 bits of every number: of size 2 % as measured, over two layers
LORAS = {
    "plain": LoRA(rank=3, alpha=7),
    "stabilised": LoRA(rank=4, alpha=3, rank_stabilized=True),
    "pattern": LoRA(rank=2, alpha=5, rank_pattern={r"0\..*": 6}),
}
FAMILIES = [*OURS, "plain"]


# merged into the weights


@pytest.mark.parametrize("how", LORAS)
@pytest.mark.parametrize("family", few(FAMILIES, "decoder", "plain"))
def test_merged_says_the_same_as_beside_and_unmerged_is_what_it_was_to_the_bit(family, how):
    model, applied = adapted(family, LORAS[how], weights=1)
    beside, weights = said(model), own_weights(model)
    merge(model)
    assert differ(said(model), beside) < TOLERANCE
    assert differ(said(model), said(make(family))) > 0.01
    changed = {name.rpartition(".")[0] for name in unequal(weights, own_weights(model))}
    assert changed == set(applied.places)
    assert not any(p.requires_grad for p in model.parameters())
    unmerge(model)
    assert not unequal(weights, own_weights(model))
    assert torch.equal(said(model), beside)
    assert [name for name, gradient in gradients(model).items() if gradient is not None] == list(applied.trained)


def test_the_check_above_sees_a_merge_without_its_scale(monkeypatch):
    monkeypatch.setattr(LowRankUpdate, "delta", lambda self: self.B @ self.A)
    model, _ = adapted("decoder", "lora", weights=1)
    beside = said(model)
    merge(model)
    assert differ(said(model), beside) > 0.01


def test_taking_the_update_out_by_subtraction_would_not_give_the_weights_back():
    """Why a merge keeps them: what was rounded away in the sum does not come back."""
    model, _ = adapted("decoder", "lora", weights=1)
    before = own_weights(model)
    merge(model)
    subtracted = {
        f"{host}.weight": model.get_submodule(host).weight.detach() - update.delta().T
        for host, update in parts_of(model, "default").items()
    }
    before = {name: before[name] for name in subtracted}
    assert len(unequal(before, subtracted)) == len(before)
    assert max(differ(subtracted[name], before[name]) for name in before) < TOLERANCE


@pytest.mark.parametrize("family", few(OURS, "decoder"))
def test_merged_in_bf16_says_about_the_same_and_comes_out_to_the_bit(family):
    model = scramble(adapted(family, "lora")[0], size=0.1).bfloat16()
    beside, weights = said(model), own_weights(model)
    merge(model)
    assert {p.dtype for p in own_weights(model).values()} == {torch.bfloat16}
    assert 0 < differ(said(model).float(), beside.float()) < BF16_TOLERANCE
    unmerge(model)
    assert not unequal(weights, own_weights(model))
    assert torch.equal(said(model), beside)


def test_a_merge_into_bf16_rounds_once():
    """The sum is made in fp32: the merged weight is the nearest to the right one that bf16 has."""
    layer = nn.Linear(6, 4).bfloat16()
    weight = layer.weight.detach().double()
    apply(layer, LoRA(rank=2))
    scramble(layer, size=0.01)
    update = parts_of(layer, "default")[""]
    wanted = weight + update.scale * update.B.double() @ update.A.double()
    merge(layer)
    assert torch.equal(layer.weight, wanted.bfloat16())


def test_a_model_merged_and_cast_comes_out_as_its_base_cast():
    model, _ = adapted("decoder", "lora", weights=1)
    merge(model)
    unmerge(model.bfloat16())
    assert not unequal(own_weights(model), own_weights(make("decoder").bfloat16()))


@pytest.mark.parametrize("kind", ["lora", "bitfit", "full"])
@pytest.mark.parametrize("family", few(OURS, "decoder"))
def test_merged_for_good_is_a_plain_model_that_saves_as_one(family, kind, tmp_path):
    plain = make(family)
    frozen = next(plain.parameters())
    frozen.requires_grad_(False)
    model = copy.deepcopy(plain)
    apply(model, STRATEGIES[kind])
    train(model)
    trained = said(model)
    assert merge_and_unload(model) is model
    assert differ(said(model), trained) < TOLERANCE
    assert looks(model) == looks(plain)
    again = load_model(save_model(model, tmp_path))
    assert torch.equal(said(again), said(model))
    assert apply(model, LoRA(rank=2)).name == "default"  # nobody remembers the first


def test_merged_for_good_forgets_all_other_adapters():
    model, _ = adapted("classifier", "lora", name="a", weights=1, modules_to_save=["head"])
    apply(model, Prefix(length=2), name="b")
    apply(model, BitFit(), name="c")
    switch(model, "a")
    beside = said(model)
    merge(model)
    merge_and_unload(model)  # a merged model is merged already
    assert differ(said(model), beside) < TOLERANCE
    assert looks(model) == looks(make("classifier"))


@pytest.mark.parametrize("kind", ["lora", "prefix", "adapter"])
@pytest.mark.parametrize("family", few(OURS, "decoder"))
def test_a_model_with_adapters_beside_it_is_not_saved_as_a_model(family, kind, tmp_path):
    model, _ = adapted(family, kind, name="mood")
    with pytest.raises(ValueError, match=r"has adapters, .* save_adapter .* merge_and_unload"):
        save_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nor_is_the_body_of_a_classifier_that_has_adapters(tmp_path):
    model, _ = adapted("classifier", "lora", name="mood", weights=1, modules_to_save=["head"])
    with pytest.raises(ValueError, match="adapters"):
        save_model(model.body, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_that_share_their_weight_are_refused_or_merge_and_come_out_as_others_do():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    before = model[0].weight.detach().clone()
    with suppress(ValueError):
        apply(model, LoRA(rank=2))
        beside = said(scramble(model))
        merge(model)
        assert differ(said(model), beside) < TOLERANCE
        unmerge(model)
    assert torch.equal(model[0].weight, before)


def test_a_weight_that_is_computed_is_refused_or_merged():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)))
    with suppress(ValueError):
        apply(model, LoRA(rank=2))
        beside = said(scramble(model))
        merge(model)
        assert differ(said(model), beside) < TOLERANCE


def test_one_layer_at_two_places_is_one_layer():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    assert apply(model, LoRA(rank=2)).places == ("0",)
    beside = said(scramble(model))
    merge(model)
    assert differ(said(model), beside) < TOLERANCE


# switched


def two_moods():
    """A classifier with two trained adapters, each with a head of its own; and what it says with the one, the other,
    and none."""
    model = make("classifier")
    base = said(model)
    words = {None: base}
    for seed, name in enumerate(("calm", "angry")):
        apply(model, LoRA(rank=2 + seed), name=name, modules_to_save=["head"])
        words[name] = said(scramble(model, seed))
    return model, words


def test_ten_switches_leave_both_adapters_and_the_base_as_they_were_to_the_bit():
    model, words = two_moods()
    for _ in range(10):
        for name in ("calm", None, "angry", "calm", "angry"):
            switch(model, name)
            assert active_adapter(model) == name
            assert torch.equal(said(model), words[name])
    heads = [adapter_state(model, name)["head.weight"] for name in ("calm", "angry")]
    assert not torch.equal(*heads)
    assert not torch.equal(words["calm"], words["angry"]) and not torch.equal(words["calm"], words[None])


@pytest.mark.parametrize("kinds", [("lora", "adapter"), ("prefix", "lora"), ("bitfit", "prefix"), ("bitfit", "lora")])
@pytest.mark.parametrize("family", few(["decoder", "encoder-decoder"], "decoder"))
def test_adapters_of_two_kinds_live_side_by_side(family, kinds):
    model, words, base = make(family), {}, said(make(family))
    for kind in kinds:
        applied = apply(model, STRATEGIES[kind], name=kind)
        words[kind] = said(scramble(model))
        trained = [name for name, gradient in gradients(model).items() if gradient is not None]
        assert trained == list(applied.trained)
    for name in (*kinds, *kinds):
        switch(model, name)
        assert torch.equal(said(model), words[name])
        alone = adapted(family, name, weights=5)[0]
        assert torch.equal(said(alone), words[name])
    switch(model, None)
    assert torch.equal(said(model), base)


def test_what_trains_changes_with_the_switch_and_gradients_do_not_stay():
    model, _ = two_moods()
    gradients(model)
    switch(model, "calm")
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    got = {name for name, gradient in gradients(model).items() if gradient is not None}
    assert {name.split(".")[-2] for name in got if is_added(name)} == {"calm"}
    switch(model, None)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_training_one_adapter_leaves_the_other_alone():
    model, words = two_moods()
    switch(model, "calm")
    train(model)
    switch(model, "angry")
    assert torch.equal(said(model), words["angry"])
    switch(model, "calm")
    assert not torch.equal(said(model), words["calm"])
    switch(model, None)
    assert torch.equal(said(model), words[None])


def test_what_becomes_of_the_base_while_no_adapter_acts_stays():
    """Such as a head that is fitted on the features of the base, to be compared with adapters."""
    model, words = two_moods()
    switch(model, None)
    with torch.no_grad():
        model.head.bias += 1
    base = said(model)
    switch(model, "calm")
    assert torch.equal(said(model), words["calm"])
    switch(model, None)
    assert torch.equal(said(model), base)


def test_switching_to_what_acts_already_changes_nothing():
    model, words = two_moods()
    switch(model, "angry")
    assert torch.equal(said(model), words["angry"])


# removed


@pytest.mark.parametrize("order", [("calm", "angry"), ("angry", "calm")])
def test_with_the_last_adapter_the_model_is_what_it_was_before_the_first(order):
    plain = make("classifier")
    plain.body.embeddings.LayerNorm.weight.requires_grad_(False)
    model = copy.deepcopy(plain)
    for seed, name in enumerate(("calm", "angry")):
        apply(model, LoRA(rank=2), name=name, modules_to_save=["head"])
        scramble(model, seed)
    beside = {}
    for name in ("calm", "angry"):
        switch(model, name)
        beside[name] = said(model)
    remove(model, order[0])
    assert active_adapter(model) == ("angry" if order[0] == "calm" else None)
    switch(model, order[1])
    assert torch.equal(said(model), beside[order[1]])
    remove(model, order[1])
    assert looks(model) == looks(plain)
    assert not unequal(plain.state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", [kind for kind in STRATEGIES if kind != "full"])
@pytest.mark.parametrize("family", few(OURS, "decoder"))
def test_removing_leaves_nothing_behind(family, kind):
    model, _ = adapted(family, kind, weights=3)
    remove(model, "default")
    assert looks(model) == looks(make(family))
    assert not unequal(make(family).state_dict(), model.state_dict())
    assert apply(model, STRATEGIES[kind]).name == "default"


# combined


def two_updates(first=LORAS["plain"], second=LORAS["stabilised"], family="decoder"):
    """A model with two LoRAs, and the change that each makes to the weights."""
    model, deltas = make(family), {}
    for seed, (name, how) in enumerate({"a": first, "b": second}.items()):
        apply(model, how, name=name)
        scramble(model, seed)
        deltas[name] = {host: update.delta().detach() for host, update in parts_of(model, name).items()}
    return model, deltas


@pytest.mark.parametrize(
    "second",
    [LORAS["stabilised"], LORAS["pattern"], LoRA(rank=2, targets=["c_attn"]), LoRA(rank=1, targets=r".*1\.mlp\.c_fc")],
)
@pytest.mark.parametrize("weights", [{"a": 0.5, "b": 0.5}, {"b": 1.5, "a": -2}], ids=str)
@pytest.mark.parametrize("family", few(["decoder", "encoder-decoder"], "decoder"))
def test_a_combination_is_the_weighted_sum_of_the_updates(family, weights, second):
    if family != "decoder" and second.targets != "all-linear":
        second = LoRA(rank=2, targets=["query", "predictions.transform.dense"])
    model, deltas = two_updates(second=second, family=family)
    applied = combine(model, weights, "both")
    assert active_adapter(model) == applied.name == "both"
    sums = {}
    for name, weight in weights.items():
        for host, delta in deltas[name].items():
            sums[host] = sums.get(host, 0) + weight * delta
    combined = parts_of(model, "both")
    assert set(combined) == set(sums) == set(applied.places)
    assert max(differ(update.delta(), sums[host]) for host, update in combined.items()) < TOLERANCE


def test_a_combination_of_one_says_what_the_one_says():
    model, _ = two_updates()
    switch(model, "a")
    alone = said(model)
    combine(model, {"a": 1}, "again")
    assert differ(said(model), alone) < TOLERANCE
    remove(model, "again")
    switch(model, "a")
    assert torch.equal(said(model), alone)


def test_a_combination_takes_the_head_of_the_first():
    model, _ = two_moods()
    combine(model, {"angry": 0.5, "calm": 0.5}, "both")
    assert torch.equal(model.head.weight, adapter_state(model, "angry")["head.weight"])
    model.head.weight.data += 1  # its own copy
    assert not torch.equal(model.head.weight, adapter_state(model, "angry")["head.weight"])


def test_layers_whose_names_end_alike_are_not_mixed_up_in_a_combination():
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6)))
    apply(model, LoRA(rank=2, targets="0"), name="a")  # the whole name: the first layer alone
    scramble(model)
    assert combine(model, {"a": 1}, "again").places == ("0",)


# copied


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("family", few(["decoder", "encoder-decoder", "classifier"], "decoder"))
def test_a_copy_lives_on_its_own(family, kind):
    model, _ = adapted(family, kind, weights=1, modules_to_save=["head"] if family == "classifier" else ())
    before, looked = said(model), looks(model)
    twin = copy.deepcopy(model)
    assert torch.equal(said(twin), before) and looks(twin) == looked
    train(twin)
    assert not torch.equal(said(twin), before)
    assert torch.equal(said(model), before)
    if kind != "full":
        remove(twin, "default")
        assert looks(twin) == looks(make(family))
        assert torch.equal(said(twin), said(make(family)))
        assert torch.equal(said(model), before) and looks(model) == looked


@pytest.mark.parametrize(("family", "kind"), mostly_slow(case for case in CASES if "encoder" not in case[0].split()))
def test_a_pickled_model_comes_back_with_its_adapters(family, kind):
    model, _ = adapted(family, kind, weights=1)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(said(again), said(model)) and looks(again) == looks(model)
    if kind != "full":
        remove(again, "default")
        assert looks(again) == looks(make(family))
        assert torch.equal(said(again), said(make(family)))
    assert pickle.loads(pickle.dumps(STRATEGIES[kind])) == STRATEGIES[kind]


def test_a_copy_of_a_merged_model_can_be_unmerged():
    model, _ = adapted("decoder", "lora", weights=1)
    beside = said(model)
    merge(model)
    twin = copy.deepcopy(model)
    unmerge(twin)
    assert torch.equal(said(twin), beside)
    assert not torch.equal(said(model), beside) or differ(said(model), beside) < TOLERANCE
    unmerge(model)
    assert torch.equal(said(model), beside)


def test_the_state_of_an_adapter_is_the_adapter_alone():
    model, _ = two_moods()
    for name, rank in (("calm", 2), ("angry", 3)):
        state = adapter_state(model, name)
        assert len(state) == 2 * 6 * LAYERS + 2
        assert state["body.encoder.layer.1.output.dense.A"].shape[0] == rank
        assert state["head.weight"].shape == (2, WIDTH)
    assert not unequal(adapter_state(model), adapter_state(model, "angry"))
    assert not any(tensor.requires_grad for tensor in adapter_state(model).values())


# refused


def prepared(*names, family="decoder", how=STRATEGIES["lora"], then=lambda model: None):
    def build():
        model = make(family)
        for seed, name in enumerate(names):
            apply(model, how, name=name)
            scramble(model, seed)
        then(model)
        return model

    return build


LORA = prepared("default")
MERGED = prepared("default", then=merge)
OFF = prepared("a", "b", then=lambda model: switch(model, None))
FULL = prepared("default", how=Full())
REFUSED = [
    ("merging twice", MERGED, merge, ("'default' is merged already", "twice")),
    ("merging a prefix", prepared("p", how=Prefix(length=3)), merge, ("'p' cannot be merged", "keys and values")),
    ("merging adapter layers", prepared("a", how=Adapter(3)), merge, ("'a' cannot be merged", "not linear")),
    ("merging biases", prepared("b", how=BitFit()), merge, ("'b' cannot be merged", "they are in it")),
    ("merging all", FULL, merge, ("'default' cannot be merged", "they are in it")),
    ("merging nothing", OFF, merge, "no adapter is active: switch on one of a, b"),
    ("merging a plain model", prepared(), merge, "this Decoder has no adapter: apply a strategy to it first"),
    ("unmerging what is not merged", LORA, unmerge, "the model is not merged"),
    ("unmerging twice", prepared("a", then=lambda m: (merge(m), unmerge(m))), unmerge, "the model is not merged"),
    ("unloading a prefix", prepared("p", how=Prefix(length=3)), merge_and_unload, "'p' cannot be merged"),
    ("unloading adapter layers", prepared("a", how=Adapter(3)), merge_and_unload, "'a' cannot be merged"),
    ("unloading nothing", OFF, merge_and_unload, "switch on one of a, b"),
    ("switching to another name", LORA, lambda m: switch(m, "mood"), ("'mood' is not there", "has default")),
    (
        "switching a merged model",
        MERGED,
        lambda m: switch(m, "default"),
        "'default' is merged: unmerge the model first",
    ),
    ("switching a merged model off", MERGED, lambda m: switch(m, None), "unmerge the model first"),
    ("switching full training off", FULL, lambda m: switch(m, None), "load the model again"),
    ("switching a plain model", prepared(), lambda m: switch(m, "a"), "this Decoder has no adapter"),
    ("removing another name", LORA, lambda m: remove(m, "mood"), "'mood' is not there"),
    ("removing what is merged", MERGED, lambda m: remove(m, "default"), "unmerge the model first"),
    ("removing full training", FULL, lambda m: remove(m, "default"), "load the model again"),
    ("applying to a merged model", MERGED, lambda m: apply(m, BitFit(), name="b"), "unmerge the model first"),
    ("combining nothing", LORA, lambda m: combine(m, {}, "c"), ("weights are empty", "at least one adapter")),
    ("combining another name", LORA, lambda m: combine(m, {"mood": 1}, "c"), "'mood' is not there"),
    ("combining adapter layers", prepared("a", how=Adapter(3)), lambda m: combine(m, {"a": 1}, "c"), "of kind adapter"),
    ("combining into a taken name", LORA, lambda m: combine(m, {"default": 1}, "default"), "'default' already"),
    ("combining in a merged model", MERGED, lambda m: combine(m, {"default": 1}, "c"), "unmerge the model first"),
    (
        "combining too large ranks",
        prepared("a", "b", how=LoRA(rank=9)),
        lambda m: combine(m, {"a": 1, "b": 1}, "c"),
        ("rank 18", "larger than its matrix"),
    ),
    ("state of another name", LORA, lambda m: adapter_state(m, "mood"), "'mood' is not there"),
    ("state of none", OFF, adapter_state, "no adapter is active"),
]


@pytest.mark.parametrize(("made", "act", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words_that_help_and_nothing_is_changed(made, act, words):
    model = made()
    looked, weights, before = looks(model), copy.deepcopy(model.state_dict()), said(model)
    active = active_adapter(model)
    with pytest.raises(ValueError) as refusal:
        act(model)
    for part in (words,) if isinstance(words, str) else words:
        assert part in str(refusal.value)
    assert looks(model) == looked and active_adapter(model) == active
    assert not unequal(weights, model.state_dict())
    assert torch.equal(said(model), before)


def test_what_the_rows_get_wrong_is_accepted_once_it_is_right(tmp_path):
    """The control: the models above refuse nothing by themselves."""
    merge(LORA())
    unmerge(MERGED())
    switch(OFF(), "b")
    combine(LORA(), {"default": 1}, "c")
    model = prepared("p", how=Prefix(length=3))()
    fold(model, "p")
    load_adapter(Decoder(model.config), save_adapter(model, tmp_path / "p"))
    assert len({row[0] for row in REFUSED}) == len(REFUSED)
    assert active_adapter(make("decoder")) is None
