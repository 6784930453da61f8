"""Two decisions behind the course's own models, each as a pair of short runs that differ in nothing else."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from course_lib.data import RECORDS_FOLDER
from course_lib.records import Record
from course_lib.runs.pretraining import pretrain
from course_lib.runs.recipes import RECIPES, Pretraining

SHORT = {"tokens": 1_500_000, "warmup": 100, "rungs": (), "probe": False, "save_every": 50}


def variants() -> dict[str, Pretraining]:
    """Rotary or learned positions in a masked encoder; Muon or AdamW for a causal decoder."""
    encoder, decoder = (RECIPES[name].with_(**SHORT) for name in ("encoder", "decoder"))
    return {
        "rotary positions": encoder.with_(optimizer="adamw"),
        "learned positions": encoder.with_(optimizer="adamw", config=encoder.config.with_(positions="learned")),
        "Muon": decoder,
        "AdamW": decoder.with_(optimizer="adamw"),
    }


def record_variants(*, path: Path = RECORDS_FOLDER / "variants.jsonl", progress: Callable[[str], None] = print) -> Path:
    """Held-out loss of each variant along its run; goes on with the variant at which it was stopped."""
    plans = variants()
    about = {"variants": {name: asdict(run) for name, run in plans.items()}}
    record = Record(path, command="course record variants", about=about)
    for name, run in plans.items():
        if record.has(name=name, seed=run.seed, step=run.steps, metric="held_out"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            for row in pretrain(run.with_(name=name), folder, keep=1):
                if row.held_out is not None:
                    progress(f"{name}: step {row.step} of {run.steps}, held-out loss {row.held_out:.3f}")
            for step, loss in Record(Path(folder) / "record.jsonl").values("held_out", name=name):
                record.add(name=name, seed=run.seed, step=step, metric="held_out", value=loss)
    return path
