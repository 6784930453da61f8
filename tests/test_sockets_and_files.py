"""The library opens no socket and writes nothing but what it was told to write: Python's own audit events say so, for
the import of every module and for small runs from end to end."""

import json
import subprocess
import sys

import pytest
from library_map import LIBRARY, modules_of
from tiny import tiny

from course_lib.data import course_tokenizer, reviews_of
from course_lib.pretrained import save_model

pytestmark = pytest.mark.slow

WATCHED = """
import json, os, sys
sockets, written = [], set()
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGED = {{"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.link": 1, "os.symlink": 1}}
def watch(event, args):
    if event.startswith("socket."):
        sockets.append(event)
    place = args[0] if event == "open" and args[2] & WRITING else None
    if event in CHANGED and args[-1] == -1:  # what is named from an open folder on was seen when that was named
        place = args[CHANGED[event]]
    if isinstance(place, (str, bytes, os.PathLike)):
        written.add(os.path.abspath(os.fsdecode(place)))
sys.addaudithook(watch)
{script}
with open(sys.argv[1], "w", encoding="utf-8") as report:
    json.dump([sockets, sorted(written)], report)
"""
IMPORT_ALL = "import importlib\nfor name in {names!r}:\n    importlib.import_module(name)"
RUN_ALL = """
from course_lib.cli import main
for arguments in {commands!r}:
    assert main(arguments) == 0, arguments
"""
MINE = ("__pycache__", "/dev/")  # Python's own caches, and no files at all


@pytest.fixture
def watched(tmp_path):
    """Run a script in a Python that is watched, far from home: the socket events, the paths written outside the
    course's `work` and the folders out and tmp, and what was left at home and in the current folder by whoever Python
    cannot hear."""
    homes = {name: tmp_path / name for name in ("home", "current", "tmp", "out")}
    for folder in homes.values():
        folder.mkdir()

    def run(script):
        report = tmp_path / "tmp" / "report.json"
        environment = {"HOME": homes["home"], "TMPDIR": homes["tmp"]}
        done = subprocess.run(
            [sys.executable, "-c", WATCHED.format(script=script), report],
            cwd=homes["current"],
            env={"PYTHONPATH": str(LIBRARY.parent), "OMP_NUM_THREADS": "1"}
            | {k: str(v) for k, v in environment.items()},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        sockets, written = json.loads(report.read_text("utf-8"))
        allowed = (str(homes["out"]), str(homes["tmp"]), str(LIBRARY.parent / "work"))
        outside = [path for path in written if not path.startswith(allowed) and not any(part in path for part in MINE)]
        left = [str(path) for name in ("home", "current") for path in homes[name].rglob("*")]
        return sockets, outside, left

    return run


def test_importing_every_module_opens_no_socket_and_writes_nothing(watched):
    names = [f"course_lib.{name}" for name in modules_of(LIBRARY)]
    assert watched(IMPORT_ALL.format(names=names)) == ([], [], [])


def test_runs_from_end_to_end_open_no_socket_and_write_into_their_folders_alone(watched, tmp_path):
    data = tmp_path / "data"
    save_model(tiny("masked", max_len=64, n_layers=1), data / "base", course_tokenizer())
    reviews = reviews_of("dev", "rotten_tomatoes")[:50]
    cells = [f'"{review.text[:60].replace(chr(34), "")}",{review.label}\n' for review in reviews]
    (data / "texts.csv").write_text("text,label\n" + "".join(cells), "utf-8")
    (data / "own.txt").write_text("\n\n".join(review.text for review in reviews_of("train", "imdb")[:20]), "utf-8")
    before = sorted(data.rglob("*"))
    out, device = tmp_path / "out", ["--device", "cpu"]
    small = ["--width", "16", "--layers", "1", "--row-length", "64", "--batch-size", "8", "--tokens", "5k"]
    tuned = ["--data", data / "texts.csv", "--base", data / "base", "--out", out / "tuned", "--epochs", "1"]
    commands = [
        ["pretrain", "decoder", *small, *device, "--text", data / "own.txt", "--out", out / "pretrained"],
        ["finetune", *tuned, *device],
        ["predict", out / "tuned", "a dull film", *device],
        ["report", out / "tuned", "--out", out / "page.html"],
        ["export", out / "pretrained", out / "exported"],
        ["progress"],
        ["doctor"],
    ]
    commands = [[str(argument) for argument in command] for command in commands]
    assert watched(RUN_ALL.format(commands=commands)) == ([], [], [])
    assert {path.name for path in out.iterdir()} == {"pretrained", "tuned", "page.html", "exported"}
    assert sorted(data.rglob("*")) == before


OFFENCES = {
    "import socket; socket.socket().close()": (["socket.__new__"], [], []),
    "open('here.txt', 'w').close()": ([], ["current/here.txt"], ["current/here.txt"]),
    "os.mkdir(os.path.expanduser('~/.cache'))": ([], ["home/.cache"], ["home/.cache"]),
    "os.close(os.open('here.txt', os.O_RDWR | os.O_CREAT))": ([], ["current/here.txt"], ["current/here.txt"]),
    "import subprocess; subprocess.run(['touch', 'unheard'])": ([], [], ["current/unheard"]),
}


@pytest.mark.parametrize("script", OFFENCES)
def test_an_offence_would_be_seen(watched, tmp_path, script):
    """Negative control."""
    sockets, *places = OFFENCES[script]
    assert watched(script) == (sockets, *([str(tmp_path / path) for path in paths] for paths in places))
