"""Run by torchrun: pre-training runs on ranks.

pretraining.py sittings FOLDER TEXT        undisturbed runs, and runs that rank 1 alone stops and all go on with
pretraining.py whole FOLDER TEXT ENGINE STEPS    one run, as `course pretrain` has it, slow enough to be killed; which
                                           rows of the data each rank takes is noted in FOLDER.rows_R
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from course_lib import runs
from course_lib.data import PretrainingDataset
from course_lib.parallel import engines, leave, rank, ranks
from course_lib.runs.pretraining import pretrain
from course_lib.runs.ranks import pretrain_as_rank

STOP_AT = 7
SITTINGS = {  # name: (engine of the first sitting, that of the second, which is None where there is one sitting)
    "ddp": ("ddp", None),
    "fsdp": ("fsdp", None),
    "ddp_ddp": ("ddp", "ddp"),
    "fsdp_fsdp": ("fsdp", "fsdp"),
    "ddp_fsdp": ("ddp", "fsdp"),
}


def tiny(text, steps=20, **changes):
    small = {"batch_size": 4, "row_length": 64, "width": 32, "layers": 2, "save_every": 5, "optimizer": "adamw"}
    small |= {"rungs": (), "dropout": 0.1, "dtype": "float32"}
    settings = small | {"tokens": 64 * 4 * steps, "text": str(text)} | changes
    return runs.recipe("decoder", **settings)


def sit(run, folder, engine, *, stop_at=None, resume=False):
    """The rows of one sitting, which rank 1 stops."""
    torch.manual_seed(1000 + os.getpid())  # global generators are where no other process has them
    seen = []
    is_time = lambda: rank() == 1 and seen[-1].step == stop_at
    for row in pretrain(run, folder, resume=resume, engine=engine, should_stop=is_time):
        seen.append(row)
    return [[row.step, row.tokens, row.loss, row.gradient_norm, row.held_out] for row in seen]


def sittings(folder, text):
    found, draws = {}, {}
    for name, (first, second) in SITTINGS.items():
        rows = [sit(tiny(text), folder / name, first, stop_at=STOP_AT if second else None)]
        if second:
            rows.append(sit(tiny(text), folder / name, second, resume=True))
        found[name] = rows
        found[f"{name} is there"] = (folder / name / "model" / "model.safetensors").exists()
        draws[name] = torch.rand(1).item()  # behind what dropout has drawn in the last step
    found["dry"] = [sit(tiny(text, dropout=0.0, warmup=0), folder / "dry", "ddp")]
    (folder / f"sittings_{rank()}.json").write_text(json.dumps(found))
    (folder / f"draws_{rank()}.json").write_text(json.dumps(draws))


def note_rows(path):
    """Note which rows each batch has, and which of them this rank takes when it trains."""
    batch, share, last = PretrainingDataset.batch, engines._Engine.share, {}

    def noted_batch(self, number):
        last.update(number=number, rows=self.rows(number).tolist(), batch=batch(self, number))
        time.sleep(0.05)
        return last["batch"]

    def noted_share(self, whole):
        mine = share(self, whole)
        if whole is last["batch"] and self.model.training:
            texts = whole.input_ids_BT.tolist()
            taken = [last["rows"][texts.index(row)] for row in mine.input_ids_BT.tolist()]
            attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
            line = {"attempt": attempt, "rank": self.rank, "number": last["number"], "rows": taken, "of": last["rows"]}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return mine

    PretrainingDataset.batch, engines._Engine.share = noted_batch, noted_share


def main():
    torch.set_num_threads(1)
    what, folder, text = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if what == "sittings":
        with ranks():
            sittings(folder, text)
    else:
        note_rows(Path(f"{folder}.rows_{os.environ['RANK']}"))
        pretrain_as_rank(tiny(text, int(sys.argv[5])), folder, engine=sys.argv[4])


if __name__ == "__main__":
    main()
    leave()
