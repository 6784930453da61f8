"""Where and how fast: the device, the number format that pays on it, seeded generators, and what a run has used.

Whoever imports this keeps the memory that freed tensors leave behind: see `keep_freed_memory`.
"""

import contextlib
import ctypes
import operator
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

DEVICES = ("cpu", "cuda", "mps")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h's names for what mallopt sets
KEPT_FREE = 2**30  # bytes; what is free beyond them goes back to the system


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones. By default glibc hands large pieces back to
    the system at once, which must clear them page by page for each new tensor: up to a sixth of a training step on a
    CPU (benchmarks/freed_memory.py). Does nothing where the C library is another one."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without mallopt
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, KEPT_FREE)


keep_freed_memory()


def pick_device(name: str | None = None) -> torch.device:
    """The device to compute on: `name`, else the environment's COURSE_DEVICE, else cuda, mps or cpu, the first there.

    Raises ValueError for a name that is none of these, or a device that this machine does not have.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    is_there = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    name = name or os.environ.get("COURSE_DEVICE") or next(n for n in ("cuda", "mps", "cpu") if is_there[n]())
    if name not in DEVICES:
        raise ValueError(f"device {name!r} is unknown: choose one of {', '.join(DEVICES)} (COURSE_DEVICE sets it)")
    if not is_there[name]():
        raise ValueError(f"device {name!r} is not on this machine: use cpu, or unset COURSE_DEVICE")
    return torch.device(name)


def seeded(*seeds: int) -> torch.Generator:
    """A CPU generator fixed by the seeds; corruptions draw from it on every device, so that batches are the same.

    Raises ValueError for no seed, or one that is no whole number from 0 up.

    >>> torch.rand(1, generator=seeded(1, 2)).equal(torch.rand(1, generator=seeded(1, 2)))
    True
    """
    if not seeds or not all(hasattr(seed, "__index__") and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds are {seeds}: give one or more whole numbers from 0 up")
    mixed = 0
    for seed in seeds:  # SplitMix64's finaliser, so that (1, 2), (2, 1) and neighbours have nothing in common
        mixed = (mixed + operator.index(seed) + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed >> 1)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on `count` CPU threads inside the block. Small tensors want one: threads would wait for each other.

    Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}: computing takes at least 1 thread")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int = 768, repeats: int = 6) -> float:
    """Measured speed of a matrix product [size, size] @ [size, size], in floating-point operations a second: the best
    of `repeats`, or of as many as fit into a fifth of a second."""
    generator = seeded(0)  # of its own: a measurement must not move the caller's random numbers
    left, right = torch.randn(2, size, size, generator=generator).to(device, dtype)
    took: list[float] = []
    while len(took) < repeats and sum(took) < 0.2:
        wait_for(device)
        start = time.perf_counter()
        (left @ right).sum().item()
        took.append(time.perf_counter() - start)
    return 2 * size**3 / min(took)


@cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where a measured matrix product is at least 1.5 times as fast in it as in fp32, else fp32."""
    if device.type == "mps":
        return torch.float32

    def gain(size: int) -> float:
        return matmul_rate(torch.bfloat16, device, size) / matmul_rate(torch.float32, device, size)

    # small products first: without instructions for bf16 the large one takes a second
    pays = gain(128) > 0.25 and gain(256) > 0.25 and gain(768) > 1.5
    return torch.bfloat16 if pays else torch.float32


def autocast(device: torch.device, dtype: torch.dtype | None = None) -> contextlib.AbstractContextManager:
    """torch's autocast to `dtype` (default: what pays on this device); does nothing where that is fp32."""
    dtype = dtype or fast_dtype(device)
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()


def peak_memory(device: torch.device | None = None) -> int:
    """The most memory this process has held so far, in bytes (0 where the system does not tell); for cuda, on the
    device."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass
class Kept:
    """What a forward pass has kept for the backward pass, in bytes; parameters, which are there anyway, left out."""

    bytes: int = 0


@contextlib.contextmanager
def kept_for_backward(model: torch.nn.Module) -> Iterator[Kept]:
    """Count what is kept for the backward pass of all that is computed inside the block; what two operations keep
    together counts once.

    >>> layer = torch.nn.Linear(4, 4)
    >>> with kept_for_backward(layer) as kept:
    ...     loss = layer(torch.zeros(2, 4)).relu().sum()
    >>> kept.bytes  # the input and the output of relu, 2 x 4 numbers of 4 bytes each
    64
    """
    kept, seen = Kept(), {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(storage)  # an address stands for a tensor only as long as nobody frees it
            kept.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def bytes_here(tensors: Iterable[torch.Tensor | None]) -> int:
    """What tensors take in this process; None takes nothing, and of one that is cut over ranks only this rank's part
    counts.

    >>> bytes_here([torch.zeros(3), None, torch.zeros(2, dtype=torch.bfloat16)])
    16
    """
    parts = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors if tensor is not None)
    return sum(part.nbytes for part in parts)


def largest_difference(some: torch.Tensor, other: torch.Tensor) -> float:
    """How far two results lie apart anywhere, as a share of the largest value of the other.

    >>> largest_difference(torch.tensor([1.0, -3.0]), torch.tensor([1.0, -4.0]))
    0.25
    """
    return float((some - other).abs().max() / other.abs().max())


def describe_machine() -> dict[str, str | int]:
    """What a record must say of where it was made: processor type, cores, threads, device, system, versions."""
    device = pick_device()
    return {
        "processor": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
    }


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock shows how long that took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
