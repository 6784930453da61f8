"""Of a long parametrisation, `make quick` runs a few cases; the others are slow."""

import pytest


def few(cases, *quick):
    """The same cases in the same order, all but `quick` marked slow. A case that is a tuple holds several arguments."""
    cases = list(cases)
    for case in quick:
        assert case in cases, f"{case!r} is none of the cases: {cases}"
    return [case if case in quick else pytest.param(*_arguments(case), marks=pytest.mark.slow) for case in cases]


def _arguments(case):
    return case if isinstance(case, tuple) else (case,)
