"""Explorer: a review of the learner's own, judged by several models, with the tokens that each of them went by."""

import html
import math
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from course_lib import plots
from course_lib.evaluation.explaining import Judge, Judged, judge_with, judge_with_bag_of_words
from course_lib.plots.theme import BLUE, GREY, INK, PALE, VERMILLION
from course_lib.widgets.binder import Explorer

__all__ = [
    "Judge",
    "Judged",
    "ReviewExplorer",
    "compute_judged",
    "describe_judged",
    "draw_judged",
    "judge_with",
    "judge_with_bag_of_words",
    "review_explorer",
]

WIDTH, HEAD, TOP = 8.2 * 72, 24.0, 22.0  # points: height of a model's head line, and of the line above all
LEFT, BAR = 146.0, 140.0  # points: where the bars begin, and how long they are
FEW = 3  # tokens that the words for screen readers name


def compute_judged(
    models: Mapping[str, Judge], text: str, say: Callable[[str], None] = lambda _name: None
) -> dict[str, Judged]:
    """What each model makes of a text. models: {name: takes a text, gives Judged or (positive, tokens, values)}. say:
    called with each name before its turn.

    Raises ValueError for an empty text, and where a model fails, with its name.

    >>> compute_judged({"optimist": lambda text: Judged(0.9)}, "a bad film")
    {'optimist': Judged(positive=0.9, tokens=(), values=())}
    """
    text = " ".join(text.split())
    if not text:
        raise ValueError("the review is empty: write a sentence or two about a film, then press Judge")
    judged = {}
    for name, judge in models.items():
        say(name)
        try:
            result = judge(text)
            judged[name] = result if isinstance(result, Judged) else Judged(*result)
        except Exception as error:
            raise ValueError(f"{name} cannot judge this text: {error}") from error
    return judged


def draw_judged(judged: Mapping[str, Judged]) -> Figure:
    """For each model its probability as a bar, and below it the tokens with their pull, on one scale for all models.

    Raises ValueError if there is none.
    """
    if not judged:
        raise ValueError("judged is empty: give what at least one model said")
    rows = {name: plots.lay_out_contributions(one.tokens if one.values else (), one.values, WIDTH - 16)
            for name, one in judged.items()}  # fmt: skip
    largest = max((abs(value) for one in judged.values() for value in one.values), default=0.0)
    height = TOP + sum(HEAD + row.height + 10 for row in rows.values())
    figure = Figure(figsize=(WIDTH / 72, (height + plots.CONTRIBUTION_SCALE * (largest > 0)) / 72))
    ticks = [(LEFT + BAR * share, 12, f"{share:.0%}") for share in (0, 0.5, 1)]
    beside = [(LEFT + BAR + 18, 12, "that it is positive"), (LEFT + BAR + 116, 12, "log-odds")]
    plots.Canvas(figure).write_all(ticks, size=9)
    plots.Canvas(figure).write_all(beside, align=0, size=9)
    y = TOP
    for name, row in rows.items():
        _paint_head(plots.Canvas(figure, 0, y), name, judged[name])
        plots.paint_contributions(figure, row, 8, y + HEAD, largest)
        y += HEAD + row.height + 10
    if largest > 0:
        towards = ("pulls towards negative", "towards positive")
        plots.paint_contribution_scale(figure, largest, 8, y, towards, "in log-odds")
    return figure


def _paint_head(canvas: plots.Canvas, name: str, one: Judged) -> None:
    """A model's name, its probability as a bar with even odds marked, and what its tokens sum to."""
    is_positive, middle = one.positive >= 0.5, HEAD / 2
    canvas.write(8, middle, plots.cut(name, LEFT - 36), fontweight="bold")
    canvas.add(Rectangle((LEFT, 4), BAR, HEAD - 8, facecolor=PALE, edgecolor=GREY, linewidth=0.8))
    canvas.add(Rectangle((LEFT, 4), BAR * one.positive, HEAD - 8, facecolor=BLUE if is_positive else VERMILLION))
    canvas.add(Line2D([LEFT + BAR / 2] * 2, [1, HEAD - 1], color=INK, linewidth=1.3))
    share = one.positive if is_positive else 1 - one.positive
    said = f"{share:.1%} {'positive' if is_positive else 'negative'}"
    places = [(LEFT + BAR + 10, middle, said), (LEFT + BAR + 116, middle, _pull(one))]
    canvas.write_all(places, align=0, size=10)


def _pull(one: Judged) -> str:
    """From which log-odds the tokens lead where: the text's less what they sum to is what the model starts from."""
    if not one.values:
        return "it does not say why"
    pull = sum(one.values)
    if not 0 < one.positive < 1:
        return f"tokens {_signed(pull)}"
    return f"starts at {_signed(math.log(one.positive / (1 - one.positive)) - pull)}, tokens {_signed(pull)}"


def _signed(number: float) -> str:
    return f"{round(number, 2) + 0.0:+.2f}".replace("-", "−")


def describe_judged(judged: Mapping[str, Judged]) -> str:
    """The picture in words."""
    said = (f"{name}: {one.positive:.1%} positive, {_pull(one)}{_strongest(one)}." for name, one in judged.items())
    return " ".join(said)


def _strongest(one: Judged) -> str:
    ranked = sorted(zip(one.values, one.tokens, strict=False), key=lambda pair: -abs(pair[0]))[:FEW]
    return "; most by " + ", ".join(f"{token.strip()} {_signed(value)}" for value, token in ranked) if ranked else ""


class ReviewExplorer(Explorer):
    """A text area, and a button that has its text judged; while that takes, the button is disabled and `status` says
    whose turn it is."""

    def __init__(self, models: Mapping[str, Judge], text: str) -> None:
        if not models:
            raise ValueError("models are empty: give at least one, {name: what judges a text}")
        self.status = widgets.HTML()
        self.area = widgets.Textarea(
            value=text, description="review", rows=4, tooltip="your own review; Tab leads to the button that judges it",
            layout=widgets.Layout(width="98%"),
        )  # fmt: skip
        self.button = widgets.Button(description="Judge", tooltip="have all models judge the review; takes seconds")
        names = list(models)

        def say(name: str) -> None:
            self._say(f"Judging: {name}, model {names.index(name) + 1} of {len(names)} …")

        def judge(text: str = text) -> dict[str, Judged]:
            return compute_judged(models, text, say)

        super().__init__(judge, draw_judged, describe_judged, {"judge": self.button})
        self.area.observe(lambda _change: self._say("The review has changed: press Judge."), names="value")
        self.controls = {"text": self.area, **self.controls}
        self.children = [self.area, self.button, self.status, self.banner, self.image, self.words]

    def redraw(self, _change: Any = None) -> None:
        """Have the text judged, unless that is going on already."""
        if self.button.disabled:
            return
        self.button.disabled, self.button.description = True, "Judging …"
        try:
            super().redraw()
        finally:
            self.button.disabled, self.button.description = False, "Judge"
            self._say("" if self.value is not None else "Nothing was judged.")

    def _say(self, words: str) -> None:
        self.status.value = f'<span role="status" aria-live="polite">{html.escape(words)}</span>'


def review_explorer(models: Mapping[str, Judge], text: str) -> ReviewExplorer:
    """A text area that begins with `text`, a button, and what the models say. models: as for `compute_judged`."""
    return ReviewExplorer(models, text)
