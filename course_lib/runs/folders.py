"""What the folder of a run holds: of which kind the run is, and whether it has come to its end."""

from pathlib import Path

from course_lib.files import not_there
from course_lib.runs.finetuning.tuned import SETTINGS
from course_lib.weights import read_settings

PRETRAINING = "pretraining"  # the other kinds are those of what is fine-tuned on


def kind_of(folder: Path | str) -> str:
    """ "pretraining", "classification" or "instructions": what `course pretrain` or `course finetune` has made of it.

    Raises FileNotFoundError for a folder that is not there or holds no run, ValueError for a run that is not finished.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise not_there(folder)
    if (folder / SETTINGS).is_file():
        return read_settings(folder / SETTINGS).get("kind", "")
    if (folder / "record.jsonl").is_file() or any(folder.glob("step_*")):
        if not (folder / "model" / "config.json").is_file():
            raise ValueError(f"{folder} holds a run that is not finished: go on with `course pretrain ... --resume`")
        return PRETRAINING
    if (folder / "metrics.json").is_file() or (folder / "report.md").is_file():
        raise ValueError(f"{folder} holds a run that was cut off while it was saved: fine-tune again, elsewhere")
    raise FileNotFoundError(f"{folder} holds no run: name what --out named for `course pretrain` or `course finetune`")
