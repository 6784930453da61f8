"""The check of chapter 5's accumulated step: ragged micro-batches on several ranks, the gradients of one loss.

What a rank does is right if the ranks' gradients, averaged as DDP averages them, are those of the loss summed over all
targets of all ranks and divided once.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib import training
from course_lib.checks.meeting import Meeting, Stranded, Total
from course_lib.checks.report import Wrong, invoke, number
from course_lib.checks.tensors import near
from course_lib.checks.weighing import Step, mistaken_gradients, mistaken_losses, steps, tiny_model
from course_lib.model import LanguageModel
from course_lib.objectives import Batch
from course_lib.runtime import threads

Accumulate = Callable[..., float]

LOOPED = (
    "The ranks have different numbers of micro-batches, and call `total` differently often: a call inside the loop "
    "leaves the rank with more of them waiting for ever. Add up what a rank has, and call it outside."
)
SKIPPED = (
    "A rank without a target leaves out a call of `total` for which the others wait for ever. It hands in 0 and waits "
    "like everybody."
)
UNEQUAL = "Every rank must call `total` equally often: the others wait for ever for a call that one leaves out."
ZERO_BY_ZERO = {
    "a micro-batch without a target": "A micro-batch without a target divides by its own 0 targets. Its sum is 0, and "
    "adds nothing to the step: only the number of all targets is worth dividing by.",
    "a rank without a target": "A rank without a target divides by its own 0 targets. Its sums are 0, and other ranks "
    "have targets: divide by the number that all of them have.",
}
NO_GRADIENT = (
    "No gradient is left in the model: backward() was not called, or what it computed was zeroed or cut off "
    "(.item(), .detach(), no_grad)."
)


def accumulate_reference(model: LanguageModel, micro_batches: Sequence[Batch], *, total: Total, world: int) -> float:
    targets, loss = total(sum(int(batch.is_target_BL.sum()) for batch in micro_batches)), 0.0
    for batch in micro_batches:
        summed, _ = training.batch_loss(model, batch)
        (summed * (world / targets)).backward()
        loss += summed.item()
    return total(loss) / targets


@dataclass
class Rank:
    """What a rank leaves behind."""

    loss: Any
    model: LanguageModel

    def gradient(self) -> Tensor:
        parameters = list(self.model.parameters())
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).detach().flatten() for p in parameters])


@torch.enable_grad()
def verify_accumulate(function: Accumulate) -> str:
    """Take steps on one, two and three ranks. Raises Wrong or NotAttempted; says what was verified."""
    with threads(1):
        for step in steps():
            ranks = _taken(function, step)
            losses = [number(rank.loss, "The loss", **step.in_words()) for rank in ranks]
            for rank in ranks:
                _judge_model(rank.model, step)
            _judge_gradient([rank.gradient() for rank in ranks], step)
            for rank, loss in enumerate(losses):
                _judge_loss(loss, rank, step)
    titles = ", ".join(step.title for step in steps())
    return f"the averaged gradient and each rank's loss in {len(steps())} steps: {titles}"


def _taken(function: Accumulate, step: Step) -> list[Rank]:
    """Every rank's part of a step. Raises NotAttempted for an untouched exercise; Wrong if a rank fails, or does not
    come back."""
    models = [copy.deepcopy(tiny_model()) for _ in step.ranks]
    shown = {"model": "a tiny decoder", "micro_batches": step.title, "total": "a function", "world": step.world}

    def work(rank: int, total: Total) -> Any:
        micro_batches = copy.deepcopy(step.ranks[rank])
        return invoke(function, models[rank], micro_batches, shown=shown, total=total, world=step.world)

    meeting = Meeting(step.world).hold(work)
    for error in meeting.errors:
        if isinstance(error, Wrong) and "ZeroDivisionError" in error.cause and step.title in ZERO_BY_ZERO:
            at = {name: value for name, value in error.evidence.items() if name == "at"}
            raise Wrong(f"{error.cause}. {ZERO_BY_ZERO[step.title]}", **step.in_words(), **at)
        if error is not None and not isinstance(error, Stranded):
            raise error
    _judge_calls(meeting, step)
    return [Rank(loss, model) for loss, model in zip(meeting.back, models, strict=True)]


def _judge_calls(meeting: Meeting, step: Step) -> None:
    """Raises Wrong unless all ranks came back, and none was left waiting."""
    numbers = range(step.world)
    shown = step.in_words() | {"calls": "; ".join(f"rank {r}: {n} of `total`" for r, n in enumerate(meeting.calls))}
    for rank in numbers:
        if not meeting.has_left[rank] and not meeting.is_stranded[rank]:
            raise Wrong(f"Rank {rank} was still at work after {meeting.patience:g} seconds: does a loop end?", **shown)
    if not any(meeting.is_stranded):
        return
    left = [rank for rank in numbers if not meeting.is_stranded[rank]]
    if any(sum(step.count_RM[rank]) == 0 for rank in left):
        raise Wrong(SKIPPED, **shown)
    raise Wrong(LOOPED if len({*map(len, step.ranks)}) > 1 else UNEQUAL, **shown)


def _judge_model(model: LanguageModel, step: Step) -> None:
    """Raises Wrong unless only gradients were left in the model."""
    for after, before in zip(model.parameters(), tiny_model().parameters(), strict=True):
        if not torch.equal(after, before):
            raise Wrong(
                "The weights were changed: leave gradients and nothing else. The caller averages them over the ranks "
                "first, and then calls optimizer.step().",
                **step.in_words(),
            )
        if not after.requires_grad:
            raise Wrong("A parameter was frozen: leave gradients in the model, and nothing else.", **step.in_words())
    if not model.training:
        raise Wrong("The model is left in evaluation mode, where dropout does nothing.", **step.in_words())


def _judge_gradient(gradients: Sequence[Tensor], step: Step) -> None:
    """Raises Wrong unless the average of the ranks' gradients is that of the step."""
    given = sum(gradients) / step.world
    if near(given, step.gradient):
        return
    lengths = {
        "wanted": f"gradient of norm {step.gradient.norm():.4f}",
        "given": f"gradient of norm {given.norm():.4f}",
    }
    raise Wrong(_gradient_cause(gradients, given, step), **step.in_words(), **lengths)


def _gradient_cause(gradients: Sequence[Tensor], given: Tensor, step: Step) -> str:
    if not given.isfinite().all():
        return ZERO_BY_ZERO.get(step.title, "The gradient is not finite: by what is the sum divided?")
    if not given.any():
        return NO_GRADIENT
    for cause, mistaken in mistaken_gradients(step):
        if near(given, mistaken):
            return cause
    for rank, gradient in enumerate(gradients):
        if sum(step.count_RM[rank]) and not gradient.any():
            return f"Rank {rank} has targets and leaves no gradient."
    times = (given @ step.gradient / step.gradient.square().sum()).item()
    if near(given, times * step.gradient):
        return f"The averaged gradient points the right way and is {times:.4g} times the right one: what divides it?"
    return (
        "It is none of the usual mistakes: each micro-batch's summed loss enters once, and all enter with the same "
        "factor, on every rank."
    )


def _judge_loss(loss: float, rank: int, step: Step) -> None:
    """Raises Wrong unless a rank gives back the loss per target of the whole step."""
    if math.isclose(loss, step.loss, rel_tol=1e-4):
        return
    near_by = (cause for cause, wrong in mistaken_losses(step, rank) if math.isclose(loss, wrong, rel_tol=1e-4))
    cause = next(near_by, "The gradients are right, and the loss that is given back is not.")
    if not math.isfinite(loss):
        cause = ZERO_BY_ZERO.get(step.title, "The loss is not finite: by what is the sum divided?")
    given = {"wanted": f"loss {step.loss:.5f}", "given": f"loss {loss:.5f} on rank {rank}"}
    raise Wrong(cause, **step.in_words(), **given)
