"""Strategies on models in the code of transformers, and `peft` as the oracle: what is saved here says the same there,
what is saved there says the same here."""

import copy
import io
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_models import (
    HEADS,
    IDS_BT,
    INNER,
    LAYERS,
    MAX_LEN,
    REAL_BT,
    STRATEGIES,
    THEIR_CASES,
    THEIRS,
    VOCAB,
    WIDTH,
    adapted,
    gradients,
    looks,
    make,
    own_weights,
    prefixes,
    said,
    scramble,
    theirs,
    train,
    unequal,
)
from safetensors.torch import load_file
from tiny import differ, shaken

from course_lib.generation import generate
from course_lib.peft import (
    Adapter,
    BitFit,
    Full,
    LoRA,
    Prefix,
    adapter_state,
    apply,
    load_adapter,
    merge,
    merge_and_unload,
    remove,
    save_adapter,
    switch,
    unmerge,
)
from course_lib.peft.prefix import PrefixKeysValues
from course_lib.peft.slots import parts_of
from course_lib.pretrained import save_model
from course_lib.vocabulary import Vocabulary

transformers = pytest.importorskip("transformers", reason="install the extra [interop] for the parity tests")
peft = pytest.importorskip("peft", reason="install the extra [interop] for the parity tests")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:peft")]
TOLERANCE = 1e-5  # relative to the largest value compared, fp32
FAR = 2e-5  # of ours to theirs: two ways to the same sums
FEW = settings(max_examples=5)  # a slow test below draws more
WRITERS = ["gpt2", "llama"]
BEGIN_AS_BASE = [case for case in THEIR_CASES if case[1] not in ("prefix", "adapter")]


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Without reports of tensors that an AutoModel leaves out."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(level)
    transformers.logging.enable_progress_bar()


# the five strategies


@pytest.mark.parametrize(("family", "kind"), BEGIN_AS_BASE)
def test_training_begins_from_the_base_to_the_bit(family, kind):
    assert torch.equal(said(adapted(family, kind)[0]), said(make(family)))


@pytest.mark.parametrize("family", THEIRS)
def test_adapter_layers_begin_within_a_hundredth_of_the_base_and_a_prefix_does_not(family):
    base = said(make(family))
    assert 0 < differ(said(adapted(family, "adapter")[0]), base) < 0.01
    assert differ(said(adapted(family, "prefix")[0]), base) > 0.01


@pytest.mark.parametrize(("family", "kind"), THEIR_CASES)
def test_steps_change_what_the_model_says_and_of_its_weights_only_what_the_strategy_trains(family, kind):
    model, _ = adapted(family, kind)
    begun, weights = said(model).detach(), own_weights(model)
    train(model)
    assert differ(said(model), begun) > 1e-3
    may = {"full": list(weights), "bitfit": [name for name in weights if name.endswith("bias")]}.get(kind, [])
    assert unequal(weights, own_weights(model)) == sorted(may)


@pytest.mark.parametrize(("family", "kind"), THEIR_CASES)
def test_what_is_listed_as_trained_gets_gradients_and_nothing_else_does(family, kind):
    model, applied = adapted(family, kind)
    have = [name for name, gradient in gradients(model).items() if gradient is not None]
    assert have == list(applied.trained) == [name for name, p in model.named_parameters() if p.requires_grad]


KEYS = {"gpt2": WIDTH, "bert": WIDTH, "llama": WIDTH // 2}  # channels of all keys: Llama's two queries share them
LINEAR = {
    "gpt2": LAYERS * (WIDTH * 6 + 2 * (WIDTH + INNER)),
    "bert": LAYERS * (WIDTH * 8 + 2 * (WIDTH + INNER)) + 2 * WIDTH,
    "llama": LAYERS * (4 * WIDTH + 2 * (WIDTH + KEYS["llama"]) + 3 * (WIDTH + INNER)),  # not its output layer
}
BIASES = {"gpt2": LAYERS * (7 * WIDTH + INNER) + WIDTH, "bert": (3 + 7 * LAYERS) * WIDTH + LAYERS * INNER + VOCAB}


@pytest.mark.parametrize("family", THEIRS)
def test_the_number_of_trained_parameters_is_what_the_papers_say(family):
    width, made = KEYS[family], LAYERS * 2 * KEYS[family]
    for how, count in [
        (LoRA(rank=3), 3 * LINEAR[family]),
        (Adapter(bottleneck=5), 2 * LAYERS * (2 * WIDTH * 5 + 5 + WIDTH)),
        (Prefix(length=4, hidden=None), 4 * made),
        (Prefix(length=4, hidden=6), 4 * width + (width + 1) * 6 + (6 + 1) * made),
        (BitFit(), BIASES.get(family)),
        (Full(), sum(p.numel() for p in make(family).parameters())),
    ]:
        if count is not None:
            assert adapted(family, how)[1].n_trained == count, how


@pytest.mark.parametrize("family", THEIRS)
def test_peft_counts_the_same(family):
    """But for "all-linear", which spares the output layer there."""
    targets = {"gpt2": ["c_attn", "mlp.c_proj"], "bert": ["query", "dense"], "llama": ["k_proj", "gate_proj"]}[family]
    options = {"target_modules": targets, "rank_pattern": {r".*\.1\..*": 5}}
    there = peft.get_peft_model(make(family), peft.LoraConfig(r=3, **options))
    here = adapted(family, LoRA(rank=3, targets=targets, rank_pattern={r".*\.1\..*": 5}))[1]
    assert there.get_nb_trainable_parameters()[0] == here.n_trained
    for hidden in (None, 6):
        task = "FEATURE_EXTRACTION" if family == "bert" else "CAUSAL_LM"
        config = peft.PrefixTuningConfig(
            task_type=task, num_virtual_tokens=4, prefix_projection=hidden is not None, encoder_hidden_size=hidden
        )
        there = peft.get_peft_model(make(family).base_model if family == "bert" else make(family), config)
        assert there.get_nb_trainable_parameters()[0] == adapted(family, Prefix(4, hidden))[1].n_trained


@pytest.mark.parametrize("family", THEIRS)
def test_merged_says_the_same_as_beside_and_unmerged_is_what_it_was_to_the_bit(family):
    model, applied = adapted(family, "lora", weights=1)
    beside, weights = said(model), own_weights(model)
    merge(model)
    assert differ(said(model), beside) < TOLERANCE < differ(said(model), said(make(family)))
    assert {name.removesuffix(".weight") for name in unequal(weights, own_weights(model))} == set(applied.places)
    unmerge(model)
    assert not unequal(weights, own_weights(model)) and torch.equal(said(model), beside)
    assert looks(merge_and_unload(model)) == looks(make(family))
    assert differ(said(model), beside) < TOLERANCE


@pytest.mark.parametrize("family", THEIRS)
def test_merged_in_bf16_says_about_the_same_and_comes_out_to_the_bit(family):
    model = scramble(adapted(family, "lora")[0], size=0.1).bfloat16()
    beside = said(model)
    merge(model)
    assert 0 < differ(said(model).float(), beside.float()) < 0.05  # 8 bits of every number
    unmerge(model)
    assert torch.equal(said(model), beside)


@pytest.mark.parametrize("family", THEIRS)
def test_ten_switches_leave_all_adapters_and_the_base_as_they_were_to_the_bit(family):
    model, words = make(family), {None: said(make(family))}
    for kind in ("lora", "prefix", "adapter"):
        apply(model, STRATEGIES[kind], name=kind)
        words[kind] = said(scramble(model))
    for name in ["lora", None, "prefix", "adapter", "lora"] * 2:
        switch(model, name)
        assert torch.equal(said(model), words[name])
    for kind in ("prefix", "lora", "adapter"):
        remove(model, kind)
    assert looks(model) == looks(make(family)) and not unequal(model.state_dict(), make(family).state_dict())


@pytest.mark.parametrize(("family", "kind"), THEIR_CASES)
def test_a_copy_lives_on_its_own_and_a_pickled_model_comes_back(family, kind):
    model, _ = adapted(family, kind, weights=1)
    before, file = said(model), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(said(twin), before)
        assert not torch.equal(said(train(twin)), before)
        if kind != "full":
            remove(twin, "default")
            assert torch.equal(said(twin), said(make(family))) and looks(twin) == looks(make(family))
        assert torch.equal(said(model), before)


@pytest.mark.parametrize(("family", "kind"), THEIR_CASES)
def test_a_saved_adapter_comes_back_to_the_bit(family, kind, tmp_path):
    model, _ = adapted(family, kind, weights=1)
    again = make(family)
    load_adapter(again, save_adapter(model, tmp_path / "a"))
    assert torch.equal(said(again), said(model))
    assert len(load_file(tmp_path / "a" / "adapter_model.safetensors")) == len(adapter_state(again))


@pytest.mark.parametrize(("family", "kind"), [case for case in THEIR_CASES if case[1] != "prefix"])
def test_gradient_checkpointing_gives_the_same_gradients(family, kind):
    model, _ = adapted(family, kind, weights=1)
    model.train()
    plain = {name: gradient for name, gradient in gradients(model).items() if gradient is not None}
    model.gradient_checkpointing_enable()
    again = {name: gradient for name, gradient in gradients(model).items() if gradient is not None}
    assert not unequal(plain, again)


@pytest.mark.parametrize("family", THEIRS)
def test_a_prefix_under_gradient_checkpointing_is_refused_with_the_reason(family):
    model, _ = adapted(family, "prefix", weights=1)
    before = said(model)
    model.train().gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"drops the cache .* and a prefix with it: turn one of the two off"):
        said(model)
    assert torch.equal(said(model.eval()), before)  # nothing is recomputed where nothing is trained


@pytest.mark.parametrize(("family", "kind"), THEIR_CASES)
def test_bf16_autocast_gives_almost_the_same_gradients(family, kind):
    model, _ = adapted(family, kind)
    if kind not in ("full", "bitfit"):
        scramble(model, size=0.1)
    exact = torch.cat([g.flatten() for g in gradients(model).values() if g is not None])
    with torch.autocast("cpu", torch.bfloat16):
        rough = torch.cat([g.flatten() for g in gradients(model).values() if g is not None])
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05  # 8 bits of every number: 1 to 3 % here


# a prefix in their code


def cache_of(run):
    """What this version of transformers calls the cache, and the cache."""
    name = "past_key_values" if getattr(run, "past_key_values", None) is not None else "cache"
    return name, getattr(run, name)


def left_behind(cache):
    """Keys and values of one text, laid out as a prefix."""
    layers = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
    return layers.permute(3, 0, 1, 2, 4).flatten(1)


@pytest.mark.parametrize("family", WRITERS)
def test_a_prefix_that_holds_what_a_text_left_behind_is_that_text(family):
    text_1P = torch.tensor([[11, 23, 5, 42, 8]])
    with torch.no_grad():
        cache = cache_of(make(family)(text_1P, use_cache=True))[1]
    model, _ = adapted(family, Prefix(length=5, hidden=None))
    with torch.no_grad():
        prefixes(model)[0].embedding.copy_(left_behind(cache))
    whole_BT = torch.cat([text_1P.expand(3, -1), IDS_BT], dim=1)
    assert differ(said(model), make(family)(whole_BT).logits[:, 5:]) < TOLERANCE


def one_sided(family):
    """A model whose queries all point one way: channel 0 of every head is 8."""
    model = make(family)
    channels = torch.arange(HEADS) * (WIDTH // HEADS)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("self.query", "attn.c_attn")):
                (module.weight if family == "bert" else module.weight.T)[channels] = 0
                module.bias[channels] = 8
    return model


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_prefix_that_nobody_looks_at_does_nothing_but_shift_the_positions(family):
    model = one_sided(family)
    apply(model, Prefix(length=4, hidden=None))
    scramble(model)
    with torch.no_grad():
        keys_PLHD = prefixes(model)[0].embedding.view(4, LAYERS, 2, HEADS, -1)[:, :, 0]
        keys_PLHD.copy_(torch.eye(WIDTH // HEADS)[0] * -1e4)
    assert differ(said(model), said(one_sided(family), position_ids=torch.arange(4, 11)[None])) < TOLERANCE
    assert differ(said(model), said(one_sided(family))) > 1000 * TOLERANCE


@pytest.mark.parametrize("family", THEIRS)
def test_padding_changes_nothing_of_a_real_token(family):
    model, _ = adapted(family, "prefix", weights=4)
    sides = {"right": REAL_BT} | ({} if family == "bert" else {"left": REAL_BT.flip(1)})
    for side, is_real_BT in sides.items():
        position_ids = (is_real_BT.cumsum(1) - 1).clamp(min=0)
        together = said(model, attention_mask=is_real_BT.long(), position_ids=position_ids)
        for row, length in enumerate((7, 5, 2)):
            part = slice(0, length) if side == "right" else slice(7 - length, 7)
            alone = model(input_ids=IDS_BT[row : row + 1, part]).logits[0]
            assert differ(together[row, part], alone) < TOLERANCE


def test_the_check_above_sees_positions_that_are_not_shifted(monkeypatch):
    into_theirs = PrefixKeysValues._into_theirs

    def unshifted(self, host, given, dtype):
        position_ids = given.get("position_ids")
        into_theirs(self, host, given, dtype)
        given["position_ids"] = position_ids

    model, _ = adapted("gpt2", "prefix", weights=4)
    right = said(model)
    monkeypatch.setattr(PrefixKeysValues, "_into_theirs", unshifted)
    assert differ(said(model, position_ids=torch.arange(7)[None]), right) > 0.01


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("axes", [2, 4])
def test_every_way_to_write_a_mask_means_the_same(axes, dtype):
    """With four axes and as floats, a mask is added to the scores: 0 lets through, the smallest number does not."""
    model, _ = adapted("gpt2", "prefix", weights=4)
    mask = REAL_BT if axes == 2 else torch.ones(7, 7, dtype=torch.bool).tril() & REAL_BT[:, None, None]
    if dtype == torch.float32:
        mask = mask.float() if axes == 2 else torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(dtype).min)
    with torch.no_grad():
        wanted, given = said(model, attention_mask=REAL_BT.long()), said(model, attention_mask=mask)
    assert differ(given[REAL_BT], wanted[REAL_BT]) < TOLERANCE


def test_embeddings_may_be_given_in_place_of_ids():
    model, _ = adapted("gpt2", "prefix", weights=4)
    embedded = model.get_input_embeddings()(IDS_BT)
    assert torch.equal(model(inputs_embeds=embedded).logits, said(model))


GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def written(model, ids_BT, **options):
    """What transformers' own `generate` writes on."""
    mask = options.pop("attention_mask", torch.ones_like(ids_BT))
    return model.generate(input_ids=ids_BT, attention_mask=mask, **(GREEDY | options))[:, ids_BT.shape[1] :].tolist()


def written_without_a_cache(model, ids_BT):
    """The same, all over again for every token."""
    whole_BT = ids_BT
    for _ in range(GREEDY["max_new_tokens"]):
        whole_BT = torch.cat([whole_BT, model(whole_BT, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return whole_BT[:, ids_BT.shape[1] :].tolist()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"prefill_chunk_size": 3}], ids=str)
@pytest.mark.parametrize("family", WRITERS)
def test_every_way_to_write_on_behind_a_prefix_writes_the_same(family, options, seed):
    model, _ = adapted(family, "prefix", weights=seed)
    assert written(model, IDS_BT, **options) == written_without_a_cache(model, IDS_BT)
    assert written(model, IDS_BT, **options) != written(make(family), IDS_BT, **options)


@pytest.mark.parametrize("family", WRITERS)
def test_beams_behind_a_prefix_are_the_same_with_a_cache_and_without(family):
    model, _ = adapted(family, "prefix", weights=1)
    assert written(model, IDS_BT, num_beams=3) == written(model, IDS_BT, num_beams=3, use_cache=False)


@pytest.mark.parametrize("family", WRITERS)
def test_a_cache_of_a_fixed_size_has_room_for_the_prefix_or_is_refused_by_name(family):
    model, _ = adapted(family, "prefix", weights=1)
    try:
        assert written(model, IDS_BT, cache_implementation="static") == written(model, IDS_BT)
    except ValueError as refusal:
        assert "prefix" in str(refusal) and "cache" in str(refusal)


@pytest.mark.parametrize("kind", ["prefix", "lora"])
@pytest.mark.parametrize("family", WRITERS)
def test_a_batch_of_prompts_is_written_on_as_each_of_them_alone(family, kind):
    model, _ = adapted(family, kind, weights=1)
    is_real_BT = REAL_BT.flip(1)
    ids_BT = IDS_BT.masked_fill(~is_real_BT, 0)
    together = written(model, ids_BT, attention_mask=is_real_BT.long())
    assert together == [written(model, ids_BT[row : row + 1, 7 - n :])[0] for row, n in enumerate((7, 5, 2))]


@pytest.mark.parametrize("family", WRITERS)
def test_a_text_may_be_read_in_two_halves(family):
    model, _ = adapted(family, "prefix", weights=1)
    whole = said(model)
    first = model(input_ids=IDS_BT[:, :4], use_cache=True)
    second = model(input_ids=IDS_BT[:, 4:], **dict([cache_of(first)]))
    assert differ(second.logits, whole[:, 4:]) < TOLERANCE


def test_transformers_has_no_complaint_about_how_it_is_used():
    model, _ = adapted("gpt2", "prefix")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said(model)


# what cannot be adapted

SIZES = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": INNER, "max_position_embeddings": MAX_LEN}  # fmt: skip
FOREIGN = {
    "T5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ),
    "Bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=VOCAB, hidden_size=WIDTH, n_layer=1, n_head=2)
    ),
    "ViT": lambda: transformers.ViTModel(
        transformers.ViTConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, image_size=16)
    ),
    "DistilBert": lambda: transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(vocab_size=VOCAB, dim=WIDTH, n_layers=1, n_heads=2, hidden_dim=INNER)
    ),
    "Albert": lambda: transformers.AlbertForMaskedLM(transformers.AlbertConfig(**SIZES, embedding_size=WIDTH)),
    "ModernBert": lambda: transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(**SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
                                      sep_token_id=2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_prefix_acts_or_is_refused_when_it_is_applied(name):
    model = shaken(FOREIGN[name](), 0.2).eval()
    looked = looks(model)
    try:
        apply(model, Prefix(length=4))
    except ValueError as refusal:
        assert "takes no earlier keys and values" in str(refusal)
        assert looks(model) == looked
    else:
        begun = said(model)
        switch(model, None)
        assert differ(begun, said(model)) > 0.001


REFUSED = [
    ("no bias", "llama", lambda m: apply(m, BitFit()), "this LlamaForCausalLM has no parameter called bias"),
    ("tied output", "gpt2", lambda m: apply(m, LoRA(targets=["lm_head"])), ("'lm_head' shares its weight", "wte")),
    ("tied output of bert", "bert", lambda m: apply(m, LoRA(targets=["decoder"])), ("shares its weight", "word_emb")),
    (
        "names of gpt2 in bert",
        "bert",
        lambda m: apply(m, LoRA(targets=["c_attn"])),
        ("no layer matches", "*.attention."),
    ),
    (
        "a table",
        "llama",
        lambda m: apply(m, LoRA(targets=["embed_tokens"])),
        "is a Embedding: this LlamaForCausalLM has",
    ),
    ("shared keys", "llama", lambda m: apply(m, LoRA(rank=9, targets=["k_proj"])), "larger than its matrix, 8 x 16"),
    (
        "prefix fills the model",
        "gpt2",
        lambda m: apply(m, Prefix(MAX_LEN)),
        f"leaves no position of the model's {MAX_LEN}",
    ),
    ("prefix fills llama", "llama", lambda m: apply(m, Prefix(MAX_LEN)), "leaves no position"),
]


def test_a_tied_module_that_is_trained_whole_trains_what_it_is_tied_to():
    applied = apply(make("gpt2"), LoRA(targets=["c_attn"]), modules_to_save=["lm_head"])
    assert "transformer.wte.weight" in applied.trained


@pytest.mark.parametrize(("family", "act", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_in_words_that_help_and_nothing_is_changed(family, act, words):
    model = make(family)
    looked = looks(model)
    with pytest.raises(ValueError) as refusal:
        act(model)
    for part in (words,) if isinstance(words, str) else words:
        assert part in str(refusal.value)
    assert looks(model) == looked


# peft as the oracle


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The model of transformers with the weights of one of ours; a fresh copy every time."""
    root, made = tmp_path_factory.mktemp("twins"), {}

    def build(family, *, bare=False):
        if family not in made:
            kind = transformers.AutoModelForCausalLM if family == "decoder" else transformers.AutoModelForMaskedLM
            made[family] = kind.from_pretrained(save_model(make(family), root / family)).eval()
        model = copy.deepcopy(made[family])
        return model.base_model if bare else model

    return build


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return lambda: tmp_path_factory.mktemp("adapter") / "a"


def opened(model, folder):
    """The adapter of a folder, opened by peft; a tensor that it misses is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected) adapter keys.*")
        return peft.PeftModel.from_pretrained(model, folder).eval()


NAMES = {
    "decoder": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    "encoder": ["query", "key", "value", "attention.output.dense", "intermediate.dense", "transform.dense"],
}
NAMES["rotary encoder"] = NAMES["encoder"]
ALIKE = [*NAMES]


@st.composite
def lora_settings(draw, family):
    """Arguments that our LoRA and peft's understand alike, but for their names."""
    several = st.lists(st.sampled_from(NAMES[family]), min_size=1, unique=True)
    expression = st.sampled_from([r".*\.1\..*(dense|c_fc)", r".*(query|c_attn)"])
    places = st.sampled_from([*NAMES[family], r"0\..*", r".*\.1\..*"])
    return {
        "rank": draw(st.integers(1, 6)),
        "alpha": draw(st.sampled_from([1, 3.5, 8])),
        "rank_stabilized": draw(st.booleans()),
        "targets": draw(st.one_of(several, expression)),
        "rank_pattern": draw(st.dictionaries(places, st.integers(1, 6), max_size=2)),
    }


THERE = {"rank": "r", "alpha": "lora_alpha", "rank_stabilized": "use_rslora", "targets": "target_modules"}


@pytest.mark.parametrize("family", ALIKE)
@FEW
@given(data=st.data(), seed=st.integers(0, 9))
def test_a_lora_saved_here_says_the_same_in_peft(family, twin, fresh, data, seed):
    model, _ = adapted(family, LoRA(**data.draw(lora_settings(family))), weights=seed)
    with torch.no_grad():
        there = opened(twin(family), save_adapter(model, fresh()))(input_ids=IDS_BT).logits
        assert differ(there, said(model)) < FAR < differ(said(model), said(make(family)))


@pytest.mark.parametrize("family", ALIKE)
@FEW
@given(data=st.data(), seed=st.integers(0, 9))
def test_a_lora_saved_by_peft_says_the_same_here(family, twin, fresh, data, seed):
    drawn = data.draw(lora_settings(family))
    config = peft.LoraConfig(**{THERE.get(name, name): value for name, value in drawn.items()})
    there, folder = scramble(peft.get_peft_model(twin(family), config), seed).eval(), fresh()
    there.save_pretrained(folder)
    for model in (make(family), twin(family)):
        load_adapter(model, folder)
        assert len(adapter_state(model)) == len(load_file(folder / "adapter_model.safetensors"))
        with torch.no_grad():
            assert differ(said(model), there(input_ids=IDS_BT).logits) < FAR


@pytest.mark.parametrize("family", ALIKE)
def test_all_linear_of_peft_is_read_too(family, twin, fresh):
    there, folder = peft.get_peft_model(twin(family), peft.LoraConfig(r=3, target_modules="all-linear")), fresh()
    scramble(there).eval().save_pretrained(folder)
    model = make(family)
    load_adapter(model, folder)
    with torch.no_grad():
        assert differ(said(model), there(input_ids=IDS_BT).logits) < FAR


def test_the_comparisons_above_see_a_scale_without_its_rank(monkeypatch, twin, fresh):
    monkeypatch.setattr(LoRA, "scale_of", lambda self, name: self.alpha)
    model, _ = adapted("decoder", "lora", weights=1)
    there = opened(twin("decoder"), save_adapter(model, fresh()))
    assert differ(there(input_ids=IDS_BT).logits, said(model)) > 100 * FAR


def hidden_there(model, family):
    """What a peft model makes of the real tokens: logits of a decoder, last hidden states of an encoder."""
    run = model(input_ids=IDS_BT, attention_mask=REAL_BT.long())
    return (run.logits if family == "decoder" else run.last_hidden_state)[REAL_BT]


def hidden_here(model, family):
    if family != "decoder":
        return model.encode(IDS_BT, REAL_BT)[REAL_BT]
    causal_BQK = torch.ones(7, 7, dtype=torch.bool).tril() & REAL_BT[:, None]
    return model(IDS_BT, causal_BQK).logits[REAL_BT]


@pytest.mark.parametrize("family", ALIKE)
@FEW
@given(length=st.integers(1, 9), hidden=st.sampled_from([None, 1, 16]), seed=st.integers(0, 9))
def test_a_prefix_saved_here_says_the_same_in_peft(family, twin, fresh, length, hidden, seed):
    model, _ = adapted(family, Prefix(length, hidden), weights=seed)
    there = opened(twin(family, bare=family != "decoder"), save_adapter(model, fresh()))
    with torch.no_grad():
        assert differ(hidden_there(there, family), hidden_here(model, family)) < FAR


@pytest.mark.parametrize("family", ALIKE)
@FEW
@given(length=st.integers(1, 9), hidden=st.sampled_from([None, 1, 16]), seed=st.integers(0, 9))
def test_a_prefix_saved_by_peft_says_the_same_here(family, twin, fresh, length, hidden, seed):
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM" if family == "decoder" else "FEATURE_EXTRACTION", num_virtual_tokens=length,
        prefix_projection=hidden is not None, encoder_hidden_size=hidden,
    )  # fmt: skip
    there, folder = peft.get_peft_model(twin(family, bare=family != "decoder"), config), fresh()
    scramble(there, seed).eval().save_pretrained(folder)
    model = make(family)
    load_adapter(model, folder)
    with torch.no_grad():
        assert differ(hidden_here(model, family), hidden_there(there, family)) < FAR


@pytest.mark.parametrize("family", THEIRS)
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_peft_reads_what_was_trained_on_its_own_models(family, kind, fresh):
    """Llama's keys are shared by two queries, and its prefix is half as wide."""
    model, _ = adapted(family, kind, weights=1)
    folder = save_adapter(model, fresh())
    with torch.no_grad():
        if (family, kind) == ("bert", "prefix"):
            there = opened(make(family).base_model, folder)(input_ids=IDS_BT).last_hidden_state
            here = model.base_model(input_ids=IDS_BT).last_hidden_state
        else:
            there, here = opened(make(family), folder)(input_ids=IDS_BT).logits, said(model)
    assert differ(there, here) < FAR


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_peft_writes_on_the_same(kind, twin, fresh):
    """Without a cache: with one, peft loses a prefix in the newest transformers."""
    model, _ = adapted("decoder", kind, weights=1)
    there = opened(twin("decoder"), save_adapter(model, fresh()))
    options = {"vocabulary": Vocabulary(VOCAB, eos=3), "max_new_tokens": 6, "stop_ids": (), "temperature": 0}
    here = generate(model, IDS_BT.tolist(), allow_special=True, **options)
    assert here == written(there, IDS_BT, use_cache=False)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_the_folder_of_a_classifier_opens_on_the_twin_of_its_body(kind, fresh):
    model, _ = adapted("classifier", kind, weights=1, modules_to_save=["head"])
    folder = fresh()
    save_model(make("classifier").body, folder / "body")
    body = transformers.AutoModel.from_pretrained(folder / "body", add_pooling_layer=False).eval()
    there = opened(body, save_adapter(model, folder / "adapter"))
    with torch.no_grad():
        run = there(input_ids=IDS_BT, attention_mask=REAL_BT.long())
        assert differ(run.last_hidden_state[REAL_BT], model.body.encode(IDS_BT, REAL_BT)[REAL_BT]) < FAR


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_peft_has_no_complaint_about_a_folder(kind, twin, fresh):
    model, _ = adapted("decoder", kind)
    folder = save_adapter(model, fresh())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*([Uu]nexpected|missing).*")
        peft.PeftModel.from_pretrained(twin("decoder"), folder)


@pytest.mark.parametrize("names", [["classifier"], ["ln_1"], ["LayerNorm", "classifier"]], ids=str)
def test_modules_that_peft_has_saved_whole_come_with_the_adapter_and_go_with_it(names, fresh):
    """peft names them by their ends."""
    torch.manual_seed(0)
    if names == ["ln_1"]:
        base, target = make("gpt2"), "c_attn"
    else:
        base, target = transformers.BertForSequenceClassification(theirs("bert").config).eval(), "query"
    config = peft.LoraConfig(r=2, target_modules=[target], modules_to_save=names)
    there, folder = peft.get_peft_model(copy.deepcopy(base), config), fresh()
    scramble(there).eval().save_pretrained(folder)
    model = copy.deepcopy(base)
    load_adapter(model, folder)
    assert differ(said(model), there(input_ids=IDS_BT).logits) < FAR
    remove(model, "default")
    assert not unequal(model.state_dict(), base.state_dict())


ANOTHER = [
    # what peft's LoRA can do besides, and the setting that a reader can look for
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"bias": "lora_only"}, "bias is 'lora_only'"),
    ({"lora_bias": True}, "lora_bias"),
    ({"alpha_pattern": {"c_attn": 3}}, "alpha_pattern"),
    ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
    ({"trainable_token_indices": [5]}, "trainable_token_indices"),
    ({"init_lora_weights": "pissa"}, "pissa"),
    ({"target_modules": ["wte"]}, "wte"),
]


@pytest.mark.parametrize(("setting", "words"), ANOTHER, ids=[str(row[0]) for row in ANOTHER])
def test_what_peft_can_do_besides_is_refused_by_name(setting, words, fresh):
    config = peft.LoraConfig(**({"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True} | setting))
    there, folder = scramble(peft.get_peft_model(make("gpt2"), config)), fresh()
    there.save_pretrained(folder)
    model = make("gpt2")
    looked = looks(model)
    with pytest.raises(ValueError) as refusal:
        load_adapter(model, folder)
    assert words in str(refusal.value)
    assert looks(model) == looked


OTHER_KINDS = {
    "IA3": lambda: peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True),
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_adapter_are_refused_by_name(kind, fresh):
    folder = fresh()
    peft.get_peft_model(make("gpt2"), OTHER_KINDS[kind]()).save_pretrained(folder)
    with pytest.raises(ValueError, match=rf"type '{kind}': the course reads LORA, PREFIX_TUNING"):
        load_adapter(make("gpt2"), folder)


@pytest.mark.parametrize("initial", [True, "gaussian", "orthogonal"])
def test_however_peft_began_a_plain_update_is_read(initial, fresh):
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=initial, fan_in_fan_out=True)
    there, folder = peft.get_peft_model(make("gpt2"), config).eval(), fresh()
    there.save_pretrained(folder)
    model = make("gpt2")
    load_adapter(model, folder)
    assert len(parts_of(model, "default")) == LAYERS
    assert differ(said(model), there(input_ids=IDS_BT).logits) < FAR


@pytest.mark.slow
@pytest.mark.parametrize("family", ALIKE)
@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 9))
def test_both_ways_with_many_settings(family, twin, fresh, data, seed):
    drawn, folder = data.draw(lora_settings(family)), fresh()
    model, _ = adapted(family, LoRA(**drawn), weights=seed)
    there = opened(twin(family), save_adapter(model, folder))
    there.save_pretrained(folder.with_name("b"))
    again = make(family)
    load_adapter(again, folder.with_name("b"))
    assert not unequal(adapter_state(model), adapter_state(again))
    with torch.no_grad():
        assert torch.equal(said(again), said(model))
        assert differ(there(input_ids=IDS_BT).logits, said(model)) < FAR
