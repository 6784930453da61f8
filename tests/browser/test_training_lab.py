"""The training lab and the schedule explorer as a learner meets them: a small notebook of their own, in a browser."""

import nbformat
import pytest
from lab_page import find_browser, open_chapter

from course_lib.lab import CourseFolder

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELLS = [
    """from IPython.display import display
from course_lib.data import course_tokenizer, pack, reviews_of
from course_lib.widgets.lab_runs import LabSettings
from course_lib.widgets.schedules import schedule_explorer
from course_lib.widgets.training_lab import TrainingLab
tokenizer = course_tokenizer()
texts = [review.text for review in reviews_of("dev")[:100]]
rows = pack(tokenizer.encode_all(texts), 64, vocabulary=tokenizer.vocabulary)""",
    "explorer = schedule_explorer()\ndisplay(explorer)",
    """lab = TrainingLab(rows, tokenizer.vocabulary, defaults=LabSettings(batch_size=8, steps=600))
display(lab)""",
]
STATE = "import json; print(json.dumps([[run.state, len(run.records)] for run in lab.runs]))"
SETTINGS = "import json; print(json.dumps(explorer.controls['warmup'].value))"
IMAGE_OF_LAB = ".jp-OutputArea-output:has(button:text-is('Start')) img"


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    """A notebook with the two, open and run to its end."""
    if find_browser() is None:
        pytest.skip("no Chromium on this machine: `apt install chromium` (or any Chrome on PATH) runs these tests")
    root = tmp_path_factory.mktemp("course")
    (root / "notebooks").mkdir()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # or the page asks for one
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, root / "notebooks" / "98_lab.ipynb")
    with open_chapter(CourseFolder(root), "98") as opened:
        opened.run_all()
        yield opened


def button(chapter, name):
    return chapter.page.get_by_role("button", name=name, exact=True)


def test_start_moves_the_curve_and_stop_ends_the_run(chapter):
    assert chapter.output_errors() == []
    image = chapter.page.locator(IMAGE_OF_LAB).first
    image.scroll_into_view_if_needed()
    before = image.get_attribute("src")
    button(chapter, "Start").click()
    for _ in range(2):  # the beginning is drawn once; the next picture comes while it trains
        arguments = [image.element_handle(), before]
        chapter.page.wait_for_function("([image, before]) => image.src !== before", arg=arguments, timeout=60_000)
        before = image.get_attribute("src")
    button(chapter, "Stop").click()
    chapter.page.get_by_text("Run 1, stopped").wait_for(timeout=60_000)
    ((state, taken),) = chapter.ask(STATE)
    assert state == "stopped" and 0 < taken < 600
    assert [text for text in chapter.banners() if text.strip()] == []


def test_the_schedules_slider_moves_by_keyboard(chapter):
    slider = chapter.slider("warm-up")
    before = chapter.ask(SETTINGS)
    slider.press("ArrowRight")
    chapter.wait_until_idle()
    after = chapter.ask(SETTINGS)
    assert after > before and slider.readout() == f"{after:,}"


def test_no_script_error_and_no_request_off_loopback(chapter):
    assert chapter.faults.script_errors == []
    assert chapter.faults.requests_off_loopback == []
