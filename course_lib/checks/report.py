"""What all checks share: call a learner's function without being harmed by it, and print one verdict.

A check verifies by running; it raises `Wrong` with what it saw. Nothing that a learner's code does reaches the notebook
as an error, the verdict never holds a solution, and the chapter goes on with the library's function where it must.
"""

import copy
import numbers
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_lib.lab import stamp

MOST_SHOWN = 160  # characters of a value


class Wrong(Exception):  # noqa: N818 it is a verdict
    """A learner's function is wrong: the usual cause, and what shows it, by name ("input", "wanted", "given")."""

    def __init__(self, cause: str, **evidence: Any) -> None:
        super().__init__(cause)
        self.cause, self.evidence = cause, evidence


class NotAttempted(Exception):  # noqa: N818 it is a verdict
    """The exercise is as it was handed out."""


@dataclass(frozen=True)
class Part:
    """One function of an exercise. verify(function) says what it has verified, or raises."""

    name: str
    function: Callable[..., Any]
    verify: Callable[[Callable[..., Any]], str]
    reference: Callable[..., Any]


def report(*parts: Part) -> tuple[Callable[..., Any], ...]:
    """Print one verdict about the parts of an exercise; the learner's functions where right, else the library's."""
    chosen, lines = [], []
    for part in parts:
        is_right, verdict = judge(part)
        lines.append(verdict)
        chosen.append(part.function if is_right else part.reference)
    if any(function is part.reference for function, part in zip(chosen, parts, strict=True)):
        lines.append("The chapter goes on with the library's version.")
    print("\n".join(lines))
    return tuple(chosen)


def judge(part: Part) -> tuple[bool, str]:
    """Whether a function is right, and the verdict in words."""
    try:
        with torch.random.fork_rng(devices=[]):
            verified = part.verify(part.function)
            own = part.function if isinstance(part.function, tuple) else (part.function,)
            return True, f"✓ {part.name}: correct. Verified: {verified}.{stamp(*own)}"
    except NotAttempted:
        return False, f"· {part.name}: not attempted yet."
    except Wrong as wrong:
        wide = max((len(name) for name in wrong.evidence), default=0)
        shown = [f"    {name:<{wide}}  {_shown(value)}" for name, value in wrong.evidence.items()]
        return False, "\n".join([f"✗ {part.name}: not right yet.", *shown, f"  {wrong.cause}"])
    except Exception as error:  # noqa: BLE001 what a learner's function gives back may be anything
        return (
            False,
            f"✗ {part.name}: the check could make nothing of what it gave back ({type(error).__name__}: {error}).",
        )


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


def call(function: Callable[..., Any], **arguments: Any) -> Any:
    """What the function gives back for copies of the arguments, in their order (names are for the verdict).

    Raises NotAttempted for an untouched exercise; Wrong if it fails, with the line, or if it changes an argument.
    """
    copies = {name: _copy(value) for name, value in arguments.items()}
    result = invoke(function, *copies.values(), shown=arguments)
    for name, value in arguments.items():
        if not isinstance(value, torch.Generator) and not same(value, copies[name]):
            raise Wrong(
                f"{name} was changed in place: the caller still needs the original. Work on a copy, or use an "
                "operation that makes a new value (names ending in _ and assignments to a[...] change the old one).",
                before=value,
                after=copies[name],
            )
    return result


def same(left: Any, right: Any) -> bool:
    """Equality that also works for tensors, arrays, and what holds them."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and bool(torch.equal(left, right))
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return type(left) is type(right) and bool(left == right)


def described(value: Any) -> str:
    """A value in words that are safe to print, whatever it is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 such as a half-made module's
        text = ""
    return text or f"a {type(value).__name__}"


def pair(value: Any, names: Sequence[str], **evidence: Any) -> tuple[Any, Any]:
    """`value` as two things. Raises Wrong if it is not two."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise Wrong(f"Give back two values: {names[0]} and {names[1]}.", **evidence, given=value)
    return value[0], value[1]


def near(value: float, wanted: float) -> bool:
    """Whether two numbers agree but for rounding, in which a 1e-9 in a denominator is lost."""
    return abs(value - wanted) <= 1e-6 * max(1.0, abs(wanted))


def number(value: Any, name: str, **evidence: Any) -> float:
    """`value` as a plain number. Raises Wrong if it is none, a tensor included."""
    if isinstance(value, Tensor):
        raise Wrong(
            f"{name} is a tensor and should be a plain number (float): a tensor drags its graph and its device along.",
            **evidence,
            given=described(value),
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"{name} should be a number and is {type(value).__name__}.", **evidence, given=described(value))
    return float(value)


def tensor(value: Any, name: str, shape: Sequence[int], dtype: torch.dtype, **evidence: Any) -> Tensor:
    """`value`, if it is a tensor of this shape and dtype. Raises Wrong if not."""
    if not isinstance(value, Tensor):
        raise Wrong(f"{name} should be a tensor and is {type(value).__name__}.", **evidence, given=value)
    if tuple(value.shape) != tuple(shape):
        raise Wrong(f"{name} has shape {tuple(value.shape)} and should have {tuple(shape)}.", **evidence, given=value)
    if value.dtype != dtype:
        raise Wrong(f"{name} has dtype {value.dtype} and should have {dtype}.", **evidence, given=value)
    return value


def plain_number(given: Any, shown: Mapping[str, Any], *, missing: str = "is a return missing?") -> int | float:
    """What a function that counts has given back. Raises Wrong, with `shown`, if it is no plain number."""
    if given is None:
        raise Wrong(f"Nothing comes back: {missing}", **shown)
    if isinstance(given, Tensor):
        raise Wrong("The number is a tensor: give back a plain whole number (int).", **shown)
    if isinstance(given, bool) or not isinstance(given, (numbers.Integral, float)):
        raise Wrong(f"The number should be an int and is {type(given).__name__}.", **shown)
    return given if isinstance(given, float) else int(given)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return copy.deepcopy(value) if isinstance(value, (list, dict, set, np.ndarray)) else value


def _diagnosed(error: BaseException, function: Callable[..., Any], arguments: dict[str, Any]) -> Exception:
    """What to raise for an error inside a learner's function."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is this module's
    code = getattr(function, "__code__", None)
    own = [frame for frame in frames if code and frame.filename == code.co_filename]
    last = (own or frames or [None])[-1]
    line = (last.line or "").strip() if last else ""
    if isinstance(error, NotImplementedError) and ("NotImplementedError" in line or not str(error)):
        return NotAttempted()
    if not frames:  # it never began: the call itself failed
        return Wrong(f"It must take {len(arguments)} arguments ({', '.join(arguments)}), and: {error}.")
    where = f"line {last.lineno}: {line}" if line else f"line {last.lineno}"
    return Wrong(f"It stopped with {type(error).__name__}: {error}", **arguments, at=where)


def _shown(value: Any) -> str:
    is_plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    text = value if isinstance(value, str) else described(value.tolist() if is_plain else value)
    if len(text) <= MOST_SHOWN:
        return text
    size = f" (shape {tuple(value.shape)})" if isinstance(value, Tensor) else ""
    return f"{text[:MOST_SHOWN]} ...{size}"
