"""One training step, and a loop that yields records: the caller prints, plots, saves and stops as it likes.

The loss of a step is summed over all its targets and divided once by their number, however the step is cut into
micro-batches and over processes.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.losses import token_loss
from course_lib.model import LanguageModel, evaluating
from course_lib.objectives import Batch
from course_lib.optimizers import Optimizer, make_optimizer
from course_lib.precision import LossScale
from course_lib.runtime import autocast, peak_memory, pick_device


@dataclass(frozen=True)
class StepRecord:
    """What one step did.

    loss: nats per target, before the update. tokens: read by the model so far, padding and special tokens included.
    gradient_norm: before clipping. seconds: this step's duration, data preparation excluded. memory: the most that the
    process has held so far, in bytes (on cuda, that the device has). held_out: nats per target on text that the model
    is not trained on, after the update, where it was measured. scale: of the loss, where it is scaled; the step was
    left out if its gradient_norm is not finite.
    """

    step: int
    tokens: int
    targets: int
    loss: float
    rate: float
    gradient_norm: float
    seconds: float
    tokens_per_second: float = math.nan
    memory: int = 0
    held_out: float | None = None
    scale: float | None = None


def batch_loss(model: LanguageModel, batch: Batch) -> tuple[Tensor, int]:
    """Summed loss in nats over the targets of a batch, and their number."""
    return token_loss(model.target_logits(batch), batch.labels_BL[batch.is_target_BL])


class Engine(Protocol):
    """How the processes that share a step work together; `course_lib.parallel` has those for more than one.

    rank, world: which process this is, and of how many.
    """

    rank: int
    world: int

    def share(self, batch: Batch) -> Batch:
        """The rows of a batch that are this process's. May raise ValueError, where there are none; no process trains
        on the batch then."""

    def total(self, value: float) -> float:
        """The sum of what all processes hand in."""

    def agreed(self, value: Any) -> Any:
        """What process 0 hands in, in all of them."""

    def wait(self) -> None:
        """Until all processes are here."""

    def loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        """The summed loss of this process's rows."""

    def accumulating(self, model: LanguageModel, *, is_last: bool) -> contextlib.AbstractContextManager:
        """Around a micro-batch: the gradients of all processes come together in the last one alone."""

    def forget(self, model: LanguageModel) -> None:
        """Drop the gradients of an interrupted step, where zero_grad does not see them."""

    def clip(self, model: LanguageModel, limit: float) -> float:
        """Scale the gradients down to a norm of at most `limit`; the norm that they had."""


class OneProcess:
    """An engine of one process, this one."""

    rank, world = 0, 1

    def share(self, batch: Batch) -> Batch:
        return batch

    def total(self, value: float) -> float:
        return value

    def agreed(self, value: Any) -> Any:
        return value

    def wait(self) -> None:
        pass

    def loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        return batch_loss(model, batch)[0]

    def accumulating(self, model: LanguageModel, *, is_last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def forget(self, model: LanguageModel) -> None:
        pass

    def clip(self, model: LanguageModel, limit: float) -> float:
        return nn.utils.clip_grad_norm_(model.parameters(), limit).item()


ALONE = OneProcess()


def step(
    model: LanguageModel,
    optimizer: Optimizer,
    micro_batches: Sequence[Batch],
    *,
    rate: float,
    clip: float = 1.0,
    dtype: torch.dtype | None = None,
    scale: LossScale | None = None,
    engine: Engine = ALONE,
) -> tuple[float, int, float]:
    """One update from one batch or several: loss in nats per target, number of targets, norm of the gradient.

    clip: the largest norm of the gradient that is not scaled down. dtype: what autocast computes in (default: what
    pays on the model's device). scale: of the loss, which fp16 needs; a gradient that is not finite leaves the step out
    then, and lowers it. engine: of the processes that share the step; each is handed the same batches.
    Raises ValueError without a target, for a rate or clip that is none, or what `engine.share` raises;
    FloatingPointError where loss or gradient is not finite. No weight has changed then.
    """
    if not 0.0 <= rate < math.inf:
        raise ValueError(f"rate is {rate}: give a learning rate of at least 0, such as 1e-3")
    if not clip > 0:
        raise ValueError(f"clip is {clip}: give the largest norm of a gradient, above 0 (math.inf for none)")
    targets = sum(int(batch.is_target_BL.sum()) for batch in micro_batches)
    if targets == 0:
        raise ValueError("the batch has no target: raise the share of tokens to be predicted, or give longer rows")
    optimizer.zero_grad()  # what an interrupted step has left
    engine.forget(model)
    times = 1.0 if scale is None else scale.scale
    loss = _backward(model, micro_batches, engine, dtype, times=times * engine.world, targets=targets)
    norm = _unscaled_and_clipped(model, times, clip, engine)
    is_finite = math.isfinite(norm)
    if scale is not None:
        scale.update(is_finite)
    if not math.isfinite(loss) or not (is_finite or scale is not None):
        optimizer.zero_grad()
        raise FloatingPointError(f"loss {loss} with gradient norm {norm}: lower the rate or look at the batch")
    if not is_finite:
        optimizer.zero_grad()
        return loss, targets, norm
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return loss, targets, norm


def _backward(
    model: LanguageModel,
    micro_batches: Sequence[Batch],
    engine: Engine,
    dtype: torch.dtype | None,
    *,
    times: float,
    targets: int,
) -> float:
    """Gradients of `times` the loss in nats per target, and that loss, over all processes."""
    device, loss = next(model.parameters()).device, 0.0
    for number, batch in enumerate(micro_batches, 1):
        with engine.accumulating(model, is_last=number == len(micro_batches)):
            with autocast(device, dtype):
                total = engine.loss(model, engine.share(batch).to(device))
            (total * times / targets).backward()
        loss += total.item() / targets
    return engine.total(loss)


def _unscaled_and_clipped(model: LanguageModel, times: float, clip: float, engine: Engine) -> float:
    """Divide the gradients by the scale of the loss, then clip them: the other way round, the limit is another."""
    if times != 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= times
    return engine.clip(model, clip)


def train(
    model: LanguageModel,
    batches: Iterable[Batch],
    *,
    steps: int,
    rate: Callable[[int], float] | float,
    optimizer: Optimizer | None = None,
    start: int = 0,
    tokens: int = 0,
    accumulate: int = 1,
    clip: float = 1.0,
    dtype: torch.dtype | None = None,
    scale: LossScale | None = None,
    engine: Engine = ALONE,
    validate: Callable[[], float] | None = None,
    validate_every: int = 100,
) -> Iterator[StepRecord]:
    """Train for `steps` steps and yield a record after each; stopping early is leaving the loop.

    batches: `accumulate` of them a step, in order. rate: a number, or a function of the step counted from 0. start,
    tokens: what has been done already, where a run goes on. dtype, scale, engine: as in `step`; computing in fp16
    takes a LossScale where none is given. validate: measures the held-out loss, after every `validate_every`th step
    counted from the run's beginning.
    Raises ValueError for fewer than 1 step or batch, or where the batches end before the steps; FloatingPointError
    naming the step (counted from 1, as in the records) where the loss is not finite: no weight has changed in it.
    """
    for name, value in {"steps": steps, "accumulate": accumulate, "validate_every": validate_every}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: take at least 1")
    model.train()
    optimizer = optimizer or make_optimizer(model)
    coming = iter(batches)
    if dtype == torch.float16:
        scale = scale or LossScale()
    device = next(model.parameters()).device
    for number in range(start, start + steps):
        micro_batches = list(itertools.islice(coming, accumulate))
        if len(micro_batches) < accumulate:
            raise ValueError(
                f"the batches ended after {number - start} of {steps} steps: give as many, or a dataset without end"
            )
        began = time.perf_counter()
        now = rate(number) if callable(rate) else rate
        try:
            times = None if scale is None else scale.scale
            loss, targets, norm = step(
                model, optimizer, micro_batches, rate=now, clip=clip, dtype=dtype, scale=scale, engine=engine
            )
        except FloatingPointError as error:
            raise FloatingPointError(f"step {number + 1}: {error}") from None
        seconds = time.perf_counter() - began
        read = sum(batch.input_ids_BT.numel() for batch in micro_batches)
        tokens += read
        held_out = validate() if validate and (number + 1) % validate_every == 0 else None
        yield StepRecord(
            number + 1, tokens, targets, loss, now, norm, seconds, read / seconds, peak_memory(device), held_out, times
        )


def with_progress(records: Iterable[StepRecord], total: int) -> Iterator[StepRecord]:
    """The same records, with a progress bar of tqdm that shows the loss, in a terminal or a notebook. A run that goes
    on begins where its first record is."""
    with contextlib.ExitStack() as opened:
        bar = None
        for record in records:
            if bar is None:  # not before the first step: what is wrong with a run is said without a bar
                bar = opened.enter_context(tqdm(total=total, unit="step", dynamic_ncols=True))
                bar.n = bar.initial = record.step - 1
            bar.set_postfix_str(f"loss {record.loss:.3f}", refresh=False)
            bar.update()
            yield record


def held_out_loss(
    model: LanguageModel, batches: Iterable[Batch], *, dtype: torch.dtype | None = None, engine: Engine = ALONE
) -> float:
    """Nats per target over batches that the model is not trained on. engine: as in `step`.

    Raises ValueError without a target.
    """
    device = next(model.parameters()).device
    loss, targets = 0.0, 0
    with evaluating(model), torch.no_grad(), autocast(device, dtype):
        for batch in batches:
            loss += engine.loss(model, engine.share(batch).to(device)).item()
            targets += int(batch.is_target_BL.sum())
    if targets == 0:
        raise ValueError("the batches have no target: give batches with something to predict")
    return engine.total(loss) / targets


def new_model(
    factory: Callable[..., LanguageModel], *arguments: object, seed: int = 0, device: str | None = None
) -> LanguageModel:
    """A freshly initialised model, its weights fixed by the seed, on the device that `pick_device` names."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory(*arguments)
    return model.to(pick_device(device))
