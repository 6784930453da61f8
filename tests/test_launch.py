"""The launcher: lines while ranks run, a rank's own traceback, and nothing that is left of them."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from unittest import mock

import psutil
import pytest
from ranks.machines import left_in_shared_memory, shared_files
from ranks.starting import SEARCHED, start

from course_lib import cli
from course_lib.data import reviews_of
from course_lib.parallel import device_of_ranks, ranks, torchrun
from course_lib.runtime import pick_device

slow = pytest.mark.slow


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, of this process and of those that it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


# ---------------------------------------------------------------- lines and tracebacks


@slow
def test_lines_arrive_while_ranks_still_run_and_nothing_is_left(temporary, monkeypatch):
    for name, value in {"RANK": "7", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)  # of a rank that starts ranks
    seen, before = [], shared_files()
    start("lines", "write_lines", show=lambda line: seen.append((line, time.monotonic())))
    end, when = time.monotonic(), dict(seen)
    threads = max(1, (os.cpu_count() or 1) // 2)
    for number in (0, 1):
        assert end - when[f"first of {number}: é, {threads} threads of 2 ranks"] > 1.8
        assert when[f"last of {number}"] > when[f"first of {number}: é, {threads} threads of 2 ranks"] + 1.8
    assert len(seen) == 5
    assert any(re.fullmatch("no UTF-8: .", line) for line, _ in seen)
    assert os.listdir(temporary) == []
    assert left_in_shared_memory(before, [os.getpid()]) == []


@slow
def test_a_ranks_error_arrives_with_its_own_traceback_and_none_of_torchruns(temporary):
    lines, began = [], time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        start("lines", "stumble", show=lines.append)
    said = str(caught.value)
    assert said.startswith("a rank failed (torchrun ended with code 1)\nTraceback (most recent call last):\n")
    assert said.rstrip().endswith("ValueError: rank 1 stumbles over é")
    assert "in inner_function" in said and "lines.py" in said
    for text in (said, "\n".join(lines)):
        assert "ChildFailedError" not in text and "distributed/run.py" not in text
    assert time.monotonic() - began < 30  # rank 0, which had a minute to go, was ended
    assert os.listdir(temporary) == []


@slow
def test_a_rank_that_leaves_without_a_traceback_is_quoted():
    with pytest.raises(RuntimeError, match=r"(?s)a rank failed .*no traceback: the disk is gone"):
        start("lines", "leave", show=lambda _line: None)


@slow
def test_ranks_are_started_anew_as_often_as_is_said():
    lines = start("lines", "stumble_once", restarts=1)
    assert {"attempt 0 of 1", "attempt 1 of 0", "attempt 1 of 1"} < set(lines)
    with pytest.raises(RuntimeError, match="a rank failed"):  # the control
        start("lines", "stumble_once", restarts=0, show=lambda _line: None)


@slow
def test_what_goes_wrong_with_a_line_ends_the_ranks():
    pids = []

    def stumble(line):
        pids.extend(map(int, re.findall(r"^pid (\d+)", line)))
        if len(pids) == 2:
            raise KeyError("full")

    with pytest.raises(KeyError, match="full"):
        start("lines", "sleep", show=stumble)
    assert not any(map(psutil.pid_exists, pids))


LINES = """
from course_lib.parallel import ranks
print("before")
with ranks(device="cpu"):
    print("a", "line")
"""


@slow
@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Windows has no socket that keeps writes apart")
def test_what_a_rank_prints_is_handed_over_line_by_line_so_that_no_other_comes_in_between():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # which keeps writes apart
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    variables = os.environ | one | {"PYTHONPATH": SEARCHED, "PYTHONUNBUFFERED": "1"}
    with ours, theirs:
        subprocess.run([sys.executable, "-c", LINES], stdout=theirs, env=variables, check=True)
        ours.setblocking(False)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(ours.recv(1000))
    assert heard == [b"before", b"\n", b"a line\n"]  # the control: the first, which is not a rank's yet


# ---------------------------------------------------------------- signals

LAUNCHING = """
import signal, sys
from ranks.starting import start
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background hand on that it is ignored
start("lines", sys.argv[1], show=lambda line: print(line, flush=True))
"""


def needs_signals(test):
    return slow(pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")(test))


class Launched:
    """A process that has started two ranks, and all that it has started."""

    def __init__(self, what, n_pids):
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHING, what],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": SEARCHED},
            start_new_session=True,
        )
        self.said = []
        while len(self.said) < n_pids:
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.said += map(int, re.findall(r"^pid (\d+)", line))
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        assert {one.pid for one in self.family} > set(self.said)

    def seconds_to_end(self):
        began = time.monotonic()
        self.errors = self.process.communicate(timeout=60)[1]
        return time.monotonic() - began

    def left(self):
        return [one for one in self.family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def clean_up(self):
        for one in self.left():
            one.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def launched():
    started = []

    def launch(what, n_pids):
        started.append(Launched(what, n_pids))
        return started[-1]

    yield launch
    for one in started:
        one.clean_up()


@needs_signals
@pytest.mark.parametrize(("what", "n_pids"), [("sleep", 2), ("stubborn", 4)])
def test_an_interrupt_ends_all_ranks_within_10_seconds(what, n_pids, launched, temporary):
    """Also those that do not want to end, and what they have started."""
    before, one = shared_files(), launched(what, n_pids)
    assert len(one.left()) >= n_pids + 1  # of torchrun's own too
    assert os.getpgid(one.process.pid) not in {os.getpgid(other.pid) for other in one.left()}  # Stop does not hit them
    one.process.send_signal(signal.SIGINT)
    assert one.seconds_to_end() < 10
    assert one.left() == []
    assert one.process.returncode != 0 and one.errors.rstrip().endswith("KeyboardInterrupt")
    assert os.listdir(temporary) == []
    assert left_in_shared_memory(before, [process.pid for process in one.family]) == []


@needs_signals
def test_a_second_interrupt_leaves_nothing_behind_either(launched):
    """As whoever presses Stop twice does."""
    one = launched("stubborn", 4)
    one.process.send_signal(signal.SIGINT)
    time.sleep(1)
    one.process.send_signal(signal.SIGINT)
    one.seconds_to_end()
    assert one.left() == []


@needs_signals
def test_torchrun_that_is_killed_leaves_no_ranks_behind(launched):
    one = launched("sleep", 2)
    agent = next(process for process in one.family if process.ppid() == one.process.pid)
    agent.kill()
    time.sleep(0.5)
    one.process.send_signal(signal.SIGINT)
    assert one.seconds_to_end() < 10
    assert one.left() == []


@needs_signals
@pytest.mark.parametrize("is_killed", [True, False])
def test_ranks_are_asked_to_end_before_they_are_made_to_also_where_torchrun_is_gone(is_killed, launched, temporary):
    one = launched("obliging", 2)
    if is_killed:
        next(process for process in one.family if process.ppid() == one.process.pid).kill()
        time.sleep(0.5)
    one.process.send_signal(signal.SIGINT)
    one.seconds_to_end()
    assert one.left() == []
    assert sorted(os.listdir(temporary)) == ["asked_0", "asked_1"]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("count", "restarts"), [(0, 0), (-1, 0), (2, -1)])
def test_no_ranks_are_refused(count, restarts):
    with pytest.raises(ValueError, match=f"ranks is {count}, restarts {restarts}: start at least 1 rank"):
        torchrun(["-m", "ranks.lines"], ranks=count, restarts=restarts)


def test_outside_of_torchrun_there_are_no_ranks_to_join(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match=r"RANK is not set: start this with torchrun, or with course_lib\.parallel"):
        ranks().__enter__()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match="WORLD_SIZE is not set"):
        ranks().__enter__()


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("mpi", "backend 'mpi' is unknown: choose one of gloo, nccl"),
        ("gloo", "this torch was built without gloo: take another backend, or install a torch with it"),
        ("nccl", "nccl connects GPUs, and the device is cpu: take gloo, or COURSE_DEVICE=cuda"),
    ],
)
def test_a_backend_that_cannot_be_is_refused(backend, words, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "COURSE_DEVICE": "cpu"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.is_gloo_available", lambda: False)
    with pytest.raises(ValueError, match=words):
        ranks(backend).__enter__()


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs and mps."""
    monkeypatch.delenv("COURSE_DEVICE", raising=False)
    for name, value in {"cuda.is_available": True, "backends.mps.is_available": True, "cuda.device_count": 2}.items():
        monkeypatch.setattr(f"torch.{name}", lambda value=value: value)
    return monkeypatch


def test_more_ranks_than_gpus_are_refused(gpus):
    with pytest.raises(ValueError, match="3 ranks share 2 GPUs of this machine, and each takes one: start fewer, or"):
        device_of_ranks(None, 3)
    assert (device_of_ranks(None, 2).type, device_of_ranks("cpu", 3).type) == ("cuda", "cpu")


def test_ranks_compute_on_the_cpu_where_there_is_mps_alone_and_refuse_it_by_name(gpus):
    gpus.setattr("torch.cuda.is_available", lambda: False)
    assert (pick_device().type, device_of_ranks(None, 2).type) == ("mps", "cpu")
    words = "no backend connects ranks on mps: take --device cpu, or COURSE_DEVICE=cpu"
    with pytest.raises(ValueError, match=words):
        device_of_ranks("mps", 2)
    gpus.setenv("COURSE_DEVICE", "mps")
    with pytest.raises(ValueError, match=words):
        device_of_ranks(None, 2)


WITHOUT = """
import sys, torch
for name in [name for name in sys.modules if name.startswith("torch.distributed")]:
    del sys.modules[name]
del torch._C._c10d_init, torch.distributed  # by which torch tells whether it was built with that
import torch.distributed
assert not torch.distributed.is_available()
from course_lib import cli, runs
sys.exit(cli.main(sys.argv[1:]))
"""


@slow
def test_a_torch_without_ranks_is_refused_in_one_line(tmp_path):
    arguments = ["pretrain", "decoder", "--out", str(tmp_path / "out"), "--ranks", "2"]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True)
    words = "this torch was built without torch.distributed: install another, or train on one process"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"course pretrain: {words}\n")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the command line

SMALL = [
    *("pretrain", "decoder", "--width", "32", "--layers", "2", "--row-length", "64", "--batch-size", "4"),
    *("--tokens", "1024", "--optimizer", "adamw", "--dtype", "float32"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 60 real reviews."""
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text("\n\n".join(review.text for review in reviews_of("train", "imdb")[:60]), "utf-8")
    return path


REFUSALS = [
    (["--ranks", "2", "--device", "tpu"], "device 'tpu' is unknown: choose one of cpu, cuda, mps"),
    (["--ranks", "2", "--device", "cuda"], "device 'cuda' is not on this machine: use cpu, or unset COURSE_DEVICE"),
    (["--ranks", "9"], "9 ranks share batches of 4: start at least 1, and no more than that"),
    (["--ranks", "2", "--engine", "zero"], "engine 'zero' is unknown: choose one of ddp, fsdp"),
    (["--engine", "ddp"], "engine is 'ddp': it is for ranks: give --ranks N too, or start with torchrun"),
    (["--ranks", "2", "--engine", "fsdp", "--optimizer", "muon"], "Muon needs whole matrices, and fsdp cuts them"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSALS, ids=[" ".join(case[0]) for case in REFUSALS])
def test_ranks_that_cannot_be_are_refused_in_one_line_before_any_is_started(changes, words, text, tmp_path, capsys):
    out = tmp_path / "out"
    with mock.patch("torch.cuda.is_available", return_value=False):
        assert cli.main([*SMALL, "--text", str(text), "--out", str(out), *changes]) == 2
    said, errors = capsys.readouterr()
    assert errors.startswith("course pretrain: ") and words in errors and len(errors.splitlines()) == 1
    assert said == "" and not out.exists()


def test_a_folder_that_holds_a_run_is_refused_before_any_rank_is_started(text, tmp_path, capsys):
    (tmp_path / "step_3").mkdir()
    assert cli.main([*SMALL, "--text", str(text), "--out", str(tmp_path), "--ranks", "2"]) == 2
    assert "holds a run already: resume it, or choose another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_one_process_has_begun_is_refused_before_any_rank_is_started(text, tmp_path, capsys):
    arguments = [*SMALL, "--text", str(text), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main(arguments) == 0
    capsys.readouterr()
    assert cli.main([*arguments, "--ranks", "2", "--resume"]) == 2
    said, errors = capsys.readouterr()
    assert "was written by one process, and ranks read checkpoints in parts: go on without ranks" in errors
    assert said == "" and not (tmp_path / "run" / ".launch").exists()


def test_0_ranks_are_refused(text, tmp_path, capsys):
    assert cli.main([*SMALL, "--text", str(text), "--out", str(tmp_path / "out"), "--ranks", "0"]) == 2
    assert "start at least 1" in capsys.readouterr().err
