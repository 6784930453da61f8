"""What a trained model says: the masked places of a text, filled in.

Axes: B row of the batch, T position, M masked place, V the vocabulary.
"""

import torch

from course_lib.model import Encoder
from course_lib.tokenizer import Tokenizer


@torch.no_grad()
def fill_in(
    model: Encoder, tokenizer: Tokenizer, text: str, *, top: int = 5, frame: tuple[str, str] = ("bos", "eos")
) -> list[list[tuple[str, float]]]:
    """For each [MASK] of the text, from left to right, the `top` likeliest tokens with their probabilities.

    frame: the special tokens around a text, those that the model was trained with.
    Raises ValueError for a text without [MASK], a model without a prediction head, or a text longer than the model.
    """
    mask_id = tokenizer.vocabulary.require("mask", "filling in")
    first_id, last_id = (tokenizer.vocabulary.require(name, "filling in") for name in frame)
    ids = tokenizer.encode(text, special=True)
    if mask_id not in ids:
        raise ValueError(
            f"the text {text[:60]!r} holds no [MASK]: write [MASK], in capitals, where a word is to be found"
        )
    input_ids_BT = torch.tensor([[first_id, *ids, last_id]], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    logits_MV = model(input_ids_BT, wanted_BT=input_ids_BT == mask_id).logits
    model.train(was_training)
    if logits_MV is None:
        raise ValueError("this encoder has no prediction head: load or train one that was made to fill in masks")
    best = logits_MV.float().softmax(-1).topk(top)
    return [
        [(tokenizer.token(i), probability) for i, probability in zip(ids, probabilities, strict=True)]
        for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
