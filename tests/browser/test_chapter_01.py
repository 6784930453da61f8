"""Chapter 1 as a learner meets it: opened by what `make lab` starts, run, its first slider moved by keyboard."""

import pytest
from everywhere import EveryChapter, in_a_browser
from lab_page import Faults

CHAPTER = "01"
pytestmark = in_a_browser

SLIDER = "mask prob"
VALUE_IN_KERNEL = f"""
import json, ipywidgets
from ipywidgets.widgets.widget import _instances as living
print(json.dumps([w.value for w in living.values()
                  if isinstance(w, ipywidgets.FloatSlider) and {SLIDER!r} in w.description][:1]))
"""


def test_the_mask_slider_moved_by_keyboard_redraws_its_figure(chapter, tmp_path):
    slider = chapter.slider(SLIDER)
    assert SLIDER in slider.name()
    before = float(slider.readout())
    slider.press("ArrowRight")
    assert float(slider.readout()) == pytest.approx(before + 0.05)
    slider.press("End")
    assert float(slider.readout()) == 1.0
    slider.press("ArrowLeft")
    chapter.wait_until_idle()
    chapter.page.screenshot(path=tmp_path / "mask-slider.png")


def test_the_kernel_knows_the_value_that_the_readout_shows(chapter):
    slider = chapter.slider(SLIDER)
    slider.press("Home")
    slider.press("ArrowRight")
    chapter.wait_until_idle()
    assert chapter.ask(VALUE_IN_KERNEL) == [pytest.approx(float(slider.readout()))]


def test_a_script_error_and_a_request_elsewhere_would_be_heard(chapter):
    """Negative control: on another page of the same browser."""
    page = chapter.page.context.browser.new_page()
    faults = Faults.of(page)
    page.route("**/*", lambda route: route.abort())  # heard, and stopped before it leaves the browser
    page.evaluate("() => { setTimeout(() => { throw new Error('on purpose') }, 0) }")
    page.evaluate("() => fetch('http://203.0.113.1/').catch(() => null)")
    page.wait_for_timeout(100)
    page.close()
    assert any("on purpose" in error for error in faults.script_errors)
    assert faults.requests_off_loopback == ["http://203.0.113.1/"]


class TestChapter(EveryChapter):
    """What holds in every chapter."""
