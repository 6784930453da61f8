"""Chapter 0 as a learner meets it: run whole, a sentence typed and judged, sliders moved by keyboard; then the kernel
is started anew, and all runs again."""

import pytest
from everywhere import EveryChapter, in_a_browser, move_to_both_ends

CHAPTER = "00"
pytestmark = in_a_browser

KERNEL = "import os; print(os.getpid())"


@pytest.mark.parametrize(("name", "keys", "shown"), [("labels", ["Home"], "20"), ("sample", ["End"], "5")])
def test_a_slider_moved_by_keyboard_redraws_its_figure(move_slider, name, keys, shown):
    move_slider(name, keys, shown)


def test_a_sentence_is_judged_when_tab_leaves_it(chapter, tmp_path):
    page = chapter.page
    area = page.locator(".widget-textarea textarea").first
    area.scroll_into_view_if_needed()
    explorer = area.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' jp-OutputArea-output ')][1]")
    image = explorer.locator("img").first.element_handle()
    before = page.evaluate("image => image.src", image)
    area.fill("A dull film that nobody needs.")
    area.press("Tab")
    page.wait_for_function("([image, before]) => image.src !== before", arg=[image, before], timeout=60_000)
    chapter.wait_until_idle()
    assert [text for text in chapter.banners() if text.strip()] == []
    page.screenshot(path=tmp_path / "own-sentence.png")


class TestChapter(EveryChapter):
    """What holds in every chapter."""


def test_a_restarted_kernel_runs_all_again_and_its_sliders_live(chapter):
    first = chapter.ask(KERNEL)
    chapter.restart()
    assert chapter.ask(KERNEL) != first
    chapter.run_all()
    assert chapter.output_errors() == []
    move_to_both_ends(chapter, chapter.slider("labels").control)
    assert chapter.markdown_of("Guess first")  # folded again: no guess outlives the kernel that heard it
