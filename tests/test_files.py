import contextlib
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest

from course_lib import files
from course_lib.files import (
    append_line,
    new_folder,
    read_text,
    remove_folder,
    remove_leftovers,
    sha256_of,
    write_atomically,
    write_folder,
)


def naive_write(path, content):
    """What everybody writes first: open for writing (the old content is gone), write, flush."""
    with open(path, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def survives_a_crash_before_the_disk_has_it(write, tmp_path, monkeypatch) -> bool:
    """Whether the old content is whole, and nothing else lies about, when the process stops at its fsync."""
    path = tmp_path / "state"
    path.write_text("old")

    def crash(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", crash)
        write(path, "new")
    return path.read_text() == "old" and os.listdir(tmp_path) == ["state"]


def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    assert survives_a_crash_before_the_disk_has_it(write_atomically, tmp_path, monkeypatch)


def test_the_check_above_refuses_a_naive_write(tmp_path, monkeypatch):
    assert not survives_a_crash_before_the_disk_has_it(naive_write, tmp_path, monkeypatch)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from course_lib.files import write_atomically
path = Path(sys.argv[1])
def naive(path, content):
    with open(path, "w") as file:
        for letter in content:
            file.write(letter)
            file.flush()
write = write_atomically if sys.argv[3] == "ours" else naive
path.with_name("started").touch()
while True:
    for letter in "ab":
        write(path, letter * 3000)
"""


def contents_after_kills(tmp_path, writer: str, times: int) -> set[str]:
    """What a file holds after its writer was killed (SIGKILL on a POSIX system) at some moment, several times."""
    path, started, seen = tmp_path / "state", tmp_path / "started", set()
    path.write_text("a" * 3000)
    for n in range(times):
        argv = [sys.executable, "-c", WRITER, str(path), str(files.__file__).rsplit("course_lib", 1)[0], writer]
        with subprocess.Popen(argv) as process:
            while not started.exists():
                time.sleep(0.005)
            time.sleep(0.005 + 0.007 * n)
            process.kill()
        started.unlink()
        seen.add(path.read_text())
    return seen


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    assert contents_after_kills(tmp_path, "ours", 6) <= {"a" * 3000, "b" * 3000}


@pytest.mark.slow
def test_the_check_above_refuses_a_naive_writer(tmp_path):
    assert not contents_after_kills(tmp_path, "naive", 6) <= {"a" * 3000, "b" * 3000}


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot flush a folder")
def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("flush"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    write_atomically(tmp_path / "a", b"content")
    assert events == ["flush", "rename", "flush"]


def test_bytes_and_text_come_back_and_folders_are_made(tmp_path):
    assert write_atomically(tmp_path / "x" / "y" / "a.txt", "été\r\n") == tmp_path / "x" / "y" / "a.txt"
    assert (tmp_path / "x" / "y" / "a.txt").read_bytes() == "été\r\n".encode()
    assert write_atomically(str(tmp_path / "b"), b"\x00\xff").read_bytes() == b"\x00\xff"


def test_what_cannot_be_written_makes_no_folder(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "x" / "a.txt", "half a pair: \ud800")
    assert os.listdir(tmp_path) == []


def test_lines_are_appended_each_with_its_end(tmp_path):
    for line in ("one", "zwei ü", ""):
        append_line(tmp_path / "new" / "log", line)
    assert (tmp_path / "new" / "log").read_bytes() == "one\nzwei ü\n\n".encode()


def test_after_a_line_cut_off_by_a_crash_the_next_begins_anew(tmp_path):
    (tmp_path / "log").write_bytes(b'{"step": 1}\n{"st')
    append_line(tmp_path / "log", '{"step": 2}')
    assert (tmp_path / "log").read_text().splitlines() == ['{"step": 1}', '{"st', '{"step": 2}']


@pytest.mark.parametrize("line", ["a\nb", "a\n", "a\rb"])
def test_a_refused_line_is_not_written(tmp_path, line):
    with pytest.raises(ValueError, match="holds a line break"):
        append_line(tmp_path / "log", line)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no byte-order mark", "byte-order mark"])
@pytest.mark.parametrize(("data", "line"), [(b"\xff", 1), (b"a\n\xff", 2), (b"a\n\n\n\nb\xe9\nc", 5), (b"a\nb\xc3", 2)])
def test_the_first_line_that_is_not_utf8_is_named(tmp_path, mark, data, line):
    (tmp_path / "text").write_bytes(mark + data)
    with pytest.raises(ValueError, match=rf"line {line}, is not UTF-8"):
        read_text(tmp_path / "text")


def test_text_comes_as_it_is_without_a_byte_order_mark(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\r\nb\n")
    assert read_text(tmp_path / "text") == "a\r\nb\n"


def test_a_fingerprint_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---------------------------------------------------------------- folders


def naive_folder(path, contents):
    """Open, write, next: the folder is there before its files are, and an older one of its name is mixed with it."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        naive_write(path / name, content)


def folder_survives_a_crash(write, tmp_path, monkeypatch, nth) -> bool:
    """Whether the older folder or the newer one is there, whole and alone, when the process stops at its nth fsync."""
    path, older, newer = tmp_path / "step_1", {"a": "old", "b": "old"}, {"a": "new", "b": "new", "c": "new"}
    write(path, older)
    fsync, left = os.fsync, [nth]

    def crash(descriptor):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with contextlib.suppress(KeyboardInterrupt):
            write(path, newer)
    return os.listdir(tmp_path) == ["step_1"] and contents_of(path) in (older, newer)


def contents_of(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5, 6])
def test_an_interrupted_folder_is_the_old_one_or_the_new_one_and_alone(tmp_path, monkeypatch, nth):
    assert folder_survives_a_crash(write_folder, tmp_path, monkeypatch, nth)


def test_the_check_above_refuses_a_naive_folder(tmp_path, monkeypatch):
    assert not folder_survives_a_crash(naive_folder, tmp_path, monkeypatch, 2)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot flush a folder")
def test_a_folders_files_and_names_are_on_the_disk_before_it_gets_its_own(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor):
        events.append(f"flush {'folder' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 'file'}")
        fsync(descriptor)

    def rename(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    write_folder(tmp_path / "step_1", {"a": "x", "b": b"y"})
    assert events == ["flush file", "flush file", "flush folder", "rename", "flush folder"]


FOLDER_WRITER = """
import itertools, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from course_lib.files import write_folder
path = Path(sys.argv[1])
def naive(path, contents):
    path.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (path / name).write_text(content)
write = write_folder if sys.argv[3] == "ours" else naive
path.with_name("started").touch()
for n in itertools.count():
    write(path, {name: chr(97 + n % 26) * 300_000 for name in "abcd"})
"""


def whole_folders_after_kills(tmp_path, writer, times, program=FOLDER_WRITER) -> list[bool]:
    """For each of several kills (SIGKILL on a POSIX system): is the folder absent, or four whole files of one kind?
    Between kills the leftovers are removed, and nothing but the folder is left."""
    path, started, whole = tmp_path / "step_1", tmp_path / "started", []
    for n in range(times):
        argv = [sys.executable, "-c", program, str(path), str(files.__file__).rsplit("course_lib", 1)[0], writer]
        with subprocess.Popen(argv) as process:
            while not started.exists():
                time.sleep(0.002)
            time.sleep(0.011 * (n + 1))
            process.kill()
        started.unlink()
        found = contents_of(path) if path.exists() else None
        kinds = {(len(content), content[:1] * len(content) == content) for content in (found or {}).values()}
        whole.append(
            found is None
            or (set(found) == set("abcd") and kinds == {(300_000, True)} and len(set(found.values())) == 1)
        )
        remove_leftovers(tmp_path)
        assert set(os.listdir(tmp_path)) <= {"step_1"}
    return whole


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_folder_or_none(tmp_path):
    assert all(whole_folders_after_kills(tmp_path, "ours", 6))


@pytest.mark.slow
def test_the_check_above_refuses_a_naive_folder_writer(tmp_path):
    assert not all(whole_folders_after_kills(tmp_path, "naive", 6))


def filled(path, letter="n", *, stop_after=None):
    """A new folder of three files, from within which an interrupt comes after so many of them."""
    with new_folder(path) as folder:
        for number, name in enumerate("abc"):
            if number == stop_after:
                raise KeyboardInterrupt
            (folder / name).write_text(letter)


@pytest.mark.parametrize("stop_after", [0, 1, 2])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_is_interrupted_while_it_is_filled_is_absent_or_the_old_one(tmp_path, is_there, stop_after):
    path, old = tmp_path / "x" / "step_1", {"a": "old"}
    if is_there:
        write_folder(path, old)
    with pytest.raises(KeyboardInterrupt):
        filled(path, stop_after=stop_after)
    assert os.listdir(path.parent) == (["step_1"] if is_there else [])
    assert not is_there or contents_of(path) == old
    filled(path)
    assert contents_of(path) == dict.fromkeys("abc", "n")


def test_what_is_being_filled_has_no_name_yet_and_lies_where_leftovers_are_looked_for(tmp_path):
    """Beside the name, on the same disk, or it could not be renamed into place."""
    with new_folder(tmp_path / "step_1") as folder:
        (folder / "a").write_text("x")
        assert folder.parent == tmp_path and not (tmp_path / "step_1").exists()
        other = folder.name
    assert os.listdir(tmp_path) == ["step_1"]
    (tmp_path / other).mkdir()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["step_1"]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot flush a folder")
def test_files_that_others_wrote_into_it_are_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def flush(descriptor):
        events.append(os.stat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    filled(tmp_path / "step_1")
    files = {path.stat().st_ino for path in (tmp_path / "step_1").iterdir()}
    assert set(events[:3]) == files
    assert events[3:] == [(tmp_path / "step_1").stat().st_ino, "rename", tmp_path.stat().st_ino]


FILLER = """
import itertools, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from course_lib.files import new_folder
path = Path(sys.argv[1])
for n in itertools.count():
    with new_folder(path) as folder:
        for name in "abcd":
            (folder / name).write_text(chr(97 + n % 26) * 300_000)
            path.with_name("started").touch()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_fills_a_folder_leaves_a_whole_one_or_none(tmp_path):
    assert all(whole_folders_after_kills(tmp_path, "ours", 6, program=FILLER))


def test_a_folder_takes_the_place_of_an_older_one_and_nothing_of_that_is_left(tmp_path):
    write_folder(tmp_path / "x" / "step_1", {"a": "old", "b": "old"})
    assert write_folder(str(tmp_path / "x" / "step_1"), {"b": "été", "c": b"\x00\xff"}) == tmp_path / "x" / "step_1"
    assert sorted(os.listdir(tmp_path / "x" / "step_1")) == ["b", "c"]
    assert (tmp_path / "x" / "step_1" / "b").read_bytes() == "été".encode()
    assert (tmp_path / "x" / "step_1" / "c").read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path / "x") == ["step_1"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_others_may_read_the_folder(tmp_path):
    assert stat.S_IMODE(write_folder(tmp_path / "step_1", {"a": "x"}).stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "/a", "../a"])
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ValueError, match="is no plain file name"):
        write_folder(tmp_path / "step_1", {"fine": "x", name: "y"})
    assert os.listdir(tmp_path) == []


def test_a_folder_among_the_files_is_refused_and_nothing_is_left(tmp_path):
    with (
        pytest.raises(ValueError, match="there is a folder 'inner' among the files"),
        new_folder(tmp_path / "step_1") as folder,
    ):
        (folder / "a").touch()
        (folder / "inner").mkdir()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_folder(tmp_path / "step_1", {"a": "x", "b": "half a pair: \ud800"})
    assert os.listdir(tmp_path) == []


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    for name in (".step_1.abc.partial", "step_2", ".hidden", "kept.partial"):
        write_folder(tmp_path / name, {"a": "x"})
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "kept.partial", "step_2"]
    remove_leftovers(tmp_path / "not there")


def test_a_removed_folder_leaves_its_name_at_once_and_whole(tmp_path, monkeypatch):
    """A kill while its files are deleted finds it under a leftover's name, never half of it under its own."""
    path = write_folder(tmp_path / "step_1", {"a": "x", "b": "x"})
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: seen.append(path.exists()))
        remove_folder(path)
    assert seen == [False]
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []
    remove_folder(path)  # not there: nothing to do
    assert os.listdir(tmp_path) == []
