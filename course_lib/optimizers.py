"""Which parameter is changed by which rule: decay groups, AdamW, and Muon for the matrices inside a model."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

KINDS = ("adamw", "muon")
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at 0, so that small singular values grow quickly


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


def orthogonalized(matrix_MN: Tensor) -> Tensor:
    """[M, N]: the same singular vectors, and singular values between 0.7 and 1.2 instead of the matrix's own (those of
    less than about a thousandth of all together stay smaller): five rounds of a Newton-Schulz iteration.

    >>> values = torch.linalg.svdvals(orthogonalized(torch.diag(torch.tensor([1.0, 0.1]))))
    >>> bool((values > 0.7).all() and (values < 1.2).all())
    True
    """
    is_high = matrix_MN.shape[0] > matrix_MN.shape[1]
    wide = matrix_MN.mT if is_high else matrix_MN
    wide = wide / wide.norm().clamp(min=1e-7)
    first, third, fifth = QUINTIC
    for _ in range(5):  # each applies first * x + third * x**3 + fifth * x**5 to every singular value x
        gram = wide @ wide.mT
        wide = torch.addmm(wide, third * gram + fifth * gram @ gram, wide, beta=first)
    return wide.mT if is_high else wide


class Muon(torch.optim.Optimizer):
    """Momentum (Nesterov's) whose steps are orthogonalised (Jordan et al. 2024), so that no direction of a matrix is
    trained at the expense of the others, and scaled to the size of AdamW's (arXiv:2502.16982, section 2.2).

    It computes in the format of the weights. torch.optim.Muon, which takes the same steps, computes in bf16, and where
    a processor has no instructions for that, its step takes many times as long (benchmarks/training.py).
    """

    def __init__(self, matrices: Iterable[nn.Parameter], *, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in (p for p in group["params"] if p.grad is not None):
                self._turn(weight, group["lr"], group["weight_decay"], group["momentum"])
        return loss

    def _turn(self, weight: nn.Parameter, rate: float, weight_decay: float, momentum: float) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        average = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
        direction = orthogonalized(weight.grad.lerp(average, momentum))
        weight.mul_(1 - rate * weight_decay)
        weight.add_(direction, alpha=-rate * 0.2 * math.sqrt(max(weight.shape)))


class MuonAndAdamW:
    """Muon for the matrices inside a model, AdamW for embeddings and vectors, under one rate.

    Raises ValueError where the model is cut into parts: a part of a matrix cannot be made orthogonal alone.
    """

    def __init__(self, model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> None:
        if any(hasattr(p, "full_tensor") for p in model.parameters()):
            raise ValueError("Muon needs whole matrices, and the model is sharded: take 'adamw', or the engine 'ddp'")
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        inner = [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in tables]
        chosen = {id(p) for p in inner}
        groups = decay_groups(model, weight_decay)
        groups = [group | {"params": [p for p in group["params"] if id(p) not in chosen]} for group in groups]
        self.parts = [_adamw(groups, betas)]
        if inner:
            self.parts.append(Muon(inner, weight_decay=weight_decay))

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
