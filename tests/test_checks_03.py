"""The checks of chapter 3 say what is wrong, accept every right answer, and let nothing of a learner's code reach the
notebook."""

import math

import numpy as np
import pytest
import torch
from exercises import (
    HOSTILE,
    HalfMade,
    assert_accepted,
    assert_crash_is_reported,
    assert_diagnosed,
    assert_enough_diagnoses,
    assert_generators_and_grad_mode_are_left_alone,
    assert_no_function_is_refused,
    assert_not_attempted,
    assert_replaced_by_what_passes,
    assert_solution_is_hidden,
    assert_works_where_gradients_are_off,
    cases_of,
)
from few import few
from torch import nn
from torch.nn import functional as F

from course_lib import checks, layers, peft
from course_lib.checks import biases, counting, low_rank, prefixes, tensors
from course_lib.layers import TransformerConfig, attend
from course_lib.model import Encoder

# --- LoRA's forward pass ----------------------------------------------------------------------------------------------


def forward_as_two_layers(x_NI, weight_OI, bias_O, A_RI, B_OR, *, alpha):
    return F.linear(x_NI, weight_OI, bias_O) + alpha / A_RI.shape[0] * F.linear(F.linear(x_NI, A_RI), B_OR)


def forward_as_one_matrix(x, weight, bias, A, B, alpha):
    return x @ (weight + (alpha / B.shape[1]) * B @ A).T + bias


def forward_by_einsum(x, weight, bias, A, B, *, alpha):
    rank = len(A)
    base = torch.einsum("...i,oi->...o", x, weight) + bias
    return base.add(torch.einsum("...i,ri,or->...o", x, A, B), alpha=alpha / rank)


def forward_flattened(x, weight, bias, A, B, *, alpha):
    rows = x.reshape(-1, x.shape[-1])
    out = torch.addmm(bias, rows, weight.T) + (rows @ A.T) @ (B.T * alpha) / A.size(0)
    return out.view(*x.shape[:-1], -1)


def forward(
    base=lambda x, W, b: F.linear(x, W, b),
    update=lambda x, A, B: x @ A.T @ B.T,
    scale=lambda alpha, A, B: alpha / len(A),
    join=lambda base, scale, update: base + scale * update,
):
    """The right forward pass with some part of it replaced."""

    def my_forward(x, weight, bias, A, B, *, alpha):
        return join(base(x, weight, bias), scale(alpha, A, B), update(x, A, B))

    return my_forward


def forward_of_changed_x(x, W, b, A, B, *, alpha):
    return F.linear(x + alpha / len(A) * (x @ A.T @ B.T), W, b)


def forward_in_series(x, W, b, A, B, *, alpha):
    out = F.linear(x, W, b)
    return out + alpha / len(A) * (out @ A.T @ B.T)


def forward_all_scaled(x, W, b, A, B, *, alpha):
    return alpha / len(A) * (F.linear(x, W, b) + x @ A.T @ B.T)


def forward_that_adds_in_place(x, W, b, A, B, *, alpha):
    W += alpha / len(A) * B @ A
    return F.linear(x, W, b)


def forward_that_scales_in_place(x, W, b, A, B, *, alpha):
    return F.linear(x, W, b) + x @ A.mul_(alpha / len(A)).T @ B.T


def forward_of_rows(x, W, b, A, B, *, alpha):
    rows = x.reshape(-1, x.shape[-1])
    return forward_as_two_layers(rows, W, b, A, B, alpha=alpha)


def forward_of_two_axes(x, W, b, A, B, *, alpha):
    return forward_as_two_layers(x, W, b, A, B, alpha=alpha) + 0 * torch.einsum("ni,oi->no", x, W)


def forward_without_gradients(x, W, b, A, B, *, alpha):
    with torch.no_grad():
        return forward_as_two_layers(x, W, b, A, B, alpha=alpha)


RIGHT_FORWARDS = [forward_as_two_layers, forward_as_one_matrix, forward_by_einsum, forward_flattened, forward()]
WRONG_FORWARDS = {
    forward(scale=lambda alpha, A, B: 1): "The update is not scaled",
    forward(scale=lambda alpha, A, B: alpha): "scaled by alpha alone",
    forward(scale=lambda alpha, A, B: len(A) / alpha): "upside down",
    forward(scale=lambda alpha, A, B: 1 / len(A)): "alpha is forgotten",
    forward(scale=lambda alpha, A, B: alpha / math.sqrt(len(A))): "rank-stabilised",
    forward(scale=lambda alpha, A, B: alpha / A.shape[1]): "divided by the channels that come in",
    forward(scale=lambda alpha, A, B: alpha / B.shape[0]): "divided by the channels that go out",
    forward(scale=lambda alpha, A, B: alpha * len(A)): "The rank multiplies alpha",
    forward(scale=lambda alpha, A, B: alpha // len(A)): "The fraction is lost",
    forward(scale=lambda alpha, A, B: (alpha / len(A)) ** 2): "The scale is in it twice",
    forward(scale=lambda alpha, A, B: 2 * alpha / len(A)): "The update is added twice",
    forward(scale=lambda alpha, A, B: 2.0): "the update is scaled by 2: how do both enter?",
    forward(scale=lambda alpha, A, B: alpha / 8): "the update is scaled by 1.25",
    forward(join=lambda base, scale, update: base - scale * update): "The update is subtracted",
    forward(join=lambda base, scale, update: base): "that is the frozen layer alone",
    forward(join=lambda base, scale, update: scale * update): "only the update is there",
    forward(base=lambda x, W, b: x @ W.T): "The bias is missing",
    forward(base=lambda x, W, b: F.linear(x, W, b) + b): "The bias is added twice",
    forward(base=lambda x, W, b: 2 * F.linear(x, W, b)): "in it twice",
    forward(base=lambda x, W, b: b): "missing, but for its bias",
    forward(base=lambda x, W, b: x @ W + b): "The weight is the wrong way round",
    forward(
        base=lambda x, W, b: F.linear(x, W), scale=lambda alpha, A, B: alpha
    ): "The bias is missing: the frozen layer adds it. The update is scaled by alpha alone",
    forward(update=lambda x, A, B: x @ B.T @ A.T): "A and B are exchanged",
    forward(update=lambda x, A, B: x @ B @ A): "The product of A and B is transposed",
    forward(update=lambda x, A, B: x @ A @ B): "A and B are the wrong way round",
    forward(update=lambda x, A, B: x @ A @ B.T): "A is the wrong way round",
    forward(update=lambda x, A, B: x @ A.T @ B): "B is the wrong way round",
    forward(base=lambda x, W, b: W @ x + b): "The weight is multiplied from the left",
    forward(update=lambda x, A, B: B @ (A @ x)): "A and B are multiplied from the left, which mixes the tokens",
    (
        lambda x, W, b, A, B, *, alpha: W @ x + b + alpha / len(A) * (B @ (A @ x))
    ): "in each row. A and B are multiplied from the left",
    forward(update=lambda x, A, B: x @ A.T): "B is missing",
    forward(update=lambda x, A, B: x @ B.T): "A is missing",
    forward(update=lambda x, A, B: (x @ A.T).relu() @ B.T): "Something non-linear",
    forward(update=lambda x, A, B: x @ A.reshape(A.shape[::-1]) @ B.T): "A is the wrong way round",
    forward(update=lambda x, A, B: (x @ A.T @ B.T).sigmoid()): "none of the usual mistakes",
    forward_of_changed_x: "added to x",
    forward_in_series: "The update reads what the layer gives back",
    forward_all_scaled: "The scale multiplies the base as well",
    forward_that_adds_in_place: "weight_OI was changed in place",
    forward_that_scales_in_place: "A_RI was changed in place",
    forward_of_rows: "were flattened and are lost",
    forward_of_two_axes: "only the last axis is multiplied, the others stay",
    forward_without_gradients: "cut off from what went in",
    forward(update=lambda x, A, B: x @ A.detach().T @ B.T): "gradient that A_RI gets is not. None reaches it",
    forward(update=lambda x, A, B: x.detach() @ A.T @ B.T): "gradient that x_NI gets is not.",
    forward(join=lambda base, scale, update: (base + scale * update).float()): "dtype torch.float32",
    forward(join=lambda base, scale, update: (base + scale * update).double()): "dtype torch.float64",
    (lambda x, W, b, A, B, *, alpha: x @ (W + B @ A) @ b): "has shape (3,)",
    (lambda x, W, b, A, B, *, alpha: F.linear(x, W, b).tolist()): "should be a tensor and is list",
    (lambda x, W, A, B, *, alpha: x): "must take 6 arguments (x_NI, weight_OI, bias_O, A_RI, B_OR, alpha)",
    (lambda x, W, b, A, B: x): "must take 6 arguments",
}

# --- merging ----------------------------------------------------------------------------------------------------------


def merge_in_one_line(weight_OI, A_RI, B_OR, *, alpha):
    return weight_OI + alpha / len(A_RI) * (B_OR @ A_RI)


def merge_by_addmm(weight, A, B, alpha):
    return torch.addmm(weight, B, A, alpha=alpha / A.shape[0])


def merge_a_copy(weight, A, B, *, alpha):
    merged = weight.clone()
    for r in range(B.shape[1]):
        merged += torch.outer(B[:, r], A[r]) * alpha / B.shape[1]
    return merged


def merge_by_forward(weight, A, B, *, alpha):
    columns = torch.eye(weight.shape[1], dtype=weight.dtype)
    return nn.Parameter((columns @ weight.T + (alpha / len(A)) * columns @ A.T @ B.T).T)


def merging(
    delta=lambda A, B: B @ A,
    scale=lambda alpha, A: alpha / len(A),
    join=lambda W, scale, delta: W + scale * delta,
):
    """The right merge with some part of it replaced."""

    def my_merge(weight, A, B, *, alpha):
        return join(weight, scale(alpha, A), delta(A, B))

    return my_merge


def merge_into_it(weight, A, B, *, alpha):
    weight += alpha / len(A) * B @ A
    return weight


def merge_into_its_data(weight, A, B, *, alpha):
    weight.data.add_(B @ A, alpha=alpha / len(A))
    return weight.clone()


def merge_that_scales_b(weight, A, B, *, alpha):
    B *= alpha / len(A)
    return weight + B @ A


def merge_twice(weight, A, B, *, alpha):
    merged = merge_in_one_line(weight, A, B, alpha=alpha)
    return merge_in_one_line(merged, A, B, alpha=alpha)


def merge_without_return(weight, A, B, *, alpha):
    weight.clone().add_(B @ A)


RIGHT_MERGES = [merge_in_one_line, merge_by_addmm, merge_a_copy, merge_by_forward]
WRONG_MERGES = {
    merge_into_it: "weight_OI was changed in place",
    merge_into_its_data: "weight_OI was changed in place",
    merge_that_scales_b: "B_OR was changed in place",
    merging(delta=lambda A, B: A @ B): "in the wrong order: A reads x first",
    merging(delta=lambda A, B: (B @ A).T): "The update is transposed",
    merging(delta=lambda A, B: A.T @ B.T): "The update is transposed",
    merging(delta=lambda A, B: (A @ B).T): "in the wrong order, and transposed",
    merging(delta=lambda A, B: B @ A.T): "A is the wrong way round",
    merging(delta=lambda A, B: B.T @ A): "B is the wrong way round",
    merging(delta=lambda A, B: B * A): "number by number",
    merging(scale=lambda alpha, A: 1): "The update is not scaled",
    merging(scale=lambda alpha, A: alpha): "scaled by alpha alone",
    merging(scale=lambda alpha, A: len(A) / alpha): "upside down",
    merging(scale=lambda alpha, A: alpha / math.sqrt(len(A))): "rank-stabilised",
    merging(scale=lambda alpha, A: alpha / A.shape[1]): "divided by the channels that come in",
    merging(scale=lambda alpha, A: (alpha / len(A)) ** 2): "The scale is in it twice",
    merging(scale=lambda alpha, A: alpha / 5): "the update is scaled by 2: how do both enter?",
    merge_twice: "The update is added twice",
    merging(join=lambda W, scale, delta: scale * delta): "The weight is missing",
    merging(join=lambda W, scale, delta: scale * (W + delta)): "The scale multiplies the weight as well",
    merging(join=lambda W, scale, delta: W - scale * delta): "The update is subtracted",
    merging(join=lambda W, scale, delta: W): "that is the weight as it was",
    merging(join=lambda W, scale, delta: W.T + scale * delta): "The weight is transposed",
    merging(
        join=lambda W, scale, delta: (W + scale * delta).T
    ): "The weight is transposed. The update is transposed: it is [in, out] and should be [out, in]",
    merging(
        delta=lambda A, B: (B @ A).T, scale=lambda alpha, A: 1
    ): "In a square layer no error says so. The update is not scaled",
    merging(join=lambda W, scale, delta: W + (scale * delta).round()): "none of the usual mistakes",
    merging(
        delta=lambda A, B: A.T @ B if A.shape == B.T.shape and A.shape[0] != A.shape[1] else B @ A
    ): "which axis meets which?",
    merging(join=lambda W, scale, delta: (W + scale * delta).float()): "dtype torch.float32",
    merging(join=lambda W, scale, delta: (W + scale * delta).int()): "dtype torch.int32",
    merging(join=lambda W, scale, delta: nn.Linear(3, 3)): "should be a tensor and is Linear",
    merge_without_return: "should be a tensor and is NoneType",
    (lambda weight, A, B: weight): "must take 4 arguments (weight_OI, A_RI, B_OR, alpha)",
}

# --- count before you build -------------------------------------------------------------------------------------------


def count_by_formula(strategy, *, d_model, n_layers, d_ff, rank=8, length=16, bottleneck=32):
    if strategy == "lora":
        return n_layers * 2 * rank * 2 * d_model
    if strategy == "prefix":
        return length * n_layers * 2 * d_model
    if strategy == "adapter":
        return n_layers * 2 * (2 * d_model * bottleneck + bottleneck + d_model)
    return n_layers * (7 * d_model + d_ff) + d_model


def count_by_listing(strategy, d_model, n_layers, d_ff, rank=8, length=16, bottleneck=32):
    bottlenecks = [(d_model, bottleneck), (bottleneck,), (bottleneck, d_model), (d_model,)]
    block = {
        "lora": [(rank, d_model), (d_model, rank)] * 2,
        "prefix": [(length, d_model)] * 2,
        "adapter": bottlenecks * 2,
        "bitfit": [(d_model,)] * 4 + [(d_model,), (d_ff,), (d_model,), (d_model,)],
    }[strategy]
    once = [(d_model,)] if strategy == "bitfit" else []
    return np.int64(sum(math.prod(shape) for shape in block * n_layers + once))


def count_on_a_model(strategy, *, d_model, n_layers, d_ff, rank=8, length=16, bottleneck=32):
    settings = {
        "lora": {"rank": rank, "targets": ["query", "value"]},
        "prefix": {"length": length, "hidden": None},
        "adapter": {"bottleneck": bottleneck},
        "bitfit": {},
    }[strategy]
    config = TransformerConfig(3, d_model, n_layers, n_heads=2, d_ff=d_ff, max_len=length + 9)
    with torch.device("meta"):
        model = Encoder(config, head=False)
    peft.apply(model, peft.strategy(strategy, **settings))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count(of, number):
    """Right but for one strategy: number(d_model, n_layers, d_ff, its own setting)."""

    def my_count(strategy, *, d_model, n_layers, d_ff, rank=8, length=16, bottleneck=32):
        sizes = {"d_model": d_model, "n_layers": n_layers, "d_ff": d_ff}
        own = {"lora": rank, "prefix": length, "adapter": bottleneck, "bitfit": None}[of]
        if strategy == of:
            return number(*sizes.values(), own)
        return count_by_formula(strategy, **sizes, rank=rank, length=length, bottleneck=bottleneck)

    return my_count


def count_with_prefix_for_lora(strategy, **sizes):
    return count_by_formula("prefix" if strategy == "lora" else strategy, **sizes)


def count_some(*written):
    def my_count(strategy, **sizes):
        if strategy not in written:
            raise NotImplementedError
        return count_by_formula(strategy, **sizes)

    return my_count


def count_without_defaults(strategy, *, d_model, n_layers, d_ff, rank, length, bottleneck):
    return 0


def count_of_a_wrong_rank(strategy, *, d_model, n_layers, d_ff, rank=8, length=16, bottleneck=32):
    sizes = {"d_model": d_model, "n_layers": n_layers, "d_ff": d_ff}
    return count_by_formula(strategy, **sizes, rank=8, length=length, bottleneck=bottleneck)


def count_for_bert_base(strategy, *, d_model, n_layers, d_ff, rank=8, length=16, bottleneck=32):
    sizes = {"d_model": d_model, "n_layers": n_layers, "d_ff": 4 * d_model}
    return count_by_formula(strategy, **sizes, rank=rank, length=length, bottleneck=bottleneck)


RIGHT_COUNTS = [count_by_formula, count_by_listing, count_on_a_model]
WRONG_COUNTS = {
    count("lora", lambda d, n, f, r: 2 * n * r * d): "Half is missing. An update is made of two matrices",
    count("lora", lambda d, n, f, r: n * r * d): "Three quarters are missing",
    count("lora", lambda d, n, f, r: 6 * n * r * d): "The key is counted as well",
    count("lora", lambda d, n, f, r: 8 * n * r * d): "not at all four layers of attention",
    count("lora", lambda d, n, f, r: n * (8 * r * d + 2 * r * (d + f))): "Every linear layer is counted",
    count("lora", lambda d, n, f, r: 4 * r * d): "Counted for one layer of the model",
    count("lora", lambda d, n, f, r: 2 * n * d * d): "they stay frozen, only A and B train",
    count("lora", lambda d, n, f, r: n * (4 * r * d + 2 * d)): "The biases of query and value",
    count("lora", lambda d, n, f, r: 4 * n * (r + d)): "The sides of each matrix are added",
    count("lora", lambda d, n, f, r: 4 * n * r * r): "The rank is squared",
    count("prefix", lambda d, n, f, p: n * p * d): "each position has a key and a value",
    count("prefix", lambda d, n, f, p: 2 * p * d): "Counted for one layer of the model",
    count("prefix", lambda d, n, f, p: p * d): "as prompt tuning trains it",
    count("prefix", lambda d, n, f, p: 2 * n * d): "The length is forgotten",
    count("prefix", lambda d, n, f, p: 3 * n * p * d): "Queries are counted as well",
    count("adapter", lambda d, n, f, w: n * (2 * d * w + w + d)): "a block has two bottlenecks",
    count("adapter", lambda d, n, f, w: 4 * n * d * w): "The biases are forgotten",
    count("adapter", lambda d, n, f, w: 2 * n * d * w): "one bottleneck a block, and the biases",
    count("adapter", lambda d, n, f, w: 2 * n * (d * w + w)): "The way up is missing",
    count("adapter", lambda d, n, f, w: 2 * n * (2 * d * w + 2 * w)): "that differs between down and up",
    count("adapter", lambda d, n, f, w: 2 * n * (2 * d * w + w)): "The bias of the way up is forgotten",
    count("adapter", lambda d, n, f, w: 2 * (2 * d * w + w + d)): "Counted for one layer of the model",
    count("adapter", lambda d, n, f, w: n * (2 * (2 * d * w + w + d) + 4 * d)): "The LayerNorms are counted as well",
    count(
        "adapter", lambda d, n, f, w: n * (2 * d * w + w + d + 2 * f * w + w + f)
    ): "The second bottleneck reads what the feed-forward layer gives back",
    count("bitfit", lambda d, n, f, _: 7 * n * d + d): "The bias of the intermediate layer is forgotten",
    count("bitfit", lambda d, n, f, _: n * (5 * d + f)): "The LayerNorms are forgotten",
    count("bitfit", lambda d, n, f, _: n * (5 * d + f) + d): "The LayerNorms of the blocks are forgotten",
    count("bitfit", lambda d, n, f, _: n * (7 * d + f)): "The LayerNorm behind the embeddings is forgotten",
    count("bitfit", lambda d, n, f, _: 7 * d + f + d): "Counted for one layer of the model",
    count("bitfit", lambda d, n, f, _: n * (8 * d + f)): "All is multiplied by n_layers",
    count("bitfit", lambda d, n, f, _: n * (9 * d + f) + 2 * d): "The LayerNorms' weights are counted as well",
    count("bitfit", lambda d, n, f, _: n * (6 * d + f) + d): "A bias of d_model numbers is missing in each block",
    count("bitfit", lambda d, n, f, _: 8 * n * d + d): "that of the intermediate layer is wider",
    count("bitfit", lambda d, n, f, _: 2 * n * d): "Only query and value are counted",
    count("bitfit", lambda d, n, f, _: n * (4 * d * d + 2 * d * f)): "Write down each matrix and vector",
    count("adapter", lambda d, n, f, w: 4 * n * d * w / 2 * 2 + 2 * n * (w + d)): "The number is right, and a float",
    count("prefix", lambda d, n, f, p: 2 * n * p * d / 1e9): "That looks like a share",
    count("prefix", lambda d, n, f, p: torch.tensor(2 * n * p * d)): "The number is a tensor",
    count("prefix", lambda d, n, f, p: f"{2 * n * p * d:,}"): "should be an int and is str",
    count("prefix", lambda d, n, f, p: True): "should be an int and is bool",
    count("bitfit", lambda d, n, f, _: None): "Nothing comes back",
    count("prefix", lambda d, n, f, p: float("nan")): "Write down each matrix and vector",
    count_with_prefix_for_lora: "That is the number for 'prefix'",
    count_of_a_wrong_rank: "Right where rank is left to its default",
    count_for_bert_base: "Right for 1 of 4 encoders",
    count_some("lora", "bitfit"): "lora, bitfit: right. Not written yet: prefix, adapter.",
    count_without_defaults: "missing 3 required keyword-only arguments",
    (lambda strategy: 0): "must take 7 arguments (strategy, d_model, n_layers, d_ff, rank, length, bottleneck)",
}

# --- prefix attention -------------------------------------------------------------------------------------------------


def joined(before, text, dim=2):
    return torch.cat([before.expand(len(text), -1, -1, -1), text], dim)


def prefix_in_front(q_BHQD, k_BHKD, v_BHKD, prefix_k_HPD, prefix_v_HPD, may_attend_BQK):
    everyone_BQP = may_attend_BQK.new_ones(*may_attend_BQK.shape[:2], prefix_k_HPD.shape[1])
    seen_BQK = torch.cat([everyone_BQP, may_attend_BQK], dim=-1)
    return attend(q_BHQD, joined(prefix_k_HPD, k_BHKD), joined(prefix_v_HPD, v_BHKD), seen_BQK)


def prefix_behind(q, k, v, prefix_k, prefix_v, may_attend):
    def behind(text, prefix):
        return torch.cat([text, prefix[None].repeat(len(text), 1, 1, 1)], dim=2)

    seen = F.pad(may_attend, (0, prefix_k.shape[1]), value=True)
    return F.scaled_dot_product_attention(q, behind(k, prefix_k), behind(v, prefix_v), seen[:, None])


def prefix_by_parts(q, k, v, prefix_k, prefix_v, may_attend):
    scale = q.shape[-1] ** -0.5
    to_prefix = torch.einsum("bhqd,hpd->bhqp", q, prefix_k) * scale
    to_text = (q @ k.mT * scale).masked_fill(~may_attend[:, None], -math.inf)
    weights = torch.cat([to_prefix, to_text], -1).softmax(-1)
    split = prefix_k.shape[1]
    return torch.einsum("bhqp,hpd->bhqd", weights[..., :split], prefix_v) + weights[..., split:] @ v


def prefix_with(
    keys=joined,
    values=joined,
    seen=lambda may, n: F.pad(may, (n, 0), value=True),
    scores=lambda q, k: q @ k.mT / q.shape[-1] ** 0.5,
    hide=lambda scores, seen: scores.masked_fill(~seen, -1e9),
    weights=lambda scores: scores.softmax(-1),
    mix=lambda weights, seen, values: weights @ values,
):
    """The right attention with some part of it replaced."""

    def my_attention(q, k, v, prefix_k, prefix_v, may_attend):
        seen_BHQK = seen(may_attend, prefix_k.shape[1])[:, None]
        scored = hide(scores(q, keys(prefix_k, k)), seen_BHQK)
        return mix(weights(scored), seen_BHQK, values(prefix_v, v))

    return my_attention


def behind(prefix, text):
    return torch.cat([text, prefix.expand(len(text), -1, -1, -1)], 2)


def without(prefix, text):
    return text


def added(prefix, text):
    return text + prefix


def zeros(prefix, text):
    return joined(torch.zeros_like(prefix), text)


def heads_as_rows(prefix, text):
    return torch.cat([prefix[:, None].expand(-1, text.shape[1], -1, -1), text], 2)


def mask_behind(may, n):
    return F.pad(may, (0, n), value=True)


def mask_as_it_is(may, n):
    return may


def swapped(q, k, v, prefix_k, prefix_v, may_attend):
    return prefix_in_front(q, k, v, prefix_v, prefix_k, may_attend)


def in_two_softmaxes(q, k, v, prefix_k, prefix_v, may_attend):
    everyone = may_attend.new_ones(*may_attend.shape[:2], prefix_k.shape[1])
    return attend(q, k, v, may_attend) + attend(
        q, joined(prefix_k, k[:, :, :0]), joined(prefix_v, v[:, :, :0]), everyone
    )


def for_the_first_row(q, k, v, prefix_k, prefix_v, may_attend):
    out = attend(q, k, v, may_attend)
    first = prefix_in_front(q[:1], k[:1], v[:1], prefix_k, prefix_v, may_attend[:1])
    return torch.cat([first, out[1:]])


def in_place(q, k, v, prefix_k, prefix_v, may_attend):
    q /= q.shape[-1] ** 0.5
    return prefix_with(scores=lambda q, k: q @ k.mT)(q, k, v, prefix_k, prefix_v, may_attend)


def mask_in_place(q, k, v, prefix_k, prefix_v, may_attend):
    may_attend[:] = True
    return prefix_in_front(q, k, v, prefix_k, prefix_v, may_attend)


def with_heads_merged(*arguments):
    return layers.merge_heads(prefix_in_front(*arguments))


def with_heads_behind(*arguments):
    return prefix_in_front(*arguments).transpose(1, 2)


def with_queries_for_the_prefix(q, k, v, prefix_k, prefix_v, may_attend):
    seen = F.pad(may_attend, (prefix_k.shape[1], 0, prefix_k.shape[1], 0), value=True)
    return attend(joined(prefix_k, q), joined(prefix_k, k), joined(prefix_v, v), seen)


def with_a_prefix_that_is_never_trained(q, k, v, prefix_k, prefix_v, may_attend):
    return prefix_in_front(q, k, v, prefix_k.detach(), prefix_v, may_attend)


def alone_if_it_may_see_no_text(q, k, v, prefix_k, prefix_v, may_attend):
    out = prefix_in_front(q, k, v, prefix_k, prefix_v, may_attend)
    return out.masked_fill(~may_attend.any(-1)[:, None, :, None], 0.0)


def naive_softmax(scores):
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


RIGHT_ATTENTIONS = [prefix_in_front, prefix_behind, prefix_by_parts, prefix_with()]
WRONG_ATTENTIONS = {
    (lambda q, k, v, pk, pv, may: attend(q, k, v, may)): "That is the text alone",
    prefix_with(seen=lambda may, n: F.pad(may, (n, 0), value=False)): "That is the text alone",
    prefix_with(seen=mask_behind): "may_attend is extended at the other end",
    prefix_with(keys=behind, values=behind): "may_attend is extended at the other end",
    prefix_with(values=behind): "Keys and values are joined in different orders",
    prefix_with(keys=behind, seen=mask_behind): "Keys and values are joined in different orders",
    prefix_with(keys=added, values=added, seen=mask_as_it_is): "added to the text's keys and values",
    prefix_with(keys=added, values=without, seen=mask_as_it_is): "added to the text's keys:",
    prefix_with(keys=without, values=added, seen=mask_as_it_is): "added to the text's values:",
    prefix_with(values=zeros): "its values are missing",
    prefix_with(keys=zeros): "its keys are missing",
    swapped: "The prefix's keys and values are exchanged",
    prefix_with(scores=lambda q, k: q @ k.mT): "The scores are not scaled",
    prefix_with(scores=lambda q, k: q @ k.mT / q.shape[-1]): "divided by the channels themselves",
    prefix_with(scores=lambda q, k: q @ k.mT * q.shape[-1] ** 0.5): "The scores are multiplied",
    prefix_with(scores=lambda q, k: q @ k.mT / k.shape[2] ** 0.5): "the root of the number of positions",
    prefix_with(weights=lambda s: s.softmax(-2)): "The softmax runs over the queries",
    prefix_with(weights=lambda s: s.softmax(1)): "The softmax runs over the heads",
    prefix_with(weights=lambda s: s.softmax(0)): "The softmax runs over the rows",
    prefix_with(hide=lambda s, seen: s): "may_attend is not used",
    prefix_with(hide=lambda s, seen: s.masked_fill(seen, -1e9)): "may_attend is inverted",
    prefix_with(seen=lambda may, n: F.pad(~may, (n, 0), value=True)): "may_attend is inverted",
    prefix_with(hide=lambda s, seen: s * seen): "still gets weight",
    prefix_with(hide=lambda s, seen: s + seen): "which hides nothing",
    prefix_with(hide=lambda s, seen: s, mix=lambda w, seen, v: (w * seen) @ v): "the weights no longer add up to 1",
    prefix_with(
        seen=lambda may, n: torch.cat([torch.ones_like(may[..., :1]).expand(-1, -1, n).tril(), may], -1)
    ): "seen step by step",
    prefix_with(seen=lambda may, n: F.pad(may[:1], (n, 0), value=True)): "The first row's may_attend",
    prefix_with(hide=lambda s, seen: s.masked_fill(~seen[:, 0], -1e9)): "may_attend gets no axis for the heads",
    prefix_with(keys=heads_as_rows, values=heads_as_rows): "heads were taken for the rows",
    prefix_with(hide=lambda s, seen: s.masked_fill(~seen, -100.0)): "Right until scores lie far below 0",
    prefix_with(weights=naive_softmax): "exp under- or overflows",
    prefix_with(
        hide=lambda s, seen: s.masked_fill(~seen, -math.inf) * 1, weights=lambda s: s.softmax(-1) * s
    ): "not finite",
    in_two_softmaxes: "a softmax of their own",
    for_the_first_row: "Only the first row sees the prefix",
    alone_if_it_may_see_no_text: "Right until a query may look at no text",
    in_place: "q_BHQD was changed in place",
    mask_in_place: "may_attend_BQK was changed in place",
    with_heads_merged: "The heads are merged already",
    with_heads_behind: "Heads and positions are exchanged",
    with_queries_for_the_prefix: "has no queries of its own",
    prefix_with(mix=lambda w, seen, v: w): "Those are the weights",
    with_a_prefix_that_is_never_trained: "gradient that prefix_k_HPD gets is not. None reaches it",
    prefix_with(mix=lambda w, seen, v: (w @ v).detach()): "cut off from what went in",
    prefix_with(mix=lambda w, seen, v: (w @ v).float()): "dtype torch.float32",
    prefix_with(mix=lambda w, seen, v: (w @ v).tanh()): "none of the usual mistakes",
    prefix_with(keys=lambda p, t: joined(p, t, dim=1)): "is more positions to look at",
    prefix_with(keys=lambda p, t: joined(p, t, dim=-1)): "is more positions to look at",
    prefix_with(values=without): "is more positions to look at",
    prefix_with(seen=mask_as_it_is): "is more positions to look at",
    prefix_with(keys=lambda p, t: torch.cat([p, t], 1)): "lacks the axis of the batch",
    (lambda q, k, v, pk, pv: q): "must take 6 arguments (q_BHQD, k_BHKD, v_BHKD, prefix_k_HPD",
}

# --- BitFit's choice --------------------------------------------------------------------------------------------------


def names_by_last_part(model):
    return [name for name, _ in model.named_parameters() if name.split(".")[-1] == "bias"]


def names_module_by_module(model):
    found, seen = [], set()
    for path, module in model.named_modules():
        for name, p in module._parameters.items():
            if name == "bias" and p is not None and p not in seen:
                seen.add(p)
                found.append(f"{path}.{name}".lstrip("."))
    return tuple(found[::-1])


def names_by_suffix(model):
    return [name for name, _ in model.named_parameters() if name == "bias" or name.endswith(".bias")]


def names_where(keep):
    """All names of parameters that keep(name, parameter, module) keeps."""

    def my_names(model):
        return [
            name for name, p in model.named_parameters() if keep(name, p, model.get_submodule(name.rpartition(".")[0]))
        ]

    return my_names


def is_called_bias(name):
    return name.rpartition(".")[2] == "bias"


def names_of_layers(*types):
    return names_where(lambda n, p, module: is_called_bias(n) and isinstance(module, types))


def names_of_everything(model):
    return [n for n, _ in model.named_parameters(remove_duplicate=False) if is_called_bias(n)]


def names_of_a_state(model):
    return [name for name in model.state_dict() if is_called_bias(name)]


def names_that_freeze(model):
    for name, p in model.named_parameters():
        p.requires_grad = is_called_bias(name)
    return names_by_last_part(model)


def names_in_evaluation_mode(model):
    return names_by_last_part(model.eval())


def names_that_zero(model):
    for name, p in model.named_parameters():
        p.data.add_(is_called_bias(name))
    return names_by_last_part(model)


def names_with_a_dot_before(model):
    found = [f"{path}.bias" for path, m in model.named_modules() if isinstance(m._parameters.get("bias"), nn.Parameter)]
    return found


def then(change):
    """Right names, changed afterwards."""
    return lambda model: change(model, names_by_last_part(model))


RIGHT_PICKS = [names_by_last_part, names_module_by_module, names_by_suffix]
WRONG_PICKS = {
    names_where(lambda n, p, m: "bias" in n): "bias_table is no bias: its own name is 'bias_table', which only holds",
    names_where(lambda n, p, m: n.endswith("bias")): "r_w_bias is no bias: its own name is 'r_w_bias'",
    names_where(
        lambda n, p, m: "bias" in n.split(".")
    ): "outputs.bias.weight is no bias: the word is in the name of its layer",
    names_where(lambda n, p, m: n.endswith(".bias")): "without a dot before it",
    names_where(lambda n, p, m: ".bias" in n): "outputs.bias.weight is no bias",
    names_of_layers(nn.Linear): "a LayerNorm has a bias as well",
    names_of_layers(nn.Linear, nn.LayerNorm): "cls.predictions.bias is missing: it lies in a MaskedHead",
    names_where(
        lambda n, p, m: is_called_bias(n) and type(m).__name__ != "Conv1D"
    ): "GPT-2's layers are Conv1D and no nn.Linear",
    names_of_layers(nn.Linear, nn.LayerNorm, layers.MaskedHead): "GPT-2's layers are Conv1D and no nn.Linear",
    names_where(lambda n, p, m: p.dim() == 1): "a LayerNorm's weight is a vector, too",
    names_where(lambda n, p, m: p.dim() == 1 and not isinstance(m, nn.LayerNorm)): "a LayerNorm has a bias as well",
    names_where(lambda n, p, m: p.dim() == 1 and not n.endswith("weight")): "gain is no bias: not every vector is one",
    names_where(lambda n, p, m: is_called_bias(n) and p.dim() == 1): "attention.bias is missing: it is a matrix",
    names_where(lambda n, p, m: is_called_bias(n) and "LayerNorm" not in n): "a LayerNorm has a bias as well",
    names_where(
        lambda n, p, m: is_called_bias(n) and "cls" not in n
    ): "cls.predictions.bias and 2 more are missing: every",
    names_where(lambda n, p, m: is_called_bias(n) and p.requires_grad): "the model is frozen here",
    names_where(lambda n, p, m: "weight" not in n): "gain is no bias",
    names_of_everything: "It is one parameter with 2 names, 0.bias and 2.0.bias",
    names_of_a_state: "attention.mask.bias is a buffer",
    names_with_a_dot_before: "'.bias' begins with a dot",
    names_that_freeze: "requires_grad was changed",
    names_in_evaluation_mode: "between training and evaluation mode",
    names_that_zero: "The values of the parameters were changed",
    then(lambda m, names: [dict(m.named_parameters())[n] for n in names]): "holds the parameters themselves",
    then(lambda m, names: [(n, None) for n in names]): "pairs of a name and a parameter",
    then(lambda m, names: ["bias"] * len(names)): "'bias' is the end of a name: give the whole path",
    then(lambda m, names: [n.removesuffix(".bias") for n in names]): "is the name of a layer",
    then(lambda m, names: ["model." + n for n in names]): "No parameter of this model is called",
    then(lambda m, names: names + names[:1]): "is named twice. Each belongs in the list once",
    then(lambda m, names: names[:-1]): "is missing",
    then(lambda m, names: (n for n in names)): "that is generator",
    then(lambda m, names: dict.fromkeys(names)): "that is dict",
    then(lambda m, names: ", ".join(names)): "that is str",
    then(lambda m, names: [1, 2]): "one element is int",
    then(lambda m, names: []): "Nothing is named that is a bias: embeddings.LayerNorm.bias is one",
    (lambda: None): "must take 1 arguments (model)",
}

# --- what holds for every check ---------------------------------------------------------------------------------------

EXERCISES = {
    "lora_forward": (checks.lora_forward, RIGHT_FORWARDS, WRONG_FORWARDS),
    "merge_lora": (checks.merge_lora, RIGHT_MERGES, WRONG_MERGES),
    "count_trainable": (checks.count_trainable, RIGHT_COUNTS, WRONG_COUNTS),
    "prefix_attention": (checks.prefix_attention, RIGHT_ATTENTIONS, WRONG_ATTENTIONS),
    "pick_biases": (checks.pick_biases, RIGHT_PICKS, WRONG_PICKS),
}
RIGHT, WRONG = cases_of(EXERCISES)
NAMES = list(EXERCISES)
REFERENCES = [
    low_rank.lora_reference,
    low_rank.merge_reference,
    counting.count_reference,
    prefixes.prefix_reference,
    attend,
    biases.biases_reference,
    peft.BitFit.own_parameters,
]


def attempt(name, function):
    return EXERCISES[name][0](function)


@pytest.fixture(autouse=True, scope="module")
def _models_are_counted():
    """torch loads much with the first tensor of a process that has a shape and no memory, which takes seconds."""
    counting.verify_count_trainable(counting.count_reference)


@pytest.mark.parametrize(("name", "function"), RIGHT, ids=[f"{name}-{f.__name__}" for name, f in RIGHT])
def test_a_right_answer_is_accepted_and_given_back(name, function, capsys):
    assert_accepted(attempt, name, function, capsys)


@pytest.mark.parametrize(("name", "function", "words"), WRONG, ids=[f"{name}-{words}" for name, _, words in WRONG])
def test_a_wrong_answer_is_diagnosed_and_replaced(name, function, words, capsys):
    assert_diagnosed(attempt, name, function, words, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_wrong_answer_is_replaced_by_passes_the_check(name, capsys):
    assert_replaced_by_what_passes(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_different_diagnoses(name):
    _, right, wrong = EXERCISES[name]
    assert len(wrong) >= 8
    assert_enough_diagnoses(right, wrong)


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_exercise_is_not_attempted(name, capsys):
    assert_not_attempted(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_a_crash_is_reported_with_its_line(name, capsys):
    assert_crash_is_reported(attempt, name, capsys)


ANSWERS = [
    *HOSTILE,
    ["bias", HalfMade()],
    torch.full((2, 2, 3, 4), math.inf),
    torch.zeros(3, 3),
    torch.zeros(2, 2, 3, 4),
    torch.zeros(2, 2, 3, 4, device="meta"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_nothing_that_comes_back_raises(name, answer, capsys):
    attempt(name, lambda *_arguments, **_options: answer)
    assert f"✗ {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_function_of_these_arguments_is_refused(name, capsys):
    assert_no_function_is_refused(attempt, name, capsys)


@pytest.mark.parametrize("name", few(NAMES, "merge_lora", "count_trainable"))
def test_the_verdict_never_holds_the_solution(name, capsys):
    codes = (*REFERENCES, *(right for _, right in RIGHT))
    assert_solution_is_hidden(attempt, name, EXERCISES[name][2], codes, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_a_check_leaves_the_random_generators_and_grad_mode_alone(name, capsys):
    assert_generators_and_grad_mode_are_left_alone(attempt, name, EXERCISES[name][1][0])


@pytest.mark.parametrize("name", NAMES)
def test_a_check_works_where_gradients_are_off(name, capsys):
    assert_works_where_gradients_are_off(attempt, name, EXERCISES[name][1][0], capsys)


# --- the references are the library's, and what the checks hand over shows what it should ----------------------------


def test_the_reference_forward_and_merge_do_what_the_library_does():
    layer = nn.Linear(6, 5)
    peft.apply(nn.Sequential(layer), peft.LoRA(rank=3, alpha=7, targets=["0"]))
    update = layer.adapters["default"]
    nn.init.normal_(update.B)
    x_BTI = torch.randn(2, 4, 6)
    forward = low_rank.lora_reference(x_BTI, layer.weight, layer.bias, update.A, update.B, alpha=7)
    torch.testing.assert_close(forward, layer(x_BTI))
    merged = low_rank.merge_reference(layer.weight, update.A, update.B, alpha=7)
    torch.testing.assert_close(merged, layer.weight + update.delta())
    torch.testing.assert_close(F.linear(x_BTI, merged, layer.bias), layer(x_BTI))


def test_the_reference_attention_does_what_a_prefix_does_in_a_model():
    model = Encoder(TransformerConfig(20, d_model=8, n_layers=1, n_heads=2, d_ff=12, max_len=16)).eval()
    ids_BT, is_real_BT = torch.randint(20, (3, 5)), torch.arange(5) < torch.tensor([[5], [3], [4]])
    seen = {}
    attention = model.encoder["layer"][0].attention
    attention.output["dense"].register_forward_pre_hook(lambda _, args: seen.update(mixed=args[0]))
    for name in ("query", "key", "value"):
        attention.self[name].register_forward_hook(lambda _, args, out, name=name: seen.update({name: out}))
    peft.apply(model, peft.Prefix(length=4, hidden=None))
    may_attend_BQK = is_real_BT[:, None].expand(-1, 5, -1)
    model(ids_BT, may_attend_BQK)
    text = [layers.split_heads(seen[name], 2) for name in ("query", "key", "value")]
    prefix = [part[0] for part in model.adapters["default"].cache(1, torch.float32)[0]]
    mixed = layers.merge_heads(prefixes.prefix_reference(*text, *prefix, may_attend_BQK))
    torch.testing.assert_close(mixed, seen["mixed"])


def test_what_is_counted_on_the_meta_device_is_what_a_real_model_trains():
    sizes = {"d_model": 12, "n_layers": 2, "d_ff": 20}
    model = Encoder(TransformerConfig(30, n_heads=3, max_len=40, **sizes), head=False)
    assert peft.apply(model, peft.BitFit()).n_trained == counting.count_reference("bitfit", **sizes)
    model = Encoder(TransformerConfig(30, n_heads=3, max_len=40, **sizes), head=False)
    applied = peft.apply(model, peft.LoRA(rank=8, targets=["query", "value"]))
    assert applied.n_trained == counting.count_reference("lora", **sizes)
    with pytest.raises(ValueError, match="'full' is unknown: choose one of lora, prefix"):
        counting.count_reference("full", **sizes)


@pytest.mark.parametrize("strategy", counting.SETTING)
def test_each_mistake_in_counting_differs_from_the_right_number_and_from_another_mistake(strategy):
    wanted = [counting.count_reference(strategy, **plan.arguments()) for plan in counting.PLANS]
    seen = {tuple(wanted): "right"}
    for cause, number in counting._mistakes(strategy):
        counts = tuple(number(plan) for plan in counting.PLANS)
        assert counts not in seen, (cause, seen.get(counts))
        seen[counts] = cause


@pytest.mark.parametrize(
    ("bases", "updates"), [(low_rank.BASES, low_rank.UPDATES), (low_rank.WEIGHTS, low_rank.DELTAS)]
)
def test_each_single_mistake_in_lora_is_named_and_no_other(bases, updates):
    def computed(case, *pieces):
        base, update, scale = (compute(case) for _, compute in pieces)
        return torch.zeros_like(bases[0][1](case)) + base + scale * update

    square, wide = low_rank.layers()[:2]
    tables = (bases, updates, low_rank.SCALES)
    for table in tables:
        for piece in table[1:]:
            case = wide if "the other axis of" in piece[0] else square
            given = computed(case, *(piece if other is table else other[0] for other in tables))
            assert low_rank.explained(given, case, bases, updates) == piece[0]


def test_each_mistake_in_prefix_attention_is_told_from_the_right_way_where_it_is_looked_for():
    case = next(iter(prefixes.cases().values()))
    right = prefixes.prefix_reference(*case.values())
    seen = []
    for cause, mistaken in prefixes._mistakes(case):
        output = mistaken()
        assert not tensors.near(output, right), cause
        for other, said in seen:
            assert said == cause or not tensors.near(output, other), (cause, said)
        seen.append((output, cause))


def test_the_models_of_the_check_have_what_a_rule_trips_over():
    models = list(biases.models().values())
    names = [name for model in models for name, _ in model.named_parameters()]
    for name in ("bias", "r_w_bias", "relative_attention_bias.weight", "outputs.bias.weight", "cls.predictions.bias"):
        assert name in names
    assert any(".c_attn.bias" in name for name in names) and any("LayerNorm.bias" in name for name in names)
    assert any(len(list(m.named_parameters(remove_duplicate=False))) > len(list(m.named_parameters())) for m in models)
    assert any(not p.requires_grad for model in models for p in model.parameters())


def test_a_difference_shows_a_place_that_differs():
    wanted = torch.zeros(2, 3, 4)
    wanted[0, 0, 0] = 1
    given = wanted.clone()
    given[1, 2, 3] = 5
    assert tensors.difference(given, wanted) == {
        "wanted": "at [1, 2]: [0.0, 0.0, 0.0, 0.0]",
        "given": "at [1, 2]: [0.0, 0.0, 0.0, 5.0]",
    }
    given[0, 1, 0] = math.nan
    assert "nan" in tensors.difference(given, wanted)["given"]
