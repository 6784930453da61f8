"""What holds in every chapter in a browser: it runs whole, its predictions can be made, every control of every explorer
moves by keyboard or click to each end and back, and says what it is. A chapter's test file inherits these tests and
adds what is special to it."""

import pytest

in_a_browser = [pytest.mark.browser, pytest.mark.slow]

HERE = ".jp-Notebook .jp-OutputArea-output"
GUESS = "My guess"
SLIDERS = f"{HERE} .widget-slider"
SELECTORS = f"{HERE} select"
SWITCHES = f"{HERE} .widget-toggle-button, {HERE} .widget-checkbox input"
RADIOS = f"{HERE} .widget-radio input"
TEXTS = f"{HERE} .lm-Widget input[type=text], {HERE} .lm-Widget textarea"
NUMBERS = f"{HERE} .lm-Widget input[type=number]"
BUTTONS = f"{HERE} button.jupyter-button:not(.widget-toggle-button)"
COMMIT = "That is my guess"

REMEMBER = """
import json
from ipywidgets.widgets.widget import _instances
starts = [(one, one.value) for one in _instances.values() if getattr(one, "description", "") and hasattr(one, "value")]
print(json.dumps(len(starts)))
"""
RESTORE = """
for one, start in starts:
    if one.value != start:
        one.value = start
print("0")
"""
AT_AN_END = """
import json, math
from ipywidgets.widgets.widget import _instances
def place(one):
    if hasattr(one, "options") and hasattr(one, "index"):
        return one.index / max(1, len(one.options) - 1)
    value = math.log(one.value, one.base) if hasattr(one, "base") else one.value
    return (value - one.min) / (one.max - one.min)
sliders = [one for one in _instances.values() if type(one).__name__.endswith("Slider")]
places = [[one.description, place(one)] for one in sliders]
print(json.dumps([[name, round(where)] for name, where in places if min(abs(where), abs(where - 1)) < 1e-9]))
"""


def settle(chapter):
    """Wait until the kernel has done all that the page asked of it. Twice, for what moves fast is sent in two parts."""
    chapter.ask("print('0')")
    chapter.ask("print('0')")


def assert_well(chapter, what):
    settle(chapter)
    assert [text for text in chapter.banners() if text.strip()] == [], what


def label_of(control):
    """The description beside a control."""
    widget = "xpath=ancestor-or-self::*[contains(concat(' ', @class, ' '), ' lm-Widget ')][1]"
    label = control.locator(widget).locator(".widget-label")
    return (label.first.text_content() or "").strip() if label.count() else ""


def assert_named(control):
    """That a screen reader has a name for it: its own, or the description and tooltip beside it."""
    assert '"' in control.aria_snapshot() or label_of(control), control.evaluate("element => element.outerHTML")


def move_to_both_ends(chapter, slider):
    """By keyboard, as far as it goes; the kernel must hear of it."""
    handle, name = slider.locator("[role=slider]"), label_of(slider)
    slider.scroll_into_view_if_needed()
    for key, bound, side in (("Home", "aria-valuemin", 0), ("End", "aria-valuemax", 1)):
        handle.focus()
        chapter.page.keyboard.press(key)
        assert_well(chapter, f"{name}, {key}")
        assert handle.get_attribute("aria-valuenow") == handle.get_attribute(bound), f"{name}, {key}"
        assert [name, side] in chapter.ask(AT_AN_END), f"the kernel did not hear of {key} on {name}"


def choose_every_option(chapter, selector):
    for index in range(selector.locator("option").count()):
        selector.select_option(index=index)
        assert_well(chapter, f"{label_of(selector)}, option {index}")


def click(chapter, control):
    control.click()
    assert_well(chapter, f"{label_of(control)} {control.text_content()}")


def write_more(chapter, text):
    """A word more, at the end of what stands there."""
    text.focus()
    chapter.page.keyboard.press("Control+End")
    chapter.page.keyboard.type(" again")
    chapter.page.keyboard.press("Tab")
    assert_well(chapter, f"{label_of(text)}: {text.input_value()}")


def type_both_ends(chapter, number):
    for bound in ("min", "max"):
        number.fill(number.get_attribute(bound) or number.input_value())
        number.press("Enter")
        assert_well(chapter, f"{label_of(number)}, {bound}")


def press(chapter, button):
    """A button, and what it begins is waited for. What Start began, Stop ends."""
    name = button.inner_text()
    area = button.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' jp-OutputArea-output ')][1]")
    click(chapter, button)
    if name in ("Start", "Stop"):
        area.get_by_text("training" if name == "Start" else ", stopped").first.wait_for(timeout=60_000)


def is_prediction(control):
    return label_of(control) == GUESS


def each(chapter, css, do, *, but=lambda control: False):
    """`do(chapter, control)` to each control on the page that is not of a prediction, and all back to their starts."""
    chapter.ask(REMEMBER)
    controls = [one for one in chapter.page.locator(css).all() if not is_prediction(one) and not but(one)]
    for control in controls:
        do(chapter, control)
        chapter.ask(RESTORE)
    assert_well(chapter, f"{css}, back at their starts")
    return len(controls)


def make_every_prediction(chapter):
    """The first option of each guess, and each number as it stands."""
    for radios in chapter.page.locator(f"{HERE} .widget-radio").all():
        if is_prediction(radios):
            radios.locator("input").first.check()
    for button in chapter.page.get_by_role("button", name=COMMIT).all():
        button.click()
    settle(chapter)


class EveryChapter:
    """The tests. A subclass stands in a module that names its CHAPTER."""

    def test_run_all_leaves_no_error_in_the_notebook(self, chapter):
        assert chapter.output_errors() == []
        assert_well(chapter, "after Run All")

    def test_every_answer_opens_when_its_guess_is_made_after_run_all(self, chapter):
        answers = chapter.markdown_of("Guess first")
        assert answers and chapter.markdown_of("**Compare.** You guessed") == []
        make_every_prediction(chapter)
        assert chapter.markdown_of("Guess first") == []
        assert len(chapter.markdown_of("**Compare.** You guessed")) == len(answers)

    def test_every_control_has_a_name(self, chapter):
        every = ", ".join((f"{SLIDERS} [role=slider]", SELECTORS, SWITCHES, RADIOS, TEXTS, NUMBERS, BUTTONS))
        for control in chapter.page.locator(every).all():
            assert_named(control)

    def test_every_slider_moves_by_keyboard_to_both_ends(self, chapter):
        each(chapter, SLIDERS, move_to_both_ends)

    def test_every_choice_can_be_made(self, chapter):
        each(chapter, SELECTORS, choose_every_option)
        each(chapter, SWITCHES, click)
        each(chapter, RADIOS, click)

    def test_every_field_can_be_filled(self, chapter):
        each(chapter, TEXTS, write_more)
        each(chapter, NUMBERS, type_both_ends)

    def test_every_button_can_be_pressed_and_stop_ends_what_start_began(self, chapter):
        each(chapter, BUTTONS, press, but=lambda button: button.inner_text() == COMMIT)

    def test_no_script_error_and_no_request_off_loopback(self, chapter):
        assert chapter.faults.script_errors == []
        assert chapter.faults.requests_off_loopback == []
