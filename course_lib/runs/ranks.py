"""Pre-training on several ranks: how they are started, and what each of them does.

`course pretrain --ranks N` starts N processes of this machine. Each is the same command again, as it is behind torchrun
on several machines, and finds by torchrun's variables that it is a rank.
"""

import functools
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from course_lib.checkpoint import Checkpoints
from course_lib.files import write_atomically
from course_lib.parallel import ENGINES, agreed, check_in_parts, device_of_ranks, gathered, rank, ranks, world
from course_lib.parallel import torchrun as launch
from course_lib.runs.pretraining import pretrain, report, to_go_on_from
from course_lib.runs.recipes import Pretraining

SHOW_EVERY = 10  # steps between the lines that rank 0 writes
LAUNCH = ".launch"  # a file of a run: which processes of torchrun have begun it or gone on with it


def check(
    run: Pretraining, folder: Path | str, *, count: int, engine: str, resume: bool, device: str | None = None
) -> None:
    """Refuse what the ranks would refuse, before they are started.

    Raises ValueError for an unknown engine, fewer ranks than 1, more than a batch has rows or than there are GPUs, a
    device that is not there, Muon on parts of matrices, a run that one process has begun, and what `pretrain` says of
    a folder.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown: choose one of {', '.join(ENGINES)}")
    _check_rows(run, count)
    device_of_ranks(device, count)
    if engine == "fsdp" and run.optimizer == "muon":
        raise ValueError("Muon needs whole matrices, and fsdp cuts them: take --optimizer adamw, or --engine ddp")
    begun = to_go_on_from(Checkpoints(Path(folder)), run.about(), resume)
    if begun is not None:
        check_in_parts(begun)


def pretrain_on_ranks(
    command: Sequence[str],
    *,
    count: int = 2,
    restarts: int = 3,
    show: Callable[[str], None] = print,
) -> None:
    """Start `course` with a command, `pretrain` and its options, on several ranks of this machine, and wait for them.

    restarts: how often all go on from the last checkpoint where one has died.
    Raises what `course_lib.parallel.torchrun` raises.
    """
    launch(["-m", "course_lib.cli", *command], ranks=count, restarts=restarts, show=show)


def pretrain_as_rank(
    run: Pretraining,
    folder: Path | str,
    *,
    engine: str = "ddp",
    resume: bool = False,
    keep: int = 2,
    device: str | None = None,
) -> None:
    """What one rank does: its share of a run, as `pretrain` describes it. Rank 0 writes lines about it.

    A run that torchrun has begun goes on by itself where torchrun starts the ranks anew.
    Raises ValueError where the batches have fewer rows than there are ranks, besides what `pretrain` and
    `course_lib.parallel.ranks` raise.
    """
    show = functools.partial(print, flush=True)
    began, steps = time.perf_counter(), 0
    with ranks(device=device) as own_device:
        _check_rows(run, world())
        agents = gathered(_agent())
        goes_on = agreed(resume or _was_begun_by(agents, folder))
        if not goes_on:
            to_go_on_from(Checkpoints(Path(folder)), run.about(), False)  # before the launch is noted
        if rank() == 0:
            write_atomically(Path(folder) / LAUNCH, "\n".join(agents))
        for row in pretrain(run, folder, resume=goes_on, keep=keep, engine=engine, device=own_device.type):
            steps += 1
            if rank() == 0 and (row.step % SHOW_EVERY == 0 or row.step in (1, run.steps)):
                show(f"step {row.step} of {run.steps}, loss {row.loss:.3f}, {row.tokens_per_second:,.0f} tokens/s")
        if rank() == 0:
            show(report(run, folder, steps, time.perf_counter() - began))


def _check_rows(run: Pretraining, count: int) -> None:
    if not 1 <= count <= run.batch_size:
        raise ValueError(f"{count} ranks share batches of {run.batch_size}: start at least 1, and no more than that")


def _was_begun_by(agents: Sequence[str], folder: Path | str) -> bool:
    """Whether one of these has worked at the run already: then it starts the ranks anew, and any other launch is
    refused. Neither the id of a launch tells, which others may have too, nor the number of restarts, which torchrun
    counts on each machine by itself and not where a machine comes or goes."""
    noted = Path(folder) / LAUNCH
    known = noted.read_text("utf-8").splitlines() if noted.is_file() else []
    return not set(known).isdisjoint(agents) and bool(Checkpoints(Path(folder)).steps())


def _agent() -> str:
    """The torchrun that has started this rank, told from all others."""
    parent = psutil.Process(os.getppid())
    return f"{platform.node()} {parent.pid} {parent.create_time():.0f}"
