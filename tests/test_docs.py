"""The pages under docs/ say what the code and the chapters say; else: `python tools/make_docs.py`."""

import re
from itertools import pairwise

import architecture_picture
import library_map
import make_docs
import numpy as np
import pytest

PAGES = sorted(make_docs.DOCS.glob("*.md"))
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


@every_page
def test_a_page_is_up_to_date(path):
    page = path.read_text("utf-8")
    assert make_docs.rewritten(page) == page, "python tools/make_docs.py"


@every_page
def test_every_link_of_a_page_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
        assert "://" in target or (path.parent / target).exists(), target


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
