"""Several machines, a torchrun each: one is lost and comes back, and the run ends as if nothing had been. On this
machine, with real processes and real kills, each in a network of its own where the system allows that."""

import re
import shutil
import socket
import subprocess
import sys

import pytest
from ranks.machines import Machines, wait_for
from ranks.networks import LOOPBACK, two_places
from ranks.starting import start

from course_lib.checkpoint import Checkpoints
from course_lib.data import reviews_of
from course_lib.pretrained import load_model
from course_lib.records import Record

slow = pytest.mark.slow
pytestmark = slow
STEPS = 30
GATES = (7, 12, 22)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 60 real reviews."""
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text("\n\n".join(" ".join(review.text.split()) for review in reviews_of("train", "imdb")[:60]), "utf-8")
    return path


@pytest.fixture
def machines(tmp_path):
    """Which are gone when the test is over, and have left nothing."""
    with two_places() as places:
        made = Machines(tmp_path / "machines", places=places)
        yield made
        left = made.left()
        made.clean_up()
        assert left == []


def command(text, folder, dropout):
    """`course pretrain` in a small configuration."""
    return [
        *("pretrain", "decoder", "--width", "32", "--layers", "2", "--dropout", dropout, "--row-length", "64"),
        *("--batch-size", "4", "--tokens", STEPS * 4 * 64, "--optimizer", "adamw", "--dtype", "float32"),
        *("--save-every", "5", "--keep", "10", "--device", "cpu", "--text", text, "--out", folder),
    ]


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    """{dropout: folder} of a run on two ranks of one machine that is left in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for dropout in (0.0, 0.1):
        start("gated", folder, "", *command(text, folder / str(dropout), dropout))
    return {dropout: folder / str(dropout) for dropout in (0.0, 0.1)}


def weights(folder):
    return load_model(folder / "model").state_dict()


def distance(folder, other):
    """The largest difference of two models' weights, relative to the largest weight."""
    ours, theirs = weights(folder), weights(other)
    return (max((ours[n] - theirs[n]).abs().max() for n in theirs) / max(t.abs().max() for t in theirs.values())).item()


def curve(folder):
    """All rows but the durations, {(metric, step): value}, each there once."""
    rows = [row for row in Record(folder / "record.jsonl").rows() if row["metric"] != "seconds"]
    found = {(row["metric"], row["step"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    return found


def writers(folder, step):
    """How many ranks have written a checkpoint."""
    return len({path.name.split("_")[2] for path in (folder / f"step_{step}").glob("__*.distcp")})


class Gates:
    """Where the ranks of a run wait."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def wait_for(self, number, world, machines):
        """Until so many ranks wait there, which have begun to do so now."""
        names = [f"at_{number}_{rank}_of_{world}" for rank in range(world)]
        wait_for(lambda: all((self.folder / name).exists() for name in names), machines)
        for name in names:
            (self.folder / name).unlink()

    def open(self, number):
        (self.folder / f"go_{number}").touch()


# ---------------------------------------------------------------- a machine that is lost


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_machine_that_is_killed_and_comes_back_costs_nothing(engine, machines, undisturbed, text, tmp_path):
    """Of two that train together only: the other waits for it. To the bit, with dropout."""
    folder, gates = tmp_path / "run", Gates(tmp_path / "gates")

    def join(is_host):
        flags = ["--nnodes", "2", "--max-restarts", "3", "--rdzv-id", "mine"]
        flags += machines.rendezvous(is_host=is_host, more=",keep_alive_interval=1")
        arguments = [gates.folder, "12,14", *command(text, folder, 0.1), "--engine", engine]
        return machines.start("-m", "ranks.gated", *arguments, flags=flags, is_first=is_host)

    first, second = join(True), join(False)
    gates.wait_for(12, 2, [first, second])
    second.kill()
    gates.open(12)  # the first one meets nobody
    back = join(False)
    gates.wait_for(14, 2, [first, back])  # from the checkpoint of step 10 on
    gates.open(14)
    assert [first.end(), back.end()] == [0, 0], first.said() + back.said()
    assert [writers(folder, step) for step in (10, 15, 30)] == [2, 2, 2]
    if engine == "ddp":
        assert curve(folder) == curve(undisturbed[0.1])
        assert distance(folder, undisturbed[0.1]) == 0
    assert distance(folder, undisturbed[0.1]) < 2e-3  # fsdp sums in another order
    assert distance(folder, undisturbed[0.0]) > 1e-2  # the control: other dropout
    assert set(range(1, 21)) <= {step for metric, step in curve(folder) if metric == "loss"}


def test_a_machine_goes_on_alone_where_it_may_and_takes_others_in(machines, undisturbed, text, tmp_path):
    """One, then two, one, and two again. The sums are formed in another order then, and Adam makes more of that: the
    weights are equal within a tolerance. Without dropout, of which each rank draws its own."""
    folder, gates = tmp_path / "run", Gates(tmp_path / "gates")

    def join(is_host):
        flags = ["--nnodes", "1:2", "--max-restarts", "1", "--rdzv-id", "mine"]
        flags += machines.rendezvous(is_host=is_host, more=",last_call_timeout=3,keep_alive_interval=1")
        arguments = [gates.folder, ",".join(map(str, GATES)), *command(text, folder, 0.0)]
        return machines.start("-m", "ranks.gated", *arguments, flags=flags, is_first=is_host)

    first = join(True)
    gates.wait_for(7, 1, [first])
    second = join(False)
    gates.wait_for(7, 2, [first, second])
    gates.open(7)
    gates.wait_for(12, 2, [first, second])
    second.kill()
    gates.open(12)
    gates.wait_for(22, 1, [first])
    back = join(False)
    gates.wait_for(22, 2, [first, back])
    gates.open(22)
    assert [first.end(), back.end()] == [0, 0], first.said() + back.said()
    assert [writers(folder, step) for step in (5, 10, 20, 25, 30)] == [1, 2, 1, 2, 2]
    assert curve(folder).keys() == curve(undisturbed[0.0]).keys()
    assert distance(folder, undisturbed[0.0]) < 2e-3
    assert distance(folder, undisturbed[0.1]) > 1e-2  # the control


def test_two_places_reach_each_other_and_not_the_loopback_of_this_machine():
    with socket.socket() as here, two_places() as (first, second):
        if first.address == LOOPBACK:
            pytest.skip("this process may not make network namespaces (they want root and iproute2)")
        here.bind((LOOPBACK, 0))
        here.listen()
        connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
        serve = "import socket; s = socket.create_server(('', 7077)); print('ready', flush=True); s.accept()"
        with subprocess.Popen([*first.before, sys.executable, "-c", serve], stdout=subprocess.PIPE) as server:
            assert server.stdout.readline() == b"ready\n"
            assert (
                subprocess.run([*second.before, sys.executable, "-c", connect, first.address, "7077"]).returncode == 0
            )
        port = str(here.getsockname()[1])
        refused = subprocess.run([*second.before, sys.executable, "-c", connect, LOOPBACK, port], capture_output=True)
        assert b"ConnectionRefusedError" in refused.stderr
        assert subprocess.run([sys.executable, "-c", connect, LOOPBACK, port]).returncode == 0  # the control


# ---------------------------------------------------------------- what another launch has begun


def test_another_launch_by_the_same_name_does_not_go_on_with_a_run(machines, text, tmp_path):
    """Also not where its ranks are started anew, which they are after each refusal. The static rendezvous calls every
    launch none."""
    folder = tmp_path / "run"

    def launch():
        flags = ["--nnodes", "1", "--max-restarts", "1", "--master-addr", "127.0.0.1", "--master-port", machines.port]
        return machines.start("-m", "course_lib.cli", *command(text, folder, 0.0), flags=flags)

    begun = launch()
    assert begun.end() == 0, begun.said()
    for step in Checkpoints(folder).steps()[1:]:
        shutil.rmtree(folder / f"step_{step}")
    again = launch()
    assert again.end() == 1
    assert again.said().count("holds a run already: resume it, or choose another folder") >= 2  # in both attempts
    assert len(Checkpoints(folder).steps()) == 1


# ---------------------------------------------------------------- ports


@pytest.fixture
def taken():
    """A port that another program has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_a_port_that_is_in_use_is_named(rendezvous, taken, tmp_path):
    """And ends torchrun, which would wait without `is_host`."""
    machines = Machines(tmp_path / "machines", port=taken)
    flags = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", str(taken)]
    if rendezvous == "c10d":
        flags = ["--nnodes", "2", "--rdzv-id", "mine", *machines.rendezvous(is_host=True)]
    try:
        one = machines.start("-m", "ranks.lines", "write_lines", flags=flags)
        assert one.end() != 0
        assert re.search(rf"port: {taken}\b.*address already in use", one.said())
    finally:
        machines.clean_up()
