"""Pictures of a chapter in JupyterLab, light and dark, screen by screen: `python tools/screenshots.py [--saved] NN ...`

Written to work/screenshots/NN-theme-screen.png, to be looked at: can everything be read in both themes? `--saved` shows
the notebook with the outputs that it was saved with, and runs nothing.
"""

import argparse
from pathlib import Path

from lab_page import ChapterPage, open_chapter

from course_lib.lab import CourseFolder

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
SET_THEME = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
SCROLLED = ".jp-WindowedPanel-outer"
SCREEN_DOWN = "scrolled => { const before = scrolled.scrollTop; scrolled.scrollTop += 0.9 * scrolled.clientHeight;\
 return scrolled.scrollTop > before; }"


def photograph(chapter: ChapterPage, name: str, folder: Path) -> list[Path]:
    """Every screen of an open chapter in every theme; the files, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for theme, title in THEMES.items():
        chapter.page.evaluate(SET_THEME, title)
        scrolled = chapter.page.locator(SCROLLED).first
        scrolled.evaluate("scrolled => { scrolled.scrollTop = 0; }")
        is_further = True
        while is_further:
            chapter.page.wait_for_timeout(500)  # until what came into view is drawn
            written.append(folder / f"{name}-{theme}-{sum(theme in path.name for path in written):03}.png")
            chapter.page.screenshot(path=written[-1])
            is_further = scrolled.evaluate(SCREEN_DOWN)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Photograph chapters in JupyterLab, light and dark.")
    parser.add_argument("chapters", nargs="+", metavar="NN")
    parser.add_argument("--saved", action="store_true", help="show the saved outputs, and run nothing")
    options = parser.parse_args()
    folder = CourseFolder.here()
    for number in options.chapters:
        with open_chapter(folder, number) as chapter:
            if not options.saved:
                chapter.run_all()
            files = photograph(chapter, number, folder.work / "screenshots")
        print(f"{number}: {len(files)} pictures in {files[0].parent}")


if __name__ == "__main__":
    main()
