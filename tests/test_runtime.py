import itertools
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import within_binomial

from course_lib import runtime
from course_lib.runtime import (
    autocast,
    describe_machine,
    fast_dtype,
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


def test_seeds_that_differ_in_value_order_or_number_give_unrelated_streams():
    assert streams_are_unrelated(seeded)


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
    monkeypatch.setattr(runtime, "matmul_rate", lambda dtype, device: gain if dtype == torch.bfloat16 else 1.0)
    fast_dtype.cache_clear()
    assert fast_dtype(CPU) == wanted
    with autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == wanted
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
    assert set(machine) == {"processor", "cores", "threads", "system", "python", "torch"}
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", machine["torch"])
    assert machine["threads"] == torch.get_num_threads()
