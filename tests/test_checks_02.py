"""The checks of chapter 2 say what is wrong, accept every right answer, and let nothing of a learner's code reach the
notebook."""

import copy
import itertools
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
    ids_of,
    untouched,
)
from few import few
from torch import nn
from torch.nn import functional as F

from course_lib import checkpoint, checks, optimizers, schedules, training
from course_lib.checks import losses, recipe, report, resuming, stepping
from course_lib.losses import token_loss
from course_lib.model import Encoder
from course_lib.training import batch_loss
from course_lib.vocabulary import IGNORE_INDEX

# --- warm-up and cosine -----------------------------------------------------------------------------------------------


def rate_in_three_branches(step, *, warmup, total, floor=0.0):
    if step < warmup:
        return (step + 1) / warmup
    if step >= total:
        return floor
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def rate_by_squared_cosine(step, warmup, total, floor=0.0):
    gone = np.clip((step - warmup) / max(1, total - warmup), 0, 1)
    rising = min(1, (step + 1) / warmup) if warmup > 0 else 1
    return float(rising * np.interp(np.cos(np.pi / 2 * gone) ** 2, [0, 1], [floor, 1]))


def rate(
    rising=lambda s, w: (s + 1) / w,
    gone=lambda s, w, t: (s - w) / max(1, t - w),
    wave=lambda p: (1 + math.cos(math.pi * p)) / 2,
    mix=lambda y, f: f + (1 - f) * y,
    last=1.0,
    until=lambda s, w: s < w,
):
    """A schedule with some part of it replaced; its name is for the test's id."""

    def my_rate(step, *, warmup, total, floor=0.0):
        if warmup and until(step, warmup):
            return rising(step, warmup)
        return mix(wave(min(last, gone(step, warmup, total))), floor)

    return my_rate


def rate_from_a_cosine_that_never_waits(step, *, warmup, total, floor=0.0):
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rising * (floor + (1 - floor) * (1 + math.cos(math.pi * min(1, step / total))) / 2)


def rate_with_a_negative_way(step, *, warmup, total, floor=0.0):
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    gone = min(1, (step - warmup) / max(1, total - warmup))
    return rising * (floor + (1 - floor) * (1 + math.cos(math.pi * gone)) / 2)


def rate_that_always_divides(step, *, warmup, total, floor=0.0):
    rising = (step + 1) / warmup
    return rising if step < warmup else rate_in_three_branches(step, warmup=warmup, total=total, floor=floor)


def rate_that_divides_by_what_is_left(step, *, warmup, total, floor=0.0):
    gone = max(0, step - warmup) / (total - warmup)
    return rate_in_three_branches(step, warmup=warmup, total=total, floor=floor) + 0 * gone


def rate_that_is_a_tensor(step, *, warmup, total, floor=0.0):
    return torch.tensor(rate_in_three_branches(step, warmup=warmup, total=total, floor=floor))


def rate_without_a_warmup(step, *, warmup, total, floor=0.0):
    return rate_in_three_branches(max(step, warmup), warmup=warmup, total=total, floor=floor)


def rate_of_zero_behind_the_end(step, *, warmup, total, floor=0.0):
    return 0.0 if step > total else rate_in_three_branches(step, warmup=warmup, total=total, floor=floor)


def rate_that_skips_a_step(step, *, warmup, total, floor=0.0):
    return rate_in_three_branches(step + 1, warmup=warmup, total=total, floor=floor)


def rate_that_starts_at_the_floor(step, *, warmup, total, floor=0.0):
    right = rate_in_three_branches(step, warmup=warmup, total=total, floor=floor)
    return floor + (1 - floor) * right if step < warmup else right


RIGHT_RATES = [rate_in_three_branches, rate_by_squared_cosine, rate()]
WRONG_RATES = {
    rate(rising=lambda s, w: s / w): "Step 0 has rate 0",
    rate(rising=lambda s, w: s / w, until=lambda s, w: s <= w): "Step 0 has rate 0",
    rate(rising=lambda s, w: (s + 1) / (w + 1)): "one step too many",
    rate(rising=lambda s, w: (s + 1) // w): "The fraction is lost",
    rate(rising=lambda s, w: (s + 2) / w): "The warm-up is one step ahead",
    rate(until=lambda s, w: s <= w): "it ends before step `warmup`",
    rate(rising=lambda s, w: ((s + 1) / w) ** 2): "climbs in `warmup` equal steps",
    rate_that_starts_at_the_floor: "The warm-up starts from the floor",
    rate_without_a_warmup: "There is no warm-up",
    rate_from_a_cosine_that_never_waits: "counted from step 0",
    rate(gone=lambda s, w, t: s / t): "counted from step 0",
    rate_with_a_negative_way: "the cosine's way is negative",
    rate(gone=lambda s, w, t: (s - w) / t): "divided by the whole run's length",
    rate(gone=lambda s, w, t: (s - w) / max(1, t - w - 1)): "arrives one step early",
    rate(gone=lambda s, w, t: (s - w + 1) / max(1, t - w)): "nothing of the way has been gone",
    rate(last=math.inf): "rises again after the last step",
    rate_of_zero_behind_the_end: "Behind the end the factor stays",
    rate(wave=lambda p: (1 + math.cos(2 * math.pi * p)) / 2): "a whole wave",
    rate(wave=lambda p: (1 + math.cos(math.pi * p / 2)) / 2): "a quarter of a wave",
    rate(wave=lambda p: math.cos(math.pi * p / 2)): "a quarter of a wave",
    rate(wave=lambda p: (1 + math.cos(180 * p)) / 2): "in degrees",
    rate(wave=lambda p: (1 + math.cos(p)) / 2): "a small part of a wave",
    rate(wave=lambda p: math.cos(math.pi * p)): "falls from 1 to -1",
    rate(wave=lambda p: 1 + math.cos(math.pi * p)): "lifted and not halved",
    rate(wave=lambda p: (1 - math.cos(math.pi * p)) / 2): "upside down",
    rate(wave=lambda p: 1 - p): "a straight line",
    rate(wave=lambda p: (1 - p) ** 2): "half a wave of a cosine, from 1 down to the floor",
    rate(mix=lambda y, f: y): "The floor is ignored",
    rate(mix=lambda y, f: f + y): "The floor is added on top",
    rate(mix=max): "cut off at the floor",
    rate(mix=lambda y, f: (1 - f) * y): "shrunk and not lifted",
    rate(
        wave=lambda p: 1 - p, mix=lambda y, f: y
    ): "a straight line: the cosine falls slowly, then fast, then slowly. The",
    rate_that_always_divides: "There is no warm-up here, so its length is 0",
    rate_that_divides_by_what_is_left: "nothing left after the warm-up",
    rate_that_is_a_tensor: "is a tensor and should be a plain number",
    rate_that_skips_a_step: "The warm-up is one step ahead",
    (lambda step, *, warmup, total, floor=0.0: "fast"): "should be a number and is str",
    (lambda step, *, warmup, total, floor=0.0: True): "should be a number and is bool",
    (lambda step, *, warmup, total: 1.0): "must take 4 arguments (step, warmup, total, floor)",
}

# --- decay groups -----------------------------------------------------------------------------------------------------


def groups_by_dimension(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() < 2]


def groups_module_by_module(model):
    decayed, spared, seen = [], [], set()
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                (spared if p.squeeze().dim() == 1 else decayed).append(p)
    return tuple(decayed[::-1]), tuple(spared)


def by_name(*parts, fold=False):
    def groups_by_name(model):
        trained = [(n.lower() if fold else n, p) for n, p in model.named_parameters() if p.requires_grad]
        is_spared = [any(part in name for part in parts) for name, _ in trained]
        return (
            [p for (_, p), spare in zip(trained, is_spared, strict=True) if not spare],
            [p for (_, p), spare in zip(trained, is_spared, strict=True) if spare],
        )

    return groups_by_name


def changed(change):
    """Right groups, changed afterwards: change(model, decayed, spared)."""

    def my_groups(model):
        return change(model, *groups_by_dimension(model))

    return my_groups


def groups_by_type(model):
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.weight.requires_grad]
    return linear + tables, groups_by_dimension(model)[1]


def groups_of_linear_layers(model):
    chosen = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if id(p) in chosen], [p for p in trained if id(p) not in chosen]


def groups_with_frozen_ones(model):
    return [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() < 2]


def groups_with_tied_ones_twice(model):
    named = [p for _, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    return [p for p in named if p.dim() > 1], [p for p in named if p.dim() < 2]


def groups_that_freeze(model):
    groups = groups_by_dimension(model)
    for p in groups[1]:
        p.requires_grad_(False)
    return groups


def groups_of_an_optimizer(model):
    decayed, spared = groups_by_dimension(model)
    return [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]


def named(model, decayed):
    return [(n, p) for n, p in model.named_parameters() if p.dim() > 1 and p.requires_grad]


RIGHT_GROUPS = [groups_by_dimension, groups_module_by_module]
WRONG_GROUPS = {
    by_name("bias", "norm", fold=True): "GPT-2 calls its normalisation ln_1",
    by_name("bias", "norm"): "GPT-2 calls its normalisation ln_1",
    by_name("bias", "ln_"): "BERT calls its normalisation LayerNorm, with capitals",
    by_name("bias", "norm", "ln_", "embedding", fold=True): "a table of embeddings is a matrix",
    by_name("bias", "ln_", "wte", "wpe", "LayerNorm"): "2 matrices are spared, such as transformer.wte.weight",
    by_name("ln_", "LayerNorm"): "a bias only shifts",
    by_name("weight", "bias"): "matrices are spared, such as",
    by_name("nothing"): "vectors decay, such as",
    groups_by_type: "no nn.Linear: a rule by type",
    groups_of_linear_layers: "matrices are spared, such as transformer.wte.weight",
    groups_with_frozen_ones: "frozen (requires_grad is False)",
    groups_with_tied_ones_twice: "It is one parameter with 2 names, encoder.embeddings.word_embeddings.weight and",
    groups_that_freeze: "The model was changed",
    groups_of_an_optimizer: "the two lists of parameters themselves",
    changed(lambda m, d, s: (s, d)): "exchanged",
    changed(lambda m, d, s: (d[1:], s)): "transformer.wte.weight is in no group",
    changed(lambda m, d, s: (d, s + d[:2])): "in both groups",
    changed(lambda m, d, s: (d + d[:1], s)): "in a group twice",
    changed(lambda m, d, s: ([n for n, _ in m.named_parameters()], s)): "holds names",
    changed(lambda m, d, s: (named(m, d), s)): "pairs of a name and a parameter",
    changed(lambda m, d, s: ([p.data for p in d], s)): "A copy is no use",
    changed(lambda m, d, s: (list(m.state_dict().values()), [])): "A copy is no use",
    changed(lambda m, d, s: ((p for p in d), s)): "should be a list of parameters, and one is generator",
    changed(lambda m, d, s: ([1, 2], s)): "one element is int",
    changed(lambda m, d, s: d + s): "Give back two values",
}

# --- the loss of a step -----------------------------------------------------------------------------------------------


def loss_in_one_piece(micro_batches):
    logits_NV, labels_N = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    return F.cross_entropy(logits_NV, labels_N)


def loss_by_sums(micro_batches):
    total = sum(F.cross_entropy(logits, labels, reduction="sum") for logits, labels in micro_batches)
    return total / sum((labels != IGNORE_INDEX).sum() for _, labels in micro_batches)


def loss_by_hand(micro_batches):
    picked = [
        logits[n].log_softmax(-1)[label]
        for logits, labels in micro_batches
        for n, label in enumerate(labels.tolist())
        if label != -100
    ]
    return -torch.stack(picked).mean()


def loss_weighted(micro_batches):
    counts = [int((labels != IGNORE_INDEX).sum()) for _, labels in micro_batches]
    means = [F.cross_entropy(*part) for part, n in zip(micro_batches, counts, strict=True) if n]
    return sum(mean * n for mean, n in zip(means, filter(None, counts), strict=True)) / sum(counts)


def loss_weighted_with_nan(micro_batches):
    counts = [int((labels != IGNORE_INDEX).sum()) for _, labels in micro_batches]
    return sum(F.cross_entropy(*part) * n for part, n in zip(micro_batches, counts, strict=True)) / sum(counts)


def means_of(micro_batches):
    return [F.cross_entropy(*part) for part in micro_batches]


def targets_of(micro_batches):
    return sum(int((labels != IGNORE_INDEX).sum()) for _, labels in micro_batches)


def rows_of(micro_batches):
    return sum(len(labels) for _, labels in micro_batches)


def loss_with(scores):
    """Summed over the targets, of scores(logits_NV) in the place of logarithms of probabilities."""

    def my_loss(micro_batches):
        total = sum(F.nll_loss(scores(logits), labels, reduction="sum") for logits, labels in micro_batches)
        return total / targets_of(micro_batches)

    return my_loss


def loss_of_some_live(micro_batches):
    total = sum(F.cross_entropy(*part, reduction="sum").item() for part in micro_batches[:-1])
    return (total + F.cross_entropy(*micro_batches[-1], reduction="sum")) / targets_of(micro_batches)


def loss_with_backward(micro_batches):
    loss = loss_by_sums(micro_batches)
    loss.backward()
    return loss


def loss_in_place(micro_batches):
    for _, labels in micro_batches:
        labels[labels == -100] = 0
    return loss_by_sums(micro_batches)


def loss_that_eats_its_list(micro_batches):
    parts = list(micro_batches)
    micro_batches.clear()
    return loss_by_sums(parts)


def loss_of_first(micro_batches):
    for logits, labels in micro_batches:
        return F.cross_entropy(logits, labels)


def loss_with_padding_as_a_token(micro_batches):
    return loss_by_sums([(logits, labels.clamp(min=0)) for logits, labels in micro_batches])


def loss_doubled_gradient(micro_batches):
    loss = loss_by_sums(micro_batches)
    return 2 * loss - loss.detach()


RIGHT_LOSSES = [loss_in_one_piece, loss_by_sums, loss_by_hand, loss_weighted]
WRONG_LOSSES = {
    (lambda m: torch.stack(means_of(m)).mean()): "a mean of means",
    (lambda m: torch.stack(means_of(m)).nanmean()): "a mean of means",
    (lambda m: sum(means_of(m))): "are added up",
    (lambda m: loss_by_sums(m) * targets_of(m)): "The sum is not divided",
    (lambda m: loss_by_sums(m) * targets_of(m) / rows_of(m)): "those whose label is -100 are no targets",
    (lambda m: loss_by_sums(m) * targets_of(m) / len(m)): "divided by the number of micro-batches",
    (lambda m: F.cross_entropy(*m[-1])): "Only the last micro-batch",
    (lambda m: F.cross_entropy(*m[-1], reduction="sum") / targets_of(m)): "Only the last micro-batch",
    loss_of_first: "Only the first micro-batch",
    (lambda m: loss_by_sums(m) * targets_of(m) / targets_of(m[-1:])): "by the last micro-batch's targets alone",
    (lambda m: -loss_by_sums(m)): "The sign is lost",
    (lambda m: loss_by_sums(m) / math.log(2)): "in bits",
    loss_with(lambda logits: logits.log_softmax(0)): "The softmax runs over the rows",
    loss_with(lambda logits: logits.softmax(-1).log_softmax(-1)): "The softmax is taken twice",
    loss_with(lambda logits: logits.softmax(-1)): "The logarithm is missing",
    loss_with(lambda logits: logits): "The softmax is missing",
    loss_with(lambda logits: logits.softmax(-1).log()): "exp overflows, or log meets a 0",
    loss_weighted_with_nan: "its own mean is 0 / 0",
    loss_with_padding_as_a_token: "are asked for something",
    (lambda m: loss_by_sums(m).item()): "nothing can be trained from it",
    (lambda m: loss_by_sums(m).detach()): "cut off from the logits",
    (lambda m: torch.tensor(loss_by_sums(m).item())): "cut off from the logits",
    (lambda m: torch.tensor(loss_by_sums(m).item(), requires_grad=True)): "micro-batch 0 gets is not. None reaches it",
    loss_of_some_live: "micro-batch 0 gets is not. None reaches it",
    loss_doubled_gradient: "the gradient that micro-batch 0 gets is not.",
    loss_with_backward: "backward() was called inside",
    loss_in_place: "changed in place",
    loss_that_eats_its_list: "changed in place",
    (lambda m: loss_by_sums(m)[None]): "has shape (1,) and should have ()",
    (lambda m: loss_by_sums(m).double()): "dtype torch.float64",
    (lambda m: loss_by_sums(m) * 1.1): "divide by the number of targets",
}

# --- one training step ------------------------------------------------------------------------------------------------


def step_as_the_library(model, optimizer, batches, *, rate, clip):
    targets = sum(int(batch.is_target_BL.sum()) for batch in batches)
    optimizer.zero_grad()
    loss = 0.0
    for batch in batches:
        total, _ = batch_loss(model, batch)
        (total / targets).backward()
        loss += total.item() / targets
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss, norm


def step_in_one_backward(model, optimizer, batches, rate, clip):
    for group in optimizer.param_groups:
        group.update(lr=rate)
    parts = [batch_loss(model, batch) for batch in batches]
    loss = sum(total for total, _ in parts) / sum(count for _, count in parts)
    loss.backward()
    squares = sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None)
    for p in model.parameters():
        p.grad *= min(1.0, clip / squares**0.5)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # at the end: as good
    return loss.item(), squares**0.5


def step_divided_afterwards(model, optimizer, batches, *, rate, clip):
    model.zero_grad()
    counted = 0, 0
    for batch in batches:
        total, count = batch_loss(model, batch)
        total.backward()
        counted = counted[0] + total.item(), counted[1] + count
    for p in model.parameters():
        p.grad.div_(counted[1])
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    nn.utils.clip_grads_with_norm_(model.parameters(), clip, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return counted[0] / counted[1], float(norm)


def own_step(
    zero=lambda o: o.zero_grad(),
    divide=lambda total, count, targets, n: total / targets,
    inside=lambda m, o, clip: None,
    clipped=lambda m, clip: nn.utils.clip_grad_norm_(m.parameters(), clip).item(),
    groups=lambda o: o.param_groups,
    step=lambda o: o.step(),
    after=lambda m, o, clip: None,
    end=lambda loss, norm, clip, losses: (loss, norm),
    before=lambda m, o, rate: None,
):
    """One step with some part of it replaced; its name is for the test's id."""

    def my_step(model, optimizer, batches, *, rate, clip):
        before(model, optimizer, rate)
        targets = sum(int(batch.is_target_BL.sum()) for batch in batches)
        zero(optimizer)
        losses = []
        for batch in batches:
            total, count = batch_loss(model, batch)
            loss = divide(total, count, targets, len(batches))
            loss.backward()
            losses.append((total.item(), count, loss.item()))
            inside(model, optimizer, clip)
        norm = clipped(model, clip)
        for group in groups(optimizer):
            group["lr"] = rate
        step(optimizer)
        after(model, optimizer, clip)
        return end(sum(loss for *_, loss in losses), norm, clip, losses)

    return my_step


def norm_of(model, power=2.0):
    return nn.utils.get_total_norm([p.grad for p in model.parameters()], power).item()


def clip_by_value(model, clip):
    norm = norm_of(model)
    nn.utils.clip_grad_value_(model.parameters(), clip)
    return norm


def always_scaled(model, clip):
    norm = norm_of(model)
    for p in model.parameters():
        p.grad *= clip / norm
    return norm


def clipped_then_measured(model, clip):
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return norm_of(model)


def clipped_by_its_square(model, clip):
    norm = norm_of(model)
    for p in model.parameters():
        p.grad *= min(1.0, clip / norm**2)
    return norm


def step_that_erases(optimizer):
    optimizer.zero_grad()
    optimizer.step()


def step_of_the_last_rate(model, optimizer, batches, *, rate, clip):
    loss, norm = own_step(groups=lambda o: [])(model, optimizer, batches, rate=rate, clip=clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return loss, norm


def step_that_measures_afterwards(model, optimizer, batches, *, rate, clip):
    _, norm = step_as_the_library(model, optimizer, batches, rate=rate, clip=clip)
    parts = [batch_loss(model, batch) for batch in batches]
    return (sum(total for total, _ in parts) / sum(count for _, count in parts)).item(), norm


def step_in_evaluation_mode(model, optimizer, batches, *, rate, clip):
    model.eval()
    return step_as_the_library(model, optimizer, batches, rate=rate, clip=clip)


def step_that_decays_by_hand(model, optimizer, batches, *, rate, clip):
    numbers = step_as_the_library(model, optimizer, batches, rate=rate, clip=clip)
    with torch.no_grad():
        for p in model.parameters():
            p *= 0.99
    return numbers


def step_of_the_first_batch(model, optimizer, batches, *, rate, clip):
    return step_as_the_library(model, optimizer, batches[:1], rate=rate, clip=clip)


def mean_if_any(total, count, targets, n):
    return total / max(1, count) / n


RIGHT_STEPS = [step_as_the_library, step_in_one_backward, step_divided_afterwards, own_step()]
WRONG_STEPS = {
    own_step(zero=lambda o: None): "step    number 2",
    own_step(zero=lambda o: None, divide=mean_if_any): "a mean of means: divide each sum",
    own_step(inside=lambda m, o, clip: o.zero_grad()): "There is no gradient when optimizer.step() is called",
    own_step(
        before=lambda m, o, rate: None, step=step_that_erases
    ): "There is no gradient when optimizer.step() is called",
    own_step(step=lambda o: None): "optimizer.step() was never called",
    own_step(inside=lambda m, o, clip: o.step()): "was called 4 times",
    own_step(divide=mean_if_any): "a mean of means: divide each sum",
    own_step(divide=lambda total, count, targets, n: total): "given back is the sum",
    own_step(
        divide=lambda total, count, targets, n: total,
        end=lambda loss, norm, clip, losses: (loss / sum(n for _, n, _ in losses), norm),
    ): "The norm is that of the sum's gradient",
    own_step(clipped=lambda m, clip: norm_of(m)): "is not clipped when optimizer.step() uses it",
    own_step(
        clipped=lambda m, clip: norm_of(m),
        after=lambda m, o, clip: nn.utils.clip_grad_norm_(m.parameters(), clip),
    ): "is not clipped when optimizer.step() uses it",
    own_step(clipped=clip_by_value): "Each number of the gradient is cut off by itself",
    own_step(clipped=always_scaled): "clipping only ever shortens",
    own_step(clipped=clipped_by_its_square): "the wrong length",
    own_step(clipped=clipped_then_measured): "measured after clipping",
    own_step(
        inside=lambda m, o, clip: nn.utils.clip_grad_norm_(m.parameters(), clip)
    ): "clipped after each micro-batch",
    own_step(groups=lambda o: []): "did not reach the optimizer",
    own_step(groups=lambda o: o.param_groups[:1]): "in the first parameter group only",
    own_step(groups=lambda o: o.param_groups[1:]): "in one parameter group only",
    step_of_the_last_rate: "after optimizer.step(), which still used the old one",
    own_step(end=lambda loss, norm, clip, losses: (losses[-1][-1], norm)): "the last micro-batch's alone",
    own_step(
        end=lambda loss, norm, clip, losses: (sum(t / n for t, n, _ in losses if n) / len(losses), norm)
    ): "that is given back is a mean of means",
    own_step(end=lambda loss, norm, clip, losses: (sum(t for t, *_ in losses), norm)): "given back is the sum",
    own_step(
        end=lambda loss, norm, clip, losses: (sum(t for t, *_ in losses) / len(losses), norm)
    ): "divided by the number of micro-batches",
    step_that_measures_afterwards: "measured after it",
    step_in_evaluation_mode: "left in evaluation mode",
    step_that_decays_by_hand: "who else changes them?",
    step_of_the_first_batch: "Only the first micro-batch's gradient",
    own_step(end=lambda loss, norm, clip, losses: (loss, norm**2)): "the root is missing",
    own_step(end=lambda loss, norm, clip, losses: (loss, 0.0)): "after the gradients were zeroed",
    own_step(end=lambda loss, norm, clip, losses: (loss, torch.tensor(norm))): "The norm is a tensor",
    own_step(end=lambda loss, norm, clip, losses: (torch.tensor(loss), norm)): "The loss is a tensor",
    own_step(end=lambda loss, norm, clip, losses: (norm, loss)): "the loss that is given back is not",
    own_step(end=lambda loss, norm, clip, losses: loss): "Give back two values",
    (lambda model, optimizer, batches: (0.0, 0.0)): "must take 5 arguments (model, optimizer, batches, rate, clip)",
    own_step(divide=lambda total, count, targets, n: total.detach()): "does not require grad",
    own_step(divide=lambda total, count, targets, n: total / count if count else total * math.nan): "a mean of means",
    own_step(
        divide=lambda total, count, targets, n: total / count * count / targets
    ): "does a micro-batch without a target divide by its 0 targets?",
}

# --- what a checkpoint must hold --------------------------------------------------------------------------------------


def take_all(model, optimizer, step):
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "rng": torch.get_rng_state(),
    }


def restore_all(state, model, optimizer):
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return state["step"]


def take_copies(model, optimizer, step):
    states = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    return {"states": states, "next": {"step": step + 1}, "random": checkpoint.random_states()}


def restore_copies(state, model, optimizer):
    checkpoint.restore_random_states(state["random"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(state["states"][0][name])
    optimizer.load_state_dict(state["states"][1])
    return state["next"]["step"] - 1


def take_flat(model, optimizer, step):
    flat = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters()}
    for n, (group, k) in enumerate((g, k) for g in optimizer.param_groups for k in range(len(g["params"]))):
        for key, value in optimizer.state[group["params"][k]].items():
            flat[f"adam.{n}.{key}"] = value.clone()
    return flat | {"step": torch.tensor(step), "rng": torch.get_rng_state()}


def restore_flat(state, model, optimizer):
    for name, p in model.named_parameters():
        p.data = state[f"model.{name}"]
    for n, p in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        optimizer.state[p] = {key: state[f"adam.{n}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    torch.set_rng_state(state["rng"])
    return int(state["step"])


def without(*keys):
    def take_some(model, optimizer, step):
        return {key: value for key, value in take_all(model, optimizer, step).items() if key not in keys}

    def restore_some(state, model, optimizer):
        if "model" in state:
            model.load_state_dict(state["model"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        if "rng" in state:
            torch.set_rng_state(state["rng"])
        return state.get("step", 0)

    return take_some, restore_some


def then(change, *, before=False):
    """Restore all, and something more: change(state, model, optimizer, step) -> step."""

    def restore_and_more(state, model, optimizer):
        if before:
            return change(state, model, optimizer, restore_all)
        return change(state, model, optimizer, restore_all(state, model, optimizer))

    return restore_and_more


def take_with(**more):
    """Take all, and something more or other: name=lambda model, optimizer, step: value."""

    def take_and_more(model, optimizer, step):
        extra = {name: value(model, optimizer, step) for name, value in more.items()}
        return take_all(model, optimizer, step) | extra

    return take_and_more


def restore_only(*keys):
    def restore_some(state, model, optimizer):
        return without()[1]({key: state[key] for key in keys}, model, optimizer)

    return restore_some


def restore_new_parameters(state, model, optimizer):
    step = restore_all(state, model, optimizer)
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(p.detach().clone()))
    return step


def restore_a_seed(state, model, optimizer):
    step = restore_all(state, model, optimizer)
    torch.manual_seed(state["seed"])
    return step


def take_and_seed(model, optimizer, step):
    torch.manual_seed(step)
    return take_all(model, optimizer, step)


def take_in_evaluation_mode(model, optimizer, step):
    return take_all(model.eval(), optimizer, step)


def take_and_reset(model, optimizer, step):
    state = copy.deepcopy(take_all(model, optimizer, step))
    optimizer.state.clear()
    return state


def take_and_break(model, optimizer, step):
    state = copy.deepcopy(take_all(model, optimizer, step))
    model.requires_grad_(False)
    return state


halves = take_with(model=lambda m, o, s: {name: p.bfloat16() for name, p in m.state_dict().items()})
RIGHT_PAIRS = [(take_all, restore_all), (take_copies, restore_copies), (take_flat, restore_flat)]
WRONG_PAIRS = {
    without("model"): "The model's weights are lost (not saved by take)",
    without("optimizer"): "The optimizer's state is lost (not saved by take)",
    without("rng"): "The random state is lost (not saved by take)",
    without("step"): "goes on with 0: it reads the first batches again",
    without("optimizer", "rng"): "with the optimizer's moments and the random state put back as well: no difference",
    without("model", "optimizer", "rng", "step"): "with the weights and the optimizer's moments and the step and",
    (
        take_all,
        restore_only("optimizer", "rng", "step"),
    ): "The model's weights are lost (saved by take, not put back by restore)",
    (
        take_all,
        restore_only("model", "rng", "step"),
    ): "The optimizer's state is lost (saved by take, not put back by restore)",
    (
        take_all,
        restore_only("model", "optimizer", "step"),
    ): "The random state is lost (saved by take, not put back by restore)",
    (take_all, restore_only("model", "optimizer", "rng")): "goes on with 0",
    (
        take_with(seed=lambda m, o, s: torch.initial_seed() % 1000),
        restore_a_seed,
    ): "A seed says where a generator began",
    (take_all, then(lambda state, m, o, step: step + 1)): "one batch is skipped",
    (take_all, then(lambda state, m, o, step: step - 1)): "one batch is read twice",
    (take_all, then(lambda state, m, o, step: 10**9)): "goes on with 1000000000",
    (take_all, then(lambda state, m, o, step: -(10**9))): "goes on with -1000000000",
    (take_all, then(lambda state, m, o, step: None)): "a whole number, and gave NoneType",
    (take_all, then(lambda state, m, o, step: m.eval() and step)): "The model is left in evaluation mode",
    (take_all, restore_new_parameters): "hold this model's parameters still?",
    (take_all, then(lambda state, m, o, step: m.requires_grad_(False) and step)): "After that the run can't go on",
    (halves, restore_all): "The weights come back rounded",
    (take_and_seed, restore_all): "it moves torch's random generator",
    (take_in_evaluation_mode, restore_all): "take disturbs the run that it saves: the model is left in evaluation mode",
    (take_and_reset, restore_all): "it changes the model or the optimizer",
    (take_and_break, restore_all): "After that the run can't go on",
    (lambda m, o, s: {"model": m, "step": s}, restore_all): "state['model'] is of type Decoder",
    (take_with(more=lambda m, o, s: [o]), restore_all): "state['more'][0] is of type AdamW",
    (take_with(more=lambda m, o, s: lambda: 1), restore_all): "state['more'] is of type function",
    (take_with(more=lambda m, o, s: np.arange(3)), restore_all): "weights_only=True",
    (lambda *arguments: list(take_all(*arguments).values()), restore_all): "take should give back a dict",
    (lambda *arguments: take_all(*arguments) and None, restore_all): "take should give back a dict",
    (take_all, untouched): "restore is not written yet",
    (take_copies, restore_all): "KeyError: 'model'",
    (None, restore_all): "pass it without ()",
    (take_all, None): "pass it without ()",
    (lambda: 1, restore_all): "must take 3 arguments (model, optimizer, step)",
    (take_all, lambda: 1): "must take 3 arguments (state, model, optimizer)",
}

# --- what holds for every check ---------------------------------------------------------------------------------------

EXERCISES = {
    "warmup_cosine": (checks.warmup_cosine, RIGHT_RATES, WRONG_RATES),
    "decay_groups": (checks.decay_groups, RIGHT_GROUPS, WRONG_GROUPS),
    "step_loss": (checks.step_loss, RIGHT_LOSSES, WRONG_LOSSES),
    "training_step": (checks.training_step, RIGHT_STEPS, WRONG_STEPS),
    "checkpoint_state": (lambda pair: checks.checkpoint_state(*pair), RIGHT_PAIRS, WRONG_PAIRS),
}
RIGHT, WRONG = cases_of(EXERCISES)
NAMES = list(EXERCISES)
BRIEF = [name for name in NAMES if name != "checkpoint_state"]  # which trains a model several times
EVERY = {"decay_groups": 3, "training_step": 3, "checkpoint_state": 9}  # of the wrong answers `make quick` tries
QUICK_WRONG = [case for name in NAMES for case in [case for case in WRONG if case[0] == name][:: EVERY.get(name, 1)]]


def attempt(name, answer):
    """Check an answer: what comes back is that answer, or the library's. A function stands for each of a pair."""
    is_pair = name == "checkpoint_state"
    given = (answer, answer) if is_pair and not isinstance(answer, tuple) else answer
    back = EXERCISES[name][0](given)
    return answer if is_pair and all(a is b for a, b in zip(back, given, strict=True)) else back


@pytest.fixture(autouse=True, scope="module")
def _optimizers_are_loaded():
    """torch imports its compiler with the first optimizer of a process, which takes seconds."""
    resuming.Run.fresh(0)


@pytest.mark.parametrize(("name", "function"), RIGHT, ids=map(str, range(len(RIGHT))))
def test_a_right_answer_is_accepted_and_given_back(name, function, capsys):
    assert_accepted(attempt, name, function, capsys)


@pytest.mark.parametrize(("name", "function", "words"), few(WRONG, *QUICK_WRONG), ids=ids_of(WRONG))
def test_a_wrong_answer_is_diagnosed_and_replaced(name, function, words, capsys):
    assert_diagnosed(attempt, name, function, words, capsys)


@pytest.mark.parametrize("name", few(NAMES, *BRIEF))
def test_what_a_wrong_answer_is_replaced_by_passes_the_check(name, capsys):
    assert_replaced_by_what_passes(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_different_diagnoses(name):
    _, right, wrong = EXERCISES[name]
    assert_enough_diagnoses(right, wrong)


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_exercise_is_not_attempted(name, capsys):
    assert_not_attempted(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_a_crash_is_reported_with_its_line(name, capsys):
    assert_crash_is_reported(attempt, name, capsys)


ANSWERS = [
    *HOSTILE,
    ([[1]], "x"),
    ([HalfMade()], [HalfMade()]),
    torch.tensor(math.nan, requires_grad=True),
    (math.inf, math.nan),
    (nn.Parameter(torch.zeros(1)), [nn.Parameter(torch.zeros(1))]),
]


@pytest.mark.parametrize("name", few(NAMES, *BRIEF))
@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_nothing_that_comes_back_raises(name, answer, capsys):
    attempt(name, lambda *_arguments, **_options: answer)
    assert f"✗ {name}" in capsys.readouterr().out
    if name == "checkpoint_state":
        checks.checkpoint_state(take_all, lambda *_arguments: answer)
        checks.checkpoint_state(lambda *_arguments: answer, restore_all)
        assert capsys.readouterr().out.count(f"✗ {name}") == 2


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_function_of_these_arguments_is_refused(name, capsys):
    assert_no_function_is_refused(attempt, name, capsys)


@pytest.mark.parametrize("name", few(NAMES, "warmup_cosine", "step_loss"))
def test_the_verdict_never_holds_the_solution(name, capsys):
    codes = (
        schedules.cosine,
        optimizers.decay_groups,
        losses.step_loss_reference,
        training.step,
        resuming.take_reference,
        resuming.restore_reference,
    )
    assert_solution_is_hidden(attempt, name, EXERCISES[name][2], codes, capsys)


@pytest.mark.parametrize("name", few(NAMES, *BRIEF))
def test_a_check_leaves_the_random_generators_and_grad_mode_alone(name, capsys):
    assert_generators_and_grad_mode_are_left_alone(attempt, name, EXERCISES[name][1][0])


@pytest.mark.parametrize("name", few(NAMES, *BRIEF))
def test_a_check_works_where_gradients_are_off(name, capsys):
    assert_works_where_gradients_are_off(attempt, name, EXERCISES[name][1][0], capsys)


def test_a_step_that_zeroes_nothing_is_right_once_and_wrong_the_second_time(capsys):
    checks.training_step(own_step(zero=lambda o: None))
    verdict = capsys.readouterr().out
    assert "number 2" in verdict and "The last step's gradient is still in it" in verdict


def test_the_gradients_of_the_check_are_clipped_where_they_should_be():
    bench = stepping.Bench()
    norms = [bench.take(stepping.training_step_reference, plan, {}).norm for plan in stepping._plans()]
    assert [norm > 2 * plan.clip for norm, plan in zip(norms, stepping._plans(), strict=True)] == [True, True, False]


def test_the_models_of_the_check_have_what_a_rule_by_name_trips_over():
    names = [name for model in recipe._models().values() for name, _ in model.named_parameters()]
    for part in (".ln_1.", ".wte.", ".wpe.", ".c_attn.", ".LayerNorm.", "word_embeddings", "position_embeddings"):
        assert any(part in name for name in names), part
    shared = list(recipe._models().values())[-1]
    assert len(list(shared.named_parameters(remove_duplicate=False))) > len(list(shared.named_parameters()))
    assert any(not p.requires_grad for model in recipe._models().values() for p in model.parameters())
    assert any(isinstance(model, Encoder) for model in recipe._models().values())


def test_every_piece_of_a_checkpoint_matters():
    """Else the check could not see that it was forgotten."""
    undisturbed = resuming.Run.fresh(0).go_on(resuming.LAST).weights()
    snapshot = resuming.Snapshot.of(resuming.Run.fresh(0).go_on(resuming.STOP))
    for missing in (None, *(piece for piece in resuming.PIECES if piece != "mode")):
        run = resuming.Run.fresh(1)
        for piece in resuming.PIECES:
            if piece != missing:
                snapshot.put_back(piece, run)
        assert torch.equal(run.go_on(resuming.LAST).weights(), undisturbed) == (missing is None), missing


def test_a_live_state_is_accepted_with_a_word_of_warning(capsys):
    checks.checkpoint_state(take_all, restore_all)
    assert "kept in memory, it would change" in capsys.readouterr().out
    checks.checkpoint_state(take_copies, restore_copies)
    assert "kept in memory" not in capsys.readouterr().out


def test_each_mistake_in_a_schedule_differs_from_the_right_way_where_it_is_looked_for():
    def factors(progress, wave, mix):
        return [mix(wave(min(1.0, progress(s, 4, 12))), 0.25) for s in range(4, 13)]

    tables = (recipe.PROGRESSES, recipe.WAVES, recipe.MIXES)
    right = factors(*(table[0][1] for table in tables))
    for table, number in itertools.product(tables, range(1, 12)):
        if number < len(table):
            ways = [(table[number] if other is table else other[0])[1] for other in tables]
            assert factors(*ways) != pytest.approx(right), table[number][0]


def test_a_value_that_cannot_be_printed_is_described_by_its_type():
    assert report.described(HalfMade()) == "a HalfMade"
    assert report.described([1, 2]) == "[1, 2]"


def test_the_reference_loss_is_that_of_the_library():
    logits_NV, labels_N = torch.randn(5, 7), torch.tensor([1, IGNORE_INDEX, 3, 6, IGNORE_INDEX])
    total, count = token_loss(logits_NV, labels_N)
    assert torch.equal(losses.step_loss_reference([(logits_NV, labels_N)]), total / count)
