"""What training did to a weight matrix: the singular values of its change, and the change cut down to a low rank.

Axes: O channel out, I channel in, R the rank.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from course_lib.peft.targets import ALL_LINEAR, Targets, find_targets


def weights_of(model: nn.Module, targets: Targets = ALL_LINEAR) -> dict[str, Tensor]:
    """Copies of the weights of linear layers, as they are stored, by the layers' names.

    Raises ValueError where `targets` match nothing.
    """
    return {name: layer.weight.detach().clone() for name, layer in find_targets(model, targets).items()}


def changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """after - before, for every name in `before`."""
    return {name: after[name] - weight for name, weight in before.items()}


def energy_kept(delta_OI: Tensor) -> np.ndarray:
    """[min(O, I)]: the share of a change's squared length that its best approximation of rank 1, 2, ... keeps (Eckart
    and Young 1936); zeros for no change at all.

    >>> energy_kept(torch.diag(torch.tensor([2.0, 1.0, 0.0]))).tolist()
    [0.8, 1.0, 1.0]
    """
    squared = torch.linalg.svdvals(delta_OI.double()).square()
    return (squared.cumsum(0) / squared.sum().clamp(min=1e-300)).cpu().numpy()


def truncated(delta_OI: Tensor, rank: int) -> Tensor:
    """[O, I]: the best approximation of a matrix by one of this rank.

    Raises ValueError for a rank below 1.

    >>> truncated(torch.diag(torch.tensor([2.0, 1.0])), 1).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}: give at least 1")
    left_OR, values_R, right_RI = torch.linalg.svd(delta_OI, full_matrices=False)
    return (left_OR[:, :rank] * values_R[:rank]) @ right_RI[:rank]


@torch.no_grad()
def cut_changes(model: nn.Module, before: Mapping[str, Tensor], rank: int) -> None:
    """Cut down what a model's layers have moved from `before` to a rank, in place; all else stays.

    Raises ValueError for a rank below 1.
    """
    for name, weight in before.items():
        layer = model.get_submodule(name)
        layer.weight.copy_(weight + truncated(layer.weight - weight, rank))
