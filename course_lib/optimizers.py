"""Which parameter is changed by which rule: decay groups, AdamW, and Muon for the matrices inside a model."""

from collections.abc import Sequence

import torch
from torch import nn

KINDS = ("adamw", "muon")


def decay_groups(model: nn.Module, weight_decay: float, *, spared_names: Sequence[str] | None = None) -> list[dict]:
    """Parameter groups for an optimiser: matrices decay, vectors (biases, normalisation) do not.

    spared_names: decide by name instead, as is often seen: what holds one of these, such as ("bias", "norm"), does not
    decay. That rule depends on how a model calls its parts: GPT-2's normalisation is called ln_1.
    Parameters that are not trained are left out.

    >>> [len(group["params"]) for group in decay_groups(nn.Linear(2, 3), 0.1)]
    [1, 1]
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if spared_names is None:
        spared = {name for name, p in trained.items() if p.dim() < 2}
    else:
        spared = {name for name in trained if any(part.lower() in name.lower() for part in spared_names)}
    return [
        {"params": [p for name, p in trained.items() if name not in spared], "weight_decay": weight_decay},
        {"params": [p for name, p in trained.items() if name in spared], "weight_decay": 0.0},
    ]


class MuonAndAdamW:
    """Muon (Jordan et al. 2024; arXiv:2502.16982) for the matrices inside a model, AdamW for embeddings and vectors,
    under one rate: Muon's steps are scaled to the size of AdamW's (section 2.2 there).

    Muon orthogonalises the step of a matrix, so that no direction of it is trained at the expense of the others.
    Raises ValueError where torch is older than 2.9, which brought Muon, or where the model is cut into parts: a part of
    a matrix cannot be made orthogonal alone.
    """

    def __init__(self, model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"torch {torch.__version__} has no Muon: install 2.9 or newer, or take 'adamw'")
        if any(hasattr(p, "full_tensor") for p in model.parameters()):
            raise ValueError("Muon needs whole matrices, and the model is sharded: take 'adamw', or the engine 'ddp'")
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        inner = [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in tables]
        chosen = {id(p) for p in inner}
        groups = decay_groups(model, weight_decay)
        groups = [group | {"params": [p for p in group["params"] if id(p) not in chosen]} for group in groups]
        self.parts = [_adamw(groups, betas)]
        if inner:
            self.parts.append(
                torch.optim.Muon(inner, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        for part, its_state in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(its_state)


Optimizer = torch.optim.Optimizer | MuonAndAdamW


def make_optimizer(
    model: nn.Module, kind: str = "adamw", *, weight_decay: float = 0.05, betas: tuple[float, float] = (0.9, 0.98)
) -> Optimizer:
    """AdamW (arXiv:1711.05101) over `decay_groups`, fused where torch has it, or "muon"; the rate is set at every step.

    Raises ValueError for another kind, or a model without a parameter that is trained.
    """
    if kind not in KINDS:
        raise ValueError(f"optimizer {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"no parameter of this {type(model).__name__} is trained: set requires_grad where it is to be")
    if kind == "muon":
        return MuonAndAdamW(model, weight_decay=weight_decay, betas=betas)
    return _adamw(decay_groups(model, weight_decay), betas)


def _adamw(groups: list[dict], betas: tuple[float, float]) -> torch.optim.AdamW:
    trained = [p for group in groups for p in group["params"]]
    device = trained[0].device if trained else torch.device("cpu")
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=device.type in ("cpu", "cuda", "mps"))
