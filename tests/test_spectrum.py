"""What training did to a matrix: energies by numpy and by Eckart and Young, approximations that nothing of their rank
beats, and changes that are cut down in place.
"""

import numpy as np
import pytest
import torch
from peft_models import CONFIG, make, own_weights, scramble, train, unequal
from tiny import differ
from torch import nn

from course_lib.layers import Conv1D
from course_lib.model import Encoder
from course_lib.peft import Full, LoRA, apply, merge_and_unload
from course_lib.peft.spectrum import Spectrum, changes, cut_changes, spectrum, weights_of
from course_lib.runtime import seeded

TOLERANCE = 1e-5  # relative to the largest value compared, fp32


def random(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed, *shape))


MATRICES = {
    "square": random(9, 9),
    "wide": random(5, 12),
    "tall": random(12, 5),
    "one row": random(1, 7),
    "of rank 3": random(10, 3) @ random(3, 8),
    "with equal values": torch.eye(6),
    "falling fast": random(8, 8) @ torch.diag(2.0 ** -torch.arange(8)),
}
NAMES = list(MATRICES)


def length2(matrix):
    return float(matrix.double().square().sum())


# energy


@pytest.mark.parametrize("name", NAMES)
def test_energy_is_that_of_numpys_singular_values(name):
    values = np.linalg.svd(MATRICES[name].double().numpy(), compute_uv=False)
    wanted = (values**2).cumsum() / (values**2).sum()
    assert spectrum(MATRICES[name]).energy_kept() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_energy_is_what_the_best_approximation_leaves_over(name):
    """Eckart and Young 1936: the squared distance to it is the energy that it does not keep."""
    matrix, found = MATRICES[name], spectrum(MATRICES[name])
    for rank, kept in enumerate(found.energy_kept(), 1):
        cut = found.truncated(rank)
        assert length2(cut) / length2(matrix) == pytest.approx(kept, abs=1e-6)
        assert length2(matrix - cut) / length2(matrix) == pytest.approx(1 - kept, abs=1e-6)


def test_the_check_above_refuses_lengths_that_were_not_squared(monkeypatch):
    def unsquared(self):
        return (self.values_R.cumsum(0) / self.values_R.sum()).numpy()

    monkeypatch.setattr(Spectrum, "energy_kept", unsquared)
    for check in (
        test_energy_is_that_of_numpys_singular_values,
        test_energy_is_what_the_best_approximation_leaves_over,
    ):
        with pytest.raises(AssertionError):
            check("square")


@pytest.mark.parametrize("name", NAMES)
def test_energy_never_falls_and_ends_at_one(name):
    kept = spectrum(MATRICES[name]).energy_kept()
    assert len(kept) == min(MATRICES[name].shape)
    assert kept[0] > 0 and (np.diff(kept) >= 0).all() and kept[-1] == pytest.approx(1, abs=1e-12)


def test_each_further_rank_keeps_less_than_the_one_before():
    for matrix in MATRICES.values():
        gained = np.diff(spectrum(matrix).energy_kept(), prepend=0)
        assert (np.diff(gained) <= 1e-12).all()


@pytest.mark.parametrize("factor", [1e-18, 1e-3, 1e12])
def test_energy_knows_no_unit(factor):
    """Changes are small: their squares would vanish in fp32."""
    kept = spectrum(factor * MATRICES["square"]).energy_kept()
    assert kept == pytest.approx(spectrum(MATRICES["square"]).energy_kept(), abs=1e-5)


def test_no_change_has_no_energy_and_every_approximation_of_it_is_zero():
    found = spectrum(torch.zeros(4, 6))
    assert found.energy_kept().tolist() == [0.0] * 4
    assert torch.equal(found.truncated(2), torch.zeros(4, 6))


# the best approximation


def competitors(matrix, rank, best):
    """Matrices of this rank: random directions with the best fit to them, and neighbours of the best."""
    for seed in range(20):
        left_OR = torch.linalg.qr(random(len(matrix), rank, seed=seed))[0]
        yield left_OR @ (left_OR.T @ matrix)
        yield random(len(matrix), rank, seed=seed) @ random(rank, matrix.shape[1], seed=seed + 100)
        start_OR = torch.linalg.svd(best)[0][:, :rank] + 0.03 * random(len(matrix), rank, seed=seed)
        near_OR = torch.linalg.qr(start_OR)[0]
        yield near_OR @ (near_OR.T @ matrix)


def is_best(matrix, rank, cut):
    distance = length2(matrix - cut)
    others = [length2(matrix - other) for other in competitors(matrix, rank, cut)]
    return torch.linalg.matrix_rank(cut, rtol=1e-5) <= rank and distance <= min(others) * (1 + 1e-5) + 1e-9


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "one row"])
def test_nothing_of_its_rank_is_closer(name, rank):
    assert is_best(MATRICES[name], rank, spectrum(MATRICES[name]).truncated(rank))


def test_the_check_above_refuses_the_smallest_values_a_wrong_length_and_a_larger_rank():
    matrix = MATRICES["square"]
    found = spectrum(matrix)
    smallest = (found.left_OR[:, -2:] * found.values_R[-2:]) @ found.right_RI[-2:]
    for wrong in (smallest, 0.9 * found.truncated(2), found.truncated(3)):
        assert not is_best(matrix, 2, wrong)


@pytest.mark.parametrize("name", NAMES)
def test_at_full_rank_and_above_the_matrix_comes_back(name):
    matrix = MATRICES[name]
    for rank in (min(matrix.shape), 100):
        assert differ(spectrum(matrix).truncated(rank), matrix) < TOLERANCE


def test_an_update_of_lora_has_all_its_energy_within_its_rank():
    model = make("encoder")
    before = weights_of(model)
    apply(model, LoRA(rank=3))
    merge_and_unload(scramble(model))
    for name, delta in changes(before, weights_of(model)).items():
        kept = spectrum(delta).energy_kept()
        assert kept[2] == pytest.approx(1, abs=1e-6) and kept[1] < 0.999, name


def test_at_rank_zero_nothing_is_left_and_a_negative_rank_is_refused():
    assert torch.equal(spectrum(MATRICES["wide"]).truncated(0), torch.zeros(5, 12))
    with pytest.raises(ValueError, match="rank is -1: give at least 0"):
        spectrum(MATRICES["wide"]).truncated(-1)


# weights and their changes


def test_weights_are_copies_under_their_layers_names():
    model = make("encoder")
    before = weights_of(model, ["query", "value"])
    assert list(before) == [f"encoder.layer.{n}.attention.self.{name}" for n in (0, 1) for name in ("query", "value")]
    kept = {name: weight.clone() for name, weight in before.items()}
    scramble(model)
    assert not unequal(before, kept)
    assert not any(weight.requires_grad for weight in before.values())
    for name, delta in changes(before, weights_of(model)).items():
        assert torch.equal(delta, model.get_submodule(name).weight - kept[name])


def test_targets_that_match_nothing_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"no layer matches \['q_proj'\].*attention\.self\.query"):
        weights_of(make("encoder"), ["q_proj"])


# cutting down in place


@pytest.fixture(params=["encoder", "decoder", "plain"])
def trained(request):
    """A model after full fine-tuning, and what its linear layers were before: [out, in], or [in, out] as GPT-2's."""
    model = make(request.param)
    before = weights_of(model)
    apply(model, Full())
    train(model, steps=3)
    return model, before, {name: spectrum(delta) for name, delta in changes(before, weights_of(model)).items()}


def test_at_full_rank_the_trained_model_comes_back(trained):
    model, before, spectra = trained
    wanted = weights_of(model)
    for name in before:
        nn.init.zeros_(model.get_submodule(name).weight)
    cut_changes(model, before, spectra, rank=1000)
    assert max(differ(weight, wanted[name]) for name, weight in weights_of(model).items()) < TOLERANCE


def test_at_rank_one_every_layer_has_moved_by_its_best_approximation_of_rank_one(trained):
    model, before, spectra = trained
    wanted = weights_of(model)
    cut_changes(model, before, spectra, rank=1)
    for name, delta in changes(before, weights_of(model)).items():
        assert differ(delta, spectra[name].truncated(1)) < 1e-3  # fp32, beside weights much larger than their change
        assert not torch.equal(before[name] + delta, before[name])
        assert differ(before[name] + delta, wanted[name]) > TOLERANCE
        assert spectrum(delta).energy_kept()[0] > 0.9999 > spectra[name].energy_kept()[0]


def test_all_other_parameters_stay_to_the_bit(trained):
    model, before, spectra = trained
    whole = own_weights(model)
    cut_changes(model, before, spectra, rank=1)
    assert unequal(whole, own_weights(model)) == sorted(f"{name}.weight" for name in before)


def test_the_check_above_sees_a_bias_that_moved_too(trained):
    model, before, spectra = trained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("course_lib.peft.spectrum.Spectrum.truncated", moving_a_bias(model, next(iter(before))))
        with pytest.raises(AssertionError):
            test_all_other_parameters_stay_to_the_bit((model, before, spectra))


def moving_a_bias(model, name):
    truncated = Spectrum.truncated

    def wrong(self, rank):
        model.get_submodule(name).bias.data += 1
        return truncated(self, rank)

    return wrong


def test_only_the_layers_that_are_named_are_cut(trained):
    model, before, spectra = trained
    whole, name = own_weights(model), next(iter(before))
    cut_changes(model, {name: before[name]}, spectra, rank=1)
    assert unequal(whole, own_weights(model)) == [f"{name}.weight"]


def test_cutting_again_to_a_lower_rank_is_cutting_once(trained):
    """Each cut starts from the weights before and the whole change, not from the last cut."""
    model, before, spectra = trained
    cut_changes(model, before, spectra, rank=1)
    once = own_weights(model)
    cut_changes(model, before, spectra, rank=3)
    assert unequal(once, own_weights(model))
    cut_changes(model, before, spectra, rank=1)
    assert not unequal(once, own_weights(model))


def test_a_change_of_zero_leaves_the_weights_to_the_bit():
    model = Encoder(CONFIG)
    before = weights_of(model)
    spectra = {name: spectrum(delta) for name, delta in changes(before, weights_of(model)).items()}
    assert all(not s.energy_kept().any() for s in spectra.values())
    cut_changes(model, before, spectra, rank=2)
    assert not unequal(before, weights_of(model))


def test_at_rank_zero_the_layers_are_what_they_were_before(trained):
    model, before, spectra = trained
    assert unequal(before, weights_of(model)) == sorted(before)
    cut_changes(model, before, spectra, rank=0)
    assert not unequal(before, weights_of(model))


def test_a_negative_rank_is_refused_before_anything_moves(trained):
    model, before, spectra = trained
    whole = own_weights(model)
    with pytest.raises(ValueError, match="rank is -1: give at least 0"):
        cut_changes(model, before, spectra, rank=-1)
    assert not unequal(whole, own_weights(model))


def test_no_gradient_is_kept_of_a_cut():
    layer = Conv1D(4, 6)
    model = nn.ModuleDict({"mlp": layer})
    before = weights_of(model)
    with torch.no_grad():
        layer.weight += random(4, 6)
    cut_changes(model, before, {"mlp": spectrum(changes(before, weights_of(model))["mlp"])}, rank=1)
    assert layer.weight.requires_grad and layer.weight.is_leaf and layer.weight.shape == (4, 6)
