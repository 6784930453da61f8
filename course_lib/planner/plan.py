"""A training step of an architecture on some devices: memory, arithmetic, communication and time, from dimensions."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from torch import nn

from course_lib.architectures import Architecture
from course_lib.peft import Strategy
from course_lib.planner.activations import Activations, Pass
from course_lib.planner.counting import Adapted, numbers_in
from course_lib.planner.layouts import NAMES
from course_lib.planner.precisions import SHARDED, Bytes, Memory, recipe_of, state_memory

ENGINES = {"ddp": (), "fsdp": SHARDED}  # what the devices of each divide among themselves
MASKED_SHARE = 0.15  # of BERT's tokens are predicted (arXiv:1810.04805, section 3.1)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations for each token of the input, a multiplication and an addition counting as two.

    weight_gradients, input_gradients: of the backward pass. recomputed: the forward pass of the blocks once more, under
    checkpointing (torch's own stops behind the last tensor that a block keeps: in GPT-2's layout before its last
    matrix).
    """

    forward: float
    input_gradients: float
    weight_gradients: float
    recomputed: float = 0

    @property
    def total(self) -> float:
        return self.forward + self.input_gradients + self.weight_gradients + self.recomputed


@dataclass(frozen=True)
class Seconds:
    """Of a step. total: where nothing is sent while something is computed. overlapped: where all of it is."""

    computing: float
    sending: float

    @property
    def total(self) -> float:
        return self.computing + self.sending

    @property
    def overlapped(self) -> float:
        return max(self.computing, self.sending)


@dataclass(frozen=True)
class Plan:
    """A training step: what is trained, how, in which number format, on what batches, and on which devices.

    precision: a name in PRECISIONS, or Bytes of your own. batch_size: rows [T] of one micro-batch on one device.
    devices: as many train with data of their own. engine: "ddp" (each device holds everything) or "fsdp" (they divide
    weights, gradients and optimiser state). accumulate: micro-batches of a step. predicted: share of positions that are
    predicted; by default all for a decoder, 15% for an encoder with its head and none without.
    fused_attention, has_row_masks, has_dropout: as `Pass` has them.
    Raises ValueError for numbers out of range, an unknown precision or engine, a batch longer than the model, and what
    the strategy refuses.

    >>> from course_lib.architectures import architecture
    >>> from course_lib.peft import Full
    >>> plan = Plan(architecture("GPT-2"), Full(), "fp32", batch_size=8, length=1024)
    >>> plan.memory().weights == 4 * 124_439_808
    True
    """

    architecture: Architecture
    strategy: Strategy
    precision: str | Bytes
    batch_size: int
    length: int
    devices: int = 1
    engine: Literal["ddp", "fsdp"] = "ddp"
    checkpointing: bool = False
    accumulate: int = 1
    predicted: float | None = None
    fused_attention: bool = False
    has_row_masks: bool = False
    has_dropout: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.architecture, Architecture):
            raise TypeError(f"architecture is {self.architecture!r}: give one such as architecture('GPT-2')")
        if not isinstance(self.strategy, Strategy):
            raise TypeError(f"strategy is {self.strategy!r:.60}: give one such as LoRA(rank=8)")
        for name in ("batch_size", "length", "devices", "accumulate"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: give a whole number of at least 1")
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is unknown: choose one of {', '.join(ENGINES)}")
        if not 0 <= self._share <= 1:
            raise ValueError(f"predicted is {self.predicted}: give a share of positions between 0 and 1")
        if self._share and not self.architecture.predicts:
            raise ValueError("this architecture has no output layer: set its head=True, or predicted=0")
        positions = self.length + self.adapted.prefix
        if positions > self.architecture.max_len:
            beside = f" behind a prefix of {self.adapted.prefix}" if self.adapted.prefix else ""
            raise ValueError(
                f"length {self.length}{beside} exceeds the model's {self.architecture.max_len} positions: shorten it"
            )
        recipe_of(self.precision)

    @cached_property
    def adapted(self) -> Adapted:
        return Adapted.of(self.architecture, self.strategy)

    @property
    def recipe(self) -> Bytes:
        return recipe_of(self.precision)

    @property
    def tokens_per_step(self) -> int:
        """Read by all devices together."""
        return self.batch_size * self.length * self.accumulate * self.devices

    @property
    def _share(self) -> float:
        usual = MASKED_SHARE if self.architecture.layout in ("bert", "roformer") else 1.0
        return self.predicted if self.predicted is not None else usual * self.architecture.predicts

    # --- memory -------------------------------------------------------------------------------------------------------

    def memory(self, *, sharded: Collection[str] | None = None) -> Memory:
        """Bytes on each device, as if all were there at once; in a step of one micro-batch, gradients come while
        activations go.

        sharded: what the devices divide, instead of what the engine divides (as `state_memory` has it). FSDP adds up
        whole gradients on each device while a step has more micro-batches than one. Not counted: a block's gathered
        weights under FSDP (`gathered`), buffers of DDP, what kernels and the allocator take.
        """
        sharded = ENGINES[self.engine] if sharded is None else sharded
        if self.accumulate > 1:
            sharded = [part for part in sharded if part != "gradients"]
        adapted = self.adapted
        state = state_memory(adapted.n_trained, adapted.n_frozen, self.recipe, devices=self.devices, sharded=sharded)
        kept = self.activations()
        return replace(state, activations=kept.checkpointed if self.checkpointing else kept.total)

    def activations(self) -> Activations:
        """What the forward pass of one micro-batch keeps, tensor by tensor, without checkpointing."""
        n_predicted = round(self._share * self.batch_size * self.length)
        return Pass(
            self.adapted, self.recipe, self.batch_size, self.length, n_predicted, self.fused_attention,
            self.has_row_masks, self.has_dropout,
        ).activations()  # fmt: skip

    def gathered(self) -> float:
        """Bytes of weights that FSDP has put together on each device while the largest block is at work: the block's,
        and all that stand in no block."""
        if self.engine != "fsdp" or self.devices == 1:
            return 0.0
        blocks = [(times, self._weights_of(block)) for times, block in self.adapted.blocks]
        return self._weights - sum(times * size for times, size in blocks) + max(size for _, size in blocks)

    @property
    def _weights(self) -> float:
        return state_memory(self.adapted.n_trained, self.adapted.n_frozen, self.recipe).weights

    def _weights_of(self, module: nn.Module) -> float:
        n_trained = numbers_in(module, trained=True)
        n_frozen = numbers_in(module) - n_trained
        return n_trained * self.recipe.weights + n_frozen * self.recipe.per_frozen_parameter

    # --- arithmetic, communication, time ------------------------------------------------------------------------------

    def flops_per_token(self) -> Flops:
        """Matrix products alone: for each number of a matrix 2 forward, 2 for the gradient of the input and, where it
        trains, 2 for its own; attention 4 E K forward in each block and twice that backward, for E channels and K
        positions, all of them, seen or not (arXiv:2001.08361, table 1; arXiv:2204.02311, appendix B).

        Every layer counts as if the gradient of its input were wanted: the first block's is not, where the embeddings
        are frozen.
        """
        keys = self.length + self.adapted.prefix
        attention = 4 * keys * self.architecture.d_model * self.architecture.n_layers
        blocks = sum(times * _matrices(block) for times, block in self.adapted.blocks)
        trained = sum(times * _matrices(block, trained=True) for times, block in self.adapted.blocks)
        head, head_trained = (self._share * self._head(trained=only) for only in (False, True))
        forward = 2 * (blocks + head) + attention
        recomputed = 2 * blocks + attention if self.checkpointing else 0
        return Flops(forward, forward + attention, 2 * (trained + head_trained), recomputed)

    def _head(self, *, trained: bool) -> int:
        """Numbers in the matrices that a predicted position meets after the blocks."""
        if not self.architecture.predicts:
            return 0
        model = self.adapted.model
        weight = model.get_submodule(NAMES[self.architecture.layout].output).weight
        output = weight.numel() if weight.requires_grad or not trained else 0
        return output + (_matrices(model.cls, trained=trained) if hasattr(model, "cls") else 0)

    def bytes_sent_per_step(self) -> float:
        """Sent by each of n devices in a step, as the engines of course_lib.parallel do it.

        DDP: 2 (n - 1) / n of the trained gradients, once around a ring to be summed and once to be told, after the last
        micro-batch. FSDP: (n - 1) / n of the blocks' weights forward and again backward, and of what stands in no
        block, which stays together in between, once, both for each micro-batch; of the gradients once, after the last.
        (ZeRO gathers all weights twice, arXiv:1910.02054, section 7: nearly the same for a large model.)
        """
        share = (self.devices - 1) / self.devices
        gradients = self.adapted.n_trained * self.recipe.gradients
        if self.engine == "ddp":
            return 2 * share * gradients
        blocks = sum(times * self._weights_of(block) for times, block in self.adapted.blocks)
        return share * ((self._weights + blocks) * self.accumulate + gradients)

    def seconds_per_step(self, flops_per_second: float, bytes_per_second: float) -> Seconds:
        """flops_per_second: what a device reaches on these matrix products, not what it is sold for.
        bytes_per_second: what it sends at a time.

        Raises ValueError for a rate that is none.
        """
        for name, rate in {"flops_per_second": flops_per_second, "bytes_per_second": bytes_per_second}.items():
            if not rate > 0:
                raise ValueError(f"{name} is {rate}: give a measured rate above 0")
        each = self.tokens_per_step / self.devices
        return Seconds(each * self.flops_per_token().total / flops_per_second,
                       self.bytes_sent_per_step() / bytes_per_second)  # fmt: skip


def _matrices(module: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.dim() == 2 and (p.requires_grad or not trained))
