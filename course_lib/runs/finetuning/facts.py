"""What there is to say of a finished fine-tuning, from its `metrics.json` alone: the sentences and tables that the text
report and the page have in common, and the figures. A table is a list of rows of cells, its head first.
"""

from collections.abc import Mapping, Sequence
from math import log

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from course_lib.evaluation import Interval
from course_lib.plots import draw_curves
from course_lib.runs.finetuning.examples import CLASSIFICATION

Table = list[list[str]]
SHOWN = 200  # characters of a text that a report quotes
LARGEST_TABLE = 10  # classes; of more, a report names the most frequent confusions
CHANCE = "In brackets: 95% intervals, for the chance of which texts are tested, not of which were learned from."


def cut(text: str, length: int = SHOWN) -> str:
    """A text on one line, its end left out where it is long.

    >>> cut("a good film", 7)
    'a good...'
    """
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length].rstrip() + "..."


def title(metrics: Mapping) -> str:
    """What was made of what."""
    purpose = "to follow instructions"
    if metrics["kind"] == CLASSIFICATION:
        purpose = "to tell " + (" from ".join(metrics["classes"]) if len(metrics["classes"]) == 2 else
                                f"{len(metrics['classes'])} classes apart")  # fmt: skip
    return f"{metrics['base']}, fine-tuned by {metrics['strategy']['kind']}, {purpose}"


def split(metrics: Mapping) -> str:
    """How many examples each part has."""
    return ", ".join(f"{size:,} {name}" for name, size in metrics["sizes"].items())


def training(metrics: Mapping) -> list[str]:
    """How much was trained, how, and which epoch was kept."""
    how, best = metrics["training"], metrics["best_epoch"]
    kept = next(row for row in metrics["epochs"] if row["epoch"] == best)
    return [
        f"Trained: {metrics['trained_parameters']:,} of {metrics['parameters']:,} parameters.",
        f"{metrics['epochs'][-1]['epoch']} of {how['epochs']} epochs, in batches of {how['batch_size']} at a rate of "
        f"{how['rate']:g}, in {metrics['seconds']:.0f} s. Kept: epoch {best}, with the lowest held-out loss, "
        f"{kept['held_out']:.3f} (held-out examples chose the epoch, and taught nothing).",
    ]


def scores(metrics: Mapping) -> Table:
    """Of a classifier: beside a bag of words, and always giving the most frequent class."""
    found, simple = metrics["test"], metrics["test"]["bag_of_words"]
    beside = {name: interval(simple[name]) if simple else "no words to count" for name in ("accuracy", "macro_f1")}
    return [
        ["", "this model", "bag of words", "the most frequent class"],
        ["accuracy", interval(found["accuracy"]), beside["accuracy"], f"{found['most_frequent_class']:.3f}"],
        ["macro F1", interval(found["macro_f1"]), beside["macro_f1"], ""],
        ["calibration error (ECE)", f"{found['calibration_error']:.3f}", "", ""],
    ]


def pair(metrics: Mapping) -> str:
    """Which of the two is right where the other is not; empty where there is no bag of words."""
    if not (simple := metrics["test"]["bag_of_words"]):
        return ""
    found = simple["paired"]
    return (
        f"Right where the bag of words is wrong: {found['only_a']}; wrong where it is right: {found['only_b']}. "
        f"Difference of the accuracies: {interval(found['difference'], '+.3f')}, p = {found['p_value']:.2g}."
    )


def confusions(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    """How many texts of a class were given which; of many classes the most frequent confusions alone."""
    if len(classes) > LARGEST_TABLE:
        pairs = [(counts[i][j], i, j) for i in range(len(classes)) for j in range(len(classes)) if i != j]
        pairs = sorted((pair for pair in pairs if pair[0]), key=lambda pair: (-pair[0], pair[1:]))
        rows = [[classes[i], classes[j], str(count)] for count, i, j in pairs[:LARGEST_TABLE]]
        return [["is", "given", "texts"], *rows]
    head = ["is", *(f"given {name}" for name in classes)]
    return [head, *([name, *map(str, row)] for name, row in zip(classes, counts, strict=True))]


def losses(metrics: Mapping) -> Table:
    """Of a writer: before and after."""
    found, rows = metrics["test"], {row["epoch"]: row["held_out"] for row in metrics["epochs"]}
    return [
        ["nats per token of the answers", "before", "after"],
        ["held out", f"{rows[0]:.3f}", f"{rows[metrics['best_epoch']]:.3f}"],
        ["test", f"{found['test_loss_before']:.3f}", f"{found['test_loss']:.3f}"],
    ]


def short_answers(metrics: Mapping) -> str:
    """Of a writer: how many short answers are met word for word."""
    if not (met := metrics["test"]["short_answers"]):
        return "No answer of the test is so short that comparing it word for word would say something."
    return (
        f"Of {met['of']} answers of at most {met['words']} words it gives {interval(met['share'])} word for word "
        "(95% interval in brackets; case aside, the likeliest token each time). Always giving the most frequent: "
        f"{met['most_frequent_answer']:.3f}."
    )


def draw_epochs(metrics: Mapping, size: tuple[float, float] = (7.5, 4.2)) -> Figure:
    """Training and held-out loss by epoch, and which of them was kept. size: inches."""
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
        size=size,
    )
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def interval(found: Mapping, spec: str = ".3f") -> str:
    """A value with its interval, as `asdict` has stored it."""
    return format(Interval(**found), spec)
