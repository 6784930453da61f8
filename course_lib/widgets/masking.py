"""The mask probability explored: one review as a masked model reads it, and the shares over a whole batch.

Axes: B row of the batch, T position.
"""

from dataclasses import dataclass
from functools import cache

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from course_lib import objectives, plots
from course_lib.runtime import seeded, threads
from course_lib.tokenizer import Tokenizer
from course_lib.vocabulary import Vocabulary
from course_lib.widgets.binder import Explorer, bind

SHOWN = 44  # tokens of the first row that are drawn
WIDTH = 8.5 * 72  # points
CODES = ("context", "hidden", "swapped", "kept", "special", "padding")


@dataclass(frozen=True)
class MaskView:
    """What the model reads of the batch's first row, what stood there, and the role of each token; the shares of the
    roles over all `n_tokens` tokens of the batch (padding left out)."""

    mask_prob: float
    tokens: tuple[str, ...]
    originals: tuple[str, ...]
    roles: tuple[str, ...]
    shares: dict[str, float]
    n_tokens: int


def roles_of(input_ids_BT: Tensor, batch: objectives.Batch, vocabulary: Vocabulary) -> list[list[str]]:
    """The part that each token of a masked batch plays: context, hidden, swapped, kept, special or padding.

    >>> ids_BT = torch.tensor([[4, 7, 8, 0]])
    >>> tiny = Vocabulary(10, pad=0, mask=1, cls=4)
    >>> roles_of(ids_BT, objectives.masked(ids_BT, tiny, mask_prob=0.0, generator=seeded(0)), tiny)
    [['special', 'context', 'context', 'padding']]
    """
    return [[CODES[code] for code in row] for row in _codes(input_ids_BT, batch, vocabulary).tolist()]


def compute_masking(input_ids_BT: Tensor, tokenizer: Tokenizer, *, mask_prob: float, seed: int = 0) -> MaskView:
    """Mask the batch 80/10/10 and look at what came out. A seed draws the same numbers at every probability, so that
    what is chosen at 0.2 is chosen at 0.3 too.

    Raises ValueError as `objectives.masked` does.
    """
    vocabulary = tokenizer.vocabulary
    with threads(1):  # small tensors: a second thread would only be waited for
        batch = objectives.masked(input_ids_BT, vocabulary, mask_prob=mask_prob, generator=seeded(seed))
        code_BT = _codes(input_ids_BT, batch, vocabulary)
        count = torch.bincount(code_BT.flatten(), minlength=len(CODES)).tolist()[:-1]
    n_tokens = max(1, sum(count))
    return MaskView(
        mask_prob=mask_prob,
        tokens=tuple(_token(tokenizer, i) for i in batch.input_ids_BT[0, :SHOWN].tolist()),
        originals=tuple(_token(tokenizer, i) for i in input_ids_BT[0, :SHOWN].tolist()),
        roles=tuple(CODES[code] for code in code_BT[0, :SHOWN].tolist()),
        shares={name: n / n_tokens for name, n in zip(CODES, count, strict=False)},
        n_tokens=n_tokens,
    )


def draw_masking(view: MaskView) -> Figure:
    """The review's tokens by role, above the stacked bar of shares over the batch. No token moves when others hide."""
    width = WIDTH - 40
    row = plots.TokenRow("", view.originals, ["context"] * len(view.originals))
    places = plots.lay_out_tokens([row], width, room_for=["[MASK]"])
    layout = plots.exchange_tokens(places, view.tokens, view.roles)
    figure = Figure(figsize=(WIDTH / 72, (22 + layout.height + 22 + plots.SHARES_HEIGHT + 6) / 72))
    plots.write(figure, 20, 2, "What the model reads of one review")
    plots.paint_tokens(figure, layout, 20, 22)
    plots.write(figure, 20, 22 + layout.height, f"Shares of all {view.n_tokens:,} tokens of the batch")
    plots.paint_shares(figure, view.shares, 20, 22 + layout.height + 22, width)
    return figure


def describe_masking(view: MaskView) -> str:
    """The picture in words."""
    shares = ", ".join(f"{share:.1%} {name}" for name, share in view.shares.items())
    return f"Mask probability {view.mask_prob:.2f}. Of {view.n_tokens} tokens: {shares}. The text reads: " + " ".join(
        token.strip() for token in view.tokens
    )


def mask_explorer(input_ids_BT: Tensor, tokenizer: Tokenizer) -> Explorer:
    """A slider for the mask probability over a batch of real text, int64 [B, T]; the first row is shown in words.

    Raises ValueError for ids that are no batch of this tokenizer's.
    """
    if input_ids_BT.dim() != 2:
        raise ValueError(f"input_ids_BT has shape {tuple(input_ids_BT.shape)}: give [batch, length], add ids[None]")
    tokenizer.vocabulary.check_ids(input_ids_BT)
    slider = widgets.FloatSlider(
        value=0.15,
        min=0.0,
        max=1.0,
        step=0.05,
        description="mask prob.",
        tooltip="probability that a token is chosen to be predicted",
    )
    return bind(
        lambda mask_prob: compute_masking(input_ids_BT, tokenizer, mask_prob=mask_prob),
        draw_masking,
        describe=describe_masking,
        mask_prob=slider,
    )


@cache
def _token(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.token(token_id)


def _codes(input_ids_BT: Tensor, batch: objectives.Batch, vocabulary: Vocabulary) -> Tensor:
    """int64 [B, T], indices into CODES."""
    is_target_BT, shown_BT = batch.is_target_BL, batch.input_ids_BT
    code_BT = (~vocabulary.is_ordinary_V[input_ids_BT]).long() * CODES.index("special")
    code_BT[is_target_BT] = CODES.index("kept")
    code_BT[is_target_BT & (shown_BT != input_ids_BT)] = CODES.index("swapped")
    code_BT[is_target_BT & (shown_BT == vocabulary.mask)] = CODES.index("hidden")
    if vocabulary.pad is not None:
        code_BT[input_ids_BT == vocabulary.pad] = CODES.index("padding")
    return code_BT
