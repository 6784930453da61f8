"""The pages under docs/ say what the code and the chapters say; else: `python tools/make_docs.py`."""

import ast
import re
from itertools import pairwise

import architecture_picture
import build_notebooks
import chapters
import glossary
import library_map
import make_docs
import nbformat
import numpy as np
import pytest

PAGES = sorted(make_docs.DOCS.glob("*.md"))
SOURCES = build_notebooks.chapters_in(chapters.NOTEBOOKS)
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


@every_page
def test_a_page_is_up_to_date(path):
    assert make_docs.page(path) == path.read_text("utf-8"), "python tools/make_docs.py"


@every_page
def test_every_link_of_a_page_leads_somewhere(path):
    written = {chapter.learner_path for chapter in SOURCES}  # whether they are built, test_notebooks.py asks
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
        there = (path.parent / target).resolve()
        assert "://" in target or there.exists() or there in written, target


OF_A_MACHINE = re.compile(r"(?<![\w.~])/(?:home|root|Users|tmp|work|mnt|var)/\w|[A-Z]:\\\\Users")


@pytest.mark.parametrize("path", [*PAGES, make_docs.ROOT / "README.md", make_docs.ROOT / "CONTRIBUTING.md"], ids=str)
def test_no_page_names_a_folder_of_the_machine_that_it_was_written_on(path):
    assert not OF_A_MACHINE.search(path.read_text("utf-8"))


def test_a_folder_of_a_machine_is_known_when_seen():
    """Negative control."""
    assert OF_A_MACHINE.search("see /home/ada/course/docs")
    assert not OF_A_MACHINE.search("work/mine, ~/work/mine and https://example.org/work/mine")


# --- architecture ----------------------------------------------------------------------------------------------------


def test_the_walk_names_functions_that_are_there():
    walk = (make_docs.DOCS / "architecture.md").read_text("utf-8").split("## The rooms")[0]
    names = make_docs.CODE_LINK.findall(walk)
    assert len(names) > 20
    for name in names:
        assert callable(make_docs.found(name)), name


@pytest.mark.parametrize("name", ["data.unpack", "training.Engine.nothing", "nothing.at_all"])
def test_a_name_that_is_gone_is_found_out(name):
    """Negative control."""
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        make_docs.rewritten(f"[`{name}`](../course_lib/data.py)")


def test_the_picture_shows_the_imports_of_today():
    assert make_docs.picture_is_current(), "python tools/make_docs.py"


def test_another_import_makes_the_picture_outdated(monkeypatch):
    """Negative control."""
    rooms = library_map.rooms_of()
    monkeypatch.setattr(make_docs, "rooms_of", lambda: rooms | {"files": {"masks"}})
    assert not make_docs.picture_is_current()


def test_an_arrow_is_left_out_exactly_where_a_longer_way_says_the_same():
    assert library_map.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
    rooms = library_map.rooms_of()
    arrows = library_map.direct(rooms)

    def reached(room, by):
        return by[room].union(*(reached(other, by) for other in by[room]))

    for room in rooms:
        assert reached(room, arrows) == reached(room, rooms)
        assert all(other not in reached(way, arrows) for way in arrows[room] for other in arrows[room])


def test_no_room_lies_over_another_or_over_an_arrow():
    """Rooms and lanes of a layer stand apart; arrows bend between layers only, so a lane is where they can meet."""
    layout = architecture_picture.lay_out(library_map.rooms_of(), tries=1)
    assert {place[0] for place in layout.middle if architecture_picture.is_room(place)} == set(library_map.rooms_of())
    for layer in layout.layers:
        for left, right in pairwise(layer):
            apart = layout.middle[right] - layout.middle[left] - (layout.width[left] + layout.width[right]) / 2
            assert apart > architecture_picture.GAP - 1e-6


def test_places_are_ordered_by_what_they_are_joined_to():
    """Sweeps untangle two crossed pairs, which the order of their names would leave crossed."""
    crossed = {"checkpoint": {"weights"}, "model": {"records"}, "weights": set(), "records": set()}
    layout = architecture_picture.lay_out(crossed, tries=1)
    assert layout.crossings() == 0
    assert np.isclose(layout.middle["model", 2], layout.middle["records", 1])


# --- pictures in words -----------------------------------------------------------------------------------------------

MARKDOWN_PICTURE = re.compile(r"!\[(.*?)\]\(", re.S)


@pytest.mark.parametrize("path", [*PAGES, make_docs.ROOT / "README.md"], ids=lambda path: path.stem)
def test_every_picture_of_a_page_has_words_for_those_who_cannot_see_it(path):
    assert all(len(words) > 20 for words in MARKDOWN_PICTURE.findall(path.read_text("utf-8")))


def pictures_without_words(notebook):
    """Cells with a picture that has no words, or whose words JupyterLab, which drops them, does not show beside it."""
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        shown = " ".join(output.get("data", {}).get("text/html", "") for output in outputs)
        for output in outputs:
            for kind in output.get("data", {}):
                words = output.get("metadata", {}).get(kind, {}).get("alt", "")
                if kind.startswith("image/") and not (len(words) > 20 and make_docs.html.escape(words) in shown):
                    yield cell.id
        yield from (cell.id for words in MARKDOWN_PICTURE.findall(cell.source) if len(words) <= 20)


@pytest.mark.parametrize("path", sorted(chapters.NOTEBOOKS.rglob("*.ipynb")), ids=lambda path: path.stem)
def test_every_figure_of_a_chapter_has_words_for_those_who_cannot_see_it(path):
    assert list(pictures_without_words(nbformat.read(path, as_version=4))) == []


def test_a_figure_without_words_is_found():
    """Negative control."""
    figure = nbformat.v4.new_output(
        "display_data", {"image/png": ""}, metadata={"image/png": {"alt": "A curve, falling."}}
    )
    cell = nbformat.v4.new_code_cell("show(figure)", id="show", outputs=[figure])
    assert list(pictures_without_words(nbformat.v4.new_notebook(cells=[cell]))) == ["show"]


# --- claims ----------------------------------------------------------------------------------------------------------


def test_every_claim_of_a_chapter_stands_in_the_ledger_with_the_cell_that_measured_it():
    ledger = (make_docs.DOCS / "claims.md").read_text("utf-8")
    claims = [(chapter, claim) for chapter in chapters.chapters() for claim in chapter.claims()]
    assert len(claims) >= 25
    for chapter, claim in claims:
        assert claim.cells, f"{chapter.path.name}: no cell measured {claim.said!r}"
        assert f"| {' | '.join(claim.columns)} | " in ledger
    assert ledger.count("\n| ") == len(claims) + 2 * len({chapter.path for chapter, _ in claims})


@pytest.mark.parametrize("chapter", SOURCES, ids=lambda chapter: chapter.source.stem)
def test_tables_of_claims_have_the_same_columns(chapter):
    """What the ledger reads is the cell of this name: a chapter that retells claims has one."""
    source = chapter.source.read_text("utf-8")
    assert ("## What is usually said" in source) == (f'name="{chapters.CLAIMS}"' in source)
    if "## What is usually said" in source:
        written = source.split(f'name="{chapters.CLAIMS}"')[1].split("# %%")[0]
        assert "table([" + ", ".join(f'"{name}"' for name in chapters.HEADER) + "]" in written


@pytest.fixture
def small_chapter(tmp_path):
    """A chapter with two claims, one of which rests on a variable that another cell has changed since."""
    code = {
        "setup": "import statistics\nlimit = 3",
        "first": "loss = [1.0]",
        "second": "loss.append(2.0)\ntime = 5\ndef unused(): loss = 0",
        "helper": "def measure(n): return n",
        "claims-table": "both = time + limit\nrows = [['a', 'b', f'{loss[0]}', 'c'], ['d', limit, f'{both}', 'e'],"
        " ['f', time, str([time for time in (1, 2)]), measure(3)]]",
    }
    cells = [nbformat.v4.new_markdown_cell("# 00 Small\n## How fast", id="title")]
    cells += [nbformat.v4.new_code_cell(source, id=name) for name, source in code.items()]
    cells[1].metadata["tags"] = ["setup"]
    table = "| usually said | the source | measured here | verdict |\n|---|---|---|---|\n"
    rows = "| a | b | 1.0 | c |\n| d | 3 | 8 \\| 9 | e |\n| f | 5 | [1, 2] | 3 |"
    cells[-1].outputs = [nbformat.v4.new_output("execute_result", {"text/markdown": table + rows})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "00_small.ipynb")
    return chapters.Chapter(tmp_path / "00_small.ipynb")


def test_a_claim_is_measured_where_its_variables_were_last_changed(small_chapter):
    first, second, third = small_chapter.claims()
    assert first.cells == ("second",)  # not where loss was made, and not where a function has a loss of its own
    assert second.cells == (
        "second",
    )  # through a variable of the table's own cell; what the setup fixes measures nothing
    assert third.cells == (
        "helper",
    )  # reads no variable: time is the comprehension's own, and the source's column is not read
    assert second.measured == "8 \\| 9"
    assert small_chapter.section_of("second") == "How fast"


def test_variables_are_told_from_imports_and_definitions():
    code = "import os\nfrom a import b\nc, (d, *e) = f\ng[1]['x'] = 2\nh.i = 3\nfor j in k: o.update(p)\ndef m(): n = 1"
    assert chapters.assigned(ast.parse(code)) == {"c", "d", "e", "g", "h", "j", "o"}


def test_a_chapter_that_was_not_executed_is_refused(small_chapter):
    small_chapter.cells[-1].outputs = []
    with pytest.raises(ValueError, match="execute the chapter first"):
        small_chapter.claims()


# --- glossary --------------------------------------------------------------------------------------------------------

ENTRIES = glossary.entries(make_docs.GLOSSARY.read_text("utf-8"))
NAMES = {name.casefold() for entry in ENTRIES for name in entry.names}


def test_the_glossary_is_in_alphabetical_order_and_names_nothing_twice():
    terms = [entry.term.casefold() for entry in ENTRIES]
    assert terms == sorted(terms)
    assert len(set(terms)) == len(terms) == make_docs.GLOSSARY.read_text("utf-8").count("\n### ")


def test_every_entry_is_a_sentence_or_two():
    for entry in ENTRIES:
        words = glossary.ALSO.sub("", " ".join(entry.words.split())).strip()
        assert words[0].isupper() or words.startswith("`"), entry.term
        assert words.endswith(".") and 20 < len(words) < 400, entry.term


@pytest.mark.parametrize("chapter", SOURCES, ids=lambda chapter: chapter.source.stem)
def test_every_word_that_a_chapter_explains_stands_in_the_glossary(chapter):
    for cell in build_notebooks.read_cells(chapter.source):
        if glossary.WORDS_CELL in cell.source:
            terms = glossary.defined_in(" ".join(cell.source.replace("\n", " ").split()))
            assert terms
            assert [term for term in terms if term.casefold() not in NAMES] == []
            assert "(../docs/glossary.md)" in cell.source


def test_an_entry_leads_to_the_cell_that_explains_it():
    """By the cell's name, by what it prints in bold, by a list of words; and a term that nobody uses is refused."""

    def met(term):
        return glossary.rewritten(f"### {term}\n\nSomething.\nMet in a place that is no more.\n").splitlines()[-1]

    assert met("Forgetting").endswith("(../notebooks/04_practical_fine_tuning.ipynb), cell `forgetting`.")
    assert met("nccl").endswith("(../notebooks/05_efficient_training.ipynb), cell `words`.")
    with pytest.raises(ValueError, match="no chapter uses 'Perplexedness'"):
        met("Perplexedness")
