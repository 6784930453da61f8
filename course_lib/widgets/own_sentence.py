"""Explorer: a sentence of the learner's own, judged by every model that was taught from few labels."""

from collections.abc import Mapping

import ipywidgets as widgets
from matplotlib.figure import Figure

from course_lib.plots import draw_bars
from course_lib.runs.teaching import Taught
from course_lib.widgets.binder import Explorer, bind


def compute_opinions(taught: Mapping[str, Taught], text: str, labels: int, sample: int) -> dict[str, float]:
    """{model: how probable it holds that the text is positive}. sample: counted from 1.

    Raises ValueError for an empty text, or a sample that was not taught.
    """
    text = " ".join(text.split())
    return {name: one.positive(text, labels, sample - 1) for name, one in taught.items()}


def draw_opinions(opinions: Mapping[str, float]) -> Figure:
    """A bar for each model, on a scale from 0 to 100%, with even odds marked."""
    return draw_bars(
        list(opinions),
        [100 * share for share in opinions.values()],
        references={"undecided": 50},
        xlabel="probability that the sentence is positive, %",
        number="{:.0f}%",
        upto=100,
    )


def describe_opinions(opinions: Mapping[str, float]) -> str:
    """The picture in words."""
    return "Probability that the sentence is positive: " + ", ".join(
        f"{name} {share:.0%}" for name, share in opinions.items()
    )


def sentence_explorer(taught: Mapping[str, Taught], text: str, *, labels: int = 100) -> Explorer:
    """A text area that begins with `text`, how many labels the models learned from, and which sample of so many.

    Raises ValueError without a model, or for a number of labels that was not taught.
    """
    if not taught:
        raise ValueError("taught is empty: give at least one model, {name: what teach gave}")
    keys = next(iter(taught.values())).fitted
    counts = sorted({count for count, _ in keys})
    if labels not in counts:
        raise ValueError(f"labels is {labels}: choose one of {counts}")
    return bind(
        lambda text, labels, sample: compute_opinions(taught, text, labels, sample),
        draw_opinions,
        describe=describe_opinions,
        text=widgets.Textarea(
            value=text, description="sentence", rows=2, continuous_update=False, layout=widgets.Layout(width="98%"),
            tooltip="your own sentence about a film; Tab leads on, and the models read it",
        ),
        ask=widgets.Button(description="Ask", tooltip="have all models read the sentence"),
        labels=widgets.SelectionSlider(
            options=counts, value=labels, description="labels", tooltip="how many labelled sentences they learned from"
        ),
        sample=widgets.IntSlider(
            value=1, min=1, max=1 + max(sample for _, sample in keys), description="sample",
            tooltip="which sample of so many labelled sentences they learned from",
        ),
    )  # fmt: skip
