"""What the executed chapters measure: claims beside measurements, and which cell measured what.

A chapter's cell `claims-table` ends in a table of four columns. Its figures are variables; the cell that measured one
is the last before it that assigned the variable, read from the code.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
CLAIMS, HEADER = "claims-table", ("usually said", "the source", "measured here", "verdict")
HEADING = re.compile(r"^#+ (.*)$", re.M)
MAGIC = re.compile(r"^[%!].*$", re.M)
MUTATORS = {"append", "extend", "update", "add", "setdefault", "insert"}
OWN_SCOPE = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Claim:
    """A row of a chapter's table. cells: names of the cells that measured it, in the chapter's order."""

    said: str
    source: str
    measured: str
    verdict: str
    cells: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, str, str, str]:
        return (self.said, self.source, self.measured, self.verdict)


@dataclass(frozen=True)
class Chapter:
    """A notebook as it stands, with its outputs."""

    path: Path

    @cached_property
    def cells(self) -> list[nbformat.NotebookNode]:
        return nbformat.read(self.path, as_version=4).cells

    @property
    def title(self) -> str:
        return HEADING.search(self.cells[0].source)[1]

    @cached_property
    def code(self) -> dict[str, ast.Module]:
        """{cell's name: its code}, in order."""
        code = {cell.id: MAGIC.sub("", cell.source) for cell in self.cells if cell.cell_type == "code"}
        return {name: ast.parse(source) for name, source in code.items()}

    def section_of(self, name: str) -> str:
        """The heading above a cell."""
        above = ""
        for cell in self.cells:
            if cell.cell_type == "markdown" and (headings := HEADING.findall(cell.source)):
                above = headings[-1]
            if cell.id == name:
                return above
        raise ValueError(f"{self.path.name} has no cell {name!r}")

    def claims(self) -> list[Claim]:
        """The rows of its table, none in a chapter without one.

        Raises ValueError if the table was not executed or has other columns.
        """
        if CLAIMS not in self.code:
            return []
        (header, *rows) = self._table()
        if header[1:] != HEADER[1:]:
            raise ValueError(f"{self.path.name}: the table of claims has the columns {header}, and not {HEADER}")
        nodes = _rows_of(self.code[CLAIMS], len(rows))
        return [Claim(*row, self.measured_by(node)) for row, node in zip(rows, nodes, strict=True)]

    def _table(self) -> list[tuple[str, ...]]:
        cell = next(cell for cell in self.cells if cell.id == CLAIMS)
        for output in cell.outputs:
            words = output.get("data", {}).get("text/markdown", "")
            if words.startswith("|"):
                lines = [tuple(map(str.strip, re.split(r"(?<!\\)\|", line)[1:-1])) for line in words.splitlines()]
                return [line for line in lines if not set("".join(line)) <= set("-")]
        raise ValueError(f"{self.path.name}: {CLAIMS} shows no table; execute the chapter first")

    def measured_by(self, node: ast.AST) -> tuple[str, ...]:
        """The cells that made what this part of the table's cell reads: its variables; where it reads none, the
        functions that it calls."""
        local = {name: made for made in self.code[CLAIMS].body for name in assigned(made) | defined(made)}
        wanted, seen = read(node), set()
        while inside := (wanted & set(local)) - seen:
            seen |= inside
            wanted |= {name for inner in inside for name in read(local[inner])}
        for makes in (assigned, defined):
            made_in = {name: cell for cell in self._measuring_cells() for name in makes(self.code[cell])}
            if found := {made_in[name] for name in wanted - seen if name in made_in}:
                return tuple(name for name in self.code if name in found)
        return ()

    def _measuring_cells(self) -> Iterator[str]:
        for cell in self.cells:
            if cell.id == CLAIMS:
                return
            if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
                yield cell.id


def chapters() -> list[Chapter]:
    return [Chapter(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


def assigned(code: ast.AST) -> set[str]:
    """Variables that code sets, fills or changes, outside of functions; what it imports and defines is none of them.

    >>> sorted(assigned(ast.parse("a, b = 1, [c for c in d]\\nb[0] = 2\\ne.append(3)\\ndef f(): g = 1")))
    ['a', 'b', 'e']
    """
    names = set()
    for node in _outside_of_functions(code):
        target = node
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            target = node.func.value
        elif not _is_stored(node):
            continue
        while isinstance(target, (ast.Subscript, ast.Attribute)):
            target = target.value
        if isinstance(target, ast.Name):
            names.add(target.id)
    return names


def defined(code: ast.AST) -> set[str]:
    """Functions that code defines, outside of others."""
    return {node.name for node in [code, *ast.iter_child_nodes(code)] if isinstance(node, ast.FunctionDef)}


def read(code: ast.AST) -> set[str]:
    """Names that code reads, less those that it binds itself, in functions and comprehensions."""
    inner = [node for node in ast.walk(code) if isinstance(node, (*OWN_SCOPE, ast.comprehension))]
    bound = {node.id for part in inner for node in ast.walk(part) if isinstance(node, ast.Name) and _is_stored(node)}
    bound |= {node.arg for node in ast.walk(code) if isinstance(node, ast.arg)}
    return {node.id for node in ast.walk(code) if isinstance(node, ast.Name) and not _is_stored(node)} - bound


def _is_stored(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store)


def _outside_of_functions(code: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(code, OWN_SCOPE):
        yield code
        for child in ast.iter_child_nodes(code):
            yield from _outside_of_functions(child)


def _rows_of(code: ast.Module, count: int) -> list[ast.AST]:
    """What each row reads: its own part of the list of rows, or all of the cell where rows are not written out."""
    for node in ast.walk(code):
        if isinstance(node, ast.List) and len(node.elts) == count and all(isinstance(e, ast.List) for e in node.elts):
            return [ast.Tuple(row.elts[2:], ast.Load()) for row in node.elts]
    return [code] * count
