"""What a forward pass keeps, predicted from dimensions, against what our models keep when they run: equal to the byte,
for every layout, strategy and number format.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from few import few
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from course_lib import layers, masks
from course_lib.architectures import ARCHITECTURES, Architecture, dimensions_of
from course_lib.layers import TransformerConfig
from course_lib.losses import token_loss
from course_lib.model import Decoder, Encoder
from course_lib.peft import Adapter, BitFit, Full, LoRA, Prefix, apply
from course_lib.planner import PRECISIONS, Adapted, Pass
from course_lib.runtime import autocast, kept_for_backward, seeded

CONFIGS = {  # no two dimensions of the same model alike
    "two blocks": TransformerConfig(101, 16, 2, 2, 40, 32),
    "four blocks": TransformerConfig(300, 32, 4, 8, 120, 32),
    "four blocks that drop": TransformerConfig(300, 32, 4, 8, 120, 32, dropout=0.1),
    "one block, one head": TransformerConfig(64, 8, 1, 1, 24, 16),
}
BATCHES = [  # a model, rows, positions, and whether each row has its own [T, K] of who may attend
    ("two blocks", 3, 7, False),
    ("four blocks", 2, 12, True),
    ("four blocks", 1, 9, False),
    ("four blocks that drop", 2, 9, False),
    ("one block, one head", 2, 5, False),
]
STRATEGIES = {
    "full": Full(),
    "lora": LoRA(rank=3),
    "adapter": Adapter(5),
    "prefix": Prefix(4, None),
    "bitfit": BitFit(),
}
MODELS = ("gpt2", "bert", "bert with head", "roformer with head")
FORMATS = ("fp32", "bf16 mixed", "bf16 with fp32 master")
CASES = list(itertools.product(MODELS, STRATEGIES, FORMATS))
QUICK = [("gpt2", "full", "fp32"), ("bert with head", "lora", "bf16 mixed"), ("roformer with head", "full", "fp32")]


def built(name, config, strategy, precision):
    """A model of our own, adapted, and its architecture."""
    if name == "gpt2":
        model = Decoder(config)
    else:
        positions = "rotary" if name.startswith("roformer") else "learned"
        model = Encoder(config.with_(positions=positions), head=name.endswith("head"))
    architecture = dimensions_of(model)
    if not isinstance(strategy, Full):
        apply(model, strategy)
    return model.to(torch.bfloat16) if precision == "bf16 with fp32 master" else model, architecture


def may_attend(model, batch_size, length, has_row_masks):
    if has_row_masks:
        return masks.causal(length).expand(batch_size, -1, -1).clone()
    return None if isinstance(model, Decoder) else masks.padding(torch.ones(batch_size, length, dtype=torch.bool))


def counted(model, precision, batch_size, length, has_row_masks=False):
    """Bytes that a forward pass with its loss keeps, and how many positions it predicts."""
    ids_BT = torch.randint(0, model.config.vocab_size, (batch_size, length), generator=seeded(0))
    wanted_BT = torch.rand(batch_size, length, generator=seeded(1)) < 0.4
    may_attend_BQK = may_attend(model, batch_size, length, has_row_masks)
    dtype = torch.bfloat16 if precision == "bf16 mixed" else torch.float32
    predicts = isinstance(model, Decoder) or model.cls is not None
    with kept_for_backward(model) as kept, autocast(torch.device("cpu"), dtype):
        if predicts:
            logits_NV = model(ids_BT, may_attend_BQK, wanted_BT=wanted_BT).logits
            token_loss(logits_NV, torch.zeros(len(logits_NV), dtype=torch.long))
        else:
            model(ids_BT, may_attend_BQK).hidden_states[-1].sum()
    return kept.bytes, int(wanted_BT.sum()) if predicts else 0


def predicted(architecture, strategy, precision, batch_size, length, n_predicted, **options):
    adapted = Adapted.of(architecture, strategy)
    return Pass(adapted, PRECISIONS[precision], batch_size, length, n_predicted, **options).activations()


@pytest.mark.parametrize(("name", "kind", "precision"), few(CASES, *QUICK))
def test_as_many_bytes_are_predicted_as_are_kept(name, kind, precision):
    for config, batch_size, length, has_row_masks in BATCHES:
        model, architecture = built(name, CONFIGS[config], STRATEGIES[kind], precision)
        kept, n_predicted = counted(model, precision, batch_size, length, has_row_masks)
        batch = (batch_size, length, n_predicted)
        options = {"has_row_masks": has_row_masks, "has_dropout": CONFIGS[config].dropout > 0}
        activations = predicted(architecture, STRATEGIES[kind], precision, *batch, **options)
        assert activations.total == kept, (config, *batch)


@pytest.mark.parametrize(
    "strategy",
    [
        LoRA(rank=2, targets=["query", "value"]),
        LoRA(rank=2, targets=["value"]),
        LoRA(rank=2, targets=["3.attention.self.query"]),
        LoRA(rank=2, targets=r".*\.[12]\.output\.dense", rank_pattern={r"1\.output\.dense": 5}),
        Adapter(3, targets=["attention.output.dense"]),
    ],
    ids=lambda s: str(s.targets),
)
def test_a_strategy_in_some_layers_keeps_what_they_read(strategy):
    model, architecture = built("bert", CONFIGS["four blocks"], strategy, "fp32")
    kept, _ = counted(model, "fp32", 2, 9)
    assert predicted(architecture, strategy, "fp32", 2, 9, 0).total == kept


@pytest.mark.parametrize("wrong", [{"d_ff": 121}, {"n_heads": 4}, {"n_layers": 3}, {"vocab_size": 301}], ids=str)
def test_the_checks_above_refuse_one_wrong_dimension(wrong):
    model, architecture = built("gpt2", CONFIGS["four blocks"], Full(), "fp32")
    kept, n_predicted = counted(model, "fp32", 2, 9)
    assert predicted(architecture, Full(), "fp32", 2, 9, n_predicted).total == kept
    assert predicted(replace(architecture, **wrong), Full(), "fp32", 2, 9, n_predicted).total != kept


def test_the_checks_above_refuse_another_strategy_or_format():
    model, architecture = built("bert", CONFIGS["four blocks"], BitFit(), "fp32")
    kept, _ = counted(model, "fp32", 2, 9)
    assert predicted(architecture, BitFit(), "fp32", 2, 9, 0).total == kept
    others = [predicted(architecture, s, "fp32", 2, 9, 0).total for s in STRATEGIES.values() if s != BitFit()]
    others += [predicted(architecture, BitFit(), "bf16 mixed", 2, 9, 0).total]
    others += [predicted(architecture, BitFit(), "fp32", 2, 9, 0, has_dropout=True).total]
    assert kept not in others


# attention that keeps no weights


def in_one_kernel(q_BHQD, k_BHKD, v_BHKD, may_attend_BQK, *, dropout=0.0):
    """Causal attention by torch's fused kernel."""
    return F.scaled_dot_product_attention(q_BHQD, k_BHKD, v_BHKD, is_causal=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16 mixed"])
def test_fused_attention_keeps_its_results_and_a_number_for_each_query(precision, monkeypatch):
    monkeypatch.setattr(layers, "attend", in_one_kernel)
    model, architecture = built("gpt2", CONFIGS["four blocks"], Full(), precision)
    kept, n_predicted = counted(model, precision, 3, 24)
    fused, written_out = (
        predicted(architecture, Full(), precision, 3, 24, n_predicted, fused=fused).total for fused in (True, False)
    )
    assert fused == kept != written_out


def test_fused_attention_grows_with_the_length_and_written_out_with_its_square():
    a = ARCHITECTURES["Llama-2-7B"]

    def block(length, fused):
        return predicted(a, Full(), "fp32", 1, length, 0, fused=fused).blocks[-1].total()

    assert block(4096, True) == 2 * block(2048, True)
    weights_and_masks = (32 * 4 + 1) * (4096**2 - 2 * 2048**2)
    assert block(4096, False) == 2 * block(2048, False) + weights_and_masks


# checkpointing


@pytest.mark.parametrize("precision", ["fp32", "bf16 mixed"])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_with_checkpointing_blocks_keep_their_inputs_alone(name, precision):
    model, architecture = built(name, CONFIGS["four blocks"], Full(), precision)
    for block in model.transformer["h"] if name == "gpt2" else model.encoder["layer"]:
        block.forward = lambda *args, of=block.forward, **named: checkpoint(of, *args, use_reentrant=False, **named)
    kept, n_predicted = counted(model, precision, 2, 9)
    activations = predicted(architecture, Full(), precision, 2, 9, n_predicted)
    seen_by_all = 9 * 9 if name == "gpt2" else 2 * 9  # who may attend is an input of blocks too, the same for each
    after_the_blocks = activations.before.total() + 4 * activations.stream + activations.after.total()
    assert kept - seen_by_all == after_the_blocks <= activations.checkpointed < activations.total


@pytest.mark.parametrize("precision", ["fp32", "bf16 mixed"])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_one_block_computed_again_keeps_what_is_said_of_its_inside(name, precision):
    model, architecture = built(name, CONFIGS["four blocks"], Full(), precision)
    block = (model.transformer["h"] if name == "gpt2" else model.encoder["layer"])[1]
    x_BTE = 1 * torch.randn(2, 9, 32, requires_grad=True)  # no leaf, of which autocast would remember its copy
    may_attend_BQK = masks.causal(9) if name == "gpt2" else torch.ones(2, 1, 9, dtype=torch.bool)
    dtype = torch.bfloat16 if precision == "bf16 mixed" else torch.float32
    with kept_for_backward(model) as kept, autocast(torch.device("cpu"), dtype):
        block(x_BTE, may_attend_BQK)
    for n_predicted in (0, 500):  # what comes after all blocks is less than a block's inside, and more
        activations = predicted(architecture, Full(), precision, 2, 9, n_predicted)
        assert activations.blocks[1].total() == kept.bytes
        rest = activations.before.total() + 4 * activations.stream
        is_copied = (name, precision) == ("bert", "bf16 mixed")  # that one keeps copies of its input alone
        inside = kept.bytes - (0 if is_copied else activations.stream)
        assert (inside > activations.after.total()) is (n_predicted == 0)
        assert activations.checkpointed == rest + max(inside, activations.after.total())


# against a paper, and of a layout that nothing here runs


@pytest.mark.parametrize("name", [name for name, a in ARCHITECTURES.items() if a.layout == "gpt2"])
def test_a_block_keeps_what_a_paper_counts(name):
    """Korthikanti et al. (arXiv:2205.05198, section 4.1): s b h (34 + 5 a s / h) bytes in 16 bits, one for each number
    that dropout has seen. They leave out what is smaller: statistics, and who may attend."""
    a, batch_size, length = ARCHITECTURES[name], 4, 1024
    recipe = replace(PRECISIONS["bf16 with fp32 master"], masks=1)

    def in_a_block(**options):
        kept = Pass(Adapted.of(a, Full()), recipe, batch_size, length, 0, **options).activations().blocks[-1]
        return kept.total() - kept["statistics"] - kept["who may attend"]

    sbh, as_over_h = length * batch_size * a.d_model, a.n_heads * length / a.d_model
    assert in_a_block(has_dropout=True) == sbh * (34 + 5 * as_over_h)
    assert in_a_block() == sbh * (32 + 2 * as_over_h)


def test_a_llamas_block_keeps_the_tensors_of_its_paper():
    """By hand: inputs of two normalisations, what they give, queries, mixed values; keys and values of fewer heads;
    around the gate three and the product of two; cosines and sines."""
    a = Architecture("llama", 60, 16, 3, 4, 24, 32, "made up", n_kv_heads=2)
    n_rows, n_scores, n_turns, n_statistics = 2 * 9, 2 * 4 * 9 * 9, 4 * 9 * 4, 2 * 2 * 9
    numbers = n_rows * (6 * 16 + 2 * 8 + 4 * 24) + n_scores + n_turns + n_statistics
    block = predicted(a, Full(), "fp32", 2, 9, 0).blocks[-1]
    assert block.total() == 4 * numbers + (9 * 9 + 9)  # bytes, and those of who may attend
    assert predicted(replace(a, n_kv_heads=None), Full(), "fp32", 2, 9, 0).blocks[-1].total() > block.total()


@pytest.mark.parametrize("name", few(ARCHITECTURES, "GPT-2", "Llama-3-8B"))
def test_activations_are_linear_in_the_rows_but_for_what_rows_share(name):
    kept = [predicted(ARCHITECTURES[name], Full(), "fp32", rows, 256, rows * 256) for rows in (1, 2, 3)]
    assert kept[2].total - kept[1].total == kept[1].total - kept[0].total > 0
