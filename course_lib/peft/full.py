"""Full fine-tuning: every parameter trains. What all the others are measured against."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from course_lib.peft.slots import is_added
from course_lib.peft.strategy import Strategy


@dataclass(frozen=True)
class Full(Strategy):
    """Train all parameters.

    >>> from course_lib.peft import apply
    >>> print(apply(nn.Linear(3, 2), Full()))
    full 'default': 8 of 8 parameters train (100%), at 1 place
    """

    kind: ClassVar[str] = "full"
    keeps_base: ClassVar[bool] = False

    def own_parameters(self, model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters() if not is_added(name)]
