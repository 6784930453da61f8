"""What every test starts from: one thread, for small tensors only wait for each other on two, and the same examples
of every property on every run, fewer of them where slow tests are left out."""

import gc

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("everywhere", "exercises")  # so that its assertions say what they saw

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
settings.register_profile("quick", settings.get_profile("course"), max_examples=30)


def pytest_configure(config):
    settings.load_profile("quick" if "not slow" in config.option.markexpr else "course")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
