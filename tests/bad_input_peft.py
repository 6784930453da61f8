"""Rows of tests/test_bad_input.py's table for fine-tuning strategies and their files."""

from tiny import CONFIG
from torch import nn

from course_lib import peft
from course_lib.architectures import ARCHITECTURES, architecture
from course_lib.model import Decoder, TwoStream
from course_lib.peft import Adapter, BitFit, LoRA, Prefix, apply
from course_lib.peft.spectrum import spectrum
from course_lib.planner import Plan, trained_parameters

SMALL = CONFIG.with_(vocab_size=50)


def on_decoder(*strategies, act=lambda model: None, **options):
    """Apply strategies under the names a, b, ... to a decoder, then act."""

    def run(_folder):
        model = Decoder(SMALL)
        for name, strategy in zip("abc", strategies, strict=False):
            apply(model, strategy, name=name, **options)
        return act(model)

    return run


def from_another_base(folder):
    model = Decoder(SMALL.with_(d_model=32))
    apply(model, LoRA(rank=2))
    peft.save_adapter(model, folder / "adapter")
    return peft.load_adapter(Decoder(SMALL), folder / "adapter")


REFUSED_STRATEGIES = [
    ("strategy unknown", lambda _: peft.strategy("dora"), ("strategy 'dora' is unknown", "full, lora, prefix")),
    ("strategy by its class", on_decoder(LoRA), "give one such as LoRA(rank=8)"),
    ("rank 0", lambda _: LoRA(rank=0), "rank is 0: give a whole number of at least 1"),
    ("rank with a fraction", lambda _: LoRA(rank=2.5), "rank is 2.5"),
    ("rank above the matrix", on_decoder(LoRA(rank=40)), ("rank 40 at 'transformer.h.0", "larger than its matrix")),
    ("alpha 0", lambda _: LoRA(alpha=0), "alpha is 0: give a number above 0"),
    ("all dropped", lambda _: LoRA(dropout=1.0), "dropout is 1.0"),
    (
        "target that matches nothing",
        on_decoder(LoRA(2, targets=["q_proj"])),
        ("['q_proj']", "transformer.h.*.attn.c_attn"),
    ),
    ("target that is no layer", on_decoder(LoRA(2, targets=["ln_1"])), "'transformer.h.0.ln_1' is a LayerNorm"),
    ("target no pattern", on_decoder(LoRA(2, targets="*.attn")), "'*.attn' is no regular expression"),
    ("applied twice", on_decoder(LoRA(2), act=lambda m: apply(m, LoRA(2), name="a")), "has an adapter 'a' already"),
    ("full beside lora", on_decoder(LoRA(2), peft.Full()), "load the model again"),
    ("no such head", on_decoder(LoRA(2), modules_to_save=["head"]), "names 'head', which is not there"),
    ("no biases", lambda _: apply(nn.Linear(2, 2, bias=False), BitFit()), "no parameter called bias"),
    ("bottleneck 0", lambda _: Adapter(bottleneck=0), "bottleneck is 0"),
    ("no half of a block", lambda _: apply(nn.Linear(2, 2), Adapter()), "no layer matches"),
    ("prefix of nothing", lambda _: Prefix(length=0), "length is 0"),
    ("prefix as long as the model", on_decoder(Prefix(length=CONFIG.max_len)), "leaves no position of the model's 64"),
    ("prefix on two streams", lambda _: apply(TwoStream(SMALL), Prefix(2)), "takes no earlier keys and values"),
    ("merging a prefix", on_decoder(Prefix(2), act=peft.merge), "no weight holds those"),
    ("merging adapter layers", on_decoder(Adapter(2), act=peft.merge), "adapter layers are not linear"),
    ("merging twice", on_decoder(LoRA(2), act=lambda m: (peft.merge(m), peft.merge(m))), "merged already"),
    ("unmerging what is not merged", on_decoder(LoRA(2), act=peft.unmerge), "is not merged"),
    ("merging nothing", lambda _: peft.merge(Decoder(SMALL)), "has no adapter: apply a strategy to it first"),
    (
        "switching to nobody",
        on_decoder(LoRA(2), act=lambda m: peft.switch(m, "b")),
        "'b' is not there: this model has a",
    ),
    ("switching while merged", on_decoder(LoRA(2), act=lambda m: (peft.merge(m), peft.switch(m, None))), "unmerge"),
    ("removing nobody", on_decoder(LoRA(2), act=lambda m: peft.remove(m, "b")), "'b' is not there"),
    ("combining nothing", on_decoder(LoRA(2), act=lambda m: peft.combine(m, {}, "b")), "weights are empty"),
    ("combining a prefix", on_decoder(Prefix(2), act=lambda m: peft.combine(m, {"a": 1}, "b")), "is of kind prefix"),
    ("folding no prefix", on_decoder(LoRA(2), act=peft.fold), "is no prefix of this model"),
    ("adapter of another base", from_another_base, ("made for another base", "32", "16")),
    ("adapter not there", lambda folder: peft.load_adapter(Decoder(SMALL), folder), "adapter_config.json is not there"),
    ("spectrum cut to nothing", lambda _: spectrum(nn.Linear(2, 2).weight.detach()).truncated(-1), "rank is -1"),
    (
        "biases of Llama",
        lambda _: trained_parameters(ARCHITECTURES["Llama-2-7B"], BitFit()),
        "no parameter called bias",
    ),
    (
        "architecture unknown",
        lambda _: architecture("GPT-5"),
        ("architecture 'GPT-5' is unknown", "BERT-base, BERT-large, GPT-2, ", "Llama-3-8B"),
    ),
    (
        "plan in an unknown precision",
        lambda _: Plan(ARCHITECTURES["GPT-2"], peft.Full(), "fp7", 1, 8),
        ("precision 'fp7' is unknown", "'bf16 mixed'", "Bytes("),
    ),
    (
        "plan longer than the model",
        lambda _: Plan(ARCHITECTURES["GPT-2"], Prefix(8, None), "fp32", 1, 1020),
        "length 1020 behind a prefix of 8 exceeds the model's 1024 positions",
    ),
]
