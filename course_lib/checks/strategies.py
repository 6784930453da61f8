"""Checks of chapter 3: LoRA's forward pass and merge, counting before building, prefix attention, BitFit's choice."""

from course_lib.checks.biases import PickBiases, biases_reference, verify_pick_biases
from course_lib.checks.counting import CountTrainable, count_reference, verify_count_trainable
from course_lib.checks.low_rank import (
    LoraForward,
    MergeLora,
    lora_reference,
    merge_reference,
    verify_lora_forward,
    verify_merge_lora,
)
from course_lib.checks.prefixes import PrefixAttention, prefix_reference, verify_prefix_attention
from course_lib.checks.report import Part, report


def lora_forward(function: LoraForward) -> LoraForward:
    """Check f(x_NI, weight_OI, bias_O, A_RI, B_OR, *, alpha) -> [N, O]: a linear layer with LoRA's update beside it,
    scaled by alpha / rank; x may have more axes before its channels. Prints a verdict; gives back f if it is right,
    else the library's."""
    return report(Part("lora_forward", function, verify_lora_forward, lora_reference))[0]


def merge_lora(function: MergeLora) -> MergeLora:
    """Check f(weight_OI, A_RI, B_OR, *, alpha) -> a new weight [O, I] that does what the layer does with the update
    beside it. Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("merge_lora", function, verify_merge_lora, merge_reference))[0]


def count_trainable(function: CountTrainable) -> CountTrainable:
    """Check f(strategy, *, d_model, n_layers, d_ff, rank=8, length=16, bottleneck=32) -> how many numbers train in an
    encoder of BERT's layout without a head; strategy is "lora" (at query and value), "prefix" (without a network),
    "adapter" (two bottlenecks a block) or "bitfit". Prints a verdict; gives back f if it is right, else the library's,
    which builds the model and counts."""
    return report(Part("count_trainable", function, verify_count_trainable, count_reference))[0]


def prefix_attention(function: PrefixAttention) -> PrefixAttention:
    """Check f(q_BHQD, k_BHKD, v_BHKD, prefix_k_HPD, prefix_v_HPD, may_attend_BQK) -> [B, H, Q, D]: attention to a
    prefix, which is the same for each row and which everyone sees, and to the text, of which may_attend speaks. Prints
    a verdict; gives back f if it is right, else the library's."""
    return report(Part("prefix_attention", function, verify_prefix_attention, prefix_reference))[0]


def pick_biases(function: PickBiases) -> PickBiases:
    """Check f(model) -> the names of the parameters that BitFit trains: all that are called bias, each once. Prints a
    verdict; gives back f if it is right, else the library's."""
    return report(Part("pick_biases", function, verify_pick_biases, biases_reference))[0]
