"""JupyterLab on the working copies: on loopback, behind a token, gone with all its kernels when it ends."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from course_lib.lab.copies import Copy, prepare_copies
from course_lib.lab.folder import CourseFolder, private_environment

START_TIMEOUT = 60  # seconds until JupyterLab must answer
STOP_TIMEOUT = 20  # seconds that JupyterLab gets to shut its kernels down


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
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # what a session is called on Windows
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
        while lab.process.poll() is None:  # on Windows, Ctrl-C would not end a wait()
            time.sleep(0.3)
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
    heard = [ending for ending in endings if signal.getsignal(ending) != signal.SIG_IGN]  # nohup stays nohup
    before = {ending: signal.signal(ending, signal.default_int_handler) for ending in heard}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
