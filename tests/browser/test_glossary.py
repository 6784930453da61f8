"""A chapter's link to the glossary, and the glossary's back, followed in JupyterLab."""

import nbformat
import pytest
from lab_page import find_browser, open_chapter

from course_lib.lab import CourseFolder

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGE = "### Fold\n\nTo replace what makes a number.\nMet in [98 Small](../notebooks/98_small.ipynb), cell `words`.\n"


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    """A notebook with a link, and the page that it leads to."""
    if find_browser() is None:
        pytest.skip("no Chromium on this machine: `apt install chromium` (or any Chrome on PATH) runs these tests")
    root = tmp_path_factory.mktemp("course")
    for name in ("docs", "notebooks"):
        (root / name).mkdir()
    (root / "docs" / "glossary.md").write_text(PAGE, "utf-8")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # or the page asks for one
    cells = [nbformat.v4.new_markdown_cell("All words: [the glossary](../docs/glossary.md).")]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, root / "notebooks" / "98_small.ipynb")
    with open_chapter(CourseFolder(root), "98") as opened:
        yield opened


def test_the_link_opens_the_page_as_a_reader_wants_it_and_its_link_leads_back(chapter):
    title = "() => window.jupyterapp.shell.currentWidget.title.label"
    chapter.page.get_by_role("link", name="the glossary").click()
    chapter.page.wait_for_selector(".jp-MarkdownViewer h3:has-text('Fold')", timeout=20_000)
    assert chapter.page.evaluate(title) == "glossary.md"
    chapter.page.get_by_role("link", name="98 Small").click()
    chapter.page.wait_for_function(f"() => ({title})() === '98_small.ipynb'", timeout=20_000)
    assert chapter.page.locator(".jp-Notebook").count() == 1
