"""Chapter 5 as a learner meets it: run whole, ranks included, its explorers moved by keyboard."""

import pytest
from everywhere import EveryChapter, in_a_browser

CHAPTER = "05"
pytestmark = in_a_browser


def test_lines_of_both_ranks_arrive_in_the_notebook(chapter):
    for line in ("rank 0 of 2 has [1, 3, 5]", "rank 1 of 2 has [2, 4]"):
        assert chapter.page.get_by_text(line).count() > 0


@pytest.mark.parametrize(("name", "keys", "shown"), [("loss scale, 2^", ["End"], "32"), ("devices", ["End"], "1,024")])
def test_a_slider_moved_by_keyboard_redraws_its_figure(move_slider, name, keys, shown):
    move_slider(name, keys, shown)


class TestChapter(EveryChapter):
    """What holds in every chapter."""
