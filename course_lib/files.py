"""Files that are either whole or absent, and their fingerprints: the only module that renames and fsyncs."""

import hashlib
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path | str, content: bytes | str) -> Path:
    """Write a temporary neighbour, flush it to the disk and rename it into place: after a crash at any moment the
    path holds the old content or the new, never a part. Text is written as UTF-8. Missing folders are made.

    >>> folder = Path(tempfile.mkdtemp())
    >>> write_atomically(folder / "a" / "note.txt", "whole").read_text()
    'whole'
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return path


def append_line(path: Path | str, line: str) -> None:
    """Add one line of text and flush it to the disk. A crash can cut off the last line, never an earlier one, and what
    it cut off stays a line of its own: the next call begins a new one.

    Raises ValueError if `line` holds a line break.
    """
    if "\n" in line or "\r" in line:
        raise ValueError(f"line {line[:40]!r} holds a line break: write one line at a time")
    path, data = Path(path), line.encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            data = data if file.read(1) == b"\n" else b"\n" + data
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file.

    Raises FileNotFoundError if it is not there, ValueError naming the line that is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: check the name, or the folder you started from ({Path.cwd()})")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1  # of the bytes behind the mark that a file may begin with
        raise ValueError(f"{path}, line {line}, is not UTF-8: save the file as UTF-8 and read it again") from None


def sha256_of(path: Path | str) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows can neither open nor fsync a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
