"""Pre-training on several ranks: how they are started, and what each of them does.

`course pretrain --ranks N` starts N processes of this machine. Each is the same command again, as it is behind torchrun
on several machines, and finds by torchrun's variables that it is a rank.
"""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from course_lib.checkpoint import Checkpoints
from course_lib.parallel import ENGINES, is_restarted, rank, ranks
from course_lib.parallel import torchrun as launch
from course_lib.runs.pretraining import pretrain, report
from course_lib.runs.recipes import Pretraining

SHOW_EVERY = 10  # steps between the lines that rank 0 writes


def check(run: Pretraining, folder: Path | str, *, count: int, engine: str, resume: bool) -> None:
    """Refuse what the ranks would refuse, before they are started.

    Raises ValueError for an unknown engine, more ranks than a batch has rows, Muon on parts of matrices, and a folder
    that holds a run where none is to be resumed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown: choose one of {', '.join(ENGINES)}")
    if count > run.batch_size:
        raise ValueError(f"{count} ranks share batches of {run.batch_size}: start fewer, or raise the batch size")
    if engine == "fsdp" and run.optimizer == "muon":
        raise ValueError("Muon needs whole matrices, and fsdp cuts them: take --optimizer adamw, or --engine ddp")
    if Checkpoints(Path(folder)).steps() and not resume:
        raise ValueError(f"{folder} holds a run already: resume it, or choose another folder")


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
    run: Pretraining, folder: Path | str, *, engine: str = "ddp", resume: bool = False, keep: int = 2
) -> None:
    """What one rank does: its share of a run, as `pretrain` describes it. Rank 0 writes lines about it.

    Raises ValueError where the batches have fewer rows than there are ranks, besides what `pretrain` raises.
    """
    show = functools.partial(print, flush=True)
    began, steps = time.perf_counter(), 0
    with ranks():
        goes_on = resume or (is_restarted() and bool(Checkpoints(Path(folder)).steps()))
        for row in pretrain(run, folder, resume=goes_on, keep=keep, engine=engine):
            steps += 1
            if rank() == 0 and (row.step % SHOW_EVERY == 0 or row.step in (1, run.steps)):
                show(f"step {row.step} of {run.steps}, loss {row.loss:.3f}, {row.tokens_per_second:,.0f} tokens/s")
        if rank() == 0:
            show(report(run, folder, steps, time.perf_counter() - began))
