"""The model that checks train and take apart: small enough to be quick."""

import torch

from course_lib.layers import TransformerConfig
from course_lib.model import Decoder
from course_lib.runtime import seeded
from course_lib.training import new_model

TINY = TransformerConfig(vocab_size=40, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_len=12)


def tiny_decoder(*, seed: int = 0, shaken: bool = False, dropout: float = 0.0) -> Decoder:
    """A decoder of TINY, ready to train. shaken: so that every parameter counts, those that begin with 0 or 1 too."""
    model = new_model(Decoder, TINY.with_(dropout=dropout), seed=seed, device="cpu").train()
    if shaken:
        with torch.no_grad():
            for n, parameter in enumerate(model.parameters()):
                parameter += 0.3 * torch.randn(parameter.shape, generator=seeded(7, n))
    return model
