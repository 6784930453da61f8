"""What the pages of all runs say alike: the machine, the files, hashes."""

from collections.abc import Mapping
from pathlib import Path

from course_lib.runs.pages.elements import section, table

SILENT = "the folder does not say"


def files(folder: Path) -> str:
    """What the run takes on the disk; a folder within it counts as one, with all that it holds."""
    sizes = {entry.name + "/" * entry.is_dir(): _bytes(entry) for entry in sorted(folder.iterdir())
             if entry.suffix != ".html"}  # fmt: skip
    rows = [[name, f"{size:,}"] for name, size in sizes.items()]
    return section("On the disk", table([["file", "bytes"], *rows, ["together", f"{sum(sizes.values()):,}"]]))


def machine(about: Mapping) -> str:
    """A machine and its versions, as `describe_machine` found them."""
    return ", ".join(f"{name} {value}" for name, value in about.items()) or SILENT


def hashes(found: object) -> str:
    """A sha256, or those of several files by name."""
    if isinstance(found, Mapping):
        return "; ".join(f"{name}: {value}" for name, value in found.items())
    return str(found or SILENT)


def _bytes(entry: Path) -> int:
    inner = entry.rglob("*") if entry.is_dir() else [entry]
    return sum(file.stat().st_size for file in inner if file.is_file())
