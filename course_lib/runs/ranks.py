"""Pre-training on several ranks: how they are started, and what each of them does.

`course pretrain --ranks N` starts N processes of this machine. Each is the same command again, as it is behind torchrun
on several machines, and finds by torchrun's variables that it is a rank.
"""

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from course_lib.checkpoint import Checkpoints
from course_lib.files import write_atomically
from course_lib.parallel import ENGINES, is_restarted, rank, ranks
from course_lib.parallel import torchrun as launch
from course_lib.runs.pretraining import pretrain, report, to_go_on_from
from course_lib.runs.recipes import Pretraining

SHOW_EVERY = 10  # steps between the lines that rank 0 writes
LAUNCH = ".launch"  # a file of a run: which launch of torchrun has begun it or gone on with it


def check(run: Pretraining, folder: Path | str, *, count: int, engine: str, resume: bool) -> None:
    """Refuse what the ranks would refuse, before they are started.

    Raises ValueError for an unknown engine, fewer ranks than 1 or more than a batch has rows, Muon on parts of
    matrices, and what `pretrain` says of a folder.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown: choose one of {', '.join(ENGINES)}")
    if not 1 <= count <= run.batch_size:
        raise ValueError(f"{count} ranks share batches of {run.batch_size}: start at least 1, and no more than that")
    if engine == "fsdp" and run.optimizer == "muon":
        raise ValueError("Muon needs whole matrices, and fsdp cuts them: take --optimizer adamw, or --engine ddp")
    to_go_on_from(Checkpoints(Path(folder)), run.about(), resume)


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

    Raises ValueError where the batches have fewer rows than there are ranks, besides what `pretrain` raises.
    """
    show = functools.partial(print, flush=True)
    began, steps = time.perf_counter(), 0
    with ranks(device=device):
        goes_on = resume or _is_this_launchs(folder)
        if not goes_on:
            to_go_on_from(Checkpoints(Path(folder)), run.about(), False)  # before the launch is noted
        if rank() == 0:
            write_atomically(Path(folder) / LAUNCH, _launch())
        for row in pretrain(run, folder, resume=goes_on, keep=keep, engine=engine, device=device):
            steps += 1
            if rank() == 0 and (row.step % SHOW_EVERY == 0 or row.step in (1, run.steps)):
                show(f"step {row.step} of {run.steps}, loss {row.loss:.3f}, {row.tokens_per_second:,.0f} tokens/s")
        if rank() == 0:
            show(report(run, folder, steps, time.perf_counter() - began))


def _is_this_launchs(folder: Path | str) -> bool:
    """Whether the ranks were started anew, and the run is the one that they were at: another is refused as before."""
    noted = Path(folder) / LAUNCH
    is_noted = noted.is_file() and noted.read_text("utf-8") == _launch()
    return is_restarted() and is_noted and bool(Checkpoints(Path(folder)).steps())


def _launch() -> str:
    return os.environ.get("TORCHELASTIC_RUN_ID", "")
