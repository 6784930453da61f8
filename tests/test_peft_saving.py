"""Adapters as folders: what is saved comes back to the bit and is the adapter alone, and what does not fit, or is
damaged, is refused before anything is changed."""

import copy
import json
import shutil

import pytest
import torch
from few import few
from peft_models import (
    CONFIG,
    IDS_BT,
    LAYERS,
    MODELS,
    OURS,
    REAL_BT,
    ROTARY,
    STRATEGIES,
    WIDTH,
    adapted,
    gradients,
    looks,
    make,
    own_weights,
    prefixes,
    said,
    scramble,
    train,
    unequal,
)
from safetensors.torch import load_file, save_file
from tiny import shaken
from torch import nn

from course_lib.finetuning import Classifier
from course_lib.model import Decoder, Encoder, EncoderDecoder
from course_lib.peft import (
    Adapter,
    BitFit,
    Full,
    LoRA,
    Prefix,
    active_adapter,
    adapter_state,
    apply,
    fold,
    load_adapter,
    merge,
    remove,
    save_adapter,
    switch,
    unmerge,
)

CONFIG_FILE, WEIGHTS_FILE, OUTSIDE_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "outside_the_base.safetensors",
)
HOWS = {
    "default": LoRA(rank=8),
    "stabilised": LoRA(rank=4, alpha=3, rank_stabilized=True, dropout=0.5),
    "pattern": LoRA(rank=2, alpha=5, rank_pattern={r"0\..*": 6, "c_proj": 3, "dense": 4}),
    "some layers": LoRA(rank=2, targets=r".*\.1\..*(dense|c_proj)"),
    "long prefix": Prefix(length=9, hidden=None),
    "one adapter": Adapter(bottleneck=2, targets=["output.dense", "mlp.c_proj"]),
}


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def trained_names(model):
    return [name for name, gradient in gradients(model).items() if gradient is not None]


# there and back


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("family", few([*OURS, "classifier", "writing classifier"], "decoder", "classifier"))
def test_a_saved_adapter_comes_back_to_the_bit(family, kind, tmp_path):
    options = {"modules_to_save": ["head"]} if "classifier" in family else {}
    model, applied = adapted(family, kind, weights=1, **options)
    again = make(family)
    loaded = load_adapter(again, save_adapter(model, tmp_path / "a"))
    assert torch.equal(said(again), said(model))
    if kind == "prefix":  # the file holds what the network has made
        fold(model)
    assert not unequal(adapter_state(model), adapter_state(again))
    assert set(loaded.trained) == set(trained_names(again))
    assert loaded.modules_to_save == (
        () if kind == "full" else applied.modules_to_save
    )  # full trains all of them anyway
    assert files(tmp_path / "a") == [CONFIG_FILE, WEIGHTS_FILE] + [OUTSIDE_FILE] * bool(options)


@pytest.mark.parametrize("how", [LoRA(rank=2), Adapter(2), BitFit(), Full()], ids=lambda how: how.kind)
def test_what_a_strategy_trains_of_a_head_by_itself_comes_back_too(how, tmp_path):
    """An update beside the head, where it is a target as any other layer; its bias; all of it."""
    model, applied = adapted("classifier", how, weights=1)
    again = make("classifier")
    loaded = load_adapter(again, save_adapter(model, tmp_path / "a"))
    assert torch.equal(said(again), said(model)) and loaded.trained == applied.trained


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("family", few(["decoder", "rotary encoder"], "decoder"))
def test_settings_come_back_with_it(family, how, tmp_path):
    model, applied = adapted(family, HOWS[how], weights=1)
    again = make(family)
    loaded = load_adapter(again, save_adapter(model, tmp_path / "a"))
    assert torch.equal(said(again), said(model))
    assert loaded.places == applied.places
    if isinstance(HOWS[how], LoRA):
        for setting in ("rank", "alpha", "dropout", "rank_stabilized"):
            assert getattr(loaded.strategy, setting) == getattr(HOWS[how], setting)
        ranks = [[strategy.rank_of(place) for place in applied.places] for strategy in (HOWS[how], loaded.strategy)]
        assert ranks[0] == ranks[1]


@pytest.mark.parametrize("kind", ["lora", "bitfit", "full"])
def test_a_plain_model_takes_back_what_was_saved_of_it(kind, tmp_path):
    model, _ = adapted("plain", kind, weights=1)
    again = make("plain")
    load_adapter(again, save_adapter(model, tmp_path / "a"))
    assert torch.equal(said(again), said(model))


def test_a_single_layer_takes_back_what_was_saved_of_it(tmp_path):
    model, again = nn.Linear(6, 4), nn.Linear(6, 4)
    again.load_state_dict(model.state_dict())
    apply(model, LoRA(rank=2))
    load_adapter(again, save_adapter(scramble(model), tmp_path / "a"))
    assert torch.equal(said(again), said(model))


def test_layers_whose_names_end_alike_are_not_mixed_up(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6)))
    again = copy.deepcopy(model)
    apply(model, LoRA(rank=2, targets="0"))  # the whole name: the first layer alone
    loaded = load_adapter(again, save_adapter(scramble(model), tmp_path / "a"))
    assert loaded.places == ("0",) and torch.equal(said(again), said(model))


def test_the_file_holds_the_adapter_and_nothing_of_its_base(tmp_path):
    expected = {
        "lora": 2 * 4 * LAYERS,
        "prefix": 1,
        "adapter": 4 * 2 * LAYERS,
        "bitfit": 6 * LAYERS + 1,
        "full": len(own_weights(make("decoder"))),
    }
    for kind, count in expected.items():
        model, _ = adapted("decoder", kind)
        tensors = load_file(save_adapter(model, tmp_path / kind) / WEIGHTS_FILE)
        assert len(tensors) == count
        assert kind in ("bitfit", "full") or not any(name.endswith("c_attn.weight") for name in tensors)


def test_a_classifiers_head_travels_in_a_file_of_its_own(tmp_path):
    model, _ = adapted("classifier", "lora", weights=1, modules_to_save=["head"])
    folder = save_adapter(model, tmp_path / "a")
    outside = load_file(folder / OUTSIDE_FILE)
    assert torch.equal(outside["head.weight"], model.head.weight) and set(outside) == {"head.weight", "head.bias"}
    assert not any("head" in name for name in load_file(folder / WEIGHTS_FILE))
    again = make("classifier")
    load_adapter(again, folder)
    switch(again, None)
    assert not torch.equal(again.head.weight, model.head.weight)
    remove(again, "default")
    assert not unequal(again.state_dict(), make("classifier").state_dict())


def test_a_saved_folder_replaces_the_older_one_whole(tmp_path):
    model, _ = adapted("classifier", "lora", modules_to_save=["head"])
    save_adapter(model, tmp_path / "a")
    remove(model, "default")
    apply(model, Prefix(length=2))
    save_adapter(model, tmp_path / "a")
    assert files(tmp_path / "a") == [CONFIG_FILE, WEIGHTS_FILE]
    assert load_adapter(make("classifier"), tmp_path / "a").strategy.kind == "prefix"


def test_an_adapter_that_does_not_act_is_saved_by_its_name(tmp_path):
    model, words = make("classifier"), {}
    for seed, name in enumerate(("calm", "angry")):
        apply(model, LoRA(rank=2), name=name, modules_to_save=["head"])
        words[name] = said(scramble(model, seed))
    again = make("classifier")
    for name in ("calm", "angry"):
        load_adapter(again, save_adapter(model, tmp_path / name, name), name=name)
    assert active_adapter(again) == "angry" == active_adapter(model)
    for name in ("angry", "calm"):
        switch(again, name)
        assert torch.equal(said(again), words[name])


def test_one_folder_can_be_loaded_twice_under_two_names(tmp_path):
    model, _ = adapted("decoder", "lora", weights=1)
    folder = save_adapter(model, tmp_path / "a")
    again = make("decoder")
    load_adapter(again, folder, name="a")
    load_adapter(again, folder, name="b")
    train(again)
    switch(again, "a")
    assert torch.equal(said(again), said(model))


def test_a_merged_adapter_is_saved_as_it_is_beside_the_model(tmp_path):
    model, _ = adapted("decoder", "lora", weights=1)
    merge(model)
    again = make("decoder")
    load_adapter(again, save_adapter(model, tmp_path / "a"))
    unmerge(model)
    assert torch.equal(said(again), said(model))


def test_a_loaded_adapter_trains_on(tmp_path):
    model, applied = adapted("decoder", "lora", weights=1)
    again = make("decoder")
    assert load_adapter(again, save_adapter(model, tmp_path / "a")).trained == applied.trained
    assert not unequal(own_weights(train(model)), own_weights(train(again)))
    assert torch.equal(said(model), said(again))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_an_adapter_in_bf16_comes_back_on_a_base_in_bf16(kind, tmp_path):
    model = adapted("decoder", kind, weights=1)[0].bfloat16()
    again = make("decoder").bfloat16()
    load_adapter(again, save_adapter(model, tmp_path / "a"))
    assert torch.equal(said(again), said(model))


@pytest.mark.parametrize("kind", ["lora", "prefix", "adapter"])
@pytest.mark.parametrize("config", [CONFIG, ROTARY], ids=["bert", "roformer"])
def test_what_an_encoder_has_learned_moves_into_a_classifier_on_it(config, kind, tmp_path):
    """With its prediction head or without: the layers are called the same in the file."""
    hows = {
        "lora": LoRA(rank=2, targets=["query", "value"]),
        "prefix": Prefix(length=3),
        "adapter": Adapter(bottleneck=2),
    }
    model = shaken(Encoder(config), 0.2).eval()
    body = Encoder(config, head=False).eval()
    body.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("cls.")})
    apply(model, hows[kind])
    classifier = Classifier(body)
    load_adapter(classifier, save_adapter(scramble(model), tmp_path / "a"))
    assert torch.equal(classifier.body.encode(IDS_BT, REAL_BT), model.encode(IDS_BT, REAL_BT))


def test_what_is_read_says_the_same_wherever_the_folder_is_copied(tmp_path):
    model, _ = adapted("decoder", "lora", weights=1)
    save_adapter(model, str(tmp_path / "deep" / "a"))
    shutil.move(tmp_path / "deep" / "a", tmp_path / "b")
    again = make("decoder")
    load_adapter(again, str(tmp_path / "b"))
    assert torch.equal(said(again), said(model))
    assert str(tmp_path) not in (tmp_path / "b" / CONFIG_FILE).read_text()


# other bases, damaged files


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of every kind, from a decoder; and one with a head."""
    root = tmp_path_factory.mktemp("saved")
    folders = {kind: save_adapter(adapted("decoder", kind, weights=1)[0], root / kind) for kind in STRATEGIES}
    model, _ = adapted("classifier", "lora", weights=1, modules_to_save=["head"])
    pair, _ = adapted("encoder-decoder", "prefix", weights=1)
    return folders | {"head": save_adapter(model, root / "head"), "pair": save_adapter(pair, root / "pair")}


def settings(drop=(), **changes):
    """A change of the settings in a folder."""

    def change(folder):
        path = folder / CONFIG_FILE
        kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in drop}
        path.write_text(json.dumps(kept | changes))

    return change


def tensors(change, name=WEIGHTS_FILE):
    """A change of the tensors in a folder."""

    def rewrite(folder):
        held = load_file(folder / name)
        change(held)
        save_file(held, folder / name)

    return rewrite


def first(held, part):
    return next(name for name in held if part in name)


def without(part):
    return tensors(lambda held: [held.pop(name) for name in list(held) if part in name])


def put(part, *shape):
    """A tensor of another shape in the place of the first whose name holds this."""
    return tensors(lambda held: held.update({first(held, part): torch.zeros(shape)}))


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:40])


def gone(name):
    return lambda folder: (folder / name).unlink()


def unchanged(folder):
    pass


def decoder(**changes):
    return lambda: Decoder(CONFIG.with_(**changes))


OTHER = "the adapter was made for another base"
DECODER, ENCODER, PLAIN = decoder(), MODELS["encoder"], MODELS["plain"]
REFUSED = [
    # name, the folder, what happens to it, the model that it is loaded on, words
    (
        "lora, wider base",
        "lora",
        unchanged,
        decoder(d_model=32),
        (OTHER, "c_attn.A is 3 x 16 in the file and here 3 x 32", "more)"),
    ),
    (
        "lora, other inner width",
        "lora",
        unchanged,
        decoder(d_ff=20),
        (OTHER, "c_fc.B is 24 x 3 in the file and here 20 x 3"),
    ),
    ("lora, fewer layers", "lora", unchanged, decoder(n_layers=1), (OTHER, "no transformer.h.1.")),
    ("lora, other kind of base", "lora", unchanged, ENCODER, (OTHER, "this Encoder has no transformer.h.")),
    (
        "adapter, wider base",
        "adapter",
        unchanged,
        decoder(d_model=32),
        (OTHER, "c_proj.down.weight is 3 x 16 in the file and here 3 x 32"),
    ),
    (
        "prefix, wider base",
        "prefix",
        unchanged,
        decoder(d_model=32),
        (OTHER, "the prefix of the model is 4 x 64 in the file and here 4 x 128"),
    ),
    (
        "prefix, more layers",
        "prefix",
        unchanged,
        decoder(n_layers=3),
        (OTHER, "the prefix of the model is 4 x 64 in the file and here 4 x 96"),
    ),
    ("prefix, no place", "prefix", unchanged, PLAIN, (OTHER, "this Sequential has no prompt_embeddings")),
    ("prefix, no second place", "pair", unchanged, DECODER, (OTHER, "this Decoder has no encoder.prompt_embeddings")),
    (
        "prefix, no second prefix",
        "prefix",
        unchanged,
        lambda: EncoderDecoder(CONFIG),
        (OTHER, "the prefix of encoder is missing in the file"),
    ),
    ("bitfit, wider base", "bitfit", unchanged, decoder(d_model=32), (OTHER, " in the file and here ")),
    ("bitfit, more layers", "bitfit", unchanged, decoder(n_layers=3), (OTHER, "transformer.h.2.")),
    ("bitfit, other kind of base", "bitfit", unchanged, ENCODER, (OTHER, "this Encoder has no transformer.")),
    ("full, wider base", "full", unchanged, decoder(d_model=32), (OTHER, " in the file and here ")),
    (
        "full, more words",
        "full",
        unchanged,
        decoder(vocab_size=61),
        (OTHER, "is 60 x 16 in the file and here 61 x 16"),
    ),
    ("full, more layers", "full", unchanged, decoder(n_layers=3), (OTHER, "transformer.h.2.")),
    (
        "head of other classes",
        "head",
        unchanged,
        lambda: Classifier(Encoder(CONFIG, head=False), 3),
        (OTHER, "head.weight is 2 x 16 in the file and here 3 x 16"),
    ),
    ("head without a classifier", "head", unchanged, lambda: Encoder(CONFIG, head=False), "head"),
    ("no folder", "lora", shutil.rmtree, DECODER, "adapter_config.json is not there"),
    ("no settings", "lora", gone(CONFIG_FILE), DECODER, "adapter_config.json is not there"),
    (
        "no weights",
        "lora",
        gone(WEIGHTS_FILE),
        DECODER,
        ("adapter_model.safetensors is not there", "adapter_config.json"),
    ),
    ("settings cut off", "lora", cut(CONFIG_FILE), DECODER, "adapter_config.json is damaged"),
    ("weights cut off", "lora", cut(WEIGHTS_FILE), DECODER, "adapter_model.safetensors is damaged or cut off"),
    (
        "head cut off",
        "head",
        cut(OUTSIDE_FILE),
        MODELS["classifier"],
        "outside_the_base.safetensors is damaged or cut off",
    ),
    ("head lost", "head", gone(OUTSIDE_FILE), MODELS["classifier"], "outside_the_base.safetensors is not there"),
    (
        "settings are a list",
        "lora",
        lambda f: (f / CONFIG_FILE).write_text("[]"),
        DECODER,
        "holds no settings but a list",
    ),
    ("kind of peft's own", "lora", settings(peft_type="IA3"), DECODER, ("type 'IA3'", "LORA, PREFIX_TUNING, ADAPTER")),
    ("no kind", "lora", settings(["peft_type"]), DECODER, "type None"),
    ("a model, no adapter", "lora", settings(["peft_type"], model_type="gpt2"), DECODER, "an adapter of type None"),
    ("no rank", "lora", settings(["r"]), DECODER, "adapter_config.json does not say 'r'"),
    ("no alpha", "lora", settings(["lora_alpha"]), DECODER, "does not say 'lora_alpha'"),
    ("rank 0", "lora", settings(r=0), DECODER, "rank is 0"),
    ("alpha as text", "lora", settings(lora_alpha="7"), DECODER, "alpha"),
    ("no bottleneck", "adapter", settings(["bottleneck"]), DECODER, "does not say 'bottleneck'"),
    ("no length", "prefix", settings(["num_virtual_tokens"]), DECODER, "does not say 'num_virtual_tokens'"),
    (
        "other length",
        "prefix",
        settings(num_virtual_tokens=5),
        DECODER,
        "the prefix of the model is 4 x 64 in the file and here 5 x 64",
    ),
    ("other bottleneck", "adapter", settings(bottleneck=8), DECODER, "down.bias is 3 in the file and here 8"),
    (
        "magnitudes beside",
        "lora",
        settings(use_dora=True),
        DECODER,
        ("use_dora is True", "the course's LoRA does not have that"),
    ),
    ("biases beside", "lora", settings(bias="all"), DECODER, "bias is 'all'"),
    ("other scales", "lora", settings(alpha_pattern={"c_fc": 3}), DECODER, "alpha_pattern is {'c_fc': 3}"),
    ("acts on some tokens alone", "lora", settings(alora_invocation_tokens=[5]), DECODER, "alora_invocation_tokens"),
    (
        "moved the base",
        "lora",
        settings(init_lora_weights="pissa_niter_4"),
        DECODER,
        ("'pissa_niter_4'", "changes the base"),
    ),
    ("half an update", "lora", without("h.1.mlp.c_fc.lora_A"), DECODER, "transformer.h.1.mlp.c_fc.B"),
    ("an update lost", "lora", without("h.1.mlp.c_fc"), DECODER, "transformer.h.1.mlp.c_fc"),
    ("all updates lost", "lora", without("lora"), DECODER, "lacks the update of transformer.h.0.attn.c_attn"),
    ("halves of two ranks", "lora", put("lora_B", 48, 2), DECODER, "transformer.h.0.attn.c_attn"),
    ("an update without axes", "lora", put("lora_A", 16), DECODER, "transformer.h.0.attn.c_attn"),
    (
        "half an adapter",
        "adapter",
        without("h.0.mlp.c_proj.up.bias"),
        DECODER,
        "transformer.h.0.mlp.c_proj.up.bias is missing in the file",
    ),
    ("an adapter's bias of another length", "adapter", put("up.bias", 3), DECODER, "up.bias"),
    ("prefix lost", "prefix", lambda f: save_file({}, f / WEIGHTS_FILE), DECODER, "the prefix of the model is missing"),
    ("a bias lost", "bitfit", without("h.1.mlp.c_fc.bias"), DECODER, "transformer.h.1.mlp.c_fc.bias"),
    (
        "a tensor too many",
        "lora",
        tensors(lambda held: held.update(more=torch.zeros(1))),
        DECODER,
        ("has no more", OTHER),
    ),
]


@pytest.mark.parametrize(("kind", "damage", "made", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused_in_words_that_help_and_nothing_is_changed(saved, kind, damage, made, words, tmp_path):
    folder = shutil.copytree(saved[kind], tmp_path / "a")
    damage(folder)
    model = made()
    looked, weights = looks(model), copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        load_adapter(model, folder)
    for part in (words,) if isinstance(words, str) else words:
        assert part in str(refusal.value)
    assert looks(model) == looked
    assert not unequal(weights, model.state_dict())


def test_what_the_rows_get_wrong_is_accepted_once_it_is_right(saved, tmp_path):
    """The control: a copy that was rewritten without a change loads."""
    for kind, folder in saved.items():
        copied = shutil.copytree(folder, tmp_path / kind)
        settings()(copied)
        tensors(lambda held: None)(copied)
        load_adapter(MODELS[{"head": "classifier", "pair": "encoder-decoder"}.get(kind, "decoder")](), copied)
    assert len({row[0] for row in REFUSED}) == len(REFUSED)


@pytest.mark.parametrize("taken", [BitFit(), LoRA(rank=2), Full()], ids=lambda how: how.kind)
def test_a_taken_name_a_merged_model_and_one_trained_in_full_are_refused(saved, taken):
    model = make("decoder")
    apply(model, taken)
    looked, before = looks(model), said(model)
    with pytest.raises(ValueError, match="'default' already"):
        load_adapter(model, saved["lora"])
    if isinstance(taken, LoRA):
        merge(model)
        looked, before = looks(model), said(model)
        with pytest.raises(ValueError, match="unmerge the model first"):
            load_adapter(model, saved["lora"], name="b")
    if isinstance(taken, Full):
        with pytest.raises(ValueError, match="load the model again"):
            load_adapter(model, saved["lora"], name="b")
    assert looks(model) == looked and torch.equal(said(model), before)


def test_nothing_is_saved_of_a_name_that_is_not_there_or_where_none_acts(tmp_path):
    model, _ = adapted("decoder", "lora")
    with pytest.raises(ValueError, match="'mood' is not there: this model has default"):
        save_adapter(model, tmp_path / "out", "mood")
    switch(model, None)
    with pytest.raises(ValueError, match="no adapter is active"):
        save_adapter(model, tmp_path / "out")
    with pytest.raises(ValueError, match="has no adapter: apply a strategy"):
        save_adapter(make("decoder"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_prefix_is_saved_as_it_is_made_and_needs_no_network(tmp_path):
    model, _ = adapted("decoder", Prefix(length=3, hidden=5), weights=1)
    held = load_file(save_adapter(model, tmp_path / "a") / WEIGHTS_FILE)
    assert {name: tuple(tensor.shape) for name, tensor in held.items()} == {
        "prompt_embeddings": (3, LAYERS * 2 * WIDTH)
    }
    assert prefixes(model)[0].network is not None  # the model's own trains on
