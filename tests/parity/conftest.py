"""Parity tests are all slow. Where no slow test is asked for they are not even read, for what they import takes longer
than many a test."""


def pytest_ignore_collect(config):
    return True if "not slow" in config.option.markexpr else None
