"""The loss scale against torch's own, the fate of numbers against a slow loop, and what both are for: fp16 training
that follows fp32."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from few import few
from tiny import corrupted, dataset, differ, framed_rows, tiny

from course_lib.optimizers import make_optimizer
from course_lib.precision import LossScale, fate
from course_lib.runtime import autocast
from course_lib.training import batch_loss, step, train

FP16, FP32 = torch.float16, torch.float32

# ---------------------------------------------------------------- the scale


def torchs_own(outcomes, *, scale, growth, backoff, interval):
    """The scale after each step of torch.amp.GradScaler, whose gradients were finite or not."""
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=scale, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
    )
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, scales = torch.optim.SGD([weight], lr=0.0), []
    for is_finite in outcomes:
        scaler.scale(weight.sum()).backward()
        if not is_finite:
            weight.grad[1] = random.Random(len(scales)).choice([math.inf, math.nan])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return scales


def ours(outcomes, **settings):
    scale = LossScale(**settings)
    return [scale.update(is_finite) for is_finite in outcomes]


class CountsAll(LossScale):
    """Rises after every `interval` good steps, in a row or not."""

    def update(self, is_finite):
        good = self.good
        super().update(is_finite)
        self.good = self.good if is_finite else good
        return self.scale


SETTINGS = [
    {"scale": 2.0**16, "growth": 2.0, "backoff": 0.5, "interval": 1},
    {"scale": 2.0**10, "growth": 2.0, "backoff": 0.5, "interval": 2},
    {"scale": 8.0, "growth": 4.0, "backoff": 0.25, "interval": 3},
    {"scale": 1.0, "growth": 1.5, "backoff": 0.75, "interval": 7},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: f"interval {settings['interval']}")
def test_the_scale_moves_as_that_of_torch(settings):
    """Over a thousand steps that fail about as often as the scale rises."""
    chance = random.Random(settings["interval"])
    share = 0.5 ** (1 / settings["interval"])
    outcomes = [chance.random() < share for _ in range(1000)]
    wanted = torchs_own(outcomes, **settings)
    assert len(set(wanted)) > 5
    assert ours(outcomes, **settings) == pytest.approx(wanted, rel=1e-4)  # torch keeps its scale in fp32


def test_the_comparison_above_sees_good_steps_counted_that_are_not_in_a_row():
    outcomes, scale = [True, False, True, True], CountsAll(8.0, interval=2)
    wrong = [scale.update(is_finite) for is_finite in outcomes]
    assert ours(outcomes, scale=8.0, interval=2) == torchs_own(outcomes, scale=8.0, growth=2, backoff=0.5, interval=2)
    assert wrong != ours(outcomes, scale=8.0, interval=2)


def test_the_defaults_are_torchs():
    scaler, scale = torch.amp.GradScaler("cpu"), LossScale()
    assert scale.scale == scaler.get_scale()
    assert scale.growth == scaler.get_growth_factor()
    assert scale.backoff == scaler.get_backoff_factor()
    assert scale.interval == scaler.get_growth_interval()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": 0.0}, r"scale is 0\.0: give a finite number above 0"),
        ({"scale": -1.0}, r"scale is -1\.0"),
        ({"scale": math.inf}, "scale is inf"),
        ({"scale": math.nan}, "scale is nan"),
        ({"growth": 1.0}, r"growth is 1\.0, backoff 0\.5: give one above 1 and one below"),
        ({"backoff": 1.0}, r"growth is 2\.0, backoff 1\.0"),
        ({"backoff": 0.0}, r"backoff 0\.0"),
        ({"growth": math.nan}, "growth is nan"),
        ({"interval": 0}, "interval is 0: the scale rises after at least 1 good step"),
    ],
)
def test_a_scale_that_is_none_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        LossScale(**settings)


# ---------------------------------------------------------------- the fate of numbers


def round_to_bfloat16(number: float) -> float:
    """To the nearest of the fp32 numbers whose last 16 bits are 0, ties to even; for numbers that fp32 holds."""
    bits = int(np.float32(number).view(np.uint32))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(np.uint32(bits).view(np.float32))


def slow_fate(numbers, dtype, scale):
    """(lost, subnormal, normal, overflow) one by one: numpy's fp16, and bf16 by its bits."""
    with np.errstate(over="ignore", under="ignore"):
        held = [
            abs(float(np.float16(x * scale)) if dtype == FP16 else round_to_bfloat16(x * scale))
            for x in numbers
            if x != 0
        ]
    smallest = 2.0**-14 if dtype == FP16 else 2.0**-126
    kinds = [0 if x == 0 else 1 if x < smallest else 3 if math.isinf(x) else 2 for x in held]
    return [kinds.count(kind) / len(kinds) for kind in range(4)]


def as_list(found):
    return [found.lost, found.subnormal, found.normal, found.overflow]


CASES = [(FP16, 1.0), (FP16, 1000.0), (FP16, 2.0**-7), (torch.bfloat16, 1.0), (torch.bfloat16, 2.0**9)]


@pytest.mark.parametrize(("dtype", "scale"), CASES)
def test_what_becomes_of_numbers_is_what_a_slow_loop_finds(dtype, scale):
    chance = random.Random(1)
    widest = 40 if dtype == FP16 else 126
    numbers = [chance.choice([-1, 1]) * 2 ** chance.uniform(-widest, widest - 15) for _ in range(3000)] + [0.0] * 100
    numbers = torch.tensor(numbers, dtype=torch.float32 if dtype == torch.bfloat16 else torch.float64)
    if dtype == torch.bfloat16:  # fp32 numbers below its normal ones too
        numbers[:300] *= 2.0**-22
    found, wanted = as_list(fate(numbers.view(50, 62), dtype, scale=scale)), slow_fate(numbers.tolist(), dtype, scale)
    assert found == pytest.approx(wanted, abs=1e-12)
    assert sum(found) == pytest.approx(1)
    assert min(found[:3]) > 0


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (2.0**-24, "subnormal"),  # the smallest that there is
        (0.75 * 2.0**-24, "subnormal"),  # is rounded up to it
        (2.0**-25, "lost"),  # half of it: a tie, which goes to the even neighbour, 0
        (2.0**-25 * (1 + 2.0**-10), "subnormal"),
        (0.4 * 2.0**-24, "lost"),
        (2.0**-14, "normal"),
        (2.0**-14 * (1 - 2.0**-10), "subnormal"),
        (65504.0, "normal"),  # the largest that there is
        (65519.0, "normal"),  # is rounded down to it
        (65520.0, "overflow"),  # half way to the next, which there is not
        (math.inf, "overflow"),
    ],
)
def test_the_edges_of_fp16(number, kind):
    for sign in (1, -1):
        assert getattr(fate(torch.tensor([sign * number], dtype=torch.float64)), kind) == 1.0
    if math.isfinite(number):
        assert slow_fate([number], FP16, 1.0)[["lost", "subnormal", "normal", "overflow"].index(kind)] == 1.0


def test_a_scale_is_a_shift_of_all_numbers():
    numbers = torch.randn(1000, dtype=torch.float64) * 1e-7
    assert fate(numbers, scale=2.0**12) == fate(numbers * 2.0**12) != fate(numbers)
    assert fate(numbers * 2.0**-200, scale=2.0**212) == fate(numbers * 2.0**12)  # in 64 bits


@pytest.mark.parametrize(
    ("numbers", "scale", "words"),
    [
        ([0.0, 0.0], 1.0, "all values are 0: give the gradients of a step"),
        ([], 1.0, "all values are 0"),
        ([1.0], 0.0, r"scale is 0\.0: give a finite number above 0"),
        ([1.0], math.nan, "scale is nan"),
        ([1.0], math.inf, "scale is inf"),
    ],
)
def test_numbers_without_a_fate_are_refused(numbers, scale, words):
    with pytest.raises(ValueError, match=words):
        fate(torch.tensor(numbers), scale=scale)


def test_what_is_no_number_is_not_taken_for_0():
    """A gradient with a NaN in it is reported as if it were whole."""
    try:
        found = fate(torch.tensor([1.0, math.nan]))
    except ValueError:
        return
    assert found.normal < 1


# ---------------------------------------------------------------- training in fp16


def losses(dtype, *, scale=None, steps=10):
    model = tiny("causal", shake=0.05)
    records = list(train(model, dataset("causal"), steps=steps, rate=1e-2, dtype=dtype, scale=scale))
    return [record.loss for record in records], records


def test_fp16_follows_fp32():
    (exact, _), (rounded, records) = losses(FP32), losses(FP16)
    assert exact[-1] < 0.9 * exact[0]
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact  # it was computed in fp16
    assert all(record.scale == 2.0**16 and math.isfinite(record.gradient_norm) for record in records)


def test_a_scale_of_no_use_is_the_callers():
    """A scale that is handed in is taken, and only fp16 brings one of its own."""
    assert {record.scale for record in losses(FP16, scale=LossScale(4.0, interval=99), steps=2)[1]} == {4.0}
    assert {record.scale for record in losses(FP32, steps=2)[1]} == {None}


def share_lost(times):
    """Of the gradients of a batch with many targets that are not 0 in fp32, the share that is 0 in fp16."""
    batch, gradients = corrupted("causal", framed_rows()), {}
    for dtype in (FP32, FP16):
        model = tiny("causal", shake=0.05)
        with autocast(torch.device("cpu"), dtype):
            total, count = batch_loss(model, batch)
        (total * (times if dtype == FP16 else 1.0) / (1000 * count)).backward()
        gradients[dtype] = torch.cat([p.grad.flatten() for p in model.parameters()])
    is_there = gradients[FP32] != 0
    return float((gradients[FP16][is_there] == 0).double().mean())


def test_without_a_scale_small_gradients_are_lost():
    assert share_lost(1.0) > 0.2
    assert share_lost(2.0**16) < 0.02


# ---------------------------------------------------------------- a step that is left out


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def overflowing(times=2.0**40):
    """A scale at which the gradients of fp16 are not finite."""
    return LossScale(times, interval=3)


def test_a_step_whose_gradient_overflows_changes_nothing_but_the_scale():
    model, batch, scale = tiny("causal", shake=0.05), corrupted("causal", framed_rows()), overflowing()
    optimizer = make_optimizer(model)
    before = weights_of(model)
    loss, targets, norm = step(model, optimizer, [batch], rate=1e-2, dtype=FP16, scale=scale)
    assert not math.isfinite(norm)
    assert math.isfinite(loss) and targets == batch.is_target_BL.sum()
    assert torch.equal(weights_of(model), before)
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())
    assert scale.scale == 2.0**39
    scale.scale = 2.0**8
    step(model, optimizer, [batch], rate=1e-2, dtype=FP16, scale=scale)
    assert not torch.equal(weights_of(model), before)  # the control: a step that is taken


@pytest.mark.slow
def test_training_goes_on_behind_it_and_the_records_say_which_steps_were_left_out():
    found, records = losses(FP16, scale=overflowing(2.0**24), steps=20)
    left_out = [not math.isfinite(record.gradient_norm) for record in records]
    assert left_out[0] and not left_out[-1] and sum(left_out) >= 3
    for record, then, is_left_out in zip(records, records[1:], left_out, strict=False):
        if is_left_out:
            assert then.scale == record.scale / 2
    assert max(record.scale for record in records[-6:]) > min(record.scale for record in records)  # it rises again
    assert all(map(math.isfinite, found)) and found[-1] < found[0]


def test_a_loss_that_is_not_finite_is_an_error_still():
    """No scale repairs that; the scale falls all the same, for the caller who catches it."""
    model = tiny("causal")
    with torch.no_grad():
        next(model.parameters())[300] = math.nan
    before, scale = weights_of(model).nan_to_num(9.0), LossScale(2.0**8)
    with pytest.raises(FloatingPointError, match="loss nan"):
        step(model, make_optimizer(model), [corrupted("causal", framed_rows())], rate=1e-2, dtype=FP16, scale=scale)
    assert torch.equal(weights_of(model).nan_to_num(9.0), before)


def test_without_a_scale_a_gradient_that_is_not_finite_is_an_error():
    """The control of the steps that are left out."""
    model = tiny("masked")
    model.cls["predictions"].bias.register_hook(lambda gradient: gradient * math.inf)
    batch = corrupted("masked", framed_rows())
    with pytest.raises(FloatingPointError, match="lower the rate"):
        step(model, make_optimizer(model), [batch], rate=1e-3, dtype=FP32)
    assert not math.isfinite(step(model, make_optimizer(model), [batch], rate=1e-3, dtype=FP32, scale=LossScale())[2])


# ---------------------------------------------------------------- the scale leaves no trace


class Looker(torch.optim.SGD):
    """Gradient descent that keeps the gradient it was handed."""

    def step(self):
        self.gradient = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
        super().step()


def handed(scale, clip, objective="causal"):
    """The gradient that the optimiser gets, and the norm that the step returns."""
    model = tiny(objective, shake=0.1)
    looker = Looker(model.parameters(), lr=0.0)
    batch = corrupted(objective, framed_rows())
    parts = [batch.rows(slice(0, 3)), batch.rows(slice(3, None))]
    *_, norm = step(model, looker, parts, rate=0.1, clip=clip, dtype=FP32, scale=scale)
    return looker.gradient, norm


@pytest.mark.parametrize("objective", few(["causal", "masked", "permuted", "span"], "causal"))
@pytest.mark.parametrize("times", [2.0**10, 2.0**-6])
def test_a_scaled_step_in_fp32_is_the_step_without(objective, times):
    """Powers of 2 multiply without rounding."""
    for clip in (math.inf, 0.1):
        (plain, norm), (scaled, its_norm) = handed(None, clip, objective), handed(LossScale(times), clip, objective)
        assert differ(scaled, plain) < 1e-6
        assert its_norm == pytest.approx(norm, rel=1e-6)
        assert norm > 0.2  # so that the smaller limit bites


def clipped_before_unscaling(times, clip):
    """The common mistake, by hand."""
    model, batch = tiny("causal", shake=0.1), corrupted("causal", framed_rows())
    total, count = batch_loss(model, batch)
    (total * times / count).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    return torch.cat([p.grad.flatten() for p in model.parameters()]) / times


def test_the_comparison_above_refuses_a_step_that_clips_before_it_unscales():
    plain, _ = handed(None, 0.1)
    assert plain.norm().item() == pytest.approx(0.1, rel=1e-4)
    wrong = clipped_before_unscaling(2.0**10, 0.1)
    assert wrong.norm().item() == pytest.approx(0.1 / 2.0**10, rel=1e-3)
    assert differ(wrong, plain) > 0.5
    assert differ(clipped_before_unscaling(1.0, 0.1), plain) < 1e-5  # that function is wrong in nothing else


def test_the_records_scale_is_that_of_the_step_not_of_the_next():
    batches = itertools.repeat(corrupted("causal", framed_rows()))
    records = train(
        tiny("causal", shake=0.05), batches, steps=4, rate=1e-3, dtype=FP32, scale=LossScale(2.0, interval=2)
    )
    assert [record.scale for record in records] == [2.0, 2.0, 4.0, 4.0]
