"""Start ranks with torchrun, and stay in charge of them: their lines arrive as they are written, whoever stops waiting
ends them all, and of a rank that failed one reads its own traceback."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_A_RANK = (*RENDEZVOUS, "TORCHELASTIC_ERROR_FILE")
ERRORS = "error.json"  # a file of each rank
FAMILY = "COURSE_RANKS_OF"  # a variable that all processes of one launch inherit
LAST = 30  # lines that are quoted where no traceback was left
# torchrun, but for the traceback of its own that it puts behind that of a rank, and for the second that Python would
# spend on looking for garbage in torch and on taking it apart again
AGENT = """
import gc, os, sys
gc.disable()
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
code = 0
try:
    run.main()
except ChildFailedError:
    code = 1
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""


def torchrun(
    arguments: Sequence[object],
    *,
    ranks: int = 2,
    restarts: int = 0,
    device: str | None = None,
    show: Callable[[str], None] = print,
    grace: float = 5.0,
) -> None:
    """Run a program on `ranks` processes of this machine and wait until all are done.

    arguments: a script or ("-m", module), and what it is given. restarts: how often all ranks are started anew after
    one has died. device: that which the ranks are to compute on; under "cpu" they see no GPU. show: what is done with
    each line that they write. grace: seconds that they have to end when this is interrupted, by Jupyter's Stop or
    Ctrl-C; nothing of them is left afterwards.
    Raises ValueError for fewer than 1 rank; RuntimeError with the failing rank's own traceback where one fails.

    >>> torchrun(["-m", "course_lib.cli", "doctor"], ranks=2)  # doctest: +SKIP
    """
    if ranks < 1 or restarts < 0:
        raise ValueError(f"ranks is {ranks}, restarts {restarts}: start at least 1 rank, restart 0 times or more")
    with tempfile.TemporaryDirectory(prefix="ranks_") as folder:
        command = [
            *(sys.executable, "-c", AGENT, "--standalone", "--log-dir", folder),
            *("--nproc-per-node", str(ranks), "--max-restarts", str(restarts), *map(str, arguments)),
        ]
        last: deque[str] = deque(maxlen=LAST)
        process = subprocess.Popen(
            command,
            env=_environment(ranks, folder, device),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            bufsize=1,
            start_new_session=True,  # Stop interrupts the kernel's group, and the ranks shall not hear it
        )
        try:
            for line in _lines(process):
                last.append(line)
                show(line)
            code = process.wait()
        finally:
            _end(process, folder, grace)
        why, said = _why(Path(folder)), "\n".join(last)
        if code:
            raise RuntimeError(f"a rank failed (torchrun ended with code {code})\n{why or said}")


def _environment(ranks: int, folder: str, device: str | None) -> dict[str, str]:
    """That of this process, without what says that it is a rank itself."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
    kept |= {"COURSE_DEVICE": device} if device else {}
    kept |= {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}  # FSDP would take a GPU that it sees
    return kept | {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)),
        FAMILY: folder,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else ranks that start anew read the addresses of the dead
    }


def _lines(process: subprocess.Popen) -> Iterator[str]:
    with process.stdout:
        for line in process.stdout:
            yield line.rstrip("\n")


def _end(process: subprocess.Popen, folder: str, grace: float) -> None:
    """End torchrun and all that it has started, whoever is their parent by now."""
    family = [one for one in psutil.process_iter() if _is_of(one, folder)]
    if process.poll() is None:
        process.terminate()  # torchrun hands it on
    else:
        for one in family:  # that torchrun has left behind
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
    try:
        psutil.wait_procs(family, timeout=grace)
    finally:  # also where somebody does not want to wait
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()  # psutil sees to it that the number has not been given to another process meanwhile
        psutil.wait_procs(family)
        process.wait()


def _is_of(one: psutil.Process, folder: str) -> bool:
    """Whether a process was started for the ranks of this folder: it has inherited the folder's name."""
    try:
        return one.environ().get(FAMILY) == folder
    except psutil.Error:  # it is another user's, or has ended
        return False


def _why(folder: Path) -> str:
    """The traceback of the rank that failed first, in the last start of the ranks; "" where it left none. (torchrun
    knows the time of a failure in seconds, and may name a rank that failed only because another had.)"""
    left = max(folder.glob(f"*/attempt_*/*/{ERRORS}"), key=_when, default=None)
    try:
        message = json.loads(left.read_text("utf-8"))["message"] if left else ""
    except (OSError, ValueError, KeyError):
        return ""
    return message if isinstance(message, str) else message["extraInfo"]["py_callstack"]


def _when(left: Path) -> tuple[int, int]:
    """Larger for a later start, and within it for an earlier failure."""
    return int(left.parent.parent.name.removeprefix("attempt_")), -left.stat().st_mtime_ns
