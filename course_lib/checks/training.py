"""Checks of chapter 2: the schedule, decay groups, the loss of a step, a whole step, what a checkpoint must hold."""

from course_lib.checks.losses import StepLoss, step_loss_reference, verify_step_loss
from course_lib.checks.recipe import (
    DecayGroups,
    WarmupCosine,
    decay_reference,
    verify_decay_groups,
    verify_warmup_cosine,
)
from course_lib.checks.report import Part, report
from course_lib.checks.resuming import Restore, Take, restore_reference, take_reference, verify_checkpoint
from course_lib.checks.stepping import TrainingStep, training_step_reference, verify_training_step
from course_lib.schedules import cosine


def warmup_cosine(function: WarmupCosine) -> WarmupCosine:
    """Check f(step, *, warmup, total, floor=0.0) -> factor, as `schedules.cosine` defines it.
    Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("warmup_cosine", function, verify_warmup_cosine, cosine))[0]


def decay_groups(function: DecayGroups) -> DecayGroups:
    """Check f(model) -> (decayed, spared): all trained parameters, each once, matrices in the first list and vectors in
    the second. Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("decay_groups", function, verify_decay_groups, decay_reference))[0]


def step_loss(function: StepLoss) -> StepLoss:
    """Check f([(logits_NV, labels_N), ...]) -> loss: cross-entropy in nats, summed over all targets of a step and
    divided by their number. Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("step_loss", function, verify_step_loss, step_loss_reference))[0]


def training_step(function: TrainingStep) -> TrainingStep:
    """Check f(model, optimizer, batches, *, rate, clip) -> (loss, norm): one update from all batches, as
    `training.step` makes it (norm: before clipping). Prints a verdict; gives back f if it is right, else the
    library's."""
    return report(Part("training_step", function, verify_training_step, training_step_reference))[0]


def checkpoint_state(take: Take, restore: Restore) -> tuple[Take, Restore]:
    """Check take(model, optimizer, step) -> state and restore(state, model, optimizer) -> step, by stopping a run and
    going on with it. Prints one verdict; gives back both functions if they are right together, else the library's."""
    references = (take_reference, restore_reference)
    return report(Part("checkpoint_state", (take, restore), verify_checkpoint, references))[0]
