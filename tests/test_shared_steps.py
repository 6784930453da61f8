"""The steps that chapter 5 compares: equal to one process, held and sent as planned; and the mistake, which is not."""

import pytest

from course_lib.architectures import dimensions_of
from course_lib.peft import Full
from course_lib.planner import Plan
from course_lib.runs import shared_steps
from course_lib.runs.shared_steps import SharedSteps, alone, distance, on_ranks

slow = pytest.mark.slow
IN_64_BITS = {"optimizer": "adamw", "dtype": "float64", "steps": 4, "width": 32}
STEPS = {
    "ddp": SharedSteps("ddp", **IN_64_BITS),
    "fsdp": SharedSteps("fsdp", **IN_64_BITS),
    "in two parts": SharedSteps("fsdp", **IN_64_BITS, accumulate=2),
    "mean of means": SharedSteps("mean of means", **IN_64_BITS),
    "ddp, fp32": SharedSteps("ddp", "adamw", steps=4, width=64),
    "fsdp, fp32": SharedSteps("fsdp", "adamw", steps=4, width=64),
}


@pytest.fixture(scope="module")
def seen():
    """{name: (what each of two ranks saw, the weights)}."""
    return dict(zip(STEPS, on_ranks(list(STEPS.values()), show=lambda line: None), strict=True))


@slow
@pytest.mark.parametrize("name", ["ddp", "fsdp", "in two parts"])
def test_ranks_that_start_different_end_where_one_process_ends(name, seen):
    of_ranks, weights = seen[name]
    outcome, expected = alone(SharedSteps("alone", **IN_64_BITS, accumulate=STEPS[name].accumulate))
    assert distance(weights, expected) < 1e-12
    assert [one.losses for one in of_ranks] == [pytest.approx(outcome.losses, rel=1e-5)] * 2
    assert [(one.rank, one.world) for one in of_ranks] == [(0, 2), (1, 2)]


@slow
def test_the_mean_of_means_ends_elsewhere(seen):
    assert distance(seen["mean of means"][1], alone(SharedSteps("alone", **IN_64_BITS))[1]) > 1e-4


@slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_rank_holds_what_is_planned(engine, seen):
    steps = STEPS[f"{engine}, fp32"]
    plan = Plan(dimensions_of(steps.model()), Full(), "fp32", batch_size=4, length=64, devices=2, engine=engine)
    memory = plan.memory()
    for one in seen[f"{engine}, fp32"][0]:
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(one, part) == pytest.approx(getattr(memory, part), rel=0.01)
    assert seen["ddp, fp32"][0][0].weights > 1.9 * seen["fsdp, fp32"][0][0].weights  # the control


@slow
def test_ddp_sends_its_gradients_around_and_one_process_sends_nothing(seen):
    """At least that: whoever else talks over this machine's loopback is counted too."""
    of_ranks = seen["ddp, fp32"][0]
    if of_ranks[0].sent is None:
        pytest.skip("this system does not count what it sends to itself, or the ranks are on GPUs")
    assert of_ranks[0].sent > 2 * of_ranks[0].gradients
    assert seen["fsdp, fp32"][0][0].sent > of_ranks[0].sent


def test_sentences_of_a_batch_have_different_lengths():
    batches = list(SharedSteps("alone", steps=3, batch_size=6).batches())
    assert len(batches) == 3
    for batch in batches:
        lengths = batch.is_target_BL.sum(1)
        assert len(lengths) == 6 and lengths.max() > 1.5 * lengths.min()


def test_two_accumulated_batches_are_one_of_twice_the_rows():
    whole = alone(SharedSteps("alone", **IN_64_BITS | {"steps": 2}, batch_size=8))[1]
    parts = alone(SharedSteps("alone", **IN_64_BITS | {"steps": 2}, batch_size=4, accumulate=2))[1]
    other = alone(SharedSteps("alone", **IN_64_BITS | {"steps": 2}, batch_size=4))[1]
    assert distance(parts, whole) < 1e-12 < 1e-4 < distance(other, whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"engine": "zero"}, "engine 'zero' is unknown: choose one of alone, ddp, fsdp, mean of means"),
        ({"optimizer": "muon"}, "optimizer 'muon' is unknown: choose one of sgd, adamw"),
        ({"dtype": "float16"}, "dtype 'float16' is unknown: choose one of float32, float64"),
        ({"steps": 0}, "steps is 0: take at least 1"),
        ({"accumulate": 0}, "accumulate is 0: take at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        SharedSteps(**{"engine": "alone"} | change)


def test_every_engine_that_is_offered_is_one_of_the_library_or_a_mistake():
    from course_lib.parallel import ENGINES

    assert set(shared_steps.ENGINES) == {*ENGINES, "alone", "mean of means"}
