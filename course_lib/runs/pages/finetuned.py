"""The page of a fine-tuning: of a classifier, or of a decoder that follows instructions."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from course_lib.evaluation import Interval, proportion_interval
from course_lib.plots import draw_bars, draw_curves
from course_lib.runs.finetuning import facts
from course_lib.runs.finetuning.examples import CLASSIFICATION
from course_lib.runs.finetuning.facts import interval
from course_lib.runs.finetuning.tuned import TEMPERATURE
from course_lib.runs.pages.elements import SIZE, code, picture, quotes, section, table, words
from course_lib.runs.pages.parts import SILENT, files, hashes, machine
from course_lib.weights import read_settings

QUOTED = 1200  # characters of a text that was taken for something else


def finetuned_sections(folder: Path) -> tuple[str, list[str]]:
    """Title and sections. Raises FileNotFoundError or ValueError where metrics.json is missing or damaged."""
    metrics = read_settings(folder / "metrics.json")
    try:
        judged = _of_classifier(metrics) if metrics["kind"] == CLASSIFICATION else _of_writer(metrics)
        sections = [_run(metrics), _data(metrics), _learning(metrics), *judged, files(folder), _use(folder, metrics)]
        return facts.title(metrics), sections
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"{folder / 'metrics.json'} is damaged ({error}): fine-tune again, elsewhere") from None


def _run(metrics: Mapping) -> str:
    how = metrics["training"] | {f"strategy: {name}": value for name, value in metrics["strategy"].items()}
    rows = [["", ""],
            ["date", metrics.get("date", SILENT)],
            ["course", metrics.get("course", SILENT)],
            ["machine", machine(metrics.get("machine", {}))],
            ["base", f"{metrics['base']}, sha256 of its weights {metrics['base_sha256']}"],
            *([name.replace("_", " "), str(value)] for name, value in how.items())]  # fmt: skip
    command = metrics.get("command")
    begun = code(command) if command else words("The folder does not say with which command it was run.")
    return section("What was run", begun, table(rows))


def _data(metrics: Mapping) -> str:
    origin = f"{metrics['origin']}, sha256 {hashes(metrics.get('data_sha256'))}."
    notes = [[str(number), note] for number, note in enumerate(metrics["notes"], 1)]
    parts = [["part", "examples"], *([name, f"{size:,}"] for name, size in metrics["sizes"].items())]
    why = "The parts share no text: what was learned from is not what chose the epoch, nor what is tested on."
    more = table([["", "note"], *notes]) if notes else ""
    return section("The data and its split", words(origin), table(parts), words(why), more)


def _learning(metrics: Mapping) -> str:
    rows = metrics["epochs"]
    first, best = rows[0], next(row for row in rows if row["epoch"] == metrics["best_epoch"])
    alt = (
        f"Training and held-out loss over {len(rows)} measurements. Held out: {first['held_out']:.3f} at epoch "
        f"{first['epoch']}, {best['held_out']:.3f} at epoch {best['epoch']}, which was kept."
    )
    return section("How it learned", words(*facts.training(metrics)), picture(facts.draw_epochs(metrics, SIZE), alt))


def _of_classifier(metrics: Mapping) -> Iterator[str]:
    found = metrics["test"]
    yield section(
        f"On {metrics['sizes']['to test']:,} texts that it has not seen",
        _draw_accuracies(found),
        table(facts.scores(metrics)),
        words(facts.CHANCE, facts.pair(metrics)),
    )
    yield section("Which class is taken for which", _confusions(metrics["classes"], found["confusion"]))
    yield section("How far its probabilities can be believed", *_calibration(found))
    mistakes = [
        (f"given {one['given']} with a probability of {one['probability']:.3f}, is {one['label']}",
         facts.cut(one["text"], QUOTED))
        for one in found["mistakes"]
    ]  # fmt: skip
    read = words("Read them one by one: is the label right, and could you have known?") if mistakes else words("None.")
    yield section("The most confident mistakes", read, quotes(mistakes))


def _draw_accuracies(found: Mapping) -> str:
    methods = {"this model": found["accuracy"]}
    if found["bag_of_words"]:
        methods["bag of words"] = found["bag_of_words"]["accuracy"]
    values, lows, highs = ([one[part] for one in methods.values()] for part in ("value", "low", "high"))
    constant = found["most_frequent_class"]
    figure = draw_bars(list(methods), values, lows, highs, references={"the most frequent class": constant},
                       xlabel="accuracy, with its 95% interval", number="{:.3f}", width=SIZE[0])  # fmt: skip
    said = ", ".join(f"{name} {interval(one)}" for name, one in methods.items())
    return picture(figure, f"Accuracy as bars: {said}; always giving the most frequent class {constant:.3f}.")


def _confusions(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    rows = facts.confusions(classes, counts)
    if len(classes) > facts.LARGEST_TABLE:
        return table(rows, "The most frequent confusions; metrics.json holds all of them.")
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    return table(rows, "Numbers of texts; the deeper a cell, the larger its share of the row.", shares)


def _calibration(found: Mapping) -> Iterator[str]:
    bins = found.get("reliability")
    yield words(f"Expected calibration error: {found['calibration_error']:.3f}; 0 is honest.")
    if not bins:
        yield words("The folder does not hold the bins behind it: it was written by an earlier version.")
        return
    x, y = [one["confidence"] for one in bins], [one["accuracy"] for one in bins]
    ends = [min(x), max(x)] if len(x) > 1 else [min(x) - 0.05, min(1.0, max(x) + 0.05)]
    figure = draw_curves({"honest": (ends, ends)}, {"this model": (x, y)}, kinds=None,
                         xlabel="probability of the given class", ylabel="share that is right", size=SIZE)  # fmt: skip
    said = "; ".join(f"{one['confidence']:.2f} claimed, {one['accuracy']:.2f} right, {one['texts']} texts"
                     for one in bins)  # fmt: skip
    yield picture(figure, f"Share of right answers against the claimed probability, by bin: {said}.",
                  "On the line, a claim of 0.8 is right in 8 of 10 texts; below it the model is too sure.")  # fmt: skip
    rows = [[f"{one['confidence']:.2f}", f"{_share_right(one):.2f}", f"{one['texts']:,}"] for one in bins]
    yield table([["claimed, in the mean", "right, with its 95% interval", "texts"], *rows],
                "The points of the figure, from left to right: of few texts a point can lie anywhere.")  # fmt: skip


def _share_right(one: Mapping) -> Interval:
    return proportion_interval(round(one["accuracy"] * one["texts"]), one["texts"])


def _of_writer(metrics: Mapping) -> Iterator[str]:
    perplexity = math.exp(min(metrics["test"]["test_loss"], 700))
    yield section(
        f"On {metrics['sizes']['to test']:,} prompts that it has not seen",
        table(facts.losses(metrics)),
        words(f"Perplexity on the test's answers: {perplexity:,.1f}.", facts.short_answers(metrics)),
        words("These losses are of one run: they carry no interval."),
    )
    names = ("instruction", "input", "expected")
    samples = [
        ("; ".join(f"{name}: {facts.cut(one[name])}" for name in names if one[name]), facts.cut(one["written"], QUOTED))
        for one in metrics["test"]["samples"]
    ]
    yield section(f"What it writes (temperature {TEMPERATURE})", quotes(samples))


def _use(folder: Path, metrics: Mapping) -> str:
    asked = "a moving , funny and beautiful film"
    given = f"predict([{asked!r}])"
    if metrics["kind"] != CLASSIFICATION:
        asked = metrics["test"]["samples"][0]["instruction"]
        given = f"write([Instruction({asked!r})])"
    imports = "" if metrics["kind"] == CLASSIFICATION else "from course_lib.finetuning import Instruction\n"
    where = shlex.quote(str(folder))
    shell = f"course predict {where} {shlex.quote(asked)}\ncourse export {where} EXPORTED"
    python = f"{imports}from course_lib.runs import load_tuned\n\nprint(load_tuned({str(folder)!r}).{given})"
    out = "The second line writes a folder that transformers opens, and in its README.md how."
    if metrics["strategy"]["kind"] == "adapter":
        shell, out = shell.splitlines()[0], "Adapter layers do not open in transformers or peft."
    return section("Use it", code(shell), words(out), words("In Python:"), code(python))
