"""Training on several processes, on one machine or many: who takes part, how they share a step, how they start."""

from importlib.util import find_spec

from torch import distributed

# before the imports that would fail in other words
if not distributed.is_available() or find_spec("torch.distributed.run") is None:
    raise RuntimeError("this torch was built without torch.distributed: install another, or train on one process")

from course_lib.parallel.checkpoints import SharedCheckpoints, check_in_parts, read_weights, whole_weights
from course_lib.parallel.engines import ENGINES, Replicated, Sharded, SummedLoss, make_engine
from course_lib.parallel.functions import run_on_ranks
from course_lib.parallel.launch import torchrun
from course_lib.parallel.ranks import (
    agreed,
    barrier,
    device_of_ranks,
    gathered,
    leave,
    rank,
    ranks,
    summed,
    world,
)

__all__ = [
    "ENGINES",
    "Replicated",
    "Sharded",
    "SharedCheckpoints",
    "SummedLoss",
    "agreed",
    "barrier",
    "check_in_parts",
    "device_of_ranks",
    "gathered",
    "leave",
    "make_engine",
    "rank",
    "ranks",
    "read_weights",
    "run_on_ranks",
    "summed",
    "torchrun",
    "whole_weights",
    "world",
]
