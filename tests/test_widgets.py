"""Explorers: every control at its ends and its middle, errors as banners, predictions that wait for a guess."""

import io
import itertools

import ipywidgets as widgets
import matplotlib.image
import matplotlib.pyplot
import nbformat
import numpy as np
import pytest
import torch
from few import few

from course_lib import data, objectives, plots
from course_lib.lab import execute
from course_lib.runtime import seeded
from course_lib.vocabulary import IGNORE_INDEX
from course_lib.widgets import binder
from course_lib.widgets.binder import bind, compare, guess, guess_number, sweep
from course_lib.widgets.fill_in import compute_fill, draw_fill, fill_in_box
from course_lib.widgets.masking import compute_masking, draw_masking, mask_explorer, roles_of
from course_lib.widgets.objectives import draw_objective, five_tasks, objective_explorer
from course_lib.widgets.tasks import COUNTED, DRAWS, SHOWN, compute_objective, encode

TOKENIZER = data.course_tokenizer()
TEXT = "The plot was thin, but the actors made it worth watching: a warm, funny and surprisingly moving film."
REVIEWS = [review.text for review in data.reviews_of("dev")[:16]]
BATCH = data.pad(TOKENIZER.encode_all(REVIEWS), TOKENIZER.vocabulary, length=96)


def likeliest(text):
    return [[(" good", 0.5), (" bad", 0.2), (" $x$", 0.1), (" dull", 0.05), (" odd", 0.01), (" sixth", 0.001)]] * (
        text.count("[MASK]")
    )


EXPLORERS = {
    "masking": lambda: mask_explorer(BATCH, TOKENIZER),
    "objectives": lambda: objective_explorer(TEXT, TOKENIZER),
    "objectives of ids": lambda: objective_explorer(TOKENIZER.encode(REVIEWS[0]), TOKENIZER),
    "fill in": lambda: fill_in_box(likeliest, "A [MASK] film."),
}


def sliders(box):
    return {name: control for name, control in box.controls.items() if hasattr(control, "min")}


@pytest.mark.parametrize("name", few(EXPLORERS, "fill in"))
def test_an_explorer_survives_every_setting_and_comes_back(name):
    box = EXPLORERS[name]()
    before = {key: control.value for key, control in box.controls.items()}
    assert sweep(box) >= len(box.controls)
    assert {key: control.value for key, control in box.controls.items()} == before
    assert box.banner.value == ""
    assert matplotlib.pyplot.get_fignums() == []


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_control_can_be_found_without_eyes(name):
    box = EXPLORERS[name]()
    for control in box.controls.values():
        assert control.description and control.tooltip
    assert "aria-live" in box.words.value
    assert len(box.words.value) > 200


@pytest.mark.parametrize("name", few(["masking", "objectives"], "masking"))
def test_moving_a_slider_changes_picture_and_words(name):
    box = EXPLORERS[name]()
    for control in sliders(box).values():
        if "objective" in box.controls:
            box.controls["objective"].value = "infilled"
        start, before = control.value, (box.image.value, box.words.value)
        control.value = control.max
        assert box.image.value != before[0], control.description
        assert box.words.value != before[1], control.description
        control.value = start
        assert box.image.value == before[0], control.description


# --- the binder -------------------------------------------------------------------------------------------------------


def share_box(compute=lambda share: {"context": 1 - share, "hidden": share}):
    slider = widgets.FloatSlider(0.2, min=0, max=1, description="share", tooltip="share of hidden tokens")
    return bind(compute, plots.draw_shares, share=slider)


def test_an_error_shows_as_a_banner_and_takes_the_old_picture_away():
    def compute(share):
        if share > 0.5:
            raise ValueError("<b>too much</b> & more")
        return {"context": 1 - share, "hidden": share}

    box = share_box(compute)
    assert box.image.value and box.value
    box.controls["share"].value = 0.9
    assert "role='alert'" in box.banner.value or 'role="alert"' in box.banner.value
    assert "&lt;b&gt;too much&lt;/b&gt; &amp; more" in box.banner.value
    assert "<b>too much" not in box.banner.value
    assert box.image.value == b"" and box.value is None and box.words.value == ""
    box.controls["share"].value = 0.1
    assert box.banner.value == "" and box.image.value and box.value["hidden"] == 0.1


def test_an_error_while_drawing_shows_too():
    box = share_box(lambda share: {"context": share})
    assert "sum to 1" in box.banner.value


def test_a_button_redraws():
    calls = []

    def compute():
        calls.append(1)
        return {"context": 1.0}

    button = widgets.Button(description="again", tooltip="draw once more")
    box = bind(compute, plots.draw_shares, again=button)
    button.click()
    assert len(calls) == 2
    assert sweep(box) == 1 and len(calls) == 3


def test_a_control_without_a_name_is_refused():
    with pytest.raises(ValueError, match="'share' has no description or no tooltip"):
        bind(lambda share: share, plots.draw_shares, share=widgets.FloatSlider(description="share"))


def test_the_sweep_finds_an_error_at_one_end_alone():
    box = share_box(lambda share: {"context": 1 - share, "hidden": share / (share < 1)})
    assert box.banner.value == ""
    with pytest.raises(AssertionError, match=r"share=1.0 shows an error"):
        sweep(box)


def test_the_sweep_visits_ends_what_lies_between_and_every_option():
    seen = []
    controls = {
        "whole": widgets.IntSlider(3, min=0, max=9),
        "low": widgets.IntSlider(0, min=0, max=9),
        "log": widgets.FloatLogSlider(0.1, min=-3, max=1),
        "one": widgets.Dropdown(options=[("a", 1), ("b", 2)], value=1),
        "box": widgets.Checkbox(False),
    }
    for name, control in controls.items():
        control.description = control.tooltip = name
    bound = bind(lambda **values: seen.append(values) or {"context": 1.0}, plots.draw_shares, **controls)
    assert sweep(bound) == 3 + 3 + 3 + 2 + 2
    assert len(seen) == 1 + 3 + 3 + 3 + 2 + 2  # drawn once at first, and no setting twice
    assert {values["whole"] for values in seen} == {0, 3, 9}
    assert {values["low"] for values in seen} == {0, 4, 9}
    assert {values["log"] for values in seen} == {0.001, 0.1, 10.0}
    assert {values["one"] for values in seen} == {1, 2}
    assert {values["box"] for values in seen} == {False, True}


# --- predictions ------------------------------------------------------------------------------------------------------


def test_the_answer_stays_folded_until_a_guess_is_made():
    radio = guess("How many are hidden?", [("about 15", 15), ("about 12", 12)])
    assert radio.description and radio.tooltip == "How many are hidden?"
    folded = compare(radio, "It is 12.1.", 12).data
    assert folded.startswith("<details>") and "<details open" not in folded and "It is 12.1." in folded
    radio.value = 15
    assert compare(radio, "It is 12.1.", 12).data.startswith(
        "**Compare.** You guessed about 15, which is near but too high."
    )
    radio.value = 12
    assert "You guessed about 12, and that is right. It is 12.1." in compare(radio, "It is 12.1.", 12).data
    assert compare(radio, "It is 12.1.").data == "**Compare.** You guessed about 12. It is 12.1."


def test_a_number_is_a_guess_once_it_is_typed_or_confirmed():
    number = guess_number("How many?", low=0, high=100, unit="of a hundred")
    assert number.value is None and compare(number, "12.").data.startswith("<details>")
    number.button.click()
    assert number.value == 0.0
    number.box.value = 12.5
    assert number.value == 12.5 and "noted: 12.5 of a hundred" in number.said.value
    for control in (number.box, number.button):
        assert control.description and "How many?" in control.tooltip
    with pytest.raises(ValueError, match="low < high"):
        guess_number("?", low=1, high=1)


class Shown:
    """Stands for what IPython's `display` gives: keeps what was shown, and what took its place."""

    def __init__(self):
        self.texts = []

    def __call__(self, shown, display_id):
        assert display_id is True
        self.texts.append(shown.data)
        return self

    def update(self, shown):
        self.texts.append(shown.data)


@pytest.mark.parametrize("make", ["options", "number"])
def test_a_shown_answer_opens_when_the_guess_is_made_and_follows_it(make, monkeypatch):
    options = [("ten", 10), ("twelve", 12)]
    made = guess("?", options) if make == "options" else guess_number("?", low=10, high=20)
    shown = Shown()
    monkeypatch.setattr(binder, "display", shown)
    compare(made, "It is 12.", 12)._ipython_display_()
    commit = made.button.click if make == "number" else lambda: setattr(made, "value", 10)
    commit()
    (made.box if make == "number" else made).value = 12
    folded, first, second = shown.texts
    assert folded.startswith("<details>")
    assert first.startswith("**Compare.** You guessed ten" if make == "options" else "**Compare.** You guessed 10")
    assert "that is right. It is 12." in second and "right" not in first


NOTEBOOK = [
    "from course_lib.widgets.binder import compare, guess\nradio = guess('How many?', [('ten', 10), ('twelve', 12)])",
    "compare(radio, 'It is **12**.', 12)",
    "radio.value = 12",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_cells", "words"),
    [(2, "<details><summary>Guess first"), (3, "**Compare.** You guessed twelve, and that is right. It is **12**.")],
)
def test_in_a_notebook_a_later_guess_replaces_the_folded_answer_where_it_stands(tmp_path, n_cells, words):
    """Two cells alone are the negative control: what a notebook without a guess keeps is the folded answer."""
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK[:n_cells]]
    notebook = nbformat.v4.new_notebook(cells=cells)
    execute(notebook, tmp_path)
    (output,) = notebook.cells[1].outputs
    assert output.data["text/markdown"].startswith(words)


@pytest.mark.parametrize(
    ("guessed", "result", "words"),
    [
        (12.0, 12.1, "that is right"),
        (10.0, 12.1, "near but too low"),
        (15.0, 12.1, "near but too high"),
        (50.0, 12.1, "which is too high"),
        ("causal", "masked", "came out otherwise"),
        ("masked", "masked", "that is right"),
        (True, False, "came out otherwise"),
        (False, False, "that is right"),
        (0.0, 0.0, "that is right"),
        ("span", ["masked", "span"], "that is right"),
        ("causal", ["masked", "span"], "came out otherwise"),
    ],
)
def test_a_guess_is_judged_by_the_result(guessed, result, words):
    assert words in compare(guessed, "So it is.", result).data


# --- the mask probability ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prob", [0.0, 0.15, 0.5, 1.0])
def test_the_shares_are_those_of_the_librarys_batch(prob):
    view = compute_masking(BATCH, TOKENIZER, mask_prob=prob)
    batch = objectives.masked(BATCH, TOKENIZER.vocabulary, mask_prob=prob, generator=seeded(0))
    n_tokens = int((TOKENIZER.vocabulary.pad != BATCH).sum())
    assert view.n_tokens == n_tokens
    assert sum(view.shares.values()) == pytest.approx(1)
    hidden = int((batch.input_ids_BT == TOKENIZER.vocabulary.mask).sum())
    assert view.shares["hidden"] == pytest.approx(hidden / n_tokens)
    asked = sum(view.shares[name] for name in ("hidden", "swapped", "kept"))
    assert asked == pytest.approx(int(batch.is_target_BL.sum()) / n_tokens)
    assert (
        draw_masking(view).get_size_inches().tolist()
        == draw_masking(compute_masking(BATCH, TOKENIZER, mask_prob=0.3)).get_size_inches().tolist()
    ), "the picture must not jump"


def test_what_is_chosen_at_a_low_probability_is_chosen_at_a_higher_one():
    views = [compute_masking(BATCH, TOKENIZER, mask_prob=prob / 20) for prob in range(21)]
    for low, high in itertools.pairwise(views):
        for before, after in zip(low.roles, high.roles, strict=True):
            assert before in ("context", "special", "padding") or after != "context"
    shares = [view.shares["hidden"] for view in views]
    assert shares == sorted(shares)


def test_roles_tell_the_fates_apart():
    vocabulary = TOKENIZER.vocabulary
    ids_BT = torch.tensor([[vocabulary.cls, 200, 201, 202, 203, vocabulary.pad]])
    shown_BT = torch.tensor([[vocabulary.cls, 200, vocabulary.mask, 999, 203, vocabulary.pad]])
    labels_BT = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 201, 202, 203, IGNORE_INDEX]])
    batch = objectives.Batch(shown_BT, labels_BT, torch.ones(1, 1, 6, dtype=torch.bool))
    assert roles_of(ids_BT, batch, vocabulary) == [["special", "context", "hidden", "swapped", "kept", "padding"]]


@pytest.mark.slow
def test_the_hidden_share_is_seen_in_the_picture():
    def blue(prob):
        picture = plots.png(draw_masking(compute_masking(BATCH, TOKENIZER, mask_prob=prob)))
        colours = matplotlib.image.imread(io.BytesIO(picture))[..., :3]
        return int((np.abs(colours - matplotlib.colors.to_rgb("#0072B2")).max(-1) < 0.02).sum())

    assert blue(0.0) < blue(0.15) < blue(0.5) < blue(1.0)


def test_a_batch_of_another_shape_or_vocabulary_is_refused():
    with pytest.raises(ValueError, match="add ids"):
        mask_explorer(BATCH[0], TOKENIZER)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        mask_explorer(BATCH + 10**6, TOKENIZER)


# --- one text, every objective ----------------------------------------------------------------------------------------

IDS = encode(TEXT, TOKENIZER)
SETTINGS = list(itertools.product((0.0, 0.5, 1.0), (1.0, 4.5, 8.0), (0, 10, 20)))  # ends and middle of every control


@pytest.mark.slow
@pytest.mark.parametrize("objective", data.OBJECTIVES)
def test_what_is_shown_fits_together(objective):
    for prob, span, seed in SETTINGS:
        view = compute_objective(IDS, TOKENIZER, objective, prob=prob, mean_span=span, seed=seed)
        for block in view.blocks:
            assert len({len(row.tokens) for row in block}) == 1
        for matrix in view.matrices:
            assert np.shape(matrix.may_attend_QK) == (len(matrix.query_names), len(matrix.key_names))
        assert 0 <= view.targets_per_hundred <= 210
        if seed == SETTINGS[0][2]:
            assert plots.png(draw_objective(view))[1:4] == b"PNG"


def test_targets_are_marked_where_the_matrix_says_so():
    for objective in ("causal", "prefix", "masked", "permuted"):
        view = compute_objective(IDS, TOKENIZER, objective, prob=0.5)
        ((_, wanted),) = view.blocks
        assert [role == "target" for role in wanted.roles] == list(view.matrices[0].is_target)


def test_a_causal_text_has_one_target_less_than_tokens():
    view = compute_objective(IDS, TOKENIZER, "causal")
    assert view.targets_per_hundred == pytest.approx(100 * (len(IDS) - 1) / len(IDS))
    assert view.n_counted == DRAWS * len(IDS[:COUNTED])
    assert np.array_equal(view.matrices[0].may_attend_QK, np.tri(SHOWN, dtype=bool))


def test_a_permuted_target_carries_its_place_and_never_sees_itself():
    view = compute_objective(IDS, TOKENIZER, "permuted", prob=0.5)
    content, query = view.matrices
    places = [token.rsplit(" ", 1)[1] for token in view.blocks[0][1].tokens if " " in token.strip()]
    assert sorted(places) == [chr(0x2460 + n) for n in range(8)]
    targets = np.flatnonzero(content.is_target)
    assert not query.may_attend_QK[targets, targets].any()
    assert np.array_equal(query.withheld_QK, content.may_attend_QK & ~query.may_attend_QK)


def test_the_decoder_sees_the_whole_input_and_its_own_past():
    view = compute_objective(IDS, TOKENIZER, "span", prob=0.3)
    _, decoder = view.matrices
    cross_QK, own_QK = np.hsplit(decoder.may_attend_QK, [decoder.divider])
    assert cross_QK.all()
    assert np.array_equal(own_QK, np.tri(len(own_QK), dtype=bool))


def test_the_share_decides_how_much_is_asked():
    for objective in ("prefix", "masked", "permuted", "span"):
        counts = [compute_objective(IDS, TOKENIZER, objective, prob=prob).n_targets for prob in (0.1, 0.5, 0.9)]
        assert counts == sorted(set(counts)), objective


@pytest.mark.slow
def test_five_tasks_are_drawn_from_real_batches():
    figures = [plots.png(five_tasks(text, TOKENIZER)) for text in (TEXT, REVIEWS[0], "Good film")]
    assert len(set(figures)) == 3


def test_a_text_too_short_shows_as_a_banner():
    box = objective_explorer(TEXT, TOKENIZER)
    box.controls["text"].value = "film"
    assert "write at least two words" in box.banner.value
    box.controls["text"].value = "a film"
    assert box.banner.value == ""


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="'casual' is unknown: choose one of causal"):
        compute_objective(IDS, TOKENIZER, "casual")


# --- fill in ----------------------------------------------------------------------------------------------------------


def test_the_likeliest_five_of_each_gap_are_shown():
    view = compute_fill(likeliest, "A [MASK]  film with [MASK] actors.")
    assert view.text == "A [MASK] film with [MASK] actors."
    assert [len(gap) for gap in view.gaps] == [5, 5]
    assert plots.png(draw_fill(view))[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("text", "words"),
    [("A good film.", "write [MASK], in capitals"), ("", "holds no [MASK]"), ("[MASK] " * 5, "at most 4")],
)
def test_a_sentence_that_cannot_be_filled_says_what_to_do(text, words):
    box = fill_in_box(likeliest, text)
    assert words in box.banner.value and box.image.value == b""
    box.controls["text"].value = "A [MASK] film."
    assert box.banner.value == "" and box.image.value


def test_a_model_that_answers_too_little_is_noticed():
    with pytest.raises(ValueError, match="0 answers for 1 gaps"):
        compute_fill(lambda text: [], "[MASK]")
