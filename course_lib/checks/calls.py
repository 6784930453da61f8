"""How the checks of chapter 2 call a learner's function: by keyword, with models that print badly, and on numbers."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from course_lib.checks.report import Wrong, _diagnosed


def invoke(function: Callable[..., Any], *arguments: Any, shown: Mapping[str, Any], **options: Any) -> Any:
    """What the function gives back. The arguments are handed over as they are; `shown` describes them, each by its
    name, for a verdict.

    Raises NotAttempted for an untouched exercise; Wrong if it fails, with the line.
    """
    if not callable(function):
        raise Wrong(f"The check wants the function itself and was given {type(function).__name__}: pass it without ().")
    try:
        with torch.enable_grad():
            return function(*arguments, **options)
    except (Exception, SystemExit) as error:  # noqa: BLE001 a learner's code may fail in any way
        raise _diagnosed(error, function, dict(shown)) from None


def described(value: Any) -> str:
    """A value in words that are safe to print, whatever it is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 such as a half-made module's
        text = ""
    return text or f"a {type(value).__name__}"


def two(value: Any, names: tuple[str, str], **evidence: Any) -> tuple[Any, Any]:
    """`value` as two things. Raises Wrong if it is not two."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise Wrong(f"Give back two values: {names[0]} and {names[1]}.", **evidence, given=described(value))
    return value[0], value[1]


def number(value: Any, name: str, **evidence: Any) -> float:
    """`value` as a plain number. Raises Wrong if it is none, a tensor included."""
    if isinstance(value, torch.Tensor):
        raise Wrong(
            f"{name} is a tensor and should be a plain number (float): a tensor drags its graph and its device along.",
            **evidence,
            given=described(value),
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"{name} should be a number and is {type(value).__name__}.", **evidence, given=described(value))
    return float(value)
