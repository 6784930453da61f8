import itertools
import platform
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import within_binomial
from torch.utils.checkpoint import checkpoint

from course_lib import runtime
from course_lib.runtime import (
    autocast,
    describe_machine,
    fast_dtype,
    kept_for_backward,
    matmul_rate,
    peak_memory,
    pick_device,
    seeded,
    threads,
)

CPU = torch.device("cpu")


@pytest.fixture
def only_cpu(monkeypatch):
    monkeypatch.delenv("COURSE_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_a_name_beats_the_environment_and_the_environment_beats_what_is_there(only_cpu, monkeypatch):
    assert pick_device() == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device().type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device().type == "cuda"
    monkeypatch.setenv("COURSE_DEVICE", "mps")
    assert pick_device().type == "mps"
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize(("name", "words"), [("tpu", "unknown: choose one of cpu, cuda, mps"), ("cuda", "not on this")])
def test_a_device_that_cannot_be_had_is_refused_from_either_side(only_cpu, monkeypatch, name, words):
    with pytest.raises(ValueError, match=words):
        pick_device(name)
    monkeypatch.setenv("COURSE_DEVICE", name)
    with pytest.raises(ValueError, match=rf"{name}.*{words}"):
        pick_device()


SEEDS = [(a,) for a in range(8)] + list(itertools.product(range(8), repeat=2)) + [(1, 2, 3), (3, 2, 1), (0, 0, 0)]


def streams_are_unrelated(make) -> bool:
    """Each tuple of seeds gives a stream of its own, and the bits of two agree half the time."""
    bits = [torch.randint(2, (400,), generator=make(*seeds)) for seeds in SEEDS]
    return all(within_binomial(int((a == b).sum()), 400, 0.5) for a, b in itertools.combinations(bits, 2))


@pytest.mark.slow
def test_seeds_that_differ_in_value_order_or_number_give_unrelated_streams():
    assert streams_are_unrelated(seeded)


@pytest.mark.slow
@pytest.mark.parametrize("mix", [sum, lambda seeds: seeds[0], lambda seeds: hash(tuple(sorted(seeds)))])
def test_the_check_above_refuses(mix):
    assert not streams_are_unrelated(lambda *seeds: torch.Generator().manual_seed(mix(seeds) & 0xFFFF))


def test_a_seed_may_be_any_whole_number_from_0_up():
    def first(*seeds):
        return torch.rand(4, generator=seeded(*seeds)).tolist()

    assert first(np.int64(3), np.uint8(4)) == first(3, 4)
    assert first(2**80) != first(2**80 + 1)
    assert seeded(0).device == CPU


def test_threads_are_put_back_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(2):
        assert torch.get_num_threads() == 2
        raise KeyError
    assert torch.get_num_threads() == before


def leaves_the_callers_randomness_alone(measure) -> bool:
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    measure()
    return torch.equal(torch.rand(3), wanted)


def test_measuring_moves_no_random_number_of_the_caller():
    assert leaves_the_callers_randomness_alone(partial(matmul_rate, torch.float32, CPU, size=16, repeats=1))
    assert not leaves_the_callers_randomness_alone(partial(torch.randn, 16, 16))


@pytest.mark.parametrize(("gain", "wanted"), [(1.4, torch.float32), (1.6, torch.bfloat16)])
def test_bf16_is_chosen_only_where_a_measurement_says_that_it_pays(monkeypatch, gain, wanted):
    monkeypatch.setattr(runtime, "matmul_rate", lambda dtype, device, size: gain if dtype == torch.bfloat16 else 1.0)
    fast_dtype.cache_clear()
    assert fast_dtype(CPU) == wanted
    with autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == wanted
    fast_dtype.cache_clear()


@pytest.mark.parametrize(("rate", "is_measured"), [(0.01, False), (1.0, True)])
def test_where_a_small_product_is_hopeless_in_bf16_no_large_one_is_tried(monkeypatch, rate, is_measured):
    sizes = []

    def measured(dtype, device, size):
        sizes.append(size)
        return rate if dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(runtime, "matmul_rate", measured)
    fast_dtype.cache_clear()
    assert fast_dtype(CPU) == torch.float32
    assert (768 in sizes) == is_measured
    fast_dtype.cache_clear()


def test_autocast_to_fp32_does_nothing_and_to_bf16_does():
    with autocast(CPU, torch.float32):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(CPU, torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not show its own count")
def test_peak_memory_is_what_the_system_counts_in_bytes():
    counted = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    assert abs(peak_memory() - counted) < 0.05 * counted


def test_a_record_learns_the_versions_without_local_marks():
    machine = describe_machine()
    assert set(machine) == {"processor", "device", "cores", "threads", "system", "python", "torch"}
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", machine["torch"])
    assert machine["threads"] == torch.get_num_threads()


# what is kept for the backward pass

FLOAT = 4  # bytes


def kept(model, x, counted_as=None):
    """Bytes that a model's forward pass keeps. counted_as: the model whose parameters do not count."""
    with kept_for_backward(counted_as or model) as found:
        model(x).sum()
    return found.bytes


def linear(n_in, n_out, *, trains=True):
    return torch.nn.Linear(n_in, n_out).requires_grad_(trains)


@pytest.mark.parametrize("n_rows", [1, 2, 7])
def test_a_linear_layer_keeps_its_input_and_relu_its_output(n_rows):
    x_NI = torch.randn(n_rows, 5, generator=seeded(0))
    assert kept(linear(5, 3), x_NI) == FLOAT * n_rows * 5
    assert kept(torch.nn.Sequential(linear(5, 3), torch.nn.ReLU()), x_NI) == FLOAT * n_rows * (5 + 3)
    deep = torch.nn.Sequential(linear(5, 3), torch.nn.ReLU(), linear(3, 4), torch.nn.ReLU())
    assert kept(deep, x_NI) == FLOAT * n_rows * (5 + 3 + 4)  # what relu gives is what the next layer reads


class Squared(torch.nn.Module):
    """Keeps one tensor under many names: both factors, a view, and the same again."""

    def forward(self, x):
        return x * x + x.view(-1).mul(x.view(-1)).view_as(x) + x.T.exp().T


@pytest.mark.parametrize("shape", [(4, 6), (1, 1)])
def test_what_several_operations_keep_together_counts_once(shape):
    x = torch.ones(shape, requires_grad=True)
    assert kept(Squared(), x) == FLOAT * 2 * x.numel()  # x itself, and what exp gave


def test_the_check_above_refuses_a_count_of_every_name():
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        Squared()(torch.ones(4, 6, requires_grad=True))
    assert sum(sizes) == FLOAT * 5 * 24


def test_a_view_keeps_all_that_it_was_cut_from():
    x = torch.ones(10, 6, requires_grad=True)
    with kept_for_backward(torch.nn.Module()) as found:
        (x[:2] * 1.0).exp() * x[:2]
    assert found.bytes == FLOAT * (10 * 6 + 2 * 6)


def test_parameters_are_there_anyway_and_do_not_count():
    """The weight is kept for the input's gradient: whole, turned and as a view."""
    model, x_NI = linear(5, 3), torch.ones(2, 5, requires_grad=True)
    assert kept(model, x_NI) == FLOAT * 2 * 5
    stranger = linear(5, 3)
    assert kept(model, x_NI, counted_as=stranger) == FLOAT * (2 * 5 + 3 * 5)  # the control: not its own parameters
    with kept_for_backward(model) as found:
        (x_NI @ model.weight.T).sum() + (x_NI * model.weight[0]).sum()
    assert found.bytes == FLOAT * 2 * 5


def test_nothing_is_kept_where_there_will_be_no_backward_pass():
    model, x_NI = torch.nn.Sequential(linear(5, 3), torch.nn.ReLU()), torch.ones(2, 5, requires_grad=True)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert kept(model, x_NI) == 0
    assert kept(model.requires_grad_(False), x_NI.detach()) == 0
    assert kept(model, x_NI) > 0


def test_a_frozen_layer_keeps_nothing_for_its_weights():
    """Its input is wanted for the weight's gradient alone; behind a layer that trains, relu's output is still kept."""
    x_NI = torch.ones(2, 5)
    whole = torch.nn.Sequential(linear(5, 4), torch.nn.ReLU(), linear(4, 3), torch.nn.ReLU())
    below = torch.nn.Sequential(linear(5, 4, trains=False), torch.nn.ReLU(), linear(4, 3), torch.nn.ReLU())
    above = torch.nn.Sequential(linear(5, 4), torch.nn.ReLU(), linear(4, 3, trains=False), torch.nn.ReLU())
    assert kept(whole, x_NI) == FLOAT * 2 * (5 + 4 + 3)
    assert kept(below, x_NI) == FLOAT * 2 * (4 + 3)  # no gradient goes down: not even relu keeps for it
    assert kept(above, x_NI) == FLOAT * 2 * (5 + 4 + 3)
    linear_alone = linear(5, 4, trains=False)
    assert kept(linear_alone, x_NI.requires_grad_()) == 0  # only the weight, which is a parameter


def test_the_backward_pass_is_as_it_would_be_and_counting_ends_with_the_block():
    model, x_NI = torch.nn.Sequential(linear(5, 3), torch.nn.Tanh(), linear(3, 2)), torch.ones(2, 5)
    model(x_NI).square().sum().backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with kept_for_backward(model) as found:
        loss = model(x_NI).square().sum()
    counted = found.bytes
    model(torch.ones(50, 5))
    loss.backward()
    assert found.bytes == counted > 0
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), wanted, strict=True))


def test_counting_ends_with_an_error_too():
    model = linear(5, 3)
    with pytest.raises(KeyError), kept_for_backward(model) as found:
        raise KeyError
    model(torch.ones(2, 5))
    assert found.bytes == 0


def test_tensors_that_come_and_go_at_one_address_count_each():
    """Each call's result is freed before the next one's is made, and memory is used again."""
    layer = linear(256, 256)
    with kept_for_backward(layer) as found:
        for _ in range(10):
            layer(torch.ones(8, 256)).sum()
    assert found.bytes == FLOAT * 10 * 8 * 256


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 8), (torch.bfloat16, 2)])
def test_bytes_go_by_the_number_format(dtype, size):
    assert kept(linear(5, 3).to(dtype), torch.ones(2, 5, dtype=dtype)) == size * 2 * 5


def test_recomputing_keeps_the_input_of_a_stretch_alone():
    model, x_NI = torch.nn.Sequential(linear(5, 4), torch.nn.ReLU(), linear(4, 4), torch.nn.ReLU()), torch.ones(2, 5)
    with kept_for_backward(model) as found:
        checkpoint(model, x_NI, use_reentrant=False).sum()
    assert found.bytes < kept(model, x_NI)


FAULTS = """
import resource, sys
import torch
{before}
import course_lib.runtime
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.set_num_threads(1)
for number in range(40):
    if number == 20:  # until then a piece of the right size is free
        before = faults()
    torch.empty(12 * 2**20).fill_(1.0)  # 48 MiB, freed at once
print(faults() - before)
"""


def faults(before=""):
    """How many pages the system had to clear for 20 new tensors, where others of their size were freed."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(before=before)], check=True, stdout=subprocess.PIPE)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have rules of their own")
def test_a_new_tensor_takes_the_memory_that_a_freed_one_left():
    without = faults("import ctypes; ctypes.CDLL = lambda name: object()")  # the control: mallopt is out of reach
    assert 10 * faults() < without
