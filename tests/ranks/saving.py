"""Run by torchrun: checkpoints that ranks write together, and runs that go on from them.

saving.py save FOLDER         train 10 steps, write a checkpoint, go on to step 15; for each of WRITTEN
saving.py go_on FOLDER        go on from each of them to step 15, with each engine
saving.py trouble FOLDER      what is damaged, foreign or missing
"""

import contextlib
import errno
import json
import math
import shutil
import sys
import warnings
from pathlib import Path
from unittest import mock

import torch
from ranks import scenes

from course_lib.checkpoint import Checkpoints
from course_lib.files import write_atomically
from course_lib.parallel import SharedCheckpoints, leave, make_engine, rank, ranks, whole_weights, world

WRITTEN = {
    "ddp_adamw": scenes.Case("ddp"),
    "fsdp_adamw": scenes.Case("fsdp"),
    "ddp_muon": scenes.Case("ddp", optimizer="muon"),
}
AT, MORE = scenes.STEPS, 5


def beginning(case, kind):
    """(model, optimiser, engine) before the first step, of weights that no other rank and no checkpoint has."""
    model = scenes.model(case.objective, case.dtype, seed=50 + rank())
    engine = make_engine(kind, model)
    return model, scenes.optimizer(case.optimizer, model), engine


def keep(folder, name, model):
    weights = whole_weights(model)
    if rank() == 0:
        torch.save(weights, folder / f"{name}.pt")


def save(folder):
    for name, case in WRITTEN.items():
        model, optimizer, engine = beginning(case, case.kind)
        checkpoints = SharedCheckpoints(folder / name)
        scenes.trained(case, model, optimizer, engine, steps=5)
        checkpoints.save_together(5, model, optimizer, {"tokens": 5}, about={"case": name})
        scenes.trained(case, model, optimizer, engine, start=5, steps=AT - 5)
        path = checkpoints.save_together(AT, model, optimizer, {"tokens": 10}, about={"case": name}, score=3.0)
        assert path == folder / name / f"step_{AT}" and path.is_dir()
        keep(folder, f"{name}_{AT}", model)
        scenes.trained(case, model, optimizer, engine, start=AT, steps=MORE)
        keep(folder, f"{name}_end", model)
    for is_saved in (False, True):
        model, optimizer, engine = beginning(scenes.Case("ddp"), "ddp")
        if is_saved:
            SharedCheckpoints(folder / "first").save_together(0, model, optimizer, {}, about={})
        scenes.trained(scenes.Case("ddp"), model, optimizer, engine, steps=5)
        keep(folder, f"first_{is_saved}", model)


def go_on(folder):
    for name, case in WRITTEN.items():
        for kind in ("ddp", "fsdp"):
            if (kind, case.optimizer) == ("fsdp", "muon"):
                continue
            for forgotten in ("nothing", "optimizer"):
                model, optimizer, engine = beginning(case, kind)
                checkpoints = SharedCheckpoints(folder / name)
                begun = checkpoints.latest()
                assert (begun.step, begun.state["tokens"], begun.about, begun.score) == (AT, 10, {"case": name}, 3.0)
                checkpoints.restore(begun, model, optimizer)
                if forgotten == "optimizer":
                    optimizer = scenes.optimizer(case.optimizer, model)
                scenes.trained(case, model, optimizer, engine, start=AT, steps=MORE)
                keep(folder, f"{name}_to_{kind}_{world()}_without_{forgotten}", model)


def words_of(call) -> str:
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = call()
    except ValueError as error:
        return f"refused: {error}"
    return f"step {found.step}; " + "; ".join(str(warning.message) for warning in said)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    write_atomically(path, bytes(content))


def trouble(folder):
    found, case = {}, WRITTEN["fsdp_adamw"]
    damaged = folder / "damaged"
    if rank() == 0:
        shutil.copytree(folder / "fsdp_adamw", damaged)
        part = sorted((damaged / f"step_{AT}").glob("__1_*.distcp"))[0]  # what rank 1 has written
        flip(part, part.stat().st_size // 2)
        Checkpoints(folder / "of_one").save(1, {"model.safetensors": b""}, {"tokens": 1}, about={})
    torch.distributed.barrier()
    checkpoints = SharedCheckpoints(damaged)
    found["damaged"] = words_of(checkpoints.latest)
    found["asked for"] = words_of(lambda: checkpoints.load(AT))
    found["best"] = words_of(checkpoints.best)
    model, optimizer, engine = beginning(case, "fsdp")
    checkpoints.restore(checkpoints.load(5), model, optimizer)
    scenes.trained(case, model, optimizer, engine, start=5, steps=AT - 5)
    keep(folder, "damaged_on", model)
    of_one = SharedCheckpoints(folder / "of_one")
    found["of one"] = words_of(lambda: of_one.restore(of_one.latest(), model, optimizer))
    found["none"] = words_of(SharedCheckpoints(folder / "nowhere").latest)
    found |= what_is_not_saved(folder, model, optimizer)
    (folder / f"trouble_{rank()}.json").write_text(json.dumps(found))


def what_is_not_saved(folder, model, optimizer):
    """How each rank hears of it, and that the next checkpoint is written all the same."""

    def attempt(score=1.0, **about):
        try:
            checkpoints.save_together(2, model, optimizer, {}, about=about, score=score)
        except (ValueError, TypeError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return "saved"

    checkpoints = SharedCheckpoints(folder / "unsaved")
    no_room = OSError(errno.ENOSPC, "No space left on device")
    found = {"no score": attempt(math.nan), "no JSON": attempt(rate=torch.ones(1))}
    of_rank_1 = mock.patch("torch.distributed.checkpoint.FileSystemWriter.write_data", side_effect=no_room)
    with of_rank_1 if rank() == 1 else contextlib.nullcontext():
        found["full for rank 1"] = attempt()
    with mock.patch("course_lib.checkpoint.sha256_of", side_effect=no_room):  # behind the parts, on rank 0 alone
        found["full in the end"] = attempt()
    found["left"] = [str(path) for path in (folder / "unsaved").rglob("*")]
    return found | {"then": attempt()}


def main():
    torch.set_num_threads(1)
    with ranks():
        for what in sys.argv[1].split(","):
            {"save": save, "go_on": go_on, "trouble": trouble}[what](Path(sys.argv[2]))


if __name__ == "__main__":
    main()
    leave()
