"""The explorers of chapter 5: gradients under fp16's microscope, the life of a loss scale, and the planner."""

import itertools
import math
from dataclasses import replace
from functools import cache

import matplotlib.pyplot
import numpy as np
import pytest
import torch
from few import few
from matplotlib.patches import StepPatch
from pictures import assert_readable, reader
from tiny import corrupted, framed_rows, tiny

from course_lib import plots
from course_lib.architectures import ARCHITECTURES, QUERY_AND_VALUE, Architecture
from course_lib.peft import Adapter, BitFit, Full, LoRA, Prefix
from course_lib.planner import PRECISIONS, Plan
from course_lib.precision import LossScale, fate
from course_lib.runtime import seeded
from course_lib.training import batch_loss, train
from course_lib.widgets import loss_scale
from course_lib.widgets.binder import sweep
from course_lib.widgets.loss_scale import (
    ALL,
    AXIS,
    HIGHEST,
    KINDS,
    LOWEST,
    ScaleBench,
    describe_microscope,
    draw_microscope,
    microscope,
    power,
)
from course_lib.widgets.planning import (
    REFERENCE,
    STRATEGIES,
    THIS,
    PlanBench,
    describe_plan,
    draw_plan,
    planner_explorer,
)
from course_lib.widgets.scale_life import (
    COUNTS,
    describe_replay,
    describe_scale_life,
    draw_replay,
    draw_scale_life,
    replay_scale,
    scale_life,
)
from course_lib.widgets.units import bytes_words, count_words, seconds_words


@pytest.fixture
def reading(monkeypatch):
    return reader(monkeypatch)


# --- fp16's microscope ------------------------------------------------------------------------------------------------

EDGES = [2.0**-25, 2.0**-24, 2.0**-14, 2.0**-14 - 2.0**-25, 2.0**-14 - 2.0**-24, 65504.0, 65519.0, 65520.0, 65536.0]
NEAR = [float(np.nextafter(np.float32(edge), np.float32(way))) for edge in EDGES for way in (0, math.inf)]


GROUPS = ("matrices", "vectors", "all sizes", "edges")


@cache
def gradients():
    """Of a real step; numbers of all sizes; those at which the kinds meet, and their neighbours in fp32."""
    model = tiny("causal", shake=0.05)
    total, count = batch_loss(model, corrupted("causal", framed_rows()))
    (total / count).backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    sizes = torch.empty(3000).uniform_(-60, 30, generator=seeded(1)).exp2()
    return {
        "matrices": torch.cat([grad.flatten() for grad in named.values() if grad.dim() == 2]),
        "vectors": torch.cat([grad.flatten() for grad in named.values() if grad.dim() < 2]),
        "all sizes": sizes * torch.randint(0, 2, sizes.shape, generator=seeded(2)).mul(2).sub(1),
        "edges": torch.tensor([*EDGES, *NEAR, 0.0, -0.0, 1e-45, -3e38, -1.0]).view(4, 8).T,
    }


@cache
def bench():
    return ScaleBench(gradients())


def chosen(group):
    numbers = [gradient.flatten() for name, gradient in gradients().items() if group in (name, ALL)]
    return torch.cat(numbers)


def kind_by_hand(number, exponent):
    held = float(np.float16(abs(number) * 2.0**exponent))
    if held == 0:
        return "lost"
    if math.isinf(held):
        return "overflow"
    return "normal" if held >= 2.0**-14 else "subnormal"


CHOICES = list(itertools.product((ALL, *GROUPS), (LOWEST, -1, 0, 7, 16, HIGHEST)))


@pytest.mark.parametrize(("group", "exponent"), CHOICES)
def test_the_kinds_are_those_of_fate_and_of_a_slow_count(group, exponent):
    view = bench().compute(exponent, group)
    wanted = fate(chosen(group), scale=2.0**exponent)
    for kind in KINDS:
        assert getattr(view.fate, kind) == pytest.approx(getattr(wanted, kind), abs=1e-12)
    if group != ALL:
        with np.errstate(over="ignore"):
            found = [kind_by_hand(number, exponent) for number in chosen(group).tolist() if number]
        assert view.kinds == {kind: found.count(kind) for kind in KINDS}


@pytest.mark.parametrize(("name", "wrong"), [("LOST", 2.0**-24), ("NORMAL", 2.0**-14), ("OVERFLOW", 65504.0)])
def test_the_check_above_refuses_edges_that_forget_the_rounding(monkeypatch, name, wrong):
    monkeypatch.setattr(loss_scale, name, wrong)
    with pytest.raises(AssertionError):
        test_the_kinds_are_those_of_fate_and_of_a_slow_count("edges", 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_gradients_in_other_formats_have_the_same_fate(dtype):
    numbers = torch.tensor([1e-30, 3e-8, 1e-6, 0.5, 4e4, 0.0], dtype=dtype)
    view = ScaleBench({"a": numbers}).compute(exponent=3)
    wanted = fate(numbers, scale=8.0)
    for kind in KINDS:
        assert getattr(view.fate, kind) == pytest.approx(getattr(wanted, kind), abs=1e-12)
    assert view.n_zero == int((numbers == 0).sum())


@pytest.mark.parametrize("group", [ALL, *GROUPS])
def test_zeros_are_counted_beside_and_never_among_the_others(group):
    view, numbers = bench().compute(0, group), chosen(group)
    assert view.n_zero == int((numbers == 0).sum())
    assert view.n == view.counts_K.sum() == int((numbers != 0).sum())


@pytest.mark.parametrize("group", [ALL, *GROUPS])
def test_a_bin_holds_the_sizes_from_a_power_of_two_up_to_the_next(group):
    view = bench().compute(5, group)
    by_hand = [math.frexp(number)[1] - 1 for number in chosen(group).double().tolist() if number]
    for k, count in enumerate(view.counts_K):
        assert count == by_hand.count(view.low + k)
    assert view.counts_K[0] > 0 and view.counts_K[-1] > 0


@pytest.mark.parametrize("exponent", [LOWEST, 0, 16, HIGHEST])
def test_the_bars_move_by_the_exponent_and_none_is_lost(exponent):
    view = bench().compute(exponent, "all sizes")
    by_hand = [math.frexp(number)[1] - 1 + exponent for number in chosen("all sizes").double().tolist()]
    by_hand = np.clip(by_hand, AXIS[0], AXIS[1] - 1)
    assert view.bars(exponent).tolist() == [int((by_hand == low).sum()) for low in range(*AXIS)]
    assert view.bars(exponent).sum() == view.n


def test_a_group_is_sorted_when_it_is_first_looked_at_and_once(monkeypatch):
    asked, sort = [], np.sort
    monkeypatch.setattr(loss_scale.np, "sort", lambda size_N: asked.append(len(size_N)) or sort(size_N))
    made = ScaleBench(gradients())
    assert asked == []
    for exponent in (0, 5):
        made.compute(exponent, "vectors")
    assert len(asked) == 1
    made.compute(0, ALL)
    assert len(asked) == len(gradients())


def test_looking_leaves_the_gradients_as_they_are():
    before = {name: gradient.clone() for name, gradient in gradients().items()}
    ScaleBench(gradients()).compute(20)
    assert all(torch.equal(gradients()[name], gradient) for name, gradient in before.items())


@pytest.mark.parametrize(("times", "is_left_out"), [(0.99, False), (1.0, True)])
def test_one_number_too_large_leaves_the_step_out(times, is_left_out):
    view = ScaleBench({"a": torch.tensor([*[1e-3] * 10_000, 65520 * 2.0**-10 * times])}).compute(exponent=10)
    assert view.is_left_out == is_left_out
    said = describe_microscope(view)
    assert ("1 number overflows, so the step is left out" in said) == is_left_out
    assert ("overflow < 0.01%" in said) == is_left_out  # some, and not none


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: ScaleBench({}), "gradients are empty"),
        (lambda: ScaleBench({ALL: torch.ones(2)}), "give it another name"),
        (
            lambda: ScaleBench({"a": torch.tensor([1.0, math.inf])}),
            "of 'a' are not finite: give those of a step without",
        ),
        (lambda: ScaleBench({"a": torch.zeros(3)}), "of 'a' are all 0: give those of a step, after its backward pass"),
        (lambda: bench().compute(0, "heads"), "group 'heads' is not there: choose one of all together, matrices"),
        (lambda: bench().compute(HIGHEST + 1), "exponent is 33: choose one from -8 to 32"),
        (lambda: bench().compute(LOWEST - 1), "exponent is -9: choose one from -8 to 32"),
    ],
)
def test_what_is_no_gradient_or_not_there_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


def test_one_group_needs_no_choice():
    assert ScaleBench({"a": torch.ones(2)}).groups == ("a",)
    assert bench().groups == (ALL, *gradients())


MOVED = list(itertools.product((ALL, "vectors", "edges"), range(LOWEST, HIGHEST + 1, 5)))


@pytest.mark.parametrize(("group", "exponent"), few(MOVED, (ALL, LOWEST), (ALL, 32), ("edges", 2), ("vectors", 17)))
def test_the_picture_of_gradients_can_be_read_at_every_scale(reading, group, exponent):
    view = bench().compute(exponent, group)
    figure, words = reading(draw_microscope, view)
    assert_readable(figure, words)
    said = [text for text, _ in words]
    for name, *_ in KINDS.values():
        assert said.count(name) == 1
    assert figure.axes[0].get_xlim() == AXIS


def test_the_widest_words_have_room_too(reading):
    many = {"lost": 10**9, "subnormal": 10**5, "normal": 10**13, "overflow": 10**9}
    view = replace(bench().compute(HIGHEST), kinds=many, n_zero=10**9, group="normalisations and biases")
    assert_readable(*reading(draw_microscope, view))


@pytest.mark.parametrize("exponent", [LOWEST, 0, 16, HIGHEST])
def test_what_is_drawn_between_the_borders_is_what_the_shares_say(exponent):
    """All sizes here lie away from the borders, where rounding moves a number into the next kind."""
    numbers = 1.5 * torch.arange(-60, 30).float().exp2().repeat_interleave(3)
    view = ScaleBench({"a": numbers}).compute(exponent)
    patches = [patch for patch in draw_microscope(view).axes[0].patches if isinstance(patch, StepPatch)]
    *kinds, unscaled = [patch.get_data() for patch in patches]
    assert [int(data.values.sum()) for data in kinds] == list(view.kinds.values())
    assert [(data.edges[0], data.edges[-1]) for data in kinds] == [(low, high) for _, low, high, *_ in KINDS.values()]
    assert np.array_equal(unscaled.values, np.maximum(view.bars(0), 0.5))


def test_kinds_differ_in_colour_and_hatch():
    looks = [(colour, hatch) for *_, colour, hatch in KINDS.values()]
    assert len({colour for colour, _ in looks}) == len({hatch for _, hatch in looks}) == len(looks)


def test_the_words_of_gradients_say_what_the_picture_shows():
    view = ScaleBench({"a": torch.tensor([2.0**-30, 2.0**-20, 1.0, 1.0, 2.0**20, 0.0])}).compute(exponent=1)
    assert describe_microscope(view) == (
        "Gradients of a, loss scale 2^1 = 2: 1 number overflows, so the step is left out. Of 5 numbers other than 0 in "
        "fp16: rounds to 0 20.00%, subnormal 20.00%, normal 40.00%, overflow 20.00%. Times the scale their sizes go "
        "from 2^-29 to 2^22, most of them near 2^1. Exactly 0: 1."
    )


# --- the life of a scale ----------------------------------------------------------------------------------------------


@cache
def records():
    """Of a real run in fp16 that begins with far too large a scale."""
    rows = itertools.repeat(corrupted("causal", framed_rows()))
    scale = LossScale(2.0**24, interval=3)
    return list(train(tiny("causal", shake=0.05), rows, steps=20, rate=1e-3, dtype=torch.float16, scale=scale))


def run():
    return [record.scale for record in records()], [record.gradient_norm for record in records()]


def marks(figure):
    """(x, y) of the line's steps, of the crosses and of the triangles."""
    axes = figure.axes[0]
    crosses, triangles = ([*zip(*line.get_data(), strict=True)] for line in axes.lines)
    (line,) = axes.patches
    return line.get_data(), crosses, triangles


@pytest.mark.slow
def test_line_crosses_and_triangles_are_those_of_a_real_run():
    scales, norms = run()
    line, crosses, triangles = marks(draw_scale_life(scales, norms))
    assert [2.0**y for y in line.values] == scales
    assert list(line.edges) == [step + 0.5 for step in range(len(scales) + 1)]
    left_out = [n for n, norm in enumerate(norms) if not math.isfinite(norm)]
    risen = [n for n in range(1, len(scales)) if scales[n] > scales[n - 1]]
    assert len(left_out) >= 3 and len(risen) >= 1
    assert crosses == [(n + 1, math.log2(scales[n])) for n in left_out]
    assert triangles == [(n + 1, math.log2(scales[n])) for n in risen]


def test_a_step_is_left_out_by_its_norm_and_not_by_a_scale_that_fell():
    line, crosses, _ = marks(draw_scale_life([4.0, 2.0, 2.0], [1.0, math.nan, 1.0]))
    assert crosses == [(2, 1.0)] and len(line.values) == 3


LIVES = {
    "a run": run,
    "one step": lambda: ([1.0], [1.0]),
    "all left out": lambda: ([2.0 ** (126 - n) for n in range(150)], [math.inf] * 150),
    "a long run": lambda: ([2.0 ** (16 + n // 100 % 2) for n in range(12_345)], [1.0] * 12_345),
    "other factors": lambda: ([3.0 * 1.5**n for n in range(9)], [1.0] * 9),
}


@pytest.mark.parametrize("name", LIVES)
def test_the_picture_of_a_life_can_be_read(reading, name):
    scales, norms = LIVES[name]()
    assert_readable(*reading(lambda: draw_scale_life(scales, norms, title="Replay of one run's gradients")))
    figure, words = reading(draw_scale_life, scales, norms)
    assert_readable(figure, words)
    for ticks, (low, high) in ((figure.axes[0].get_xticks(), figure.axes[0].get_xlim()),
                               (figure.axes[0].get_yticks(), figure.axes[0].get_ylim())):  # fmt: skip
        seen = [tick for tick in ticks if low <= tick <= high]
        assert seen and all(float(tick).is_integer() for tick in seen)  # whole steps, whole powers


def test_the_words_of_a_life_say_what_the_picture_shows():
    said = describe_scale_life([8.0, 4.0, 2.0, 4.0], [math.inf, math.nan, 1.0, 1.0])
    assert said == (
        "The loss scale over 4 steps: it begins at 8, ends at 4 and lies between 2 and 8. Steps left out: 2 "
        "(steps 1, 2). Rises: 1."
    )
    assert "Steps left out: 0. Rises: 0." in describe_scale_life([8.0], [1.0])
    assert "(steps 1, 2, 3, 4, 5, 6, 7, 8, ...)" in describe_scale_life([8.0] * 9, [math.inf] * 9)


@pytest.mark.parametrize(
    ("scales", "norms", "words"),
    [
        ([], [], "0 scales and 0 norms: give one of each"),
        ([1.0], [1.0, 2.0], "1 scales and 2 norms"),
        ([None], [1.0], "give the records of a run with a LossScale"),
        ([0.0], [1.0], "not a finite number above 0"),
        ([math.inf], [1.0], "not a finite number above 0"),
    ],
)
def test_what_is_no_life_is_refused(scales, norms, words):
    for make in (draw_scale_life, describe_scale_life):
        with pytest.raises(ValueError, match=words):
            make(scales, norms)


LARGEST = torch.empty(200).uniform_(-6, 3, generator=seeded(4)).exp2().tolist()


@pytest.mark.parametrize(("exponent", "interval"), [(16, 5), (32, 1), (LOWEST, 20), (14, 2000)])
def test_a_replay_does_what_torchs_own_scaler_does_to_these_gradients(exponent, interval):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**exponent, growth_interval=interval)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, scales, left_out = torch.optim.SGD([weight], lr=0.0), [], []
    for size in LARGEST:
        scales.append(scaler.get_scale())
        scaler.scale((weight * size).sum()).backward()
        weight.grad = weight.grad.half().float()  # as fp16 keeps it
        left_out.append(bool(weight.grad.isinf()))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    view = replay_scale(LARGEST, exponent, interval)
    assert list(view.scales) == scales
    assert [math.isinf(norm) for norm in view.norms] == left_out
    assert [norm for norm in view.norms if norm < math.inf] == [
        size for size, is_out in zip(LARGEST, left_out, strict=True) if not is_out
    ]


@pytest.mark.parametrize("largest", [[], [1.0, math.inf], [-1.0], [math.nan]])
def test_a_replay_refuses_what_was_not_recorded(largest):
    with pytest.raises(ValueError, match=r"give the largest \|gradient\| of each step"):
        replay_scale(largest)


@pytest.mark.parametrize("interval", [COUNTS[0], COUNTS[-1]])
@pytest.mark.parametrize("exponent", [LOWEST, HIGHEST])
def test_a_replay_can_be_read_and_says_that_it_is_one(reading, exponent, interval):
    view = replay_scale(LARGEST, exponent, interval)
    figure, words = reading(draw_replay, view)
    assert_readable(figure, words)
    assert any("Replay of one run's gradients" in text for text, _ in words)
    said = describe_replay(view)
    assert "A real run would go on with other gradients" in said
    assert f"{interval:,} good step{'' if interval == 1 else 's'} in a row" in said
    assert describe_scale_life(view.scales, view.norms) in said


# --- the planner ------------------------------------------------------------------------------------------------------

PLANNED = {
    "GPT-2": {"strategy": "full", "precision": "fp32", "length": 1024},
    "BERT-base": {"strategy": "BitFit", "precision": "bf16 mixed, cuda", "batch_size": 32, "devices": 4},
    "Llama-2-7B": {"strategy": "LoRA, rank 8", "precision": "4-bit frozen", "engine": "fsdp", "devices": 8},
    "Llama-3-8B": {"strategy": "adapter, 64 wide", "engine": "fsdp", "devices": 64, "accumulate": 4},
    "GPT-3 175B": {
        "precision": "bf16 with fp32 master", "engine": "fsdp", "devices": 1024, "length": 2048, "batch_size": 1,
        "checkpointing": True,
    },
    "GPT-2 XL": {"strategy": "prefix of 16", "devices": 2, "accumulate": 128},
}  # fmt: skip


@cache
def planner():
    return PlanBench(ARCHITECTURES)


def planned(name, **changes):
    return planner().compute(name, **PLANNED[name] | changes)


def plan_by_hand(name):
    architecture, said = ARCHITECTURES[name], dict(PLANNED[name])
    strategy = {
        "full": Full(),
        "LoRA, rank 8": LoRA(rank=8, targets=QUERY_AND_VALUE[architecture.layout]),
        "prefix of 16": Prefix(length=16, hidden=None),
        "adapter, 64 wide": Adapter(bottleneck=64),
        "BitFit": BitFit(),
    }[said.pop("strategy", "full")]
    settings = {"precision": "fp32", "batch_size": 8, "length": 256} | said
    return Plan(architecture, strategy, **settings)


@pytest.mark.parametrize("name", PLANNED)
def test_memory_and_time_are_the_plans_own(name):
    view, plan = planned(name, tera_flops=100, giga_bytes=25), plan_by_hand(name)
    memory = plan.memory()
    assert view.rows[THIS] == {
        "weights": memory.weights, "gradients": memory.gradients, "optimiser state": memory.optimizer,
        "kept for backward": memory.activations, "gathered weights": plan.gathered(),
    }  # fmt: skip
    assert view.total == memory.total + plan.gathered()
    assert view.seconds == plan.seconds_per_step(100e12, 25e9)
    slow, quick = view.tokens_per_second
    assert slow == pytest.approx(plan.tokens_per_step / view.seconds.total)
    assert quick == pytest.approx(plan.tokens_per_step / view.seconds.overlapped) and quick >= slow


@pytest.mark.parametrize("name", PLANNED)
def test_beside_it_stands_full_fine_tuning_on_one_device_with_the_same_batch(name):
    view, plan = planned(name), plan_by_hand(name)
    alone = Plan(plan.architecture, Full(), plan.precision, plan.batch_size, plan.length)
    memory = alone.memory()
    assert sum(view.rows[REFERENCE].values()) == memory.total
    assert view.rows[REFERENCE]["gathered weights"] == 0


def test_a_plan_by_hand():
    """GPT-2 in fp32: 4 bytes of weights and gradients, 8 of moments; DDP sends 2 (n - 1) / n of the gradients."""
    n, devices = 124_439_808, 4
    view = planner().compute("GPT-2", devices=devices, length=512, accumulate=2, tera_flops=2, giga_bytes=0.5)
    parts = view.rows[THIS]
    assert [parts[name] for name in ("weights", "gradients", "optimiser state")] == [4 * n, 4 * n, 8 * n]
    assert view.plan.tokens_per_step == 8 * 512 * 2 * devices
    assert view.seconds.sending == pytest.approx(2 * 3 / 4 * 4 * n / 0.5e9)
    flops = view.plan.flops_per_token().total
    assert flops == pytest.approx(6 * n + 12 * 512 * 768 * 12, rel=0.01)  # 6 N and the attention
    assert view.seconds.computing == pytest.approx(8 * 512 * 2 * flops / 2e12)
    assert f"{count_words(flops)}FLOP per token" in describe_plan(view)


def test_fsdp_divides_and_gathers_and_checkpointing_keeps_less():
    one, many = planned("GPT-2"), planned("GPT-2", engine="fsdp", devices=8)
    for part in ("weights", "gradients", "optimiser state"):
        assert many.rows[THIS][part] == one.rows[THIS][part] / 8
    assert many.rows[THIS]["gathered weights"] > 0 == one.rows[THIS]["gathered weights"]
    less = planned("GPT-2", checkpointing=True)
    assert less.rows[THIS]["kept for backward"] < one.rows[THIS]["kept for backward"] / 2
    assert less.rows[REFERENCE] == one.rows[REFERENCE] == one.rows[THIS]


@pytest.mark.parametrize(
    ("strategy", "wanted", "length", "words"),
    [
        ("full", 512, 512, None),
        ("full", 513, 512, "the model has 512 positions"),
        ("full", 8192, 512, "the model has 512 positions"),
        ("prefix of 16", 496, 496, None),
        ("prefix of 16", 512, 496, "the model has 512 positions, 16 of them the prefix's"),
    ],
)
def test_a_length_without_room_is_shortened_and_the_picture_says_so(reading, strategy, wanted, length, words):
    view = planner().compute("BERT-base", strategy, length=wanted)
    assert view.plan.length == view.reference.length == length
    figure, said = reading(draw_plan, view)
    (line,) = [piece for piece in figure.texts if piece.get_text().startswith("8 x ")]
    assert line.get_fontweight() == ("normal" if words is None else "bold")
    said = [text for text, _ in said if text.startswith(f"8 x {length} tokens")]
    assert said == ["8 x 512 tokens on a device at a time" if length == 512 and words is None else said[0]]
    assert ("the model has" in said[0]) == (words is not None)
    if words:
        assert said[0].endswith(words) and words in describe_plan(view)


EXTREME = {
    "smallest": {"architecture": "BERT-base", "strategy": "BitFit", "precision": "4-bit frozen", "batch_size": 1,
                 "length": 16, "tera_flops": 1e4, "giga_bytes": 1e4, "devices": 2},
    "largest": {"architecture": "GPT-3 175B", "strategy": "adapter, 64 wide", "precision": "bf16 with fp32 master",
                "engine": "fsdp", "batch_size": 512, "length": 8192, "devices": 1024, "accumulate": 128,
                "tera_flops": 1e-3, "giga_bytes": 1e-3, "checkpointing": True},
    "slow": {"architecture": "GPT-3 175B", "batch_size": 512, "length": 2048, "accumulate": 128, "devices": 1024,
             "tera_flops": 1e-3, "giga_bytes": 1e-3},
    "shortened": {"architecture": "GPT-2 medium", "strategy": "prefix of 16", "precision": "bf16 with fp32 master",
                  "engine": "fsdp", "devices": 1024, "length": 8192, "checkpointing": True},
    "beside 24 GiB": {"architecture": "GPT-2", "length": 1024},
    "above 80 GiB": {"architecture": "Llama-2-7B"},
}  # fmt: skip


@pytest.mark.parametrize("name", EXTREME)
def test_the_picture_of_a_plan_can_be_read(reading, name):
    view = planner().compute(**EXTREME[name])
    figure, words = reading(draw_plan, view)
    assert_readable(figure, words)
    said = [text for text, _ in words]
    for part, size in view.rows[THIS].items():
        assert part in said and bytes_words(size) in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_picture_of_a_plan_can_be_read_for_every_architecture_and_precision(reading, name):
    for precision in PRECISIONS:
        for devices in (1, 1024):
            view = planner().compute(name, "LoRA, rank 8", precision, "fsdp", 32, 512, devices)
            assert_readable(*reading(draw_plan, view))


def drawn_cards(view):
    axes = draw_plan(view).axes[0]
    return [text.get_text() for text in axes.texts if text.get_text() in ("24 GiB", "80 GiB")]


def test_a_cards_line_stands_where_it_can_be_compared_and_words_say_the_rest():
    assert drawn_cards(planned("BERT-base")) == []  # 2 GiB: the bars would be too short to see
    assert drawn_cards(planned("GPT-2")) == ["24 GiB"]
    assert sorted(drawn_cards(planned("Llama-2-7B"))) == ["24 GiB", "80 GiB"]
    assert "fits at best into: 24 GiB" in describe_plan(planned("BERT-base"))
    assert "fits at best into: 80 GiB" in describe_plan(planned("Llama-2-7B", strategy="full", devices=2))
    assert "fits at best into: not 80 GiB" in describe_plan(planned("Llama-3-8B", strategy="full", devices=1))


def test_bars_stand_in_one_place_however_many_cards_there_are():
    boxes = [draw_plan(planned(name)).axes[0].get_position() for name in ("BERT-base", "GPT-2", "Llama-2-7B")]
    assert [box.y0 for box in boxes] == pytest.approx([boxes[0].y0] * 3)


def test_the_bars_are_the_parts_in_the_axis_unit():
    view = planned("GPT-2")
    axes = draw_plan(view).axes[0]
    assert axes.get_xlabel() == "memory on one device, GiB"
    widths = [bar.get_width() for bar in axes.patches if bar.get_y() < 0.5 and np.isfinite(bar.get_width())]
    assert widths == pytest.approx([size / 2**30 for size in view.rows[THIS].values() if size])


@pytest.mark.parametrize("name", PLANNED)
def test_the_words_of_a_plan_say_what_the_picture_shows(name):
    view = planned(name, tera_flops=100, giga_bytes=25)
    said = describe_plan(view)
    for parts in view.rows.values():
        for part, size in parts.items():
            assert (f"{part} {bytes_words(size)}" in said) == bool(size) or size == 0
    for words in (name, view.strategy, f"{count_words(view.plan.tokens_per_step)} tokens of all devices",
                  seconds_words(view.seconds.computing), seconds_words(view.seconds.overlapped)):  # fmt: skip
        assert words in said
    sent = view.plan.bytes_sent_per_step()
    assert (
        f"Sending: {bytes_words(sent)}, {seconds_words(view.seconds.sending)}" if sent else "Sending: nothing"
    ) in said


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: PlanBench({}), "architectures are empty"),
        (lambda: planner().compute("GPT-5"), "architecture 'GPT-5' is not there: choose one of BERT-base"),
        (lambda: planner().compute("GPT-2", "soft prompt"), "strategy 'soft prompt' is not there: choose one of full"),
        (lambda: planner().compute("Llama-2-7B", "BitFit"), "no parameter called bias: take another strategy"),
        (
            lambda: planner_explorer(ARCHITECTURES, flops_per_second=1.0, bytes_per_second=1e9),
            "flops_per_second is 1: ",
        ),
        (
            lambda: planner_explorer(ARCHITECTURES, flops_per_second=1e12, bytes_per_second=-1),
            "bytes_per_second is -1: ",
        ),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


def small(layout, name="", **changes):
    sizes = {"vocab_size": 100, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "max_len": 64}
    return Architecture(layout, **sizes | changes, source="here")


def plan_box(architectures=ARCHITECTURES):
    return planner_explorer(architectures, flops_per_second=2.35e11, bytes_per_second=4e9)


def test_it_begins_with_the_rates_that_were_handed_in():
    box = plan_box()
    assert box.value.flops_per_second == pytest.approx(2.35e11) and box.value.bytes_per_second == pytest.approx(4e9)


def test_bitfit_on_a_model_without_biases_shows_the_planners_own_words():
    box = plan_box({"Llama": small("llama"), "GPT": small("gpt2")})
    assert box.controls["architecture"].value == "GPT"  # the first with biases
    box.controls["strategy"].value = "BitFit"
    assert box.banner.value == ""
    box.controls["architecture"].value = "Llama"
    assert "no parameter called bias: take another strategy" in box.banner.value and box.value is None
    box.controls["strategy"].value = "full"
    assert box.banner.value == "" and box.value.architecture == "Llama"


def test_bitfit_is_left_out_where_no_model_has_biases():
    assert "BitFit" not in plan_box({"Llama": small("llama")}).controls["strategy"].options
    assert set(plan_box({"GPT": small("gpt2")}).controls["strategy"].options) == set(STRATEGIES)


@pytest.mark.parametrize("max_len", [9, 17, 100, 1024])
def test_lengths_reach_as_far_as_the_longest_model(max_len):
    box = plan_box({"GPT": small("gpt2", max_len=max_len)})
    lengths = [length for _, length in box.controls["length"].options]
    assert lengths[0] == min(16, lengths[-1]) and lengths[-1] <= max_len < 2 * lengths[-1]
    assert box.controls["length"].value == min(256, lengths[-1])


@pytest.mark.slow
def test_a_short_model_alone_survives_every_setting():
    assert sweep(plan_box({"Llama": small("llama", max_len=17)})) > 30


def test_a_prefix_that_leaves_no_position_is_the_planners_refusal():
    bench = PlanBench({"GPT": small("gpt2", max_len=16)})
    with pytest.raises(ValueError, match="length is 16: the model has 16 positions, leave some to the text"):
        bench.compute("GPT", "prefix of 16")


def test_the_reference_is_made_once_for_the_same_batch():
    one, other = planned("GPT-2"), planned("GPT-2", strategy="BitFit", devices=8)
    assert one.reference is other.reference
    assert planned("GPT-2", batch_size=2).reference is not one.reference
    assert planned("GPT-2", precision="bf16 alone").reference.precision == "bf16 alone"


# --- numbers in words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (bytes_words(1), "1 bytes"), (bytes_words(2**10), "1 KiB"), (bytes_words(1.5 * 2**40), "1.5 TiB"),
        (bytes_words(2**50), "1,024 TiB"), (bytes_words(2**20 - 1), "1,024 KiB"), (bytes_words(0.5), "0.5 bytes"),
        (count_words(999), "999"), (count_words(1000), "1 k"), (count_words(12_345_678), "12.3 M"),
        (count_words(2e21), "2,000 E"), (seconds_words(0), "0 µs"), (seconds_words(5e-7), "0.5 µs"),
        (seconds_words(1), "1 s"), (seconds_words(179), "179 s"), (seconds_words(181), "3.02 min"),
        (seconds_words(3 * 86400), "3 days"), (power(-25), "2⁻²⁵"), (power(0), "2⁰"), (power(6, base=10), "10⁶"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_a_unit_that_suits_them(words, said):
    assert words == said


# --- all explorers ----------------------------------------------------------------------------------------------------

EXPLORERS = {
    "microscope": lambda: microscope(gradients()),
    "life": lambda: scale_life(LARGEST),
    "planner": plan_box,
}


@pytest.fixture(scope="module", params=EXPLORERS)
def explorer(request):
    return EXPLORERS[request.param]()


@pytest.mark.slow
def test_an_explorer_survives_every_setting_and_comes_back(explorer):
    before = {name: control.value for name, control in explorer.controls.items()}
    image = explorer.image.value
    assert sweep(explorer) >= 8
    assert {name: control.value for name, control in explorer.controls.items()} == before
    assert explorer.banner.value == "" and explorer.image.value == image
    assert matplotlib.pyplot.get_fignums() == []


def test_every_control_can_be_found_without_eyes(explorer):
    for control in explorer.controls.values():
        assert control.description and control.tooltip
    assert "aria-live" in explorer.words.value


@pytest.mark.slow
def test_moving_a_control_changes_picture_and_words(explorer):
    if "engine" in explorer.controls:
        explorer.controls["devices"].value = 8  # one device has no engine
    for name, control in explorer.controls.items():
        start, before = control.value, (explorer.image.value, explorer.words.value)
        if hasattr(control, "options"):
            control.index = 0 if control.index else 1
        elif isinstance(start, bool):
            control.value = not start
        else:
            control.value = control.max if isinstance(start, int) else 10**control.max
        assert explorer.image.value != before[0] and explorer.words.value != before[1], name
        control.value = start
        assert explorer.image.value == before[0], name


def test_words_in_each_others_way_would_be_noticed(reading):
    def draw(view):
        figure = draw_plan(view)
        plots.write(figure, 340, 6, "between two lines")
        plots.write(figure, 200, 200, "over the table" * 3)
        return figure

    with pytest.raises(AssertionError):
        assert_readable(*reading(draw, planned("GPT-2")))
