"""A finished fine-tuning in words (`report.md`), in numbers (`metrics.json`) and as a picture (`curves.png`)."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from course_lib.files import write_atomically
from course_lib.plots import png
from course_lib.runs.finetuning import facts
from course_lib.runs.finetuning.examples import CLASSIFICATION
from course_lib.runs.finetuning.facts import cut
from course_lib.runs.finetuning.tuned import TEMPERATURE, Base, Tuned, save_tuned


@dataclass(frozen=True)
class Report:
    """A finished fine-tuning. text: the report, in Markdown. metrics: its numbers, and more. tuned: what has learned,
    as `load_tuned` gives it back from `folder`."""

    folder: Path
    text: str
    metrics: Mapping
    tuned: Tuned

    def __str__(self) -> str:
        return self.text


def write_report(folder: Path, metrics: Mapping, tuned: Tuned, base: Base) -> Report:
    """Write everything that a fine-tuning leaves, each file whole or absent, and last the one without which nothing
    can be loaded."""
    report = Report(folder, report_text(folder, metrics), metrics, tuned)
    write_atomically(folder / "curves.png", png(facts.draw_epochs(metrics)))
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomically(folder / "report.md", report.text + "\n")
    save_tuned(tuned, base, folder, strategy=metrics["strategy"])
    return report


def report_text(folder: Path, metrics: Mapping) -> str:
    """The report in Markdown."""
    judged = _of_classifier(metrics) if metrics["kind"] == CLASSIFICATION else _of_writer(metrics)
    return "\n".join([*_of_training(metrics), *judged, "", f'Use it: course predict {shlex.quote(str(folder))} "..."'])


def _of_training(metrics: Mapping) -> Iterator[str]:
    yield f"# {facts.title(metrics)}"
    yield ""
    yield f"Data: {metrics['origin']}; {facts.split(metrics)}."
    yield ""
    if metrics["notes"]:
        yield from (*(f"- {note}" for note in metrics["notes"]), "")
    yield from (*facts.training(metrics), "")


def _of_classifier(metrics: Mapping) -> Iterator[str]:
    found = metrics["test"]
    yield f"## On {metrics['sizes']['to test']:,} texts that it has not seen"
    yield ""
    yield from _table(facts.scores(metrics))
    yield from ("", facts.CHANCE)
    if pair := facts.pair(metrics):
        yield pair
    yield from ("", "## Which class is taken for which", "")
    if len(metrics["classes"]) > facts.LARGEST_TABLE:
        yield from ("The most frequent confusions (metrics.json holds all of them):", "")
    yield from _table(facts.confusions(metrics["classes"], found["confusion"]))
    yield from ("", "## The most confident mistakes", "")
    for number, one in enumerate(found["mistakes"], 1):
        yield f'{number}. given {one["given"]} ({one["probability"]:.3f}), is {one["label"]}: "{cut(one["text"])}"'
    if not found["mistakes"]:
        yield "None."


def _of_writer(metrics: Mapping) -> Iterator[str]:
    yield f"## On {metrics['sizes']['to test']:,} prompts that it has not seen"
    yield ""
    yield from _table(facts.losses(metrics))
    yield from ("", facts.short_answers(metrics))
    yield from ("", f"## What it writes for prompts of the test (temperature {TEMPERATURE})", "")
    for number, one in enumerate(metrics["test"]["samples"], 1):
        yield f"{number}. {cut(one['instruction'])}"
        yield from (f"   - {name}: {cut(one[name])}" for name in ("input", "written", "expected") if one[name])


def _table(rows: facts.Table) -> Iterator[str]:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    yield from (f"| {' | '.join(row)} |" for row in body)
