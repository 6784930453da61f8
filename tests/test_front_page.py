"""What README and docs point to exists: files, headings, commands, cells; a picture has words beside it."""

import json
import re
from pathlib import Path

import build_notebooks
import chapter_times
import pytest

from course_lib import cli
from course_lib.lab import CourseFolder

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CHAPTERS = build_notebooks.chapters_in(ROOT / "notebooks")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
LINK = re.compile(r"!?\[(?P<words>[^\]]*)\]\((?P<target>[^)\s]+)\)|<img src=\"(?P<source>[^\"]+)\"(?P<rest>[^>]*)>")
HEADING = re.compile(r"^#+ (.+)$", re.M)


def broken_links(page, text, root=ROOT):
    """Targets of relative links that lead nowhere: no such file, or no such heading in a Markdown file."""
    for match in LINK.finditer(FENCE.sub("", text)):
        target = match["target"] or match["source"]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        is_there = found.exists() or is_built(found, root)
        if not is_there or (heading and found.suffix == ".md" and heading not in anchors(found)):
            yield target


def is_built(notebook, root):
    """Whether a notebook is one that `make notebooks` writes."""
    return notebook.suffix == ".ipynb" and (root / "notebooks" / "src" / f"{notebook.stem}.py").is_file()


def anchors(page):
    """The names that GitHub gives to a page's headings."""
    plain = (
        re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(FENCE.sub("", page.read_text("utf-8")))
    )
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_of_a_page_leads_somewhere(page):
    assert list(broken_links(page, page.read_text("utf-8"))) == []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.source.stem)
def test_every_link_of_a_chapter_leads_somewhere(chapter):
    markdown = [cell.source for cell in build_notebooks.read_cells(chapter.source) if cell.cell_type == "markdown"]
    assert list(broken_links(chapter.learner_path, "\n\n".join(markdown))) == []


@pytest.mark.parametrize(
    "text",
    ["[a](gone.md)", "![a](pictures/gone.png)", '<img src="gone.png" alt="a">', "[a](README.md#gone)", "[a](#gone)"],
)
def test_a_broken_link_is_found(text):
    """Negative control."""
    assert len(list(broken_links(ROOT / "README.md", text))) == 1


@pytest.mark.parametrize(
    "text", ["[a](LICENSE)", "[a](README.md#your-own-text)", "[a](https://nowhere.example)", "```\n[a](gone.md)\n```"]
)
def test_a_link_that_is_right_is_not_reported(text):
    assert list(broken_links(ROOT / "README.md", text)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_has_words_beside_it(page):
    for match in LINK.finditer(FENCE.sub("", page.read_text("utf-8"))):
        if match["source"]:
            assert re.search(r'alt="[^"]{20,}"', match["rest"]), match["source"]
        elif match[0].startswith("!"):
            assert len(match["words"]) >= 20, match["target"]


def test_every_command_that_a_page_names_is_one(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    known = set(re.findall(r"^    (\w+) ", capsys.readouterr().out, re.M))
    texts = [page.read_text("utf-8") for page in PAGES]
    fenced = "\n".join(block for text in texts for block in FENCE.findall(text))
    named = {name for text in texts for name in re.findall(r"(?:`|bin/)course ([a-z]+)\b", text)}
    named |= set(re.findall(r"^course ([a-z]+)\b", fenced, re.M))
    assert "lab" in named
    assert named <= known


def test_every_make_target_that_a_page_names_is_one():
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z]+)\b", page.read_text("utf-8"), re.M)}
    assert "lab" in named
    assert named <= known


def test_the_animation_is_small_enough_for_a_front_page():
    assert (ROOT / "docs" / "pictures" / "slider.gif").stat().st_size < 1_000_000


# --- teaching.md -----------------------------------------------------------------------------------------------------


def cited_cells():
    """(number of a chapter, name of a cell) for each cell that teaching.md says settles a belief."""
    page = (ROOT / "docs" / "teaching.md").read_text("utf-8")
    for section in re.findall(r"^### (\d\d) .*?(?=^##)", page, re.M | re.S):
        rows = re.search(rf"^### {section} .*?(?=^##)", page, re.M | re.S)[0].splitlines()
        for row in rows:
            if row.startswith("| ") and row.count("|") == 3:
                yield from ((section, name) for name in re.findall(r"`([a-z0-9-]+)`", row.split("|")[2]))


def test_every_cell_that_settles_a_belief_is_in_its_chapter():
    names = {
        chapter.source.stem[:2]: {cell.id for cell in build_notebooks.read_cells(chapter.source)}
        for chapter in CHAPTERS
    }
    cited = list(cited_cells())
    assert len(cited) > 30
    assert [(number, name) for number, name in cited if name not in names[number]] == []


def test_the_table_of_times_has_the_chapters_that_are_there():
    page = (ROOT / "docs" / "teaching.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d\d) \| .* min \|", page.partition(chapter_times.BEGIN)[2], re.M)
    assert rows == [chapter.source.stem[:2] for chapter in CHAPTERS], "run python tools/chapter_times.py"


def test_times_are_those_of_the_record_and_the_reading_time_follows_the_words(tmp_path):
    source = tmp_path / "notebooks" / "src" / "01_one.py"
    source.parent.mkdir(parents=True)
    prose = "# word " * 3000
    source.write_text(f'# %% [markdown] name="a"\n# # One\n{prose}\n\n# %% name="b"\n1\n', "utf-8")
    record = tmp_path / "chapters.jsonl"
    chapters = build_notebooks.chapters_in(tmp_path / "notebooks")
    build_notebooks.build(chapters[0], CourseFolder(tmp_path), executed=False, say=lambda line: None)
    assert "| 01 | – | – | 15 min | 0 | 0 |" in chapter_times.table(chapters, record)
    row = {"name": "01_one", "seed": 0, "step": 0, "metric": "seconds", "value": 61.2, "peak_mib": 2048}
    record.write_text(json.dumps(row) + "\n", "utf-8")
    written = chapter_times.table(chapters, record)
    assert "| 01 | 61 s | 2.0 GiB | 15 min | 0 | 0 |" in written
    page = f"before\n{chapter_times.BEGIN}\nold\n{chapter_times.END}\nafter\n"
    assert chapter_times.with_table(page, written).splitlines()[2:-2] == written.splitlines()
    with pytest.raises(ValueError, match="the page has no"):
        chapter_times.with_table("before", written)
