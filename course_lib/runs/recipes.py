"""What decides a pre-training run: its settings, and the recipes of the course's own models."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from course_lib import data
from course_lib.data import OBJECTIVES, Packed, PretrainingDataset, course_tokenizer, frequency_weights, packed_rows
from course_lib.files import sha256_of
from course_lib.layers import TransformerConfig
from course_lib.model import MODEL_OF_OBJECTIVE, LanguageModel
from course_lib.optimizers import KINDS
from course_lib.pretrained import load_config, load_model
from course_lib.records import check_same
from course_lib.schedules import Schedule
from course_lib.stopping import EarlyStopping
from course_lib.training import new_model

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Pretraining:
    """Everything that decides what a pre-training run computes.

    objective: a key of OBJECTIVES; options: what its function takes. frequency_weighted: ask less often about frequent
    tokens (masked only). tokens: read by the model in all. text: your own .txt, .csv or folder instead of the packaged
    reviews. begin_with: a folder with a model to go on training instead of a new one. dtype: what autocast computes in,
    "float32", "bfloat16", "float16" with a loss that is scaled, or "auto": what a measurement finds to pay as the run
    begins, and then to its end. save_every: steps between checkpoints, the held-out loss measured at each over
    `held_out_batches`. rungs: shares of the run whose checkpoints are kept. probe: measure at each rung what a frozen
    probe finds (packaged reviews only). patience: stop after so many checkpoints without a lower held-out loss.
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
        corpus = self.text and {name: sha256_of(file) for name, file in data.own_files(self.text).items()}
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
        config = load_config(changes["begin_with"])
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


def _split_rows(packed: Packed) -> tuple[Packed, Packed]:
    rows = len(packed.ids_NT)
    if rows < 2:
        raise ValueError(f"the text makes {rows} row of tokens: give more text, one row is to be held out")
    cut = rows - max(1, rows // 20)
    return (
        Packed(packed.ids_NT[:cut], packed.document_ids_NT[:cut]),
        Packed(packed.ids_NT[cut:], packed.document_ids_NT[cut:]),
    )
