"""A finished run as one page of HTML: nothing on it was typed by hand, and nothing is loaded from elsewhere."""

from pathlib import Path

from course_lib.files import write_atomically
from course_lib.runs.folders import PRETRAINING, kind_of
from course_lib.runs.pages.elements import page
from course_lib.runs.pages.finetuned import finetuned_sections
from course_lib.runs.pages.pretrained import pretrained_sections


def write_page(folder: Path | str, out: Path | str | None = None) -> Path:
    """Write the page of what `course pretrain` or `course finetune` has left in a folder: what was run, on what, what
    came of it, how it errs or writes, and how to use it. All of it is computed from the files of the folder; where one
    says less than it might, the page says so.

    out: the file (default: report.html in the folder). Returns where it stands.
    Raises ValueError for a run that is not finished or whose files are damaged, or an `out` that is a folder;
    FileNotFoundError for a folder that is not there or holds no run, or lacks a file of its run.
    """
    folder = Path(folder)
    out = folder / "report.html" if out is None else Path(out)
    kind = kind_of(folder)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file for the page, such as {out / 'report.html'}")
    title, sections = (pretrained_sections if kind == PRETRAINING else finetuned_sections)(folder)
    return write_atomically(out, page(title, sections))
