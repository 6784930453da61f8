"""Activation checkpointing: loss and gradients stay the same to the bit, less is kept, and nothing stays behind."""

import functools

import pytest
import torch
from tiny import CASES, dataset, tiny
from torch import nn

from course_lib import recomputation
from course_lib.architectures import dimensions_of
from course_lib.peft import Full
from course_lib.planner import Plan
from course_lib.recomputation import recomputed_blocks
from course_lib.runtime import kept_for_backward
from course_lib.training import batch_loss, train


def gradients(model, batch, dtype=torch.float32):
    """The loss of a batch, all gradients, and the bytes that were kept for them; dropout draws from one seed."""
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), kept_for_backward(model) as kept:
        total, _ = batch_loss(model, batch)
    total.backward()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), kept.bytes


@pytest.mark.parametrize(("objective", "positions"), CASES)
def test_gradients_are_the_same_to_the_bit_with_dropout_and_less_is_kept(objective, positions):
    model, batch = tiny(objective, positions, dropout=0.2), dataset(objective).batch(0)
    for dtype in (torch.float32, torch.bfloat16):
        loss, gradient, kept = gradients(model, batch, dtype)
        with recomputed_blocks(model):
            loss_again, gradient_again, kept_again = gradients(model, batch, dtype)
        assert torch.equal(loss, loss_again) and torch.equal(gradient, gradient_again)
        assert kept_again < 0.98 * kept


def test_the_check_above_sees_other_dropout(monkeypatch):
    """The control: blocks that do not draw the same again have other gradients."""
    model, batch = tiny("causal", dropout=0.2), dataset("causal").batch(0)
    _, gradient, _ = gradients(model, batch)
    careless = functools.partial(recomputation.checkpoint, preserve_rng_state=False)
    monkeypatch.setattr(recomputation, "checkpoint", careless)
    with recomputed_blocks(model):
        assert not torch.equal(gradient, gradients(model, batch)[1])


def test_each_block_keeps_its_input_as_it_is_planned():
    model, batch = tiny("causal"), dataset("causal").batch(0)
    with recomputed_blocks(model) as n_blocks:
        kept = gradients(model, batch)[2]
    assert n_blocks == model.config.n_layers
    n_rows, length = batch.input_ids_BT.shape
    predicted = batch.is_target_BL.float().mean().item()
    plan = Plan(dimensions_of(model), Full(), "fp32", n_rows, length, predicted=predicted)
    parts = plan.activations()
    assert kept == pytest.approx(parts.inputs_alone, rel=0.02)
    assert parts.total != pytest.approx(kept, rel=0.05)  # the control


def test_training_goes_the_same_way_and_afterwards_blocks_are_what_they_were():
    ends = []
    for again in (False, True):
        model = tiny("causal")
        steps = train(model, iter(dataset("causal")), steps=3, rate=1e-2, dtype=torch.float32)
        if again:
            with recomputed_blocks(model):
                list(steps)
        else:
            list(steps)
        ends.append(model)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in ends), strict=True))
    assert not any("forward" in vars(module) for module in ends[1].modules())
    assert gradients(ends[1], dataset("causal").batch(0))[2] == gradients(ends[0], dataset("causal").batch(0))[2]


def test_blocks_are_what_they_were_after_an_error_too():
    model = tiny("causal")
    with pytest.raises(KeyError), recomputed_blocks(model):
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no GPTBlock or BertBlock: give a model of course_lib\.model"), \
            recomputed_blocks(nn.Linear(2, 2)):  # fmt: skip
        pass
