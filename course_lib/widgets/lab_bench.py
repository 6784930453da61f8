"""Where the training lab trains: one run at a time, in a thread that can be stopped after any step, or here and now.

The thread takes steps and tells who watches. Everything that touches the notebook's own state, such as initialising a
model, which borrows the global random numbers for a moment, is done by the caller before the thread begins.
"""

import threading
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch

from course_lib.data import Packed, PretrainingDataset
from course_lib.layers import TransformerConfig
from course_lib.model import MODEL_OF_OBJECTIVE, LanguageModel
from course_lib.schedules import Schedule
from course_lib.training import StepRecord, new_model, train
from course_lib.vocabulary import Vocabulary
from course_lib.widgets.lab_runs import KEPT, LabRun, LabSettings


class Bench:
    """Trains small masked models on packed rows, one at a time, and keeps the last KEPT runs.

    runs: the oldest first. config: the model's dimensions, without dropout. watch: called with a run when it has begun,
    after each of its steps but the last, and when it has ended, in whichever thread trains.
    Raises ValueError for a model with dropout, or too short for the rows.
    """

    _latest: ClassVar["Bench | None"] = None  # a cell run again leaves its old lab behind: that one is to stop

    def __init__(
        self,
        packed: Packed,
        vocabulary: Vocabulary,
        watch: Callable[[LabRun], None],
        *,
        config: TransformerConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.packed, self.vocabulary, self.seed, self._watch = packed, vocabulary, seed, watch
        self.row_length = packed.ids_NT.shape[1]
        small = {"d_model": 128, "n_layers": 2, "n_heads": 4, "d_ff": 512, "positions": "rotary"}
        self.config = config or TransformerConfig(vocabulary.size, max_len=self.row_length, **small)
        if self.config.dropout:
            raise ValueError("the model has dropout, which draws from the notebook's random numbers: set it to 0")
        if self.row_length > self.config.max_len:
            raise ValueError(
                f"rows have {self.row_length} tokens and max_len is {self.config.max_len}: shorten the rows, or raise "
                "TransformerConfig.max_len"
            )
        self.runs: list[LabRun] = []
        self._count = 0
        self._busy, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def experiment(self, settings: LabSettings) -> tuple[LanguageModel, PretrainingDataset, Schedule]:
        """Model, batches and rates of a run: `train(model, batches, steps=settings.steps, rate=rates)` is that run.

        Raises ValueError where the rows do not fill a batch.
        """
        dataset = PretrainingDataset(
            self.packed,
            self.vocabulary,
            "masked",
            batch_size=settings.batch_size,
            seed=self.seed,
            options={"mask_prob": settings.mask_prob},
        )
        model = new_model(MODEL_OF_OBJECTIVE["masked"], self.config, seed=self.seed)
        return model, dataset, settings.schedule

    @property
    def is_training(self) -> bool:
        return self._busy.locked()

    def start(self, settings: LabSettings) -> bool:
        """Begin a run in a thread; whether one began. While one is training none does.

        Raises ValueError as `experiment` does.
        """
        if not self._busy.acquire(blocking=False):
            return False
        run, records = self._prepare(settings)
        self._thread = threading.Thread(
            target=self._work, args=(run, self._stop, records, torch.get_num_threads()), daemon=True
        )
        self._thread.start()
        return True

    def run_now(self, settings: LabSettings) -> LabRun:
        """A whole run in the caller's thread, which an interrupt ends.

        Raises RuntimeError while another is training, and whatever the training raised; what it did is in `runs`.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("a run is still training: call stop() and wait() first")
        run, records = self._prepare(settings)
        self._work(run, self._stop, records, torch.get_num_threads())
        if run.error is not None:
            raise run.error
        return run

    def stop(self) -> None:
        """Ask the run to end after the step that it is taking. Does not wait for it."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the thread is done, `timeout` seconds at most; whether it is."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.is_training

    def clear(self) -> None:
        """Forget all runs.

        Raises RuntimeError while one is training.
        """
        if self.is_training:
            raise RuntimeError("a run is still training: call stop() and wait() first")
        self.runs.clear()
        self._count = 0

    def _prepare(self, settings: LabSettings) -> tuple[LabRun, Iterable[StepRecord]]:
        """All that a run needs. It counts as begun, or the bench is free again."""
        try:
            model, dataset, schedule = self.experiment(settings)
            records = train(model, dataset, steps=settings.steps, rate=schedule)
        except BaseException:
            self._busy.release()
            raise
        if Bench._latest not in (None, self):
            Bench._latest.stop()
        Bench._latest = self
        del self.runs[: max(0, len(self.runs) - KEPT + 1)]
        place = min(set(range(KEPT)) - {run.place for run in self.runs})
        self._count += 1
        run = LabRun(self._count, settings, place, settings.batch_size * self.row_length)
        self.runs.append(run)
        self._stop = threading.Event()
        return run, records

    def _work(self, run: LabRun, stop: threading.Event, records: Iterable[StepRecord], n_threads: int) -> None:
        """Take the steps. What torch keeps for each thread, how many it computes on and whether it keeps gradients, is
        set here."""
        state = "stopped"
        try:
            if torch.get_num_threads() != n_threads:
                torch.set_num_threads(n_threads)
            self._watch(run)
            with torch.enable_grad():
                for record in records:
                    run.records.append(record)
                    if record.step == run.settings.steps:
                        state = "done"
                    elif stop.is_set():
                        break
                    else:
                        self._watch(run)
        except Exception as error:  # noqa: BLE001 the run holds it, and who watches shows it
            state, run.error = "failed", error
        finally:
            run.state = state
            try:
                self._watch(run)
            finally:
                self._busy.release()
