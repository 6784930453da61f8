"""The checks of chapter 5 say what is wrong, accept every right answer, and let nothing of a learner's code reach the
notebook."""

import itertools
import json
import math
import threading
import time
from unittest import mock

import numpy as np
import pytest
import torch
from exercises import (
    HOSTILE,
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
from ranks import pieces
from ranks.starting import start

from course_lib import checks
from course_lib.checks import accumulating, scaling, sharding, weighing
from course_lib.checks.meeting import Meeting, Stranded
from course_lib.training import batch_loss

# --- an accumulated step ----------------------------------------------------------------------------------------------


def targets_in(micro_batches):
    return sum(int(batch.is_target_BL.sum()) for batch in micro_batches)


def accumulate_batch_by_batch(model, micro_batches, *, total, world):
    targets = total(targets_in(micro_batches))
    loss = 0.0
    for batch in micro_batches:
        summed, _ = batch_loss(model, batch)
        (summed / targets * world).backward()
        loss += summed.item()
    return total(loss / targets)


def accumulate_in_one_backward(model, micro_batches, total, world):
    model.zero_grad()
    parts = [batch_loss(model, batch) for batch in micro_batches]
    summed = sum(part for part, _ in parts)
    targets_of_a_rank = total(sum(count for _, count in parts)) / world
    (summed / targets_of_a_rank).backward()
    return total(summed) / world / targets_of_a_rank  # total takes a tensor of one number, too


def accumulate_and_divide_afterwards(model, micro_batches, *, total, world):
    loss, targets = 0.0, 0
    for batch in micro_batches:
        summed, count = batch_loss(model, batch)
        summed.backward()
        loss, targets = loss + summed.item(), targets + count
    loss, targets, ranks = total(loss), total(targets), total(1)
    for parameter in model.parameters():
        parameter.grad *= ranks / targets
    return loss / targets


def accumulate_by_means(model, micro_batches, *, total, world):
    """Means, weighted by the number of their targets, leaving out those of none."""
    counts = [int(batch.is_target_BL.sum()) for batch in micro_batches]
    targets, loss = total(sum(counts)), 0.0
    for batch, count in zip(micro_batches, counts, strict=True):
        if count:
            mean = batch_loss(model, batch)[0] / count
            (mean * (count * world / targets)).backward()
            loss += mean.item() * count
    return total(loss) / targets


def accumulate(
    divisor=lambda batches, batch, total, world: total(targets_in(batches)),
    times=lambda world: world,
    before=lambda model: None,
    after=lambda model, batches: None,
    told=lambda losses, counts, total, world: total(sum(losses)) / total(sum(counts)),
):
    """The right step with some part of it replaced."""

    def my_accumulate(model, micro_batches, *, total, world):
        losses, counts = [], []
        by = [divisor(micro_batches, batch, total, world) for batch in micro_batches[:1]] * len(micro_batches)
        if divisor.__name__ == "of_each":
            by = [divisor(micro_batches, batch, total, world) for batch in micro_batches]
        for batch, divide_by in zip(micro_batches, by, strict=True):
            before(model)
            summed, count = batch_loss(model, batch)
            (summed * times(world) / divide_by).backward()
            losses.append(summed.item())
            counts.append(count)
        after(model, micro_batches)
        return told(losses, counts, total, world)

    return my_accumulate


def each(divisor):
    """A divisor that is formed for each micro-batch."""

    def of_each(batches, batch, total, world):
        return divisor(batches, batch, total, world)

    return of_each


def own(batches, batch, total, world):
    return targets_in(batches)


def own_or_one(batches, batch, total, world):
    return max(1, targets_in(batches))


def once(world):
    return 1


def descend(model, batches):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad


def step_of_sgd(model, batches):
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def accumulate_total_in_the_loop(model, micro_batches, *, total, world):
    targets = total(targets_in(micro_batches))
    loss = 0.0
    for batch in micro_batches:
        summed, _ = batch_loss(model, batch)
        (summed * world / targets).backward()
        loss += total(summed.item())
    return loss / targets


def accumulate_leaving_early(model, micro_batches, *, total, world):
    if targets_in(micro_batches) == 0:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return total(0.0)
    return accumulate_batch_by_batch(model, micro_batches, total=total, world=world)


def accumulate_asking_once_more(model, micro_batches, *, total, world):
    loss = accumulate_batch_by_batch(model, micro_batches, total=total, world=world)
    return total(loss) / world if targets_in(micro_batches) > 8 else loss


def accumulate_without_backward(model, micro_batches, *, total, world):
    parts = [batch_loss(model, batch) for batch in micro_batches]
    return total(sum(part.item() for part, _ in parts)) / total(sum(count for _, count in parts))


def accumulate_without_grad(model, micro_batches, *, total, world):
    with torch.no_grad():
        return accumulate_without_backward(model, micro_batches, total=total, world=world)


def accumulate_cut_off(model, micro_batches, *, total, world):
    summed = sum(batch_loss(model, batch)[0].item() for batch in micro_batches)
    torch.tensor(summed, requires_grad=True).backward()
    return total(summed) / total(targets_in(micro_batches))


def accumulate_behind_the_loop(model, micro_batches, *, total, world):
    targets, loss = total(targets_in(micro_batches)), 0.0
    for batch in micro_batches:
        summed, _ = batch_loss(model, batch)
        loss += summed.item()
    (summed * world / targets).backward()
    return total(loss) / targets


def accumulate_the_first(model, micro_batches, *, total, world):
    targets, loss = total(targets_in(micro_batches)), 0.0
    for batch in micro_batches:
        summed, _ = batch_loss(model, batch)
        (summed * world / targets).backward()
        loss += summed.item()
        break
    return total(loss) / targets


def accumulate_a_tensor(model, micro_batches, *, total, world):
    return torch.tensor(accumulate_batch_by_batch(model, micro_batches, total=total, world=world))


def accumulate_averaging_gradients(model, micro_batches, *, total, world):
    loss = accumulate_batch_by_batch(model, micro_batches, total=total, world=world)
    for parameter in model.parameters():
        parameter.grad = total(parameter.grad) / world
    return loss


def accumulate_dividing_numbers(model, micro_batches, *, total, world):
    loss = accumulate_batch_by_batch(model, micro_batches, total=total, world=world)
    return loss + 0 * total(loss / targets_in(micro_batches))


def accumulate_nan(model, micro_batches, *, total, world):
    loss = accumulate_batch_by_batch(model, micro_batches, total=total, world=world)
    means = [batch_loss(model, batch)[0].detach() / targets_in([batch]) for batch in micro_batches]
    return loss + 0 * total(sum(means))


def accumulate_freezing(model, micro_batches, *, total, world):
    loss = accumulate_batch_by_batch(model, micro_batches, total=total, world=world)
    next(model.parameters()).requires_grad_(False)
    return loss


def accumulate_running_count(model, micro_batches, *, total, world):
    seen, loss, targets = 0, 0.0, total(targets_in(micro_batches))
    for batch in micro_batches:
        summed, count = batch_loss(model, batch)
        seen += count
        (summed * world / max(1, seen)).backward()
        loss += summed.item()
    return total(loss) / targets


def told(change):
    """The right gradients, and of the loss and number of targets of the micro-batches something else told."""

    def tell(losses, counts, total, world):
        return change(losses, counts, total, world)

    return accumulate(told=tell)


def mean_of(losses, counts):
    return sum(loss / max(1, count) for loss, count in zip(losses, counts, strict=True)) / len(losses)


def tell_twice_as_often(losses, counts, total, world):
    loss = total(sum(losses)) / total(sum(counts))
    return total(loss)


RIGHT_STEPS = [
    accumulate_batch_by_batch,
    accumulate_in_one_backward,
    accumulate_and_divide_afterwards,
    accumulate_by_means,
    accumulate(),
]
WRONG_STEPS = {
    accumulate(
        divisor=each(lambda bs, b, t, w: targets_in([b]) * len(bs)), times=once
    ): "a mean of means over the micro",
    accumulate(
        divisor=each(lambda bs, b, t, w: targets_in([b])), times=once
    ): "The means of the micro-batches are added",
    accumulate(divisor=own, times=once): "Each rank is divided by its own number of targets",
    accumulate(divisor=own): "Each rank is divided by its own number of targets",
    accumulate(times=once): "The factor `world` is forgotten",
    accumulate(times=lambda world: 1 / world): "multiply by it and do not divide",
    accumulate(times=lambda world: world**2): "`world` enters twice",
    accumulate(times=lambda world: 2 * world): "is 2 times the right one: what divides it?",
    accumulate(divisor=lambda *_: 1): "The sum is not divided",
    accumulate(divisor=lambda bs, b, t, w: len(bs)): "divided by a number of micro-batches",
    accumulate(divisor=lambda bs, b, t, w: t(len(bs))): "divided by a number of micro-batches",
    accumulate(divisor=lambda bs, b, t, w: t(sum(b.labels_BL.numel() for b in bs))): "number of tokens read",
    accumulate(divisor=lambda bs, b, t, w: targets_in(bs[-1:])): "the last micro-batch's number of targets alone",
    accumulate(before=lambda model: model.zero_grad()): "Only the last micro-batch's gradient is left",
    accumulate(
        before=lambda model: model.zero_grad(), times=once
    ): "is left: are gradients zeroed between the micro-batches",
    accumulate_behind_the_loop: "is backward called behind the loop?",
    accumulate_the_first: "Only the first micro-batch is in it",
    accumulate(after=lambda model, _: model.zero_grad()): "No gradient is left in the model",
    accumulate_without_backward: "backward() was not called",
    accumulate_without_grad: "backward() was not called",
    accumulate_cut_off: "No gradient is left in the model",
    accumulate_running_count: "none of the usual mistakes",
    accumulate(after=step_of_sgd): "The weights were changed",
    accumulate(after=descend): "The weights were changed",
    accumulate(after=lambda model, _: model.eval()): "left in evaluation mode",
    accumulate_freezing: "A parameter was frozen",
    accumulate_total_in_the_loop: "Add up what a rank has, and call it outside.",
    accumulate_leaving_early: "It hands in 0 and waits like everybody.",
    accumulate_asking_once_more: "Every rank must call `total` equally often",
    accumulate_dividing_numbers: "ZeroDivisionError",
    accumulate_nan: "A micro-batch without a target divides by its own 0 targets",
    accumulate_a_tensor: "is a tensor and should be a plain number",
    accumulate_averaging_gradients: "TypeError: total adds up one number of each rank, and was given a tensor of shape",
    told(lambda losses, counts, total, world: total(sum(losses))): "given back is the sum: divide it",
    told(lambda losses, counts, total, world: mean_of(losses, counts)): "given back is a mean of means",
    told(lambda losses, counts, total, world: sum(losses) / max(1, sum(counts))): "is this rank's alone",
    told(lambda losses, counts, total, world: sum(losses) / total(sum(counts))): "is this rank's alone",
    told(lambda losses, counts, total, world: total(sum(losses) / sum(counts)) / world): "is a mean of means: sum over",
    told(lambda losses, counts, total, world: total(sum(losses) / sum(counts))): "is the ranks' means added up",
    told(
        lambda losses, counts, total, world: total(losses[-1]) / total(sum(counts))
    ): "is the last micro-batch's alone",
    told(lambda losses, counts, total, world: total(sum(losses)) / total(sum(counts)) * world): "2 times the right one",
    told(tell_twice_as_often): "2 times the right one",
    told(lambda losses, counts, total, world: 1.5 * total(sum(losses)) / total(sum(counts))): "given back is not.",
    (lambda model, micro_batches, total, world: None): "should be a number and is NoneType",
    (lambda model, micro_batches, world: 0.0): "must take 4 arguments (model, micro_batches, total, world)",
}


# --- the loss scale ---------------------------------------------------------------------------------------------------


def largest_of(gradients):
    return max(gradient.abs().max().item() for gradient in gradients)


def fits(gradients, scale):
    return all((gradient.double() * scale).half().isfinite().all() for gradient in gradients)


def scale_by_trying(gradients):
    scale = 1.0
    while fits(gradients, 2 * scale):
        scale *= 2
    while not fits(gradients, scale):
        scale /= 2
    return scale


def scale_by_logarithm(gradients):
    return 2.0 ** (math.ceil(math.log2(65520 / largest_of(gradients))) - 1)


def scale_from_all_exponents(gradients):
    return next(2.0**k for k in range(200, -200, -1) if fits(gradients, 2.0**k))


def scale_as_a_whole_number(gradients):
    scale = scale_by_trying(gradients)
    return int(scale) if scale >= 1 else scale


def scale_from(number_of, limit=65520):
    """The scale where another number is taken for the largest."""

    def my_scale(gradients):
        return 2.0 ** (math.ceil(math.log2(limit / abs(number_of(gradients)))) - 1)

    return my_scale


def scale_under(limit):
    """The largest power of two with which a product stays at or under a limit."""

    def my_scale(gradients):
        return 2.0 ** math.floor(math.log2(limit / largest_of(gradients)))

    return my_scale


def all_of(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


def scale_growing_from_one(gradients):
    scale = 1.0
    while fits(gradients, 2 * scale):
        scale *= 2
    return scale


def scale_falling_from_65536(gradients):
    scale = 2.0**16
    while not fits(gradients, scale):
        scale /= 2
    return scale


def scale_once_too_often(gradients):
    scale = 2.0**-30
    while fits(gradients, scale):
        scale *= 2
    return scale


def scale_in_fp32(gradients):
    scale = 2.0**-30
    while all((gradient * (2 * scale)).half().isfinite().all() for gradient in gradients):
        scale *= 2
    return scale


def scale_in_32_bits_throughout(gradients):
    scale = torch.tensor(2.0**-30)
    while (torch.tensor(largest_of(gradients)) * scale * 2).half().isfinite():
        scale = scale * 2
    return scale.item()


def scale_of_the_first(gradients):
    for gradient in gradients:
        scale = 2.0**60
        while not fits([gradient], scale):
            scale /= 2
        return scale


def scale_that_unites(gradients):
    for gradient in gradients:
        gradient *= 2.0**3
    return scale_by_trying(gradients) * 8


def scaled(change):
    """The right scale, changed."""
    return lambda gradients: change(scale_by_trying(gradients))


RIGHT_SCALES = [scale_by_trying, scale_by_logarithm, scale_from_all_exponents, scale_as_a_whole_number]
WRONG_SCALES = {
    scale_from(lambda gs: all_of(gs).max().item()): "The sign is in the way",
    scale_from(lambda gs: gs[0].abs().max().item()): "Only the first tensor",
    scale_of_the_first: "Only the first tensor",
    scale_from(lambda gs: gs[-1].abs().max().item()): "Only the last tensor",
    scale_from(lambda gs: min(g.abs().max().item() for g in gs)): "The tensor with the smallest numbers decides",
    scale_from(lambda gs: all_of(gs).abs().mean().item()): "The mean decides",
    scale_from(lambda gs: all_of(gs).norm().item()): "The norm decides",
    scale_from(lambda gs: max(g.norm().item() for g in gs)): "The norm decides",
    scale_from(lambda gs: all_of(gs).std().item()): "The spread decides",
    scale_from(lambda gs: all_of(gs).abs().sum().item()): "The sum decides",
    scale_from(lambda gs: all_of(gs).abs()[all_of(gs) != 0].min().item()): "The smallest number decides",
    scale_under(65504): "lies above 65504, the largest number of fp16, and is rounded down to it",
    scale_under(65520): "65520 becomes inf",
    scale_under(65535): "becomes inf",
    scale_under(65504 / 2): "One power of two too small",
    scale_under(65504 / 8): "3 powers of two too small",
    scale_under(65504 * 2): "One power of two too large",
    scaled(lambda scale: scale * 4): "2 powers of two too large",
    scale_once_too_often: "One power of two too large",
    scale_growing_from_one: "takes a scale below 1",
    scale_falling_from_65536: "The search never goes above 2**16",
    scale_in_fp32: "the scale lies beyond fp32",
    scale_in_32_bits_throughout: "the scale lies beyond fp32",
    (lambda gs: 65504 / largest_of(gs)): "That is the quotient itself",
    (lambda gs: 65520 / largest_of(gs)): "That is the quotient itself",
    scaled(lambda scale: 1.5 * scale): "That is no power of two",
    scaled(lambda scale: int(math.log2(scale))): "That is the exponent k",
    scaled(lambda scale: 1 / scale): "That is its inverse",
    scaled(lambda scale: -scale): "A scale is a finite number above 0",
    scaled(lambda scale: math.inf): "A scale is a finite number above 0",
    scaled(lambda scale: torch.tensor(scale)): "is a tensor and should be a plain number",
    scaled(lambda scale: np.float32(scale)): "should be a number and is float32",
    scale_that_unites: "gradients was changed in place",
    (lambda: 1.0): "must take 1 arguments (gradients)",
}


# --- the bytes of a rank ----------------------------------------------------------------------------------------------


def bytes_by_chunks(shapes, *, world, rank):
    numbers = 0
    for shape in shapes:
        parts = torch.empty(shape, device="meta").chunk(world)
        numbers += parts[rank].numel() if rank < len(parts) else 0
    return 16 * numbers


def bytes_row_by_row(shapes, world, rank):
    numbers = 0
    for n, *rest in shapes:
        rows = -(-n // world)
        numbers += len(range(n)[rank * rows : (rank + 1) * rows]) * math.prod(rest)
    return numbers * (4 + 4 + 2 * 4)


def bytes_in_numpy(shapes, *, world, rank):
    first = np.array([shape[0] for shape in shapes])
    row = np.array([np.prod(shape[1:], dtype=np.int64) for shape in shapes])
    rows = np.ceil(first / world).astype(np.int64)
    return (16 * row * np.clip(first - rank * rows, 0, rows)).sum()


def rows_of(n, world, rank):
    rows = -(-n // world)
    return max(0, min(rows, n - rank * rows))


def count(rows=rows_of, each=16, whole=0, is_whole=lambda shape, world: False):
    """The bytes with some part of the counting replaced."""

    def my_bytes(shapes, *, world, rank):
        bytes_ = 0
        for shape in shapes:
            kept = shape[0] if is_whole(shape, world) else rows(shape[0], world, rank)
            bytes_ += each * kept * math.prod(shape[1:]) + whole * math.prod(shape)
        return bytes_

    return my_bytes


def bytes_along(axis):
    def my_bytes(shapes, *, world, rank):
        places = [axis(shape) for shape in shapes]
        return 16 * sum(
            math.prod(shape) // shape[place] * rows_of(shape[place], world, rank)
            for shape, place in zip(shapes, places, strict=True)
        )

    return my_bytes


def numbers_of(shapes):
    return sum(map(math.prod, shapes))


RIGHT_BYTES = [bytes_by_chunks, bytes_row_by_row, bytes_in_numpy, count()]
WRONG_BYTES = {
    (lambda shapes, *, world, rank: 16 * numbers_of(shapes)): "the whole model on each rank, as DDP keeps it",
    (lambda shapes, *, world, rank: 16 * numbers_of(shapes) / world): "All is divided by `world`",
    (lambda shapes, *, world, rank: 16 * numbers_of(shapes) // world): "All is divided by `world`",
    (lambda shapes, *, world, rank: math.ceil(16 * numbers_of(shapes) / world)): "All is divided by `world`",
    (lambda shapes, *, world, rank: 16 * (numbers_of(shapes) // world)): "All parameters are counted as one",
    (lambda shapes, *, world, rank: 16 * rows_of(numbers_of(shapes), world, rank)): "All parameters are counted as one",
    (lambda shapes, *, world, rank: 16 * sum(rows_of(math.prod(s), world, rank) for s in shapes)): "is not flattened",
    (lambda shapes, *, world, rank: 16 * sum(math.prod(s) // world for s in shapes)): "is not flattened",
    (lambda shapes, *, world, rank: 16 * sum(rows_of(s[0], world, rank) for s in shapes)): "The rows are counted and",
    count(is_whole=lambda shape, world: len(shape) == 1): "Vectors are cut, too",
    count(is_whole=lambda shape, world: shape[0] % world): "whose rows do not divide evenly is cut as well",
    count(is_whole=lambda shape, world: shape[0] < world): "with fewer rows than there are ranks is cut as well",
    count(rows=lambda n, world, rank: n // world): "rounded down, so that the rest lies nowhere",
    count(
        rows=lambda n, world, rank: n // world + n % world * (rank == world - 1)
    ): "The rest is given to the last rank",
    count(rows=lambda n, world, rank: n // world + (rank < n % world)): "The rest is spread evenly",
    count(rows=lambda n, world, rank: -(-n // world)): "as many rows as the first one",
    count(rows=lambda n, world, rank: rows_of(n, world, 0)): "as many rows as the first one",
    count(rows=lambda n, world, rank: min(-(-n // world), n - rank * -(-n // world))): "gets a negative number",
    count(rows=lambda n, world, rank: -1.0 - n): "a negative number of bytes",
    count(rows=lambda n, world, rank: rows_of(n, world, rank + 1)): "Ranks are counted from 0",
    bytes_along(lambda shape: -1): "cut along its last axis",
    bytes_along(lambda shape: shape.index(max(shape))): "cut along its longest axis",
    count(each=12, whole=4): "ZeRO's second stage",
    count(each=8, whole=8): "ZeRO's first stage",
    count(each=8): "AdamW's two moments are forgotten",
    count(each=12): "One of four is forgotten",
    count(each=4): "The weights alone are counted",
    count(each=1): "Numbers are counted and not bytes",
    count(each=20): "Too many are counted",
    count(
        rows=lambda n, world, rank: n // world, each=8
    ): "lies nowhere: torch.chunk rounds up. AdamW's two moments are",
    count(rows=lambda n, world, rank: n if rank == 0 else 0): "are shared out otherwise",
    count(rows=lambda n, world, rank: rows_of(n, world, rank) + 1): "Over all ranks you count",
    count(each=16.0): "The number is right, and a float",
    (lambda shapes, *, world, rank: torch.tensor(count()(shapes, world=world, rank=rank))): "The number is a tensor",
    (lambda shapes, *, world, rank: None): "Nothing comes back",
    (lambda shapes, *, world, rank: "16"): "should be an int and is str",
    (lambda shapes, *, world, rank: True): "should be an int and is bool",
    (lambda shapes, *, world: 16): "must take 3 arguments (shapes, world, rank)",
}

# --- what holds for every check ---------------------------------------------------------------------------------------

EXERCISES = {
    "accumulate": (checks.accumulate, RIGHT_STEPS, WRONG_STEPS),
    "pick_loss_scale": (checks.pick_loss_scale, RIGHT_SCALES, WRONG_SCALES),
    "bytes_of_rank": (checks.bytes_of_rank, RIGHT_BYTES, WRONG_BYTES),
}
RIGHT, WRONG = cases_of(EXERCISES)
NAMES = list(EXERCISES)
REFERENCES = [
    accumulating.accumulate_reference,
    scaling.loss_scale_reference,
    sharding.bytes_of_rank_reference,
    sharding.chunk,
]


def attempt(name, function):
    return EXERCISES[name][0](function)


@pytest.fixture(autouse=True, scope="module")
def _a_step_is_taken():
    """torch loads much with the first tensors of a process."""
    accumulating.verify_accumulate(accumulating.accumulate_reference)


@pytest.fixture(autouse=True)
def _no_rank_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize(("name", "function"), RIGHT, ids=[f"{name}-{f.__name__}" for name, f in RIGHT])
def test_a_right_answer_is_accepted_and_given_back(name, function, capsys):
    assert_accepted(attempt, name, function, capsys)


@pytest.mark.parametrize(("name", "function", "words"), WRONG, ids=[f"{name}-{words}" for name, _, words in WRONG])
def test_a_wrong_answer_is_diagnosed_and_replaced(name, function, words, capsys):
    assert_diagnosed(attempt, name, function, words, capsys, clock=time.perf_counter)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_wrong_answer_is_replaced_by_passes_the_check(name, capsys):
    assert_replaced_by_what_passes(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_different_diagnoses(name):
    _, right, wrong = EXERCISES[name]
    assert_enough_diagnoses(right, wrong, diagnoses=6)


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_exercise_is_not_attempted(name, capsys):
    assert_not_attempted(attempt, name, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_a_crash_is_reported_with_its_line(name, capsys):
    assert_crash_is_reported(attempt, name, capsys)

    def never_ends(*arguments, **options):
        return never_ends(*arguments, **options)

    attempt(name, never_ends)
    assert "RecursionError" in capsys.readouterr().out


ANSWERS = [*HOSTILE, 0, 5e-324, (n for n in range(3))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_nothing_that_comes_back_raises(name, answer, capsys):
    attempt(name, lambda *_arguments, **_options: answer)
    assert f"✗ {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_function_of_these_arguments_is_refused(name, capsys):
    assert_no_function_is_refused(attempt, name, capsys)


@pytest.mark.parametrize("name", few(NAMES, "pick_loss_scale", "bytes_of_rank"))
def test_the_verdict_never_holds_the_solution(name, capsys):
    codes = (*REFERENCES, *(right for _, right in RIGHT))
    assert_solution_is_hidden(attempt, name, EXERCISES[name][2], codes, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_a_check_leaves_the_random_generators_and_grad_mode_alone(name, capsys):
    assert_generators_and_grad_mode_are_left_alone(attempt, name, EXERCISES[name][1][0])


@pytest.mark.parametrize("name", NAMES)
def test_a_check_works_where_gradients_are_off(name, capsys):
    assert_works_where_gradients_are_off(attempt, name, EXERCISES[name][1][0], capsys)


# --- ranks that meet --------------------------------------------------------------------------------------------------


def test_ranks_hear_the_sum_of_each_of_their_calls():
    def work(rank, total):
        return [total(rank), total(torch.tensor(10.0 * rank, requires_grad=True)), total(np.float32(1))]

    meeting = Meeting(3).hold(work)
    assert meeting.back == [[3.0, 30.0, 3.0]] * 3
    assert meeting.calls == [3, 3, 3]
    assert meeting.errors == [None] * 3
    assert not any(meeting.is_stranded)


@pytest.mark.parametrize("leaves", [0, 1, 2])
def test_who_waits_for_a_rank_that_has_left_is_let_go_at_once(leaves):
    def work(rank, total):
        try:
            return [total(1) for _ in range(1 if rank == leaves else 3)]
        except Exception:  # noqa: BLE001 what a learner may write
            return "swallowed"

    began = time.perf_counter()
    meeting = Meeting(3).hold(work)
    assert time.perf_counter() - began < 2
    assert meeting.is_stranded == [rank != leaves for rank in range(3)]
    assert [isinstance(error, Stranded) for error in meeting.errors] == meeting.is_stranded
    assert meeting.back[leaves] == [3.0]


def test_who_waits_for_a_rank_that_has_failed_is_let_go_and_the_failure_is_told(capsys):
    def fails_on_a_rank(model, micro_batches, *, total, world):
        if world == 3 and len(micro_batches) == 3:
            raise OSError("the disk is full")
        return accumulate_batch_by_batch(model, micro_batches, total=total, world=world)

    checks.accumulate(fails_on_a_rank)
    verdict = capsys.readouterr().out
    assert "It stopped with OSError: the disk is full" in verdict and "raise OSError" in verdict


def test_a_rank_that_does_not_come_back_is_named_and_the_notebook_goes_on(capsys):
    released = threading.Event()

    def hangs(model, micro_batches, *, total, world):
        if world == 3 and len(micro_batches) == 3:
            released.wait(20)
        return accumulate_batch_by_batch(model, micro_batches, total=total, world=world)

    before = set(threading.enumerate())
    with mock.patch.object(Meeting, "patience", 0.3):
        checks.accumulate(hangs)
    assert "Rank 1 was still at work after 0.3 seconds" in capsys.readouterr().out
    released.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)  # it is not kept from ending: total lets it go


def test_an_untouched_branch_for_several_ranks_is_not_attempted_yet(capsys):
    def for_one_rank(model, micro_batches, *, total, world):
        if world > 1:
            raise NotImplementedError
        return accumulate_batch_by_batch(model, micro_batches, total=total, world=world)

    checks.accumulate(for_one_rank)
    assert "not attempted yet" in capsys.readouterr().out


# --- what the checks hand over shows what it should -------------------------------------------------------------------


def test_the_steps_have_what_an_answer_trips_over():
    counts = [step.count_RM for step in weighing.steps()]
    assert [step.world for step in weighing.steps()] == [1, 2, 3, 2, 2]
    assert all(len({n for of_rank in step for n in of_rank}) > 1 for step in counts)
    assert len({*map(len, counts[2])}) == 3
    assert any(0 in of_rank and sum(of_rank) for of_rank in counts[3]) and all(map(sum, counts[3]))
    assert [sum(of_rank) > 0 for of_rank in counts[4]] == [True, False]


def test_the_gradient_of_a_step_is_that_of_all_its_micro_batches_on_one_process():
    for step in weighing.steps():
        model = weighing.tiny_model()
        model.zero_grad()
        batches = [batch for of_rank in step.ranks for batch in of_rank]
        (sum(batch_loss(model, batch)[0] for batch in batches) / targets_in(batches)).backward()
        together = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        model.zero_grad()
        torch.testing.assert_close(step.gradient, together, rtol=1e-4, atol=1e-6)


def test_no_mistake_gives_the_right_gradient_in_all_steps():
    seen = {}
    for step in weighing.steps():
        for number, (cause, gradient) in enumerate(weighing.mistaken_gradients(step)):
            if accumulating.near(gradient, step.gradient):
                seen.setdefault(number, []).append(cause)
    always = [causes[0] for causes in seen.values() if len(causes) == len(weighing.steps())]
    assert always == [""]


@pytest.mark.parametrize("title", scaling.cases())
def test_the_reference_scale_is_the_largest_that_fp16_bears(title):
    gradients = scaling.cases()[title]
    scale = scaling.loss_scale_reference(gradients)
    assert math.frexp(scale)[0] == 0.5
    assert fits(gradients, scale)
    assert not fits(gradients, 2 * scale)


def test_the_gradients_of_the_check_lie_at_both_sides_of_each_border():
    products = [
        largest_of(gradients) * scaling.loss_scale_reference(gradients) for gradients in scaling.cases().values()
    ]
    assert 65504.0 in products and 65512.0 in products and 32760.0 in products  # 65520 is half too many
    assert any(65512 < product < 65520 for product in products)
    scales = [scaling.loss_scale_reference(gradients) for gradients in scaling.cases().values()]
    assert min(scales) < 1 and max(scales) > 2.0**128


def test_each_number_that_may_be_taken_for_the_largest_gives_a_scale_of_its_own():
    for title, gradients in scaling.cases().items():
        if title.startswith("four tensors"):
            seen = {scaling.loss_scale_reference(gradients): "right"}
            for cause, taken in scaling._statistics(gradients):
                if abs(taken) != largest_of(gradients):  # which is also the largest with its sign, where it is positive
                    assert seen.setdefault(scaling.loss_scale_reference([torch.tensor(taken)]), cause) == cause


def test_a_piece_is_that_of_torch_chunk():
    for n in range(1, 40):
        for world in range(1, 12):
            parts = torch.empty(n, 2).chunk(world)
            wanted = [len(part) for part in parts] + [0] * (world - len(parts))
            assert [sharding.chunk(n, world, rank) for rank in range(world)] == wanted


def test_each_mistake_in_bytes_differs_from_the_right_number_and_from_every_other_mistake():
    seen = {tuple(plan.wanted for plan in sharding.PLANS): ""}
    at_once = {f"{cut} {held}" for (cut, _), (held, *_) in itertools.product(sharding.CUTS[1:], sharding.HELD[1:])}
    for cause, bytes_ in sharding.mistakes():
        if cause not in at_once:
            counts = tuple(bytes_(plan) for plan in sharding.PLANS)
            assert seen.setdefault(counts, cause) == cause


@pytest.mark.slow
def test_the_bytes_are_those_that_fsdp2_leaves_on_each_rank(tmp_path):
    """Of more ranks than some of the parameters have rows."""
    world = 4
    start("pieces", tmp_path, ranks=world)
    for rank in range(world):
        found = json.loads((tmp_path / f"rank_{rank}.json").read_text())
        assert found["world"] == world
        assert found["rows"] == [sharding.chunk(shape[0], world, rank) for shape in pieces.SHAPES]
        wanted = sharding.bytes_of_rank_reference(pieces.SHAPES, world=world, rank=rank)
        assert found["bytes"] == wanted == bytes_by_chunks(pieces.SHAPES, world=world, rank=rank)
