"""The chapters in your hands: copies to work in, JupyterLab on loopback, and a run of every chapter without a browser.

Everything lies in the course's folder, nothing in your home: `work/` holds the learner's copies, `work/solutions/` the
solved exercises, `work/executed/` what `course run` computed, `work/.jupyter/` the settings of this JupyterLab.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat

from course_lib.files import write_atomically

CELL_TIMEOUT = 600  # seconds; no cell of the course should need a tenth of it
START_TIMEOUT = 60  # seconds until JupyterLab must answer
STOP_TIMEOUT = 20  # seconds that JupyterLab gets to shut its kernels down
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class CourseFolder:
    """Where the chapters are, and where a learner works on them."""

    root: Path

    @classmethod
    def here(cls) -> "CourseFolder":
        """The folder that this library runs from.

        Raises FileNotFoundError if there are no chapters beside it, as after an install outside the repository.
        """
        folder = cls(Path(__file__).resolve().parents[1])
        if not folder.notebooks.is_dir():
            raise FileNotFoundError(
                f"no chapters in {folder.notebooks}: they are in the course's repository, not in the package. "
                "Clone the repository and type `make lab` there, or `pip install --editable .` and `course lab`"
            )
        return folder

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def state(self) -> Path:
        return self.work / ".jupyter"

    def chapters(self, wanted: Sequence[str] = ()) -> list[Path]:
        """The chapter notebooks in order; all of them, or those whose number or name is `wanted`.

        Raises ValueError for a chapter that is not there.
        """
        every = sorted(self.notebooks.glob("*.ipynb"))
        if not every:
            raise FileNotFoundError(f"no chapters in {self.notebooks}: `make notebooks` builds them from notebooks/src")
        chosen = [path for path in every for name in wanted if _is_named(path, name)]
        for name in wanted:
            if not any(_is_named(path, name) for path in every):
                raise ValueError(f"there is no chapter {name}: choose from {', '.join(path.stem for path in every)}")
        return list(dict.fromkeys(chosen)) if wanted else every


def _is_named(path: Path, name: str) -> bool:
    number = path.stem.split("_")[0]
    return name in (path.stem, path.name) or (name.isdigit() and number.isdigit() and int(name) == int(number))


# --- copies to work in -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """What happened to one working copy: it is "new", "current", "refreshed", "yours" (edited, so it was kept as it
    is) or "outdated" (edited, and the course has a newer one). `backup` is where a reset put your work."""

    path: Path
    status: str
    backup: Path | None = None


def prepare_copies(
    chapters: Sequence[str] | None = None, *, reset: bool = False, folder: CourseFolder | None = None
) -> list[Copy]:
    """Bring the working copies up to date without touching work of the learner's.

    A copy whose cells were edited is never overwritten; an untouched one follows the course. `reset` starts the named
    `chapters` over, after the edited copy was renamed to a backup. Without `chapters`, all of them and the solutions.

    Raises ValueError for a chapter that is not there, or for a reset that names none.
    """
    folder = folder or CourseFolder.here()
    if reset and not chapters:
        raise ValueError("reset names no chapter: say which to start over, such as `course lab --reset 01`")
    sources = folder.chapters(chapters or ())
    if not chapters:
        sources += sorted((folder.notebooks / "solutions").glob("*.ipynb"))
    manifest = folder.state / "copies.json"
    handed_out = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {}
    copies = []
    for source in sources:
        name = source.relative_to(folder.notebooks).as_posix()
        copies.append(_bring_up_to_date(source, folder.work / name, handed_out.get(name), reset))
        if copies[-1].status in ("new", "refreshed"):
            handed_out[name] = _fingerprint(source)
            _trust(source, folder)
    write_atomically(manifest, json.dumps(handed_out, indent=1))
    return copies


def _bring_up_to_date(source: Path, copy: Path, handed_out: str | None, reset: bool) -> Copy:
    backup = None
    if copy.exists():
        now, course = _fingerprint(copy), _fingerprint(source)
        untouched = now in (handed_out, course)
        if reset and not untouched:
            backup = _first_free_backup(copy)
            copy.rename(backup)
        elif not untouched:
            return Copy(copy, "yours" if handed_out == course else "outdated")
        elif now == course and not reset:
            return Copy(copy, "current")
    status = "refreshed" if copy.exists() or backup else "new"
    write_atomically(copy, source.read_bytes())
    return Copy(copy, status, backup)


def _fingerprint(notebook: Path) -> str:
    """Of what a learner writes: the cells' types and sources. Running a notebook or folding a cell is no edit."""
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        written = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    except (ValueError, KeyError, TypeError):
        return "not a notebook"  # equals no course notebook, so it counts as edited and is kept
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()


def _first_free_backup(copy: Path) -> Path:
    number = 1
    while (backup := copy.with_name(f"{copy.stem}.backup-{number}.ipynb")).exists():
        number += 1
    return backup


def _trust(notebook: Path, folder: CourseFolder) -> None:
    """Sign what the course itself hands out: JupyterLab hides HTML in notebooks that it does not trust."""
    from nbformat.sign import NotebookNotary  # slow to import, and not needed for the commands' help

    data = folder.state / "data"
    data.mkdir(parents=True, exist_ok=True)
    NotebookNotary(data_dir=str(data)).sign(nbformat.read(notebook, as_version=4))


# --- JupyterLab ------------------------------------------------------------------------------------------------------

PAGE_CONFIG = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
SETTINGS = {
    # Over subshells a slider touched before a busy cell would redraw during it, and one touched after would wait.
    "@jupyterlab/apputils-extension:kernels-settings": {"commsOverSubshells": "disabled"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
SERVER_CONFIG = {
    "ServerApp": {"ip": "127.0.0.1", "allow_root": True, "allow_remote_access": False},  # root: containers
    "KernelSpecManager": {"allowed_kernelspecs": ["python3"]},
}
LAB_CONFIG = {
    "LabApp": {
        "news_url": None,
        "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "extension_manager": "readonly",  # the other one lists packages from the internet
    }
}
KERNEL = {
    "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"],
    "display_name": "Python 3",
    "language": "python",
    "metadata": {"debugger": True},
}


def private_environment(folder: CourseFolder) -> dict[str, str]:
    """Environment variables that keep Jupyter, IPython and matplotlib in the course's folder, and make this very
    interpreter the kernel `python3`. Writes the settings that they point to."""
    state = folder.state
    written = {
        "config/labconfig/page_config.json": PAGE_CONFIG,
        "config/labconfig/default_setting_overrides.json": SETTINGS,
        "config/jupyter_server_config.json": SERVER_CONFIG,
        "config/jupyter_lab_config.json": LAB_CONFIG,
        "share/kernels/python3/kernel.json": KERNEL,
    }
    for name, content in written.items():
        write_atomically(state / name, json.dumps(content, indent=1))
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTER_PATH": "share",
        "IPYTHONDIR": "ipython",
        "MPLCONFIGDIR": "matplotlib",
    }
    for name in folders.values():
        (state / name).mkdir(parents=True, exist_ok=True)
    return {variable: str(state / name) for variable, name in folders.items()}


@dataclass(frozen=True)
class RunningLab:
    """A JupyterLab that answers."""

    base_url: str
    token: str
    process: subprocess.Popen
    log: Path

    def page(self, notebook: str) -> str:
        """The address that opens `notebook`, a path below work/."""
        return f"{self.base_url}lab/tree/{notebook}?token={self.token}"


@contextlib.contextmanager
def jupyterlab(
    folder: CourseFolder,
    *,
    notebook: str = "",
    browser: bool = False,
    port: int | None = None,
    options: Sequence[str] = (),
) -> Iterator[RunningLab]:
    """JupyterLab on the copies under work/, on loopback, with a token that no process list shows. On leaving the block
    the server and its kernels are gone. Without `port`, the first free one from 8888 on.

    Raises RuntimeError with the end of the server's log if it does not come up.
    """
    environment = os.environ | private_environment(folder) | {"JUPYTER_TOKEN": secrets.token_hex(24)}
    runtime = Path(tempfile.mkdtemp(prefix="lab-", dir=folder.state / "runtime"))
    environment["JUPYTER_RUNTIME_DIR"] = str(runtime)
    log = runtime / "server.log"
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.work}"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"] if port else []
    command += [f"--LabApp.default_url=/lab/tree/{notebook}"] if notebook else []
    command += [] if browser else ["--no-browser"]
    with log.open("wb") as output:
        # Its own session: Ctrl-C reaches this process alone, which then ends the server in good order.
        process = subprocess.Popen(
            [*command, *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        base_url = _wait_for_answer(process, runtime, log)
        yield RunningLab(base_url, environment["JUPYTER_TOKEN"], process, log)
    finally:
        _stop(process)
        shutil.rmtree(runtime, ignore_errors=True)


def _wait_for_answer(process: subprocess.Popen, runtime: Path, log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        for written in runtime.glob("jpserver-*.json"):  # the server writes down which port it took
            with contextlib.suppress(OSError, ValueError):
                server = json.loads(written.read_text("utf-8"))
                with urllib.request.urlopen(f"{server['url']}api?token={server['token']}", timeout=5):
                    return server["url"]
        time.sleep(0.1)
    reason = "stopped" if process.poll() is not None else f"did not answer in {START_TIMEOUT} s"
    raise RuntimeError(f"JupyterLab {reason}. The end of its log:\n{log.read_text('utf-8', 'replace')[-3000:]}")


def _stop(process: subprocess.Popen) -> None:
    process.terminate()  # one SIGTERM: the server shuts its kernels down itself
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def launch(
    chapter: str | None = None,
    *,
    reset: str | None = None,
    browser: bool = True,
    port: int | None = None,
    folder: CourseFolder | None = None,
) -> int:
    """Open JupyterLab on `chapter` (the first one if None) and stay until Ctrl-C; returns the exit code.

    `reset` names a chapter to start over first. Raises ValueError for a chapter that is not there.
    """
    folder = folder or CourseFolder.here()
    opened = folder.chapters([chapter or reset] if chapter or reset else ())[0].name
    copies = prepare_copies([reset], reset=True, folder=folder) if reset else []
    for copy in [*copies, *prepare_copies(folder=folder)]:
        _report(copy, folder.root)
    with (
        contextlib.suppress(KeyboardInterrupt),
        _ctrl_c_for_every_ending(),
        jupyterlab(folder, notebook=opened, browser=browser, port=port) as lab,
    ):
        print(f"\nJupyterLab: {lab.page(opened)}\nCtrl-C stops it and every kernel.", flush=True)
        lab.process.wait()
    print("\nStopped. Your copies are under work/.")
    return 0


def _report(copy: Copy, root: Path) -> None:
    name = copy.path.relative_to(root).as_posix()
    if copy.backup:
        print(f"{name}: started over; your version is kept as {copy.backup.relative_to(root).as_posix()}")
    elif copy.status == "outdated":
        number = copy.path.stem.split("_")[0]
        print(f"{name}: yours, kept as it is; the course has a newer one (course lab --reset {number} fetches it)")
    elif copy.status in ("new", "refreshed"):
        print(f"{name}: {copy.status}")


@contextlib.contextmanager
def _ctrl_c_for_every_ending() -> Iterator[None]:
    """A closed terminal and a polite kill end the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    endings = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {ending: signal.signal(ending, signal.default_int_handler) for ending in endings}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)


# --- every chapter without a browser ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChapterRun:
    """How one chapter went. `peak_mib` is the kernel's largest resident memory, None where it cannot be read."""

    name: str
    seconds: float
    cells_done: int
    cells: int
    peak_mib: float | None
    error: str | None


def execute(
    notebook: nbformat.NotebookNode,
    cwd: Path,
    *,
    environment: Mapping[str, str] | None = None,
    cell_timeout: float = CELL_TIMEOUT,
    on_cell: Callable[[int, nbformat.NotebookNode, int | None], None] = lambda done, cell, kernel_pid: None,
) -> None:
    """Run the code cells of `notebook` in order, in a new kernel of this interpreter, and put their outputs in place.

    `on_cell(done, cell, kernel_pid)` is called after each. Raises nbclient's CellExecutionError at the first cell
    that fails, CellTimeoutError after `cell_timeout` seconds, DeadKernelError if the kernel dies.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=cell_timeout,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(cwd)}},
    )
    with _variables(environment or {}), client.setup_kernel():
        kernel_pid = getattr(client.km.provisioner, "pid", None)
        code = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        for done, (index, cell) in enumerate(code, 1):
            client.execute_cell(cell, index)
            on_cell(done, cell, kernel_pid)


def run_chapters(chapters: Sequence[str] | None = None, *, folder: CourseFolder | None = None) -> int:
    """Execute the chapters (all of them if None) and print a table; returns 0, or 1 if a cell failed.

    What they computed is written to work/executed/. Raises ValueError for a chapter that is not there.
    """
    folder = folder or CourseFolder.here()
    sources = folder.chapters(chapters or ())
    environment = private_environment(folder)
    runs = []
    for source in sources:
        runs.append(_run_chapter(source, folder, environment))
        if runs[-1].error:
            print(f"\n{runs[-1].error}\n", flush=True)
    print(_table(runs))
    return int(any(run.error for run in runs))


def _run_chapter(source: Path, folder: CourseFolder, environment: Mapping[str, str]) -> ChapterRun:
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    target = folder.work / "executed" / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(source, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    progress = _Progress(source.stem, len(code))
    error = None
    try:
        execute(notebook, target.parent, environment=environment, on_cell=progress)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        failed = code[progress.done].metadata.get("name", f"number {progress.done + 1}")
        error = f"{source.stem}, cell {failed}:\n{_plain(str(failure))}"
    finally:
        write_atomically(target, nbformat.writes(notebook))
    progress.finish()
    return ChapterRun(source.stem, progress.seconds, progress.done, len(code), progress.peak_mib, error)


class _Progress:
    """One line per chapter: rewritten in a terminal, printed once where the output is a file."""

    def __init__(self, name: str, cells: int):
        self.name, self.cells, self.done = name, cells, 0
        self.started, self.peak_mib = time.perf_counter(), None
        self._show()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def __call__(self, done: int, _cell: nbformat.NotebookNode, kernel_pid: int | None) -> None:
        self.done = done
        self.peak_mib = _peak_mib(kernel_pid) or self.peak_mib
        self._show()

    def finish(self) -> None:
        print(f"{chr(13) if sys.stdout.isatty() else ''}{self._line()}", flush=True)

    def _show(self) -> None:
        if sys.stdout.isatty():
            print(f"\r{self._line()}", end="", flush=True)

    def _line(self) -> str:
        return f"{self.name}: {self.done}/{self.cells} cells, {self.seconds:.0f} s"


def _peak_mib(pid: int | None) -> float | None:
    with contextlib.suppress(OSError):  # only Linux writes it down
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("utf-8")):
            return int(found[1]) / 1024
    return None


def _table(runs: Sequence[ChapterRun]) -> str:
    rows = [("chapter", "seconds", "cells", "peak MiB", "result")]
    for run in runs:
        memory = f"{run.peak_mib:.0f}" if run.peak_mib else "-"
        result = "FAILED" if run.error else "passed"
        rows.append((run.name, f"{run.seconds:.1f}", f"{run.cells_done}/{run.cells}", memory, result))
    rows.append(("together", f"{sum(run.seconds for run in runs):.1f}", "", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return ANSI.sub("", text).strip()


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
