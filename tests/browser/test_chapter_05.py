"""Chapter 5 as a learner meets it: run whole, ranks included, its explorers moved by keyboard."""

import pytest

CHAPTER = "05"
pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_run_all_leaves_no_error_in_the_notebook(chapter):
    assert chapter.output_errors() == []
    assert [text for text in chapter.banners() if text.strip()] == []


def test_lines_of_both_ranks_arrive_in_the_notebook(chapter):
    for line in ("rank 0 of 2 has [1, 3, 5]", "rank 1 of 2 has [2, 4]"):
        assert chapter.page.get_by_text(line).count() > 0


@pytest.mark.parametrize(("name", "keys", "shown"), [("loss scale, 2^", ["End"], "32"), ("devices", ["End"], "1,024")])
def test_a_slider_moved_by_keyboard_redraws_its_figure(move_slider, name, keys, shown):
    move_slider(name, keys, shown)


def test_no_script_error_and_no_request_off_loopback(chapter):
    assert chapter.faults.script_errors == []
    assert chapter.faults.requests_off_loopback == []
