"""Pre-training from a config: begin, checkpoint, be stopped at any moment, and go on to the bit.

A run lives in one folder: `record.jsonl` (its curve), `step_N` (checkpoints), and in the end `model`, which
`load_model` and the Auto classes of `transformers` open.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import torch

from course_lib import data
from course_lib.checkpoint import Checkpoint, Checkpoints, random_states, restore_random_states
from course_lib.data import OBJECTIVES, Packed, PretrainingDataset, course_tokenizer, frequency_weights
from course_lib.files import sha256_of, write_folder
from course_lib.layers import TransformerConfig
from course_lib.model import MODEL_OF_OBJECTIVE, LanguageModel
from course_lib.objectives import Batch
from course_lib.optimizers import KINDS, Optimizer, make_optimizer
from course_lib.pretrained import load_model, model_files
from course_lib.records import Record, check_same
from course_lib.runs.laboratory import packed_rows
from course_lib.runs.probe import SentimentProbe
from course_lib.runtime import fast_dtype, pick_device
from course_lib.schedules import Schedule
from course_lib.training import EarlyStopping, StepRecord, held_out_loss, new_model, train

RECORD_EVERY = 10  # steps between the rows of the training loss
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Pretraining:
    """Everything that decides what a pre-training run computes.

    objective: a key of OBJECTIVES; options: what its function takes. frequency_weighted: ask less often about frequent
    tokens (masked only). tokens: read by the model in all. text: your own .txt, .csv or folder instead of the packaged
    reviews. begin_with: a folder with a model to go on training instead of a new one. dtype: what autocast computes in,
    "float32", "bfloat16", or "auto": what a measurement finds to pay as the run begins, and then to its end.
    save_every: steps between checkpoints, the held-out loss measured at each over `held_out_batches`. rungs: shares of
    the run whose checkpoints are kept. probe: measure at each rung what a frozen probe finds (packaged reviews only).
    patience: stop after so many checkpoints without a lower held-out loss.
    Raises ValueError for what cannot be run, before anything is read.
    """

    name: str = "decoder"
    objective: str = "causal"
    tokens: int = 16_000_000
    row_length: int = 256
    batch_size: int = 16
    accumulate: int = 1
    shape: str = "warmup_stable_decay"
    peak_rate: float = 1.5e-3
    warmup: int = 200
    floor: float = 0.0
    decay_share: float = 0.3
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    clip: float = 1.0
    dtype: str = "auto"
    options: dict = field(default_factory=dict)
    frequency_weighted: bool = False
    config: TransformerConfig = field(default_factory=lambda: TransformerConfig(vocab_size=8192))
    seed: int = 0
    text: str | None = None
    begin_with: str | None = None
    save_every: int = 250
    held_out_batches: int = 16
    rungs: tuple[float, ...] = ()
    probe: bool = False
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective {self.objective!r} is unknown: choose one of {', '.join(OBJECTIVES)}")
        for name in ("row_length", "batch_size", "accumulate", "save_every", "held_out_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: take at least 1")
        if self.row_length > self.config.max_len:
            raise ValueError(
                f"row_length {self.row_length} exceeds max_len {self.config.max_len}: shorten the rows or raise "
                "TransformerConfig.max_len"
            )
        if self.steps < 1:
            raise ValueError(f"tokens is {self.tokens}, less than one step of {self.tokens_per_step}: give more")
        if not all(0 < share <= 1 for share in self.rungs):
            raise ValueError(f"rungs are {self.rungs}: give shares of the run, above 0 and at most 1")
        if self.optimizer not in KINDS:
            raise ValueError(f"optimizer {self.optimizer!r} is unknown: choose one of {', '.join(KINDS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
        if self.patience is not None:
            EarlyStopping(self.patience)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay}: give a number of at least 0, such as 0.05")
        _ = self.schedule

    @property
    def tokens_per_step(self) -> int:
        return self.row_length * self.batch_size * self.accumulate

    @property
    def steps(self) -> int:
        return self.tokens // self.tokens_per_step

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.shape, self.peak_rate, self.steps, self.warmup, self.floor, self.decay_share)

    @property
    def rung_steps(self) -> list[int]:
        return sorted({max(1, round(share * self.steps)) for share in self.rungs})

    def with_(self, **changes: object) -> "Pretraining":
        """A copy with some settings changed.

        Raises ValueError for a setting that does not exist.
        """
        if unknown := changes.keys() - {f.name for f in fields(self)}:
            raise ValueError(f"setting {min(unknown)!r} is unknown: choose from {[f.name for f in fields(self)]}")
        return replace(self, **changes)

    def about(self) -> dict:
        """What a checkpoint must have in common with the run that goes on from it."""
        settings = asdict(self)
        settings["rungs"] = list(self.rungs)
        for harmless in ("name", "begin_with", "text"):
            settings.pop(harmless)
        corpus = self.text and {name: sha256_of(path) for name, path in _text_files(Path(self.text)).items()}
        return settings | {
            "tokenizer_sha256": course_tokenizer().fingerprint,
            "corpus_sha256": corpus or sha256_of(data.corpus_path()),
            "begins_with_sha256": self.begin_with and sha256_of(Path(self.begin_with) / "model.safetensors"),
        }

    def rows(self) -> tuple[Packed, Packed]:
        """Packed rows to train on, and to hold out: other documents where there are any, else the last twentieth."""
        if self.text is None:
            texts = data.training_texts(), [review.text for review in data.reviews_of("dev")]
        else:
            own = data.read_own_texts(self.text)
            texts = [r.text for r in own if r.split == "train"], [r.text for r in own if r.split != "train"]
        try:
            return packed_rows(texts[0], self.row_length), packed_rows(texts[1], self.row_length)
        except ValueError:
            return _split_rows(packed_rows([*texts[0], *texts[1]], self.row_length))

    def dataset(self, packed: Packed, *, batch_size: int | None = None) -> PretrainingDataset:
        vocabulary = course_tokenizer().vocabulary
        options = dict(self.options)
        if self.frequency_weighted:
            options["weight_V"] = frequency_weights(packed.ids_NT, vocabulary)
        return PretrainingDataset(
            packed,
            vocabulary,
            self.objective,
            batch_size=batch_size or self.batch_size,
            seed=self.seed,
            options=options,
        )

    def model(self) -> LanguageModel:
        """The model before the first step.

        Raises ValueError where the model to begin with is not one for this objective, or not of `config`.
        """
        kind = MODEL_OF_OBJECTIVE[self.objective]
        if self.begin_with is None:
            return new_model(kind, self.config, seed=self.seed, device="cpu")
        model = load_model(self.begin_with)
        if type(model) is not kind:
            raise ValueError(
                f"{self.begin_with} holds a model of class {type(model).__name__}: the {self.objective} objective "
                f"trains one of class {kind.__name__}"
            )
        check_same(asdict(model.config), asdict(self.config))
        return model


RUNGS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 0.7, 1.0)
RECIPES = {
    "decoder": Pretraining(tokens=36_000_000, optimizer="muon", rungs=RUNGS, probe=True),
    "encoder": Pretraining(
        name="encoder",
        objective="masked",
        tokens=48_000_000,
        optimizer="muon",
        row_length=128,
        batch_size=32,
        peak_rate=1.2e-3,
        options={"mask_prob": 0.3},
        frequency_weighted=True,
        config=TransformerConfig(vocab_size=8192, positions="rotary"),
        rungs=RUNGS,
        probe=True,
    ),
}
RECIPES["encoder_longer"] = RECIPES["encoder"].with_(  # begins with the encoder; other order, other masks, a long decay
    name="encoder_longer", tokens=32_000_000, seed=1, decay_share=0.6, rungs=(0.4, 0.7, 1.0)
)


def recipe(name: str, **changes: object) -> Pretraining:
    """One of RECIPES, or with some settings changed: those of Pretraining, and `width`, `layers` and `dropout` of the
    model. A changed recipe is not probed unless it says so, and where it has become short and no warm-up is given, a
    tenth of it warms up. With `begin_with`, the model's dimensions are those of its folder.

    Raises ValueError for an unknown recipe or setting, or for encoder_longer without a model.

    >>> recipe("encoder", tokens=1_000_000).warmup
    24
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown: choose one of {', '.join(RECIPES)}")
    run = RECIPES[name]
    if name == "encoder_longer" and not changes.get("begin_with"):
        raise ValueError("encoder_longer goes on with a model: give it (--from) what `course pretrain encoder` made")
    names = {"width": "d_model", "layers": "n_layers", "dropout": "dropout"}
    dimensions = {ours: changes.pop(given) for given, ours in names.items() if given in changes}
    config = run.config
    if "begin_with" in changes:
        config = load_model(changes["begin_with"]).config
        if dimensions:
            raise ValueError(f"the model of begin_with brings its own {', '.join(dimensions)}: leave that out")
    elif "row_length" in changes:
        dimensions["max_len"] = max(config.max_len, changes["row_length"])
    if "d_model" in dimensions:
        dimensions["d_ff"] = 4 * dimensions["d_model"]
    if not dimensions and changes.keys() <= {"begin_with"}:
        return run.with_(config=config, **changes)
    changed = run.with_(**({"warmup": 0, "probe": False, "config": config.with_(**dimensions)} | changes))
    return changed if "warmup" in changes else changed.with_(warmup=min(run.warmup, changed.steps // 10))


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
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepRecord]:
    """Train, yielding a record a step, with a checkpoint every `save_every` steps, at every rung and at the end, and
    where `should_stop` says so. When it is done the best checkpoint's weights stand in `folder`/model.

    resume: go on from the newest checkpoint that is whole; the result is that of a run that was never stopped.
    Raises ValueError where the folder holds a run and `resume` is not set, holds none and it is, or holds one with
    other settings, text or tokenizer (says which); FloatingPointError where the loss is not finite, OSError where a
    checkpoint cannot be written: the last good one stands.
    """
    folder = Path(folder)
    checkpoints, about = Checkpoints(folder, keep), run.about()
    begun = _begun(checkpoints, about, resume)
    train_rows, held_out_rows = run.rows()
    dataset = run.dataset(train_rows)
    sitting = _Sitting.of(run, checkpoints, about, begun, held_out_rows, pick_device(device))
    if begun is None:
        sitting.record.check_about()  # of a run that was killed before its first checkpoint
        torch.manual_seed(run.seed)  # dropout draws from the global generators
        sitting.save(0, sitting.measure(0))
    done = sitting.done
    if done < run.steps and not sitting.stopping.is_over:
        batches = (dataset.batch(k) for k in itertools.count(done * run.accumulate))
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
            if should_stop():
                if row.held_out is None:
                    sitting.save(row.step, None)
                return
    best = load_model(checkpoints.best().folder)
    write_folder(folder / "model", model_files(best, course_tokenizer()))


@dataclass
class _Sitting:
    """One sitting at a run: what is trained, and what is written about it. done: steps taken before it began. tokens:
    read so far. dtype: what it computes in, which another sitting must not measure again."""

    run: Pretraining
    checkpoints: Checkpoints
    about: dict
    record: Record
    model: LanguageModel
    optimizer: Optimizer
    stopping: EarlyStopping
    held_out_batches: list[Batch]
    dtype: torch.dtype
    done: int = 0
    tokens: int = 0

    @classmethod
    def of(
        cls,
        run: Pretraining,
        checkpoints: Checkpoints,
        about: dict,
        begun: Checkpoint | None,
        held_out_rows: Packed,
        device: torch.device,
    ) -> "_Sitting":
        """A first sitting, or one that goes on from a checkpoint with every piece of its state."""
        held_out = run.dataset(held_out_rows, batch_size=min(run.batch_size, len(held_out_rows.ids_NT)))
        model = (run.model() if begun is None else load_model(begun.folder)).to(device)
        sitting = cls(
            run,
            checkpoints,
            about,
            Record(checkpoints.folder / "record.jsonl", command=f"course pretrain {run.name}", about=about),
            model,
            make_optimizer(model, run.optimizer, weight_decay=run.weight_decay),
            EarlyStopping(run.patience or run.steps),
            [held_out.batch(k) for k in range(min(run.held_out_batches, held_out.batches_per_epoch))],
            fast_dtype(device) if run.dtype == "auto" else getattr(torch, run.dtype),
        )
        if begun is not None:
            sitting.done, sitting.tokens = begun.step, begun.state["tokens"]
            sitting.optimizer.load_state_dict(begun.state["optimizer"])
            sitting.stopping.lowest, sitting.stopping.misses = begun.state["stopping"]
            sitting.dtype = getattr(torch, begun.state["dtype"])
            restore_random_states(begun.state["random"])
        return sitting

    @cached_property
    def probe(self) -> SentimentProbe:
        return SentimentProbe()

    def note(self, row: StepRecord) -> None:
        """Write the curve, every step of its beginning and then now and again."""
        if row.step % RECORD_EVERY == 0 or row.step <= 20:
            for metric in ("loss", "gradient_norm", "rate", "seconds"):
                self._add(row.step, metric, getattr(row, metric))

    def measure(self, step: int) -> float:
        """Held-out loss now, and at a rung what the probe finds."""
        loss = held_out_loss(self.model, self.held_out_batches, dtype=self.dtype)
        if not math.isfinite(loss):
            raise FloatingPointError(f"step {step}: the held-out loss is {loss}: lower the rate or look at the text")
        self._add(step, "held_out", loss)
        if self.run.probe and (step in self.run.rung_steps or step == 0):
            self.probe.add_to(self.record, self.run.name, step, self.probe.of_model(self.model))
        return loss

    def save(self, step: int, score: float | None) -> None:
        """Write a checkpoint."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(),
            "tokens": self.tokens,
            "dtype": str(self.dtype).removeprefix("torch."),
            "stopping": [self.stopping.lowest, self.stopping.misses],
        }
        pinned = step in self.run.rung_steps
        self.checkpoints.save(step, model_files(self.model), state, about=self.about, score=score, pinned=pinned)

    def _add(self, step: int, metric: str, value: float) -> None:
        self.record.add(name=self.run.name, seed=self.run.seed, step=step, metric=metric, value=value)


def _begun(checkpoints: Checkpoints, about: dict, resume: bool) -> Checkpoint | None:
    if checkpoints.folder.exists() and not checkpoints.folder.is_dir():
        raise ValueError(f"{checkpoints.folder} is a file: name a folder for the run")
    if not resume:
        if checkpoints.steps():
            raise ValueError(f"{checkpoints.folder} holds a run already: resume it, or choose another folder")
        return None
    begun = checkpoints.latest()
    check_same(begun.about, about)
    return begun


def _split_rows(packed: Packed) -> tuple[Packed, Packed]:
    rows = len(packed.ids_NT)
    if rows < 2:
        raise ValueError(f"the text makes {rows} row of tokens: give more text, one row is to be held out")
    cut = rows - max(1, rows // 20)
    return (
        Packed(packed.ids_NT[:cut], packed.document_ids_NT[:cut]),
        Packed(packed.ids_NT[cut:], packed.document_ids_NT[cut:]),
    )


def _text_files(path: Path) -> dict[str, Path]:
    """{name within the corpus: file}."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: check the name, or the folder you started from ({Path.cwd()})")
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    return {file.relative_to(path).as_posix() if path.is_dir() else file.name: file for file in files}
