"""The same steps on one process and on ranks: what becomes of the weights, what each rank holds, what is sent, and how
fast it goes.

Every rank builds its model from a seed of its own, so that an engine that forgets to make them alike is found out, and
every rank is handed the same batches: real sentences of very different lengths, padded.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from course_lib.data import course_tokenizer, pad, reviews_of
from course_lib.layers import TransformerConfig
from course_lib.model import Decoder, LanguageModel
from course_lib.objectives import Batch, causal
from course_lib.optimizers import make_optimizer
from course_lib.parallel import (
    Replicated,
    barrier,
    make_engine,
    rank,
    run_on_ranks,
    whole_weights,
    world,
)
from course_lib.runtime import bytes_here
from course_lib.training import ALONE, Engine, new_model, train
from course_lib.vocabulary import DOCUMENT

RATE = {"sgd": 0.3, "adamw": 1e-3}
OPTIMIZERS, ENGINES = tuple(RATE), ("alone", "ddp", "fsdp", "mean of means")


@dataclass(frozen=True)
class SharedSteps:
    """Some steps of training.

    engine: "alone", "ddp", "fsdp", or "mean of means", the mistake: each rank divides its loss by its own targets.
    optimizer: "sgd" or "adamw". dtype: of all numbers, "float32" or "float64". width, layers, length: of the model and
    its texts. batch_size: rows, of all ranks together. accumulate: batches a step. texts: what is learned from, in
    order (default: packaged sentences about films, which a process that has not read them yet takes seconds to find).
    Raises ValueError for an unknown engine or optimiser, or numbers below 1.
    """

    engine: str
    optimizer: str = "sgd"
    dtype: str = "float32"
    steps: int = 10
    width: int = 64
    layers: int = 2
    length: int = 64
    batch_size: int = 8
    accumulate: int = 1
    texts: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, known in {"engine": ENGINES, "optimizer": OPTIMIZERS, "dtype": ("float32", "float64")}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown: choose one of {', '.join(known)}")
        for name in ("steps", "width", "layers", "length", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: take at least 1")

    def config(self) -> TransformerConfig:
        return TransformerConfig(
            course_tokenizer().vocabulary.size, d_model=self.width, n_layers=self.layers, n_heads=4,
            d_ff=4 * self.width, max_len=self.length,
        )  # fmt: skip

    def model(self, seed: int = 0) -> LanguageModel:
        return new_model(Decoder, self.config(), seed=seed, device="cpu").to(getattr(torch, self.dtype))

    def sentences(self) -> list[str]:
        """The texts of all batches."""
        texts = self.texts or [review.text for review in reviews_of("train", "rotten_tomatoes")]
        return list(texts[: self.steps * self.accumulate * self.batch_size])

    def batches(self) -> Iterator[Batch]:
        """Sentences of 3 to `length` tokens, padded to the longest of their batch."""
        tokenizer, rows = course_tokenizer(), self.batch_size
        sequences = tokenizer.encode_all(self.sentences())
        for start in range(0, len(sequences), rows):
            ids_BT = pad(sequences[start : start + rows], tokenizer.vocabulary, length=self.length, frame=DOCUMENT)
            yield causal(ids_BT, tokenizer.vocabulary)


@dataclass(frozen=True)
class Outcome:
    """What a rank saw.

    losses: nats per target, of all ranks, step by step. seconds: of each step. sent: bytes that went over this
    machine's loopback in a step, whoever sent them (None where the system does not count). weights,
    gradients, optimizer: bytes of them that lie on this rank.
    """

    rank: int
    world: int
    losses: list[float]
    seconds: list[float]
    sent: float | None
    weights: int
    gradients: int
    optimizer: int


class MeanOfMeans(Replicated):
    """The mistake: the loss of each rank is a mean over its own targets, and the ranks' gradients are averaged."""

    def share(self, batch: Batch) -> Batch:
        self._all, mine = int(batch.is_target_BL.sum()), super().share(batch)
        self._mine = int(mine.is_target_BL.sum())
        return mine

    def loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        return super().loss(model, batch) * self._all / (self.world * self._mine)


def alone(steps: SharedSteps) -> tuple[Outcome, dict[str, Tensor]]:
    """What one process makes of the steps: this one, without ranks. And its weights, {name: weight}."""
    model = steps.model()
    return _run(steps, model, ALONE), {name: weight.detach().cpu() for name, weight in model.state_dict().items()}


def on_ranks(
    all_steps: Sequence[SharedSteps], *, count: int = 2, show: Callable[[str], None] = print
) -> list[tuple[list[Outcome], dict[str, Tensor]]]:
    """Start ranks once and let them take each of these steps: what every rank saw, and the weights in the end.

    Raises what `course_lib.parallel.torchrun` raises.
    """
    settings = [asdict(replace(steps, texts=steps.sentences())) for steps in all_steps]
    with tempfile.TemporaryDirectory() as folder:
        seen = run_on_ranks(_in_a_program, ranks=count, show=show, folder=folder, settings=settings)
        return [
            ([Outcome(**of_rank[n]) for of_rank in seen], load_file(Path(folder) / f"{n}.safetensors"))
            for n in range(len(all_steps))
        ]


def distance(some: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two models' weights, as a share of the largest weight."""
    largest = max(weight.abs().max() for weight in other.values())
    return float(max((some[name] - other[name]).abs().max() for name in other) / largest)


def _run(steps: SharedSteps, model: LanguageModel, engine: Engine) -> Outcome:
    optimizer = make_optimizer(model) if steps.optimizer == "adamw" else torch.optim.SGD(model.parameters(), lr=0.0)
    gradients = []
    optimizer.register_step_pre_hook(lambda *_: gradients.append(bytes_here(p.grad for p in model.parameters())))
    engine.wait()
    before, losses, seconds = bytes_on_loopback(), [], []
    rows = train(
        model, steps.batches(), steps=steps.steps, rate=RATE[steps.optimizer], optimizer=optimizer,
        accumulate=steps.accumulate, dtype=torch.float32, engine=engine,
    )  # fmt: skip
    for row in rows:
        losses.append(row.loss)
        seconds.append(row.seconds)
    engine.wait()
    sent = None if before is None else (bytes_on_loopback() - before) / steps.steps
    moments = (t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.dim())
    return Outcome(
        engine.rank, engine.world, losses, seconds, sent,
        bytes_here(model.parameters()), gradients[-1], bytes_here(moments),
    )  # fmt: skip


def bytes_on_loopback() -> int | None:
    """Bytes that this machine has sent to itself since it was started, as the system counts them."""
    counters = psutil.net_io_counters(pernic=True)
    return next((c.bytes_sent for name, c in counters.items() if name.lower().startswith("lo")), None)


def _in_a_program(folder: str, settings: list[dict]) -> list[dict]:
    """What each rank calls: its source travels alone."""
    from course_lib.runs.shared_steps import take

    return take(folder, settings)


def take(folder: str, settings: list[dict]) -> list[dict]:
    """Take all these steps as a rank: what this one saw of each. Rank 0 leaves the weights in a folder."""
    seen = []
    for n, steps in enumerate(SharedSteps(**how) for how in settings):
        began, model = time.perf_counter(), steps.model(seed=rank())
        engine = MeanOfMeans(model) if steps.engine == "mean of means" else make_engine(steps.engine, model)
        seen.append(asdict(_run(steps, model, engine)))
        weights = whole_weights(model)
        if rank() == 0:
            save_file({name: weight.contiguous() for name, weight in weights.items()}, f"{folder}/{n}.safetensors")
            took = f"{steps.steps} steps on {world()} ranks in {time.perf_counter() - began:.1f} s"
            print(f"{steps.engine}, {steps.optimizer}, {steps.dtype}: {took}", flush=True)
        barrier()
    return seen
