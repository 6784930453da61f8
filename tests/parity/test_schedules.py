"""Our schedules against those of `transformers`: equal from the end of the warm-up on, and one step ahead in it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.schedules import Schedule

transformers = pytest.importorskip("transformers", reason="install the extra [interop] for the parity tests")

pytestmark = pytest.mark.slow

TOLERANCE = 1e-12


def theirs(name, **settings):
    """Their factor as a function of the step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return getattr(transformers, f"get_{name}")(optimizer, **settings).lr_lambdas[0]


def constant(warmup, total, floor, decay):
    return Schedule("constant", 1.0, total, warmup), theirs("constant_schedule_with_warmup", num_warmup_steps=warmup)


def linear(warmup, total, floor, decay):
    twin = theirs("linear_schedule_with_warmup", num_warmup_steps=warmup, num_training_steps=total)
    return Schedule("linear", 1.0, total, warmup), twin


def cosine(warmup, total, floor, decay):
    twin = theirs("cosine_schedule_with_warmup", num_warmup_steps=warmup, num_training_steps=total)
    return Schedule("cosine", 1.0, total, warmup), twin


def cosine_with_floor(warmup, total, floor, decay):
    twin = theirs(
        "cosine_with_min_lr_schedule_with_warmup",
        num_warmup_steps=warmup,
        num_training_steps=total,
        min_lr_rate=floor,
    )
    return Schedule("cosine", 1.0, total, warmup, floor), twin


def warmup_stable_decay(warmup, total, floor, decay):
    twin = theirs(
        "wsd_schedule",
        num_warmup_steps=warmup,
        num_decay_steps=decay,
        num_training_steps=total,
        min_lr_ratio=floor,
        decay_type="linear",
    )
    return Schedule("warmup_stable_decay", 1.0, total, warmup, floor, decay / total), twin


def inverse_square_root(warmup, total, floor, decay):
    warmup = max(1, warmup)
    twin = theirs("inverse_sqrt_schedule", num_warmup_steps=warmup)
    return Schedule("inverse_square_root", 1.0, total, warmup), twin


PAIRS = (constant, linear, cosine, cosine_with_floor, warmup_stable_decay, inverse_square_root)


def agree(ours, twin, steps) -> bool:
    return all(abs(ours.factor(step) - twin(step)) <= TOLERANCE for step in steps)


runs = st.tuples(st.integers(0, 60), st.integers(1, 200), st.integers(1, 200), st.floats(0, 1))


@pytest.mark.parametrize("pair", PAIRS)
@settings(max_examples=40)
@given(run=runs)
def test_from_the_end_of_the_warm_up_on_the_factors_are_theirs(pair, run):
    warmup, stable, decay, floor = run
    total = warmup + stable + decay
    ours, twin = pair(warmup, total, floor, decay)
    assert agree(ours, twin, range(ours.warmup, total + 1))


@pytest.mark.parametrize("pair", PAIRS)
@settings(max_examples=40)
@given(run=runs)
def test_in_the_warm_up_ours_stand_exactly_one_step_ahead(pair, run):
    warmup, stable, decay, _ = run
    ours, twin = pair(warmup, warmup + stable + decay, 0.0, decay)  # their warm-up of two shapes begins at the floor
    for step in range(ours.warmup):
        assert abs(ours.factor(step) - twin(step + 1)) <= TOLERANCE
        assert abs(ours.factor(step) - twin(step)) > 1e-3


@pytest.mark.parametrize("pair", PAIRS)
def test_the_comparison_above_sees_a_schedule_that_is_off_by_one_step(pair):
    ours, twin = pair(10, 100, 0.1, 30)
    late = lambda step: twin(step + 1)
    assert agree(ours, twin, range(10, 101))
    assert pair is constant or not agree(ours, late, range(10, 101))
    assert not agree(ours, twin, range(10))


def test_past_the_end_their_cosine_rises_again_and_ours_stays():
    ours, twin = cosine(10, 100, 0.0, 0)
    assert twin(150) > 0.5
    assert ours.factor(150) == 0.0
