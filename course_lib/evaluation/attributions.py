"""Which tokens a classifier's decision rests on: integrated gradients (arXiv:1703.01365) along the straight line from
the word embeddings of a text that says nothing to those of the text that is explained.

Axes: B point on the line (a row of the batch), T position, E channel of the word embeddings, C class.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor, nn

from course_lib.model import evaluating

FIRST_STEPS = 32  # with 16, MiniLM's sums are sometimes right by luck, while single tokens are off by a tenth
TOKENS_AT_A_TIME = 2048  # in all rows of a batch


@dataclass(frozen=True, eq=False)
class Attribution:
    """How far each token moved a decision away from what it is on the baseline.

    values_T: float64, one a token, 0 where a token was fixed; their sum is score - baseline_score, but for the error.
    score, baseline_score: the difference of two logits that is explained, on the text and on the baseline.
    steps: how many points of the line the values come from.
    """

    input_ids: tuple[int, ...]
    values_T: np.ndarray
    score: float
    baseline_score: float
    steps: int

    @property
    def error(self) -> float:
        """How far the sum of the values is from score - baseline_score, as a share of that difference: 0.01 is 1 %."""
        to_explain = self.score - self.baseline_score
        missed = abs(float(self.values_T.sum()) - to_explain)
        if to_explain == 0:
            return 0.0 if missed == 0 else float("inf")
        return missed / abs(to_explain)


def token_attributions(
    model: nn.Module,
    input_ids_T: Tensor | Sequence[int],
    *,
    baseline_id: int,
    fixed: Tensor | Sequence[bool] | None = None,
    for_class: int = 1,
    against: int = 0,
    tolerance: float = 0.01,
    most_steps: int = 1024,
) -> Attribution:
    """Share out among the tokens what moves the logit of `for_class` minus that of `against` from its value on the
    baseline, where every token is `baseline_id`, to its value on the text.

    model: gives logits_BC when called as `model(input_ids_BT, is_real_BT)`, here with all real. The line is that of the
    output of its table of word embeddings, the nn.Embedding that is called with the ids; positions, segments and what a
    fine-tuning strategy added stay as they are. The model computes in its own number format, on its device, without
    dropout or autocast, and is left as it was.
    fixed: bool [T], True where the baseline keeps the text's token ([CLS] and [SEP], say).
    tolerance, most_steps: the points of a Gauss-Legendre quadrature are doubled, from 32, until the error is within
    the tolerance. Where `most_steps` do not suffice, the values are given all the same: look at `.error`. It is the
    error of the sum; single values may be further off.
    Raises ValueError for no token, a `fixed` of another length or with everything fixed, an id outside the table, a
    class that is not there, and a model without such a table, that uses the ids in another place too, or that keeps no
    gradient; FloatingPointError for logits that are not finite; TypeError for what is no model, no ids, no logits.

    >>> class Sum(nn.Module):  # of what each word adds to the logits of (bad, good)
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.words = nn.Embedding.from_pretrained(torch.tensor([[0.0, 0.0], [0.5, 2.5], [4.0, 1.0]]))
    ...     def forward(self, input_ids_BT, is_real_BT):
    ...         return self.words(input_ids_BT).sum(1)
    >>> why = token_attributions(Sum(), [1, 2, 1], baseline_id=0)
    >>> why.values_T.round(3).tolist(), why.score, why.baseline_score
    ([2.0, -3.0, 2.0], 1.0, 0.0)
    """
    _check_numbers(for_class, against, tolerance, most_steps)
    device = _tables(model)[0].weight.device
    in_full = torch.autocast(device.type, enabled=False)
    with evaluating(model), torch.inference_mode(False), torch.enable_grad(), in_full:
        input_ids_T = _ids(input_ids_T)
        is_fixed_T = _is_fixed(fixed, len(input_ids_T))
        table = _word_table(model, len(input_ids_T))
        _check_inside(table, [baseline_id, *input_ids_T.tolist()])
        baseline_T = torch.where(is_fixed_T, input_ids_T, baseline_id)
        (start_TE, start_C), (end_TE, end_C) = (_read(model, table, ids_T) for ids_T in (baseline_T, input_ids_T))
        _check_classes(len(end_C), for_class, against)
        line = _Line(model, table, input_ids_T.to(device), start_TE, end_TE, for_class, against)
        line.check_ends(torch.stack([start_C, end_C]))
        score, baseline_score = ((logits_C[for_class] - logits_C[against]).item() for logits_C in (end_C, start_C))
        for steps in _doubled(FIRST_STEPS, most_steps):
            found = Attribution(tuple(input_ids_T.tolist()), line.integral(steps), score, baseline_score, steps)
            if found.error <= tolerance:
                break
    return found


@dataclass(frozen=True)
class _Line:
    """From the word embeddings of the baseline to those of the text, and what the model makes of the points between."""

    model: nn.Module
    table: nn.Embedding
    input_ids_T: Tensor
    start_TE: Tensor
    end_TE: Tensor
    for_class: int
    against: int

    def integral(self, steps: int) -> np.ndarray:
        """float64 [T]: the gradient's mean over the line, times the way from start to end, summed over channels."""
        nodes, weights = leggauss(steps)  # on the interval from -1 to 1, and the line's points go from 0 to 1
        share_B11, weight_B11 = (torch.from_numpy(x)[:, None, None].to(self.start_TE) for x in (nodes, weights / 2))
        share_B11 = (share_B11 + 1) / 2
        way_TE, mean_TE = self.end_TE - self.start_TE, torch.zeros_like(self.start_TE)
        rows = max(1, TOKENS_AT_A_TIME // len(way_TE))
        for some_B11, weigh_B11 in zip(share_B11.split(rows), weight_B11.split(rows), strict=True):
            mean_TE += (weigh_B11 * self.gradient(self.start_TE + some_B11 * way_TE)).sum(0)
        return (mean_TE * way_TE).sum(-1).cpu().double().numpy()

    def gradient(self, x_BTE: Tensor) -> Tensor:
        """[B, T, E]: of the difference of logits, at word embeddings."""
        logits_BC = self.logits(x_BTE.requires_grad_())
        score = (logits_BC[:, self.for_class] - logits_BC[:, self.against]).sum()
        gradient_BTE = torch.autograd.grad(score, x_BTE, allow_unused=True)[0] if score.requires_grad else None
        if gradient_BTE is None:
            raise ValueError("no gradient reaches the word embeddings: does the model compute under torch.no_grad?")
        return gradient_BTE

    def logits(self, x_BTE: Tensor) -> Tensor:
        """[B, C]: of the text, with other word embeddings."""
        input_ids_BT = self.input_ids_T.expand(len(x_BTE), -1)

        def replaced(table: nn.Embedding, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
            return x_BTE if _reads(args, kwargs, input_ids_BT) else output

        with self.table.register_forward_hook(replaced, with_kwargs=True):
            return _logits(self.model, input_ids_BT)

    def check_ends(self, wanted_2C: Tensor) -> None:
        """The line must lead from the baseline to the text."""
        with torch.no_grad():
            logits_2C = self.logits(torch.stack([self.start_TE, self.end_TE]))
        rounding = torch.finfo(logits_2C.dtype).eps ** 0.5 * wanted_2C.abs().max()
        if (logits_2C - wanted_2C).abs().max() > rounding:
            raise ValueError("the word embeddings of the baseline do not give the logits of the baseline: the model "
                             "uses the ids in another place too, which this method cannot explain")  # fmt: skip


def _read(model: nn.Module, table: nn.Embedding, input_ids_T: Tensor) -> tuple[Tensor, Tensor]:
    """[T, E] and [C]: a text's word embeddings, as the model goes on with them, and its logits."""
    input_ids_1T, read = input_ids_T[None].to(table.weight.device), []

    def note(table: nn.Embedding, args: tuple, kwargs: dict, output: Tensor) -> None:
        if _reads(args, kwargs, input_ids_1T):
            read.append(output[0])

    with torch.no_grad(), table.register_forward_hook(note, with_kwargs=True):
        logits_C = _logits(model, input_ids_1T)[0]
    if not logits_C.isfinite().all():
        raise FloatingPointError(f"the logits are {logits_C.tolist()}: there is no decision to explain")
    return read[0], logits_C


def _word_table(model: nn.Module, length: int) -> nn.Embedding:
    """The table that is called with the ids: with rows of zeros and of ones, as no positions and no segments are."""
    tables, readers = _tables(model), []
    probe_BT = torch.tensor([[0], [1]], device=tables[0].weight.device).expand(2, length)

    def note(table: nn.Embedding, args: tuple, kwargs: dict, output: Tensor) -> None:
        if _reads(args, kwargs, probe_BT):
            readers.append(table)

    with torch.no_grad(), ExitStack() as hooks:
        for table in tables:
            hooks.enter_context(table.register_forward_hook(note, with_kwargs=True))
        _logits(model, probe_BT)
    if not readers:
        raise ValueError(f"this {type(model).__name__} calls no nn.Embedding with the ids: give a model that does")
    return readers[0]


def _tables(model: nn.Module) -> list[nn.Embedding]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: give a classifier that is an nn.Module")
    if not (tables := [module for module in model.modules() if isinstance(module, nn.Embedding)]):
        raise ValueError(f"this {type(model).__name__} has no nn.Embedding: give a model with word embeddings")
    return tables


def _reads(args: tuple, kwargs: dict, input_ids_BT: Tensor) -> bool:
    """Whether a table is called with these ids."""
    given = args[0] if args else kwargs["input"]
    return given.shape == input_ids_BT.shape and bool((given == input_ids_BT).all())


def _logits(model: nn.Module, input_ids_BT: Tensor) -> Tensor:
    logits_BC = model(input_ids_BT, torch.ones_like(input_ids_BT, dtype=torch.bool))
    if not isinstance(logits_BC, Tensor):
        raise TypeError(f"the model gives a {type(logits_BC).__name__}: give one whose output are logits of classes")
    if logits_BC.dim() != 2:
        raise TypeError(
            f"the model gives a tensor of shape {tuple(logits_BC.shape)}: give one with logits [batch, class]"
        )
    return logits_BC


def _doubled(first: int, most: int) -> Iterator[int]:
    while first < most:
        yield first
        first *= 2
    yield most


def _ids(input_ids_T: Tensor | Sequence[int]) -> Tensor:
    """int64 [T], a copy on the CPU."""
    try:
        given_T = torch.as_tensor(input_ids_T)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(input_ids_T).__name__
        raise TypeError(f"input_ids_T is a {kind}: give the ids of a text's tokens, tokenizer.encode(text)") from error
    if given_T.dim() != 1 or not len(given_T):
        raise ValueError(
            f"input_ids_T has shape {tuple(given_T.shape)}: give one text, [length], of at least one token"
        )
    if given_T.is_floating_point() or given_T.dtype == torch.bool:
        raise TypeError(f"input_ids_T is {given_T.dtype}: token ids are whole numbers")
    return torch.tensor(given_T.tolist())


def _is_fixed(fixed: Tensor | Sequence[bool] | None, length: int) -> Tensor:
    """bool [T], a copy on the CPU."""
    if fixed is None:
        return torch.zeros(length, dtype=torch.bool)
    given_T = torch.as_tensor(fixed)
    if given_T.dtype != torch.bool or given_T.shape != (length,):
        raise ValueError(
            f"fixed is {given_T.dtype} of shape {tuple(given_T.shape)}: give one bool for each of the {length} tokens"
        )
    if given_T.all():
        raise ValueError("every token is fixed: leave at least one to explain")
    return torch.tensor(given_T.tolist())


def _check_numbers(for_class: int, against: int, tolerance: float, most_steps: int) -> None:
    if for_class == against:
        raise ValueError(f"for_class and against are both {against}: give two classes")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}: give a share of at least 0, such as 0.01")
    if not isinstance(most_steps, int) or most_steps < 1:
        raise ValueError(f"most_steps is {most_steps!r}: give a whole number of at least 1, such as 1024")


def _check_inside(table: nn.Embedding, ids: list[int]) -> None:
    for token_id in ids:
        if not hasattr(token_id, "__index__"):
            raise TypeError(f"baseline_id is {token_id!r}: give a token that says nothing, such as vocabulary.pad")
        if not 0 <= token_id < table.num_embeddings:
            raise ValueError(
                f"token id {token_id} lies outside the model's table of {table.num_embeddings} word embeddings: is it "
                "another tokenizer's?"
            )


def _check_classes(n_classes: int, for_class: int, against: int) -> None:
    for number in (for_class, against):
        if number not in range(n_classes):
            raise ValueError(f"class {number!r} is not there: this model tells 0 to {n_classes - 1} apart")
