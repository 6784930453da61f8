"""Machines that train together: on this one, a torchrun each, as `docs/several-machines.md` has it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from ranks.networks import ON_LOOPBACK
from ranks.starting import SEARCHED

MARK = "COURSE_TEST_MACHINES"  # a variable that all processes of a test inherit
SHARED_MEMORY = Path("/dev/shm")
PATIENCE = 120  # seconds; under load, a machine begins some 20 after its start


def shared_files():
    return set(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.is_dir() else set()


def left_in_shared_memory(before, pids):
    """New files there that bear the number of one of these processes: others may be at work on this machine."""
    return [name for name in shared_files() - before if set(re.findall(r"\d+", name)) & set(map(str, pids))]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(is_so, machines=()):
    """Until something is so; an AssertionError with the machines' words where it takes too long, or one has ended."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        ended = [one for one in machines if one.process.poll() is not None]
        if ended or time.monotonic() > end:
            raise AssertionError("\n\n".join(one.said() for one in ended or machines))
        time.sleep(0.05)


class Machines:
    """All machines of one test, in a folder for what they say, on one port. places: of the first machine, and of all
    others."""

    def __init__(self, folder, port=None, places=ON_LOOPBACK):
        self.folder, self.port, self.all, self.pids = folder, port or free_port(), [], set()
        self.places = places
        self.shared_before = shared_files()
        folder.mkdir(parents=True)

    def start(self, *arguments, flags, is_first=True):
        self.all.append(Machine(self, arguments, flags, self.places[0 if is_first else 1]))
        return self.all[-1]

    def rendezvous(self, *, is_host, more=""):
        """Flags of the machines that meet at the first one's port."""
        host, own = self.places[0].address, self.places[0 if is_host else 1].address
        return [
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:{self.port}", "--local-addr", own),
            *("--rdzv-conf", f"is_host={int(is_host)}{more}"),
        ]

    def alive(self):
        """Every process that was started here, whoever is its parent by now."""
        found = []
        for one in psutil.process_iter():
            try:
                if one.environ().get(MARK) == str(self.folder) and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
            except psutil.Error:
                pass
        return found

    def left(self):
        """What there is of them still: processes, and files in shared memory."""
        return [one.pid for one in self.alive()] + left_in_shared_memory(self.shared_before, self.pids)

    def clean_up(self):
        for one in self.alive():
            one.kill()
        for machine in self.all:
            machine.process.wait()


class Machine:
    """One torchrun and its ranks."""

    def __init__(self, machines, arguments, flags, place):
        self.machines, self.log = machines, machines.folder / f"machine_{len(machines.all)}.log"
        logs = ["--log-dir", str(machines.folder / "logs"), "--nproc-per-node", "1"]
        variables = {
            "PYTHONPATH": SEARCHED,
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            MARK: str(machines.folder),
            **dict(place.variables),
        }
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [*place.before, sys.executable, "-m", "torch.distributed.run", *map(str, [*logs, *flags, *arguments])],
                env=os.environ | variables,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self):
        return self.log.read_text("utf-8", errors="replace")

    def family(self):
        """torchrun, its ranks, and what they have started."""
        found = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.machines.pids |= {one.pid for one in found}
        return found

    def kill(self):
        """As a machine that loses its power: all at once."""
        for one in self.family():
            one.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self):
        """The exit status, once it has ended by itself."""
        self.family()
        wait_for(lambda: self.process.poll() is not None)
        return self.process.returncode
