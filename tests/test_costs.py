"""What a chapter cost is added up cell by cell, kept once for each chapter, and scaled by a measured rate."""

import nbformat
import pytest
from build_notebooks import build
from test_build_notebooks import chapter_of, folder  # noqa: F401 a fixture

from course_lib.lab import costs
from course_lib.lab.costs import ChapterCost, Stopwatch, costs_path, read_costs, record_cost, title_and_words
from course_lib.records import Record


def cost(chapter="00_start_here", seconds=40.0, peak_mib=900):
    return ChapterCost(chapter, seconds, peak_mib, "encode", 9.0, rate=2e11)


def test_a_stopwatch_adds_up_and_remembers_the_slowest_cell(monkeypatch):
    clock = iter([100.0, 101.0, 105.0, 105.5])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    peaks = iter([10.0, None, 30.0])
    monkeypatch.setattr(costs, "peak_mib_of", lambda pid: next(peaks))
    watch = Stopwatch(rate=1e9)
    for done, name in enumerate(("imports", "train", "draw"), 1):
        watch(done, {"metadata": {"name": name}}, 1)
    assert watch.cost("01_x") == ChapterCost("01_x", 5.5, 30.0, "train", 4.0, 1e9)


def test_a_chapter_s_row_takes_the_place_of_its_earlier_one_and_leaves_the_others(tmp_path):
    path = tmp_path / "chapters.jsonl"
    assert read_costs(path) == {}
    for one in (cost(), cost("01_next", 80.0), cost(seconds=30.0), cost("01_next", 90.0, peak_mib=None)):
        record_cost(one, path)
    assert read_costs(path) == {"00_start_here": cost(seconds=30.0), "01_next": cost("01_next", 90.0, peak_mib=None)}
    assert len(Record(path).rows()) == len(Record(path).provenance()) == 2


@pytest.mark.slow
def test_executing_a_chapter_records_it_and_its_solutions_not(folder):  # noqa: F811
    chapter = chapter_of(folder)
    build(chapter, folder, executed=False, say=lambda line: None)
    assert read_costs(costs_path(folder)) == {}
    build(chapter, folder, say=lambda line: None)
    found = read_costs(costs_path(folder))
    assert list(found) == ["01_tiny"]
    one = found["01_tiny"]
    assert 0 < one.slowest_seconds <= one.seconds and one.rate > 0
    assert one.slowest in {"imports", "look", "exercise-double-code", "exercise-double-check"}


def test_the_words_of_a_chapter_are_those_of_its_prose(folder):  # noqa: F811
    chapter = chapter_of(folder)
    build(chapter, folder, executed=False, say=lambda line: None)
    assert title_and_words(chapter.learner_path) == ("A chapter", 2 + 3)  # and "Exercise: double it"
    notebook = nbformat.read(chapter.learner_path, as_version=4)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.outputs = [nbformat.v4.new_output("display_data", {"text/markdown": "Two **words**", "text/plain": "no word"})]
    nbformat.write(notebook, chapter.learner_path)
    assert title_and_words(chapter.learner_path) == ("A chapter", 2 + 3 + 2)


def test_a_notebook_without_a_title_is_refused(folder):  # noqa: F811
    chapter = chapter_of(folder, '# %% [markdown] name="prose"\n# no title\n')
    build(chapter, folder, executed=False, say=lambda line: None)
    with pytest.raises(ValueError, match="has no title"):
        title_and_words(chapter.learner_path)
