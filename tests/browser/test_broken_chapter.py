"""What the tests of every chapter find in a broken one: their negative controls."""

import pytest
from everywhere import SLIDERS, assert_named, assert_well, in_a_browser, label_of, move_to_both_ends

pytestmark = in_a_browser

CELLS = [
    """import ipywidgets as widgets
from course_lib import plots
from course_lib.widgets.binder import bind
def shares(share):
    return {"context": 1 - share, "hidden": share / (share < 1)}
fails = widgets.FloatSlider(0.2, min=0, max=1, description="fails", tooltip="at its end")
bind(shares, plots.draw_shares, share=fails)""",
    "widgets.FloatSlider()",
    "widgets.Button()",
    """def stumble(change):
    change.owner.value = 0.5
stubborn = widgets.FloatSlider(0.2, min=0, max=1, description="stubborn")
stubborn.observe(stumble, names="value")
stubborn""",
]


def slider_named(chapter, name):
    return next(one for one in chapter.page.locator(SLIDERS).all() if label_of(one) == name)


def test_an_error_at_one_end_is_found(chapter):
    with pytest.raises(AssertionError, match="fails, End"):
        move_to_both_ends(chapter, slider_named(chapter, "fails"))
    chapter.ask("fails.value = 0; print(0)")
    assert_well(chapter, "back in its range")


def test_a_slider_that_does_not_go_to_its_end_is_found(chapter):
    with pytest.raises(AssertionError, match="stubborn"):
        move_to_both_ends(chapter, slider_named(chapter, "stubborn"))


@pytest.mark.parametrize("css", [".widget-slider [role=slider] >> nth=1", "button.jupyter-button >> nth=0"])
def test_a_control_without_a_name_is_found(chapter, css):
    with pytest.raises(AssertionError):
        assert_named(chapter.page.locator(f".jp-Notebook .jp-OutputArea-output {css}"))
