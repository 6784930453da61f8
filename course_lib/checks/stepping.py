"""The check of chapter 2's whole training step: two and more steps beside the library's, gradient by gradient."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from course_lib import objectives, training
from course_lib.checks.report import Wrong, invoke, number, pair
from course_lib.checks.tiny import tiny_decoder
from course_lib.model import LanguageModel
from course_lib.objectives import Batch
from course_lib.optimizers import Optimizer, decay_groups
from course_lib.runtime import seeded, threads
from course_lib.vocabulary import Vocabulary

TrainingStep = Callable[..., tuple[float, float]]
VOCABULARY = Vocabulary(40, pad=0)
NOT_CLIPPED = (
    "The gradient is not clipped when optimizer.step() uses it: clip between the last backward and the step, for "
    "afterwards it is too late."
)


def training_step_reference(
    model: LanguageModel, optimizer: Optimizer, batches: Sequence[Batch], *, rate: float, clip: float
) -> tuple[float, float]:
    loss, _, norm = training.step(model, optimizer, batches, rate=rate, clip=clip, dtype=torch.float32)
    return loss, norm


@dataclass(frozen=True)
class Plan:
    """What one step is given."""

    batches: list[Batch]
    rate: float
    clip: float

    def in_words(self, number: int) -> dict[str, Any]:
        targets = ", ".join(str(int(batch.is_target_BL.sum())) for batch in self.batches)
        return {"step": f"number {number}, micro-batches with {targets} targets", "rate": self.rate, "clip": self.clip}


@dataclass
class Done:
    """What a step did: what it gave back, each update's gradient [parameters] and rates, and the weights afterwards."""

    loss: float = math.nan
    norm: float = math.nan
    updates: list[tuple[Tensor, list[float]]] = field(default_factory=list)
    weights: Tensor | None = None


def _plans() -> list[Plan]:
    def batch(seed: int, rows: int, length: int, padded: int = 0) -> Batch:
        ids_BT = torch.randint(1, 40, (rows, length), generator=seeded(seed))
        ids_BT[0, length - padded :] = VOCABULARY.pad
        return objectives.causal(ids_BT, VOCABULARY)

    return [
        Plan([batch(1, 3, 10), batch(2, 2, 6, padded=3), batch(3, 1, 4)], rate=0.5, clip=0.25),
        Plan([batch(4, 1, 5), batch(5, 3, 9)], rate=0.2, clip=0.25),
        Plan([batch(6, 3, 8), batch(7, 1, 1), batch(8, 2, 4)], rate=0.1, clip=100.0),  # one without a target
    ]


class Bench:
    """A tiny model with its optimizer, and what happens when a step is taken on them."""

    def __init__(self) -> None:
        self.model = tiny_decoder(shaken=True)
        self.optimizer = torch.optim.SGD(decay_groups(self.model, 0.1), lr=1.0)
        self.updates = []
        self.optimizer.register_step_pre_hook(lambda *_: self.updates.append((self.gradient(), self.rates())))

    def gradient(self) -> Tensor:
        return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in self._parameters()])

    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(self._parameters()).detach().clone()

    def take(self, function: TrainingStep, plan: Plan, shown: dict[str, Any]) -> Done:
        """One step. Raises NotAttempted for an untouched exercise; Wrong if two numbers are not what comes back."""
        self.updates = []
        batches = list(plan.batches)
        things = {"model": "a tiny decoder", "optimizer": "SGD with two groups", "batches": f"{len(batches)} of them"}
        result = invoke(
            function,
            *(self.model, self.optimizer, batches),
            shown=things | {"rate": plan.rate, "clip": plan.clip},
            rate=plan.rate,
            clip=plan.clip,
        )
        loss, norm = pair(result, ("the loss", "the norm of the gradient"), **shown)
        done = Done(number(loss, "The loss", **shown), number(norm, "The norm", **shown), self.updates, self.weights())
        return done

    def _parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())


@torch.enable_grad()
def verify_training_step(function: TrainingStep) -> str:
    """Take steps beside the library's. Raises Wrong or NotAttempted; says what was verified."""
    mine, librarys, left = Bench(), Bench(), None
    plans = _plans()
    with threads(1):
        for n, plan in enumerate(plans, start=1):
            shown = plan.in_words(n)
            alone = Alone(mine.model, plan.batches)
            given = mine.take(function, plan, shown)
            wanted = librarys.take(training_step_reference, plan, shown)
            _judge_update(mine, given, wanted, alone, plan, left, shown)
            _judge_numbers(mine, given, wanted, alone, plan, shown)
            if not torch.allclose(given.weights, wanted.weights, rtol=1e-4, atol=1e-6):
                raise Wrong("The weights are others than one optimizer.step() makes: who else changes them?", **shown)
            left = mine.gradient() if mine.gradient().any() else given.updates[0][0]
    return f"{len(plans)} steps one after the other: ragged micro-batches, clipped and not, two parameter groups"


class Alone:
    """Each micro-batch by itself: its summed loss, its number of targets, and the gradient of its summed loss."""

    def __init__(self, model: LanguageModel, batches: Sequence[Batch]) -> None:
        self.batches, self.losses, self.counts, self.gradients = batches, [], [], []
        model = copy.deepcopy(model)
        for batch in batches:
            model.zero_grad()
            total, count = training.batch_loss(model, batch)
            total.backward()
            self.losses.append(total.item())
            self.counts.append(count)
            self.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        self.targets = sum(self.counts)
        self.gradient = sum(self.gradients) / self.targets

    def means(self, values: Sequence[Any]) -> list[Any]:
        """Each micro-batch's value per target of its own."""
        return [value / count for value, count in zip(values, self.counts, strict=True) if count]


def _judge_update(
    mine: Bench, given: Done, wanted: Done, alone: Alone, plan: Plan, left: Tensor | None, shown: dict[str, Any]
) -> None:
    """Raises Wrong unless the optimizer was called once, in training mode, with the right rates and gradient."""
    if not mine.model.training:
        raise Wrong(
            "The model is left in evaluation mode: without dropout, all training after this is another.", **shown
        )
    if not given.updates:
        raise Wrong("optimizer.step() was never called: nothing is learned.", **shown)
    if (count := len(given.updates)) > 1:
        raise Wrong(f"optimizer.step() was called {count} times: once, after all micro-batches.", **shown)
    gradient, rates = given.updates[0]
    if any(not math.isclose(rate, plan.rate, rel_tol=1e-6) for rate in rates):
        raise Wrong(_rate_cause(rates, mine, plan), **shown, given=f"rates {rates} in the two groups")
    right = wanted.updates[0][0]
    if not torch.allclose(gradient, right, rtol=1e-3, atol=1e-5 * right.norm().item()):
        cause = _gradient_cause(gradient, alone, plan, left)
        lengths = {"wanted": f"norm {right.norm():.4f} at the update", "given": f"norm {gradient.norm():.4f}"}
        raise Wrong(cause, **shown, **lengths)


def _rate_cause(rates: list[float], mine: Bench, plan: Plan) -> str:
    if math.isclose(rates[0], plan.rate, rel_tol=1e-6):
        return "The rate is set in the first parameter group only: the spared parameters have a group of their own."
    if any(math.isclose(rate, plan.rate, rel_tol=1e-6) for rate in rates):
        return "The rate is set in one parameter group only: set it in each."
    if all(math.isclose(rate, plan.rate, rel_tol=1e-6) for rate in mine.rates()):
        return "The rate is set after optimizer.step(), which still used the old one."
    return "The rate of this step did not reach the optimizer: it stands in each of its parameter groups, as 'lr'."


def _gradient_cause(gradient: Tensor, alone: Alone, plan: Plan, left: Tensor | None) -> str:
    if not gradient.isfinite().all():
        return "The gradient is not finite: does a micro-batch without a target divide by its 0 targets?"
    if not gradient.any():
        return "There is no gradient when optimizer.step() is called: was it erased after backward, or never computed?"
    if _parallel(gradient, alone.gradient):
        return _length_cause(gradient.norm().item(), alone.gradient.norm().item(), alone, plan.clip)
    for cause, mistaken in _mistaken_gradients(alone, plan, left):
        if _parallel(gradient, mistaken):
            return cause
    return "The gradient points elsewhere: it is that of the summed loss of all micro-batches, over all their targets."


def _length_cause(given: float, norm: float, alone: Alone, clip: float) -> str:
    if norm > clip and math.isclose(given, norm, rel_tol=1e-3):
        return NOT_CLIPPED
    if norm < clip and math.isclose(given, clip, rel_tol=1e-3):
        return "The gradient is shorter than `clip` and was stretched to it: clipping only ever shortens."
    if given > norm and math.isclose(given, norm * alone.targets, rel_tol=1e-3):
        return "The gradient is that of the sum: divide by the number of targets of all micro-batches."
    return "The gradient has the right direction and the wrong length: is it divided once, and clipped once?"


def _mistaken_gradients(alone: Alone, plan: Plan, left: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """What to say of a mistake, and the direction of the gradient that it gives."""
    leftover = "The last step's gradient is still in it: nobody zeroed it, and backward adds to what is there."
    if left is not None:
        yield leftover, left + alone.gradient
    means = alone.means(alone.gradients)
    mean_of_means = (
        "That is a mean of means: divide each sum by the number of targets of the whole step, not by its own."
    )
    yield mean_of_means, sum(means)
    if left is not None:
        for share in (1, len(means)):
            yield f"{leftover} And {mean_of_means[0].lower()}{mean_of_means[1:]}", left + sum(means) / share
    only = "Only the {} micro-batch's gradient is left: {}"
    yield only.format("last", "are gradients zeroed inside the loop?"), alone.gradients[-1]
    yield only.format("first", "does the loop end too early?"), alone.gradients[0]
    yield (
        "Each number of the gradient is cut off by itself, which turns it: scale all of it by one factor.",
        alone.gradient.clamp(-plan.clip, plan.clip),
    )
    for parts in ([g / alone.targets for g in alone.gradients], alone.gradients, means):
        so_far = torch.zeros_like(alone.gradient)
        for part in parts:
            so_far = so_far + part
            so_far = so_far * min(1.0, plan.clip / so_far.norm().item())
        yield "The gradient is clipped after each micro-batch: clip once, when all have been added up.", so_far


def _judge_numbers(mine: Bench, given: Done, wanted: Done, alone: Alone, plan: Plan, shown: dict[str, Any]) -> None:
    """Raises Wrong unless loss and norm are right."""
    for name, value, right, mistaken in (
        ("loss", given.loss, wanted.loss, _mistaken_losses(mine, alone)),
        ("norm", given.norm, wanted.norm, _mistaken_norms(alone, plan)),
    ):
        if not math.isclose(value, right, rel_tol=1e-4):
            causes = (cause for cause, wrong in mistaken if math.isclose(value, wrong, rel_tol=1e-3))
            cause = next(causes, f"The update is right and the {name} that is given back is not.")
            if not math.isfinite(value) and 0 in alone.counts:
                cause = f"The {name} is not finite: does a micro-batch without a target divide by its 0 targets?"
            numbers = {"wanted": f"{name} {right:.5f}", "given": f"{name} {value:.5f}"}
            raise Wrong(cause, **shown, **numbers)


def _mistaken_losses(mine: Bench, alone: Alone) -> Iterator[tuple[str, float]]:
    means, total = alone.means(alone.losses), sum(alone.losses)
    both = "The update is right, but the loss that is given back is "
    for divisor in (len(means), len(alone.losses)):
        yield f"{both}a mean of means: sum over all targets, and divide once.", sum(means) / divisor
    yield f"{both}the sum: divide by the number of targets.", total
    yield f"{both}divided by the number of micro-batches: divide by that of targets.", total / len(alone.losses)
    for last in (alone.losses[-1] / alone.targets, means[-1], alone.losses[-1]):
        yield f"{both}the last micro-batch's alone.", last
    later = Alone(mine.model, alone.batches)
    yield (
        f"{both}measured after it: give back the loss that the gradient belongs to.",
        sum(later.losses) / later.targets,
    )


def _mistaken_norms(alone: Alone, plan: Plan) -> Iterator[tuple[str, float]]:
    norm = alone.gradient.norm().item()
    yield (
        "The norm is measured after clipping, where it never exceeds `clip`: give back the one before.",
        min(norm, plan.clip),
    )
    yield (
        "The norm is that of the sum's gradient: divide by the number of targets before you measure.",
        norm * alone.targets,
    )
    yield "The norm is measured after the gradients were zeroed.", 0.0
    yield "The squares are summed, but the root is missing.", norm**2
    yield "The norm is the root of the sum of all squares, not the largest number.", alone.gradient.abs().max().item()
    yield "The norm is the last micro-batch's alone.", alone.gradients[-1].norm().item() / alone.targets


def _parallel(some: Tensor, other: Tensor) -> bool:
    return math.isclose(torch.cosine_similarity(some.double(), other.double(), dim=0).item(), 1.0, abs_tol=1e-6)
