"""Chapter 0's explorer asks every model, redraws for every control, and says what is wrong with a sentence."""

from pathlib import Path

import numpy as np
import pytest

from course_lib.plots import draw_bars
from course_lib.runs.teaching import Taught, Way
from course_lib.widgets.binder import sweep
from course_lib.widgets.own_sentence import compute_opinions, describe_opinions, draw_opinions, sentence_explorer

SOURCES = Path(__file__).parent.parent / "notebooks" / "src"


class Certain:
    """A classifier that says the same of every text."""

    def __init__(self, share):
        self.share = share

    def predict_proba(self, rows):
        return np.array([[1 - self.share, self.share]] * len(rows))


def taught_as(shares):
    """shares: {(labels, sample): what it says}."""
    way = Way(read=np.array, fit=lambda rows, labels: None)
    return Taught(way, {key: Certain(share) for key, share in shares.items()}, {})


@pytest.fixture
def taught():
    return {
        "a pessimist": taught_as({(10, 0): 0.1, (10, 1): 0.2, (100, 0): 0.3, (100, 1): 0.4}),
        "an optimist": taught_as({(10, 0): 0.9, (10, 1): 0.8, (100, 0): 0.7, (100, 1): 0.6}),
    }


def test_every_model_says_what_it_learned_from_that_sample(taught):
    assert compute_opinions(taught, "a film", 10, 2) == {"a pessimist": 0.2, "an optimist": 0.8}
    assert compute_opinions(taught, "a film", 100, 1) == {"a pessimist": 0.3, "an optimist": 0.7}


def test_the_controls_choose_labels_and_sample(taught):
    box = sentence_explorer(taught, "a film")
    assert box.value == {"a pessimist": 0.3, "an optimist": 0.7}
    box.controls["labels"].value = 10
    box.controls["sample"].value = 2
    assert box.value == {"a pessimist": 0.2, "an optimist": 0.8}
    assert "a pessimist 20%, an optimist 80%" in box.words.value


def test_an_empty_sentence_is_a_banner_and_the_next_one_takes_it_away(taught):
    box = sentence_explorer(taught, "a film")
    box.controls["text"].value = "   "
    assert "the text is empty" in box.banner.value and box.value is None
    box.controls["text"].value = "another film"
    assert box.banner.value == "" and box.value is not None


def test_every_control_can_be_moved_to_its_ends_and_is_named(taught):
    box = sentence_explorer(taught, "a film")
    assert sweep(box) >= 2 + 3 + 1
    assert all(control.description and control.tooltip for control in box.controls.values())


@pytest.mark.parametrize(
    ("models", "labels", "words"), [({}, 100, "at least one model"), (None, 50, r"choose one of \[10, 100\]")]
)
def test_what_cannot_be_explored_is_refused(taught, models, labels, words):
    with pytest.raises(ValueError, match=words):
        sentence_explorer(taught if models is None else models, "a film", labels=labels)


def test_the_bars_end_where_all_is_certain_and_mark_even_odds():
    (axes,) = draw_opinions({"a": 0.02, "b": 0.61}).axes
    assert axes.get_xlim() == (0, 100)
    assert [bar.get_width() for bar in axes.patches[:2]] == [2, 61]
    assert {float(line.get_xdata()[0]) for line in axes.get_lines()} >= {50.0}
    assert draw_bars(["a"], [2.0]).axes[0].get_xlim()[1] < 3  # without an end it ends a little beyond


def test_the_picture_is_said_in_words():
    assert describe_opinions({"a": 0.021, "b": 0.61}) == "Probability that the sentence is positive: a 2%, b 61%"


def test_the_map_asks_a_question_of_every_chapter():
    text = (SOURCES / "00_start_here.py").read_text("utf-8")
    for path in SOURCES.glob("*.py"):
        assert f'    "{path.name[:2]}": "' in text, path.name
