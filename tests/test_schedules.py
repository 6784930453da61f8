"""Schedules: a first step that counts, a peak, and no rise behind it; what a loop takes is what LambdaLR gives."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_lib.runtime import seeded
from course_lib.schedules import SHAPES, Schedule

DECAYING = [shape for shape in SHAPES if shape != "constant"]


@st.composite
def schedules(draw, shapes=tuple(SHAPES)):
    """Any schedule that is accepted."""
    shape = draw(st.sampled_from(shapes))
    total, decay_share = draw(st.integers(1, 400)), draw(st.floats(0, 1))
    plateau = total - round(decay_share * total) if shape == "warmup_stable_decay" else total
    warmup = draw(st.integers(min(1, plateau) if shape == "inverse_square_root" else 0, plateau))
    peak, floor = draw(st.floats(1e-6, 10)), draw(st.floats(0, 1))
    return Schedule(shape, peak, total, warmup, floor, decay_share)


def first_step_counts(schedule) -> bool:
    return schedule(0) >= (1 - 1e-9) * schedule.peak / max(1, schedule.warmup, schedule.total) > 0


def never_rises_again(factor, warmup, until) -> bool:
    """Behind the warm-up, past the end of the run included."""
    rates = [factor(step) for step in range(max(0, warmup - 1), until)]
    return all(after <= before + 1e-12 for before, after in itertools.pairwise(rates))


@given(schedules())
def test_the_first_step_is_never_taken_at_rate_0(schedule):
    assert first_step_counts(schedule)


def test_the_check_above_refuses_a_warm_up_that_begins_at_0():
    class Late(Schedule):
        def __call__(self, step):
            return self.peak * step / self.warmup

    assert not first_step_counts(Late("linear", 1.0, 10, 5))


@given(schedules())
def test_the_rate_rises_in_a_line_to_its_peak_and_not_above(schedule):
    warmup = schedule.warmup
    for step in range(warmup):
        assert schedule(step) == pytest.approx(schedule.peak * (step + 1) / warmup, rel=1e-12)
    assert all(0 <= schedule(step) <= schedule.peak for step in range(schedule.total + 20))


@given(schedules())
def test_behind_the_warm_up_the_rate_never_rises_also_past_the_end(schedule):
    assert never_rises_again(schedule.factor, schedule.warmup, 2 * schedule.total + 5)


def test_the_check_above_refuses_the_cosine_that_rises_again():
    """Half a wave is done at the end of the run; a progress that is not held at 1 goes on with the other half."""
    wave = lambda step: 0.5 * (1 + math.cos(math.pi * step / 100))
    assert never_rises_again(wave, 0, 100)
    assert not never_rises_again(wave, 0, 150)


@given(schedules(("linear", "cosine", "warmup_stable_decay")), st.integers(0, 300))
def test_from_the_end_of_the_run_on_the_rate_is_at_its_floor(schedule, beyond):
    assert schedule(schedule.total + beyond) == pytest.approx(schedule.peak * schedule.floor, abs=1e-12)


@given(schedules(("linear", "cosine", "warmup_stable_decay")))
def test_before_its_end_a_run_is_above_its_floor(schedule):
    """Negative control of the test above: the last step still trains."""
    if schedule.floor < 0.99:
        assert schedule(schedule.total - 1) > schedule.peak * schedule.floor * (1 + 1e-9)


def test_shapes_pass_through_the_points_that_their_formulas_give():
    at = lambda shape, step, **more: Schedule(shape, 1.0, 100, **({"warmup": 20} | more)).factor(step)
    assert at("constant", 99) == 1.0
    assert at("linear", 60) == pytest.approx(0.5)
    assert at("linear", 60, floor=0.2) == pytest.approx(0.6)
    assert at("cosine", 40, floor=0.2) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5)))
    assert at("inverse_square_root", 80) == pytest.approx(0.5)
    assert at("warmup_stable_decay", 70) == 1.0
    assert at("warmup_stable_decay", 85, floor=0.2) == pytest.approx(0.6)
    assert at("warmup_stable_decay", 60, decay_share=0.5) == pytest.approx(0.8)


def test_what_decays_is_not_constant():
    for shape in DECAYING:
        assert Schedule(shape, 1.0, 100, 10).factor(99) < 0.5 < Schedule("constant", 1.0, 100, 10).factor(99)


def weights_after(update, steps=12):
    """Plain gradient descent on a bowl: weights that tell every rate on the way."""
    weight = torch.nn.Parameter(torch.randn(5, generator=seeded(1)))
    optimizer = torch.optim.SGD([weight], lr=0.3)
    after_step = update(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        weight.square().sum().backward()
        after_step(step, optimizer)
    return weight.detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_lambda_lr_with_the_factor_takes_the_steps_of_the_loop(shape):
    schedule = Schedule(shape, 0.3, 12, 3, floor=0.1 if shape != "constant" else 0.0)

    def ours(factor):
        def begin(_optimizer):
            def take(step, optimizer):
                for group in optimizer.param_groups:
                    group["lr"] = schedule.peak * factor(step)
                optimizer.step()

            return take

        return begin

    def torchs(optimizer):
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)

        def take(_step, optimizer):
            optimizer.step()
            scheduler.step()

        return take

    theirs = weights_after(torchs)
    assert torch.equal(weights_after(ours(schedule.factor)), theirs)
    assert not torch.equal(weights_after(ours(lambda step: schedule.factor(step + 1))), theirs)  # the control


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape": "cosin"}, r"shape 'cosin' is unknown: choose one of constant, linear, cosine"),
        ({"peak": 0.0}, r"peak is 0.0: give a learning rate above 0"),
        ({"peak": math.inf}, "peak is inf"),
        ({"peak": math.nan}, "peak is nan"),
        ({"floor": -0.1}, "floor is -0.1: give a share between 0 and 1"),
        ({"floor": math.nan}, "floor is nan"),
        ({"decay_share": 1.1}, "decay_share is 1.1: give a share"),
        ({"total": 0}, "total is 0: a run takes at least 1 step"),
        ({"warmup": -1}, "warmup is -1 steps"),
        ({"warmup": 101}, "warmup is 101 steps and the run has only 100 .*shorten the warm-up, or train longer"),
        ({"shape": "warmup_stable_decay", "warmup": 71}, "warmup is 71 steps and the run has only 70 before its rate"),
        ({"shape": "inverse_square_root"}, "warmup is 0: inverse_square_root .*at least 1 step"),
    ],
)
def test_settings_that_make_no_schedule_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        Schedule(**({"shape": "linear", "peak": 1e-3, "total": 100} | settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup": 100},
        {"shape": "warmup_stable_decay", "warmup": 70},
        {"shape": "inverse_square_root", "warmup": 1},
        {"floor": 1.0},
        {"shape": "warmup_stable_decay", "decay_share": 1.0},
        {"shape": "warmup_stable_decay", "decay_share": 0.0, "warmup": 100},
        {"total": 1},
    ],
)
def test_what_lies_just_inside_the_bounds_is_accepted(settings):
    """Negative control of the refusals."""
    assert Schedule(**({"shape": "linear", "peak": 1e-3, "total": 100} | settings))(0) > 0


def test_a_step_before_the_first_is_refused():
    with pytest.raises(ValueError, match="step is -1: steps count from 0"):
        Schedule("linear", 1e-3, 10).factor(-1)
