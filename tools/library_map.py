"""The map of the library: which room stands in which layer, who imports whom, and what each room says it is for.

A room is a module or a package directly below course_lib. tests/test_layering.py enforces the layers, and
tools/make_docs.py draws them.
"""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1] / "course_lib"
LAYERS = [
    {"runtime", "files", "schedules", "optimizers", "precision", "stopping", "plots"}
    | {"vocabulary", "masks", "spans", "pooling"},
    {"records", "tokenizer", "token_cache", "layers", "objectives", "weights", "losses"},
    {"data", "model", "checkpoint"},
    {"peft", "training", "generation", "evaluation", "pretrained", "architectures", "recomputation", "documentation"},
    {"finetuning", "parallel", "planner"},
    {"runs", "lab"},
    {"widgets", "checks", "doctor"},
    {"cli"},
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


@cache
def modules_of(library: Path = LIBRARY) -> dict[str, Path]:
    """{dotted name below course_lib: path}, the package's own __init__ left out."""
    paths = {path.relative_to(library).with_suffix("").parts: path for path in library.rglob("*.py")}
    paths = {parts[:-1] if parts[-1] == "__init__" else parts: path for parts, path in paths.items()}
    return {".".join(parts): path for parts, path in sorted(paths.items()) if parts}


def imports_of(path: Path, modules: dict[str, Path]) -> tuple[set[str], set[str]]:
    """The modules that a file imports, wherever in it: ours below course_lib, and the top names of all others."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: import by the full name, `from course_lib.x import y`"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top != "course_lib":
                others.add(top)
            elif rest in modules:
                ours.add(rest)
            elif rest.rpartition(".")[0] in modules:
                ours.add(rest.rpartition(".")[0])
    return ours, others


def violations(library: Path):
    """What breaks the rules, in words."""
    modules = modules_of(library)
    graph = {name: imports_of(path, modules)[0] - {name} for name, path in modules.items()}
    for name, imported in graph.items():
        home = name.split(".")[0]
        if home not in LAYER_OF:
            yield f"{home} is in no layer: add it to the table"
            continue
        for other in sorted(imported):
            away = other.split(".")[0]
            if away != home and LAYER_OF.get(away, 99) >= LAYER_OF[home]:
                yield f"{name} (layer {LAYER_OF[home]}) imports {other} (layer {LAYER_OF.get(away)})"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        yield f"imports in a circle: {' -> '.join(circle.args[1])}"


@cache
def rooms_of(library: Path = LIBRARY) -> dict[str, set[str]]:
    """{room: the other rooms that it imports from}, from the bottom layer up, by name within one."""
    modules = modules_of(library)
    rooms = {room: set() for names in LAYERS for room in sorted(names)}
    for name, path in modules.items():
        room = name.split(".")[0]
        rooms[room] |= {other.split(".")[0] for other in imports_of(path, modules)[0]} - {room}
    return rooms


def direct(rooms: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same without the arrows that a longer way stands for: of a -> b -> c and a -> c, the last is left out."""
    below = {}
    for room in TopologicalSorter(rooms).static_order():
        below[room] = rooms[room].union(*(below[other] for other in rooms[room]))
    return {
        room: {other for other in imported if not any(other in below[way] for way in imported)}
        for room, imported in rooms.items()
    }


def purpose_of(module: str, library: Path = LIBRARY) -> str:
    """The first sentence of a module's docstring; its dotted name is given below course_lib.

    Raises ValueError if it has none.
    """
    path = modules_of(library)[module]
    words = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if not words:
        raise ValueError(f"{module} has no docstring: say in its first line what it is for")
    paragraph = " ".join(words.split("\n\n")[0].split("    Axes:")[0].split())
    return re.split(r"(?<=[.?]) +(?=[A-Z])", paragraph)[0]
