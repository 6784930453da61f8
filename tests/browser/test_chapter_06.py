"""Chapter 6 as a learner meets it."""

from everywhere import EveryChapter, in_a_browser

CHAPTER = "06"
pytestmark = in_a_browser


def test_the_slider_moved_by_keyboard_redraws_its_figure(move_slider):
    move_slider("tokens read", ["Home"], "0")


class TestChapter(EveryChapter):
    """What holds in every chapter."""
