"""Chapter 2 as a learner meets it: a run of the training lab begun, watched and stopped."""

from everywhere import EveryChapter, in_a_browser

CHAPTER = "02"
pytestmark = in_a_browser

LAST_RUN = "import json; run = lab.runs[-1]; print(json.dumps([run.state, len(run.records), run.settings.steps]))"
IMAGE_OF_LAB = ".jp-OutputArea-output:has(button:text-is('Start')) img"


def test_start_moves_the_curve_and_stop_ends_the_run(chapter):
    page = chapter.page
    image = page.locator(IMAGE_OF_LAB).first
    image.scroll_into_view_if_needed()
    before = image.get_attribute("src")
    page.get_by_role("button", name="Start", exact=True).click()
    for _ in range(2):  # the beginning is drawn once; the next picture comes while it trains
        arguments = [image.element_handle(), before]
        page.wait_for_function("([image, before]) => image.src !== before", arg=arguments, timeout=60_000)
        before = image.get_attribute("src")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text(", stopped: step").first.wait_for(timeout=60_000)
    state, taken, steps = chapter.ask(LAST_RUN)
    assert state == "stopped" and 0 < taken < steps


class TestChapter(EveryChapter):
    """What holds in every chapter."""
