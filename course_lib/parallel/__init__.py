"""Training on several processes, on one machine or many: who takes part, how they share a step, how they start."""

from course_lib.parallel.checkpoints import SharedCheckpoints, read_weights, whole_weights
from course_lib.parallel.engines import ENGINES, Replicated, Sharded, make_engine
from course_lib.parallel.functions import run_on_ranks
from course_lib.parallel.launch import torchrun
from course_lib.parallel.ranks import (
    agreed,
    barrier,
    is_restarted,
    is_started_by_torchrun,
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
    "agreed",
    "barrier",
    "is_restarted",
    "is_started_by_torchrun",
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
