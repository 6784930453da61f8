"""A chapter's bug clinic as names: its code is the chapter's own, run on less text."""

import linecache
from pathlib import Path

import jupytext

SOURCES = Path(__file__).parent.parent / "notebooks" / "src"


def clinic_of(chapter, prepare):
    """The names that the clinic's cells of a chapter define, run after its imports and `prepare(names)`, which gives
    what the chapter's earlier cells would have."""
    cells, names = jupytext.read(SOURCES / f"{chapter}.py").cells, {}
    exec(next(cell.source for cell in cells if cell.metadata.get("name") == "setup"), names)
    names |= prepare(names)
    for cell in cells:
        if "clinic" in cell.metadata.get("tags", []):
            name = f"<{chapter}, {cell.metadata['name']}>"  # where `inspect` finds the source of its functions
            linecache.cache[name] = (len(cell.source), None, cell.source.splitlines(keepends=True), name)
            exec(compile(cell.source, name, "exec"), names)
    return names
