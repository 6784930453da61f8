"""Working copies of the chapters: made when missing, refreshed while untouched, never overwritten once edited."""

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from course_lib.files import write_atomically
from course_lib.lab.folder import CourseFolder

PAGE_LINK = re.compile(r"\]\(\.\./docs/([\w-]+\.md)")


@dataclass(frozen=True)
class Copy:
    """What happened to one working copy: it is "new", "current", "refreshed", "yours" (edited, so it was kept as it
    is) or "outdated" (edited, and the course has a newer one). `backup` is where a reset put your work."""

    path: Path
    status: str
    backup: Path | None = None


def prepare_copies(
    chapters: Sequence[str] | None = None, *, reset: bool = False, folder: CourseFolder | None = None
) -> list[Copy]:
    """Bring the working copies up to date without touching work of the learner's.

    A copy whose cells were edited is never overwritten; an untouched one follows the course. `reset` starts the named
    `chapters` over, after the edited copy was renamed to a backup. Without `chapters`, all of them and the solutions.

    Raises ValueError for a chapter that is not there, or for a reset that names none.
    """
    folder = folder or CourseFolder.here()
    if reset and not chapters:
        raise ValueError("reset names no chapter: say which to start over, such as `course lab --reset 01`")
    sources = folder.chapters(chapters or ())
    if not chapters:
        sources += sorted((folder.notebooks / "solutions").glob("*.ipynb"))
    manifest = folder.state / "copies.json"
    handed_out = _read_manifest(manifest)
    copies = []
    for source in sources:
        name = source.relative_to(folder.notebooks).as_posix()
        copies.append(_bring_up_to_date(source, folder.work / name, handed_out.get(name), reset))
        if copies[-1].status in ("new", "refreshed"):
            _trust(source, folder)
        if copies[-1].status in ("new", "refreshed", "current"):
            handed_out[name] = _fingerprint(source)
    write_atomically(manifest, json.dumps(handed_out, indent=1))
    _bring_pages(sources, folder)
    return copies


def _bring_pages(sources: Sequence[Path], folder: CourseFolder) -> None:
    """The pages under docs/ that chapters link to, where JupyterLab looks for them: it serves the copies' folder as if
    there were nothing above it, so that ../docs/page.md is docs/page.md there, and ../notebooks/ are the copies."""
    for name in sorted({name for source in sources for name in PAGE_LINK.findall(source.read_text("utf-8"))}):
        page = folder.root / "docs" / name
        if page.is_file():
            write_atomically(folder.work / "docs" / name, page.read_text("utf-8").replace("](../notebooks/", "](../"))


def _read_manifest(path: Path) -> dict[str, str]:
    """What was handed out, by name; nothing where the file is gone or spoilt, so that every copy counts as edited."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return dict(json.loads(path.read_text("utf-8")).items())
    return {}


def _bring_up_to_date(source: Path, copy: Path, handed_out: str | None, reset: bool) -> Copy:
    backup = None
    if copy.exists():
        now, course = _fingerprint(copy), _fingerprint(source)
        untouched = now in (handed_out, course)
        if reset and not untouched:
            backup = write_atomically(_first_free_backup(copy), copy.read_bytes())
        elif not untouched:
            return Copy(copy, "yours" if handed_out == course else "outdated")
        elif now == course and not reset:
            return Copy(copy, "current")
    status = "refreshed" if copy.exists() else "new"
    write_atomically(copy, source.read_bytes())
    return Copy(copy, status, backup)


def _fingerprint(notebook: Path) -> str:
    """Of what a learner writes: the cells' types and sources. Running a notebook or folding a cell is no edit."""
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        written = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    except (ValueError, KeyError, TypeError):
        return "not a notebook"  # equals no course notebook, so it counts as edited and is kept
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()


def _first_free_backup(copy: Path) -> Path:
    number = 1
    while (backup := copy.with_name(f"{copy.stem}.backup-{number}.ipynb")).exists():
        number += 1
    return backup


def _trust(notebook: Path, folder: CourseFolder) -> None:
    """Sign what the course itself hands out: JupyterLab hides HTML in notebooks that it does not trust."""
    import nbformat  # slow to import, and not needed for the commands' help
    from nbformat.sign import NotebookNotary

    data = folder.state / "data"
    data.mkdir(parents=True, exist_ok=True)
    NotebookNotary(data_dir=str(data)).sign(nbformat.read(notebook, as_version=4))
