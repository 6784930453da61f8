"""Two ranks: our step beside a bare DDP loop, our launcher beside plain torchrun, and the bytes that FSDP2 keeps on
each rank beside those that the planner foretells.

The loops take turns step by step on the same model and batches, each rank on one thread; the launchers take turns too.
A launch lasts from the call to the first line of a rank that has joined the others by gloo.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from course_lib.architectures import dimensions_of
from course_lib.losses import token_loss
from course_lib.objectives import Batch
from course_lib.optimizers import make_optimizer
from course_lib.parallel import gathered, leave, make_engine, rank, ranks, torchrun, world
from course_lib.peft import Full
from course_lib.planner import Plan
from course_lib.runs import RECIPES, Pretraining
from course_lib.runtime import bytes_here
from course_lib.training import step, train

RUN = RECIPES["decoder"].with_(optimizer="adamw")
SKIPPED, TURNS, LAUNCHES = 3, 24, 3
JOINED = "joined"


# ---------------------------------------------------------------- on each rank


def in_turns(run: Pretraining, rows: object) -> list[list[float]]:
    """Seconds of each step of our loop and of the bare one, data preparation included."""
    model = run.model()
    steps = {"steps": SKIPPED + TURNS, "rate": 1e-3, "dtype": torch.float32}
    ours = train(model, run.dataset(rows), engine=make_engine("ddp", model), **steps)
    loops, seconds = (ours, bare(run, rows)), ([], [])
    for number in range(SKIPPED + TURNS):
        for loop, found in list(zip(loops, seconds, strict=True))[:: 1 if number % 2 else -1]:
            distributed.barrier()
            began = time.perf_counter()
            next(loop)
            found.append(time.perf_counter() - began)
    return [found[SKIPPED:] for found in seconds]


class TargetLogits(nn.Module):
    """What DDP listens to in the bare loop."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model.target_logits(batch)


def bare(run: Pretraining, rows: object) -> Iterator[None]:
    """DDP in the fewest lines: the mean of the ranks' means, and a loss that no other rank has heard of."""
    model, dataset = run.model(), run.dataset(rows)
    model.train()
    listening, optimizer = DistributedDataParallel(TargetLogits(model)), make_optimizer(model)
    for batch in dataset:
        mine = batch.rows(slice(rank(), None, world()))
        total, count = token_loss(listening(mine), mine.labels_BL[mine.is_target_BL])
        (total / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        optimizer.zero_grad()
        total.item()
        yield


def bytes_kept(run: Pretraining, rows: object) -> dict[str, list[int]]:
    """{part: bytes on each rank} under FSDP2 after the gradients of a step, and after a step."""
    model = run.model()
    engine = make_engine("fsdp", model)
    optimizer = make_optimizer(model)
    with engine.accumulating(model, is_last=True):
        engine.loss(model, engine.share(run.dataset(rows).batch(0))).backward()
    found = {"weights": bytes_here(model.parameters()), "gradients": bytes_here(p.grad for p in model.parameters())}
    step(model, optimizer, [run.dataset(rows).batch(0)], rate=1e-3, dtype=torch.float32, engine=engine)
    found["optimizer"] = bytes_here(tensor for state in optimizer.state.values() for tensor in state.values())
    return {part: gathered(size) for part, size in found.items()}


def as_rank(what: str) -> None:
    if what == "join":
        with ranks(device="cpu"):
            distributed.barrier()
            print(JOINED)
    elif what == "join_bare":
        distributed.init_process_group("gloo")
        distributed.barrier()
        print(JOINED, flush=True)
        distributed.destroy_process_group()
    else:
        torch.set_num_threads(1)
        rows, _ = RUN.rows()
        with ranks(device="cpu"):
            found = {"seconds": in_turns(RUN, rows), "bytes": bytes_kept(RUN, rows)}
            if rank() == 0:
                print(json.dumps(found))


# ---------------------------------------------------------------- beside each other


def seconds_to_join() -> float:
    """Of our launcher, until the first rank has joined."""
    began, heard = time.perf_counter(), []
    torchrun([__file__, "join"], show=lambda line: heard.append(time.perf_counter()) if line == JOINED else None)
    return heard[0] - began


def seconds_to_join_bare() -> float:
    """Of plain torchrun."""
    began, heard = time.perf_counter(), []
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with subprocess.Popen(
        [*command, __file__, "join_bare"], stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        for line in process.stdout:
            if line.startswith(JOINED):  # behind which that of the other rank may stand
                heard.append(time.perf_counter())
    return heard[0] - began


def launches() -> tuple[list[float], list[float]]:
    """Seconds of ours and of plain torchrun, in turns."""
    ours, plain = [], []
    for _ in range(LAUNCHES):
        ours.append(seconds_to_join())
        plain.append(seconds_to_join_bare())
    return ours, plain


def measured() -> dict:
    """What the ranks have found."""
    lines = []
    torchrun([__file__, "measure"], show=lines.append)
    return json.loads(next(line for line in lines if line.startswith("{")))


def planned() -> dict[str, float]:
    """{part: bytes on each of two ranks}, as the planner has it."""
    plan = Plan(
        dimensions_of(RUN.model()), Full(), "fp32", RUN.batch_size // 2, RUN.row_length, devices=2, engine="fsdp"
    )
    memory = plan.memory()
    return {part: getattr(memory, part) for part in ("weights", "gradients", "optimizer")}


def _row(name: str, value: float, wanted: str) -> None:
    print(f"{name:<58} {value:>8.3f}   {wanted}")


def main() -> None:
    found, wanted = measured(), planned()
    ours, by_hand = (statistics.median(seconds) for seconds in found["seconds"])
    print(f"a step of {RUN.tokens_per_step:,} tokens on 2 ranks: ours {ours:.3f} s, bare {by_hand:.3f} s")
    print(f"{'ratio':<58} {'':>8}   wanted")
    _row("a step on 2 ranks with DDP, ours over a bare loop", ours / by_hand, "at most 1.05")
    for part, sizes in found["bytes"].items():
        print(f"{part}: {' and '.join(f'{size:,}' for size in sizes)} bytes, planned {wanted[part]:,.0f}")
        _row(f"{part} of a rank under FSDP2, measured over planned", max(sizes) / wanted[part], "0.95 to 1.05")
    started, plain = (statistics.median(seconds) for seconds in launches())
    print(f"from the call to the first line of a joined rank: ours {started:.1f} s, plain torchrun {plain:.1f} s")
    _row("seconds to start 2 ranks, ours over plain torchrun", started / plain, "at most 1.5")
    _row("seconds to start 2 ranks", started, "under 12")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        as_rank(sys.argv[1])
        leave()
    main()
