"""Run by torchrun: ranks that write lines, wait, fail or do not want to end. lines.py WHAT

Without torch's part of it, so that they start at once."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def say(words):
    os.write(1, f"{words}\n".encode())  # in one piece


def write_lines(number):
    # what Python would keep back in a pipe
    sys.stdout.write(
        f"first of {number}: é, {os.environ['OMP_NUM_THREADS']} threads of {os.environ['WORLD_SIZE']} ranks\n"
    )
    if number == 0:
        os.write(1, b"no UTF-8: \xff\n")
    time.sleep(2)
    say(f"last of {number}")


def stumble(number):
    from torch.distributed.elastic.multiprocessing.errors import record

    def inner_function():
        raise ValueError("rank 1 stumbles over é")

    @record
    def main():
        say(f"{number} begins")
        if number == 1:
            inner_function()
        time.sleep(60)

    main()


def leave(number):
    say(f"{number} begins")
    if number == 1:
        say("no traceback: the disk is gone")
        sys.exit(3)
    time.sleep(60)


def sleep(number):
    say(f"pid {os.getpid()}")
    time.sleep(120)


def obliging(number):
    """Leaves a file when it is asked to end."""

    def end(*_):
        Path(tempfile.gettempdir(), f"asked_{number}").touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    sleep(number)


def stubborn(number):
    """Ends neither by SIGINT nor by SIGTERM, and has a child that does not either."""
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    say(f"pid {child.pid}")
    sleep(number)


def stumble_once(number):
    say(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']} of {number}")
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)


if __name__ == "__main__":
    globals()[sys.argv[1]](int(os.environ["RANK"]))
