"""Checks of chapter 5: a step that is accumulated over micro-batches and ranks, the loss scale, bytes of a rank."""

from course_lib.checks.accumulating import Accumulate, accumulate_reference, verify_accumulate
from course_lib.checks.report import Part, report
from course_lib.checks.scaling import PickLossScale, loss_scale_reference, verify_pick_loss_scale
from course_lib.checks.sharding import BytesOfRank, bytes_of_rank_reference, verify_bytes_of_rank


def accumulate(function: Accumulate) -> Accumulate:
    """Check f(model, micro_batches, *, total, world) -> loss per target of the whole step, as a plain float: one rank's
    part of a data-parallel step. micro_batches are this rank's own, total(number) sums over the `world` ranks, which
    call it equally often. f leaves gradients in the model, which comes without any, and changes nothing else; averaged
    over the ranks (sum / world, the caller's part) they are those of the loss summed over all targets of all ranks and
    divided once. Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("accumulate", function, verify_accumulate, accumulate_reference))[0]


def pick_loss_scale(function: PickLossScale) -> PickLossScale:
    """Check f(gradients) -> the largest power of two, also below 1, with which every number of the float32 tensors,
    multiplied by it exactly, is finite in fp16. Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("pick_loss_scale", function, verify_pick_loss_scale, loss_scale_reference))[0]


def bytes_of_rank(function: BytesOfRank) -> BytesOfRank:
    """Check f(shapes, *, world, rank) -> bytes of weights, gradients and AdamW's two moments in fp32 on a rank under
    FSDP2, which cuts each parameter along its first axis as `torch.chunk` does. Prints a verdict; gives back f if it is
    right, else the library's."""
    return report(Part("bytes_of_rank", function, verify_bytes_of_rank, bytes_of_rank_reference))[0]
