"""What every test starts from: one thread, for small tensors only wait for each other on two, and the same examples
of every property on every run."""

import gc

import pytest
import torch
from hypothesis import HealthCheck, settings

gc.disable()  # what is imported and collected stays anyway, and each look through it for garbage takes half a second


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


settings.register_profile(
    "course",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("course")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
