"""Does a prediction see what it must not see?    Axes: N a target, T position."""

from dataclasses import replace

import torch
from torch import Tensor

from course_lib.model import LanguageModel, evaluating
from course_lib.objectives import Batch
from course_lib.vocabulary import Vocabulary


@torch.no_grad()
def influences(model: LanguageModel, batch: Batch, vocabulary: Vocabulary) -> Tensor:
    """bool [N, T]: whether the prediction at each of the N targets of a batch's only row changes, by as much as one
    bit, when the token at position t is another one. What leaks shows in an untrained model.

    Raises ValueError for a batch of more than one row, or without a target.

    >>> from course_lib.layers import TransformerConfig
    >>> from course_lib.model import Decoder
    >>> from course_lib.objectives import causal
    >>> model = Decoder(TransformerConfig(vocab_size=50, d_model=8, n_layers=2, n_heads=2, d_ff=16, max_len=4))
    >>> influences(model, causal(torch.tensor([[7, 8, 9]]), Vocabulary(50)), Vocabulary(50)).int().tolist()
    [[1, 0, 0], [1, 1, 0]]
    """
    if len(batch.input_ids_BT) != 1 or not batch.is_target_BL.any():
        raise ValueError(f"the batch has {len(batch.input_ids_BT)} rows: give one row with at least one target")
    with evaluating(model):
        before_NV = model.target_logits(batch)
        columns = []
        for t in range(batch.input_ids_BT.shape[1]):  # one at a time: the shape of a product can change its last bit
            changed_BT = batch.input_ids_BT.clone()
            other = vocabulary.ordinary_ids[vocabulary.ordinary_ids != changed_BT[0, t]]
            changed_BT[0, t] = other[t % len(other)]
            after_NV = model.target_logits(replace(batch, input_ids_BT=changed_BT))
            columns.append((after_NV != before_NV).any(-1))
    return torch.stack(columns, dim=1)
