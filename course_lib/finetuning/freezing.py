"""Fine-tune the upper layers of an encoder alone (arXiv:1911.03090): what the frozen layers below make of a text never
changes, so it is computed once.

Axes: B text of the batch, T position in it, E channel of the model.
"""

import copy
from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor, nn

from course_lib import masks
from course_lib.model import Encoder, LanguageModel, evaluating


class PartlyFrozen(LanguageModel):
    """A copy of an encoder whose embeddings and lowest `n_frozen` layers are frozen. They compute each text once, in
    fp32 and without dropout, and its hidden states there (4 bytes a channel and token) are remembered, for deep copies
    of this model too: so the frozen weights of none of them may be changed.

    body: the whole encoder, every layer in its place, with what the upper ones have learned. It is what to use where
    all layers must compute, as for attributions.
    Raises ValueError for what is no Encoder, or a number of layers that it does not have.
    """

    def __init__(self, encoder: Encoder, n_frozen: int) -> None:
        if type(encoder) is not Encoder:
            raise ValueError(f"this is a {type(encoder).__name__}: give an Encoder, such as minilm()[0]")
        if not isinstance(n_frozen, int) or not 1 <= n_frozen <= encoder.config.n_layers:
            raise ValueError(f"n_frozen is {n_frozen!r}: freeze 1 to {encoder.config.n_layers} of the encoder's layers")
        super().__init__(encoder.config)
        self.body, self.n_frozen, self.remembered = copy.deepcopy(encoder), n_frozen, _Remembered()
        for part in self._frozen:
            part.requires_grad_(False)

    @property
    def _frozen(self) -> list[nn.Module]:
        return [self.body.embeddings, *self.body.encoder["layer"][: self.n_frozen]]

    def forward(self, *_: object, **__: object) -> NoReturn:
        """Raises ValueError: there are `encode` and `features` alone."""
        raise ValueError("a PartlyFrozen has encode and features alone: use the whole encoder, its .body")

    def encode(self, input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
        """[B, T, E]: the last hidden state of a text without corruption, padding unseen.

        Raises ValueError where something in or on the frozen layers would be missed: a parameter to train, or the hook
        of a prefix or of attributions.
        """
        if any(parameter.requires_grad for part in self._frozen for parameter in part.parameters()):
            raise ValueError("a frozen layer has a parameter that is trained: use the whole encoder, this one's .body")
        below = (self.body, *self.body.embeddings.modules())
        if any(part._forward_hooks or part._forward_pre_hooks for part in below):
            raise ValueError("a prefix or attributions need every layer: use the whole encoder, this one's .body")
        is_real_BT = is_real_BT.bool()
        x_BTE = self._from_below(input_ids_BT, is_real_BT)
        return self._through(self.body.encoder["layer"][self.n_frozen :], x_BTE, is_real_BT)

    @torch.no_grad()
    def _from_below(self, input_ids_BT: Tensor, is_real_BT: Tensor) -> Tensor:
        """[B, T, E]: what the frozen layers make of each text, zeros at padding."""
        position_BT, device = self._positions(input_ids_BT), input_ids_BT.device
        placed = input_ids_BT.masked_fill(~is_real_BT, -1).tolist()
        texts = [tuple((n, i) for n, i in enumerate(row) if i >= 0) for row in placed]  # places and ids
        new = list({text: n for n, text in enumerate(texts) if text not in self.remembered}.values())
        if new:
            with evaluating(self), torch.autocast(device.type, enabled=False):
                x_BTE = self.body.embeddings(input_ids_BT[new], position_BT)
                x_BTE = self._through(self._frozen[1:], x_BTE, is_real_BT[new])
            for n, x_TE in zip(new, x_BTE, strict=True):
                self.remembered[texts[n]] = x_TE[is_real_BT[n]]
        known = torch.cat([self.remembered[text].to(device) for text in texts])
        below_BTE = known.new_zeros(*input_ids_BT.shape, known.shape[1])
        below_BTE[is_real_BT] = known
        return below_BTE

    def _through(self, blocks: Iterable[nn.Module], x_BTE: Tensor, is_real_BT: Tensor) -> Tensor:
        turn = self.body._turn(torch.arange(x_BTE.shape[1], device=x_BTE.device)[None])
        may_attend_BQK = masks.padding(is_real_BT)
        for block in blocks:
            x_BTE, _ = block(x_BTE, may_attend_BQK, turn=turn)
        return x_BTE


class _Remembered(dict):
    """One for all copies: what frozen layers say is the same in each."""

    def __deepcopy__(self, _: dict) -> "_Remembered":
        return self
