"""Who may attend to whom, as boolean tensors: True says that a query (a row) may look at a key (a column).

Masks combine with `&` and broadcast: a padding mask is [B, 1, K], a causal one [1, Q, K].
Axes: B row of the batch, T position, Q position that looks, K position that is looked at.
"""

import torch
from torch import Tensor


def causal(length: int) -> Tensor:
    """bool [1, T, T]: each position sees itself and what came before (GPT, Radford et al. 2018).

    Raises ValueError if `length` is below 1.

    >>> causal(3)[0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    if length < 1:
        raise ValueError(f"length is {length}: a mask needs at least one position")
    return torch.ones(length, length, dtype=torch.bool).tril()[None]


def prefix(prefix_length_B: Tensor, length: int) -> Tensor:
    """bool [B, T, T]: the first `prefix_length_B` positions of each row are seen by all, the rest is causal
    (prefix LM, arXiv:1910.10683, figure 4).

    Raises ValueError unless there is one whole number from 0 to `length` for each row.

    >>> prefix(torch.tensor([2]), 3)[0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """
    if prefix_length_B.dim() != 1 or prefix_length_B.numel() == 0 or prefix_length_B.is_floating_point():
        raise ValueError(
            f"prefix_length_B is {prefix_length_B.dtype} of shape {tuple(prefix_length_B.shape)}: "
            "give one whole number per row, [batch]"
        )
    low, high = int(prefix_length_B.min()), int(prefix_length_B.max())
    if low < 0 or high > length:
        raise ValueError(f"prefix_length_B holds {low if low < 0 else high}: it must lie between 0 and length {length}")
    is_prefix_BT = torch.arange(length) < prefix_length_B[:, None]
    return causal(length) | is_prefix_BT[:, None, :]


def padding(is_real_BT: Tensor) -> Tensor:
    """bool [B, 1, T]: everybody may look at real tokens, nobody at padding.

    Raises ValueError for what is no bool [B, T]: 0 and 1 as integers would turn `&` with other masks into integers.

    >>> padding(torch.tensor([[True, True, False]])).int().tolist()
    [[[1, 1, 0]]]
    """
    _check_rows("is_real_BT", is_real_BT, is_bool=True)
    return is_real_BT[:, None, :]


def positions(is_real_BT: Tensor) -> Tensor:
    """int64 [B, T]: each token's place among the real ones of its row; padding before a text takes none.

    >>> positions(torch.tensor([[False, True, True]])).tolist()
    [[0, 0, 1]]
    """
    return (is_real_BT.cumsum(1) - 1).clamp(min=0)


def documents(document_ids_BT: Tensor) -> Tensor:
    """bool [B, T, T]: a packed row holds several documents, and each sees only itself.

    Raises ValueError unless `document_ids_BT` has two axes.

    >>> documents(torch.tensor([[0, 0, 1]]))[0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    _check_rows("document_ids_BT", document_ids_BT)
    return document_ids_BT[:, :, None] == document_ids_BT[:, None, :]


def permutation(order_BT: Tensor, is_target_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Content and query visibility of permutation language modelling, both bool [B, T, T] (XLNet, arXiv:1906.08237).

    order_BT holds each position's place in the order of prediction (a permutation of 0..T-1 in each row).
    Everybody sees every non-target. Beyond that a *content* position sees the targets of an earlier place, and
    itself; a *query* position, which has to predict its token, sees only the targets of an earlier place.
    A non-target sees no target, so that nothing of a target reaches its own query by a detour.

    Raises ValueError if the shapes differ, `is_target_BT` is not bool, or a row of `order_BT` is no permutation.

    >>> content, query = permutation(torch.tensor([[2, 0, 1]]), torch.tensor([[True, False, True]]))
    >>> query[0].int().tolist()  # the token between comes first and is given, then the last, then the first
    [[0, 1, 1], [0, 1, 0], [0, 1, 0]]
    >>> (content ^ query)[0].int().tolist()  # what a query must not see: its own token, where it is a target
    [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    """
    _check_rows("order_BT", order_BT)
    _check_rows("is_target_BT", is_target_BT, is_bool=True)
    if order_BT.shape != is_target_BT.shape:
        raise ValueError(f"order_BT has shape {tuple(order_BT.shape)}, is_target_BT {tuple(is_target_BT.shape)}")
    if not torch.equal(order_BT.sort(1).values, torch.arange(order_BT.shape[1]).expand_as(order_BT)):
        raise ValueError("a row of order_BT is no permutation of 0..T-1: draw it with torch.randperm or argsort twice")
    # what is given comes before every place, and a non-target looks from the first place, where it sees nothing else
    key_place_BT, query_place_BT = (order_BT.masked_fill(~is_target_BT, place) for place in (-1, 0))
    query_BTT = key_place_BT[:, None, :] < query_place_BT[:, :, None]
    return query_BTT | torch.eye(order_BT.shape[1], dtype=torch.bool), query_BTT


def _check_rows(name: str, tensor_BT: Tensor, *, is_bool: bool = False) -> None:
    if tensor_BT.dim() != 2 or (is_bool and tensor_BT.dtype != torch.bool):
        given = f"{name} is {tensor_BT.dtype} of shape {tuple(tensor_BT.shape)}"
        raise ValueError(f"{given}: give {'bool ' if is_bool else ''}[batch, length]")
