"""The processes that train together, called ranks: join them, agree, leave.

torchrun starts them and tells each of them by environment variables who it is. They talk by gloo on a CPU and by nccl
on GPUs.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor, distributed

from course_lib.runtime import pick_device

BACKEND_OF = {"cpu": "gloo", "cuda": "nccl"}


@contextlib.contextmanager
def ranks(backend: str | None = None, *, device: str | None = None) -> Iterator[torch.device]:
    """Join the ranks for the time of the block; the device of this one.

    backend: "gloo" or "nccl" (default: what suits the device). device: as `device_of_ranks` takes it.
    Raises RuntimeError outside of torchrun; ValueError for a backend that the device or this torch lacks, and what
    `device_of_ranks` raises.
    """
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]:
        raise RuntimeError(f"{missing[0]} is not set: start this with torchrun, or with course_lib.parallel.torchrun")
    device = device_of_ranks(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    _check(backend := backend or BACKEND_OF[device.type], device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    _write_whole_lines()
    distributed.init_process_group(backend, device_id=device if backend == "nccl" else None)
    yield device
    # A rank that fails stays joined until its process ends. Left at once, the others would fail of that before it could
    # write down why it did.
    distributed.destroy_process_group()


def leave() -> NoReturn:
    """End this process, which has done its work, at once. While Python takes itself apart, torch now and then aborts
    ("terminate called without an active exception"), and torchrun would count that as a rank that failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def device_of_ranks(name: str | None, count: int) -> torch.device:
    """What each of `count` ranks on this machine computes on: as `pick_device` has it, or the CPU where that would be
    mps, by which ranks cannot be connected.

    Raises ValueError for mps by name, or more ranks than GPUs, besides what `pick_device` raises.
    """
    device, is_named = pick_device(name), bool(name or os.environ.get("COURSE_DEVICE"))
    if device.type not in BACKEND_OF:
        if is_named:
            raise ValueError(f"no backend connects ranks on {device.type}: take --device cpu, or COURSE_DEVICE=cpu")
        return torch.device("cpu")
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise ValueError(
            f"{count} ranks share {torch.cuda.device_count()} GPUs of this machine, and each takes one: start fewer, "
            "or take --device cpu"
        )
    return device


def is_joined() -> bool:
    """Whether this process is a rank now."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Which rank this process is, 0 where it is alone."""
    return distributed.get_rank() if is_joined() else 0


def world() -> int:
    """How many ranks there are, 1 where this process is alone."""
    return distributed.get_world_size() if is_joined() else 1


def barrier() -> None:
    """Wait until all ranks are here."""
    if is_joined():
        distributed.barrier()


def agreed(value: object) -> object:
    """What rank 0 hands in, on every rank: a decision that all must take alike."""
    box = [value]
    if is_joined():
        distributed.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: object) -> list:
    """What each rank hands in, in their order, on every rank."""
    found = [value] * world()
    if is_joined():
        distributed.all_gather_object(found, value)
    return found


def summed(value: float) -> float:
    """The sum of what all ranks hand in, formed in 64 bits."""
    total = torch.tensor(value, dtype=torch.float64, device=_device())
    if is_joined():
        distributed.all_reduce(total)
    return total.item()


def alike(tensors: list[Tensor]) -> None:
    """Give every rank the tensors of rank 0, in place."""
    for tensor in tensors:
        distributed.broadcast(tensor.detach(), src=0)


def _device() -> torch.device | None:
    return torch.device("cuda") if is_joined() and distributed.get_backend() == "nccl" else None


def _write_whole_lines() -> None:
    """All ranks write into one pipe. Unbuffered, print hands over a line and its end one after the other, and another
    rank's line may come in between; what is handed over at once stays in one piece."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)


def _check(backend: str, device: torch.device) -> None:
    there = {"gloo": distributed.is_gloo_available, "nccl": distributed.is_nccl_available}
    if backend not in there:
        raise ValueError(f"backend {backend!r} is unknown: choose one of {', '.join(there)}")
    if backend == "nccl" and device.type != "cuda":
        raise ValueError(f"nccl connects GPUs, and the device is {device.type}: take gloo, or COURSE_DEVICE=cuda")
    if not there[backend]():
        raise ValueError(f"this torch was built without {backend}: take another backend, or install a torch with it")
