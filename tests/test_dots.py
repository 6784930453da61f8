"""Dots in rows: every value stands where it should, a series looks the same in all rows, and words stay apart."""

import itertools

import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from course_lib import plots
from course_lib.plots import draw_dots
from course_lib.plots.dots import GAP, MARKERS, ROW
from course_lib.plots.theme import CYCLE, INK

SHARES = {
    "BERT-base": {"LoRA": 0.27, "prefix": (0.2, 0.1, 0.4), "the source says": (0.1, 0.3)},
    "a model of a longer name": {"prefix": 3.0, "LoRA": (0.06, 0.05, 0.07)},
    "Llama-2-7B": {"the source says": 0.5},
}
MANY = {f"row {n}": {name: 10.0 * n + place for place, name in enumerate("abcdefgh")} for n in range(3)}
FIGURES = {
    "one series": lambda: draw_dots({"bag of words": {"accuracy": 70.0}, "head alone": {"accuracy": (75, 70, 80)}}),
    "logarithmic": lambda: draw_dots(SHARES, log_x=True, number="{:.2g}", xlabel="share that trains, % (log scale)"),
    "references": lambda: draw_dots(SHARES, references={"chance": 0.5, "head alone": 2.0}, xlabel="share, %"),
    "many series": lambda: draw_dots(MANY, xlabel="number", number="{:,.0f}"),
    "long names": lambda: draw_dots(
        {"bag of words": dict.fromkeys(map("a series with a name of its own, number {}".format, range(5)), 1.0)},
        xlabel="accuracy on 300 sentences, %, mean over three samples of 100 labels, with 95 % intervals of that mean",
        references={"a reference that has a long name, too": 1.5, "another of these": 2.0, "and the third": 2.5},
    ),
    "one row": lambda: draw_dots({"a": {"b": 1.0}}),
    "narrow": lambda: draw_dots(SHARES, width=5.0, references={"chance": 0.5}),
}


def dots(figure):
    """[(x, y, marker, colour)] of all dots, from top to bottom."""
    found = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "")]
    places = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in found]
    looks = [(line.get_marker(), to_hex(line.get_color()).upper()) for line in found]
    return sorted(((*place, *look) for place, look in zip(places, looks, strict=True)), key=lambda dot: dot[1])


def bars(figure):
    """[(low, high, y, thickness, colour)] of all intervals, from top to bottom."""
    found = [line for line in figure.axes[0].lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    found = [(*map(float, line.get_xdata()), float(line.get_ydata()[0]), line.get_linewidth(),
              to_hex(line.get_color()).upper()) for line in found]  # fmt: skip
    return sorted(found, key=lambda bar: bar[2])


def levels(rows):
    """{(row, series): y}, by hand: points from the top of the axes, series below one another."""
    found, top = {}, 0.0
    for row, series in rows.items():
        for place, name in enumerate(series):
            found[row, name] = top + GAP / 2 + ROW * (place + 0.5)
        top += len(series) * ROW + GAP
    return found


def words_of(figure):
    """Every piece of text with its box, in pixels; ticks outside of the view are not drawn."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    pieces = [*axes.texts, axes.xaxis.label]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        pieces += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    pieces += [text for legend in figure.legends for text in legend.get_texts()]
    return {f"{n} {piece.get_text()}": piece.get_window_extent(renderer)
            for n, piece in enumerate(pieces) if piece.get_text()}  # fmt: skip


def assert_readable(figure):
    boxes = words_of(figure)
    inside = figure.axes[0].get_window_extent()
    wide, high = figure.get_size_inches() * figure.dpi
    for name, box in boxes.items():
        assert min(box.x0, box.y0) >= 0 and box.x1 <= wide and box.y1 <= high, f"{name} leaves the picture"
        assert not box.overlaps(inside), f"{name} stands on the data"
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.shrunk(0.96, 0.85).overlaps(b.shrunk(0.96, 0.85)), (one, other)
    for legend in figure.legends:
        assert not legend.get_window_extent().overlaps(inside)


# where things stand


def test_a_number_is_a_dot_a_pair_a_bar_and_a_triple_both():
    figure, level = draw_dots(SHARES), levels(SHARES)
    wanted_dots, wanted_bars = [], []
    for row, series in SHARES.items():
        for name, value in series.items():
            numbers, y = np.atleast_1d(value), level[row, name]
            if len(numbers) != 2:
                wanted_dots.append((numbers[0], y))
            if len(numbers) > 1:
                wanted_bars.append((numbers[-2], numbers[-1], y))
    assert [dot[:2] for dot in dots(figure)] == sorted(wanted_dots, key=lambda dot: dot[1])
    assert [bar[:3] for bar in bars(figure)] == sorted(wanted_bars, key=lambda bar: bar[2])


def test_the_check_above_refuses_a_row_that_stands_elsewhere():
    upside_down = dict(reversed(SHARES.items()))
    assert [dot[:2] for dot in dots(draw_dots(upside_down))] != [dot[:2] for dot in dots(draw_dots(SHARES))]
    assert levels(upside_down) != levels(SHARES)


def test_an_interval_is_thin_behind_its_dot_and_thick_where_it_stands_alone():
    drawn = bars(draw_dots({"a": {"alone": (1, 2), "with a dot": (1.5, 1, 2)}}))
    (_, _, _, alone, _), (_, _, _, behind, _) = drawn
    assert alone > 2 * behind > 0


def test_rows_go_downwards_in_the_order_given_each_with_its_name_beside_its_middle():
    figure, level = draw_dots(SHARES), levels(SHARES)
    axes = figure.axes[0]
    bottom, top = axes.get_ylim()
    assert bottom > top == 0
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SHARES)
    for row, tick in zip(SHARES, axes.get_yticks(), strict=True):
        assert tick == pytest.approx(np.mean([y for (name, _), y in level.items() if name == row]))
        assert sum(bottom >= y >= top for y in level.values()) == len(level)


def test_each_value_is_written_at_the_right_at_its_own_height():
    figure, level = draw_dots(SHARES, number="{:.1f}"), levels(SHARES)
    written = {text.xy[1]: text.get_text() for text in figure.axes[0].texts}
    assert written == {
        level["BERT-base", "LoRA"]: "0.3",
        level["BERT-base", "prefix"]: "0.2",
        level["BERT-base", "the source says"]: "0.1 to 0.3",
        level["a model of a longer name", "prefix"]: "3.0",
        level["a model of a longer name", "LoRA"]: "0.1",
        level["Llama-2-7B", "the source says"]: "0.5",
    }
    assert all(text.xy[0] == 1 and text.xyann[0] > 0 for text in figure.axes[0].texts)


@pytest.mark.parametrize("log_x", [False, True])
def test_the_axis_shows_every_value_and_interval(log_x):
    figure = draw_dots(SHARES, log_x=log_x)
    low, high = figure.axes[0].get_xlim()
    assert figure.axes[0].get_xscale() == ("log" if log_x else "linear")
    numbers = np.concatenate([np.atleast_1d(v) for series in SHARES.values() for v in series.values()])
    assert low < numbers.min() and numbers.max() < high


def test_references_are_dashed_lines_over_the_whole_height_with_their_names_below():
    (axes,) = draw_dots(SHARES, references={"chance": 0.5, "head alone": 2.0}, xlabel="share, %").axes
    drawn = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in drawn] == [[0.5, 0.5], [2.0, 2.0]]
    assert all(list(line.get_ydata()) == [0, 1] and line.get_color() == INK for line in drawn)
    assert drawn[0].get_window_extent().height >= axes.get_window_extent().height
    assert axes.get_xlabel() == "share, %\ndashed: chance, dashed: head alone"
    assert draw_dots(SHARES).axes[0].get_xlabel() == ""


# what is the same


def looks(figure, rows):
    """{series: the markers and colours that it is drawn with anywhere}."""
    level = {y: name for (_, name), y in levels(rows).items()}
    found = {}
    for _, y, marker, colour in dots(figure):
        found.setdefault(level[y], set()).add((marker, colour))
    for *_, y, _, colour in bars(figure):
        found.setdefault(level[y], set()).add((MARKERS[CYCLE.index(colour)], colour))
    return found


def test_a_series_keeps_its_colour_and_marker_in_all_rows_and_has_them_alone():
    found = looks(draw_dots(SHARES), SHARES)
    assert set(found) == {"LoRA", "prefix", "the source says"}
    assert all(len(look) == 1 for look in found.values())
    assert len({next(iter(look))[0] for look in found.values()}) == len(found)
    assert len({next(iter(look))[1] for look in found.values()}) == len(found)


def test_the_check_above_refuses_a_look_that_goes_by_the_place_in_the_row(monkeypatch):
    """prefix stands second in one row and first in another."""
    mark, calls = plots.dots._mark, []

    def by_place(axes, value, y, look):
        calls.append(y)
        place = sum(y - ROW * 3 < earlier < y for earlier in calls)
        mark(axes, value, y, (MARKERS[place], CYCLE[place]))

    monkeypatch.setattr(plots.dots, "_mark", by_place)
    with pytest.raises(AssertionError):
        test_a_series_keeps_its_colour_and_marker_in_all_rows_and_has_them_alone()


def test_series_beyond_the_palette_still_differ_in_colour_or_marker():
    found = [dot[2:] for dot in dots(draw_dots(MANY))]
    assert found[:8] == found[8:16] and len(set(found)) == len(MANY["row 0"]) == 8


@pytest.mark.parametrize("one_colour", [True, False])
def test_in_one_colour_the_markers_alone_tell_the_series(one_colour):
    rows = {"LoRA": {"sample 1": 0.3, "sample 2": 0.4}, "full": {"sample 1": 0.5, "sample 2": 0.2}}
    found = [dot[2:] for dot in dots(draw_dots(rows, one_colour=one_colour))]
    assert len({marker for marker, _ in found}) == 2
    assert len({colour for _, colour in found}) == (1 if one_colour else 2)


def test_a_legend_names_the_series_where_there_is_more_than_one():
    figure = draw_dots(SHARES)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["LoRA", "prefix", "the source says"]
    drawn = {(line.get_marker(), to_hex(line.get_color()).upper()) for line in legend.get_lines()}
    assert drawn == set.union(*looks(figure, SHARES).values())
    assert draw_dots({"a": {"same": 1.0}, "b": {"same": 2.0}}).legends == []


# room


def test_a_figure_grows_with_its_rows_its_series_and_its_references():
    height = lambda rows, **more: 72 * draw_dots(rows, **more).get_figheight()
    one = {"a": {"x": 1.0}}
    assert height(one | {"b": {"x": 1.0}}) - height(one) == pytest.approx(ROW + GAP)
    two = {"a": {"x": 1.0, "y": 2.0}}
    assert height(two | {"b": {"x": 1.0, "y": 2.0}}) - height(two) == pytest.approx(2 * ROW + GAP)
    assert height(one, references={"chance": 1.0}) > height(one)
    assert draw_dots(one, width=5).get_figwidth() == 5


def test_a_row_is_as_high_in_a_figure_of_many_as_in_one_of_few():
    for count in (1, 20):
        figure = draw_dots({f"row {n}": {"x": 1.0} for n in range(count)})
        inside = figure.axes[0].get_window_extent()
        assert inside.height / figure.dpi * 72 == pytest.approx(count * (ROW + GAP))


@pytest.mark.parametrize("name", FIGURES)
def test_words_stay_apart_off_the_data_and_inside_the_picture(name):
    assert_readable(FIGURES[name]())


@pytest.mark.parametrize(
    ("words", "x", "y", "said"),
    [
        ("on the data", 0.5, 10.0, "stands on the data"),
        ("w" * 40, 1.02, 10.0, "leaves the picture"),
        ("x", -0.1, ROW + 2, "BERT-base"),
    ],
)
def test_the_check_above_refuses_words_in_a_bad_place(words, x, y, said):
    (axes,) = (figure := FIGURES["references"]()).axes
    axes.text(x, y + GAP, words, transform=axes.get_yaxis_transform())
    with pytest.raises(AssertionError, match=said):
        assert_readable(figure)


def test_nothing_is_left_behind_in_pyplot():
    assert isinstance(FIGURES["references"](), Figure)
    assert matplotlib.pyplot.get_fignums() == []


# refusals


@pytest.mark.parametrize("rows", [{}, {"BERT": {}}])
def test_no_value_at_all_is_refused(rows):
    with pytest.raises(ValueError, match="rows hold no value: give at least one"):
        draw_dots(rows)


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0.0"), (-0.5, "-0.5"), ((0.0, 1.0), "0.0"), ((0.2, -0.1, 0.3), "-0.1")]
)
def test_a_logarithmic_axis_refuses_what_it_cannot_show(value, said):
    rows = {"BERT": {"LoRA": 0.3}, "Llama": {"LoRA": value}}
    with pytest.raises(ValueError, match=f"rows hold {said}: a logarithmic axis shows numbers above 0"):
        draw_dots(rows, log_x=True)
    assert draw_dots(rows).axes  # the control: a linear one shows it
