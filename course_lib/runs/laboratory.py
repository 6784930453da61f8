"""The objective laboratory: the same experiment for every objective of chapter 1."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from course_lib.data import Packed, PretrainingDataset, course_tokenizer
from course_lib.layers import TransformerConfig
from course_lib.model import MODEL_OF_OBJECTIVE, LanguageModel
from course_lib.training import StepRecord, new_model, train


@dataclass(frozen=True)
class Laboratory:
    """One experiment for every objective: the same text, rows, width, number of blocks, optimiser and token budget.

    tokens: read by the model in all, per objective. rates: peak learning rates of objectives that do not bear the
    common one (at 1e-3 the encoder of span corruption collapses: `record_span_collapse`). probe_labels, probe_seeds:
    how many labelled reviews the frozen probe learns from, and how many samples of them are drawn.
    Raises ValueError for an unknown objective, or a budget below one step.
    """

    objectives: tuple[str, ...] = ("causal", "masked", "permuted", "span", "infilled")
    tokens: int = 8_000_000
    row_length: int = 128
    batch_size: int = 32
    peak_rate: float = 1e-3
    rates: dict[str, float] = field(default_factory=lambda: {"span": 3e-4})
    warmup: int = 100
    seed: int = 0
    probe_labels: tuple[int, ...] = (100, 500, 2000)
    probe_seeds: int = 5
    probe_tests: int = 2000
    config: TransformerConfig = field(default_factory=lambda: TransformerConfig(vocab_size=8192, max_len=160))

    def __post_init__(self) -> None:
        for objective in self.objectives:
            _check_objective(objective)
        if self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}: the rate rises over at least 1 step")
        if self.steps < 1:
            raise ValueError(
                f"tokens is {self.tokens}, less than one step of {self.batch_size} rows of {self.row_length}: give more"
            )

    @property
    def steps(self) -> int:
        return self.tokens // (self.row_length * self.batch_size)

    @property
    def rungs(self) -> list[int]:
        """The steps at which the model is probed: none, an eighth, a quarter, half and all of the budget."""
        return [0, *(self.steps // 8 * k for k in (1, 2, 4)), self.steps]

    def rate(self, step: int) -> float:
        """Linear warm-up, constant, linear decay to a tenth over the last 30 % of the budget."""
        decay_from = 0.7 * self.steps
        decay = 1.0 if step < decay_from else 1 - 0.9 * (step - decay_from) / (self.steps - decay_from)
        return self.peak_rate * min(1.0, (step + 1) / self.warmup) * decay

    def rate_of(self, objective: str) -> Callable[[int], float]:
        """The schedule of one objective: `rate`, scaled to its own peak where it has one."""
        scale = self.rates.get(objective, self.peak_rate) / self.peak_rate
        return lambda step: scale * self.rate(step)

    def model(self, objective: str) -> LanguageModel:
        """The freshly initialised model of an objective: positions as its layout has them.

        Raises ValueError for an unknown objective.
        """
        _check_objective(objective)
        positions = "learned" if objective in ("causal", "prefix") else "rotary"
        return new_model(MODEL_OF_OBJECTIVE[objective], self.config.with_(positions=positions), seed=self.seed)

    def dataset(self, objective: str, packed: Packed) -> PretrainingDataset:
        vocabulary = course_tokenizer().vocabulary
        return PretrainingDataset(packed, vocabulary, objective, batch_size=self.batch_size, seed=self.seed)

    def live(self, objective: str, packed: Packed, *, steps: int) -> Iterator[StepRecord]:
        """The first steps of the recorded run, on this machine."""
        return train(self.model(objective), self.dataset(objective, packed), steps=steps, rate=self.rate_of(objective))


def _check_objective(objective: str) -> None:
    if objective not in MODEL_OF_OBJECTIVE:
        raise ValueError(f"objective {objective!r} is unknown: choose one of {', '.join(MODEL_OF_OBJECTIVE)}")
