"""Write the table of times in docs/teaching.md: `python tools/chapter_times.py`, after `make notebooks`.

Seconds and memory are those that were recorded when the notebooks were executed; the reading time is an estimate from
the number of words, and the page says so.
"""

import re
from pathlib import Path

from build_notebooks import Chapter, chapters_in, read_cells, tags_of

from course_lib.files import write_atomically
from course_lib.lab.costs import title_and_words
from course_lib.records import Record

ROOT = Path(__file__).resolve().parents[1]
PAGE, RECORD = ROOT / "docs" / "teaching.md", ROOT / "data" / "records" / "chapters.jsonl"
BEGIN, END = "<!-- times: written by tools/chapter_times.py -->", "<!-- end of times -->"
WORDS_A_MINUTE, ROUND = 238, 5  # Brysbaert 2019, silent reading in English; minutes


def table(chapters: list[Chapter], record: Path) -> str:
    """A row for each chapter and one for all, in Markdown; a dash where a chapter was not recorded."""
    rows = {row["name"]: row for row in Record(record).rows()} if record.exists() else {}
    lines = ["| chapter | executes in | peak memory | reading | exercises | patients |", "|---|---|---|---|---|---|"]
    whole = 0.0
    for chapter in chapters:
        name, cells = chapter.source.stem, read_cells(chapter.source)
        reading = minutes(title_and_words(chapter.learner_path)[1])
        row = rows.get(name, {})
        whole += row.get("value", 0.0)
        peak = f"{row['peak_mib'] / 1024:.1f} GiB" if row.get("peak_mib") else "–"
        seconds = f"{row['value']:.0f} s" if row else "–"
        exercises = sum(cell.cell_type == "code" and "exercise" in tags_of(cell) for cell in cells)
        patients = sum(len(re.findall(r"^### Patient ", cell.source, re.M)) for cell in cells)
        lines.append(f"| {name[:2]} | {seconds} | {peak} | {reading} min | {exercises} | {patients} |")
    missing = [chapter.source.stem for chapter in chapters if chapter.source.stem not in rows]
    lines.append(f"| together | {'–' if missing else f'{whole / 60:.0f} min'} | | | | |")
    return "\n".join(lines)


def minutes(words: int) -> int:
    """How long so many words take to read, in minutes, rounded to ROUND, at least ROUND."""
    return max(ROUND, ROUND * round(words / WORDS_A_MINUTE / ROUND))


def with_table(page: str, written: str) -> str:
    """The page with another table between its marks.

    Raises ValueError if the marks are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} followed by {END}: put them where the table should stand")
    return f"{before}{BEGIN}\n{written}\n{END}{after}"


def main() -> None:
    written = table(chapters_in(ROOT / "notebooks"), RECORD)
    print(written)
    write_atomically(PAGE, with_table(PAGE.read_text("utf-8"), written))


if __name__ == "__main__":
    main()
