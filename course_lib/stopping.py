"""When to stop, by a held-out loss: so many measurements without a lower one, and back to the weights of the lowest."""

import math
from dataclasses import dataclass

from torch import nn


@dataclass
class EarlyStopping:
    """Tells when the held-out loss has not fallen below its lowest for `patience` measurements in a row; never where
    that is None.

    >>> stopping = EarlyStopping(patience=2)
    >>> [stopping.update(loss) for loss in (3.0, 2.0, 2.5, 2.4)]
    [False, False, False, True]
    """

    patience: int | None = None
    lowest: float = math.inf
    misses: int = 0

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}: wait for at least 1 measurement")

    def update(self, loss: float) -> bool:
        """Take one measurement in; True when it is time to stop. What is not finite counts as no better."""
        is_better = math.isfinite(loss) and loss < self.lowest
        self.misses = 0 if is_better else self.misses + 1
        self.lowest = loss if is_better else self.lowest
        return self.is_over

    @property
    def is_over(self) -> bool:
        return self.patience is not None and self.misses >= self.patience

    @property
    def is_best(self) -> bool:
        """Whether the last measurement is the lowest so far."""
        return self.misses == 0 and self.lowest < math.inf


class BestWeights(EarlyStopping):
    """Early stopping that keeps what is trained of a model as it was at the lowest held-out loss.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> best = BestWeights(model)
    >>> for weight, loss in ((1.0, 0.5), (2.0, 0.4), (3.0, 0.6)):
    ...     _ = nn.init.constant_(model.weight, weight), best.update(loss)
    >>> best.restore()
    >>> model.weight.item()
    2.0
    """

    def __init__(self, model: nn.Module, patience: int | None = None) -> None:
        super().__init__(patience)
        self.model, self.weights = model, {}

    def update(self, loss: float) -> bool:
        """Take one measurement in, and the weights where it is the lowest; True when it is time to stop."""
        is_over = super().update(loss)
        if self.is_best:
            trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
            self.weights = {name: parameter.detach().clone() for name, parameter in trained}
        return is_over

    def restore(self) -> None:
        """Put the weights of the lowest loss back into the model.

        Raises FloatingPointError where no loss was finite.
        """
        if self.lowest == math.inf:
            raise FloatingPointError("the held-out loss was never a finite number: lower the rate")
        self.model.load_state_dict(self.weights, strict=False)
