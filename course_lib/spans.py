"""Where the spans of a corruption lie: drawn for all rows of a batch at once, over the ordinary tokens of each.

Sources: T5 arXiv:1910.10683, BART arXiv:1910.13461.
Axes: B row of the batch, T position, S span, N any place to choose from.
"""

import math

import numpy as np
import torch
from torch import Tensor


def random_spans(is_ordinary_BT: Tensor, density: float, mean_span: float, generator: torch.Generator) -> Tensor:
    """T5's noise mask over the ordinary tokens of each row: kept and removed stretches alternate, kept first."""
    n_B = is_ordinary_BT.sum(1)
    n_noise_B = _share_of(n_B, density)
    n_spans_B = (n_noise_B / mean_span).round().long().clamp(min=1)
    n_spans_B = torch.minimum(n_spans_B, torch.minimum(n_noise_B, (n_B - n_noise_B).clamp(min=1)))
    kept_end_BS = _random_parts(n_B - n_noise_B, n_spans_B, generator)
    noise_end_BS = _random_parts(n_noise_B, n_spans_B, generator)
    begin_BS = kept_end_BS + torch.nn.functional.pad(noise_end_BS, (1, -1))  # what was removed before
    return is_ordinary_BT & _inside(begin_BS, kept_end_BS + noise_end_BS, is_ordinary_BT.cumsum(1))


def poisson_spans(
    is_ordinary_BT: Tensor, density: float, mean_span: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """BART's noise over the ordinary tokens of each row: what is removed (bool [B, T]), how many masks stand before
    each token (int64 [B, T]), and how many in the whole row (int64 [B]).

    Kept tokens and spans are put into a row in an order drawn uniformly, spans of any length alike. A span of length 0
    stands right before the ordinary token that follows it, or right behind the last.
    """
    n_B, count_BT = is_ordinary_BT.sum(1), is_ordinary_BT.cumsum(1)
    n_noise_B = _share_of(n_B, density)
    length_BN, n_spans_B = poisson_lengths(n_noise_B, mean_span, generator)
    slot_BS = _choose(n_spans_B, n_B - n_noise_B + n_spans_B, generator)
    number_S = torch.arange(slot_BS.shape[1])
    length_BS = _last_anywhere(length_BN, n_spans_B, generator)[:, : len(number_S)]
    end_BS = length_BS.cumsum(1) + (slot_BS - number_S).clamp_(min=0)  # what was removed, and what was kept before
    begin_BS = end_BS - length_BS
    is_noise_BT = is_ordinary_BT & _inside(begin_BS, end_BS, count_BT)

    n_begin_BN = torch.zeros(len(n_B), count_BT.shape[1] + 2, dtype=torch.long)
    n_begin_BN.scatter_add_(1, begin_BS + 1, (number_S < n_spans_B[:, None]).long())
    begins_BN = torch.zeros(n_begin_BN.shape, dtype=torch.bool).scatter_(1, (begin_BS + 1) * (length_BS > 0), True)
    # a special token inside a span cuts it: what follows needs a mask of its own, unless another span begins there
    is_cut_BT = is_noise_BT & ~shift_right(is_ordinary_BT, fill=True) & ~begins_BN.gather(1, count_BT)
    is_behind_BT = ~is_ordinary_BT & (count_BT == n_B[:, None])
    n_masks_BT = n_begin_BN.cumsum(1).gather(1, count_BT + is_behind_BT) + is_cut_BT.cumsum(1)
    return is_noise_BT, n_masks_BT, n_spans_B + is_cut_BT.sum(1)


def poisson_lengths(n_noise_B: Tensor, mean_span: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Span lengths (int64 [B, N], 0 behind the last) that cover each row's noise exactly, and their number (int64 [B]).

    Lengths are drawn until the row's noise is covered; the last one is cut to fit.
    """
    longest = int(n_noise_B.max())
    most = math.ceil((longest + 7 * math.sqrt(longest)) / mean_span) + 7  # enough by seven deviations, and ...
    mean_BN = torch.full((len(n_noise_B), most), min(float(mean_span), 1e9))  # longer than any row, and no overflow
    length_BN = torch.poisson(mean_BN, generator=generator).long()
    length_BN[:, -1] = n_noise_B  # ... one that covers the rest, whatever was drawn
    before_BN = length_BN.cumsum(1) - length_BN
    n_spans_B = (before_BN < n_noise_B[:, None]).sum(1)
    return torch.minimum(length_BN, (n_noise_B[:, None] - before_BN).clamp(min=0)), n_spans_B


def _last_anywhere(length_BN: Tensor, n_spans_B: Tensor, generator: torch.Generator) -> Tensor:
    """The lengths with the last of each row, the one that was cut, changed for any of them (or itself)."""
    last_B1 = (n_spans_B[:, None] - 1).clamp(min=0)
    any_B1 = (torch.rand(last_B1.shape, generator=generator, dtype=torch.float64) * (last_B1 + 1)).long()
    swapped_BN = length_BN.scatter(1, last_B1, length_BN.gather(1, any_B1))
    return swapped_BN.scatter_(1, any_B1, length_BN.gather(1, last_B1))


def _random_parts(total_B: Tensor, parts_B: Tensor, generator: torch.Generator) -> Tensor:
    """int64 [B, S]: the ends of so many positive parts of each total, every way equally likely; the total behind."""
    return torch.cat([_choose(parts_B - 1, total_B - 1, generator) + 1, total_B[:, None]], dim=1)


def _choose(count_B: Tensor, n_B: Tensor, generator: torch.Generator) -> Tensor:
    """int64 [B, S]: `count_B` of the numbers below `n_B`, in order, every choice equally likely; `n_B` behind them."""
    width = max(1, int(n_B.max()))
    key_BN = torch.rand(len(n_B), width, generator=generator)
    if int(n_B.min()) < width:
        key_BN.masked_fill_(torch.arange(width) >= n_B[:, None], 2.0)
    sorted_BN = torch.from_numpy(np.sort(key_BN.numpy(), axis=1))  # ten times as fast as torch's on short rows
    last_B1 = sorted_BN.gather(1, (count_B[:, None] - 1).clamp(min=0)).masked_fill_(count_B[:, None] < 1, -1.0)
    is_chosen_BN = key_BN <= last_B1
    number_BN = is_chosen_BN.cumsum(1)
    if not torch.equal(number_BN[:, -1], count_B.clamp(min=0)):
        return _choose(count_B, n_B, generator)  # two equal keys at the border, one time in thousands
    chosen_BS = n_B[:, None].repeat(1, 1 + max(0, int(count_B.max())))  # column 0 takes what is not chosen
    return chosen_BS.scatter_(1, number_BN * is_chosen_BN, torch.arange(width).expand_as(number_BN))[:, 1:]


def _inside(begin_BS: Tensor, end_BS: Tensor, count_BT: Tensor) -> Tensor:
    """bool [B, T]: whether the ordinary token with this number, counted from 1, lies in a span. Spans are given by the
    numbers of ordinary tokens before they begin and end, and may touch, not overlap."""
    border_BS = torch.cat([begin_BS, end_BS], dim=1) + 1
    is_border_BN = torch.zeros(len(count_BT), count_BT.shape[1] + 2, dtype=torch.uint8)
    is_border_BN.scatter_add_(1, border_BS, torch.ones_like(border_BS, dtype=torch.uint8))
    n_borders_BN = is_border_BN.cumsum(1, dtype=torch.uint8)  # may run over, and stays odd or even
    return n_borders_BN.bitwise_and_(1).bool().gather(1, count_BT)


def _share_of(n_B: Tensor, density: float) -> Tensor:
    """How many of n tokens to remove: all or none at the ends, else at least one and never all (as T5 does)."""
    n_noise_B = (n_B.double() * density).round().long()
    if 0.0 < density < 1.0:
        n_noise_B = torch.minimum(n_noise_B.clamp(min=1), (n_B - 1).clamp(min=0))
    return n_noise_B


def shift_right(tensor_BT: Tensor, fill: int | bool) -> Tensor:
    return torch.cat([torch.full_like(tensor_BT[:, :1], fill), tensor_BT[:, :-1]], dim=1)
