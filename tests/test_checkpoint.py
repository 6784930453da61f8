"""Checkpoints: whole or refused by name, the right ones kept, and a state that brings a run back to the bit."""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as parse_safetensors
from tiny import tiny

from course_lib import checkpoint as module
from course_lib.checkpoint import Checkpoints, random_states, restore_random_states
from course_lib.files import sha256_of
from course_lib.pretrained import model_files
from course_lib.records import check_same
from course_lib.runtime import seeded

ABOUT = {"seed": 0, "rate": 1e-3, "config": {"d_model": 16}, "rungs": [0.5, 1.0]}


@pytest.fixture(scope="module")
def some_files():
    return model_files(tiny("causal", d_model=8, d_ff=8, n_layers=1))


@pytest.fixture
def three(tmp_path, some_files):
    """Checkpoints of steps 10, 20 and 30, the second the best."""
    checkpoints = Checkpoints(tmp_path / "run", keep=3)
    for step, score in ((10, 5.0), (20, 4.0), (30, 4.5)):
        checkpoints.save(step, some_files, {"moments": torch.arange(5.0) + step}, about=ABOUT, score=score)
    return checkpoints


def same(state, other):
    return torch.equal(state["moments"], other["moments"])


# ---------------------------------------------------------------- there and back


def test_what_was_saved_is_loaded(tmp_path, some_files):
    state = {"moments": torch.randn(3, generator=seeded(1)), "by_id": {0: {"step": torch.tensor(2.0)}}, "t": (1, None)}
    checkpoints = Checkpoints(tmp_path)
    folder = checkpoints.save(7, some_files, state, about=ABOUT, score=2.5, pinned=True)
    loaded = checkpoints.load(7)
    assert loaded.folder == folder == tmp_path / "step_7"
    assert (loaded.step, loaded.score, loaded.about) == (7, 2.5, ABOUT)
    assert same(loaded.state, state)
    assert (loaded.state["by_id"], loaded.state["t"]) == (state["by_id"], state["t"])
    assert {name: (folder / name).read_bytes() for name in some_files} == some_files
    assert set(os.listdir(folder)) == {*some_files, "state.pt", "checkpoint.json"}


def test_saving_a_step_again_replaces_it(three, some_files):
    three.save(30, {"other": b"x"}, {"moments": torch.zeros(5)}, about=ABOUT)
    assert three.steps() == [10, 20, 30]
    assert sorted(os.listdir(three.folder / "step_30")) == ["checkpoint.json", "other", "state.pt"]
    assert three.latest().score is None


def test_the_settings_may_hold_whatever_json_can_say(tmp_path):
    """Numbers as keys become words on the way, and tuples lists: the fingerprint is that of what is read back."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {}, {}, about={"by_layer": {10: 0.1, 9: 0.2}, "pair": (1, 2)})
    assert checkpoints.latest().about == {"by_layer": {"10": 0.1, "9": 0.2}, "pair": [1, 2]}


# ---------------------------------------------------------------- damage


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path, size):
    os.truncate(path, size)


DAMAGES = {
    "bit": lambda path: flip(path, 8 * (path.stat().st_size // 2) + 1),
    "first bit": lambda path: flip(path, 0),
    "last bit": lambda path: flip(path, 8 * path.stat().st_size - 1),
    "cut by one byte": lambda path: cut(path, path.stat().st_size - 1),
    "cut in half": lambda path: cut(path, path.stat().st_size // 2),
    "empty": lambda path: cut(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n\0"),
    "missing": lambda path: path.unlink(),
    "a folder in its place": lambda path: (path.unlink(), path.mkdir()),
    "of another checkpoint": lambda path: shutil.copy(path.parent.parent / "step_20" / path.name, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "state.pt", "checkpoint.json"])
def test_whatever_is_damaged_is_named_and_the_checkpoint_before_it_used(three, name, damage):
    if damage == "of another checkpoint" and name in ("model.safetensors", "config.json"):
        three.save(20, {name: b"{}"}, {"moments": torch.zeros(5)}, about=ABOUT)
    path = three.folder / "step_30" / name
    DAMAGES[damage](path)
    words = (
        path if damage != "of another checkpoint" or name != "checkpoint.json" else "holds the checkpoint of step 20"
    )
    with pytest.raises(ValueError, match=r"missing|damaged|renamed") as refusal:
        three.load(30)
    assert str(words) in str(refusal.value)
    with pytest.warns(UserWarning, match="the checkpoint before it is used") as warned:
        assert three.latest().step == 20
    assert [str(words) in str(warning.message) for warning in warned] == [True]


def test_a_whole_checkpoint_is_loaded_without_a_warning(three, recwarn):
    """Negative control: the comparisons refuse nothing by themselves."""
    assert three.latest().step == 30
    assert three.best().step == 20
    assert not recwarn.list


def unseen_flips(checkpoints, name, step):
    """Flipped bits, one in every byte or so, after which the checkpoint is loaded with other content than it had."""
    path, unseen, whole = checkpoints.folder / f"step_{step}" / name, [], checkpoints.load(step)
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), max(9, 8 * len(content) // 1000 | 1)):
        flip(path, bit)
        try:
            found = checkpoints.load(step)
        except ValueError:
            pass
        else:
            is_same = same(found.state, whole.state) and (found.score, found.about) == (whole.score, whole.about)
            unseen += [] if is_same and name == "checkpoint.json" else [bit]
        path.write_bytes(content)
    return unseen


@pytest.mark.slow
def test_no_flipped_bit_of_the_state_or_the_manifest_goes_unseen(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(30, {"a": b"x"}, {"moments": torch.arange(5.0)}, about=ABOUT, score=4.5)
    for name in ("a", "state.pt", "checkpoint.json"):
        assert unseen_flips(checkpoints, name, 30) == []


def test_a_manifest_without_a_fingerprint_of_its_own_is_read_and_does_not_see_them_all(tmp_path):
    """As an earlier version wrote it: the control of the test above."""
    checkpoints = Checkpoints(tmp_path)
    folder = checkpoints.save(30, {"a": b"x"}, {"moments": torch.arange(5.0)}, about=ABOUT, score=4.5)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    del manifest["sha256"]
    (folder / "checkpoint.json").write_text(json.dumps(manifest))
    assert checkpoints.load(30).score == 4.5
    assert unseen_flips(checkpoints, "checkpoint.json", 30) != []


def test_the_weights_own_format_sees_no_flipped_bit(some_files):
    """Why every file has a fingerprint: safetensors reads whatever numbers there are."""
    content = bytearray(some_files["model.safetensors"])
    content[-5] ^= 1
    before, after = parse_safetensors(some_files["model.safetensors"]), parse_safetensors(bytes(content))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_of_several_damaged_checkpoints_each_is_named(three):
    for step in (20, 30):
        DAMAGES["bit"](three.folder / f"step_{step}" / "state.pt")
    with pytest.warns(UserWarning) as warned:
        assert three.latest().step == 10
    assert ["step_30" in str(w.message) for w in warned] == [True, False]
    assert ["step_20" in str(w.message) for w in warned] == [False, True]


def test_the_next_best_is_used_where_the_best_is_damaged(three):
    DAMAGES["bit"](three.folder / "step_20" / "model.safetensors")
    with pytest.warns(UserWarning, match="step_20.*damaged.*the next best checkpoint is used"):
        assert three.best().step == 30


def test_without_a_whole_checkpoint_it_says_which_way_is_left(three, tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint to go on from: start without --resume"):
        Checkpoints(tmp_path / "none").latest()
    for step in three.steps():
        (three.folder / f"step_{step}" / "checkpoint.json").unlink()
    with (
        pytest.raises(ValueError, match=r"no checkpoint in .* is whole: start another run in another folder"),
        pytest.warns(UserWarning, match="no checkpoint of this course"),
    ):
        three.latest()


def test_without_a_score_there_is_no_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {}, {}, about={})
    with pytest.raises(ValueError, match="holds no checkpoint with a score: validate before saving"):
        checkpoints.best()


def test_a_step_that_is_not_there_is_answered_with_those_that_are(three):
    with pytest.raises(ValueError, match=r"step_25 is not there: the run has checkpoints of steps \[10, 20, 30\]"):
        three.load(25)


def test_other_files_in_the_runs_folder_are_no_checkpoints(three):
    (three.folder / "record.jsonl").touch()
    (three.folder / "step_ten").mkdir()
    (three.folder / "step_40.txt").touch()
    assert three.steps() == [10, 20, 30]
    assert Checkpoints(three.folder / "none").steps() == []


def test_a_manifest_that_lacks_the_states_name_is_no_checkpoint_to_go_on_from(three):
    path = three.folder / "step_30" / "checkpoint.json"
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}
    del manifest["files"]["state.pt"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"has no state\.pt: it is no checkpoint to go on from"):
        three.load(30)
    for foreign in ("[]", "3", "null", '{"step": 30}'):
        path.write_text(foreign)
        with pytest.raises(ValueError, match=r"checkpoint\.json is damaged, or not of this course"):
            three.load(30)


# ---------------------------------------------------------------- which ones stay


def those_that_stay(saved, keep):
    """The rule in plain words, over all that was ever saved: the last, the best, the pinned."""
    scored = [(score, step) for step, score, _ in saved if score is not None]
    best = [min(scored)[1]] if scored else []
    pinned = [step for step, _, is_pinned in saved if is_pinned]
    return sorted({*[step for step, *_ in saved][-keep:], *best, *pinned})


saves = st.lists(st.tuples(st.sampled_from([None, 1.0, 2.0, 3.0, 4.0]), st.booleans()), min_size=1, max_size=7)


@settings(max_examples=15)
@given(saves=saves, keep=st.integers(1, 3))
def test_the_last_the_best_and_the_pinned_stay_and_nothing_else(tmp_path_factory, saves, keep):
    checkpoints, saved = Checkpoints(tmp_path_factory.mktemp("run"), keep), []
    for number, (score, pinned) in enumerate(saves):
        step = 9 * number + 5  # 5, 14, ..., 104: not the order of their names
        checkpoints.save(step, {}, {}, about={}, score=score, pinned=pinned)
        saved.append((step, score, pinned))
        assert checkpoints.steps() == those_that_stay(saved, keep)
        assert len(os.listdir(checkpoints.folder)) == len(checkpoints.steps())


def test_of_two_that_are_equally_good_the_earlier_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step, score in ((5, 2.0), (10, 1.0), (100, 1.0)):
        checkpoints.save(step, {}, {}, about={}, score=score)
    assert checkpoints.best().step == 10


def test_a_damaged_checkpoint_of_a_later_step_does_not_crowd_out_the_new_one(three, some_files):
    """The run went on from step 20, was stopped at 25, and has not come to 30 again."""
    DAMAGES["bit"](three.folder / "step_30" / "state.pt")
    last = Checkpoints(three.folder, keep=1)
    last.save(25, some_files, {"moments": torch.zeros(5)}, about=ABOUT)
    assert last.steps() == [20, 25, 30]
    with pytest.warns(UserWarning, match="step_30"):
        assert last.latest().step == 25
    last.save(30, some_files, {"moments": torch.ones(5)}, about=ABOUT)
    assert last.steps() == [20, 30]
    assert same(last.latest().state, {"moments": torch.ones(5)})


def test_leftovers_of_a_killed_save_are_removed_by_the_next(three, some_files):
    (three.folder / ".step_40.abc.partial").mkdir()
    three.save(50, some_files, {}, about=ABOUT)
    assert sorted(os.listdir(three.folder)) == ["step_20", "step_30", "step_50"]


def fill(checkpoints, step, *, stop=False):
    with checkpoints.filling(step, {"moments": torch.ones(5)}, about=ABOUT, score=1.0) as folder:
        (folder / "part_0").write_bytes(b"by one")
        if stop:
            raise KeyboardInterrupt
        (folder / ".hidden").write_bytes(b"by another")


def test_what_others_put_into_a_checkpoint_has_a_fingerprint_too(three):
    fill(three, 40)
    assert three.best().step == 40
    assert set(os.listdir(three.folder / "step_40")) == {"part_0", ".hidden", "state.pt", "checkpoint.json"}
    for name in ("part_0", ".hidden"):
        (three.folder / "step_40" / name).write_bytes(b"other")
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            three.load(40)
        fill(three, 40)


def test_a_checkpoint_that_is_interrupted_while_it_is_filled_is_absent_and_costs_none(three):
    with pytest.raises(KeyboardInterrupt):
        fill(three, 40, stop=True)
    assert sorted(os.listdir(three.folder)) == ["step_10", "step_20", "step_30"]
    fill(three, 40)
    assert three.steps() == [20, 30, 40]  # the control


@pytest.mark.parametrize("keep", [0, -1])
def test_to_keep_none_is_refused(tmp_path, keep):
    with pytest.raises(ValueError, match=f"keep is {keep}: the last checkpoint at least must stay"):
        Checkpoints(tmp_path, keep)


# ---------------------------------------------------------------- what cannot be written

FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from course_lib.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoints.save(5, {"model": b"x" * 90_000}, {}, about={}, score=2.0)
checkpoints.save(10, {"model": b"x" * 90_000}, {}, about={}, score=1.0)
try:
    checkpoints.save(20, {"model": b"x" * 110_000}, {}, about={}, score=0.5)
except OSError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_disk_that_takes_no_more_leaves_the_last_good_checkpoint_and_says_so(tmp_path):
    """A real write that fails half-way, in a process that may write no longer file."""
    argv = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(module.__file__).rsplit("course_lib", 1)[0]]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "the checkpoint of step 20 could not be written" in said
    assert "make room or write elsewhere; step 10 is the last good one" in said
    assert str(tmp_path) in said
    assert sorted(os.listdir(tmp_path)) == ["step_10", "step_5"]
    assert Checkpoints(tmp_path).latest().step == 10


def test_a_folder_that_cannot_be_made_is_said_with_what_there_is(tmp_path):
    (tmp_path / "run").write_text("a file in the folder's place")
    with pytest.raises(
        OSError, match=r"checkpoint of step 10 could not be written .*none was written before"
    ) as failure:
        Checkpoints(tmp_path / "run").save(10, {}, {}, about={})
    assert failure.value.filename == str(tmp_path / "run")
    assert failure.value.errno
    assert os.listdir(tmp_path) == ["run"]


class Whatever:
    """Of no use to anybody who reads a state."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Whatever(), r"holds more than tensors and plain values \(.*Whatever\)"),
        (random.Random(0), r"holds more than tensors and plain values \(random\.Random\)"),
        (np.arange(3), r"holds more than tensors and plain values \(numpy"),
        (lambda: 0, "holds what cannot be written"),
        ((n for n in "ab"), "holds what cannot be written"),
    ],
    ids=["object", "generator of Python's", "array", "function", "generator"],
)
def test_a_state_that_could_not_be_read_back_is_refused_at_once(three, value, words):
    with pytest.raises(ValueError, match=f"the state {words}.*leave that out") as refusal:
        three.save(40, {}, {"moments": value}, about=ABOUT)
    assert len(str(refusal.value).splitlines()) == 1
    assert three.steps() == [10, 20, 30]
    assert not list(three.folder.glob(".*"))


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_none_is_refused(three, score):
    """It would compare as the best, or make the manifest something that is not JSON."""
    with pytest.raises(ValueError, match=f"score is {score}: give a finite held-out loss"):
        three.save(40, {}, {}, about=ABOUT, score=score)
    assert three.steps() == [10, 20, 30]


def test_what_json_cannot_say_is_refused_before_anything_is_written(three):
    with pytest.raises(TypeError, match="not JSON serializable"):
        three.save(40, {}, {}, about={"rate": torch.tensor(1.0)})
    assert three.steps() == [10, 20, 30]


class Intruder:
    """Runs when it is unpickled, as a state from a stranger could."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_state_that_would_run_code_is_not_loaded(three, tmp_path):
    folder, trace = three.folder / "step_30", tmp_path / "trace"
    torch.save({"moments": Intruder(trace)}, folder / "state.pt")
    manifest = {k: v for k, v in json.loads((folder / "checkpoint.json").read_text()).items() if k != "sha256"}
    manifest["files"]["state.pt"] = sha256_of(folder / "state.pt")
    (folder / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="holds more than tensors and plain values"):
        three.load(30)
    assert not trace.exists()
    torch.load(folder / "state.pt", weights_only=False)["moments"].close()  # the control
    assert trace.exists()


# ---------------------------------------------------------------- random states and settings


def drawn():
    """One number from each global generator."""
    return torch.rand(()).item(), np.random.random(), random.random()  # noqa: NPY002


def restored(tmp_path, forget=None):
    """Numbers drawn after the states came back from a file, all but one forgotten."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {}, {"random": random_states()}, about={})
    wanted = drawn()
    states = checkpoints.latest().state["random"]
    for _ in range(700):  # beyond one block of the Mersenne twister
        drawn()
    if forget:
        states[forget] = random_states()[forget]
    restore_random_states(states)
    return wanted, drawn()


def test_all_random_generators_go_on_where_they_were(tmp_path):
    wanted, found = restored(tmp_path)
    assert wanted == found


@pytest.mark.parametrize(("place", "name"), enumerate(["torch", "numpy", "python"]))
def test_the_comparison_above_sees_a_generator_that_was_forgotten(tmp_path, place, name):
    wanted, found = restored(tmp_path, name)
    assert [w == f for w, f in zip(wanted, found, strict=True)] == [n != place for n in range(3)]


def test_a_normal_number_that_numpy_keeps_for_later_comes_back_too(tmp_path):
    np.random.standard_normal()  # noqa: NPY002 (they are made in pairs)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {}, random_states(), about={})
    wanted = [np.random.standard_normal() for _ in range(3)]  # noqa: NPY002
    restore_random_states(checkpoints.latest().state)
    assert [np.random.standard_normal() for _ in range(3)] == wanted  # noqa: NPY002


def test_every_setting_that_differs_is_named_with_both_values():
    check_same(ABOUT, dict(reversed(ABOUT.items())))
    with pytest.raises(ValueError, match=r"begun with seed 0, not 1, rate 0\.001, not 0\.002: give the same again"):
        check_same(ABOUT, ABOUT | {"seed": 1, "rate": 2e-3})
    with pytest.raises(ValueError, match=r"begun with text None, not mine\.txt"):
        check_same(ABOUT, ABOUT | {"text": "mine.txt"})
    with pytest.raises(ValueError, match="begun with seed 0, not None"):
        check_same(ABOUT, {k: v for k, v in ABOUT.items() if k != "seed"})


# ---------------------------------------------------------------- names of files


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../x", "'../x' is no plain file name"),
        ("a/b", "'a/b' is no plain file name"),
        ("/x", "'/x' is no plain file name"),
        ("state.pt", "'state.pt' is what a checkpoint calls a file of its own: give the file another name"),
        ("checkpoint.json", "'checkpoint.json' is what a checkpoint calls a file of its own"),
    ],
)
def test_a_file_that_would_lie_elsewhere_or_take_the_place_of_a_checkpoints_own_is_refused(name, words, three):
    before = sorted(path.relative_to(three.folder.parent) for path in three.folder.parent.rglob("*"))
    with pytest.raises(ValueError, match=words):
        three.save(40, {"fine": b"x", name: b"y"}, {}, about=ABOUT)
    assert sorted(path.relative_to(three.folder.parent) for path in three.folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (lambda folder: (folder / "state.pt").write_bytes(b"y"), "'state.pt' is what a checkpoint calls"),
        (lambda folder: (folder / "checkpoint.json").write_bytes(b"y"), "'checkpoint.json' is what a checkpoint calls"),
        (lambda folder: (folder / "inner").mkdir(), "there is a folder 'inner' among the files"),
    ],
)
def test_so_is_what_is_put_into_the_folder_by_hand(put, words, three):
    with pytest.raises(ValueError, match=words), three.filling(40, {}, about=ABOUT) as folder:
        put(folder)
    assert sorted(os.listdir(three.folder)) == ["step_10", "step_20", "step_30"]
