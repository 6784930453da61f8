"""What it takes to train a model, from its dimensions alone: parameters, memory, arithmetic, communication, time."""

from course_lib.planner.activations import Activations, Pass
from course_lib.planner.counting import Adapted, trained_parameters
from course_lib.planner.plan import ENGINES, Flops, Plan, Seconds
from course_lib.planner.precisions import PRECISIONS, Bytes, Memory, recipe_of, state_memory

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Activations",
    "Adapted",
    "Bytes",
    "Flops",
    "Memory",
    "Pass",
    "Plan",
    "Seconds",
    "recipe_of",
    "state_memory",
    "trained_parameters",
]
