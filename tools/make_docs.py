"""Write what the pages under docs/ say of the code and of the chapters: `python tools/make_docs.py`

    docs/architecture.md    the rooms of the library and who stands on whom, from the imports and the docstrings
    docs/pictures/architecture.svg    the same as a picture
    docs/claims.md          what is usually said and what the course measures, from the executed chapters
    docs/glossary.md        where each term is met, from the chapters' sources

Prose is written by hand. Between `<!-- name: written by tools/make_docs.py -->` and `<!-- end of name -->` stands what
this script writes; links to the code and the lines "Met in" are its own as well.
"""

import html
import importlib
import inspect
import io
import os
import re
import sys
from pathlib import Path

import chapters
import glossary
import matplotlib
from architecture_picture import draw_architecture
from library_map import LAYER_OF, direct, modules_of, purpose_of, rooms_of

from course_lib.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GLOSSARY = DOCS / "glossary.md"
PICTURE = DOCS / "pictures" / "architecture.svg"
BLOCK = re.compile(r"(<!-- (\w+): written by tools/make_docs\.py -->\n).*?(<!-- end of \2 -->)", re.S)
CODE_LINK = re.compile(r"\[`([\w.]+)`\]\(\.\./course_lib[^)]*\)")


def page(path: Path) -> str:
    """What a page should say."""
    wanted = rewritten(path.read_text("utf-8"))
    return glossary.rewritten(wanted) if path == GLOSSARY else wanted


def rewritten(text: str) -> str:
    """A page's text with its blocks, and its links to the code, as they should be.

    Raises ValueError for a block that nothing writes, AttributeError or ModuleNotFoundError for a name that is gone.
    """
    text = BLOCK.sub(lambda match: match[1] + BLOCKS[match[2]]() + match[3], text)
    return CODE_LINK.sub(lambda match: f"[`{match[1]}`]({source_of(match[1])})", text)


def found(name: str) -> object:
    """What a dotted name below course_lib stands for.

    Raises ModuleNotFoundError or AttributeError if it stands for nothing any more.
    """
    module, rest = name, []
    while module not in modules_of() and module:
        module, _, last = module.rpartition(".")
        rest.insert(0, last)
    thing = importlib.import_module(f"course_lib.{module}".rstrip("."))
    for part in rest:
        thing = getattr(thing, part)
    return thing


def source_of(name: str) -> str:
    """The file or package that a dotted name is defined in, as a link from docs/."""
    file = modules_of().get(name) or Path(inspect.getsourcefile(inspect.unwrap(found(name))))
    return Path(os.path.relpath(file.parent if file.name == "__init__.py" else file, DOCS)).as_posix()


# --- architecture ----------------------------------------------------------------------------------------------------


def picture_block() -> str:
    words = "The rooms of the library in their layers, joined by arrows. The table of rooms says the same in words."
    return f"![{words}]({PICTURE.relative_to(DOCS).as_posix()})\n"


def arrows_in_words() -> str:
    """Every arrow of the picture, which holds this as its description."""
    arrows = [f"{room} on {', '.join(sorted(others))}" for room, others in direct(rooms_of()).items() if others]
    return "Rooms of the library, from the bottom up, each standing on others: " + "; ".join(arrows) + "."


def rooms_block() -> str:
    """A table of the rooms, and folded below it every file of every package."""
    lines = ["| layer | room | what it is for | stands on |", "|---|---|---|---|"]
    for room, others in sorted(direct(rooms_of()).items(), key=lambda pair: (-LAYER_OF[pair[0]], pair[0])):
        below = ", ".join(f"`{other}`" for other in sorted(others))
        lines.append(f"| {LAYER_OF[room]} | [`{room}`]({source_of(room)}) | {purpose_of(room)} | {below} |")
    lines += ["", "<details><summary>The files of each package</summary>", ""]
    lines += [f"- [`{name}`]({source_of(name)}): {purpose_of(name)}" for name in sorted(modules_of()) if "." in name]
    return "\n".join([*lines, "", "</details>", ""])


def write_picture() -> None:
    """Draw the picture. Its description tells whether it is up to date: no two versions of matplotlib draw alike."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "course", "svg.fonttype": "path"}):
        metadata = {"Date": None, "Description": arrows_in_words()}
        draw_architecture(rooms_of()).savefig(buffer, format="svg", metadata=metadata)
    write_atomically(PICTURE, buffer.getvalue())


def picture_is_current() -> bool:
    return PICTURE.is_file() and html.escape(arrows_in_words(), quote=False) in PICTURE.read_text("utf-8")


# --- claims ----------------------------------------------------------------------------------------------------------


def claims_block() -> str:
    """A table for each chapter that has one."""
    lines = []
    for chapter in chapters.chapters():
        rows = [(*claim.columns, _where(chapter, claim)) for claim in chapter.claims()]
        if rows:
            lines += [f"## [{chapter.title}](../notebooks/{chapter.path.name})", ""]
            lines += [f"| {' | '.join(row)} |" for row in [(*chapters.HEADER, "by cell"), ["---"] * 5, *rows]] + [""]
    return "\n".join(lines)


def _where(chapter: chapters.Chapter, claim: chapters.Claim) -> str:
    """The cells, each section's under its heading."""
    sections = {}
    for cell in claim.cells:
        sections.setdefault(chapter.section_of(cell), []).append(f"`{cell}`")
    return "; ".join(f"{section}: {', '.join(cells)}" for section, cells in sections.items())


BLOCKS = {"picture": picture_block, "rooms": rooms_block, "claims": claims_block}


def main() -> int:
    if not picture_is_current():
        write_picture()
        print(f"wrote {PICTURE}")
    for path in sorted(DOCS.glob("*.md")):
        if (wanted := page(path)) != path.read_text("utf-8"):
            write_atomically(path, wanted)
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
