"""Models without memory: they have the names, the shapes and the published sizes of real ones, and what a strategy
would train of them is what closed formulas say. Their twins in transformers are in parity/test_planner.

Plans against figures that papers report, and against torch's own counts on models that run; activations are in
test_planner_activations.
"""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from few import few
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from course_lib import architectures
from course_lib.architectures import ARCHITECTURES, QUERY_AND_VALUE, Architecture, architecture, dimensions_of, skeleton
from course_lib.layers import TransformerConfig
from course_lib.losses import token_loss
from course_lib.model import Decoder, Encoder, TwoStream
from course_lib.optimizers import make_optimizer
from course_lib.parallel.engines import make_engine
from course_lib.peft import Adapter, BitFit, Full, LoRA, Prefix, apply
from course_lib.peft.prefix import Dimensions
from course_lib.planner import PRECISIONS, Bytes, Pass, Plan, counting, state_memory, trained_parameters
from course_lib.planner.precisions import SHARDED

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


@pytest.mark.parametrize(
    "strategy",
    [
        Full(),
        LoRA(rank=2),
        LoRA(rank=2, targets=["mlp.c_fc"]),
        LoRA(rank=2, targets=["2.attn.c_attn"]),
        LoRA(rank=2, targets=r".*\.[12]\.mlp\..*"),
        LoRA(rank=2, rank_pattern={r"2\.mlp\.c_fc": 5}),
        Adapter(3, targets=["1.mlp.c_proj"]),
        BitFit(),
    ],
    ids=str,
)
def test_few_blocks_tell_of_all_unless_a_strategy_tells_them_apart(strategy):
    applied = apply(skeleton(SMALL["gpt2"]), strategy)
    assert trained_parameters(SMALL["gpt2"], strategy) == (applied.n_trained, applied.n_parameters)


def test_the_check_above_refuses_two_blocks_for_a_strategy_that_names_a_third(monkeypatch):
    monkeypatch.setattr(counting, "_may_tell_blocks_apart", lambda strategy: False)
    with pytest.raises(ValueError, match="no layer matches"):
        trained_parameters(SMALL["gpt2"], LoRA(rank=2, targets=["2.attn.c_attn"]))


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_an_architecture_is_read_from_a_model(positions, head):
    model = Encoder(TransformerConfig(60, 16, 3, 2, 24, 32, positions), head=head)
    found = dimensions_of(model)
    assert numbers_of(skeleton(found)) == numbers_of(model)
    assert found.layout == model.layout
    assert found.predicts is head
    assert numbers_of(skeleton(replace(found, head=not head))) != numbers_of(model)


# figures of papers; GB = 1e9 bytes throughout

GPT3 = architecture("GPT-3 175B")
ADAM_16_BIT = PRECISIONS["bf16 with fp32 master"]  # ZeRO's and mixed precision's 2 + 2 + (4 + 4 + 4)
PSI = 7_500_000_000
STAGES = {"none": (), "os": ("optimizer",), "os+g": ("optimizer", "gradients"), "os+g+p": SHARDED}


def test_gpt3_takes_350_gb_in_16_bits():
    """arXiv:2106.09685, section 4.2: its checkpoint, and what training by LoRA is left with."""
    plan = Plan(GPT3, LoRA(rank=4, targets=QUERY_AND_VALUE["gpt2"]), ADAM_16_BIT, batch_size=1, length=2048)
    assert 2 * plan.adapted.n_frozen == pytest.approx(350e9, rel=0.005)
    assert 4 * plan.adapted.n_frozen != pytest.approx(350e9, rel=0.5)


@pytest.mark.parametrize(("rank", "millions"), [(1, 4.7), (8, 37.7)])
def test_lora_trains_as_much_of_gpt3_as_its_paper_says(rank, millions):
    """arXiv:2106.09685, table 4. Ours reads queries, keys and values by one layer, theirs queries and values by two:
    r (E + 3 E) and 2 r (E + E) are the same number."""
    trained, _ = trained_parameters(GPT3, LoRA(rank, targets=QUERY_AND_VALUE["gpt2"]))
    assert round(trained / 1e6, 1) == millions
    assert round(trained_parameters(GPT3, LoRA(rank))[0] / 1e6, 1) != millions


def test_a_lora_checkpoint_of_gpt3_takes_35_mb_and_is_roughly_10_000_times_smaller():
    """arXiv:2106.09685, section 4.2: rank 4 at queries and values, in 16 bits. 37.7 MB, to be exact, or 36 MiB."""
    trained, total = trained_parameters(GPT3, LoRA(rank=4, targets=QUERY_AND_VALUE["gpt2"]))
    assert 2 * trained == pytest.approx(35e6, rel=0.1)
    assert (total - trained) / trained == pytest.approx(10_000, rel=0.1)
    assert 4 * trained != pytest.approx(35e6, rel=0.1)


@pytest.mark.parametrize(
    ("devices", "stage", "gigabytes"),
    [
        (1, "os+g+p", 120),
        (64, "none", 120),
        (64, "os", 31.4),
        (64, "os+g", 16.6),
        (64, "os+g+p", 1.88),
        (16, "os", 35.6),
        (16, "os+g", 21.6),
        (16, "os+g+p", 7.5),
    ],
)
def test_zero_divides_what_its_table_says(devices, stage, gigabytes):
    """arXiv:1910.02054, figure 1 and table 1: 7.5 billion parameters, 16 bytes each."""
    digits = {1.88: 2}.get(gigabytes, 1)
    memory = state_memory(PSI, 0, ADAM_16_BIT, devices=devices, sharded=STAGES[stage])
    assert round(memory.total / 1e9, digits) == gigabytes
    without_master = state_memory(PSI, 0, replace(ADAM_16_BIT, master=0), devices=devices, sharded=STAGES[stage])
    assert round(without_master.total / 1e9, digits) != gigabytes


def test_gpt2_xl_takes_3_gb_and_24_to_be_trained():
    """arXiv:1910.02054, section 3.1, of 1.5 billion parameters: "at least 24 GB" against 3 GB."""
    memory = Plan(architecture("GPT-2 XL"), Full(), ADAM_16_BIT, batch_size=1, length=1024).memory()
    states = memory.total - memory.activations
    assert round(memory.weights / 1e9) == 3
    assert 24e9 <= states < 1.05 * 24e9
    assert states - memory.optimizer < 24e9


def test_fsdp_sends_one_and_a_half_times_what_ddp_sends():
    """arXiv:1910.02054, section 7.2.2: 3 against 2 times the parameters, all in 16 bits. Ours gathers the tables once
    and not twice, which are little of a large model and much of a small one."""
    ratios = {}
    for name in ("GPT-3 175B", "GPT-2"):
        ddp = Plan(architecture(name), Full(), ADAM_16_BIT, batch_size=1, length=64, devices=64)
        ratios[name] = replace(ddp, engine="fsdp").bytes_sent_per_step() / ddp.bytes_sent_per_step()
    assert ratios["GPT-3 175B"] == pytest.approx(1.5, rel=0.002)
    assert ratios["GPT-2"] < 1.4


def test_65_billion_parameters_need_more_than_780_gb_or_less_than_48():
    """arXiv:2305.14314, abstract and section 1: 16-bit fine-tuning, with Adam's two moments in fp32, against 4 bits,
    LoRA of rank 64 at all linear layers and checkpointing (a row of 512 tokens here)."""
    a = architecture("LLaMA-65B")
    assert state_memory(numbers_of(skeleton(a)), 0, Bytes(2, 2, 8)).total == pytest.approx(780e9, rel=0.01)
    assert state_memory(numbers_of(skeleton(a)), 0, Bytes(2, 2, 8)).total > 780e9
    plan = Plan(a, LoRA(rank=64), "4-bit frozen", batch_size=1, length=512, checkpointing=True)
    assert 0.9 * 48e9 < plan.memory().total < 48e9
    for worse in (replace(plan, precision=replace(plan.recipe, frozen=None)), replace(plan, strategy=Full())):
        assert worse.memory().total > 2 * 48e9


def test_gpt3_took_3_14e23_operations():
    """arXiv:2005.14165, table D.1: 300 billion tokens, 6 operations for each token and parameter, without attention's
    own, which table 1 of arXiv:2001.08361 has."""
    flops = Plan(GPT3, Full(), "fp32", batch_size=1, length=2048).flops_per_token().total
    attention = 12 * GPT3.n_layers * GPT3.d_model * 2048  # arXiv:2204.02311, appendix B: 12 L H Q T
    assert f"{300e9 * (flops - attention):.2e}" == "3.14e+23"
    assert f"{300e9 * flops:.2e}" == "3.23e+23"


# models that run


def small_plan(strategy=None, a=SMALL["gpt2"], precision="fp32", **options):
    return Plan(a, strategy or Full(), precision, **({"batch_size": 2, "length": 10} | options))


def flops_of(model):
    """Operations for each token that torch counts, forward and backward, in a batch of which half is predicted."""
    ids_BT = torch.zeros(2, 10, dtype=torch.long)
    wanted_BT = torch.arange(10).expand(2, 10) < 5
    with FlopCounterMode(display=False) as forward:
        logits_NV = model(ids_BT, wanted_BT=wanted_BT).logits
        loss, _ = token_loss(logits_NV, torch.zeros(len(logits_NV), dtype=torch.long))
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops() / 20, backward.get_total_flops() / 20


def model_of(layout):
    config = SMALL[layout].config()
    return Decoder(config) if layout == "gpt2" else Encoder(config)


@pytest.mark.parametrize("strategy", [Full(), BitFit()], ids=lambda s: s.kind)
@pytest.mark.parametrize("layout", ["bert", "gpt2"])
def test_operations_are_those_that_torch_counts(layout, strategy):
    model = model_of(layout)
    plan = small_plan(strategy, dimensions_of(model), predicted=0.5)
    apply(model, strategy)
    forward, backward = flops_of(model)
    flops = plan.flops_per_token()
    assert (flops.forward, flops.input_gradients + flops.weight_gradients) == (forward, backward)
    assert replace(plan, predicted=1.0).flops_per_token().forward != forward
    assert replace(plan, length=11).flops_per_token().forward != forward


@pytest.mark.parametrize("strategy", [LoRA(rank=3), Adapter(3), Prefix(4, None)], ids=lambda s: s.kind)
@pytest.mark.parametrize("layout", ["bert", "gpt2"])
def test_what_is_counted_too_much_is_less_than_the_first_blocks_input_gradients(layout, strategy):
    model = model_of(layout)
    plan = small_plan(strategy, dimensions_of(model), predicted=0.5)
    apply(model, strategy)
    forward, backward = flops_of(model)
    flops = plan.flops_per_token()
    assert flops.forward == forward
    assert (
        0
        < flops.input_gradients + flops.weight_gradients - backward
        < flops.input_gradients / plan.architecture.n_layers
    )


def test_checkpointing_computes_the_blocks_once_more():
    """By default torch stops behind the last tensor that is kept: before the block's last matrix."""
    model = model_of("gpt2")
    for block in model.transformer["h"]:
        block.forward = lambda *args, of=block.forward: checkpoint(of, *args, use_reentrant=False)
    flops = small_plan(predicted=0.5, checkpointing=True).flops_per_token()
    with set_checkpoint_early_stop(False):
        assert flops.total - flops.forward == flops_of(model)[1]
    last_matrices = 3 * 2 * 16 * 24
    assert flops.total - flops.forward - last_matrices == flops_of(model)[1]
    assert flops.recomputed > small_plan().flops_per_token().recomputed == 0


@pytest.mark.parametrize("strategy", [Full(), LoRA(rank=3), Adapter(3), BitFit()], ids=lambda s: s.kind)
def test_states_take_what_a_trained_model_and_its_optimizer_hold(strategy):
    model = model_of("gpt2")
    apply(model, strategy)
    optimizer = make_optimizer(model)
    flat_NV = model(torch.zeros(2, 10, dtype=torch.long)).logits.flatten(0, 1)
    token_loss(flat_NV, torch.zeros(20, dtype=torch.long))[0].backward()
    optimizer.step()
    memory = small_plan(strategy).memory()
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in trained)
    assert memory.optimizer == sum(moment.nbytes for moment in moments)
    assert memory.optimizer == 2 * memory.gradients != memory.weights


# what devices, batches and checkpointing change


@pytest.mark.parametrize("strategy", [Full(), LoRA(rank=2)], ids=lambda s: s.kind)
def test_on_one_device_the_engines_are_alike_and_send_nothing(strategy):
    ddp, fsdp = (small_plan(strategy, engine=engine) for engine in ("ddp", "fsdp"))
    assert ddp.memory() == fsdp.memory()
    assert ddp.bytes_sent_per_step() == fsdp.bytes_sent_per_step() == ddp.gathered() == fsdp.gathered() == 0
    assert replace(ddp, devices=2).memory() != replace(fsdp, devices=2).memory()


@pytest.mark.parametrize("strategy", [Full(), LoRA(rank=2)], ids=lambda s: s.kind)
def test_states_are_divided_under_fsdp_and_never_under_ddp(strategy):
    ddp, fsdp = (
        [small_plan(strategy, engine=engine, devices=n).memory() for n in (1, 2, 4)] for engine in ("ddp", "fsdp")
    )
    assert ddp[0] == ddp[1] == ddp[2]
    for n, memory in zip((1, 2, 4), fsdp, strict=True):
        assert memory.total - memory.activations == pytest.approx((ddp[0].total - ddp[0].activations) / n)
        assert memory.activations == ddp[0].activations


def test_each_state_is_divided_where_it_is_named():
    plan = small_plan(devices=4)
    whole = plan.memory()
    for part in SHARDED:
        memory = plan.memory(sharded=(part,))
        assert [getattr(whole, name) / getattr(memory, name) for name in SHARDED] == [
            4 if name == part else 1 for name in SHARDED
        ]


def test_fsdp_adds_up_whole_gradients_over_micro_batches():
    plan = small_plan(devices=4, engine="fsdp")
    several = replace(plan, accumulate=2).memory()
    assert several.gradients == 4 * plan.memory().gradients
    assert several == replace(plan.memory(), gradients=several.gradients)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_step_of_several_micro_batches_sends_gradients_once_and_gathers_weights_for_each(engine):
    once, thrice = (small_plan(devices=4, engine=engine, accumulate=n).bytes_sent_per_step() for n in (1, 3))
    weights, blocks = (
        4 * numbers_of(part) for part in (skeleton(SMALL["gpt2"]), skeleton(SMALL["gpt2"]).transformer["h"])
    )
    assert thrice - once == pytest.approx(0 if engine == "ddp" else 0.75 * 2 * (weights + blocks))


class Collectives(TorchDispatchMode):
    """Notes how many numbers all ranks together hold in each collective operation."""

    def __init__(self):
        super().__init__()
        self.sizes = {"allgather": 0, "reduce_scatter": 0}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        for kind in self.sizes:
            if "c10d" in str(operation) and kind in str(operation):
                self.sizes[kind] += max(leaf.numel() for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def four_ranks():
    """This process as one of four, the others imagined: what it would send is noted, and nothing is sent."""
    distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield
    distributed.destroy_process_group()


@pytest.mark.slow
def test_under_fsdp_our_engine_holds_gathers_and_scatters_what_is_planned(four_ranks):
    model = Decoder(SMALL["gpt2"].config().with_(vocab_size=100))  # all divisible by 4: nothing is padded
    plan = small_plan(a=dimensions_of(model), devices=4, engine="fsdp", accumulate=2)
    engine = make_engine("fsdp", model)
    with Collectives() as seen:
        for is_last in (False, True):
            with engine.accumulating(model, is_last=is_last):
                model(torch.zeros(2, 10, dtype=torch.long)).logits.sum().backward()
    assert plan.bytes_sent_per_step() == 0.75 * 4 * (seen.sizes["allgather"] + seen.sizes["reduce_scatter"])
    assert seen.sizes["reduce_scatter"] == plan.adapted.n_trained
    assert plan.memory().weights == sum(p.to_local().nbytes for p in model.parameters())
    assert replace(plan, accumulate=1).bytes_sent_per_step() < plan.bytes_sent_per_step()


def test_ddp_sends_the_gradients_of_what_trains_and_fsdp_all_weights():
    full, lora = (small_plan(strategy, devices=2) for strategy in (Full(), LoRA(rank=2)))
    share = lora.adapted.n_trained / full.adapted.n_trained
    assert lora.bytes_sent_per_step() == pytest.approx(share * full.bytes_sent_per_step())
    assert replace(lora, engine="fsdp").bytes_sent_per_step() > 0.5 * replace(full, engine="fsdp").bytes_sent_per_step()


@pytest.mark.parametrize("name", few(ALL, *SMALL))
def test_checkpointing_keeps_less_and_computes_more(name):
    plan = Plan(ALL[name], Full(), "fp32", batch_size=4, length=32)
    checkpointed = replace(plan, checkpointing=True)
    assert checkpointed.memory().activations < plan.memory().activations
    assert checkpointed.flops_per_token().total > plan.flops_per_token().total
    assert checkpointed.memory().weights == plan.memory().weights


@pytest.mark.parametrize("predicts", [True, False])
def test_a_plan_hands_its_batch_and_options_on(predicts):
    options = {"has_row_masks": True, "has_dropout": True}
    plan = small_plan(predicted=float(predicts), checkpointing=True, **options)
    kept = Pass(plan.adapted, PRECISIONS["fp32"], 2, 10, 20 * predicts, **options).activations()
    assert plan.activations() == kept
    assert plan.memory().activations == kept.checkpointed
    for change in ({"batch_size": 3}, {"fused_attention": True}, {"has_row_masks": False}, {"has_dropout": False}):
        assert replace(plan, **change).activations() != kept


def test_what_is_predicted_by_default_is_all_a_part_or_nothing():
    encoder = replace(SMALL["bert"], head=True)
    plans = [small_plan(a=a, batch_size=10) for a in (SMALL["gpt2"], SMALL["llama"], encoder, SMALL["bert"])]
    assert [plan.activations().after["gradient of the logits"] / (60 * 4) for plan in plans] == [100, 100, 15, 0]


def test_a_block_and_what_stands_in_none_are_gathered_whole():
    plan = small_plan(devices=4, engine="fsdp")
    model = skeleton(SMALL["gpt2"])
    assert plan.gathered() == 4 * (numbers_of(model) - 2 * numbers_of(model.transformer["h"][0]))
    assert plan.gathered() > 4 * numbers_of(model.transformer["h"][0])


def test_time_is_what_is_computed_and_sent_at_the_rates_that_are_given():
    plan = small_plan(devices=4, accumulate=3, checkpointing=True)
    seconds = plan.seconds_per_step(1e9, 1e6)
    assert plan.tokens_per_step == 2 * 10 * 3 * 4
    assert seconds.computing == pytest.approx(60 * plan.flops_per_token().total / 1e9)
    assert seconds.sending == pytest.approx(plan.bytes_sent_per_step() / 1e6)
    assert seconds.total > seconds.overlapped == max(seconds.computing, seconds.sending)
    assert replace(plan, devices=1).seconds_per_step(1e9, 1e6).sending == 0


# refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0: give a whole number of at least 1"),
        ({"devices": 1.5}, "devices is 1.5"),
        ({"accumulate": -1}, "accumulate is -1"),
        ({"engine": "pipeline"}, "engine 'pipeline' is unknown: choose one of ddp, fsdp"),
        ({"precision": "fp7"}, "precision 'fp7' is unknown: choose one of 'fp32', "),
        ({"length": 33}, "length 33 exceeds the model's 32 positions: shorten it"),
        ({"length": 30, "strategy": Prefix(3, None)}, "length 30 behind a prefix of 3 exceeds the model's 32"),
        ({"predicted": 1.1}, "predicted is 1.1: give a share of positions between 0 and 1"),
        ({"architecture": SMALL["bert"], "predicted": 0.15}, "has no output layer: set its head=True, or predicted=0"),
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        replace(small_plan(), **change)


@pytest.mark.parametrize("change", [{"architecture": "GPT-2"}, {"strategy": LoRA}], ids=str)
def test_a_plan_of_something_else_is_refused(change):
    with pytest.raises(TypeError, match="give one such as"):
        replace(small_plan(), **change)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: architecture("gpt2"), "architecture 'gpt2' is unknown: choose one of BERT-base, BERT-large, GPT-2, "),
        (lambda: replace(SMALL["llama"], n_kv_heads=3), "4 heads cannot share the keys and values of 3"),
        (lambda: replace(SMALL["gpt2"], n_kv_heads=2), "only heads of layout 'llama' share keys and values"),
        (lambda: replace(SMALL["bert"], d_model=15), "d_model 15 is not divisible by n_heads 2"),
        (lambda: dimensions_of(TwoStream(SMALL["bert"].config())), "this TwoStream is none of the layouts"),
        (lambda: Bytes(-1, 4, 8), "weights is -1: give a number of bytes of at least 0"),
        (lambda: state_memory(1, 0, Bytes(4, 4, 8), sharded=("layers",)), "sharded names ['layers']: choose from"),
        (lambda: small_plan().seconds_per_step(0, 1), "flops_per_second is 0: give a measured rate above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(act, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        act()


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
