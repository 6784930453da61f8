"""What the checks of chapter 3 share: tensors handed over as copies, compared, shown in a few words, and their
gradients."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from course_lib.checks.report import Wrong, invoke, same, tensor

FEW = 16  # numbers that are shown one by one
TOLERANCE = 1e-4  # relative to the largest value compared


def hand_over(function: Callable[..., Any], tensors: Mapping[str, Tensor], **options: Any) -> Any:
    """What the function gives back for copies of the tensors, in their order, and the options by name.

    Raises NotAttempted for an untouched exercise; Wrong if it fails, with the line, or changes a tensor.
    """
    copies = {name: value.clone() for name, value in tensors.items()}
    given = invoke(function, *copies.values(), shown=in_words(tensors) | options, **options)
    for name, value in tensors.items():
        if not same(value, copies[name]):
            raise Wrong(
                f"{name} was changed in place: the caller still needs the original. += and names ending in _ change "
                "the tensor itself; a + b makes a new one.",
                before=brief(value),
                after=brief(copies[name]),
            )
    return given


def as_wanted(given: Any, name: str, wanted: Tensor, **evidence: Any) -> Tensor:
    """What is given, if it is a tensor of the wanted one's shape, dtype and kind, without its graph. Raises Wrong if
    not."""
    if isinstance(given, Tensor) and (given.layout, given.device) != (wanted.layout, wanted.device):
        cause = f"{name} should be a {wanted.layout} tensor on {wanted.device}, as what went in."
        raise Wrong(cause, **evidence, given=f"a {given.layout} tensor on {given.device}")
    return tensor(given, name, wanted.shape, wanted.dtype, **evidence).detach()


def brief(value: Tensor) -> str:
    """A tensor in a few words: its numbers where they are few, else its shape.

    >>> brief(torch.tensor([[1.0, 2 / 3]])), brief(torch.zeros(5, 4))
    ('[[1.0, 0.667]]', 'of shape (5, 4)')
    """
    if value.numel() > FEW:
        return f"of shape {tuple(value.shape)}"
    return str(value.detach().double().round(decimals=3).tolist() if value.is_floating_point() else value.tolist())


def in_words(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors by name, as a verdict shows them."""
    return {name: brief(value) for name, value in tensors.items()}


def near(given: Tensor, wanted: Tensor) -> bool:
    """Equal within rounding."""
    if given.shape != wanted.shape or not given.isfinite().all():
        return False
    return bool((given - wanted).abs().max() <= TOLERANCE * wanted.abs().max() + 1e-12)


def difference(given: Tensor, wanted: Tensor) -> dict[str, str]:
    """Both in words: whole where they are small, else the first row that differs (the last axis)."""
    if given.numel() <= FEW:
        return {"wanted": brief(wanted), "given": brief(given)}
    off = (given - wanted).abs().nan_to_num(torch.inf).amax(-1)
    place = tuple((off > TOLERANCE * wanted.abs().max()).nonzero()[0].tolist())
    return {name: f"at {list(place)}: {brief(value[place])}" for name, value in (("wanted", wanted), ("given", given))}


def judge_gradients(
    function: Callable[..., Any],
    reference: Callable[..., Tensor],
    tensors: Mapping[str, Tensor],
    trained: Sequence[str],
    **options: Any,
) -> None:
    """Raises Wrong unless gradients flow to the tensors in `trained` as they do through the reference."""
    through = [_gradients(run, tensors, trained, options) for run in (function, reference)]
    for leaf, given, wanted in zip(trained, *through, strict=True):
        given = torch.zeros_like(wanted) if given is None else given
        if not near(given, wanted):
            cut = " None reaches it: was .detach() or .data taken on the way?" if not given.any() else ""
            lengths = {name: f"gradient of norm {g.norm():.4g}" for name, g in (("wanted", wanted), ("given", given))}
            raise Wrong(f"The values are right, but the gradient that {leaf} gets is not.{cut}", **lengths)


@torch.enable_grad()
def _gradients(
    function: Callable[..., Any], tensors: Mapping[str, Tensor], trained: Sequence[str], options: dict[str, Any]
) -> tuple[Tensor | None, ...]:
    """Of the output's sum of squares."""
    leaves = {name: value.clone().requires_grad_(name in trained) for name, value in tensors.items()}
    output = invoke(function, *leaves.values(), shown=in_words(tensors) | options, **options)
    if not isinstance(output, Tensor) or not output.requires_grad:
        raise Wrong(
            "The values are right, but the output is cut off from what went in: no gradient flows back, and nothing "
            "can be trained. .detach(), .data, no_grad and torch.tensor(...) cut it off.",
            inputs=", ".join(trained),
        )
    return torch.autograd.grad(output.square().sum(), [leaves[name] for name in trained], allow_unused=True)
