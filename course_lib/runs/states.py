"""The state of one model's recording, in one file that is hidden beside the record: it goes on from there."""

import io
from pathlib import Path

import torch

from course_lib.files import write_atomically
from course_lib.model import LanguageModel
from course_lib.optimizers import Optimizer


def save_state(path: Path, step: int, model: LanguageModel, optimizer: Optimizer) -> None:
    """Write what a recording of one model has come to, so that it can be stopped."""
    buffer = io.BytesIO()
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    write_atomically(path, buffer.getvalue())


def restore_state(path: Path, model: LanguageModel, optimizer: Optimizer) -> int:
    """The step that a stopped recording had reached: -1 where there was none."""
    if not path.exists():
        return -1
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
