"""Models without memory: they have the names, the shapes and the published sizes of real ones, and what a strategy
would train of them is what closed formulas say. Their twins in transformers are in parity/test_planner.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from few import few

from course_lib import architectures
from course_lib.architectures import ARCHITECTURES, QUERY_AND_VALUE, Architecture, architecture, dimensions_of, skeleton
from course_lib.layers import TransformerConfig
from course_lib.model import Decoder, Encoder
from course_lib.peft import Adapter, BitFit, Full, LoRA, Prefix, apply
from course_lib.peft.prefix import Dimensions
from course_lib.planner import counting, trained_parameters

SMALL = {  # every layout, no two dimensions alike, heads of keys and values shared in the last
    "bert": Architecture("bert", 60, 16, 3, 2, 24, 32, "made up"),
    "roformer": Architecture("roformer", 60, 16, 3, 2, 24, 32, "made up"),
    "gpt2": Architecture("gpt2", 60, 16, 3, 2, 24, 32, "made up"),
    "llama": Architecture("llama", 60, 16, 3, 4, 24, 32, "made up"),
    "grouped llama": Architecture("llama", 60, 16, 3, 4, 24, 32, "made up", n_kv_heads=2),
}
ALL = SMALL | ARCHITECTURES
RANKS = [*itertools.product(SMALL, (1, 4)), *((name, 8) for name in ARCHITECTURES)]
WITH_BIASES = [name for name, a in ALL.items() if a.layout != "llama"]
# numbers in the published weights, without BERT's pooler (a matrix and a bias that only its second objective used)
PUBLISHED = {
    "BERT-base": 109_482_240 - 768 * 769,
    "BERT-large": 335_141_888 - 1024 * 1025,
    "GPT-2": 124_439_808,
    "GPT-2 medium": 354_823_168,
    "GPT-2 large": 774_030_080,
    "GPT-2 XL": 1_557_611_200,
    "LLaMA-65B": 65_285_660_672,
    "Llama-2-7B": 6_738_415_616,
    "Llama-2-13B": 13_015_864_320,
    "Llama-2-70B": 68_976_648_192,
    "Llama-3-8B": 8_030_261_248,
}


def narrow(a):
    """Channels of all heads of keys, or of values."""
    return (a.n_kv_heads or a.n_heads) * (a.d_model // a.n_heads)


def matrices(a):
    """(in, out) of every linear layer of a block, by hand from the papers' figures."""
    wide, inner = a.d_model, a.d_ff
    if a.layout == "gpt2":
        return {"attn.c_attn": (wide, 3 * wide), "attn.c_proj": (wide, wide),
                "mlp.c_fc": (wide, inner), "mlp.c_proj": (inner, wide)}  # fmt: skip
    if a.layout in ("bert", "roformer"):
        attention = dict.fromkeys(("query", "key", "value", "attention.output.dense"), (wide, wide))
        return attention | {"intermediate.dense": (wide, inner), "output.dense": (inner, wide)}
    attention = {"q_proj": (wide, wide), "k_proj": (wide, narrow(a)), "v_proj": (wide, narrow(a)),
                 "o_proj": (wide, wide)}  # fmt: skip
    return attention | {"gate_proj": (wide, inner), "up_proj": (wide, inner), "down_proj": (inner, wide)}


def n_biases(a):
    """Of BERT and GPT-2: in a block seven times the model's width, norms among them, and d_ff; one norm outside."""
    return a.n_layers * (7 * a.d_model + a.d_ff) + a.d_model


def total(a):
    """All numbers: tables, matrices with their biases, norms with their weights and biases."""
    block = sum(n_in * n_out for n_in, n_out in matrices(a).values())
    norms = 2 * a.n_layers + 1
    if a.layout == "llama":  # two tables, no biases, no positions
        return a.n_layers * block + norms * a.d_model + 2 * a.vocab_size * a.d_model
    tables = a.vocab_size + (0 if a.layout == "roformer" else a.max_len)
    tables += 0 if a.layout == "gpt2" else 2  # BERT's two kinds of segments
    return a.n_layers * block + norms * a.d_model + n_biases(a) + tables * a.d_model


def lora(a, rank, names):
    return a.n_layers * sum(rank * sum(matrices(a)[name]) for name in names)


def bottlenecks(a, width):
    """Two in a block, each down and up again, with both biases."""
    return 2 * a.n_layers * (2 * a.d_model * width + width + a.d_model)


def numbers_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


# what a skeleton is


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_skeleton_has_as_many_numbers_as_were_published(name):
    assert numbers_of(skeleton(ARCHITECTURES[name])) == PUBLISHED[name]


def test_the_check_above_refuses_a_head_that_was_not_published(monkeypatch):
    monkeypatch.setattr(architectures, "Encoder", lambda config, head: Encoder(config, head=True))
    assert numbers_of(skeleton(ARCHITECTURES["BERT-base"])) != PUBLISHED["BERT-base"]


@pytest.mark.parametrize("name", ALL)
def test_a_skeleton_has_as_many_numbers_as_its_dimensions_say(name):
    assert numbers_of(skeleton(ALL[name])) == total(ALL[name])


@pytest.mark.parametrize("layout", ["bert", "roformer", "gpt2"])
def test_a_skeleton_has_the_names_and_shapes_of_a_built_model(layout):
    a = SMALL[layout]
    positions = "rotary" if layout == "roformer" else "learned"
    config = TransformerConfig(a.vocab_size, a.d_model, a.n_layers, a.n_heads, a.d_ff, a.max_len, positions)
    built = Decoder(config) if layout == "gpt2" else Encoder(config, head=False)
    shapes = lambda model: {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes(skeleton(a)) == shapes(built)
    assert shapes(skeleton(replace(a, d_ff=25))) != shapes(built)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("strategy", [Full(), LoRA(rank=2), Adapter(2), Prefix(2, None)], ids=lambda s: s.kind)
def test_no_memory_is_used_before_or_after_a_strategy_is_applied(name, strategy, monkeypatch):
    seen = []
    monkeypatch.setattr(counting, "apply", lambda model, how: seen.append(model) or apply(model, how))
    monkeypatch.setattr(counting, "skeleton", lambda a: seen.append(skeleton(a)) or seen[-1])
    trained_parameters(ALL[name], strategy)
    for model in seen:
        assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert len(seen) == (1 if strategy.kind == "prefix" else 2)


# what a strategy would train


@pytest.mark.parametrize(("name", "rank"), few(RANKS, *itertools.product(SMALL, (1, 4))))
def test_lora_trains_rank_times_the_two_sides_of_each_matrix(name, rank):
    a = ALL[name]
    targets = QUERY_AND_VALUE[a.layout]
    added = lora(a, rank, targets)
    assert trained_parameters(a, LoRA(rank, targets=targets)) == (added, total(a) + added)


@pytest.mark.parametrize("name", few(ALL, *SMALL))
def test_lora_in_all_linear_layers_leaves_the_output_layer_out(name):
    """Tied to the embeddings, as GPT-2's, or a matrix of its own, as Llama's."""
    a = ALL[name]
    added = lora(a, 2, matrices(a))
    assert trained_parameters(a, LoRA(rank=2)) == (added, total(a) + added)


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("name", few(ALL, *SMALL))
def test_a_prefix_trains_keys_and_values_of_every_head_that_has_them(name, length):
    a = ALL[name]
    added = length * a.n_layers * 2 * narrow(a)
    assert trained_parameters(a, Prefix(length, None)) == (added, total(a) + added)


def test_the_check_above_refuses_keys_and_values_of_every_query(monkeypatch):
    of_queries = lambda a: Dimensions(a.n_layers, a.n_heads, a.d_model // a.n_heads, a.max_len)
    monkeypatch.setattr(counting, "prefix_dimensions", of_queries)
    with pytest.raises(AssertionError):
        test_a_prefix_trains_keys_and_values_of_every_head_that_has_them("grouped llama", 5)
    test_a_prefix_trains_keys_and_values_of_every_head_that_has_them("llama", 5)


@pytest.mark.parametrize("layout", ["bert", "gpt2"])
def test_a_prefix_is_counted_as_apply_counts_it(layout):
    applied = apply(skeleton(SMALL[layout]), Prefix(5, None))
    assert trained_parameters(SMALL[layout], Prefix(5, None)) == (applied.n_trained, applied.n_parameters)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("name", few(ALL, *SMALL))
def test_adapters_train_two_bottlenecks_in_each_block(name, width):
    a = ALL[name]
    added = bottlenecks(a, width)
    assert trained_parameters(a, Adapter(width)) == (added, total(a) + added)


@pytest.mark.parametrize("name", WITH_BIASES)
def test_bitfit_trains_the_biases_and_adds_nothing(name):
    assert trained_parameters(ALL[name], BitFit()) == (n_biases(ALL[name]), total(ALL[name]))


@pytest.mark.parametrize("name", ALL)
def test_full_fine_tuning_trains_everything(name):
    assert trained_parameters(ALL[name], Full()) == (total(ALL[name]),) * 2


def test_twice_the_width_is_twice_the_update_and_a_smaller_share():
    strategy = LoRA(rank=2, targets=QUERY_AND_VALUE["llama"])
    narrower, wider = (
        trained_parameters(replace(SMALL["llama"], d_model=width, d_ff=width), strategy) for width in (32, 64)
    )
    assert wider[0] == 2 * narrower[0]
    assert wider[0] / wider[1] < narrower[0] / narrower[1]


# refusals


def test_an_unknown_layout_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="layout 't5' is unknown: choose one of bert, gpt2, llama"):
        skeleton(replace(SMALL["bert"], layout="t5"))


@pytest.mark.parametrize("name", ["llama", "Llama-2-7B"])
def test_bitfit_is_refused_where_nothing_is_a_bias(name):
    with pytest.raises(ValueError, match="LlamaSkeleton has no parameter called bias: take another strategy"):
        trained_parameters(ALL[name], BitFit())


@pytest.mark.parametrize("name", SMALL)
def test_a_prefix_with_its_network_is_refused(name):
    with pytest.raises(ValueError, match=r"hidden is a width of the network .* folded away: give None"):
        trained_parameters(SMALL[name], Prefix(length=4, hidden=8))


def test_targets_of_another_layout_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"no layer matches \['q_proj'\].* encoder\.layer\.\*\.attention\.self\.query"):
        trained_parameters(SMALL["bert"], LoRA(rank=2, targets=["q_proj"]))


def test_a_rank_larger_than_a_shared_head_is_refused():
    targets = QUERY_AND_VALUE["llama"]
    assert trained_parameters(SMALL["grouped llama"], LoRA(rank=8, targets=targets))
    with pytest.raises(ValueError, match=r"rank 9 at 'layers\.0\.self_attn\.v_proj' is larger than its matrix, 8 x 16"):
        trained_parameters(SMALL["grouped llama"], LoRA(rank=9, targets=targets))


def test_skeletons_leave_the_callers_device_and_randomness_alone():
    before = torch.random.get_rng_state()
    trained_parameters(SMALL["llama"], LoRA(rank=2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.zeros(1).device == torch.device("cpu")
