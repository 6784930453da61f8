"""Chapter 6 as a learner meets it: run whole, its explorer moved by keyboard."""

import pytest

CHAPTER = "06"
pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_run_all_leaves_no_error_in_the_notebook(chapter):
    assert chapter.output_errors() == []
    assert [text for text in chapter.banners() if text.strip()] == []


def test_the_slider_moved_by_keyboard_redraws_its_figure(move_slider):
    move_slider("tokens read", ["Home"], "0")


def test_no_script_error_and_no_request_off_loopback(chapter):
    assert chapter.faults.script_errors == []
    assert chapter.faults.requests_off_loopback == []
