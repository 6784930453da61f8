"""Where the heads of an encoder look: the weights that are shown are those that the model's own attention uses."""

import math

import pytest
import torch
from peft_models import CONFIG, HEADS, IDS_BT, LAYERS, ROTARY, WIDTH, make, scramble
from tiny import differ, shaken

from course_lib import layers
from course_lib.evaluation import attention, attention_weights
from course_lib.finetuning import Classifier
from course_lib.layers import merge_heads, split_heads
from course_lib.model import Decoder, Encoder, EncoderDecoder
from course_lib.peft import LoRA, Prefix, apply
from course_lib.peft.prefix import prefix_cache
from course_lib.runtime import seeded

TOLERANCE = 1e-5  # relative to the largest value compared, fp32
FAMILIES = {"encoder": CONFIG, "rotary encoder": ROTARY}
LENGTHS = [None, 1, 5]  # of what stands before the text


def earlier(length):
    """Keys and values that stand before the text in every layer, large enough to be looked at."""
    if length is None:
        return None
    shape = (len(IDS_BT), HEADS, length, WIDTH // HEADS)
    return [tuple(2 * torch.randn(shape, generator=seeded(layer, part)) for part in (0, 1)) for layer in range(LAYERS)]


def used_by(model, *inputs, **options):
    """[L, B, H, Q, K]: what the model's own attention divides, layer by layer: with the identity matrix in place of the
    values, attention gives its weights back."""
    seen, attend = [], layers.attend

    def note(q_BHQD, k_BHKD, v_BHKD, may_attend_BQK, **more):
        eye_11KK = torch.eye(k_BHKD.shape[2]).expand(*k_BHKD.shape[:2], -1, -1)
        seen.append(attend(q_BHQD, k_BHKD, eye_11KK, may_attend_BQK, **more))
        return attend(q_BHQD, k_BHKD, v_BHKD, may_attend_BQK, **more)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(layers, "attend", note)
        model(*inputs, **options)
    return torch.stack(seen)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_query_divides_its_attention_into_shares_of_one(family, length):
    weights = attention_weights(make(family), IDS_BT, earlier(length))
    n_rows, n_tokens = IDS_BT.shape
    assert weights.shape == (LAYERS, n_rows, HEADS, n_tokens, n_tokens + (length or 0))
    assert (weights > 0).all()
    assert weights.sum(-1) == pytest.approx(torch.ones(weights.shape[:-1]), abs=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_those_that_the_model_uses(family, length):
    model, cache = make(family), earlier(length)
    assert differ(attention_weights(model, IDS_BT, cache), used_by(model, IDS_BT, cache=cache)) < TOLERANCE


MISTAKES = {
    "no scale": ("math.sqrt", lambda number: 1.0),
    "heads in another order": ("split_heads", lambda x_BTE, n_heads: split_heads(x_BTE, n_heads).roll(1, 1)),
    "positions not counted on": ("torch.arange", lambda start, stop, **more: torch.arange(stop - start, **more)),
    "nothing turned": ("rotate", lambda x_BHTD, turn: x_BHTD),
    "earlier keys behind the text's": (
        "extend",
        lambda earlier, k_BHTD, v_BHTD: (torch.cat([k_BHTD, earlier[0]], 2), torch.cat([v_BHTD, earlier[1]], 2)),
    ),
}


class Changed:
    """A module of which one function is another one."""

    def __init__(self, module, name, function):
        self.module, self.name, self.function = module, name, function

    def __getattr__(self, name):
        return self.function if name == self.name else getattr(self.module, name)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_above_refuses(mistake, monkeypatch):
    """Everything is asked of a rotary encoder behind earlier keys, where each of these counts."""
    model, cache = make("rotary encoder"), earlier(5)
    wanted = used_by(model, IDS_BT, cache=cache)
    name, wrong = MISTAKES[mistake]
    owner, _, function = name.rpartition(".")
    if owner:
        monkeypatch.setattr(attention, owner, Changed({"math": math, "torch": torch}[owner], function, wrong))
    else:
        monkeypatch.setattr(attention, name, wrong)
    assert differ(attention_weights(model, IDS_BT, cache), wanted) > 1000 * TOLERANCE


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_mixed_by_the_weights_are_the_next_hidden_states(family, length):
    """The block's own layers do the rest: projection, residual sum, feed-forward half."""
    model, cache = make(family), earlier(length)
    weights = attention_weights(model, IDS_BT, cache)
    hidden = model(IDS_BT, cache=cache).hidden_states
    for n, block in enumerate(model.encoder["layer"]):
        v_BHKD = split_heads(block.attention.self["value"](hidden[n]), HEADS)
        if cache is not None:
            v_BHKD = torch.cat([cache[n][1], v_BHKD], 2)
        output = block.attention.output
        x_BTE = output["LayerNorm"](hidden[n] + output["dense"](merge_heads(weights[n] @ v_BHKD)))
        inner = torch.nn.functional.gelu(block.intermediate["dense"](x_BTE))
        x_BTE = block.output["LayerNorm"](x_BTE + block.output["dense"](inner))
        assert differ(x_BTE, hidden[n + 1]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_handed_in_as_a_cache_is_looked_at_as_the_prefix_itself(family):
    adapted = make(family)
    apply(adapted, Prefix(length=4, hidden=5))
    scramble(adapted)
    cache = [tuple(part.expand(len(IDS_BT), -1, -1, -1) for part in pair) for pair in prefix_cache(adapted)]
    assert differ(attention_weights(make(family), IDS_BT, cache), used_by(adapted, IDS_BT)) < TOLERANCE
    assert differ(attention_weights(make(family), IDS_BT, cache)[..., 4:], used_by(make(family), IDS_BT)) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_were_adapted_look_as_they_do_in_the_model(family):
    model = make(family)
    apply(model, LoRA(rank=3, targets=["query", "value"]))
    scramble(model)
    weights = attention_weights(model, IDS_BT)
    assert differ(weights, used_by(model, IDS_BT)) < TOLERANCE
    assert differ(weights, attention_weights(make(family), IDS_BT)) > 0.01


def test_a_query_that_points_at_one_key_looks_there_alone():
    """Keys are the position's own: the first channel of every head is long at one position, and nowhere else."""
    model = shaken(Encoder(CONFIG), 0.2)
    cache = earlier(3)
    with torch.no_grad():
        for block, (k_BHKD, _) in zip(model.encoder["layer"], cache, strict=True):
            torch.nn.init.zeros_(block.attention.self["query"].weight)
            block.attention.self["query"].bias.copy_(torch.eye(WIDTH // HEADS)[0].repeat(HEADS))
            k_BHKD[:, :, 1] = 1000 * torch.eye(WIDTH // HEADS)[0]
    weights = attention_weights(model, IDS_BT, cache)
    assert (weights[..., 1] > 0.9999).all() and (weights[..., [0, 2]] < 1e-4).all()


def test_dropout_does_not_act_and_every_part_stays_in_its_mode():
    model = make("encoder")
    wanted = attention_weights(model, IDS_BT)
    model.train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    model.encoder["layer"][1].eval()
    modes = [part.training for part in model.modules()]
    assert torch.equal(attention_weights(model, IDS_BT), wanted)
    assert [part.training for part in model.modules()] == modes
    assert not torch.equal(model(IDS_BT).hidden_states[-1], make("encoder")(IDS_BT).hidden_states[-1])


def test_no_gradient_is_kept():
    assert not attention_weights(make("encoder"), IDS_BT).requires_grad


@pytest.mark.parametrize(
    "other", [lambda: Decoder(CONFIG), lambda: EncoderDecoder(CONFIG), lambda: Classifier(Encoder(CONFIG))]
)
def test_what_is_no_encoder_is_refused_by_its_name(other):
    model = other()
    with pytest.raises(TypeError, match=f"model is a {type(model).__name__}: attention is shown for an Encoder"):
        attention_weights(model, IDS_BT)


def test_a_text_longer_than_the_model_is_refused():
    with pytest.raises(ValueError, match=r"sequence length 33 .*exceeds max_len 32"):
        attention_weights(make("encoder"), IDS_BT, earlier(26))
