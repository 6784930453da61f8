"""One vector for each text, from those of its tokens.    Axes: B text of the batch, T position in it, E channel."""

import torch
from torch import Tensor

POOLINGS = ("mean", "cls", "last")


def pool(hidden_BTE: Tensor, is_real_BT: Tensor, how: str = "mean") -> Tensor:
    """[B, E]: one vector for each text. "mean" averages over its real tokens, "cls" takes the first of them (which an
    encoder's special token is; a decoder's first token has seen nothing of a text), "last" the last, the only one that
    has seen all of it in a decoder.

    Padding changes nothing, on whichever side it stands. Raises ValueError for another pooling, or a text of padding
    alone.

    >>> hidden_BTE = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> [pool(hidden_BTE, torch.tensor([[True, True, False]]), how).item() for how in POOLINGS]
    [2.0, 1.0, 3.0]
    """
    if how not in POOLINGS:
        raise ValueError(f"pooling {how!r} is unknown: choose one of {', '.join(POOLINGS)}")
    is_real_BT = is_real_BT.bool()
    if not is_real_BT.any(1).all():
        raise ValueError("a text is padding alone: give it at least one token, such as its special tokens")
    if how == "mean":
        weight_BT1 = is_real_BT[..., None].to(hidden_BTE.dtype)
        return (hidden_BTE * weight_BT1).sum(1) / weight_BT1.sum(1)
    place_T = torch.arange(is_real_BT.shape[1], device=is_real_BT.device)
    if how == "cls":
        place_B = place_T.where(is_real_BT, len(place_T)).amin(1)
    else:
        place_B = place_T.where(is_real_BT, -1).amax(1)
    return hidden_BTE[torch.arange(len(place_B), device=place_B.device), place_B]
