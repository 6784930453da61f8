"""The loss, the step and the loop: sums divided once, runs that repeat to the bit, and losses that fall."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from few import few
from tiny import CASES, CONFIG, corrupted, dataset, differ, framed_rows, packed, row_of, tiny
from torch.nn import functional as F

from course_lib.losses import CHUNK, token_loss
from course_lib.model import MODEL_OF_OBJECTIVE, Encoder
from course_lib.objectives import Batch
from course_lib.optimizers import make_optimizer
from course_lib.runtime import seeded
from course_lib.training import (
    StepRecord,
    batch_loss,
    held_out_loss,
    new_model,
    step,
    train,
    with_progress,
)
from course_lib.vocabulary import IGNORE_INDEX

FP32 = torch.float32

# ---------------------------------------------------------------- the summed loss


def logits_and_labels(n, dtype=FP32, ignored=0.3):
    logits_NV = (3 * torch.randn(n, 50, generator=seeded(1, n))).to(dtype)
    labels_N = torch.randint(50, (n,), generator=seeded(2, n))
    labels_N[torch.rand(n, generator=seeded(3, n)) < ignored] = IGNORE_INDEX
    return logits_NV, labels_N


def with_gradient(loss, logits_NV, labels_N):
    """Value, and gradient of 2.5 times the value."""
    logits_NV = logits_NV.clone().requires_grad_()
    total = loss(logits_NV, labels_N)
    (2.5 * total).backward()
    return total.detach(), logits_NV.grad


def torchs_own(logits_NV, labels_N):
    return F.cross_entropy(logits_NV.double(), labels_N, reduction="sum", ignore_index=IGNORE_INDEX)


def is_cross_entropy(loss, dtype=FP32) -> bool:
    """Value and gradient, for numbers of rows around the chunk's size, with rows left out and without."""
    tolerance = 1e-5 if dtype == FP32 else 3 * 2**-8  # three roundings to 8 bits: two of ours, one of theirs
    for n, ignored in itertools.product([1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7], [0.0, 0.3]):
        logits_NV, labels_N = logits_and_labels(n, dtype, ignored if n > 2 else 0.0)
        (ours, our_gradient), (wanted, gradient) = (with_gradient(f, logits_NV, labels_N) for f in (loss, torchs_own))
        assert our_gradient.dtype == dtype
        if abs(ours - wanted) > 1e-5 * wanted or differ(our_gradient.double(), gradient.double()) > tolerance:
            return False
    return True


def ours(logits_NV, labels_N):
    return token_loss(logits_NV, labels_N)[0]


def last_rows_dropped(logits_NV, labels_N):
    kept = max(CHUNK, len(labels_N) // CHUNK * CHUNK)
    return ours(logits_NV[:kept], labels_N[:kept])


def ignored_as_class_0(logits_NV, labels_N):
    return ours(logits_NV, labels_N.clamp(min=0))


def a_mean(logits_NV, labels_N):
    total, count = token_loss(logits_NV, labels_N)
    return total / count


def gradient_unscaled(logits_NV, labels_N):
    total = ours(logits_NV, labels_N)
    return total / 2.5 + (1.5 / 2.5) * total.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_summed_loss_is_torchs_own_gradient_included(dtype):
    assert is_cross_entropy(ours, dtype)


@pytest.mark.parametrize("mutant", [last_rows_dropped, ignored_as_class_0, a_mean, gradient_unscaled])
def test_the_check_above_refuses(mutant):
    assert not is_cross_entropy(mutant)


def test_the_count_is_that_of_the_labels_and_no_labels_cost_nothing():
    logits_NV, labels_N = logits_and_labels(100)
    assert token_loss(logits_NV, labels_N)[1] == (labels_N != IGNORE_INDEX).sum() < 100
    total, gradient = with_gradient(ours, logits_NV, torch.full_like(labels_N, IGNORE_INDEX))
    assert total == 0
    assert gradient.eq(0).all()


def test_huge_logits_keep_the_loss_finite():
    total, gradient = with_gradient(ours, 1e4 * logits_and_labels(5)[0], torch.zeros(5, dtype=torch.long))
    assert total.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("objective", "positions"), few(CASES, *CASES[::3]))
def test_a_fresh_model_knows_nothing_its_loss_is_the_logarithm_of_the_vocabularys_size(objective, positions):
    """Logits of a fresh model are normal with deviation s = 0.02 sqrt(d_model): they cost s^2 / 2 on average, and each
    target strays by s."""
    model, batch = tiny(objective, positions, shake=0), corrupted(objective, packed().ids_NT[:8])
    total, count = batch_loss(model, batch)
    spread = 0.02 * math.sqrt(CONFIG.d_model)
    assert abs(total.item() / count - math.log(CONFIG.vocab_size)) < spread**2 / 2 + 5 * spread / math.sqrt(count)


# ---------------------------------------------------------------- one step


class Looker(torch.optim.SGD):
    """Gradient descent that keeps the gradient it was handed."""

    def step(self):
        self.gradient = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
        super().step()


def gradient_of(model, micro_batches, dtype=FP32):
    """What a step hands to the optimiser, without clipping, and what it returns."""
    looker = Looker(model.parameters(), lr=0.0)
    result = step(model, looker, micro_batches, rate=1.0, clip=math.inf, dtype=dtype)
    return looker.gradient, *result


def rows_of(batch, start, stop):
    return Batch(**{n: None if t is None else t if len(t) == 1 else t[start:stop] for n, t in vars(batch).items()})


@pytest.mark.parametrize(("objective", "positions"), few(CASES, *CASES[::3]))
def test_one_batch_of_8_equals_micro_batches_of_3_and_5_in_gradient(objective, positions):
    batch = corrupted(objective, framed_rows())
    parts = [rows_of(batch, 0, 3), rows_of(batch, 3, 8)]
    model = lambda: tiny(objective, positions, shake=0.1)
    gradient, loss, targets, norm = gradient_of(model(), [batch])
    ragged, ragged_loss, ragged_targets, ragged_norm = gradient_of(model(), parts)
    assert differ(ragged, gradient) < 1e-6
    assert ragged_targets == targets == batch.is_target_BL.sum()
    assert ragged_loss == pytest.approx(loss, rel=1e-6)
    assert ragged_norm == pytest.approx(norm, rel=1e-5)


def mean_of_means(model, parts):
    """The common mistake: each micro-batch divided by its own targets."""
    for part in parts:
        total, count = batch_loss(model, part)
        (total / count / len(parts)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_the_comparison_above_refuses_a_mean_of_means():
    batch = corrupted("masked", framed_rows())
    parts = [rows_of(batch, 0, 7), rows_of(batch, 7, 8)]
    right, *_ = gradient_of(tiny("masked", shake=0.1), parts)
    wrong = mean_of_means(tiny("masked", shake=0.1), parts)
    assert parts[0].is_target_BL.sum() != parts[1].is_target_BL.sum() > 0
    assert differ(wrong, right) > 0.1


def test_autocast_to_bf16_gives_the_gradient_of_fp32_to_the_accuracy_of_8_bits():
    batch = corrupted("causal", framed_rows())
    exact, exact_loss, *_ = gradient_of(tiny("causal", shake=0.1), [batch])
    rounded, loss, *_ = gradient_of(tiny("causal", shake=0.1), [batch], torch.bfloat16)
    assert rounded.dtype == FP32
    assert 1e-4 < differ(rounded, exact) < 0.03  # the lower bound: it was computed in bf16
    assert loss == pytest.approx(exact_loss, rel=1e-2)


def test_a_micro_batch_without_a_target_adds_nothing():
    batch = corrupted("permuted", framed_rows())
    silent = replace(batch, labels_BL=torch.full_like(batch.labels_BL, IGNORE_INDEX))
    alone, with_silent = (gradient_of(tiny("permuted"), parts)[0] for parts in ([batch], [silent, batch]))
    assert torch.equal(alone, with_silent)


def test_the_norm_is_that_of_the_whole_gradient_and_clip_is_the_most_that_is_left():
    batch = corrupted("causal", framed_rows())
    gradient, _, _, norm = gradient_of(tiny("causal"), [batch])
    assert gradient.norm().item() == pytest.approx(norm, rel=1e-4)
    for clip, left in [(norm / 3, norm / 3), (norm * 3, norm)]:
        model = tiny("causal")
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        sgd = torch.optim.SGD(model.parameters(), lr=0.0)
        assert step(model, sgd, [batch], rate=1.0, clip=clip, dtype=FP32)[2] == pytest.approx(norm)
        moved = before - torch.cat([p.detach().flatten() for p in model.parameters()])
        assert moved.norm().item() == pytest.approx(left, rel=1e-3)


def test_a_step_reports_the_loss_before_the_update():
    model, batch = tiny("masked"), corrupted("masked", framed_rows())
    before = held_out_loss(model, [batch], dtype=FP32)
    loss, *_ = step(model, make_optimizer(model), [batch], rate=1e-3, dtype=FP32)
    assert loss == pytest.approx(before, rel=1e-6)
    assert held_out_loss(model, [batch], dtype=FP32) < before


def test_what_an_interrupted_step_has_left_is_not_counted():
    """The stop button of a notebook strikes between two micro-batches; then the cell is run again."""
    batch = corrupted("causal", framed_rows())

    class Interrupted(Batch):
        def to(self, device):
            raise KeyboardInterrupt

    model = tiny("causal")
    with pytest.raises(KeyboardInterrupt):
        step(model, make_optimizer(model), [batch, Interrupted(**vars(batch))], rate=1e-3, dtype=FP32)
    assert torch.equal(gradient_of(model, [batch])[0], gradient_of(tiny("causal"), [batch])[0])


def broken(model, value=math.nan):
    with torch.no_grad():
        next(model.parameters())[300] = value
    return model


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_weights(model, weights) -> bool:
    return all(torch.equal(t.nan_to_num(9.0), weights[n].nan_to_num(9.0)) for n, t in model.state_dict().items())


def test_a_loss_that_is_not_finite_names_the_step_and_changes_neither_weight_nor_optimizer():
    model, data = tiny("causal"), dataset("causal")
    optimizer = make_optimizer(model)
    records = train(model, data, steps=5, rate=1e-3, optimizer=optimizer, dtype=FP32, start=10)
    assert next(records).step == 11
    broken(model)
    weights, state = weights_of(model), flat_state(optimizer)
    with pytest.raises(FloatingPointError, match=r"step 12: loss nan .*lower the rate"):
        next(records)
    assert same_weights(model, weights)
    assert torch.equal(flat_state(optimizer), state)
    assert all(p.grad is None for p in model.parameters())


def test_the_comparison_above_sees_a_step_that_was_taken():
    model, data = tiny("causal"), dataset("causal")
    optimizer = make_optimizer(model)
    states = [flat_state(optimizer) for _ in train(model, data, steps=2, rate=1e-3, optimizer=optimizer, dtype=FP32)]
    assert not torch.equal(*states)


def flat_state(optimizer):
    """Every number that an optimiser remembers."""
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return torch.cat([moment.detach().clone().flatten() for moment in moments])


def test_a_gradient_that_is_not_finite_changes_no_weight_though_the_loss_is():
    model, batch = tiny("masked"), corrupted("masked", framed_rows())
    model.cls["predictions"].bias.register_hook(lambda gradient: gradient * math.inf)
    weights = weights_of(model)
    with pytest.raises(FloatingPointError, match=r"loss \d.* with gradient norm (inf|nan)"):
        step(model, make_optimizer(model), [batch], rate=1e-3, dtype=FP32)
    assert same_weights(model, weights)


# ---------------------------------------------------------------- the loop


def run(model, batches, steps, **more):
    return list(train(model, batches, steps=steps, rate=lambda n: 1e-3 * (n + 1), dtype=FP32, **more))


def facts(record):
    """All of a record but its duration."""
    return replace(record, seconds=0.0, tokens_per_second=0.0, memory=0)


def test_records_say_what_each_step_did():
    data = dataset("span")
    records = run(tiny("span"), data, 3)
    assert [r.step for r in records] == [1, 2, 3]
    assert [r.rate for r in records] == [1e-3, 2e-3, 3e-3]
    assert [r.targets for r in records] == [int(data.batch(n).is_target_BL.sum()) for n in range(3)]
    read = itertools.accumulate(data.batch(n).input_ids_BT.numel() for n in range(3))
    assert [r.tokens for r in records] == list(read)
    assert all(r.seconds > 0 and r.gradient_norm > 0 for r in records)


def test_stopping_early_is_leaving_the_loop():
    """Nothing is computed beyond the record that was asked for last, and no batch is made in advance."""
    made = []
    data = dataset("masked")
    batches = (made.append(n) or data.batch(n) for n in itertools.count())
    model = tiny("masked")
    for record in train(model, batches, steps=100, rate=1e-3, dtype=FP32):
        if record.step == 2:
            break
    assert made == [0, 1]
    weights = weights_of(model)
    again = tiny("masked")
    run_of_two = list(train(again, data, steps=2, rate=1e-3, dtype=FP32))
    assert same_weights(again, weights)
    assert len(run_of_two) == 2


def test_a_loop_takes_no_batch_more_than_it_trains_on():
    batches = iter([dataset("causal").batch(n) for n in range(3)])
    run(tiny("causal"), batches, 2)
    assert len(list(batches)) == 1


@pytest.mark.parametrize("objective", few(MODEL_OF_OBJECTIVE, "causal"))
def test_a_rerun_is_equal_to_the_bit(objective):
    data, models = dataset(objective), [tiny(objective), tiny(objective)]
    one, two = (list(map(facts, run(model, data, 4))) for model in models)
    assert one == two
    assert same_weights(models[0], weights_of(models[1]))
    other = run(tiny(objective), dataset(objective, seed=1), 4)
    assert [r.loss for r in other] != [r.loss for r in one]


def resumed(stop, *, optimizer=True, start=True, position=True):
    """Six steps in two sittings, all state of the first carried over but for what is switched off."""
    data, first = dataset("masked"), tiny("masked")
    state = make_optimizer(first)
    records = run(first, data, stop, optimizer=state)
    second = tiny("masked", shake=0.9)
    second.load_state_dict(first.state_dict())
    fresh = make_optimizer(second)
    if optimizer:
        fresh.load_state_dict(state.state_dict())
    batches = (data.batch(n) for n in itertools.count(stop if position else 0))
    more = {"start": stop, "tokens": records[-1].tokens} if start else {}
    records += run(second, batches, 6 - stop, optimizer=fresh, **more)
    return list(map(facts, records)), weights_of(second)


def test_a_resumed_run_is_the_undisturbed_one_to_the_bit():
    model = tiny("masked")
    records = list(map(facts, run(model, dataset("masked"), 6)))
    for stop in (1, 4):
        again, weights = resumed(stop)
        assert again == records
        assert same_weights(model, weights)


@pytest.mark.parametrize("forgotten", few(["optimizer", "start", "position"], "optimizer"))
def test_the_comparison_above_sees_what_was_forgotten(forgotten):
    model = tiny("masked")
    records = run(model, dataset("masked"), 6)
    again, weights = resumed(4, **{forgotten: False})
    assert abs(again[-1].loss - records[-1].loss) > 1e-5
    assert not same_weights(model, weights)


@pytest.mark.slow
@pytest.mark.parametrize("objective", MODEL_OF_OBJECTIVE)
def test_a_model_can_learn_one_batch_by_heart(objective):
    """From the first loss to less than a tenth of it: what reaches the optimiser is the gradient of that loss."""
    batch = corrupted(objective, packed().ids_NT[:2])
    model = tiny(objective, shake=0, d_model=32, n_layers=2, n_heads=2, d_ff=64)
    losses = [r.loss for r in train(model, itertools.repeat(batch), steps=150, rate=1e-2, dtype=FP32)]
    assert losses[0] == pytest.approx(math.log(CONFIG.vocab_size), rel=0.05)
    assert losses[-1] < 0.1


def test_batches_that_end_before_the_steps_are_refused_with_their_number():
    batches = [dataset("causal").batch(n) for n in range(2)]
    with pytest.raises(ValueError, match="the batches ended after 2 of 3 steps"):
        run(tiny("causal"), batches, 3)


@pytest.mark.parametrize("objective", few(["causal", "masked"], "masked"))
def test_a_loop_that_accumulates_takes_the_steps_of_its_batches_together(objective):
    """Three steps of two batches each, one by one and in the loop."""
    data, model, by_hand = dataset(objective), tiny(objective), tiny(objective)
    records = run(model, data, 3, accumulate=2)
    optimizer = make_optimizer(by_hand)
    for number, record in enumerate(records):
        pair = [data.batch(2 * number), data.batch(2 * number + 1)]
        loss, targets, norm = step(by_hand, optimizer, pair, rate=1e-3 * (number + 1), dtype=FP32)
        assert (record.loss, record.targets, record.gradient_norm) == (loss, targets, norm)
        assert record.tokens == (number + 1) * sum(batch.input_ids_BT.numel() for batch in pair)
    assert same_weights(model, weights_of(by_hand))
    alone = tiny(objective)
    run(alone, data, 3)
    assert not same_weights(alone, weights_of(by_hand))  # the control


def test_batches_that_end_in_the_middle_of_a_step_are_refused_and_not_trained_on():
    model, batches = tiny("causal"), [dataset("causal").batch(n) for n in range(3)]
    records = train(model, batches, steps=2, rate=1e-3, accumulate=2, dtype=FP32)
    next(records)
    weights = weights_of(model)
    with pytest.raises(ValueError, match="the batches ended after 1 of 2 steps"):
        next(records)
    assert same_weights(model, weights)


@pytest.mark.parametrize(("start", "wanted"), few([(0, [3, 6]), (2, [3, 6]), (4, [6, 9])], (2, [3, 6])))
def test_the_held_out_loss_is_measured_after_every_so_many_steps_of_the_whole_run(start, wanted):
    """After the update, and wherever the run goes on from; what measured it leaves the model in training mode."""
    data, model = dataset("causal"), tiny("causal", dropout=0.1)
    held_out = [data.batch(100)]
    measured = []

    def validate():
        measured.append(held_out_loss(model, held_out, dtype=FP32))
        return measured[-1]

    records = []
    for record in train(model, data, steps=6, rate=1e-3, start=start, dtype=FP32, validate=validate, validate_every=3):
        records.append(record)
        assert model.training
        if record.held_out is not None:
            assert record.held_out == held_out_loss(model, held_out, dtype=FP32)
    assert [r.step for r in records if r.held_out is not None] == wanted
    assert [r.held_out for r in records if r.held_out is not None] == measured
    assert len(set(measured)) == 2


def test_a_loop_trains_in_training_mode_whatever_the_model_was_in_before():
    model = tiny("causal", dropout=0.5).eval()
    (record,) = run(model, dataset("causal"), 1)
    assert model.training
    without_dropout = held_out_loss(tiny("causal", dropout=0.5), [dataset("causal").batch(0)], dtype=FP32)
    assert abs(record.loss - without_dropout) > 1e-3


def test_a_rate_may_be_a_number_and_tokens_go_on_from_those_read_before():
    (record,) = train(tiny("causal"), dataset("causal"), steps=1, rate=1e-3, tokens=1000, dtype=FP32)
    assert (record.rate, record.tokens) == (1e-3, 1000 + 8 * 24)
    assert record.tokens_per_second == pytest.approx(8 * 24 / record.seconds)
    assert record.memory > 1e7
    assert record.held_out is None


def test_a_progress_bar_hands_on_the_records_and_shows_step_and_loss(capsys):
    records = [StepRecord(n, 10 * n, 5, 8.0 - n / 3, 1e-3, 1.0, 0.1) for n in range(5, 8)]
    assert list(with_progress(iter(records), 7)) == records
    last = capsys.readouterr().err.split("\r")[-1]
    assert "7/7" in last
    assert "loss 5.667" in last


def test_a_run_that_cannot_begin_says_so_without_a_bar(capsys):
    def refused():
        raise ValueError("no such text")
        yield

    with pytest.raises(ValueError, match="no such text"):
        list(with_progress(refused(), 7))
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- loss on held-out batches


@pytest.mark.parametrize("was_training", [True, False])
def test_held_out_loss_leaves_weights_gradients_and_mode_as_they_were(was_training):
    model, data = tiny("infilled", dropout=0.3).train(was_training), dataset("infilled")
    weights, batches = weights_of(model), [data.batch(n) for n in range(2)]
    loss = held_out_loss(model, batches, dtype=FP32)
    assert loss == held_out_loss(model, batches, dtype=FP32)  # no dropout
    assert model.training == was_training
    assert same_weights(model, weights)
    assert all(p.grad is None for p in model.parameters())


def test_held_out_loss_is_per_target_however_batches_are_cut():
    model, batch = tiny("causal"), corrupted("causal", framed_rows())
    whole = held_out_loss(model, [batch], dtype=FP32)
    assert held_out_loss(model, [row_of(batch, n) for n in range(8)], dtype=FP32) == pytest.approx(whole, rel=1e-6)
    means = [held_out_loss(model, [row_of(batch, n)], dtype=FP32) for n in range(8)]
    assert abs(sum(means) / 8 - whole) > 1e-3 * whole  # the control: rows of different length


def test_held_out_loss_gives_the_mode_back_even_where_it_fails():
    model = tiny("masked").train()
    with pytest.raises(ValueError, match="MODEL_OF_OBJECTIVE"):
        held_out_loss(model, [corrupted("permuted", framed_rows())], dtype=FP32)
    assert model.training


def test_a_model_is_made_on_the_device_that_is_asked_for():
    assert next(new_model(Encoder, CONFIG, device="cpu").parameters()).device.type == "cpu"
