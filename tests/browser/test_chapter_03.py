"""Chapter 3 as a learner meets it."""

import pytest
from everywhere import EveryChapter, in_a_browser

CHAPTER = "03"
pytestmark = in_a_browser


@pytest.mark.parametrize(("name", "keys", "shown"), [("alpha", ["Home", "ArrowRight"], "2"), ("length", ["Home"], "0")])
def test_a_slider_moved_by_keyboard_redraws_its_figure(move_slider, name, keys, shown):
    move_slider(name, keys, shown)


class TestChapter(EveryChapter):
    """What holds in every chapter."""
