"""Our models against their twins in `transformers`: the same weights must give the same logits."""

import pytest
import torch

from course_lib.data import course_tokenizer, reviews_of
from course_lib.layers import TransformerConfig
from course_lib.model import Decoder, Encoder, EncoderDecoder, TwoStream
from course_lib.pretrained import load_minilm, load_model, minilm_folder, save_model
from course_lib.runtime import seeded

transformers = pytest.importorskip("transformers", reason="install the extra [interop] for the parity tests")

pytestmark = pytest.mark.slow

SMALL = TransformerConfig(vocab_size=8192, d_model=48, n_layers=3, n_heads=4, d_ff=96, max_len=40, norm_eps=1e-6)
IDS_BT = torch.randint(107, 8192, (3, 33), generator=seeded(1))
TOLERANCE = 1e-5  # relative to the largest value compared, fp32


def shaken(model):
    """A model whose every parameter is away from its initial value: biases and norms count too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=seeded(2, parameter.numel()))
    return model.eval()


def differ(ours, theirs):
    """The largest difference, relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


MODELS = {
    "gpt2": lambda **changes: Decoder(SMALL.with_(**changes)),
    "bert": lambda **changes: Encoder(SMALL.with_(**changes)),
    "roformer": lambda **changes: Encoder(SMALL.with_(positions="rotary", **changes)),
}


def auto_class(layout):
    return transformers.AutoModelForCausalLM if layout == "gpt2" else transformers.AutoModelForMaskedLM


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("layout", MODELS)
def test_what_we_save_opens_in_transformers_with_equal_logits(layout, activation, tmp_path):
    model = shaken(MODELS[layout](activation=activation))
    save_model(model, tmp_path, course_tokenizer())
    theirs, report = auto_class(layout).from_pretrained(tmp_path, local_files_only=True, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        ours, twin = model(IDS_BT), theirs.eval()(IDS_BT, output_hidden_states=True)
    assert differ(ours.logits, twin.logits) < TOLERANCE
    assert len(ours.hidden_states) == len(twin.hidden_states)
    for mine, other in zip(ours.hidden_states, twin.hidden_states, strict=True):
        assert differ(mine, other) < TOLERANCE


@pytest.mark.parametrize("layout", MODELS)
def test_the_comparison_above_sees_a_wrong_weight(layout, tmp_path):
    model = shaken(MODELS[layout]())
    save_model(model, tmp_path, course_tokenizer())
    theirs = auto_class(layout).from_pretrained(tmp_path, local_files_only=True).eval()
    with torch.no_grad():
        next(
            p
            for name, p in model.named_parameters()
            if "1.attn.c_attn.bias" in name or "1.attention.self.value.bias" in name
        )[0] += 0.05
        assert differ(model(IDS_BT).logits, theirs(IDS_BT).logits) > 10 * TOLERANCE


@pytest.mark.parametrize("layout", MODELS)
def test_padding_is_unseen_here_as_there(layout, tmp_path):
    model = shaken(MODELS[layout]())
    save_model(model, tmp_path, course_tokenizer())
    theirs = auto_class(layout).from_pretrained(tmp_path, local_files_only=True).eval()
    is_real_BT = torch.arange(IDS_BT.shape[1]) < torch.tensor([33, 20, 5])[:, None]
    with torch.no_grad():
        ours = model.encode(IDS_BT, is_real_BT)
        other = theirs(IDS_BT, attention_mask=is_real_BT.long(), output_hidden_states=True).hidden_states[-1]
    assert differ(ours[is_real_BT], other[is_real_BT]) < TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_weights_from_transformers_load_here(name, tmp_path):
    torch.manual_seed(3)
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=8192, n_embd=48, n_layer=2, n_head=4, n_positions=40)
        theirs = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(
            vocab_size=8192, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
        )
        theirs = transformers.BertForMaskedLM(config)
    shaken(theirs).save_pretrained(tmp_path)
    with torch.no_grad():
        assert differ(load_model(tmp_path)(IDS_BT).logits, theirs(IDS_BT).logits) < TOLERANCE


def test_minilm_in_our_encoder_is_minilm():
    ours, tokenizer = load_minilm()
    theirs = transformers.AutoModel.from_pretrained(minilm_folder(), local_files_only=True).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder(), local_files_only=True)
    for review in reviews_of("test")[:5]:
        text = review.text[:400]
        ids = their_tokenizer(text, return_tensors="pt").input_ids
        assert ids[0, 1:-1].tolist() == tokenizer.encode(text)
        with torch.no_grad():
            assert differ(ours(ids).hidden_states[-1], theirs(ids).last_hidden_state) < TOLERANCE


@pytest.mark.parametrize("make", [*MODELS.values(), lambda: TwoStream(SMALL.with_(positions="rotary")),
                                  lambda: EncoderDecoder(SMALL.with_(positions="rotary"))])  # fmt: skip
def test_a_model_comes_back_from_disk_to_the_bit(make, tmp_path):
    model = shaken(make())
    again = load_model(save_model(model, tmp_path))
    assert type(again) is type(model) and again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_saved_tokenizer_gives_the_same_ids_in_transformers(tmp_path):
    save_model(MODELS["roformer"](), tmp_path, course_tokenizer())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for review in reviews_of("dev")[:50]:
        assert theirs(review.text, add_special_tokens=False).input_ids == course_tokenizer().encode(review.text)
    assert theirs.mask_token_id == course_tokenizer().vocabulary.mask
