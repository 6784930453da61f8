"""Which layers of a model a strategy changes: linear layers by name, by pattern, or all of them."""

import re
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from course_lib.peft.slots import is_added

Targets = str | Sequence[str]
ALL_LINEAR = "all-linear"


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix: torch's Linear, or a Conv1D as GPT-2's (ours or that of transformers).

    >>> is_linear(nn.Linear(2, 3)), is_linear(nn.LayerNorm(2))
    (True, False)
    """
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer's weight is stored as [in, out], as GPT-2's."""
    return type(module).__name__ == "Conv1D"


def dimensions(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer.

    >>> dimensions(nn.Linear(2, 3))
    (2, 3)
    """
    rows, columns = module.weight.shape
    return (rows, columns) if is_transposed(module) else (columns, rows)


def matches(name: str, targets: Targets) -> bool:
    """Whether a dotted name is meant: by its end (a list of names), or as a whole by a regular expression (one text).
    These are the rules of `peft`'s `target_modules`.

    >>> matches("layer.0.attention.query", ["query", "value"]), matches("layer.0.query", r".*[1-9].query")
    (True, False)
    """
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def exactly(names: Iterable[str]) -> str:
    """Targets that mean these names and no longer ones that end alike.

    >>> matches("1.0", exactly(["0"])), matches("0", exactly(["0"]))
    (False, True)
    """
    return "|".join(map(re.escape, names))


def check_pattern(pattern: str) -> None:
    """Raises ValueError for what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error}): give names in a list, ['query']") from None


def find_targets(
    model: nn.Module,
    targets: Targets,
    *,
    fits: Callable[[nn.Module], bool] = is_linear,
    excluded: Sequence[str] = (),
) -> dict[str, nn.Module]:
    """{name: module} of what `targets` mean; "all-linear" means every linear layer but a language model's output layer,
    those that cannot be adapted (`why_not`), and those in a module named in `excluded`.

    Raises ValueError, naming the candidates, where nothing is meant or what is meant does not fit.
    """
    if isinstance(targets, str):
        check_pattern(targets)
    modules = {name: module for name, module in model.named_modules() if not is_added(name)}
    inside = [name for name in modules if matches(name, list(excluded))]
    modules = {n: m for n, m in modules.items() if not any(n == name or n.startswith(f"{name}.") for name in inside)}
    if targets == ALL_LINEAR:
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        fitting = {name: m for name, m in modules.items() if fits(m) and m is not output}
        found = {name: m for name, m in fitting.items() if why_not(model, name) is None}
    else:
        found = {name: m for name, m in modules.items() if matches(name, targets) and (name or fits(m))}
    wrong = [name for name, module in found.items() if not fits(module)]
    if not found or wrong:
        said = (
            f"target {wrong[0]!r} is a {type(found[wrong[0]]).__name__}" if wrong else f"no layer matches {targets!r}"
        )
        raise ValueError(f"{said}: this {type(model).__name__} has {candidates(model, fits)}")
    for name in found:
        if reason := why_not(model, name):
            raise ValueError(f"target {name!r} {reason}")
    return found


def candidates(model: nn.Module, fits: Callable[[nn.Module], bool] = is_linear) -> str:
    """The layers that could be meant, without the numbers of their blocks."""
    names = {re.sub(r"\.\d+(?=\.)", ".*", name): None for name, m in model.named_modules() if fits(m)}
    return ", ".join(name for name in names if not is_added(name)) or "no linear layer"


def why_not(model: nn.Module, name: str) -> str | None:
    """Why a linear layer cannot be adapted, None if it can."""
    module, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return "lies in torch's MultiheadAttention, which reads its weight and never calls it: nothing would act"
    if "weight" not in dict(module.named_parameters(recurse=False)):
        return "has a weight that is computed from others (a parametrisation): adapt a plain layer"
    tied = next((other for other, m in model.named_modules() if m is not module and _weight(m) is module.weight), None)
    if tied is not None:
        return f"shares its weight with {tied!r}, which a merge would change too: leave it out"
    return None


def _weight(module: nn.Module) -> Tensor | None:
    return dict(module.named_parameters(recurse=False)).get("weight")
