"""When to stop: patience counted right, and the weights of the best moment, not of another."""

import math

import pytest
import torch
from torch import nn

from course_lib.stopping import BestWeights, EarlyStopping


def stops_after(patience, losses):
    """How many measurements it takes in before it says so, None where it never does."""
    stopping = EarlyStopping(patience)
    return next((n for n, loss in enumerate(losses, 1) if stopping.update(loss)), None)


@pytest.mark.parametrize(
    ("patience", "losses", "wanted"),
    [
        (1, [3, 2, 2], 3),  # equal is no better
        (2, [3, 2, 2.5, 2.4], 4),  # falling again, and yet above the lowest
        (2, [3, 2, 2.5, 1.9, 2.0, 1.8, 1.7], None),  # a new lowest starts the count anew
        (3, [1, math.nan, math.nan, math.nan], 4),
        (2, [1, math.inf, 0.5, math.nan, 0.7], 5),
        (2, [1, -math.inf, 0.5, 0.6, 0.4, 0.5, 0.5], 7),  # nonsense does not become the lowest
        (2, [math.nan, 5, 4, 3, 2], None),
        (1, [math.inf], 1),
    ],
)
def test_patience_ends_after_so_many_measurements_in_a_row_that_are_not_below_the_lowest(patience, losses, wanted):
    assert stops_after(patience, losses) == wanted


def test_patience_goes_on_where_it_was_left():
    losses = [3, 2, 2.5, 2.4, 2.3]
    first = EarlyStopping(3)
    for loss in losses[:3]:
        first.update(loss)
    second = EarlyStopping(3, first.lowest, first.misses)
    assert [second.update(loss) for loss in losses[3:]] == [False, True]
    forgetful = EarlyStopping(3)
    assert [forgetful.update(loss) for loss in losses[3:]] == [False, False]  # the control


def test_no_patience_is_refused():
    with pytest.raises(ValueError, match="patience is 0: wait for at least 1 measurement"):
        EarlyStopping(0)


def after(losses, patience=None):
    """A model whose weight counts the measurements, and what keeps its best."""
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    best = BestWeights(model, patience)
    for number, loss in enumerate(losses, 1):
        nn.init.constant_(model.weight, number)
        nn.init.constant_(model.bias, number)
        if best.update(loss):
            break
    return model, best


def test_the_weights_of_the_lowest_loss_come_back_and_frozen_ones_stay():
    model, best = after([3.0, 1.0, math.nan, 1.0, 2.0])
    assert not best.is_best and model.weight.item() == 5  # the control: it has gone on
    best.restore()
    assert model.weight.item() == 2 and model.bias.item() == 5


def test_the_best_is_the_last_measurement_only_where_it_is_lower():
    best = BestWeights(nn.Linear(1, 1))
    assert not best.is_best
    assert [(best.update(loss), best.is_best)[1] for loss in (3, 3, 2, math.nan, 1)] == [True, False, True, False, True]


def test_patience_ends_it_and_without_patience_nothing_does():
    assert after([1.0] * 9, patience=2)[0].weight.item() == 3
    assert after([1.0] * 9)[0].weight.item() == 9
    with pytest.raises(ValueError, match="patience is 0"):
        BestWeights(nn.Linear(1, 1), 0)


def test_what_it_keeps_are_copies():
    model, best = after([1.0])
    with torch.no_grad():
        model.weight += 7
    assert best.weights["weight"].item() == 1


def test_without_a_finite_loss_there_is_nothing_to_go_back_to():
    with pytest.raises(FloatingPointError, match="never a finite number: lower the rate"):
        after([math.nan, math.inf])[1].restore()
