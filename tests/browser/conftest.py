"""Chapters in a real browser. The tests are skipped, and say why, where no Chromium is installed."""

import pytest
from lab_page import course_copy, find_browser, open_chapter, small_course


@pytest.fixture(scope="module")
def chapter(request, tmp_path_factory):
    """The chapter that the test module names, open and run to its end: CHAPTER, its number, or CELLS, its code."""
    if find_browser() is None:
        pytest.skip("no Chromium on this machine: `apt install chromium` (or any Chrome on PATH) runs these tests")
    root, cells = tmp_path_factory.mktemp("course"), getattr(request.module, "CELLS", None)
    folder = small_course(root, cells) if cells else course_copy(root)
    with open_chapter(folder, "98" if cells else request.module.CHAPTER) as opened:
        opened.run_all()
        yield opened


@pytest.fixture
def move_slider(chapter, tmp_path):
    """Press keys on a slider: its figure is drawn anew, it shows the value, and no banner reports an error."""

    def move(name, keys, shown):
        slider = chapter.slider(name)
        assert name in slider.name()
        for key in keys:
            slider.press(key)
        chapter.wait_until_idle()
        assert slider.readout() == shown
        assert [text for text in chapter.banners() if text.strip()] == []
        chapter.page.screenshot(path=tmp_path / f"{name}.png")

    return move
