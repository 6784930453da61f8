"""What training did to a weight matrix: the singular values of its change, and the change cut down to a low rank.

Axes: O channel out, I channel in, R the rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Spectrum:
    """A matrix as its singular values, largest first, and the directions that belong to them."""

    left_OR: Tensor
    values_R: Tensor
    right_RI: Tensor

    def energy_kept(self) -> np.ndarray:
        """[R]: the share of the matrix's squared length that its best approximation of rank 1, 2, ... keeps (Eckart
        and Young 1936); zeros for a matrix of zeros.

        >>> spectrum(torch.diag(torch.tensor([2.0, 1.0, 0.0]))).energy_kept().tolist()
        [0.8, 1.0, 1.0]
        """
        squared_R = self.values_R.double().square()
        return (squared_R.cumsum(0) / squared_R.sum().clamp(min=1e-300)).cpu().numpy()

    def truncated(self, rank: int) -> Tensor:
        """[O, I]: the best approximation of the matrix by one of this rank, zeros at rank 0.

        Raises ValueError for a negative rank.

        >>> spectrum(torch.diag(torch.tensor([2.0, 1.0]))).truncated(1).abs().tolist()
        [[2.0, 0.0], [0.0, 0.0]]
        """
        if rank < 0:
            raise ValueError(f"rank is {rank}: give at least 0")
        return (self.left_OR[:, :rank] * self.values_R[:rank]) @ self.right_RI[:rank]


def spectrum(delta_OI: Tensor) -> Spectrum:
    """The singular value decomposition of a matrix, without directions that it does not use."""
    return Spectrum(*torch.linalg.svd(delta_OI, full_matrices=False))


@torch.no_grad()
def cut_changes(model: nn.Module, before: Mapping[str, Tensor], spectra: Mapping[str, Spectrum], rank: int) -> None:
    """Cut down what a model's layers have moved from `before` to a rank, in place; all else stays. spectra: of what the
    layers have moved.

    Raises ValueError for a negative rank.
    """
    for name, weight in before.items():
        model.get_submodule(name).weight.copy_(weight + spectra[name].truncated(rank).to(weight.device))
