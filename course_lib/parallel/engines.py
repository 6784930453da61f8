"""Two ways to share a step among ranks. Each is handed the same batch, works on its own rows of it, and has the same
gradients as the others afterwards: those of the whole batch.

- `Replicated` (DDP, arXiv:2006.15704): every rank holds all weights; gradients are summed while they are computed.
- `Sharded` (FSDP2, arXiv:2304.11277; the idea is ZeRO's, arXiv:1910.02054): every rank holds a part of the weights, of
  the gradients and of the optimiser's state, and gathers a block's weights when it is that block's turn.

Both divide by the number of ranks when they sum, which `training.step` makes up for: the loss is divided by all targets
of the step, wherever they are.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from course_lib.layers import BertBlock, GPTBlock
from course_lib.model import LanguageModel, TwoStream
from course_lib.objectives import Batch
from course_lib.parallel.ranks import agreed, alike, barrier, rank, summed, world
from course_lib.training import batch_loss


class _Engine:
    """What both have in common."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.rank, self.world = model, rank(), world()

    def share(self, batch: Batch) -> Batch:
        """Every `world`th row, beginning with this rank's number.

        Raises ValueError where a rank would go without a row.
        """
        n_rows = len(batch.input_ids_BT)
        if n_rows < self.world:
            raise ValueError(f"{self.world} ranks share a batch of {n_rows}: start fewer, or raise the batch size")
        return batch.rows(slice(self.rank, None, self.world))

    def total(self, value: float) -> float:
        """The sum of what all ranks hand in."""
        return summed(value)

    def agreed(self, value: Any) -> Any:
        """What rank 0 hands in, on every rank."""
        return agreed(value)

    def wait(self) -> None:
        """Until all ranks are here."""
        barrier()

    def loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        """The summed loss of this rank's rows."""
        return batch_loss(model, batch)[0]

    def forget(self, model: LanguageModel) -> None:
        """Nothing: the optimiser's zero_grad sees all gradients."""

    def clip(self, model: LanguageModel, limit: float) -> float:
        """Scale the gradients down to a norm of at most `limit`, that of the whole model; the norm that they had."""
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


class SummedLoss(nn.Module):
    """The summed loss as a module, since DDP listens to a module's forward pass."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return batch_loss(self.model, batch)[0]


class Replicated(_Engine):
    """Distributed data parallel: all weights on every rank, those of rank 0 to begin with."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self._listening = DistributedDataParallel(SummedLoss(model))

    def loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        if model is not self.model:
            raise ValueError("the engine was made for another model: make one for each")
        return self._listening(batch)

    def accumulating(self, model: LanguageModel, *, is_last: bool) -> contextlib.AbstractContextManager:
        """Gradients are summed over the ranks in the last micro-batch alone."""
        return contextlib.nullcontext() if is_last else self._listening.no_sync()


class Sharded(_Engine):
    """Fully sharded data parallel: a part of every weight on each rank. The model is changed in place, so make its
    optimiser afterwards."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        # no block changes in place what another has handed it, which is all that this warns of
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        alike([*model.parameters(), *model.buffers()])  # fully_shard would take each part from another model
        mesh = _mesh(model)
        for block in model.modules():
            if isinstance(block, (GPTBlock, BertBlock)):
                fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if isinstance(model, TwoStream):
            register_fsdp_forward_method(model, "predict")  # its target_logits goes by that and not by forward
        self._is_within_a_step = False

    @contextlib.contextmanager
    def accumulating(self, model: LanguageModel, *, is_last: bool) -> Iterator[None]:
        """Gradients are summed and shared out in the last micro-batch alone; until then each rank holds all of its
        own."""
        model.set_requires_gradient_sync(is_last)
        self._is_within_a_step = True
        yield
        self._is_within_a_step = not is_last

    def forget(self, model: LanguageModel) -> None:
        """Drop the gradients of an interrupted step. Those of micro-batches before the last belong to the gathered
        weights, where zero_grad does not see them: all ranks gather them once more, so all must have been
        interrupted."""
        for module in model.modules() if self._is_within_a_step else ():
            if isinstance(module, FSDPModule):
                module.unshard()
                module.zero_grad()
                module.reshard()
        self._is_within_a_step = False


ENGINES = {"ddp": Replicated, "fsdp": Sharded}


def make_engine(kind: str, model: LanguageModel) -> Replicated | Sharded:
    """The engine of that kind, "ddp" or "fsdp", for a model on this rank's device.

    Raises ValueError for another kind.
    """
    if kind not in ENGINES:
        raise ValueError(f"engine {kind!r} is unknown: choose one of {', '.join(ENGINES)}")
    return ENGINES[kind](model)


def _mesh(model: nn.Module) -> DeviceMesh:
    return init_device_mesh(next(model.parameters()).device.type, (world(),))
