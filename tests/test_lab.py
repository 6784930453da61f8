"""Copies that are never lost, a JupyterLab that leaves nothing running, runs that report failures."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from course_lib.files import write_atomically
from course_lib.lab import CourseFolder, jupyterlab, prepare_copies, private_environment, run_chapters
from course_lib.lab import folder as folder_module


def write_notebook(path, *sources):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
    for cell in cells:
        cell.metadata.name = cell.id
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def read_sources(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells]


@pytest.fixture
def folder(tmp_path):
    write_notebook(tmp_path / "notebooks" / "01_one.ipynb", "one = 1")
    write_notebook(tmp_path / "notebooks" / "02_two.ipynb", "two = 2")
    write_notebook(tmp_path / "notebooks" / "solutions" / "01_one.ipynb", "one = 'solved'")
    return CourseFolder(tmp_path)


def statuses(copies, folder):
    return {copy.path.relative_to(folder.work).as_posix(): copy.status for copy in copies}


# --- copies ----------------------------------------------------------------------------------------------------------


def test_copies_are_made_when_missing(folder):
    made = statuses(prepare_copies(folder=folder), folder)
    assert made == {"01_one.ipynb": "new", "02_two.ipynb": "new", "solutions/01_one.ipynb": "new"}
    assert set(statuses(prepare_copies(folder=folder), folder).values()) == {"current"}


def test_an_edited_copy_is_never_overwritten(folder):
    prepare_copies(folder=folder)
    write_notebook(folder.work / "01_one.ipynb", "one = 'mine'")
    assert statuses(prepare_copies(folder=folder), folder)["01_one.ipynb"] == "yours"
    write_notebook(folder.notebooks / "01_one.ipynb", "one = 'newer'")
    assert statuses(prepare_copies(folder=folder), folder)["01_one.ipynb"] == "outdated"
    assert read_sources(folder.work / "01_one.ipynb") == ["one = 'mine'"]


def test_an_untouched_copy_follows_the_course(folder):
    prepare_copies(folder=folder)
    write_notebook(folder.notebooks / "01_one.ipynb", "one = 'newer'")
    assert statuses(prepare_copies(folder=folder), folder)["01_one.ipynb"] == "refreshed"
    assert read_sources(folder.work / "01_one.ipynb") == ["one = 'newer'"]


def test_running_a_copy_is_no_edit(folder):
    prepare_copies(folder=folder)
    path = folder.work / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].execution_count = 4
    notebook.cells[0].metadata.collapsed = True
    nbformat.write(notebook, path)
    assert statuses(prepare_copies(folder=folder), folder)["01_one.ipynb"] == "current"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 3}'])
def test_a_copy_that_is_no_notebook_is_kept(folder, content):
    prepare_copies(folder=folder)
    (folder.work / "01_one.ipynb").write_text(content, "utf-8")
    assert statuses(prepare_copies(folder=folder), folder)["01_one.ipynb"] == "yours"
    assert (folder.work / "01_one.ipynb").read_text("utf-8") == content


@pytest.mark.parametrize("content", [None, "", "[3]", '{"01_one.ipynb": 3}'])
def test_copies_made_before_the_manifest_was_lost_or_spoilt_are_kept(folder, content):
    prepare_copies(folder=folder)
    write_notebook(folder.work / "01_one.ipynb", "one = 'mine'")
    manifest = folder.state / "copies.json"
    manifest.unlink() if content is None else manifest.write_text(content, "utf-8")
    prepare_copies(folder=folder)
    assert read_sources(folder.work / "01_one.ipynb") == ["one = 'mine'"]


def test_reset_starts_over_and_keeps_every_version_of_yours(folder):
    prepare_copies(folder=folder)
    for number in (1, 2):
        write_notebook(folder.work / "01_one.ipynb", f"one = 'mine, {number}'")
        (copy,) = prepare_copies(["01"], reset=True, folder=folder)
        assert copy.backup == folder.work / f"01_one.backup-{number}.ipynb"
        assert read_sources(copy.backup) == [f"one = 'mine, {number}'"]
        assert read_sources(folder.work / "01_one.ipynb") == ["one = 1"]
    assert set(statuses(prepare_copies(folder=folder), folder).values()) == {"current"}


def test_reset_of_an_untouched_copy_needs_no_backup(folder):
    prepare_copies(folder=folder)
    (copy,) = prepare_copies(["1"], reset=True, folder=folder)
    assert copy.backup is None
    assert sorted(path.name for path in folder.work.glob("*.ipynb")) == ["01_one.ipynb", "02_two.ipynb"]


def test_pages_that_chapters_link_to_are_where_jupyterlab_looks_for_them(folder):
    """It serves work/ as if there were nothing above, so ../docs is work/docs there; and a page's links lead back."""
    write_notebook(folder.notebooks / "03_linking.ipynb", "[one](../docs/words.md), [none](../docs/gone.md#there)")
    for name in ("words.md", "unlinked.md"):
        write_atomically(folder.root / "docs" / name, "See [chapter 3](../notebooks/03_linking.ipynb).")
    prepare_copies(folder=folder)
    assert [path.name for path in (folder.work / "docs").iterdir()] == ["words.md"]
    page = folder.work / "docs" / "words.md"
    (target,) = re.findall(r"\]\((.*?)\)", page.read_text("utf-8"))
    assert (page.parent / target).resolve() == (folder.work / "03_linking.ipynb").resolve()
    write_atomically(folder.root / "docs" / "words.md", "Newer.")
    prepare_copies(folder=folder)
    assert page.read_text("utf-8") == "Newer."


def test_what_cannot_be_done_is_refused_in_words(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no chapter 07: choose from 01_one, 02_two"):
        prepare_copies(["07"], folder=folder)
    with pytest.raises(ValueError, match="reset names no chapter"):
        prepare_copies(reset=True, folder=folder)
    monkeypatch.setattr(folder_module, "__file__", str(tmp_path / "site-packages" / "course_lib" / "lab" / "folder.py"))
    with pytest.raises(FileNotFoundError, match="Clone the repository"):
        prepare_copies()


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_chapter_is_run_and_a_failing_cell_reported(folder, capsys):
    write_notebook(folder.notebooks / "02_two.ipynb", "two = 2", "two / 0", "never = 'run'")
    before = (folder.notebooks / "01_one.ipynb").read_bytes()
    assert run_chapters(folder=folder) == 1
    said = capsys.readouterr().out
    assert "02_two, cell cell-1:" in said
    assert "ZeroDivisionError" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.endswith(("passed", "FAILED"))}
    assert (rows["01_one"][2], rows["01_one"][-1]) == ("1/1", "passed")
    assert (rows["02_two"][2], rows["02_two"][-1]) == ("1/3", "FAILED")
    assert (folder.notebooks / "01_one.ipynb").read_bytes() == before
    assert sorted(path.name for path in (folder.work / "executed").iterdir()) == ["01_one.ipynb", "02_two.ipynb"]


@pytest.mark.slow
def test_chosen_chapters_are_run_by_this_interpreter_with_the_courses_settings(folder, capsys):
    write_notebook(
        folder.notebooks / "02_two.ipynb",
        "import os, sys, IPython.paths, matplotlib",
        f"assert sys.executable == {sys.executable!r}",
        f"assert IPython.paths.get_ipython_dir().startswith({str(folder.state)!r})",
        f"assert matplotlib.get_configdir().startswith({str(folder.state)!r})",
    )
    before = dict(os.environ)
    assert run_chapters(["2"], folder=folder) == 0
    assert "01_one" not in capsys.readouterr().out
    assert dict(os.environ) == before


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_failure_not_a_wait(folder, capsys):
    write_notebook(folder.notebooks / "01_one.ipynb", "import os; os._exit(1)")
    assert run_chapters(["01"], folder=folder) == 1
    assert "Kernel died" in capsys.readouterr().out


# --- JupyterLab ------------------------------------------------------------------------------------------------------


def get(running, path, **request):
    headers = {"Authorization": f"token {running.token}"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{running.base_url}{path}", headers=headers, **request), timeout=30
    ) as answer:
        return json.load(answer)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")


@pytest.mark.slow
@needs_proc
def test_the_server_is_on_loopback_behind_a_token_and_takes_its_kernels_with_it(folder):
    prepare_copies(folder=folder)
    with jupyterlab(folder) as running:
        assert running.base_url.startswith("http://127.0.0.1:")
        assert running.token not in Path(f"/proc/{running.process.pid}/cmdline").read_text()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{running.base_url}api/contents", timeout=30)
        names = {entry["name"] for entry in get(running, "api/contents")["content"]}
        assert names == {"01_one.ipynb", "02_two.ipynb", "solutions"}
        assert list(get(running, "api/kernelspecs")["kernelspecs"]) == ["python3"]
        settings = get(running, "lab/api/settings/@jupyterlab/apputils-extension:kernels-settings")
        assert settings["schema"]["properties"]["commsOverSubshells"]["default"] == "disabled"
        get(running, "api/kernels", data=b'{"name": "python3"}', method="POST")
        runtime = running.log.parent
        assert wait_until(lambda: kernels_of(runtime))
        kernels = kernels_of(runtime)
    assert running.process.poll() is not None
    assert wait_until(lambda: not any(map(is_alive, kernels)))
    assert not runtime.exists()


def kernels_of(runtime):
    """The processes whose command line names a connection file of this server's."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{runtime}/kernel-" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(folder):
    prepare_copies(folder=folder)
    with jupyterlab(folder) as running:
        port = int(running.base_url.rstrip("/").rpartition(":")[2])
        with pytest.raises(RuntimeError, match=f"{port} is already in use"), jupyterlab(folder, port=port):
            pass


LAUNCH = """
import signal, sys
from pathlib import Path
from course_lib.lab import CourseFolder, launch
signal.signal(signal.SIGINT, signal.default_int_handler)  # both are ignored where the tests run in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.exit(launch({chapter!r}, browser=False, folder=CourseFolder(Path({root!r}))))
"""


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_launch_prints_its_address_and_ends_in_good_order(folder, ending):
    script = LAUNCH.format(chapter="02", root=str(folder.root))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    address = next(line for line in process.stdout if line.startswith("JupyterLab: "))
    assert "/lab/tree/02_two.ipynb?token=" in address
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert children
    process.send_signal(ending)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Stopped" in said
    assert wait_until(lambda: not any(map(is_alive, children)))


def test_the_settings_lie_in_the_courses_folder(folder):
    environment = private_environment(folder)
    assert all(Path(value).is_relative_to(folder.work) for value in environment.values())
    written = json.loads((folder.state / "config" / "labconfig" / "page_config.json").read_text("utf-8"))
    assert written["disabledExtensions"]["@jupyterlab/apputils-extension:announcements"]
