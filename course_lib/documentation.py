"""The documentation of the Python packages installed beside the course: real text that every reader has offline, and
that is far from film reviews. It is read from the installed sources, none of which is imported or run."""

import ast
import gc
import importlib.util
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path

from course_lib.data import Review

PYTHON = "python"  # its standard library
PACKAGES = (PYTHON, "numpy", "scipy", "sklearn", "matplotlib", "torch")
CHARACTERS = 500_000  # of each package, at most
SHORTEST = 80  # characters: below that a docstring is a heading
NOT_ITS_OWN = {"site-packages", "dist-packages", "_vendor", "externals", "tests", "test", "testing", "idle_test"}
# what a text calls the package that it comes from, or one that is often imported beside it
NAMES = re.compile(
    r"\b(numpy|np|ndarrays?|scipy|sklearn|scikit[- ]learn|matplotlib|pyplot|plt|mpl|axes|pytorch|torch|tensors?"
    r"|python)\b",
    re.IGNORECASE,
)


def documentation(packages: Iterable[str] = PACKAGES, characters: int = CHARACTERS) -> list[Review]:
    """Docstrings of installed packages, each distinct text once, its `source` the package and without a label.

    characters: of each package, at most; which of its files are read goes by a hash of their names, so that a part of a
    package is a fair sample of it. Takes a few seconds, once in a process.
    Raises ValueError for a package that is not installed, that has no sources in Python, or fewer than 1 character.

    >>> texts = documentation(["numpy"], 10_000)
    >>> {text.source for text in texts}
    {'numpy'}
    """
    if characters < 1:
        raise ValueError(f"characters is {characters}: read at least 1 of each package")
    texts = (text for package in packages for text in _documentation_of(package, characters))
    return list({text.identity: text for text in texts}.values())


def without_names(text: str) -> str:
    """The text with the names of the packages, and what everybody calls their main things, taken out.

    >>> without_names("A torch.Tensor, as in NumPy")
    'A it.it, as in it'
    """
    return NAMES.sub("it", text)


def docstrings(source: str | bytes) -> Iterator[str]:
    """Every docstring of a file in Python: of the module, its classes and its functions, on one line each.

    Raises SyntaxError for what is no Python.

    >>> list(docstrings('def f():\\n    "What f\\\\n    does."'))
    ['What f does.']
    """
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop(0)
        if text := ast.get_docstring(node, clean=False):
            yield " ".join(text.split())
        waiting += [inner for inner in node.body if isinstance(inner, (ast.ClassDef, ast.FunctionDef))]


@cache
def _documentation_of(package: str, characters: int) -> tuple[Review, ...]:
    folder = _folder_of(package)
    found, n_characters = [], 0
    with _no_collecting():
        for file in _sources(folder):
            for text in _read(file):
                if len(text) >= SHORTEST:
                    found.append(Review(text, None, package))
                    n_characters += len(text)
            if n_characters >= characters:
                break
    if not found:
        raise ValueError(f"package {package!r} has no documentation in its sources: choose another, such as numpy")
    return tuple(found)


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Without Python's search for circles: a parsed file is many thousands of small objects that it would walk through
    again and again, a third of all the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _folder_of(package: str) -> Path:
    if package == PYTHON:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package) if package.isidentifier() else None  # runs none of a package's code
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {package!r} is not installed: choose from {', '.join(PACKAGES)}, or install it")
    return Path(next(iter(spec.submodule_search_locations)))


def _sources(folder: Path) -> list[Path]:
    """The package's own files, in the order of a hash of their names: alike on every machine."""
    found = {}
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in NOT_ITS_OWN and "." not in name]
        for name in names:
            if name.endswith(".py"):
                file = Path(where, name)
                found[sha256(file.relative_to(folder).as_posix().encode()).digest()] = file
    return [found[key] for key in sorted(found)]


def _read(file: Path) -> list[str]:
    source = file.read_bytes()
    if b'"""' not in source:  # to parse is what takes the time
        return []
    try:
        return list(docstrings(source))
    except (SyntaxError, ValueError):  # a file that another version of Python is meant for
        return []
