"""Which exercises are done: read from the learner's own saved copy of a chapter, and from nothing else.

A check prints, behind its verdict, a stamp of the code that it has verified. The notebook keeps that output beside the
code, so the copy alone says how things stand: an exercise is correct where its code is one that a check has stamped.
Code that was edited since carries another stamp, and counts as attempted until it is checked again. Nothing is written.
"""

import ast
import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_lib.lab.folder import CourseFolder

if TYPE_CHECKING:
    from IPython.display import Markdown

CORRECT, ATTEMPTED, OPEN = "correct", "attempted", "open"
MARKS = {CORRECT: "✓", ATTEMPTED: "✗", OPEN: "○"}
HEADING = re.compile(r"^### (?:Exercise|Warm-up)(?: (\d+))?: (.+)$", re.M)
STAMPED = re.compile(r"^✓ .*\[code ([0-9a-f ]+)\]$", re.M)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter: its number there, its title, and its state ("correct", "attempted" or "open")."""

    number: int
    title: str
    state: str


# --- stamps ----------------------------------------------------------------------------------------------------------


def stamp(*functions: Callable[..., Any]) -> str:
    """What stands behind a verdict about these functions, " [code 1b2c3d4e]"; empty where Python knows no source.

    >>> stamp(len)
    ''
    """
    try:
        sources = [textwrap.dedent(inspect.getsource(function)) for function in functions]
        prints = [_fingerprint(function) for source in sources for function in _functions(source).values()]
    except (OSError, TypeError, SyntaxError):
        return ""
    return f" [code {' '.join(prints)}]" if prints else ""


def _functions(source: str) -> dict[str, Function]:
    return {node.name: node for node in ast.parse(source).body if isinstance(node, Function)}


def _fingerprint(function: Function) -> str:
    """Of what a function does: its comments and line breaks may change."""
    return hashlib.sha256(ast.unparse(function).encode()).hexdigest()[:8]


# --- a chapter -------------------------------------------------------------------------------------------------------


def exercises(chapter: Path, copy: Path | None) -> list[Exercise]:
    """The exercises of the notebook `chapter`, each with its state in the learner's `copy`; all are open where there is
    no copy.

    Raises ValueError if the copy is no notebook.
    """
    cells = _cells(copy) if copy and copy.is_file() else []
    written, stamps = _written(cells), _stamps(cells)
    return [
        Exercise(number, title, _state(names, written, stamps) if cells else OPEN)
        for number, (title, names) in enumerate(_handed_out(chapter), 1)
    ]


def _handed_out(chapter: Path) -> Iterator[tuple[str, list[str]]]:
    """Title and names of the functions to write, for each exercise of a chapter as the course hands it out."""
    title = ""
    for cell in _cells(chapter):
        if "exercise" not in cell.get("metadata", {}).get("tags", []):
            continue
        if cell["cell_type"] == "code":
            yield title, list(_functions(_text(cell["source"])))
        elif heading := HEADING.search(_text(cell["source"])):
            title = heading[2]


def _cells(notebook: Path) -> list[dict]:
    try:
        return list(json.loads(notebook.read_text("utf-8"))["cells"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{notebook} is no notebook any more: `course lab --reset {notebook.stem.split('_')[0]}` starts it over "
            "and keeps it beside"
        ) from None


def _written(cells: Sequence[dict]) -> dict[str, Function]:
    """The functions of a notebook by name, the last of each; cells that are no Python (magics) are passed over."""
    found: dict[str, Function] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            try:
                found |= _functions(_text(cell["source"]))
            except SyntaxError:
                continue
    return found


def _stamps(cells: Sequence[dict]) -> set[str]:
    said = ["".join(_text(output.get("text", "")) for output in cell.get("outputs", [])) for cell in cells]
    return {mark for text in said for marks in STAMPED.findall(text) for mark in marks.split()}


def _state(names: Sequence[str], written: dict[str, Function], stamps: set[str]) -> str:
    own = [written.get(name) for name in names]  # None: it is gone, or its cell is no Python now
    if all(function and _fingerprint(function) in stamps for function in own):
        return CORRECT
    return OPEN if all(function and _is_placeholder(function) for function in own) else ATTEMPTED


def _is_placeholder(function: Function) -> bool:
    """Whether the error that an exercise is handed out with still stands in it."""
    raised = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc]
    return any(getattr(getattr(error, "func", error), "id", "") == "NotImplementedError" for error in raised)


def _text(source: str | Sequence[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


# --- told to the learner ---------------------------------------------------------------------------------------------


def progress(chapter: str) -> "Markdown":
    """One line for the top of a chapter: which of its exercises are done, in the copy that this notebook is. Outside of
    the folder of copies, where nobody's work lies, it only names them.

    Raises ValueError for a chapter that is not there.
    """
    from IPython.display import Markdown

    here = Path.cwd()
    is_copy = here.name == "work" and (here.parent / "notebooks").is_dir()
    folder = CourseFolder(here.parent) if is_copy else CourseFolder.here()
    (source,) = folder.chapters([chapter])
    found = exercises(source, here / source.name if is_copy else None)
    if not found:
        return Markdown("This chapter has no exercises.")
    if not is_copy:
        titles = " · ".join(exercise.title for exercise in found)
        return Markdown(
            f"**Exercises of this chapter:** {titles}. In your own copy (`make lab`) this line shows which are done."
        )
    done = sum(exercise.state == CORRECT for exercise in found)
    marked = " · ".join(f"{MARKS[exercise.state]} {exercise.title}" for exercise in found)
    return Markdown(
        f"**Exercises of this chapter:** {marked}. {done} of {len(found)} done, as your copy was last saved; "
        f"{MARKS[ATTEMPTED]} is attempted, {MARKS[OPEN]} is open."
    )


def progress_report(folder: CourseFolder | None = None) -> str:
    """How the exercises of all chapters stand in the learner's copies, chapter by chapter, and what to do next.

    Raises ValueError if a copy is no notebook.
    """
    folder = folder or CourseFolder.here()
    found = {path.stem: exercises(path, folder.work / path.name) for path in folder.chapters()}
    wide = max(map(len, found))
    lines = []
    for name, own in found.items():
        lines.append(f"{name:<{wide}}  {sum(exercise.state == CORRECT for exercise in own)} of {len(own)} done")
        lines += [f"  {MARKS[exercise.state]} {exercise.number} {exercise.title}" for exercise in own]
    explained = ", ".join(f"{mark} {state}" for state, mark in MARKS.items())
    return "\n".join([*lines, "", f"{explained}; as your copies under work/ were last saved.", _next(found)])


def _next(found: dict[str, list[Exercise]]) -> str:
    for name, own in found.items():
        for exercise in own:
            if exercise.state != CORRECT:
                number = name.split("_")[0]
                return f"Next: chapter {number}, exercise {exercise.number}: {exercise.title} (course lab {number})"
    return "All exercises are done."
