"""What ranks and the process that compares with them both do: small models, ragged batches, ten steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib import objectives
from course_lib.layers import TransformerConfig
from course_lib.model import MODEL_OF_OBJECTIVE
from course_lib.objectives import Batch
from course_lib.optimizers import make_optimizer
from course_lib.runtime import seeded
from course_lib.training import ALONE, new_model, train
from course_lib.vocabulary import Vocabulary

VOCABULARY = Vocabulary(70, pad=0, bos=1, mask=2, sentinels=tuple(range(3, 23)))
CONFIG = TransformerConfig(vocab_size=70, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_len=32)
CORRUPT = {
    "causal": objectives.causal,
    "masked": objectives.masked,
    "permuted": objectives.permuted,
    "span": objectives.span_corrupted,
}
LENGTHS = (16, 4, 12, 3, 9)  # of five rows: of two ranks, one has five times the tokens of the other
ONE_IS_SILENT = (16, 1, 12, 1, 9)  # a causal row of one token has nothing to predict, nor then has rank 1
STEPS = 10
CLIP = 0.5  # every gradient below is longer


@dataclass(frozen=True)
class Case:
    """One comparison. kind: of engine, or the name of a mistake."""

    kind: str
    objective: str = "causal"
    optimizer: str = "adamw"
    dtype: torch.dtype = torch.float64
    accumulate: int = 1
    lengths: tuple[int, ...] = LENGTHS

    @property
    def name(self) -> str:
        number_format = str(self.dtype).removeprefix("torch.")
        silent = "_silent" if self.lengths == ONE_IS_SILENT else ""
        return f"{self.kind}_{self.objective}_{self.optimizer}_{number_format}_{self.accumulate}{silent}"


ADAMW, SGD = {"optimizer": "adamw", "dtype": torch.float64}, {"optimizer": "sgd", "dtype": torch.float32}
EQUAL = [
    Case(kind, "causal", accumulate=accumulate, **rule)
    for kind in ("ddp", "fsdp")
    for rule in (ADAMW, SGD)
    for accumulate in (1, 2)
]
QUICK = [case for case in EQUAL if case.optimizer == "adamw" and case.accumulate == 1]
OTHER_MODELS = [Case(kind, objective) for kind in ("ddp", "fsdp") for objective in ("masked", "span", "permuted")]
SILENT = [Case(kind, lengths=ONE_IS_SILENT) for kind in ("ddp", "fsdp")]
MISTAKES = [
    Case("mean_of_means"),
    Case("not_broadcast_ddp"),
    Case("not_broadcast_fsdp"),
    Case("never_synchronised", accumulate=2),
    Case("same_rows"),
]


def batch(number: int, objective: str = "causal", lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """Rows of several lengths, padded."""
    generator = seeded(11, number)
    ids_BT = torch.randint(23, 70, (len(lengths), max(lengths)), generator=generator)
    ids_BT[torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]] = VOCABULARY.pad
    draws = {} if objective == "causal" else {"generator": generator}
    share = {"masked": {"mask_prob": 0.5}, "permuted": {"predict_share": 0.5}}.get(objective, {})
    return CORRUPT[objective](ids_BT, VOCABULARY, **draws, **share)


def model(objective: str = "causal", dtype: torch.dtype = torch.float64, *, seed: int = 0):
    """Shaken, so that every parameter counts."""
    positions = "learned" if objective == "causal" else "rotary"
    made = new_model(MODEL_OF_OBJECTIVE[objective], CONFIG.with_(positions=positions), seed=seed, device="cpu")
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=seeded(7, seed, number))
    return made.to(dtype)


def optimizer(kind: str, model):
    return torch.optim.SGD(model.parameters(), lr=0.0) if kind == "sgd" else make_optimizer(model, kind)


def trained(case: Case, model, rule, engine=ALONE, *, start: int = 0, steps: int = STEPS) -> list[dict]:
    """Steps `start` to `start + steps`, and what each of them returned."""
    numbers = range(start * case.accumulate, (start + steps) * case.accumulate)
    rows = train(
        model,
        (batch(number, case.objective, case.lengths) for number in numbers),
        steps=steps,
        start=start,
        rate=lambda number: (0.3 if case.optimizer == "sgd" else 1e-2) * (number + 1) / STEPS,
        optimizer=rule,
        accumulate=case.accumulate,
        clip=CLIP,
        dtype=torch.float32,  # no autocast
        engine=engine,
    )
    return [{"loss": row.loss, "norm": row.gradient_norm, "targets": row.targets} for row in rows]


def alone(case: Case, *, steps: int = STEPS) -> tuple[dict[str, Tensor], list[dict]]:
    """What one process makes of a case."""
    one = model(case.objective, case.dtype)
    rows = trained(case, one, optimizer(case.optimizer, one), steps=steps)
    return {name: tensor.detach() for name, tensor in one.state_dict().items()}, rows


def distance(some: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between weights, relative to the largest weight."""
    assert some.keys() == other.keys()
    largest = max(tensor.abs().max().item() for tensor in other.values())
    return max((some[name] - other[name]).abs().max().item() for name in other) / largest
