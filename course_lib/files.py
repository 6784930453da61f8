"""Files that are either whole or absent, and their fingerprints: the only module that renames and fsyncs."""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO


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
            _write_through(file, data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return path


def write_folder(path: Path | str, contents: Mapping[str, bytes | str]) -> Path:
    """Write a folder of files that is whole or absent. Names in `contents` are plain file names.

    Raises ValueError for a name that is no plain file name.

    >>> folder = write_folder(Path(tempfile.mkdtemp()) / "step_1", {"note.txt": "whole"})
    >>> [file.name for file in folder.iterdir()]
    ['note.txt']
    """
    check_plain_names(contents)
    with new_folder(path) as folder:
        for name, content in contents.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def check_plain_names(names: Iterable[str]) -> None:
    """Raises ValueError for a name that leads into another folder."""
    if wrong := [name for name in names if Path(name).name != name or name in ("", "..")]:
        raise ValueError(f"{wrong[0]!r} is no plain file name: a folder is written without folders in it")


def plain_files(folder: Path) -> list[Path]:
    """The files of a folder by name.

    Raises ValueError where a folder lies in it.
    """
    paths = sorted(folder.iterdir())
    if inner := [path.name for path in paths if path.is_dir()]:
        raise ValueError(f"there is a folder {inner[0]!r} among the files: a folder is written without folders in it")
    return paths


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """A folder to be filled with files inside the block, and whole or absent in the end: it lies beside `path`, its
    files are flushed to the disk, then it is renamed into place, where an older folder of that name gives way.

    A crash leaves at most a hidden folder that ends in .partial; `remove_leftovers` takes it away.
    Raises ValueError where a folder was put among the files, for it would not be flushed; nothing is written then.

    >>> with new_folder(Path(tempfile.mkdtemp()) / "step_1") as folder:
    ...     _ = (folder / "note.txt").write_text("whole")
    >>> folder.exists()  # it has been renamed
    False
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        yield temporary
        for file in plain_files(temporary):
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o755)
        _sync_folder(temporary)
        remove_folder(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def remove_folder(path: Path | str) -> None:
    """Remove a folder, if it is there, so that a crash leaves the whole of it or nothing under its name."""
    path = Path(path)
    if not path.exists():
        return
    doomed = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")) / path.name
    os.replace(path, doomed)
    shutil.rmtree(doomed.parent, ignore_errors=True)


def remove_leftovers(folder: Path | str) -> None:
    """Remove what a `write_folder` that was killed has left in this folder. Nobody may be writing there."""
    for leftover in Path(folder).glob(".*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


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
        _write_through(file, data)


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file.

    Raises FileNotFoundError if it is not there, ValueError naming the line that is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise not_there(path)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1  # of the bytes behind the mark that a file may begin with
        remedy = "save the file as UTF-8 and read it again, if it is text at all"
        raise ValueError(f"{path}, line {line}, is not UTF-8: {remedy}") from None


def not_there(path: Path | str) -> FileNotFoundError:
    """The error to raise for a path that a reader has given and that leads nowhere."""
    return FileNotFoundError(f"{path} is not there: check the name, or the folder you started from ({Path.cwd()})")


def package_folder(name: str) -> Path | None:
    """Where an installed package lies, None without it; none of its code is run.

    >>> package_folder("json").name
    'json'
    """
    spec = importlib.util.find_spec(name)
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) if folders else None


def sha256_of(path: Path | str) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_through(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows can neither open nor fsync a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
