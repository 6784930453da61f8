"""Checkpoints that all ranks write together, each its own part, and that any number of ranks reads again.

The folder of a checkpoint is that of `course_lib.checkpoint`, whole or absent, with fingerprints; weights and optimiser
state lie in it as the parts of `torch.distributed.checkpoint`.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as parts
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from course_lib.checkpoint import Checkpoint, Checkpoints
from course_lib.model import LanguageModel
from course_lib.optimizers import MuonAndAdamW, Optimizer
from course_lib.parallel.ranks import agreed, rank

PARTS = ".metadata"  # what torch.distributed.checkpoint writes last
REFUSALS = (ValueError, TypeError, OSError)  # what `Checkpoints` raises
HAS_MOMENTS = "has_moments"  # in a checkpoint's state: whether its optimiser had taken a step


class SharedCheckpoints(Checkpoints):
    """The checkpoints of a run on several ranks, in a folder that all of them see. Every rank calls every method."""

    def save_together(
        self,
        step: int,
        model: LanguageModel,
        optimizer: Optimizer,
        state: Mapping,
        *,
        about: Mapping,
        score: float | None = None,
        pinned: bool = False,
    ) -> Path:
        """Write `step_N`: each rank its part of the weights and of the optimiser's state, rank 0 the rest.

        Raises what `Checkpoints.save` raises, on every rank.
        """
        has_moments = any(part.state for part in _parts(optimizer))
        state = {**state, HAS_MOMENTS: has_moments}
        filling = self.filling(step, state, about=about, score=score, pinned=pinned)
        with contextlib.ExitStack() as stack:  # of rank 0
            folder = _heard(lambda: stack.enter_context(filling))
            _save_parts(_state(model, optimizer if has_moments else None), folder)
            _heard(stack.close)
        return self._path(step)

    def load(self, step: int) -> Checkpoint:
        """As `Checkpoints.load`: rank 0 looks, and all hear what it found."""
        return _heard(lambda: self._of_one().load(step))

    def latest(self) -> Checkpoint:
        """As `Checkpoints.latest`."""
        return _heard(lambda: self._of_one().latest())

    def best(self) -> Checkpoint:
        """As `Checkpoints.best`."""
        return _heard(lambda: self._of_one().best())

    def restore(self, begun: Checkpoint, model: LanguageModel, optimizer: Optimizer) -> None:
        """Fill a model and its optimiser from a checkpoint, each rank with the parts that are its own now.

        Raises ValueError for a checkpoint that one process has written: it is not in parts.
        """
        check_in_parts(begun)
        state = _state(model, optimizer if begun.state[HAS_MOMENTS] else None)
        parts.load(state, checkpoint_id=begun.folder)
        set_model_state_dict(model, state["model"])
        if begun.state[HAS_MOMENTS]:
            set_optimizer_state_dict(model, _parts(optimizer), state["optimizer"])

    def _of_one(self) -> Checkpoints:
        return Checkpoints(self.folder, self.keep)


def check_in_parts(begun: Checkpoint) -> None:
    """Raises ValueError for a checkpoint that one process has written: it is not in parts, as ranks need it."""
    if not (begun.folder / PARTS).exists():
        raise ValueError(
            f"{begun.folder} was written by one process, and ranks read checkpoints in parts: go on without ranks, "
            "or start another run in another folder"
        )


def read_weights(begun: Checkpoint, model: LanguageModel) -> None:
    """Fill a model that is whole, in one process, with the weights of a checkpoint in parts.

    Raises ValueError for a checkpoint that one process has written.
    """
    check_in_parts(begun)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process")  # it is
        parts.load({"model": model.state_dict()}, checkpoint_id=begun.folder, no_dist=True)  # in place


def whole_weights(model: LanguageModel) -> dict[str, Tensor]:
    """{name: weight} of a model in full on rank 0, on the CPU; empty on the others."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _state(model: LanguageModel, optimizer: Optimizer | None) -> dict:
    """What each rank writes its part of. An optimiser without moments is left out: to ask torch for them takes a step
    with gradients of 0, which AdamW would count."""
    state = {"model": get_model_state_dict(model)}
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(model, _parts(optimizer))
    return state


def _save_parts(state: dict, folder: Path) -> None:
    """Raises the OSError that a rank has met, on every rank."""
    try:
        parts.save(state, checkpoint_id=folder)
    except parts.CheckpointException as failed:  # no Exception, which nobody expects
        for error, _ in failed.failures.values():
            if isinstance(error, OSError):
                raise error from None
        raise


def _parts(optimizer: Optimizer) -> list[torch.optim.Optimizer]:
    return optimizer.parts if isinstance(optimizer, MuonAndAdamW) else [optimizer]


def _heard(act: Callable[[], Any]) -> Any:
    """What rank 0 alone does and finds, or the error that it meets, on every rank."""
    found = None
    if rank() == 0:
        try:
            found = act()
        except REFUSALS as error:
            found = error
    found = agreed(found)
    if isinstance(found, REFUSALS):
        raise found
    return found
