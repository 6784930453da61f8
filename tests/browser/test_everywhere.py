"""The tests of every chapter, on a small notebook with every kind of control."""

from everywhere import HERE, EveryChapter, in_a_browser, settle

pytestmark = in_a_browser

CELLS = [
    """import ipywidgets as widgets
from IPython.display import display
from course_lib import plots
from course_lib.widgets.binder import bind, compare, guess, guess_number
def shares(share, **others):
    return {"context": 1 - share, "hidden": share}
def named(kind, name, *values, **more):
    more |= {"options": values[0]} if isinstance(values[0], list) else {"value": values[0]}
    return kind(description=name, tooltip=name + ", in words", **more)""",
    """first, second = guess("One?", [("one", 1), ("two", 2)]), guess_number("Two?", low=0, high=9)
display(first, second)""",
    "compare(first, 'It is **one**.', 1)",
    "display(compare(second, 'It is `two`.', 2))",
    """bind(shares, plots.draw_shares, share=named(widgets.FloatSlider, "share", 0.2, min=0, max=1),
     log=named(widgets.FloatLogSlider, "log", 0.1, min=-3, max=1), kind=named(widgets.Dropdown, "kind", ["a", "b"]),
     place=named(widgets.SelectionSlider, "place", [1, 10, 100]), tick=named(widgets.Checkbox, "tick", False),
     side=named(widgets.ToggleButtons, "side", ["left", "right"]), one=named(widgets.RadioButtons, "one", ["a", "b"]),
     text=named(widgets.Text, "text", "a film"), more=named(widgets.Textarea, "more", "a film"),
     number=named(widgets.BoundedFloatText, "number", 1, min=0, max=2),
     again=widgets.Button(description="again", tooltip="once more"))""",
]


class TestSmallChapter(EveryChapter):
    """All of them."""


def test_an_opened_answer_stands_on_the_page_as_prose(chapter):
    answer = chapter.page.locator(HERE).get_by_text("You guessed one, and that is right.")
    assert answer.count() == 1 and answer.locator("strong").all_inner_texts() == ["Compare.", "one"]
    chapter.page.get_by_text("Two").first.scroll_into_view_if_needed()
    chapter.page.locator(HERE).get_by_label("two").check()
    settle(chapter)
    assert chapter.page.locator(HERE).get_by_text("You guessed two, which is too high.").count() == 1
