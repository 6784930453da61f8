"""Cross-entropy, summed over its targets: what is to be divided once, by their number in a whole step.

Axes: N a target, V the vocabulary, C a row of the chunk.
"""

import torch
from torch import Tensor

from course_lib.vocabulary import IGNORE_INDEX

CHUNK = 64  # rows of logits at a time: small enough to stay in the processor's cache


class _SummedCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is formed with the loss, a few rows at a time, so that no second tensor of the
    logits' size is kept in fp32 (the idea of Liger Kernel, arXiv:2410.10989, section 3.2)."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        gradient_NV = torch.empty_like(logits_NV) if context.needs_input_grad[0] else None
        total = torch.zeros((), device=logits_NV.device)
        for start in range(0, len(logits_NV), CHUNK):
            rows = slice(start, start + CHUNK)
            log_prob_CV = torch.log_softmax(logits_NV[rows].float(), dim=-1)
            label_C1 = labels_N[rows, None]
            total -= log_prob_CV.gather(1, label_C1).sum()
            if gradient_NV is not None:
                gradient_CV = log_prob_CV.exp_()
                gradient_CV.scatter_add_(1, label_C1, torch.full_like(label_C1, -1.0, dtype=torch.float32))
                gradient_NV[rows] = gradient_CV
        context.save_for_backward(gradient_NV)
        return total

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return context.saved_tensors[0] * gradient, None


def token_loss(logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, int]:
    """Cross-entropy in nats, *summed* over the labels that are not IGNORE_INDEX, and their number.

    Raises ValueError if the shapes do not fit, or a label lies outside the vocabulary.

    >>> total, count = token_loss(torch.zeros(3, 8), torch.tensor([1, IGNORE_INDEX, 2]))
    >>> round(total.item() / count, 4)  # ln 8
    2.0794
    """
    if logits_NV.dim() != 2 or labels_N.shape != logits_NV.shape[:1]:
        raise ValueError(
            f"logits_NV {tuple(logits_NV.shape)} and labels_N {tuple(labels_N.shape)} do not fit: flatten both to "
            "[targets, vocabulary] and [targets]"
        )
    is_target_N = labels_N != IGNORE_INDEX
    count = int(is_target_N.sum())
    if count < len(labels_N):
        logits_NV, labels_N = logits_NV[is_target_N], labels_N[is_target_N]
    is_outside_N = (labels_N < 0) | (labels_N >= logits_NV.shape[1])
    if is_outside_N.any():
        wrong = labels_N[is_outside_N][0].item()
        raise ValueError(f"label {wrong} lies outside the {logits_NV.shape[1]} logits: use {IGNORE_INDEX} for none")
    return _SummedCrossEntropy.apply(logits_NV, labels_N), count
