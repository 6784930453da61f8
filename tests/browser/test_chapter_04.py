"""Chapter 4 as a learner meets it: run whole, its explorers moved by keyboard, a review typed and judged."""

import pytest
from everywhere import EveryChapter, in_a_browser

CHAPTER = "04"
pytestmark = in_a_browser

REVIEW = "A dull film that nobody needs."


@pytest.mark.parametrize(
    ("name", "keys", "shown"), [("threshold", ["Home", "ArrowRight"], "0.005"), ("temperature", ["Home"], "0.00")]
)
def test_a_slider_moved_by_keyboard_redraws_its_figure(move_slider, name, keys, shown):
    move_slider(name, keys, shown)


def test_a_review_that_is_typed_is_judged(chapter, tmp_path):
    page = chapter.page
    area = page.locator(".widget-textarea textarea").first
    area.scroll_into_view_if_needed()
    said = "xpath=ancestor::*[contains(concat(' ', @class, ' '), ' jp-OutputArea-output ')][1]"
    explorer = area.locator(said)
    image = explorer.locator("img").first.element_handle()
    before = page.evaluate("image => image.src", image)
    area.fill(REVIEW)
    explorer.get_by_text("The review has changed").wait_for()
    explorer.get_by_role("button", name="Judge").click()
    page.wait_for_function("([image, before]) => image.src !== before", arg=[image, before], timeout=60_000)
    chapter.wait_until_idle()
    assert "dull" in explorer.inner_text()
    assert [text for text in chapter.banners() if text.strip()] == []
    page.screenshot(path=tmp_path / "own-review.png")


def test_a_button_writes_on(chapter, move_slider, tmp_path):
    drawn, button = chapter.page.get_by_text("Drawn with seed"), chapter.page.get_by_role("button", name="write on")
    move_slider("temperature", ["End"], "2.00")  # what was drawn before is forgotten
    drawn.first.wait_for(state="detached")
    button.click()
    drawn.first.wait_for(timeout=60_000)
    chapter.page.screenshot(path=tmp_path / "write-on.png")


class TestChapter(EveryChapter):
    """What holds in every chapter."""
