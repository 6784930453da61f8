"""The documentation of installed packages: read as text, the same every time, and without running a line of it."""

import gc
import sys

import pytest

from course_lib import documentation as reader
from course_lib.data import identity
from course_lib.documentation import PACKAGES, docstrings, documentation, without_names

SOURCE = '''"""A module
that says   what it is."""
X = """no docstring"""
class Thing:
    """A thing."""
    def act(self):
        """Acts."""
        def inner():
            """Hidden deep."""
async def later():
    """Not read."""
'''


def package(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    return folder


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package on the path whose import would fail."""
    long = "A docstring that is long enough to be taken as a text of its own, number {}, and it says nothing else."
    files = {f"m{n}.py": f'"""{long.format(n % 7)}"""\nraise SystemExit' for n in range(9)}
    files |= {"tests/test_m.py": f'"""{long.format("of a test")}"""', "bad.py": '"""' + long, "__init__.py": "1 / 0"}
    files |= {"short.py": '"""Short."""'}
    package(tmp_path / "toy_package", files)
    monkeypatch.syspath_prepend(tmp_path)
    reader._documentation_of.cache_clear()
    return "toy_package"


def test_every_docstring_is_found_on_one_line_and_nothing_else():
    assert list(docstrings(SOURCE)) == ["A module that says what it is.", "A thing.", "Acts.", "Hidden deep."]


def test_a_package_is_read_and_not_imported(toy):
    texts = documentation([toy])
    assert len(texts) == 7  # nine files, of which two say what others say; no test, nothing short, nothing broken
    assert toy not in sys.modules
    assert {(text.source, text.label) for text in texts} == {(toy, None)}


def test_the_same_texts_in_the_same_order_every_time(toy):
    first = documentation([toy])
    reader._documentation_of.cache_clear()
    assert documentation([toy]) == first
    assert [t.text for t in first] != sorted(t.text for t in first)  # not by name


def test_no_text_stands_twice_and_few_characters_take_few_files(toy):
    some = documentation([toy], characters=150)
    assert 1 <= len(some) < 7
    assert len({identity(t.text) for t in documentation([toy])}) == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["no_such_package"],), "is not installed"),
        ((["numpy; 1"],), "is not installed"),
        ((["numpy"], 0), "characters is 0"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(arguments, words):
    with pytest.raises(ValueError, match=words):
        documentation(*arguments)


def test_a_package_without_documentation_is_refused(tmp_path, monkeypatch):
    package(tmp_path / "silent_package", {"__init__.py": "x = 1"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="has no documentation"):
        documentation(["silent_package"])


def test_names_go_and_words_that_hold_them_stay():
    said = "NumPy's np.array in sklearn, a pytorch Tensor; npx, tensorial and pythonic stay"
    assert without_names(said) == "it's it.array in it, a it it; npx, tensorial and pythonic stay"


@pytest.mark.slow
def test_every_package_of_the_course_has_much_to_say():
    sizes = dict.fromkeys(PACKAGES, 0)
    for text in documentation():
        sizes[text.source] += len(text.text)
    assert min(sizes.values()) > 300_000


@pytest.mark.parametrize("is_on", [True, False])
def test_reading_leaves_the_collector_as_it_was(is_on):
    was_on = gc.isenabled()
    try:
        (gc.enable if is_on else gc.disable)()
        documentation(["numpy"], 1_001)
        with pytest.raises(ValueError, match="not installed"):
            documentation(["no_such_package"], 1_000)
        assert gc.isenabled() is is_on
    finally:
        (gc.enable if was_on else gc.disable)()
