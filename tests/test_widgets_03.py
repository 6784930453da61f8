"""The explorers of chapter 3: what a low-rank update holds and costs, and where heads look behind a prefix."""

import itertools
from dataclasses import replace
from functools import cache, partial

import matplotlib.pyplot
import numpy as np
import pytest
import torch
from few import few
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from peft_models import scramble
from tiny import shaken
from torch import nn

from course_lib import plots
from course_lib.data import course_tokenizer
from course_lib.evaluation import attention_weights
from course_lib.finetuning import Classifier
from course_lib.layers import TransformerConfig
from course_lib.model import Encoder
from course_lib.peft import LoRA, Prefix, apply
from course_lib.peft.prefix import prefix_cache
from course_lib.peft.slots import parts_of
from course_lib.peft.spectrum import spectrum
from course_lib.runtime import seeded
from course_lib.training import new_model
from course_lib.widgets import low_rank
from course_lib.widgets.binder import sweep
from course_lib.widgets.low_rank import (
    RANKS,
    SQUARE,
    TARGETS,
    LowRankBench,
    describe_low_rank,
    draw_low_rank,
    first_step,
    in_blocks,
    low_rank_explorer,
)
from course_lib.widgets.prefixes import (
    MOST_TOKENS,
    PrefixBench,
    PrefixView,
    describe_prefix,
    draw_prefix,
    prefix_explorer,
)

WIDTH, INNER, LAYERS, HEADS, LENGTH = 128, 192, 2, 4, 6  # as wide as the largest rank
LOW_RANK = TransformerConfig(60, WIDTH, LAYERS, HEADS, INNER, 32)
TOKENIZER = course_tokenizer()
TEXTS = [
    "A warm, funny and surprisingly moving film.",
    "The plot was thin, but the unbelievable actors made it worth watching: a film of disappointing beginnings.",
    "",
]


def words_of(figure):
    """Every piece of text in a figure with its box, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    pieces = [*figure.texts]
    for axes in figure.axes:
        pieces += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            pieces += [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
    return {f"{n} {piece.get_text()}": (piece.get_window_extent(renderer), piece.get_rotation())
            for n, piece in enumerate(pieces) if piece.get_text()}  # fmt: skip


def slim(box, rotation):
    """A box without the room above and below its line's letters."""
    return box.shrunk(0.75, 0.96) if rotation == 90 else box.shrunk(0.96, 0.75)


def assert_readable(figure):
    boxes = words_of(figure)
    wide, high = figure.get_size_inches() * figure.dpi
    for name, (box, _) in boxes.items():
        assert min(box.x0, box.y0) >= 0 and box.x1 <= wide and box.y1 <= high, f"{name} leaves the picture"
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not slim(*a).overlaps(slim(*b)), (one, other)


# --- a low-rank update ------------------------------------------------------------------------------------------------


def encoder(config, shake):
    """An encoder as MiniLM, without a prediction head; the same weights every time."""
    return shaken(new_model(partial(Encoder, head=False), config, device="cpu"), shake)


@cache
def model():
    return encoder(LOW_RANK, 0.05)


def random(*shape):
    return torch.randn(shape, generator=seeded(*shape))


@cache
def deltas():
    """Changes of a few layers, of any rank, of rank 3, and none."""
    names = [f"encoder.layer.0.{name}" for name in ("attention.self.query", "intermediate.dense", "output.dense")]
    shapes = [(WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER)]
    found = {name: 0.01 * random(*shape) for name, shape in zip(names, shapes, strict=True)}
    found["encoder.layer.1.attention.self.value"] = random(WIDTH, 3) @ random(3, WIDTH)
    return found | {"encoder.layer.1.attention.self.key": torch.zeros(WIDTH, WIDTH)}


@pytest.fixture(scope="module")
def bench():
    return LowRankBench(model(), deltas())


@pytest.mark.parametrize("rank", [1, 8, 128])
@pytest.mark.parametrize("targets", TARGETS)
def test_what_trains_is_what_apply_counts(bench, targets, rank):
    one = encoder(LOW_RANK, 0.05)
    applied = apply(one, LoRA(rank=rank, alpha=16, targets=TARGETS[targets]))
    view = bench.compute(rank=rank, alpha=16, targets=targets)
    assert (view.n_trained, view.n_layers) == (applied.n_trained, len(applied.places))
    assert view.share == pytest.approx(applied.share, rel=1e-12)
    assert {view.scale} == {part.scale for part in parts_of(one, "default").values()}


@pytest.mark.parametrize(
    ("targets", "sides"),
    [
        ("query and value", 2 * (WIDTH + WIDTH)),
        ("all of attention", 4 * (WIDTH + WIDTH)),
        ("feed-forward", 2 * (WIDTH + INNER)),
        ("every linear layer", 4 * (WIDTH + WIDTH) + 2 * (WIDTH + INNER)),
    ],
)
def test_targets_are_the_layers_that_their_words_say(bench, targets, sides):
    """rank x (in + out) of each matrix in each block."""
    assert bench.compute(rank=4, targets=targets).n_trained == 4 * LAYERS * sides


def test_a_classifiers_head_is_no_target_and_counts_in_the_model():
    classifier = Classifier(encoder(LOW_RANK, 0.05))
    headed = LowRankBench(classifier, {f"body.{name}": delta for name, delta in deltas().items()})
    bare, view = LowRankBench(encoder(LOW_RANK, 0.05), deltas()), headed.compute(targets="every linear layer")
    assert view.n_trained == bare.compute(targets="every linear layer").n_trained
    applied = apply(classifier, LoRA(rank=8), modules_to_save=["head"])
    n_head = sum(parameter.numel() for parameter in classifier.head.parameters())
    assert view.n_trained == applied.n_trained - n_head
    assert view.share == pytest.approx(view.n_trained / applied.n_parameters, rel=1e-12)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (8, 16), (8, 64), (128, 16)])
def test_the_scale_is_alpha_over_rank(bench, rank, alpha):
    assert bench.compute(rank=rank, alpha=alpha).scale == alpha / rank


@pytest.mark.parametrize("layer", deltas())
def test_energy_and_pictures_are_those_of_the_layers_change(bench, layer):
    view, found = bench.compute(rank=4, layer=layer), spectrum(deltas()[layer])
    assert view.kept == pytest.approx(found.energy_kept(), abs=1e-9)
    assert view.delta == pytest.approx(in_blocks(deltas()[layer]), abs=1e-9)
    assert view.cut == pytest.approx(in_blocks(found.truncated(4)), abs=1e-7)
    if "value" in layer:  # it has rank 3
        assert view.kept[2] == pytest.approx(1) and view.cut == pytest.approx(view.delta, abs=1e-4)


def test_blocks_keep_the_mean_of_a_matrix_and_where_its_numbers_stand():
    matrix = torch.randn(4 * SQUARE, 3 * SQUARE, generator=seeded(0))
    blocks = in_blocks(matrix)
    assert blocks.shape == (SQUARE, SQUARE)
    by_hand = matrix.view(SQUARE, 4, SQUARE, 3).mean((1, 3)).numpy()
    assert blocks == pytest.approx(by_hand, abs=1e-6)


def length_of_first_step(delta_OI, rank, alpha, rate=1e-3):
    """What torch's Adam does to B in one real step on LoRA's own update, towards the change that is wanted."""
    layer = nn.Linear(*reversed(delta_OI.shape), bias=False)
    apply(layer, LoRA(rank=rank, alpha=alpha))
    update = layer.adapters["default"]
    bound = 1 / delta_OI.shape[1] ** 0.5
    with torch.no_grad():
        update.A.uniform_(-bound, bound, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([update.B], lr=rate, eps=0.0)
    (update.delta() - delta_OI).square().sum().backward()
    optimizer.step()
    return float(update.delta().detach().norm()) / rate


@pytest.mark.parametrize(("rank", "alpha"), [(1, 16), (8, 16), (8, 3), (64, 16)])
@pytest.mark.parametrize("layer", list(deltas())[:3])
def test_the_weight_moves_as_in_a_real_step_of_adam(bench, layer, rank, alpha):
    wanted = length_of_first_step(deltas()[layer], rank, alpha)
    assert bench.compute(rank=rank, alpha=alpha, layer=layer).moved == pytest.approx(wanted, rel=1e-3)


def test_the_check_above_refuses_a_step_as_long_as_the_gradient(monkeypatch, bench):
    monkeypatch.setattr(low_rank, "first_step", lambda delta_OI, rank, alpha: float(alpha / rank * delta_OI.norm()))
    with pytest.raises(AssertionError):
        test_the_weight_moves_as_in_a_real_step_of_adam(bench, next(iter(deltas())), 8, 16)


@pytest.mark.parametrize("layer", list(deltas())[:4])
@pytest.mark.parametrize("rank", [1, 8, 64])
def test_twice_the_alpha_moves_the_weight_twice_as_far(bench, rank, layer):
    one, two = (bench.compute(rank=rank, alpha=alpha, layer=layer) for alpha in (16, 32))
    assert two.moved == pytest.approx(2 * one.moved, rel=1e-6) and one.moved > 0
    assert two.scale == 2 * one.scale
    assert (two.n_trained, two.share) == (one.n_trained, one.share) and np.array_equal(two.kept, one.kept)


def test_the_division_by_the_rank_keeps_the_first_step_from_growing_with_it():
    moved = [first_step(deltas()["encoder.layer.0.attention.self.query"], rank, alpha=16) for rank in (1, 8, 64)]
    assert moved[0] > moved[1] > moved[2]
    with_alpha_as_rank = [first_step(deltas()["encoder.layer.0.attention.self.query"], r, alpha=r) for r in (1, 8, 64)]
    assert with_alpha_as_rank[0] < with_alpha_as_rank[1] < with_alpha_as_rank[2]


def test_a_layer_is_taken_apart_when_it_is_first_looked_at_and_once(monkeypatch):
    asked = []
    monkeypatch.setattr(low_rank, "spectrum", lambda delta_OI: asked.append(1) or spectrum(delta_OI))
    made = LowRankBench(model(), deltas())
    assert asked == []
    for rank in (1, 8):
        made.compute(rank=rank)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layer": "encoder.layer.9"}, r"layer 'encoder\.layer\.9' .* not there: choose one of the lists"),
        ({"targets": "the head"}, "targets 'the head' are not there: choose one of the lists"),
        ({"rank": 129}, "rank 129 is larger than the layer's matrix, 128 x 128"),
        ({"rank": 200, "layer": "encoder.layer.0.intermediate.dense"}, "rank 200 is larger than .* 192 x 128"),
    ],
)
def test_settings_that_are_not_there_are_refused(bench, wrong, words):
    with pytest.raises(ValueError, match=words):
        bench.compute(**wrong)


LARGE = {"n_trained": 123_456_789, "n_layers": 224, "share": 0.98765, "scale": 64.0, "moved": 987.6}


LOOKED_AT = [{}, {"rank": 1, "alpha": 1}, {"rank": 128, "targets": "every linear layer"},
             {"layer": "encoder.layer.1.attention.self.key"}, LARGE]  # fmt: skip


@pytest.mark.parametrize("settings", few(LOOKED_AT, LARGE), ids=str)
def test_the_picture_of_an_update_can_be_read(bench, settings):
    view = replace(bench.compute(), **LARGE) if settings is LARGE else bench.compute(**settings)
    figure = draw_low_rank(view)
    assert isinstance(figure, Figure)
    assert_readable(figure)
    words = " ".join(words_of(figure))
    assert (
        f"{view.n_trained:,} parameters" in words and f"{view.share:.2%}" in words and f"scale {view.scale:g}" in words
    )
    assert f"{view.moved:.1f} times the learning rate" in words and f"rank {view.rank}" in words


def test_words_that_leave_the_picture_or_cover_each_other_would_be_noticed(bench):
    figure = draw_low_rank(bench.compute())
    plots.write(figure, 12, 6, "between two lines")
    with pytest.raises(AssertionError, match="between two lines"):
        assert_readable(figure)
    figure = draw_low_rank(bench.compute())
    plots.write(figure, 500, 215, "too far to the right")
    with pytest.raises(AssertionError, match="leaves the picture"):
        assert_readable(figure)


def test_the_pictures_share_their_colours_and_the_dot_lies_on_the_curve(bench):
    view = bench.compute(rank=8)
    whole, cut, curve = draw_low_rank(view).axes
    assert whole.images[0].get_clim() == cut.images[0].get_clim()
    assert np.array_equal(whole.images[0].get_array(), view.delta)
    assert np.array_equal(cut.images[0].get_array(), view.cut)
    line, dot = curve.lines
    assert np.array_equal(line.get_ydata(), 100 * view.kept)
    assert list(dot.get_xdata()) == [8] and dot.get_ydata()[0] == 100 * view.kept[7]


def test_the_words_of_an_update_say_what_the_picture_shows(bench):
    view = bench.compute(rank=2, alpha=6)
    said = describe_low_rank(view)
    for part in (view.layer, "rank 2", f"{view.kept[1]:.0%}", f"{view.n_trained:,}", f"{view.share:.2%}", "scale 3"):
        assert part in said


# --- a prefix ---------------------------------------------------------------------------------------------------------

READS = TransformerConfig(TOKENIZER.vocabulary.size, 16, 3, HEADS, 24, 64)
FAMILIES = {"learned": READS, "rotary": READS.with_(positions="rotary")}


@cache
def prefixed(family="learned", length=LENGTH):
    """An encoder, and a prefix that was trained on its twin."""
    twin = encoder(FAMILIES[family], 0.3)
    apply(twin, Prefix(length=length, hidden=None))
    scramble(twin, size=1.0)
    return encoder(FAMILIES[family], 0.3), prefix_cache(twin)


def looking(family="learned", length=LENGTH):
    return PrefixBench(*prefixed(family, length), TEXTS, TOKENIZER)


def ids_of(text):
    vocabulary = TOKENIZER.vocabulary
    first, last = (getattr(vocabulary, name) for name in vocabulary.frame)
    return torch.tensor([[first, *TOKENIZER.encode(text)[: MOST_TOKENS - 2], last]])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_length_zero_is_the_model_without_a_prefix(family, text):
    wanted = attention_weights(prefixed(family)[0], ids_of(text))
    for layer in range(3):
        view = looking(family).compute(length=0, layer=layer, text=text)
        assert np.array_equal(view.weights_HQK, wanted[layer, 0].numpy())
        assert view.on_prefix_H.tolist() == [0.0] * HEADS


@pytest.mark.parametrize("length", [1, 4, LENGTH])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_shorter_prefix_is_its_first_positions(family, length):
    base, whole = prefixed(family)
    for first, is_right in ((True, True), (False, length == LENGTH)):
        cut = slice(length) if first else slice(LENGTH - length, None)
        cache = [(k[:, :, cut], v[:, :, cut]) for k, v in whole]
        wanted = attention_weights(base, ids_of(TEXTS[0]), cache)[2, 0].numpy()
        view = looking(family).compute(length=length, layer=2, text=TEXTS[0])
        assert np.array_equal(view.weights_HQK, wanted) == is_right


@pytest.mark.parametrize("length", range(LENGTH + 1))
@pytest.mark.parametrize("family", FAMILIES)
def test_shares_on_the_prefix_are_sums_over_its_columns(family, length):
    view = looking(family).compute(length=length, layer=1, text=TEXTS[0])
    n_tokens = len(view.tokens)
    assert view.weights_HQK.shape == (HEADS, n_tokens, length + n_tokens)
    by_hand = [
        sum(view.weights_HQK[head, q, k] for q in range(n_tokens) for k in range(length)) / n_tokens
        for head in range(HEADS)
    ]
    assert view.on_prefix_H == pytest.approx(by_hand, abs=1e-6)
    assert ((view.on_prefix_H >= 0) & (view.on_prefix_H < 1)).all() and (view.on_prefix_H > 0).all() == (length > 0)
    assert view.on_prefix_H + view.weights_HQK[:, :, length:].sum(2).mean(1) == pytest.approx(np.ones(HEADS), abs=1e-5)


def test_the_check_above_refuses_a_view_that_was_told_another_length():
    view = looking().compute(length=4, layer=1, text=TEXTS[0])
    assert np.abs(replace(view, length=3).on_prefix_H - view.on_prefix_H).max() > 1e-3


def test_tokens_stand_in_their_frame_and_are_cut_to_what_can_be_shown():
    frame = tuple(TOKENIZER.token(getattr(TOKENIZER.vocabulary, name)) for name in TOKENIZER.vocabulary.frame)
    assert len(TOKENIZER.encode(TEXTS[1])) > MOST_TOKENS
    for text in TEXTS:
        tokens = looking().compute(length=2, text=text).tokens
        inner = [TOKENIZER.token(i) for i in TOKENIZER.encode(text)][: MOST_TOKENS - 2]
        assert tokens == (frame[0], *inner, frame[1]) and len(tokens) <= MOST_TOKENS


def test_head_and_layer_choose_what_is_drawn():
    bench = looking()
    views = [bench.compute(length=2, layer=layer, head=head) for layer in range(3) for head in (0, 3)]
    assert np.array_equal(views[0].weights_HQK, views[1].weights_HQK)
    assert not np.array_equal(views[0].weights_HQK, views[2].weights_HQK)
    for view in views:
        assert np.array_equal(draw_prefix(view).axes[0].images[0].get_array(), view.weights_HQK[view.head])


def test_looking_changes_neither_the_prefix_nor_the_model():
    base, cache = prefixed()
    held = [*base.parameters(), *itertools.chain(*cache)]
    before = [tensor.clone() for tensor in held]
    looking().compute(length=3, layer=2, head=1)
    assert all(map(torch.equal, held, before))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"length": LENGTH + 1}, "length is 7: choose one from 0 to 6"),
        ({"length": -1}, "length is -1: choose one from 0 to 6"),
        ({"length": 1, "layer": 3}, "layer is 3: choose one from 0 to 2"),
        ({"length": 1, "layer": -1}, "layer is -1: choose one from 0 to 2"),
        ({"length": 1, "head": 4}, "head is 4: choose one from 0 to 3"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(wrong, words):
    with pytest.raises(ValueError, match=words):
        looking().compute(**wrong)


PREFIXED = [(TEXTS[0], 0), (TEXTS[0], 1), (TEXTS[1], 0), (TEXTS[1], 16)]


@pytest.mark.parametrize(("text", "length"), few(PREFIXED, PREFIXED[-1]))
def test_the_picture_of_a_prefix_can_be_read(text, length):
    view = looking(length=max(length, 1)).compute(length=length, layer=2, head=3, text=text)
    figure = draw_prefix(view)
    assert isinstance(figure, Figure)
    assert_readable(figure)
    words = [name.partition(" ")[2] for name in words_of(figure)]
    assert any(name.startswith("layer 2, head 3") for name in words)
    assert ("prefix" in words) == (length > 0)


def test_the_heads_of_minilm_can_be_told_apart_beside_a_short_text():
    shares_HQK = np.full((12, 6, 8), 1 / 8)
    assert_readable(draw_prefix(PrefixView(shares_HQK, tuple("abcdef"), 2, 0, 0)))


@pytest.mark.parametrize("length", [0, 2, LENGTH])
def test_bars_are_the_shares_and_the_dashed_line_an_even_one(length):
    view = looking().compute(length=length, layer=1, head=2, text=TEXTS[0])
    bars = draw_prefix(view).axes[1]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx((100 * view.on_prefix_H).tolist())
    colours = [bar.get_facecolor() for bar in bars.patches]
    assert [colour == colours[2] for colour in colours] == [head == 2 for head in range(HEADS)]
    assert bars.lines[0].get_xdata()[0] == pytest.approx(100 * length / (length + len(view.tokens)))


def test_the_words_of_a_prefix_say_what_the_picture_shows():
    view = looking().compute(length=4, layer=1, head=2)
    said = describe_prefix(view)
    for part in ("Layer 1, head 2", "prefix of 4", f"{view.on_prefix_H[2]:.0%}", f"{view.on_prefix_H.mean():.0%}"):
        assert part in said


# --- both explorers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["low rank", "prefix"])
def explorer(request):
    if request.param == "low rank":
        return low_rank_explorer(model(), deltas())
    return prefix_explorer(*prefixed(), TEXTS, TOKENIZER)


@pytest.mark.slow
def test_an_explorer_survives_every_setting_and_comes_back(explorer):
    before = {name: control.value for name, control in explorer.controls.items()}
    image = explorer.image.value
    assert sweep(explorer) >= 11
    assert {name: control.value for name, control in explorer.controls.items()} == before
    assert explorer.banner.value == "" and explorer.image.value == image
    assert matplotlib.pyplot.get_fignums() == []


@pytest.mark.slow
def test_every_control_can_be_found_without_eyes(explorer):
    for control in explorer.controls.values():
        assert control.description and control.tooltip
    assert "aria-live" in explorer.words.value


@pytest.mark.slow
def test_moving_a_control_changes_picture_and_words(explorer):
    for name, control in explorer.controls.items():
        start, before = control.value, (explorer.image.value, explorer.words.value)
        if hasattr(control, "options"):
            control.index = 0 if control.index else 1
        else:
            control.value = control.min if start > control.min else control.max
        assert explorer.image.value != before[0], name
        if name != "text":
            assert explorer.words.value != before[1], name
        control.value = start
        assert explorer.image.value == before[0], name


def test_a_rank_that_a_layer_has_no_room_for_is_a_banner():
    """64 directions do not fit into 60 x 128."""
    small = {"encoder.layer.0.attention.self.query": torch.ones(60, 128)}
    box = low_rank_explorer(model(), small)
    box.controls["rank"].value = 64
    assert "rank 64 is larger than the layer&#x27;s matrix, 60 x 128" in box.banner.value and box.value is None
    box.controls["rank"].value = RANKS[0]
    assert box.banner.value == "" and box.value.rank == 1
