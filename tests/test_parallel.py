"""Ranks that share a step train the model that one process trains, and their checkpoints are read by any number of
them. Real processes, started by torchrun; one start serves many tests."""

import json
from functools import cache

import pytest
import torch
from ranks import scenes
from ranks.starting import start

from course_lib.checkpoint import Checkpoints
from course_lib.parallel import agreed, gathered, rank, read_weights, summed, world
from course_lib.training import held_out_loss

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
slow = pytest.mark.slow


def run_cases(folder, names):
    """{rank: {case: what it heard}} of two ranks."""
    start("equality", folder, names)
    lines = [(folder / f"rank_{number}.jsonl").read_text().splitlines() for number in (0, 1)]
    heard = [[json.loads(line) for line in of_rank] for of_rank in lines]
    return folder, [{row["case"]: row for row in of_rank} for of_rank in heard]


@pytest.fixture(scope="module")
def two_cases(tmp_path_factory):
    return run_cases(tmp_path_factory.mktemp("two_cases"), "QUICK")


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    return run_cases(tmp_path_factory.mktemp("on_two_ranks"), "EQUAL,OTHER_MODELS,SILENT,MISTAKES")


alone = cache(scenes.alone)


def one_process(case):
    """What the comparison is with: the kind of engine does not matter to it."""
    return alone(scenes.Case("", case.objective, case.optimizer, case.dtype, case.accumulate, case.lengths))


def differs_by(case, folder):
    return scenes.distance(torch.load(folder / f"{case.name}.pt"), one_process(case)[0])


# ---------------------------------------------------------------- the same weights as one process


@pytest.mark.slow
def test_two_ranks_make_the_weights_that_one_process_makes(two_cases):
    """Of ranks that begin with different weights, on ragged rows, with clipping that bites."""
    folder, heard = two_cases
    for case in scenes.QUICK:
        assert differs_by(case, folder) < 1e-12
        assert heard[0][case.name]["rows"] == heard[1][case.name]["rows"]


@slow
@pytest.mark.parametrize("case", scenes.EQUAL + scenes.SILENT, ids=lambda case: case.name)
def test_weights_losses_and_norms_are_those_of_one_process(case, on_two_ranks):
    folder, heard = on_two_ranks
    assert differs_by(case, folder) < TOLERANCE[case.dtype]
    rows, wanted = heard[0][case.name]["rows"], one_process(case)[1]
    assert heard[1][case.name]["rows"] == rows
    for row, theirs in zip(rows, wanted, strict=True):
        assert row["targets"] == theirs["targets"]
        assert row["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert row["norm"] == pytest.approx(theirs["norm"], rel=1e-9 if case.dtype == torch.float64 else 1e-5)
    assert min(row["norm"] for row in wanted) > scenes.CLIP  # so that the limit bites


@slow
@pytest.mark.parametrize("case", scenes.OTHER_MODELS, ids=lambda case: case.name)
def test_so_are_those_of_the_other_kinds_of_models(case, on_two_ranks):
    folder, heard = on_two_ranks
    assert "error" not in heard[0][case.name]
    assert differs_by(case, folder) < 1e-12


@slow
@pytest.mark.parametrize("case", scenes.MISTAKES, ids=lambda case: case.kind)
def test_the_comparison_above_refuses(case, on_two_ranks):
    folder, heard = on_two_ranks
    assert differs_by(case, folder) > 1e-2
    wanted = [row["norm"] for row in one_process(case)[1]]
    assert [row["norm"] for row in heard[0][case.name]["rows"]] != pytest.approx(wanted, rel=1e-2)


def test_rows_are_ragged_and_one_rank_may_have_nothing_to_predict():
    """Of the comparisons above: the ranks have unequal numbers of targets, in one of them none."""
    for lengths, wanted in [(scenes.LENGTHS, [15 + 11 + 8, 3 + 2]), (scenes.ONE_IS_SILENT, [15 + 11 + 8, 0])]:
        batch = scenes.batch(0, "causal", lengths)
        shares = [batch.rows(slice(number, None, 2)) for number in range(2)]
        assert [int(share.is_target_BL.sum()) for share in shares] == wanted


# ---------------------------------------------------------------- what ranks hear and refuse


@slow
def test_ranks_know_who_they_are_and_agree(on_two_ranks):
    facts = [heard["facts"] for heard in on_two_ranks[1]]
    assert [(found["rank"], found["world"]) for found in facts] == [(0, 2), (1, 2)]
    assert [found["sum"] for found in facts] == [1.5, 1.5]
    assert [found["small sum"] for found in facts] == [1 + 1e-12] * 2  # in 32 bits it would be 1
    assert [found["agreed"] for found in facts] == [[0, "x"]] * 2
    assert [found["gathered"] for found in facts] == [[[0, "x"], [1, "x"]]] * 2


@slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_each_row_is_one_ranks_and_the_held_out_loss_that_of_all(kind, on_two_ranks):
    facts = [heard["facts"] for heard in on_two_ranks[1]]
    for number in range(2):
        shares = [found[f"{kind} rows"][number] for found in facts]
        assert sorted(shares[0] + shares[1]) == sorted(scenes.batch(number).input_ids_BT.tolist())
        assert len(shares[0]) == 3
    wanted = held_out_loss(scenes.model(), [scenes.batch(98), scenes.batch(99)], dtype=torch.float32)
    assert facts[0][f"{kind} held out"] == facts[1][f"{kind} held out"] == pytest.approx(wanted, rel=1e-6)


@slow
def test_gradients_come_together_in_the_last_micro_batch_alone(on_two_ranks):
    """Once a step is all that a network has to carry."""
    facts = [heard["facts"] for heard in on_two_ranks[1]]
    (first, last), (its_first, its_last) = (found["ddp two parts"] for found in facts)
    assert first[1] != pytest.approx(its_first[1], rel=0.05)
    assert last == its_last
    for found in facts:
        first, last = found["fsdp two parts"]
        assert first[0] == 0 < last[0]
        assert last == pytest.approx(its_last, rel=1e-9)


@slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_an_interrupted_step_leaves_no_gradient_to_the_next(kind, on_two_ranks):
    for heard in on_two_ranks[1]:
        after, wanted, kept = heard["facts"][f"{kind} interrupted"]
        assert after == wanted
        assert (kept == wanted) == (kind == "ddp")  # the control: fsdp keeps them where zero_grad does not look


@slow
def test_fsdp_keeps_half_of_everything_and_gathers_a_block_when_it_is_its_turn(on_two_ranks):
    for found in (heard["facts"] for heard in on_two_ranks[1]):
        assert found["kept in parts"]["shares"] == [pytest.approx(0.5, abs=0.05)] * 3
        assert found["kept in parts"]["at work"] == [[False, True]]


@slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("ddp few rows", "2 ranks share a batch of 1: start fewer, or raise the batch size"),
        ("fsdp few rows", "2 ranks share a batch of 1: start fewer, or raise the batch size"),
        ("fsdp muon", "Muon needs whole matrices, and the model is sharded: take 'adamw', or the engine 'ddp'"),
        ("ddp muon", "not refused"),
        ("ddp other model", "the engine was made for another model: make one for each"),
        ("ddp one row each", 1),
        ("fsdp one row each", 1),
        ("unknown", "engine 'zero' is unknown: choose one of ddp, fsdp"),
    ],
)
def test_what_cannot_be_is_refused_on_every_rank(what, words, number, on_two_ranks):
    assert on_two_ranks[1][number]["facts"][what] == words


def test_a_process_that_is_alone_agrees_with_itself():
    assert (rank(), world(), summed(2.5), agreed("mine"), gathered("mine")) == (0, 1, 2.5, "mine", ["mine"])


# ---------------------------------------------------------------- checkpoints

ENDS = [
    (name, kind, count)
    for name in ("fsdp_adamw", "ddp_adamw", "ddp_muon")
    for kind in ("ddp", "fsdp")
    for count in (1, 2, 4)
    if (name, kind) != ("ddp_muon", "fsdp")
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder in which 2 ranks have written checkpoints, and 1, 2 and 4 have gone on from them."""
    folder = tmp_path_factory.mktemp("saved")
    start("saving", "save,go_on,trouble", folder, ranks=2)
    start("saving", "go_on", folder, ranks=1)
    start("saving", "go_on", folder, ranks=4)
    return folder


def weights(folder, name):
    return torch.load(folder / f"{name}.pt")


@slow
@pytest.mark.parametrize(("name", "kind", "count"), ENDS)
def test_any_number_of_ranks_goes_on_with_either_engine_as_if_nothing_had_been(name, kind, count, saved):
    """Weights and the optimiser's state: five steps later all is where it would have been."""
    end, found = weights(saved, f"{name}_end"), weights(saved, f"{name}_to_{kind}_{count}_without_nothing")
    if (name == f"{kind}_adamw" and count == 2) or (name, count) == ("ddp_muon", 2):
        assert scenes.distance(found, end) == 0
    assert scenes.distance(found, end) < 1e-12
    forgotten = weights(saved, f"{name}_to_{kind}_{count}_without_optimizer")
    assert scenes.distance(forgotten, end) > 1e-2  # the control


@slow
@pytest.mark.parametrize("name", ["fsdp_adamw", "ddp_adamw", "ddp_muon"])
def test_one_process_reads_the_weights_that_ranks_have_written(name, saved):
    wanted = weights(saved, f"{name}_10")
    model = scenes.model(dtype=next(iter(wanted.values())).dtype, seed=3)
    assert scenes.distance(model.state_dict(), wanted) > 0.1
    read_weights(Checkpoints(saved / name).load(10), model)
    assert scenes.distance(model.state_dict(), wanted) == 0


def test_the_weights_of_a_checkpoint_that_is_not_in_parts_are_refused(tmp_path):
    Checkpoints(tmp_path).save(1, {}, {}, about={})
    with pytest.raises(ValueError, match="step_1 was written by one process, and ranks read checkpoints in parts"):
        read_weights(Checkpoints(tmp_path).load(1), scenes.model())


@slow
def test_no_part_and_no_leftover_is_without_a_fingerprint(saved):
    assert Checkpoints(saved / "fsdp_adamw").steps() == [5, 10]
    assert sorted(path.name for path in (saved / "fsdp_adamw").iterdir()) == ["step_10", "step_5"]
    folder = saved / "fsdp_adamw" / "step_10"
    names = {path.name for path in folder.iterdir()}
    assert json.loads((folder / "checkpoint.json").read_text())["files"].keys() == names - {"checkpoint.json"}
    assert names >= {"__0_0.distcp", "__1_0.distcp", ".metadata", "state.pt"}


@slow
def test_a_checkpoint_before_the_first_step_changes_nothing(saved):
    assert scenes.distance(weights(saved, "first_True"), weights(saved, "first_False")) < 1e-12


@pytest.fixture(scope="module")
def trouble(saved):
    return [json.loads((saved / f"trouble_{number}.json").read_text()) for number in (0, 1)]


@slow
def test_a_damaged_part_is_noticed_by_all_ranks_and_the_checkpoint_before_it_used(saved, trouble):
    said = "__1_0.distcp is damaged: its content is not what was written"
    assert trouble[0]["damaged"].startswith("step 5; ") and said in trouble[0]["damaged"]
    assert trouble[0]["damaged"].endswith("the checkpoint before it is used")
    assert trouble[1]["damaged"] == "step 5; "  # the same, and said once
    for found in trouble:
        assert found["asked for"].startswith("refused: ") and said in found["asked for"]
        assert "holds no checkpoint with a score" in found["best"]  # that of step 10 was the only one
    assert scenes.distance(weights(saved, "damaged_on"), weights(saved, "fsdp_adamw_10")) == 0


@slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_checkpoint_that_one_rank_cannot_write_is_refused_on_all_of_them(number, trouble):
    found = trouble[number]
    assert found["no score"].startswith("ValueError: score is nan: give a finite held-out loss")
    assert found["no JSON"].startswith("TypeError: ") and "not JSON serializable" in found["no JSON"]
    for case in ("full for rank 1", "full in the end"):
        assert found[case].startswith("OSError: [Errno 28] ") and "No space left on device" in found[case]
    assert "could not be written (No space left on device): make room or write elsewhere" in found["full in the end"]
    assert trouble[0]["left"] == []
    assert found["then"] == "saved"


@slow
def test_a_checkpoint_of_one_process_and_an_empty_folder_are_refused_on_every_rank(trouble):
    for found in trouble:
        assert "was written by one process, and ranks read checkpoints in parts: go on without ranks" in found["of one"]
        assert "holds no checkpoint to go on from: start without --resume" in found["none"]
