"""Skeletons against models built by `transformers` from their config: the same names, the same shapes, and for every
strategy the same counts as on the built model."""

import re

import pytest

from course_lib.architectures import QUERY_AND_VALUE, Architecture, skeleton
from course_lib.peft import Adapter, BitFit, Full, LoRA, Prefix, apply
from course_lib.planner import trained_parameters

transformers = pytest.importorskip("transformers", reason="install the extra [interop] for the parity tests")

pytestmark = pytest.mark.slow

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24,
         "max_position_embeddings": 32, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}  # fmt: skip
SKELETONS = {
    "bert": Architecture("bert", 60, 16, 3, 2, 24, 32, "made up"),
    "gpt2": Architecture("gpt2", 60, 16, 3, 2, 24, 32, "made up"),
    "llama": Architecture("llama", 60, 16, 3, 4, 24, 32, "made up"),
    "grouped llama": Architecture("llama", 60, 16, 3, 4, 24, 32, "made up", n_kv_heads=2),
}


def built(name):
    """The model of transformers with these dimensions, with memory and random weights."""
    if name == "bert":
        return transformers.BertModel(transformers.BertConfig(**SIZES, num_attention_heads=2), add_pooling_layer=False)
    if name == "gpt2":
        sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 24, "n_positions": 32,
                 "bos_token_id": None, "eos_token_id": None}  # fmt: skip
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2 if name == "grouped llama" else 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **heads))


def strategies_of(layout):
    few = [Full(), LoRA(rank=2, targets=QUERY_AND_VALUE[layout]), LoRA(rank=3), Adapter(3), Prefix(4, None)]
    return few if layout == "llama" else [*few, BitFit()]


CASES = [(name, strategy) for name, a in SKELETONS.items() for strategy in strategies_of(a.layout)]


@pytest.mark.parametrize("name", SKELETONS)
def test_a_skeleton_has_the_shapes_of_the_built_model_under_its_names(name):
    theirs = {re.sub(r"^model\.", "", key): tuple(p.shape) for key, p in built(name).named_parameters()}
    ours = {key: tuple(p.shape) for key, p in skeleton(SKELETONS[name]).named_parameters()}
    assert ours == theirs
    if name == "grouped llama":  # the control: heads that share nothing have other shapes
        assert ours != {key: tuple(p.shape) for key, p in skeleton(SKELETONS["llama"]).named_parameters()}


@pytest.mark.parametrize(("name", "strategy"), CASES, ids=lambda value: getattr(value, "kind", value))
def test_a_strategy_is_counted_as_on_the_built_model(name, strategy):
    applied = apply(built(name), strategy)
    assert trained_parameters(SKELETONS[name], strategy) == (applied.n_trained, applied.n_parameters)
