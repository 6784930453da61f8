"""Pre-training from a config: begin, checkpoint, be stopped at any moment, and go on to the bit.

A run lives in one folder: `record.jsonl` (its curve), `step_N` (checkpoints), and in the end `model`, which
`load_model` and the Auto classes of `transformers` open.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from course_lib.checkpoint import Checkpoint, Checkpoints, random_states, restore_random_states
from course_lib.data import Packed, PretrainingDataset, course_tokenizer
from course_lib.files import write_folder
from course_lib.model import LanguageModel
from course_lib.objectives import Batch
from course_lib.optimizers import Optimizer, make_optimizer
from course_lib.precision import LossScale
from course_lib.pretrained import load_model, model_files
from course_lib.records import Record, check_same
from course_lib.runs.recipes import Pretraining
from course_lib.runtime import fast_dtype, pick_device, seeded
from course_lib.stopping import EarlyStopping
from course_lib.training import ALONE, Engine, StepRecord, held_out_loss, train

if TYPE_CHECKING:
    from course_lib.runs.probe import SentimentProbe

RECORD_EVERY = 10  # steps between the rows of the training loss


def report(run: Pretraining, folder: Path | str, steps: int, seconds: float) -> str:
    """What a finished run has come to, in a few lines. steps, seconds: those of the last sitting."""
    folder = Path(folder)
    curve = Record(folder / "record.jsonl").values("held_out", name=run.name)
    step, lowest = min(curve, key=lambda pair: pair[1])
    lines = [
        f"{run.steps:,} steps, {run.steps * run.tokens_per_step:,} tokens; {seconds:.0f} s this time, "
        f"{steps * run.tokens_per_step / max(seconds, 1e-9):,.0f} tokens a second with everything",
        f"held-out loss {curve[0][1]:.3f} before, {lowest:.3f} nats per target at its best (step {step:,})",
        f"the model is in {folder / 'model'}: course_lib.pretrained.load_model opens it, and so does transformers",
    ]
    return "\n".join(lines)


def pretrain(
    run: Pretraining,
    folder: Path | str,
    *,
    resume: bool = False,
    device: str | None = None,
    keep: int = 2,
    engine: str | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepRecord]:
    """Train, yielding a record a step, with a checkpoint every `save_every` steps, at every rung and at the end, and
    where `should_stop` says so. When it is done the best checkpoint's weights stand in `folder`/model.

    resume: go on from the newest checkpoint that is whole; the result is that of a run that was never stopped.
    engine: "ddp" or "fsdp", among the ranks of `course_lib.parallel.ranks`, all of which call this; a run goes on with
    another number of them, or with the other engine, where it was.
    Raises ValueError where the folder holds a run and `resume` is not set, holds none and it is, or holds one with
    other settings, text or tokenizer (says which); FloatingPointError where the loss is not finite, OSError where a
    checkpoint cannot be written: the last good one stands.
    """
    folder = Path(folder)
    checkpoints, about = (Checkpoints if engine is None else _parallel().SharedCheckpoints)(folder, keep), run.about()
    begun = to_go_on_from(checkpoints, about, resume)
    train_rows, held_out_rows = run.rows()
    dataset = run.dataset(train_rows)
    sitting = _Sitting.of(run, checkpoints, about, begun, held_out_rows, pick_device(device), engine)
    if begun is None:
        sitting.record.check_about()  # of a run that was killed before its first checkpoint
        torch.manual_seed(run.seed)  # dropout draws from the global generators
        sitting.save(0, sitting.measure(0))
    done = sitting.done
    if done < run.steps and not sitting.stopping.is_over:
        batches = (sitting.batch(dataset, k) for k in itertools.count(done * run.accumulate))
        for row in train(
            sitting.model,
            batches,
            steps=run.steps - done,
            rate=run.schedule,
            optimizer=sitting.optimizer,
            start=done,
            tokens=sitting.tokens,
            accumulate=run.accumulate,
            clip=run.clip,
            dtype=sitting.dtype,
            scale=sitting.scale,
            engine=sitting.engine,
        ):
            sitting.note(row)
            sitting.tokens = row.tokens
            if row.step % run.save_every == 0 or row.step == run.steps or row.step in run.rung_steps:
                row = replace(row, held_out=sitting.measure(row.step))
                sitting.stopping.update(row.held_out)
                sitting.save(row.step, row.held_out)
            yield row
            if sitting.stopping.is_over or row.step == run.steps:
                break
            if sitting.engine.total(should_stop()):
                if row.held_out is None:
                    sitting.save(row.step, None)
                return
    sitting.write_best()


@dataclass
class _Sitting:
    """One sitting at a run: what is trained, and what is written about it. done: steps taken before it began. tokens:
    read so far. dtype: what it computes in, which another sitting must not measure again. scale: of the loss, for fp16.
    engine: of the processes that share it; what is written about the run, rank 0 writes."""

    run: Pretraining
    checkpoints: Checkpoints
    about: dict
    record: Record
    model: LanguageModel
    optimizer: Optimizer
    stopping: EarlyStopping
    held_out_batches: list[Batch]
    dtype: torch.dtype
    engine: Engine
    done: int = 0
    tokens: int = 0
    scale: LossScale | None = None

    @classmethod
    def of(
        cls,
        run: Pretraining,
        checkpoints: Checkpoints,
        about: dict,
        begun: Checkpoint | None,
        held_out_rows: Packed,
        device: torch.device,
        engine: str | None,
    ) -> "_Sitting":
        """A first sitting, or one that goes on from a checkpoint with every piece of its state."""
        held_out = run.dataset(held_out_rows, batch_size=min(run.batch_size, len(held_out_rows.ids_NT)))
        is_begun_alone = begun is not None and engine is None
        if is_begun_alone and "optimizer" not in begun.state:
            raise ValueError(f"{begun.folder} was written by ranks, in parts: go on with --ranks, of which 1 will do")
        model = (load_model(begun.folder) if is_begun_alone else run.model()).to(device)
        chosen = ALONE if engine is None else _parallel().make_engine(engine, model)  # which may change the model
        sitting = cls(
            run,
            checkpoints,
            about,
            Record(checkpoints.folder / "record.jsonl", command=f"course pretrain {run.name}", about=about),
            model,
            make_optimizer(model, run.optimizer, weight_decay=run.weight_decay),
            EarlyStopping(run.patience),
            [held_out.batch(k) for k in range(min(run.held_out_batches, held_out.batches_per_epoch))],
            chosen.agreed(fast_dtype(device)) if run.dtype == "auto" else getattr(torch, run.dtype),
            chosen,
        )
        if begun is not None:
            sitting.done, sitting.tokens = begun.step, begun.state["tokens"]
            if engine is None:
                sitting.optimizer.load_state_dict(begun.state["optimizer"])
                restore_random_states(begun.state["random"])
            else:
                checkpoints.restore(begun, model, sitting.optimizer)
            sitting.stopping.lowest, sitting.stopping.misses = begun.state["stopping"]
            sitting.dtype = getattr(torch, begun.state["dtype"])
        if sitting.dtype == torch.float16:
            sitting.scale = LossScale(**begun.state["scale"]) if begun is not None else LossScale()
        return sitting

    @property
    def is_shared(self) -> bool:
        return self.engine is not ALONE

    @cached_property
    def probe(self) -> "SentimentProbe":
        from course_lib.runs.probe import SentimentProbe  # it brings scikit-learn along, which ranks need not wait for

        return SentimentProbe()

    def batch(self, dataset: PretrainingDataset, number: int) -> Batch:
        """Batch `number`. Among ranks, what dropout draws in a step is fixed by seed, rank and the last of the step's
        batches, all of which are made before it begins, so that there is no state of it to write."""
        if self.is_shared:
            torch.manual_seed(seeded(self.run.seed, number, self.engine.rank).initial_seed())
        return dataset.batch(number)

    def note(self, row: StepRecord) -> None:
        """Write the curve, every step of its beginning and then now and again."""
        if row.step % RECORD_EVERY == 0 or row.step <= 20:
            for metric in ("loss", "gradient_norm", "rate", "seconds", "scale"):
                value = getattr(row, metric)
                if value is not None and math.isfinite(value):  # the norm of a step that was left out is not
                    self._add(row.step, metric, value)

    def measure(self, step: int) -> float:
        """Held-out loss now, and at a rung what the probe finds."""
        loss = held_out_loss(self.model, self.held_out_batches, dtype=self.dtype, engine=self.engine)
        if not math.isfinite(loss):
            raise FloatingPointError(f"step {step}: the held-out loss is {loss}: lower the rate or look at the text")
        self._add(step, "held_out", loss)
        if self.run.probe and (step in self.run.rung_steps or step == 0):
            self._add_probe(step)
        return loss

    def _add_probe(self, step: int) -> None:
        model = self.model
        if self.is_shared:
            weights, model = _parallel().whole_weights(self.model), self.run.model()
            if self.engine.rank == 0:
                model.load_state_dict(weights)
        if self.engine.rank == 0:
            self.probe.add_to(self.record, self.run.name, step, self.probe.of_model(model))

    def save(self, step: int, score: float | None) -> None:
        """Write a checkpoint."""
        state = {
            "tokens": self.tokens,
            "dtype": str(self.dtype).removeprefix("torch."),
            "stopping": [self.stopping.lowest, self.stopping.misses],
            "scale": None if self.scale is None else asdict(self.scale),
        }
        about = {"about": self.about, "score": score, "pinned": step in self.run.rung_steps}
        if self.is_shared:
            self.checkpoints.save_together(step, self.model, self.optimizer, state, **about)
            return
        state |= {"optimizer": self.optimizer.state_dict(), "random": random_states()}
        self.checkpoints.save(step, model_files(self.model), state, **about)

    def write_best(self) -> None:
        """The weights of the best checkpoint as `folder`/model."""
        best = self.checkpoints.best()
        if self.engine.rank == 0:
            model = self.run.model() if self.is_shared else load_model(best.folder)
            if self.is_shared:
                _parallel().read_weights(best, model)
            write_folder(self.checkpoints.folder / "model", model_files(model, course_tokenizer()))
        self.engine.wait()

    def _add(self, step: int, metric: str, value: float) -> None:
        if self.engine.rank == 0:
            self.record.add(name=self.run.name, seed=self.run.seed, step=step, metric=metric, value=value)


def _parallel() -> ModuleType:
    """Imported where ranks are at work: torch's part of it takes longer to load than all of the course."""
    from course_lib import parallel

    return parallel


def to_go_on_from(checkpoints: Checkpoints, about: dict, resume: bool) -> Checkpoint | None:
    """The checkpoint that a run goes on from, None for one that begins.

    Raises ValueError where that does not fit what the folder holds, as `pretrain` says.
    """
    if checkpoints.folder.exists() and not checkpoints.folder.is_dir():
        raise ValueError(f"{checkpoints.folder} is a file: name a folder for the run")
    if not resume:
        if checkpoints.steps():
            raise ValueError(f"{checkpoints.folder} holds a run already: resume it, or choose another folder")
        return None
    newest = checkpoints.latest()
    check_same(newest.about, about)
    return newest
