"""Which parameter is changed by which rule, and what the rules do to it."""

import copy

import pytest
import torch
from few import few
from tiny import CASES, corrupted, dataset, differ, framed_rows, tiny
from torch import nn

from course_lib.optimizers import Muon, MuonAndAdamW, decay_groups, make_optimizer, orthogonalized
from course_lib.runtime import seeded
from course_lib.training import step, train

FP32 = torch.float32
OFTEN_SEEN = ("bias", "norm", "embedding")  # spared from decay by name in much published code


def names_in(model, groups):
    """Names of the parameters of each group, in the model's own words."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in groups]


# ---------------------------------------------------------------- groups


def is_partition(model, groups) -> bool:
    """Whether every trained parameter is in exactly one group, and nothing else is."""
    trained = sorted(id(p) for p in model.parameters() if p.requires_grad)
    return sorted(id(p) for group in groups for p in group["params"]) == trained


def partly_frozen(model):
    """Every third parameter is not trained: tables, matrices and vectors among them."""
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize("spared_names", [None, OFTEN_SEEN])
@pytest.mark.parametrize(("objective", "positions"), few(CASES, *CASES[::3]))
def test_groups_hold_every_trained_parameter_exactly_once(objective, positions, spared_names):
    for model in (tiny(objective, positions), partly_frozen(tiny(objective, positions))):
        assert is_partition(model, decay_groups(model, 0.05, spared_names=spared_names))


def test_the_check_above_sees_what_is_missing_twice_or_frozen():
    model = tiny("masked")
    decayed, free = decay_groups(model, 0.05)
    assert not is_partition(model, [decayed])
    assert not is_partition(model, [decayed, free, {"params": free["params"][:1]}])
    assert not is_partition(partly_frozen(model), [decayed, free])


@pytest.mark.parametrize(("objective", "positions"), CASES)
def test_muon_and_adamw_share_the_trained_parameters_among_them(objective, positions):
    model = partly_frozen(tiny(objective, positions))
    assert is_partition(model, make_optimizer(model, "muon").param_groups)


def test_matrices_decay_and_vectors_do_not():
    model = tiny("permuted", "learned")
    decayed, free = decay_groups(model, 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    names = [name for name, _ in model.named_parameters()]
    wanted = {n for n in names if n.endswith("bias") or "LayerNorm" in n or n == "query_embedding"}
    decayed_names, free_names = names_in(model, (decayed, free))
    assert set(free_names) == wanted
    assert set(decayed_names) == set(names) - wanted


def test_by_name_a_decoders_normalisation_decays_and_by_dimension_it_does_not():
    """GPT-2 calls it ln_1, which holds neither "bias" nor "norm"."""
    model = tiny("causal")
    by_dimension, by_name = (
        set(names_in(model, decay_groups(model, 0.05, spared_names=names))[1]) for names in (None, OFTEN_SEEN)
    )
    assert by_dimension - by_name == {n for n in by_dimension if "ln_" in n and n.endswith("weight")}
    assert {"transformer.h.0.ln_1.weight", "transformer.ln_f.weight"} <= by_dimension - by_name
    assert by_name <= by_dimension  # wte is an embedding and not called one: both rules let it decay


def test_by_name_an_encoders_tables_are_spared_and_by_dimension_they_decay():
    model = tiny("masked", "learned")
    by_dimension, by_name = (
        set(names_in(model, decay_groups(model, 0.05, spared_names=names))[1]) for names in (None, OFTEN_SEEN)
    )
    tables = {f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}
    assert by_name - by_dimension == tables
    assert by_dimension <= by_name  # what BERT calls LayerNorm is found whatever its case


# ---------------------------------------------------------------- AdamW


def one_update(optimizer, rate=0.1):
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def without_gradient(kind, **options):
    """A layer before and after a step with zero gradient at rate 0.1."""
    linear = nn.Linear(3, 2)
    before = copy.deepcopy(linear)
    optimizer = make_optimizer(linear, kind, **options)
    for parameter in linear.parameters():
        parameter.grad = torch.zeros_like(parameter)
    one_update(optimizer)
    return before, linear


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_shrinks_a_matrix_without_gradient_by_rate_times_decay_and_leaves_its_bias(kind):
    before, after = without_gradient(kind, weight_decay=0.5)
    assert differ(after.weight, before.weight * (1 - 0.1 * 0.5)) < 1e-6
    assert torch.equal(after.bias, before.bias)
    before, after = without_gradient(kind, weight_decay=0.0)  # the control
    assert torch.equal(after.weight, before.weight)


def test_the_step_is_that_of_a_plainly_written_adamw():
    """arXiv:1711.05101, algorithm 2, in double precision."""
    model, data, rate, decay, (beta, gamma) = tiny("causal"), dataset("causal"), 1e-2, 0.3, (0.8, 0.9)
    plain = {n: p.detach().double() for n, p in model.named_parameters()}
    mean, square = ({n: torch.zeros_like(p) for n, p in plain.items()} for _ in range(2))
    optimizer = make_optimizer(model, weight_decay=decay, betas=(beta, gamma))
    gradients = {}
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: gradients.update({name: p.grad.double()}))
    for number in range(1, 4):
        step(model, optimizer, [data.batch(number)], rate=rate, clip=1e9, dtype=FP32)
        for name, g in gradients.items():
            mean[name] = beta * mean[name] + (1 - beta) * g
            square[name] = gamma * square[name] + (1 - gamma) * g * g
            ratio = (mean[name] / (1 - beta**number)) / ((square[name] / (1 - gamma**number)).sqrt() + 1e-8)
            plain[name] -= rate * (ratio + (decay if g.dim() > 1 else 0.0) * plain[name])
    for name, p in model.named_parameters():
        is_key_bias = name.endswith("c_attn.bias")  # its gradient is rounding noise, which AdamW turns into steps
        assert is_key_bias or differ(p.double(), plain[name]) < 1e-4, name


# ---------------------------------------------------------------- Muon


@pytest.mark.parametrize(("objective", "positions"), CASES)
def test_muon_takes_every_matrix_inside_and_no_table(objective, positions):
    model = tiny(objective, positions)
    (decayed, free), (inner,) = (names_in(model, part.param_groups) for part in MuonAndAdamW(
        model, weight_decay=0.1, betas=(0.9, 0.98)).parts)  # fmt: skip
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    matrices = {name for name, p in model.named_parameters() if p.dim() == 2}
    assert set(inner) == matrices - tables
    assert set(decayed) == matrices & tables != set()
    assert set(free) == {name for name, p in model.named_parameters() if p.dim() < 2}
    assert sum("wte" in name or "word_embeddings" in name for name in decayed) == 1  # the tied head is no second one


def spread(matrix) -> float:
    """The largest singular value over the smallest."""
    values = torch.linalg.svdvals(matrix.double())
    return (values[0] / values[-1]).item()


def test_muons_step_is_orthogonal_up_to_the_accuracy_of_its_iteration_and_adamws_is_not():
    """Its five rounds leave singular values between 0.7 and 1.2; small ones widen that a little. Here those of the
    gradient lie 100 apart."""
    left, right = (torch.linalg.qr(torch.randn(64, 64, generator=seeded(n)))[0] for n in range(2))
    gradient = left @ torch.diag(torch.logspace(0, -2, 64)) @ right.T

    def update(kind):
        layer = nn.Linear(64, 64, bias=False)
        before = layer.weight.detach().clone()
        layer.weight.grad = gradient.clone()
        one_update(make_optimizer(layer, kind, weight_decay=0.0), rate=1.0)
        return before - layer.weight.detach()

    assert spread(gradient) == pytest.approx(100, rel=0.01)
    assert spread(update("muon")) < 3
    assert spread(update("adamw")) > 10
    root_mean_square = update("muon").square().mean().sqrt().item()
    assert root_mean_square == pytest.approx(0.2, rel=0.25)  # section 2.2: the size that AdamW's steps have


@pytest.mark.parametrize("shape", [(8, 8), (8, 20), (20, 8), (1, 5), (5, 1)])
def test_each_singular_value_goes_through_the_quintic_and_no_vector_turns(shape):
    """By the singular value decomposition, in double precision, where the library multiplies matrices."""
    matrix = torch.randn(shape, generator=seeded(3), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert differ(orthogonalized(matrix), left @ values.diag() @ right) < 1e-12
    assert shape in ((1, 5), (5, 1)) or differ(orthogonalized(matrix), left @ right) > 0.05  # the control: not exact


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_the_steps_are_those_of_torchs_muon_up_to_its_bf16():
    ours, theirs = (nn.Linear(48, 32, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    optimizers = (
        Muon([ours.weight], weight_decay=0.3),
        torch.optim.Muon([theirs.weight], weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
    )
    for number in range(4):
        gradient = torch.randn(32, 48, generator=seeded(number))
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            layer.weight.grad = gradient.clone()
            one_update(optimizer)
    assert differ(ours.weight - start, theirs.weight - start) < 0.03
    optimizers[0].load_state_dict(optimizers[1].state_dict())  # a run that torch's began goes on with ours
    kept, taken = (next(iter(one.state.values()))["momentum_buffer"] for one in optimizers)
    assert torch.equal(kept, taken)
    plain = Muon([ours.weight], weight_decay=0.3, momentum=0.0)  # the control
    ours.weight.data.copy_(start)
    for number in range(4):
        ours.weight.grad = torch.randn(32, 48, generator=seeded(number))
        one_update(plain)
    assert differ(ours.weight - start, theirs.weight - start) > 0.1


def test_one_rate_reaches_both_parts():
    model = tiny("masked")
    optimizer = make_optimizer(model, "muon")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, optimizer, [corrupted("masked", framed_rows())], rate=1e-2, dtype=FP32)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2}
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"} <= moved
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_state_that_was_saved_and_loaded_continues_to_the_bit(kind):
    data, whole = dataset("masked"), tiny("masked")
    optimizer = make_optimizer(whole, kind)
    trained = lambda model, optimizer, first: list(
        train(model, (data.batch(n) for n in range(first, 6)), steps=2, rate=1e-2, optimizer=optimizer, dtype=FP32)
    )
    trained(whole, optimizer, 0)
    with_state, without = copy.deepcopy(whole), copy.deepcopy(whole)
    loaded, fresh = make_optimizer(with_state, kind), make_optimizer(without, kind)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, its_optimizer in ((whole, optimizer), (with_state, loaded), (without, fresh)):
        trained(model, its_optimizer, 2)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), with_state.parameters(), strict=True))
    for (name, p), q in zip(whole.named_parameters(), without.parameters(), strict=True):  # the control, in each part
        if name in ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"):
            assert differ(q, p) > 1e-3, name


def test_a_state_of_another_kind_is_not_taken():
    model = tiny("masked")
    with pytest.raises((KeyError, ValueError)):
        make_optimizer(model, "muon").load_state_dict(make_optimizer(model).state_dict())


@pytest.mark.parametrize("module", [nn.Linear(3, 2, bias=False), nn.LayerNorm(3)])
def test_a_model_of_matrices_alone_or_of_vectors_alone_has_an_optimizer(module):
    optimizer = make_optimizer(module, "muon")
    assert is_partition(module, optimizer.param_groups)
    before = copy.deepcopy(module)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    one_update(optimizer)
    assert all(not torch.equal(p, q) for p, q in zip(before.parameters(), module.parameters(), strict=True))


def test_another_kind_and_a_model_that_is_all_frozen_are_refused():
    with pytest.raises(ValueError, match="optimizer 'sgd' is unknown: choose one of adamw, muon"):
        make_optimizer(tiny("causal"), "sgd")
    for kind in ("adamw", "muon"):
        with pytest.raises(ValueError, match="no parameter of this Decoder is trained: set requires_grad"):
            make_optimizer(tiny("causal").requires_grad_(False), kind)
