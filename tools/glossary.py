"""The glossary: what terms mean is written by hand in docs/glossary.md, and where each is met is looked up here."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import build_notebooks

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
ENTRY = re.compile(r"^### (.+)\n\n((?:(?!Met in )[^#\n].*\n)+)(?:Met in .*\n)?", re.M)
ALSO = re.compile(r"\*Also: (.+)\.\*")
WORDS_CELL = "Words used below"


@dataclass(frozen=True)
class Entry:
    """A term of the page. names: what it is called, its heading first."""

    term: str
    words: str

    @property
    def names(self) -> list[str]:
        also = ALSO.search(" ".join(self.words.split()))
        return [self.term, *(also[1].split(", ") if also else [])]

    @property
    def pattern(self) -> str:
        """Any of its names in prose, in the plural too."""
        return r"\b(?:" + "|".join(re.escape(name).replace(r"\ ", r"[\s-]") for name in self.names) + r")(?:s|es)?\b"


def entries(page: str) -> list[Entry]:
    return [Entry(term, words) for term, words in ENTRY.findall(page)]


def rewritten(page: str) -> str:
    """The page with a line below each entry that says where the term is met.

    Raises ValueError for a term that no chapter uses.
    """
    return ENTRY.sub(lambda match: f"### {match[1]}\n\n{match[2]}{_met_in(Entry(match[1], match[2]))}\n", page)


@cache
def prose() -> list[tuple[Path, str, str]]:
    """(chapter, cell's name, text) of each cell, in order: what is written as prose first, then what code writes."""
    cells = [(ch.source, cell) for ch in build_notebooks.chapters_in(NOTEBOOKS) for cell in _cells(ch.source)]
    cells.sort(key=lambda pair: pair[1].cell_type != "markdown")  # a stable sort
    return [(source, cell.id, " ".join(cell.source.split())) for source, cell in cells]


@cache
def _cells(source: Path) -> list:
    return build_notebooks.read_cells(source)


def defined_in(text: str) -> list[str]:
    """The terms that a chapter's list of words explains: what it prints in bold.

    >>> defined_in("**Frozen features, probe**: a model's. **Autocast**, or mixed precision")
    ['Frozen features', 'probe', 'Autocast']
    """
    return [term.strip(" .:") for bold in re.findall(r"\*\*(.+?)\*\*", text) for term in re.split(r",| or ", bold)]


def _met_in(entry: Entry) -> str:
    """The cell that is called by a term, prints it in bold, or explains it in a list of words; else the first to use
    it."""
    names = {name.casefold() for name in entry.names}
    ways = (
        lambda cell, text: cell.replace("-", " ") in names,
        lambda cell, text: WORDS_CELL not in text and re.search(rf"\*\*{entry.pattern}[.:]?\*\*", text, re.I),
        lambda cell, text: WORDS_CELL in text and names & {term.casefold() for term in defined_in(text)},
        lambda cell, text: re.search(entry.pattern, text, re.I),
    )
    for is_met in ways:
        for source, cell, text in prose():
            if is_met(cell, text):
                title = re.search(r"^# (.+)$", _cells(source)[0].source, re.M)[1]
                return f"Met in [{title}](../notebooks/{source.stem}.ipynb), cell `{cell}`."
    raise ValueError(f"no chapter uses {entry.term!r}: take it out of the glossary, or use it")
