"""BitFit (arXiv:2106.10199): train the biases and nothing else."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from course_lib.peft.slots import is_added
from course_lib.peft.strategy import Strategy


@dataclass(frozen=True)
class BitFit(Strategy):
    """Train every parameter called `bias`, those of normalisation layers among them.

    Raises ValueError, when applied, for a model without any, such as Llama's.

    >>> from course_lib.peft import apply
    >>> print(apply(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), BitFit()))
    bitfit 'default': 4 of 12 parameters train (33.3%), at 2 places
    """

    kind: ClassVar[str] = "bitfit"

    def own_parameters(self, model: nn.Module) -> list[str]:
        names = [name for name, _ in model.named_parameters() if is_bias(name) and not is_added(name)]
        if not names:
            raise ValueError(f"this {type(model).__name__} has no parameter called bias: take another strategy")
        return names


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias, by its name.

    >>> is_bias("layer.0.output.dense.bias"), is_bias("relative_attention_bias.weight")
    (True, False)
    """
    return name.rpartition(".")[2] == "bias"
