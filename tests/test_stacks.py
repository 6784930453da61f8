"""Stacked bars: every part stands where the parts before it end, looks the same in all rows, and words stay apart."""

import itertools

import matplotlib.pyplot
import numpy as np
import pytest
from few import few
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from course_lib import plots
from course_lib.plots import draw_stacks, stack_look
from course_lib.plots.stacks import LOOKS, parts_of_stacks
from course_lib.plots.theme import INK

MEMORY = {
    "full": {"weights": 4.0, "gradients": 4.0, "optimiser": 8.0, "kept for backward": 20.0},
    "frozen": {"weights": 4.0, "kept for backward": 12.0},
    "LoRA, rank 8, checkpointed": {"weights": 4.0, "updates": 0.5, "gradients": 0.1, "kept for backward": 0.0},
}
ORDER = ["weights", "gradients", "optimiser", "kept for backward", "updates"]
MANY = {f"row {n}": {f"part {name}": n + place + 1.0 for place, name in enumerate("abcdefghi")} for n in range(3)}
FIGURES = {
    "memory": lambda: draw_stacks(MEMORY, xlabel="bytes", number="{:.1f}"),
    "references": lambda: draw_stacks(MEMORY, xlabel="GiB", references={"24 GiB": 24, "what this machine has": 25}),
    "late references": lambda: draw_stacks(MEMORY, references={"34": 34.0, "a long name": 35.9, "early": 0.2}),
    "beyond all": lambda: draw_stacks(MEMORY, references={"80 GiB": 80}, number=lambda size: f"{size:.0f} GiB"),
    "many parts": lambda: draw_stacks(MANY, width=5.0),
    "one": lambda: draw_stacks({"a": {"b": 1.0}}),
    "nothing": lambda: draw_stacks({"a": {"b": 0.0}}),
}


def bars(figure):
    """[(row, start, end, colour, hatch)] of all parts that are drawn, row by row, from left to right."""
    found = [patch for patch in figure.axes[0].patches if np.isfinite(patch.get_width())]
    found = [(round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_x() + bar.get_width(),
              to_hex(bar.get_facecolor()).upper(), bar.get_hatch() or "") for bar in found]  # fmt: skip
    return sorted(found)


def words_of(figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    pieces = [*axes.texts, axes.xaxis.label, *axes.get_legend().get_texts()]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        pieces += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return {f"{n} {piece.get_text()}": piece.get_window_extent(renderer)
            for n, piece in enumerate(pieces) if piece.get_text()}  # fmt: skip


def lines_of(axes):
    """The boxes of the dashed lines, and of what leads them up to their names."""
    return [line.get_window_extent() for line in axes.lines] + [
        text.arrow_patch.get_window_extent() for text in axes.texts if getattr(text, "arrow_patch", None)
    ]


def assert_readable(figure):
    boxes, (axes,) = words_of(figure), figure.axes
    inside = axes.get_window_extent()
    wide, high = figure.get_size_inches() * figure.dpi
    for name, box in boxes.items():
        assert min(box.x0, box.y0) >= 0 and box.x1 <= wide and box.y1 <= high, f"{name} leaves the picture"
        assert not box.overlaps(inside), f"{name} stands on the data"
        assert not any(box.shrunk(0.96, 0.8).overlaps(line) for line in lines_of(axes)), f"a line crosses {name}"
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.shrunk(0.96, 0.85).overlaps(b.shrunk(0.96, 0.85)), (one, other)
    assert not axes.get_legend().get_window_extent().overlaps(inside)


# where things stand


def test_a_part_begins_where_the_parts_before_it_end():
    wanted = []
    for row, parts in enumerate(MEMORY.values()):
        start = 0.0
        for name in ORDER:
            size = parts.get(name, 0.0)
            if size:
                look = stack_look(ORDER.index(name))
                wanted.append((row, start, start + size, look["facecolor"], look["hatch"]))
            start += size
    found = bars(FIGURES["memory"]())
    assert [bar[3:] for bar in found] == [bar[3:] for bar in wanted]
    assert np.array([bar[:3] for bar in found]) == pytest.approx(np.array([bar[:3] for bar in wanted]))


def test_the_order_is_that_of_the_first_mention_in_any_row():
    assert parts_of_stacks(MEMORY) == ORDER
    legend = FIGURES["memory"]().axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ORDER


def test_a_part_keeps_its_look_in_rows_that_lack_the_parts_before_it():
    found = {}
    for row, parts in MEMORY.items():
        drawn = [bar for bar in bars(FIGURES["memory"]()) if bar[0] == list(MEMORY).index(row)]
        for name, bar in zip([name for name in ORDER if parts.get(name)], drawn, strict=True):
            found.setdefault(name, set()).add(bar[3:])
    assert all(len(looks) == 1 for looks in found.values()) and len(set(map(frozenset, found.values()))) == len(ORDER)


@pytest.mark.parametrize("look", [lambda _n: stack_look(0), lambda n: stack_look(n + 1)])
def test_the_checks_above_refuse_other_looks(monkeypatch, look):
    monkeypatch.setattr(plots.stacks, "stack_look", look)
    with pytest.raises(AssertionError):
        test_a_part_begins_where_the_parts_before_it_end()


def test_the_checks_above_refuse_another_order(monkeypatch):
    monkeypatch.setattr(plots.stacks, "parts_of_stacks", lambda rows: sorted(parts_of_stacks(rows)))
    with pytest.raises(AssertionError):
        test_a_part_begins_where_the_parts_before_it_end()


def test_rows_go_downwards_with_their_names_and_their_sums_at_the_right_edge():
    (axes,) = FIGURES["memory"]().axes
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert [label.get_text() for label in axes.get_yticklabels()] == list(MEMORY)
    assert {text.xy[1]: text.get_text() for text in axes.texts} == {0: "36.0", 1: "16.0", 2: "4.6"}
    assert all(text.xy[0] == 1 and text.xyann[0] > 0 for text in axes.texts)


def test_a_sum_is_written_by_a_function_too():
    (axes,) = FIGURES["beyond all"]().axes
    assert {"36 GiB", "16 GiB", "5 GiB"} <= {text.get_text() for text in axes.texts}


def test_the_axis_begins_at_0_and_shows_every_sum_and_reference():
    for name in ("memory", "beyond all"):
        low, high = FIGURES[name]().axes[0].get_xlim()
        assert low == 0 and high > (36 if name == "memory" else 80)


def test_references_are_dashed_lines_over_the_whole_height():
    (axes,) = FIGURES["references"]().axes
    drawn = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert sorted(line.get_xdata()[0] for line in drawn) == [24, 25]
    assert all(list(line.get_ydata()) == [0, 1] and line.get_color() == INK for line in drawn)


# what can be read


def grey(colour):
    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def test_parts_can_be_told_apart_without_colour():
    for one, other in itertools.combinations(LOOKS, 2):
        assert one[1] != other[1] or abs(grey(one[0]) - grey(other[0])) > 0.15, (one, other)
    looks = [(look["facecolor"], look["hatch"]) for look in map(stack_look, range(2 * len(LOOKS)))]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("name", FIGURES)
def test_words_stay_apart_off_the_data_and_no_line_crosses_them(name):
    assert_readable(FIGURES[name]())


PLACES = list(itertools.permutations((0.1, 17, 19, 33, 35.5), 3))


@pytest.mark.parametrize(("first", "second", "third"), few(PLACES, PLACES[0], PLACES[-1], (17, 19, 33), (35.5, 33, 19)))
def test_names_of_references_stay_readable_wherever_the_lines_are(first, second, third):
    names = ("24 GiB", "what this machine has", "80 GiB")
    assert_readable(draw_stacks(MEMORY, references=dict(zip(names, (first, second, third), strict=True))))


def test_the_check_above_refuses_names_that_rise_from_left_to_right(monkeypatch):
    """The first line's name stands lowest, and the second line runs through it."""

    def rising(axes, references):
        for level, (name, value) in enumerate(sorted(references.items(), key=lambda item: item[1])):
            plots.charts._flag(axes, value, name, 16.0 * level, is_left=False)

    monkeypatch.setattr(plots.stacks, "paint_flags", rising)
    with pytest.raises(AssertionError, match="a line crosses"):
        assert_readable(draw_stacks(MEMORY, references={"a long name": 10, "another": 12}))


def test_a_figure_grows_with_its_rows_and_references():
    height = lambda rows, **more: 72 * draw_stacks(rows, **more).get_figheight()
    one = {"a": {"x": 1.0}}
    assert height(one | {"b": {"x": 1.0}}) - height(one) == pytest.approx(plots.charts.BAR)
    assert height(one, references={"limit": 1.0}) - height(one) == pytest.approx(16)
    assert draw_stacks(one, width=5).get_figwidth() == 5


def test_nothing_is_left_behind_in_pyplot():
    assert isinstance(FIGURES["references"](), Figure)
    assert matplotlib.pyplot.get_fignums() == []


# refusals


@pytest.mark.parametrize("rows", [{}, {"full": {}}])
def test_no_value_at_all_is_refused(rows):
    with pytest.raises(ValueError, match="rows hold no value: give at least one"):
        draw_stacks(rows)


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_what_cannot_be_stacked_is_refused_with_its_place(value):
    with pytest.raises(ValueError, match=f"'full', 'gradients': {value} cannot be stacked"):
        draw_stacks({"full": {"weights": 1.0, "gradients": value}})
