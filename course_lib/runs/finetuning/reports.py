"""A finished fine-tuning in words (`report.md`), in numbers (`metrics.json`) and as a picture (`curves.png`)."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from course_lib.evaluation import Interval
from course_lib.files import write_atomically
from course_lib.plots import draw_curves, png
from course_lib.runs.finetuning.examples import CLASSIFICATION
from course_lib.runs.finetuning.tuned import TEMPERATURE, Base, Tuned, save_tuned

SHOWN = 200  # characters of a text that a report quotes
LARGEST_TABLE = 10  # classes; of more, the report names the most frequent confusions


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
    write_atomically(folder / "curves.png", png(draw_epochs(metrics)))
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomically(folder / "report.md", report.text + "\n")
    save_tuned(tuned, base, folder, strategy=metrics["strategy"])
    return report


def draw_epochs(metrics: Mapping) -> Figure:
    """Training and held-out loss by epoch, and which of them was kept."""
    rows, best = metrics["epochs"], metrics["best_epoch"]
    series = {
        "training": [(row["epoch"], row["loss"]) for row in rows if row["loss"] is not None],
        "held out": [(row["epoch"], row["held_out"]) for row in rows],
    }
    kept = next(row["held_out"] for row in rows if row["epoch"] == best)
    curves = {name: tuple(zip(*points, strict=True)) for name, points in series.items()}
    is_classifier = metrics["kind"] == CLASSIFICATION
    figure = draw_curves(
        curves,
        {"training": curves["training"], "held out": curves["held out"], "kept": ([best], [kept])},
        references={"even bet": log(len(metrics["classes"]))} if is_classifier else None,
        xlabel="epoch",
        ylabel=f"loss (nats a {'text' if is_classifier else 'token'})",
        kinds=None,
    )
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def report_text(folder: Path, metrics: Mapping) -> str:
    """The report in Markdown."""
    judged = _of_classifier(metrics) if metrics["kind"] == CLASSIFICATION else _of_writer(metrics)
    return "\n".join([*_of_training(metrics), *judged, "", f'Use it: course predict {shlex.quote(str(folder))} "..."'])


def cut(text: str, length: int = SHOWN) -> str:
    """A text on one line, its end left out where it is long.

    >>> cut("a good film", 7)
    'a good...'
    """
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length].rstrip() + "..."


def _of_training(metrics: Mapping) -> Iterator[str]:
    sizes, how, best = metrics["sizes"], metrics["training"], metrics["best_epoch"]
    purpose = "to follow instructions"
    if metrics["kind"] == CLASSIFICATION:
        purpose = "to tell " + (" from ".join(metrics["classes"]) if len(metrics["classes"]) == 2 else
                                f"{len(metrics['classes'])} classes apart")  # fmt: skip
    yield f"# {metrics['base']}, fine-tuned by {metrics['strategy']['kind']}, {purpose}"
    yield ""
    yield f"Data: {metrics['origin']}; {', '.join(f'{size:,} {name}' for name, size in sizes.items())}."
    yield ""
    if metrics["notes"]:
        yield from (*(f"- {note}" for note in metrics["notes"]), "")
    yield f"Trained: {metrics['trained_parameters']:,} of {metrics['parameters']:,} parameters."
    kept = next(row for row in metrics["epochs"] if row["epoch"] == best)
    yield (
        f"{metrics['epochs'][-1]['epoch']} of {how['epochs']} epochs, in batches of {how['batch_size']} at a rate of "
        f"{how['rate']:g}, in {metrics['seconds']:.0f} s. Kept: epoch {best}, with the lowest held-out loss, "
        f"{kept['held_out']:.3f} (held-out examples chose the epoch, and taught nothing)."
    )
    yield ""


def _of_classifier(metrics: Mapping) -> Iterator[str]:
    found, simple = metrics["test"], metrics["test"]["bag_of_words"]
    beside = {name: _interval(simple[name]) if simple else "no words to count" for name in ("accuracy", "macro_f1")}
    yield f"## On {metrics['sizes']['to test']:,} texts that it has not seen"
    yield ""
    yield "| | this model | bag of words | the most frequent class |"
    yield "|---|---|---|---|"
    yield f"| accuracy | {_interval(found['accuracy'])} | {beside['accuracy']} | {found['most_frequent_class']:.3f} |"
    yield f"| macro F1 | {_interval(found['macro_f1'])} | {beside['macro_f1']} | |"
    yield f"| calibration error (ECE) | {found['calibration_error']:.3f} | | |"
    yield ""
    yield "In brackets: 95 % intervals, for the chance of which texts are tested, not of which were learned from."
    if simple:
        pair = simple["paired"]
        yield (
            f"Right where the bag of words is wrong: {pair['only_a']}; wrong where it is right: {pair['only_b']}. "
            f"Difference of the accuracies: {_interval(pair['difference'], '+.3f')}, p = {pair['p_value']:.2g}."
        )
    yield from ("", "## Which class is taken for which", "")
    yield from _confusions(metrics["classes"], found["confusion"])
    yield from ("", "## The most confident mistakes", "")
    for number, one in enumerate(found["mistakes"], 1):
        yield f'{number}. given {one["given"]} ({one["probability"]:.3f}), is {one["label"]}: "{cut(one["text"])}"'
    if not found["mistakes"]:
        yield "None."


def _of_writer(metrics: Mapping) -> Iterator[str]:
    found, met = metrics["test"], metrics["test"]["short_answers"]
    rows = {row["epoch"]: row["held_out"] for row in metrics["epochs"]}
    yield f"## On {metrics['sizes']['to test']:,} prompts that it has not seen"
    yield ""
    yield "| nats per token of the answers | before | after |"
    yield "|---|---|---|"
    yield f"| held out | {rows[0]:.3f} | {rows[metrics['best_epoch']]:.3f} |"
    yield f"| test | {found['test_loss_before']:.3f} | {found['test_loss']:.3f} |"
    yield ""
    if met:
        yield (
            f"Of {met['of']} answers of at most {met['words']} words it gives {_interval(met['share'])} word for word "
            "(95 % interval in brackets; case aside, the likeliest token each time). Always giving the most frequent: "
            f"{met['most_frequent_answer']:.3f}."
        )
    else:
        yield "No answer of the test is so short that comparing it word for word would say something."
    yield from ("", f"## What it writes for prompts of the test (temperature {TEMPERATURE})", "")
    for number, one in enumerate(found["samples"], 1):
        yield f"{number}. {cut(one['instruction'])}"
        yield from (f"   - {name}: {cut(one[name])}" for name in ("input", "written", "expected") if one[name])


def _interval(found: Mapping, spec: str = ".3f") -> str:
    return format(Interval(**found), spec)


def _confusions(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Iterator[str]:
    if len(classes) > LARGEST_TABLE:
        pairs = [(counts[i][j], i, j) for i in range(len(classes)) for j in range(len(classes)) if i != j]
        pairs = sorted((pair for pair in pairs if pair[0]), key=lambda pair: (-pair[0], pair[1:]))
        yield "The most frequent confusions (metrics.json holds all of them):"
        yield from (f"- {classes[i]} taken for {classes[j]}: {count}" for count, i, j in pairs[:LARGEST_TABLE])
        return
    names = [name.replace("|", "\\|") for name in classes]
    yield f"| is | {' | '.join(f'given {name}' for name in names)} |"
    yield "|---" * (len(names) + 1) + "|"
    yield from (f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(names, counts, strict=True))
