"""Where the heads of an encoder look.

Axes: L layer, B row of the batch, H head, Q position that looks, K position that is looked at, T position.
"""

import math

import torch
from torch import Tensor

from course_lib.layers import extend, rotate, rotation, split_heads
from course_lib.model import Cache, Encoder, cache_length, evaluating


@torch.no_grad()
def attention_weights(model: Encoder, input_ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
    """[L, B, H, Q, K]: how each query divides its attention, 1 in all. For texts without padding.

    cache: earlier keys and values, such as a prefix's; they are the first of K.
    Raises TypeError for a model that is no Encoder, ValueError for one with a prefix of its own and no cache.
    """
    if not isinstance(model, Encoder):
        raise TypeError(f"model is a {type(model).__name__}: attention is shown for an Encoder")
    if cache is None and getattr(getattr(model, "adapters", None), "active", None) is not None:
        raise ValueError(
            "the model has a prefix that acts: hand in its keys and values, peft.prefix.prefix_cache(model)"
        )
    config, earlier = model.config, cache_length(cache)
    position_BT = torch.arange(earlier, earlier + input_ids_BT.shape[1], device=input_ids_BT.device)[None]
    weights = []
    with evaluating(model):
        hidden = model(input_ids_BT, cache=cache).hidden_states
        for number, block in enumerate(model.encoder["layer"]):
            project = block.attention.self
            q_BHQD, k_BHTD, v_BHTD = (
                split_heads(project[name](hidden[number]), config.n_heads) for name in ("query", "key", "value")
            )
            if config.positions == "rotary":
                turn = rotation(position_BT, config.d_head)
                q_BHQD, k_BHTD = rotate(q_BHQD, turn), rotate(k_BHTD, turn)
            k_BHKD, _ = extend(None if cache is None else cache[number], k_BHTD, v_BHTD)
            weights.append((q_BHQD @ k_BHKD.mT / math.sqrt(config.d_head)).softmax(-1))
    return torch.stack(weights)
