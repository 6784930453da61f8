import os
import subprocess
import sys
import time

import pytest

from course_lib import files
from course_lib.files import append_line, read_text, sha256_of, write_atomically


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


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    assert contents_after_kills(tmp_path, "ours", 6) <= {"a" * 3000, "b" * 3000}


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
