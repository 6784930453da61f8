"""Figures: nothing overlaps or leaves the picture, roles differ without colour, no torch and no pyplot figure."""

import io
import itertools
import subprocess
import sys

import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from course_lib import plots
from course_lib.plots import ROLES, TokenRow

TOKENS = ["[CLS]", "a", " very", " disappointing", " film", ",", " un", "believ", "able", ".", "[SEP]", "[PAD]"]
STYLES = ["special", "context", "hidden", "swapped", "kept", "context", "target", "sentinel", "context", "silent"]
ROW = TokenRow("reads", TOKENS, [*STYLES, "special", "padding"])


def pixels(figure):
    return matplotlib.image.imread(io.BytesIO(plots.png(figure, 72)))[..., :3]


def grey(colour):
    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def edges_are_clear(figure):
    picture = pixels(figure)
    return all((edge > 0.99).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]))


def matrix(*view):
    return plots.draw_visibilities([plots.Visibility(*view)])


FIGURES = {
    "token rows": lambda: plots.draw_token_rows([ROW, ROW]),
    "aligned token rows": lambda: plots.draw_token_rows([ROW, ROW], aligned=True, width=4),
    "visibility": lambda: matrix(np.tri(12, dtype=bool), TOKENS, TOKENS, "causal", [True] * 12),
    "two streams": lambda: plots.draw_visibilities(
        [
            plots.Visibility(np.tri(12, dtype=bool), TOKENS, TOKENS, "content stream", [False, True] * 6),
            plots.Visibility(
                np.tri(12, k=-1, dtype=bool), TOKENS, TOKENS, "query stream", [False, True] * 6, np.eye(12, dtype=bool)
            ),
        ]
    ),
    "shares": lambda: plots.draw_shares({"context": 0.7, "hidden": 0.2, "swapped": 0.05, "kept": 0.05}),
    "bars": lambda: plots.draw_bars(
        ["causal", "bag of words, one and two words"],
        [70.0, 65.0],
        [60.0, 64.0],
        [75.0, 66.0],
        references={"chance": 50.0, "a frozen encoder of another kind": 74.0},
        xlabel="accuracy, %",
    ),
    "curves": lambda: plots.draw_curves(
        {"causal": plots.Series([1, 2, 3], [6, 5, 4.5], [5.8, 4.9, 4.4], [6.2, 5.1, 4.6]), "masked": ([1, 3], [7, 6])},
        {"masked": ([1], [7.1]), "mine": ([2], [6.5])},
        references={"uniform, ln V": 9.0, "unigram": 6.5, "unigram over the masked": 6.49},
        xlabel="million tokens",
        ylabel="loss",
    ),
    "histogram": lambda: plots.draw_histogram(
        {"span": [1, 2, 2, 3], "infilled": [0, 3, 5, 9]}, bins=5, references={"mean": 3}, xlabel="length"
    ),
    "stacks": lambda: plots.draw_stacks(
        {"full": {"weights": 4, "gradients": 4}, "frozen": {"weights": 4}}, references={"limit": 6}, xlabel="bytes"
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_clear_edge_and_something_within(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    assert edges_are_clear(figure), "something is cut off at the edge of the picture"
    assert (pixels(figure) < 0.5).any()


def test_a_cut_figure_would_be_noticed():
    figure = Figure(figsize=(2, 1))
    plots.write(figure, 100, 20, "—" * 20)
    assert not edges_are_clear(figure)


@pytest.mark.parametrize("name", ["bars", "curves", "histogram", "stacks"])
def test_words_of_a_chart_do_not_overlap_and_stand_off_the_data(name):
    figure = FIGURES[name]()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    words = [text for text in [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()] if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in words]
    inside = axes.get_window_extent(renderer)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.shrunk(0.9, 0.6).overlaps(other.shrunk(0.9, 0.6))
    if legend := axes.get_legend():
        assert not legend.get_window_extent(renderer).overlaps(inside)
        assert not any(legend.get_window_extent(renderer).overlaps(box) for box in boxes)


@pytest.mark.parametrize("draw", [
    lambda flags: plots.draw_bars(["causal", "masked"], [40.0, 99.0], references=flags),
    lambda flags: plots.draw_histogram({"span": range(100)}, references=flags),
])  # fmt: skip
@pytest.mark.parametrize("values", [(50, 52, 54), (54, 52, 50), (90, 92, 94), (60, 97, 98), (1, 2, 3), (5, 5, 97)])
def test_no_line_of_a_reference_runs_through_the_name_of_another(draw, values):
    figure = draw(dict(zip(("a long name", "chance", "the majority class"), values, strict=True)))
    figure.draw(FigureCanvasAgg(figure).get_renderer())
    flags = figure.axes[0].texts
    lines = [flag.arrow_patch.get_window_extent() for flag in flags if getattr(flag, "arrow_patch", None)]
    names = [flag.get_window_extent() for flag in flags if flag.get_text()]
    assert len(lines) == 3
    assert not any(name.shrunk(0.96, 0.8).overlaps(line) for name, line in itertools.product(names, lines))


def test_a_long_logarithmic_axis_is_written_in_words_one_can_read():
    def ticks(of):
        figure = plots.draw_curves({"full": (of, [1.0] * len(of))}, log_x=True)
        figure.canvas.draw()
        return {label.get_text() for label in figure.axes[0].get_xticklabels(which="both")} - {""}

    ladder = [4096 * 2**n for n in range(9)]
    assert {"10k", "100k", "1M"} <= ticks(ladder)
    assert not any("10^" in label for label in ticks(ladder))
    assert ticks(ladder[-4:]) == {"131k", "262k", "524k", "1.05M"}  # few places are written out
    assert any("10^" in label for label in ticks([1e-6 * x for x in ladder]))  # shares are left as they were


def test_an_axis_of_whole_numbers_has_no_half_steps():
    def ticks(x):
        figure = plots.draw_curves({"full": (x, [1.0] * len(x))})
        figure.canvas.draw()
        return [float(tick) for tick in figure.axes[0].get_xticks()]

    assert all(tick.is_integer() for tick in ticks([1, 2, 3])) and len(ticks([1, 2, 3])) >= 3
    assert not all(tick.is_integer() for tick in ticks([1, 2.5, 3]))  # the control: these are no steps


@pytest.mark.parametrize("values", [(9.0, 8.99, 8.98), (1.0, 1.01, 1.02), (5.0, 5.0, 5.0)])
def test_names_of_references_stay_apart_wherever_the_lines_are(values):
    references = dict(zip(("first", "second", "third"), values, strict=True))
    figure = plots.draw_curves({"causal": ([0, 1], [1.0, 9.0])}, references=references)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert not any(one.shrunk(1, 0.8).overlaps(other.shrunk(1, 0.8)) for one, other in itertools.combinations(boxes, 2))
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.height for box in boxes)


def test_roles_can_be_told_apart_without_colour():
    for one, other in itertools.combinations(ROLES.values(), 2):
        lines = [(role.hatch, role.style if role.width else None, role.width) for role in (one, other)]
        contrast = abs(grey(one.fill) - grey(other.fill))
        assert contrast > 0.15 or lines[0] != lines[1] or one.text != other.text, (one.meaning, other.meaning)


def test_words_in_a_box_can_be_read():
    for role in ROLES.values():
        assert abs(grey(role.fill) - grey(role.text)) > 0.4, role.meaning


def test_objectives_differ_in_colour_marker_and_dash():
    for table in (plots.OBJECTIVE_COLOURS, plots.OBJECTIVE_MARKERS, plots.OBJECTIVE_DASHES):
        assert set(table) == set(plots.OBJECTIVE_COLOURS)
        assert len(set(table.values())) == len(table)


def test_tokens_wrap_inside_the_width_and_do_not_overlap():
    layout = plots.lay_out_tokens([TokenRow("reads", TOKENS * 5, ["context"] * 60)], 300)
    for x, _, wide, _, _ in layout.boxes:
        assert x + wide <= 300
    for one, other in itertools.pairwise(layout.boxes):
        assert other[1] > one[1] or other[0] >= one[0] + one[2]


def test_a_token_wider_than_the_figure_gets_a_line_of_its_own():
    layout = plots.lay_out_tokens([TokenRow("", ["a", "w" * 200, "b"], ["context"] * 3)], 300)
    assert len({y for _, y, *_ in layout.boxes}) == 3


def test_parts_of_a_word_stand_closer_than_words():
    layout = plots.lay_out_tokens([TokenRow("", ["un", "believ", " film"], ["context"] * 3)], 900)
    first, second, third = layout.boxes
    assert second[0] - (first[0] + first[2]) < third[0] - (second[0] + second[2])


def test_aligned_rows_share_their_columns():
    rows = [TokenRow("reads", ["a", "b"], ["context"] * 2), TokenRow("predicts", ["long word", "c"], ["target"] * 2)]
    boxes = plots.lay_out_tokens(rows, 500, aligned=True).boxes
    assert [box[0] for box in boxes[:2]] == [box[0] for box in boxes[2:]]


def test_exchanged_tokens_keep_their_places():
    layout = plots.lay_out_tokens([TokenRow("", ["a", " film"], ["context"] * 2)], 500)
    other = plots.exchange_tokens(layout, ["[MASK]", " unbelievable"], ["hidden", "swapped"])
    assert [box[:3] for box in other.boxes] == [box[:3] for box in layout.boxes]
    assert other.boxes[1][3].endswith("…")


@pytest.mark.parametrize(
    "token", ["$x_1$", "$\\frac{$", "<b>", "\n", "\t", "", " ", "\ufffd", "日本", "🎬", "a" * 80, "é"]
)
def test_any_token_can_be_drawn(token):
    figure = plots.draw_token_rows([TokenRow(token, [token, "b"], ["context", "target"])])
    assert plots.png(figure)[1:4] == b"PNG"
    names = [token, "b"]
    assert plots.png(matrix(np.eye(2, dtype=bool), names, names))[1:4] == b"PNG"


def test_the_matrix_shows_who_may_look_at_whom():
    size = 6
    names = list("abcdef")
    full = pixels(matrix(np.ones((size, size), bool), names, names))
    half = pixels(matrix(np.tri(size, dtype=bool), names, names))
    is_blue_full, is_blue_half = (np.abs(p - to_rgb("#0072B2")).max(-1) < 0.02 for p in (full, half))
    legend = 20  # pixels at most, of the legend's own square
    assert is_blue_half.sum() / is_blue_full.sum() == pytest.approx((size + 1) / (2 * size), abs=0.03)
    assert is_blue_full.sum() > size * size * 100 + legend


def test_a_figure_has_words_for_those_who_cannot_see_it():
    picture = plots.show(FIGURES["shares"](), "Most tokens are <context>.")
    assert picture.data[1:4] == b"PNG"
    assert picture.alt == "Most tokens are <context>."
    assert "&lt;context&gt;" in plots.hidden_words(picture.alt)
    with pytest.raises(ValueError, match="alt is empty"):
        plots.show(FIGURES["shares"](), " ")


def test_the_picture_is_displayed_with_its_words(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show(FIGURES["shares"](), "A bar.")._ipython_display_()
    image, words = shown
    assert image.alt == "A bar." and image.format == "png"
    assert "A bar." in words.data


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: plots.draw_token_rows([]), "rows are empty"),
        (lambda: TokenRow("reads", ["a"], []), "1 tokens and 0 roles"),
        (lambda: TokenRow("reads", ["a"], ["nobody"]), "'nobody' is unknown"),
        (
            lambda: plots.draw_token_rows([TokenRow("", ["a"], ["context"]), TokenRow("", [], [])], aligned=True),
            "rows of one length",
        ),
        (lambda: matrix(np.eye(2), ["a"], ["a", "b"]), "name each row and column"),
        (lambda: matrix(np.eye(1), ["a"], ["a"], "", []), "0 values for 1 rows"),
        (lambda: plots.draw_shares({"context": 0.5}), "sum to 1"),
        (lambda: plots.draw_shares({}), "sum to 1"),
        (lambda: plots.draw_bars(["a"], [1, 2]), "1 names, 2 values"),
        (lambda: plots.draw_bars(["a"], [1.0], [0.1], [0.2]), "lies outside its interval"),
        (lambda: plots.draw_curves({}), "are empty"),
        (lambda: plots.draw_histogram({"a": []}), "hold no value"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_remedy(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


def test_no_figure_is_left_in_pyplot_and_no_setting_changed():
    before = {name: value for name, value in matplotlib.rcParams.items() if name != "backend"}
    for draw in FIGURES.values():
        plots.png(draw())
    assert matplotlib.pyplot.get_fignums() == []
    assert {name: value for name, value in matplotlib.rcParams.items() if name != "backend"} == before


@pytest.mark.slow
def test_plots_know_no_torch():
    code = "import sys, course_lib.plots; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
