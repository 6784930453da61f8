"""LoRA (arXiv:2106.09685): beside a frozen weight W, train a product of two thin matrices, W x + scale B (A x).

Axes: N token, I channel in, O channel out, R the rank.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.peft.slots import Part
from course_lib.peft.strategy import Strategy
from course_lib.peft.targets import ALL_LINEAR, Targets, check_pattern, dimensions, find_targets, is_transposed


class LowRankUpdate(Part):
    """The two thin matrices of one layer: A [R, I] begins random, B [O, R] at zero, so that training starts from the
    model as it is."""

    def __init__(self, n_in: int, n_out: int, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.A = nn.Parameter(torch.empty(rank, n_in))
        self.B = nn.Parameter(torch.zeros(n_out, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as torch's Linear begins

    def after(self, x: Tensor, output: Tensor) -> Tensor:
        inner_NR = F.linear(F.dropout(x, self.dropout, self.training), self.A.to(x.dtype)).reshape(-1, len(self.A))
        # one call for product, scale and sum: no second tensor of the output's size
        flat_NO, B_RO = output.reshape(-1, len(self.B)), self.B.T.to(inner_NR.dtype)
        return torch.addmm(flat_NO, inner_NR, B_RO, alpha=self.scale).view_as(output)

    def delta(self) -> Tensor:
        """[O, I]: what a merge adds to the weight."""
        return self.scale * self.B @ self.A

    @torch.no_grad()
    def become_sum_of(self, updates: list[tuple["LowRankUpdate", float]]) -> None:
        """Take over the weighted sum of other updates, exactly: their ranks side by side."""
        self.A.copy_(torch.cat([update.A for update, _ in updates]))
        self.B.copy_(torch.cat([update.B * (weight * update.scale / self.scale) for update, weight in updates], dim=1))


@dataclass(frozen=True)
class LoRA(Strategy):
    """Low-rank updates beside linear layers.

    rank: of each update. alpha: the update is scaled by alpha / rank, or by alpha / sqrt(rank) with `rank_stabilized`
    (arXiv:2312.03732). dropout: of the update's input, while training. targets: names of layers by their ends, one
    regular expression for whole names, or "all-linear". rank_pattern: other ranks, {regular expression for the end of
    a name: rank}.
    Raises ValueError for numbers out of range; when applied, for targets that match nothing or no linear layer, a layer
    tied to an embedding, or a rank larger than a layer's matrix.

    >>> from course_lib.peft import apply
    >>> print(apply(nn.Sequential(nn.Linear(6, 6)), LoRA(rank=2)))
    lora 'default': 24 of 66 parameters train (36.4%), at 1 place
    """

    kind: ClassVar[str] = "lora"

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: Targets = ALL_LINEAR
    rank_stabilized: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rank in (self.rank, *self.rank_pattern.values()):
            if not isinstance(rank, int) or rank < 1:
                raise ValueError(f"rank is {rank!r}: give a whole number of at least 1, such as 8")
        for pattern in self.rank_pattern:
            check_pattern(pattern)
        if not isinstance(self.alpha, (int, float)) or not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha!r}: give a number above 0, such as twice the rank")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: give a probability of at least 0 and below 1")

    def rank_of(self, name: str) -> int:
        """The rank at a layer of this name."""
        return next((r for key, r in self.rank_pattern.items() if re.match(rf"(.*\.)?({key})$", name)), self.rank)

    def scale_of(self, name: str) -> float:
        """What the update at a layer of this name is multiplied by."""
        rank = self.rank_of(name)
        return self.alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def parts(self, model: nn.Module, modules_to_save: tuple[str, ...]) -> dict[str, Part]:
        found = find_targets(model, self.targets, excluded=modules_to_save)
        for name, layer in found.items():
            if self.rank_of(name) > min(dimensions(layer)):
                n_in, n_out = dimensions(layer)
                raise ValueError(
                    f"rank {self.rank_of(name)} at {name!r} is larger than its matrix, {n_out} x {n_in}: lower it, "
                    "leave the layer out, or train it whole with modules_to_save"
                )
        return {
            name: LowRankUpdate(*dimensions(layer), self.rank_of(name), self.scale_of(name), self.dropout)
            for name, layer in found.items()
        }


@torch.no_grad()
def add_delta(layer: nn.Module, update: LowRankUpdate) -> None:
    """Add an update to its layer's weight, summed in fp32."""
    delta_OI = update.delta()
    weight = layer.weight.float() + (delta_OI.T if is_transposed(layer) else delta_OI)
    layer.weight.copy_(weight)
