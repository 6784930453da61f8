"""Attention, positions and caches, against slow formulas in double precision."""

import math

import pytest
import torch
from torch.nn import functional as F

from course_lib import layers, masks
from course_lib.layers import BertAttention, Conv1D, GPTBlock, TransformerConfig, attend, rotate, rotation
from course_lib.runtime import seeded

B, H, Q, K, D = 2, 3, 5, 7, 8
CONFIG = TransformerConfig(vocab_size=20, d_model=24, n_layers=2, n_heads=3, d_ff=32, max_len=40)
FP32 = 1e-5  # relative to the largest value; the largest seen here is 1e-6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed, *shape))


def differ(some, other):
    return ((some - other).abs().max() / other.abs().max()).item()


# ---------------------------------------------------------------- attention

q_BHQD, k_BHKD, v_BHKD = normal(B, H, Q, D, seed=1), normal(B, H, K, D, seed=2), normal(B, H, K, D, seed=3)
MAY_BQK = torch.rand(B, Q, K, generator=seeded(4)) < 0.5
MAY_BQK[:, :, 0] = True  # everybody sees somebody, but for the tests that say otherwise


def attend_in_loops(q, k, v, may_attend):
    """The formula of arXiv:1706.03762, one query at a time, in double precision."""
    out = torch.zeros_like(q, dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        seen = [j for j in range(k.shape[2]) if may_attend[b, i, j]]
        weights = [math.exp(float(q[b, h, i].double() @ k[b, h, j].double()) / math.sqrt(q.shape[3])) for j in seen]
        for weight, j in zip(weights, seen, strict=True):
            out[b, h, i] += weight / sum(weights) * v[b, h, j].double()
    return out


def is_attention(function) -> bool:
    return differ(function(q_BHQD, k_BHKD, v_BHKD, MAY_BQK), attend_in_loops(q_BHQD, k_BHKD, v_BHKD, MAY_BQK)) < FP32


def without_scale(q, k, v, may_attend):
    return attend(q * math.sqrt(D), k, v, may_attend)


def without_mask(q, k, v, may_attend):
    return attend(q, k, v, torch.ones_like(may_attend))


def mask_upside_down(q, k, v, may_attend):
    return attend(q, k, v, ~may_attend)


def heads_averaged(q, k, v, may_attend):
    return attend(q, k, v, may_attend).mean(1, keepdim=True).expand_as(q)


def test_attention_is_the_formula_of_the_paper():
    assert is_attention(attend)


@pytest.mark.parametrize("mutant", [without_scale, without_mask, mask_upside_down, heads_averaged])
def test_the_check_above_refuses_attention(mutant):
    assert not is_attention(mutant)


def test_attention_is_torchs_own_gradient_included():
    ours, theirs = ([t.clone().requires_grad_() for t in (q_BHQD, k_BHKD, v_BHKD)] for _ in range(2))
    out, other = attend(*ours, MAY_BQK), F.scaled_dot_product_attention(*theirs, attn_mask=MAY_BQK[:, None])
    weight = normal(*out.shape, seed=5)
    (out * weight).sum().backward()
    (other * weight).sum().backward()
    assert differ(out, other) < FP32
    for mine, theirs_ in zip(ours, theirs, strict=True):
        assert differ(mine.grad, theirs_.grad) < FP32


def test_what_a_query_may_not_look_at_changes_not_one_bit():
    hidden_BK = ~MAY_BQK[:, 2]  # for query 2 of each row
    k, v = (torch.where(hidden_BK[:, None, :, None], 1e4 * torch.ones_like(t), t) for t in (k_BHKD, v_BHKD))
    before, after = attend(q_BHQD, k_BHKD, v_BHKD, MAY_BQK), attend(q_BHQD, k, v, MAY_BQK)
    assert torch.equal(before[:, :, 2], after[:, :, 2])
    assert not torch.equal(before, after)  # others do look there


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_query_with_nobody_to_look_at_gets_zeros_and_every_gradient_is_finite(dtype):
    may_attend = MAY_BQK.clone()
    may_attend[0, 3] = False
    inputs = [t.to(dtype).clone().requires_grad_() for t in (q_BHQD, k_BHKD, v_BHKD)]
    out = attend(*inputs, may_attend)
    assert out[0, :, 3].eq(0).all()
    assert out[1, :, 3].ne(0).all()
    out.square().sum().backward()
    for tensor in inputs:
        assert tensor.grad.isfinite().all()
    assert inputs[0].grad[0, :, 3].eq(0).all()  # and nothing pulls at it


def test_huge_scores_neither_overflow_nor_leak():
    out = attend(1e3 * q_BHQD, 1e3 * k_BHKD, v_BHKD, MAY_BQK)
    assert out.isfinite().all()
    assert out.abs().max() <= v_BHKD.abs().max()


def test_axes_of_length_1_broadcast():
    is_real_BK = MAY_BQK[:, 0]
    for may_attend in (masks.padding(is_real_BK), masks.padding(is_real_BK[:1])):
        full = may_attend.expand(B, Q, K)
        assert torch.equal(attend(q_BHQD, k_BHKD, v_BHKD, may_attend), attend(q_BHQD, k_BHKD, v_BHKD, full))


def test_dropout_of_attention_keeps_the_mean_and_0_changes_nothing():
    torch.manual_seed(0)
    whole = attend(q_BHQD, k_BHKD, v_BHKD, MAY_BQK)
    assert torch.equal(whole, attend(q_BHQD, k_BHKD, v_BHKD, MAY_BQK, dropout=0.0))
    draws = torch.stack([attend(q_BHQD, k_BHKD, v_BHKD, MAY_BQK, dropout=0.3) for _ in range(2000)])
    z = (draws.mean(0) - whole).abs() / (draws.std(0) / math.sqrt(2000)).clamp(min=1e-9)
    assert z.max() < 5  # of 240 values; one is beyond 5 by chance in 1 of 7,000 tests
    assert draws.std(0).min() > 0


# ---------------------------------------------------------------- rotary positions


def turned_as_complex(x_BHTD, position_T):
    """RoFormer's definition (arXiv:2104.09864, section 3.2): pairs are complex numbers, times exp(i m theta)."""
    pairs = torch.view_as_complex(x_BHTD.double().unflatten(-1, (-1, 2)).contiguous())
    theta = torch.tensor([10000.0 ** (-2 * i / x_BHTD.shape[-1]) for i in range(x_BHTD.shape[-1] // 2)]).double()
    return torch.view_as_real(pairs * torch.exp(1j * position_T.double()[:, None] * theta)).flatten(-2)


def test_rotation_is_the_complex_product_of_the_paper():
    position_T = torch.tensor([0, 1, 2, 17, 200])
    turned = rotate(q_BHQD, rotation(position_T[None], D))
    assert differ(turned, turned_as_complex(q_BHQD, position_T)) < FP32
    assert torch.equal(turned[:, :, 0], q_BHQD[:, :, 0])  # position 0 turns nothing


def test_the_comparison_above_refuses_halves_for_neighbours():
    """The other convention pairs channel i with i + D / 2, as LLaMA does."""
    cos, sin = (t.repeat(1, 1, 1, 2) for t in rotation(torch.arange(Q)[None], D))
    halves = q_BHQD * cos + torch.cat([-q_BHQD[..., D // 2 :], q_BHQD[..., : D // 2]], -1) * sin
    assert differ(halves, turned_as_complex(q_BHQD, torch.arange(Q))) > 0.1


def test_rotation_keeps_every_norm():
    turned = rotate(q_BHQD, rotation(torch.arange(Q)[None] * 31, D))
    assert differ(turned.norm(dim=-1), q_BHQD.norm(dim=-1)) < FP32
    assert differ(turned, q_BHQD) > 0.1


def scores_at(shift, *, turn_keys=True):
    turn = rotation(torch.arange(Q)[None] + shift, D)
    keys = rotate(k_BHKD[:, :, :Q], turn) if turn_keys else k_BHKD[:, :, :Q]
    return rotate(q_BHQD, turn) @ keys.mT


@pytest.mark.parametrize("shift", [1, 50])
def test_rotary_scores_depend_on_relative_position_only(shift):
    assert differ(scores_at(shift), scores_at(0)) < FP32
    assert differ(scores_at(shift, turn_keys=False), scores_at(0, turn_keys=False)) > 0.01  # the control
    still = rotate(q_BHQD, rotation(torch.arange(Q)[None] + shift, D)) @ k_BHKD[:, :, :Q].mT
    assert differ(still, q_BHQD @ k_BHKD[:, :, :Q].mT) > 0.01


@pytest.mark.parametrize("at", [[4, 1], [6, 3, 0, 5, 1, 4, 2]], ids=["some", "all, shuffled"])
def test_attention_turns_keys_of_another_stream_by_their_own_positions(at):
    """A query stream at some positions over a content stream at 0..6 is those rows of attention over all."""
    torch.manual_seed(0)
    attention, at = BertAttention(CONFIG).eval(), torch.tensor(at)
    everybody = torch.ones(1, 1, K, dtype=torch.bool)
    turn, turn_at, in_order = (rotation(position[None], 8) for position in (torch.arange(K), at, torch.arange(len(at))))
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter += 0.3 * normal(*parameter.shape)
        source = normal(B, K, 24, seed=6)
        whole, _ = attention(source, everybody, turn=turn)
        part, _ = attention(source[:, at], everybody, source_BKE=source, turn=turn_at, source_turn=turn)
        wrong, _ = attention(source[:, at], everybody, source_BKE=source, turn=in_order, source_turn=turn)
    assert differ(part, whole[:, at]) < FP32
    assert differ(wrong, whole[:, at]) > 0.01


# ---------------------------------------------------------------- heads, caches, linear layers


def test_heads_split_and_merge_to_what_was_there():
    x = normal(B, Q, 24)
    heads = layers.split_heads(x, 3)
    assert heads.shape == (B, 3, Q, 8)
    assert torch.equal(heads[:, 1], x[..., 8:16])
    assert torch.equal(layers.merge_heads(heads), x)


def test_earlier_keys_stand_before_the_new_ones():
    k, v = layers.extend((k_BHKD[:, :, :4], v_BHKD[:, :, :4]), k_BHKD[:, :, 4:], v_BHKD[:, :, 4:])
    assert torch.equal(k, k_BHKD)
    assert torch.equal(v, v_BHKD)
    assert layers.extend(None, k_BHKD, v_BHKD) == (k_BHKD, v_BHKD)


def pieces(block, x, cuts):
    """A causal block over a sequence in pieces, keys and values of earlier ones handed on."""
    outputs, seen = [], None
    for start, stop in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        out, seen = block(x[:, start:stop], masks.causal(stop)[:, start:], earlier=seen)
        outputs.append(out)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("cuts", [range(1, 9), [4], [1, 6, 8]])
@pytest.mark.parametrize("make", [GPTBlock, BertAttention, layers.BertBlock])
def test_a_block_in_pieces_with_a_cache_is_the_block_at_once(make, cuts):
    torch.manual_seed(1)
    block, x = make(CONFIG).eval(), normal(B, 9, 24)
    with torch.no_grad():
        whole, (k, _) = block(x, masks.causal(9))
        assert differ(pieces(block, x, cuts), whole) < FP32
        forgetful = torch.cat(
            [block(part, masks.causal(part.shape[1]))[0] for part in x.tensor_split(list(cuts), 1)], 1
        )
        assert k.shape[2] == 9
        assert differ(forgetful, whole) > 100 * FP32


def test_conv1d_is_a_linear_layer_with_its_weight_the_other_way_round():
    ours, theirs = Conv1D(5, 7), torch.nn.Linear(5, 7)
    assert ours.weight.shape == (5, 7)
    assert str(ours) == "Conv1D(n_in=5, n_out=7)"
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.T)
        theirs.bias.copy_(ours.bias)
        assert differ(ours(normal(3, 5)), theirs(normal(3, 5))) < FP32


def test_weights_begin_as_gpt2_and_bert_say():
    """Normal of 0.02; what writes to GPT-2's residual stream by a factor of the square root of 2 x layers less."""
    torch.manual_seed(2)
    config = CONFIG.with_(d_model=240, d_ff=480, n_layers=8)
    gpt, bert = GPTBlock(config), layers.BertBlock(config)
    narrow = 0.02 / math.sqrt(16)
    for weight, std in [
        (gpt.attn["c_attn"].weight, 0.02),
        (gpt.mlp["c_fc"].weight, 0.02),
        (gpt.attn["c_proj"].weight, narrow),
        (gpt.mlp["c_proj"].weight, narrow),
        (bert.attention.self["query"].weight, 0.02),
        (bert.output["dense"].weight, 0.02),
        (layers.Embeddings(config).word_embeddings.weight, 0.02),
    ]:
        z = abs(weight.std().item() / std - 1) * math.sqrt(2 * weight.numel())
        assert z < 5
    for name, parameter in [*gpt.named_parameters(), *bert.named_parameters()]:
        if "bias" in name:
            assert parameter.eq(0).all(), name


# ---------------------------------------------------------------- config


def test_a_config_accepts_whole_numbers_for_shares_and_copies_with_changes():
    config = TransformerConfig(vocab_size=20, d_model=24, n_heads=3, dropout=0)
    assert config.d_head == 8
    assert config.with_(n_layers=7).n_layers == 7
    assert config.n_layers == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_model": 100}, "d_model 100 is not divisible by n_heads 3"),
        ({"n_layers": 0}, "n_layers is 0: give a whole number of at least 1"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"d_ff": 1.5}, "d_ff is 1.5: give a whole number"),
        ({"positions": "alibi"}, "positions is 'alibi': choose 'learned' or 'rotary'"),
        ({"positions": "rotary", "d_model": 9}, "a head has 3: make it even"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": math.nan}, "dropout is nan"),
        ({"activation": "swish"}, "activation 'swish' is unknown: choose one of gelu, gelu_new, relu"),
        ({"norm_eps": 0}, "norm_eps is 0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        CONFIG.with_(**changes)


@pytest.mark.parametrize("may_attend", [MAY_BQK.int(), MAY_BQK[0], MAY_BQK[:, None]], ids=["int", "2 axes", "4 axes"])
def test_a_mask_that_is_none_is_refused(may_attend):
    with pytest.raises(ValueError, match=r"may_attend_BQK is .*give bool \[batch, query, key\]"):
        attend(q_BHQD, k_BHKD, v_BHKD, may_attend)
