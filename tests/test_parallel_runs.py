"""Pre-training on ranks: stopped by one of them, or with one of them killed, it ends as if nothing had been. Real
processes, real kills."""

import contextlib
import json
import random
import shutil
import threading
import time

import psutil
import pytest
import torch
from ranks import pretraining as program
from ranks.starting import SEARCHED, start

from course_lib import cli
from course_lib.checkpoint import Checkpoints
from course_lib.data import PretrainingDataset, reviews_of
from course_lib.pretrained import load_model
from course_lib.records import Record
from course_lib.runs.pretraining import pretrain

KILLS = 3  # of a run; 10 take some three minutes more
STEPS = max(20, 8 * KILLS)
ENGINES = ["ddp", "fsdp"]
slow = pytest.mark.slow
pytestmark = slow


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 60 real reviews."""
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text("\n\n".join(" ".join(review.text.split()) for review in reviews_of("train", "imdb")[:60]), "utf-8")
    return path


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def curve(folder):
    """All rows but the durations, {(metric, step): value}, each there once."""
    rows = [row for row in Record(folder / "record.jsonl").rows() if row["metric"] != "seconds"]
    found = {(row["metric"], row["step"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    return found


def distance(folder, other):
    """The largest difference of two models' weights, relative to the largest weight."""
    ours, theirs = (load_model(path / "model").state_dict() for path in (folder, other))
    largest = max(tensor.abs().max() for tensor in theirs.values())
    return (max((ours[name] - theirs[name]).abs().max() for name in theirs) / largest).item()


# ---------------------------------------------------------------- stopped


@pytest.fixture(scope="module")
def sittings(text, tmp_path_factory):
    """The folder of several runs, and for each rank {run: the rows of each sitting}."""
    folder = tmp_path_factory.mktemp("sittings")
    start("pretraining", "sittings", folder, text)
    return folder, [json.loads((folder / f"sittings_{number}.json").read_text()) for number in (0, 1)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_one_rank_stops_ends_as_the_undisturbed_one_to_the_bit(engine, sittings):
    folder, rows = sittings
    first, second = rows[0][f"{engine}_{engine}"]
    assert [row[0] for row in first] == list(range(1, program.STOP_AT + 1))
    assert [row[0] for row in second] == list(range(program.STOP_AT + 1, 21))
    assert first + second == rows[0][engine][0]
    whole, stopped = folder / engine, folder / f"{engine}_{engine}"
    assert weights(stopped) == weights(whole)
    assert curve(stopped) == curve(whole)
    assert {("loss", step) for step in range(1, 21)} < curve(whole).keys()
    assert Checkpoints(stopped).steps() == Checkpoints(whole).steps() == [15, 20]


def test_all_ranks_see_the_same_rows_and_then_the_model(sittings):
    assert sittings[1][0] == sittings[1][1]
    assert all(sittings[1][1][f"{name} is there"] for name in program.SITTINGS)


def test_dropout_draws_alike_in_each_sitting_and_otherwise_on_each_rank(sittings):
    draws = [json.loads((sittings[0] / f"draws_{number}.json").read_text()) for number in (0, 1)]
    assert len({of_rank["ddp"] for of_rank in draws}) == 2
    for of_rank in draws:
        assert len(set(of_rank.values())) == 1


def test_a_run_may_go_on_with_the_other_engine(sittings):
    """Which sums in another order."""
    folder, _ = sittings
    assert distance(folder / "ddp_fsdp", folder / "ddp") < 1e-3
    assert distance(folder / "ddp", folder / "dry") > 1e-2  # the control: other dropout


def test_without_dropout_the_model_is_that_of_one_process(sittings, text, tmp_path):
    folder, rows = sittings
    alone = list(pretrain(program.tiny(text, dropout=0.0, warmup=0), tmp_path, device="cpu"))
    assert [row.loss for row in alone[:1]] == pytest.approx([row[2] for row in rows[0]["dry"][0][:1]], rel=1e-6)
    assert distance(folder / "dry", tmp_path) < 2e-3
    assert [row.loss for row in alone] == pytest.approx([row[2] for row in rows[0]["dry"][0]], rel=1e-4)


def test_one_process_says_that_it_cannot_go_on_with_what_ranks_have_written(sittings, text):
    words = "step_20 was written by ranks, in parts: go on with --ranks, of which 1 will do"
    with pytest.raises(ValueError, match=words):
        list(pretrain(program.tiny(text), sittings[0] / "ddp", resume=True, device="cpu"))


# ---------------------------------------------------------------- killed


@pytest.fixture(scope="module", params=ENGINES)
def undisturbed(request, text, tmp_path_factory):
    """(engine, folder) of a run that is left in peace."""
    folder = tmp_path_factory.mktemp(f"whole_{request.param}") / "run"
    start("pretraining", "whole", folder, text, request.param, STEPS)
    return request.param, folder


def log(folder, number):
    """What a rank has noted so far."""
    path = folder.with_name(f"{folder.name}.rows_{number}")
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def ranks_of_this_process():
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RANK" in process.environ():
                found.append(process)
    return found


class Killer(threading.Thread):
    """Kills a random rank at a random moment of each attempt, as often as it is told."""

    def __init__(self, folder, kills, seed):
        super().__init__(daemon=True)
        self.folder, self.kills, self.chance = folder, kills, random.Random(seed)
        self.killed, self.is_over = [], threading.Event()

    def run(self):
        for attempt in range(self.kills):
            steps, moment = self.chance.randrange(0, 9), self.chance.uniform(0, 0.1)
            while not self.is_over.is_set():
                taken = len([line for line in log(self.folder, 0) if line["attempt"] == attempt])
                alive = [process for process in ranks_of_this_process() if self.attempt_of(process) == attempt]
                if taken >= steps and len(alive) == 2:
                    break
                time.sleep(0.01)
            else:
                return
            time.sleep(moment)
            with contextlib.suppress(psutil.Error):
                self.chance.choice(alive).kill()
                self.killed.append((attempt, taken))

    def attempt_of(self, process):
        try:
            return int(process.environ().get("TORCHELASTIC_RESTART_COUNT", -1))
        except psutil.Error:
            return -1


@pytest.fixture(scope="module")
def killed(undisturbed, text, tmp_path_factory):
    """(folder, what was killed) of the same run, some ranks of which were killed."""
    engine, _ = undisturbed
    folder = tmp_path_factory.mktemp(f"killed_{engine}") / "run"
    killer = Killer(folder, KILLS, seed=ENGINES.index(engine))
    killer.start()
    try:
        start("pretraining", "whole", folder, text, engine, STEPS, restarts=KILLS)
    finally:
        killer.is_over.set()
        killer.join()
    return folder, killer.killed


def test_kill_9_of_ranks_costs_their_steps_since_the_last_checkpoint_and_nothing_else(undisturbed, killed):
    folder, kills = killed
    assert len(kills) == KILLS
    assert max(line["attempt"] for line in log(folder, 0)) == KILLS
    assert weights(folder) == weights(undisturbed[1])
    assert curve(folder) == curve(undisturbed[1])
    assert {("loss", step) for step in range(1, 21)} < curve(folder).keys()
    for step in Checkpoints(folder).steps():
        Checkpoints(folder).load(step)
    assert not list(folder.glob(".*.partial"))


def rows_taken(folder):
    """{(number of a batch, rank): the rows that it took last}; each attempt is one stretch from a checkpoint on."""
    found = {}
    for number in (0, 1):
        lines = log(folder, number)
        for attempt in {line["attempt"] for line in lines}:
            numbers = [line["number"] for line in lines if line["attempt"] == attempt]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert numbers[0] % 5 == 0
        for line in lines:
            assert found.get((line["number"], number), line["rows"]) == line["rows"]
            found[line["number"], number] = line["rows"]
    return found


def test_no_sample_is_skipped_or_repeated(undisturbed, killed, text):
    taken = rows_taken(killed[0])
    assert taken == rows_taken(undisturbed[1])
    run = program.tiny(text, STEPS)
    data: PretrainingDataset = run.dataset(run.rows()[0])
    assert taken.keys() == {(number, rank) for number in range(STEPS) for rank in (0, 1)}
    for number in range(STEPS):
        assert sorted(taken[number, 0] + taken[number, 1]) == sorted(data.rows(number).tolist())


# ---------------------------------------------------------------- the command line

SMALL = [
    *("pretrain", "decoder", "--width", "32", "--layers", "2", "--dropout", "0.1", "--row-length", "64"),
    *("--batch-size", "4", "--tokens", "5120", "--optimizer", "adamw", "--dtype", "float32", "--save-every", "5"),
]


def test_course_pretrain_on_ranks_prints_its_lines_and_leaves_a_model(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", SEARCHED)
    arguments = [*SMALL, "--text", str(text), "--out", str(tmp_path / "run"), "--ranks", "2", "--engine", "fsdp"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said[:3]] == ["step 1 of 20", "step 10 of 20", "step 20 of 20"]
    assert said[3].startswith("20 steps, 5,120 tokens; ") and "its best (step 20)" in said[4]
    assert len(said) == 6
    model = load_model(tmp_path / "run" / "model")
    assert (model.config.d_model, model.config.n_layers) == (32, 2)
    assert torch.isfinite(next(model.parameters())).all()
    assert curve(tmp_path / "run")["held_out", 20] < curve(tmp_path / "run")["held_out", 0]
    before = weights(tmp_path / "run")
    assert cli.main(arguments) == 2
    assert "holds a run already: resume it, or choose another folder" in capsys.readouterr().err
    assert weights(tmp_path / "run") == before


def test_what_the_ranks_refuse_is_said_once(text, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", SEARCHED)
    assert cli.main([*SMALL, "--text", str(text), "--out", str(tmp_path), "--ranks", "2", "--resume"]) != 0
    said = "".join(capfd.readouterr())
    assert 1 <= said.count("course pretrain: ") <= 3  # each rank, and the command


def test_a_folder_that_holds_a_run_is_refused_however_often_torchrun_starts_the_ranks(sittings, text, tmp_path):
    """As several machines start them, without the look that `course pretrain --ranks` takes."""
    folder = tmp_path / "run"
    shutil.copytree(sittings[0] / "ddp", folder)
    shutil.rmtree(folder / "step_20")
    shutil.rmtree(folder / "model")
    with pytest.raises(RuntimeError, match="holds a run already: resume it, or choose another folder"):
        start("pretraining", "whole", folder, text, "ddp", 20, restarts=1)
    assert Checkpoints(folder).steps() == [15]


def test_more_ranks_than_a_batch_has_rows_are_refused_before_anything_is_written(text, tmp_path):
    """As several machines start them."""
    settings = {"--batch-size": "1", "--tokens": "1280", "--out": str(tmp_path / "run"), "--text": str(text)}
    arguments = [*SMALL, *(word for pair in settings.items() for word in pair)]
    with pytest.raises(RuntimeError, match="2 ranks share batches of 1: start at least 1, and no more than that"):
        start("gated", tmp_path, "", *arguments)
    assert not (tmp_path / "run").exists()
