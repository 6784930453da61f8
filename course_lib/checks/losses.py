"""The check of chapter 2's loss of a step: summed over the targets of ragged micro-batches, and divided once.

Axes: N row of logits, V the vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib import training
from course_lib.checks.report import Wrong, described, invoke, same, tensor
from course_lib.runtime import seeded
from course_lib.vocabulary import IGNORE_INDEX

MicroBatches = list[tuple[Tensor, Tensor]]
StepLoss = Callable[[MicroBatches], Tensor]

MEAN_OF_MEANS = (
    "That is a mean of means: a target in a short micro-batch weighs more than one in a long one. Sum over all "
    "targets, and divide once."
)
PADDING_COUNTS = "It is divided by all rows: those whose label is -100 are no targets, and count nowhere."


def step_loss_reference(micro_batches: MicroBatches) -> Tensor:
    sums = [training.token_loss(logits_NV, labels_N) for logits_NV, labels_N in micro_batches]
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


def _loss_cases() -> dict[str, MicroBatches]:
    def micro_batch(seed: int, n: int, targets: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        labels_N = torch.randint(7, (n,), generator=seeded(seed, n))
        labels_N[torch.randperm(n, generator=seeded(seed))[targets:]] = IGNORE_INDEX
        return scale * torch.randn(n, 7, generator=seeded(seed)), labels_N

    return {
        "rows 6, 2, 5; targets 4, 1, 2": [micro_batch(1, 6, 4), micro_batch(2, 2, 1), micro_batch(3, 5, 2)],
        "rows 5, 4, 3; targets 5, 0, 2": [micro_batch(4, 5, 5), micro_batch(5, 4, 0), micro_batch(6, 3, 2)],
        "rows 3; targets 0, then rows 4; targets 4": [micro_batch(7, 3, 0), micro_batch(8, 4, 4)],
        "rows 4; targets 4, alone": [micro_batch(9, 4, 4)],
        "rows 4, 2; targets 3, 2, logits in the hundreds": [micro_batch(10, 4, 3, 300.0), micro_batch(11, 2, 2, 300.0)],
    }


@torch.enable_grad()
def verify_step_loss(function: StepLoss) -> str:
    """Compare value and gradient on ragged micro-batches. Raises Wrong or NotAttempted; says what was verified."""
    cases = _loss_cases()
    for title, micro_batches in cases.items():
        leaves = [logits_NV.clone().requires_grad_() for logits_NV, _ in micro_batches]
        handed = [(leaf * 1.0, labels_N.clone()) for leaf, (_, labels_N) in zip(leaves, micro_batches, strict=True)]
        before = list(handed)
        shown = {"micro_batches": title}
        given = invoke(function, handed, shown=shown)
        kept = [(logits.detach(), labels) for logits, labels in before]
        if not same(handed, before) or not same(kept, [tuple(part) for part in micro_batches]):
            raise Wrong("The micro-batches were changed in place: the caller still needs them.", **shown)
        loss = _as_loss(given, shown)
        wanted = step_loss_reference(micro_batches)
        if not torch.isclose(loss.detach(), wanted, rtol=1e-4, atol=1e-6):
            cause = _loss_cause(micro_batches, loss.item())
            raise Wrong(cause, **shown, wanted=round(wanted.item(), 5), given=round(loss.item(), 5))
        _judge_gradient(loss, leaves, shown)
    return f"value and gradient on {len(cases)} steps: ragged, padded, a micro-batch without a target, huge logits"


def _as_loss(given: Any, shown: dict[str, Any]) -> Tensor:
    if isinstance(given, float):
        raise Wrong(
            "The loss is a plain number: nothing can be trained from it. Give back the tensor, without .item().",
            **shown,
            given=described(given),
        )
    if not isinstance(given, Tensor):
        raise Wrong(f"The loss should be a tensor and is {type(given).__name__}.", **shown, given=described(given))
    return tensor(given, "The loss", (), torch.float32, **shown)


def _mistaken_losses(micro_batches: MicroBatches) -> Iterator[tuple[str, Tensor]]:
    """What to say of a mistake, and the loss that it gives."""
    sums = [(*training.token_loss(*part), len(part[1])) for part in micro_batches]
    targets = sum(count for _, count, _ in sums)
    means = [total / count if count else torch.tensor(math.nan) for total, count, _ in sums]
    some = [mean for mean, (_, count, _) in zip(means, sums, strict=True) if count]
    right = step_loss_reference(micro_batches)
    yield MEAN_OF_MEANS, sum(means) / len(means)
    yield MEAN_OF_MEANS, sum(some) / len(some)
    yield MEAN_OF_MEANS, sum(some) / len(means)
    yield "The means of the micro-batches are added up: sum over all targets, and divide once.", sum(some)
    yield "The sum is not divided: divide it by the number of targets of the whole step.", right * targets
    yield PADDING_COUNTS, right * targets / sum(n for _, _, n in sums)
    yield PADDING_COUNTS, sum(total / n for total, _, n in sums) / len(sums)
    divided = "The sum is divided by the number of micro-batches: a step has one loss per target, so count the targets."
    yield divided, right * targets / len(sums)
    for count in {targets, sums[-1][1], sum(n for _, _, n in sums)} - {0}:
        yield "Only the last micro-batch is in it: each one adds to the sum.", sums[-1][0] / count
    yield "Only the first micro-batch is in it: is the return inside the loop?", means[0]
    yield "All is summed, and divided by the last micro-batch's targets alone.", right * targets / max(1, sums[-1][1])
    yield "The sign is lost: the logarithm of a probability is negative, and the loss is minus that.", -right
    yield (
        "The loss is in bits: torch's and the course's are in nats, so take the natural logarithm.",
        right / math.log(2),
    )
    logits_NV, labels_N = (torch.cat(part) for part in zip(*micro_batches, strict=True))
    across = [logits.log_softmax(0) for logits, _ in micro_batches]
    for wrong_NV in (torch.cat(across), logits_NV.log_softmax(0)):
        yield (
            "The softmax runs over the rows: it belongs over the vocabulary, the last axis.",
            F.nll_loss(wrong_NV, labels_N),
        )
    twice = "The softmax is taken twice: cross_entropy wants the logits as they are, and takes it itself."
    yield twice, F.cross_entropy(logits_NV.softmax(-1), labels_N)
    yield "The logarithm is missing: a probability is no loss.", F.nll_loss(logits_NV.softmax(-1), labels_N)
    yield "The softmax is missing: logits are no logarithms of probabilities.", F.nll_loss(logits_NV, labels_N)
    for other in (0, 6):  # padding read as a token: the first, or by a negative index the last
        asked = F.cross_entropy(logits_NV, labels_N.masked_fill(labels_N == IGNORE_INDEX, other), reduction="sum")
        yield "Rows whose label is -100 are asked for something: they are padding, leave them out.", asked / targets
        yield (
            "Rows whose label is -100 are asked for something: they are padding, leave them out.",
            asked / len(labels_N),
        )


def _loss_cause(micro_batches: MicroBatches, given: float) -> str:
    if not math.isfinite(given):
        if any(bool((labels_N == IGNORE_INDEX).all()) for _, labels_N in micro_batches):
            return "A micro-batch without a target spoils the step: its own mean is 0 / 0. It should add nothing."
        if max(logits_NV.abs().max().item() for logits_NV, _ in micro_batches) < 100:
            return "The loss is not finite, although the logits are of ordinary size."
        return "The logits are large here: exp overflows, or log meets a 0. log_softmax computes both together, safely."
    for cause, mistaken in _mistaken_losses(micro_batches):
        if math.isclose(given, mistaken.item(), rel_tol=1e-4):
            return cause
    return "Sum minus the log-probability of each target over all micro-batches, and divide by the number of targets."


def _judge_gradient(loss: Tensor, leaves: list[Tensor], shown: dict[str, Any]) -> None:
    """Raises Wrong unless the loss leads back to every logit as it should. `leaves` are the logits that led to it."""
    if any(leaf.grad is not None for leaf in leaves):
        raise Wrong("backward() was called inside: give back the loss, the step calls backward on it.", **shown)
    if not loss.requires_grad:
        raise Wrong(
            "The value is right, but the loss is cut off from the logits: no gradient flows back. .item(), .detach(), "
            "no_grad and torch.tensor(...) cut it off.",
            **shown,
        )
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    labels = [labels_N for _, labels_N in _loss_cases()[shown["micro_batches"]]]
    wanted = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    step_loss_reference(list(zip(wanted, labels, strict=True))).backward()
    for k, (gradient, leaf) in enumerate(zip(gradients, wanted, strict=True)):
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        if not torch.allclose(gradient, leaf.grad, rtol=1e-3, atol=1e-6):
            cut = " None reaches it: was .item() or .detach() taken on the way?" if not gradient.any() else ""
            raise Wrong(
                f"The value is right, but the gradient that micro-batch {k} gets is not.{cut}",
                **shown,
                wanted=f"gradient of norm {leaf.grad.norm():.4f}",
                given=f"gradient of norm {gradient.norm():.4f}",
            )
