"""A sentence with gaps, and what a model would put into them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ipywidgets as widgets
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course_lib import plots
from course_lib.widgets.binder import Explorer, bind

GAP = "[MASK]"
MOST_GAPS, SHOWN = 4, 5
WIDTH, LINE = 8.5 * 72, 20.0  # points
Predict = Callable[[str], Sequence[Sequence[tuple[str, float]]]]


@dataclass(frozen=True)
class FillView:
    """A text with gaps, and for each gap the likeliest tokens with their probabilities, the likeliest first."""

    text: str
    gaps: tuple[tuple[tuple[str, float], ...], ...]


def compute_fill(predict: Predict, text: str) -> FillView:
    """Ask a model for the gaps of `text`. predict(text) gives the likeliest (token, probability) of each [MASK].

    Raises ValueError for a text without a gap, with more than MOST_GAPS, or an answer that does not fit.

    >>> compute_fill(lambda text: [[("good", 0.6), ("bad", 0.3)]], "a [MASK] film").gaps
    ((('good', 0.6), ('bad', 0.3)),)
    """
    text = " ".join(text.split())
    n_gaps = text.count(GAP)
    if n_gaps == 0:
        raise ValueError(f"the text holds no {GAP}: write {GAP}, in capitals, in place of a word, as in: a {GAP} film")
    if n_gaps > MOST_GAPS:
        raise ValueError(f"the text holds {n_gaps} times {GAP}: leave at most {MOST_GAPS}")
    answers = predict(text)
    if len(answers) != n_gaps:
        raise ValueError(f"predict gave {len(answers)} answers for {n_gaps} gaps: give one list of tokens for each")
    return FillView(text, tuple(tuple((str(t), float(p)) for t, p in answer[:SHOWN]) for answer in answers))


def draw_fill(view: FillView) -> Figure:
    """The sentence, and for each gap bars of its likeliest tokens."""
    words = view.text.replace(GAP, f" {GAP} ").split()
    roles = ["hidden" if word == GAP else "context" for word in words]
    layout = plots.lay_out_tokens([plots.TokenRow("", words, roles)], WIDTH - 16)
    columns = min(2, len(view.gaps))
    top, room, high = layout.height + 8, (WIDTH - 16) / 2, 34 + LINE * SHOWN
    figure = Figure(figsize=(WIDTH / 72, (top + high * -(-len(view.gaps) // columns)) / 72))
    plots.paint_tokens(figure, layout, 8, 4)
    for n, gap in enumerate(view.gaps):
        title = "the likeliest tokens" if len(view.gaps) == 1 else f"gap {n + 1}"
        row, column = divmod(n, columns)
        _paint_gap(plots.Canvas(figure, 8 + column * room, top + row * high), title, gap, room)
    return figure


def _paint_gap(canvas: plots.Canvas, title: str, gap: Sequence[tuple[str, float]], room: float) -> None:
    """One gap's tokens, each with a bar for its probability, in `room` points of width."""
    names = [plots.cut(token, room * 0.4) for token, _ in gap]
    left = max((plots.text_width(name) for name in names), default=0.0) + 8
    longest = room - left - 64
    canvas.write(0, 12, title, fontweight="bold")
    for row, (name, (_, probability)) in enumerate(zip(names, gap, strict=True)):
        y = 26 + row * LINE
        canvas.write_all([(left - 6, y + LINE / 2, name)], align=1)
        for wide, role in ((longest, "context"), (longest * probability, "hidden")):
            canvas.add(Rectangle((left, y + 3), wide, LINE - 6, facecolor=plots.ROLES[role].fill))
        canvas.write(left + longest + 6, y + LINE / 2, f"{probability:.1%}", fontsize=9.5)


def describe_fill(view: FillView) -> str:
    """The picture in words."""
    gaps = [", ".join(f"{token.strip()} {probability:.1%}" for token, probability in gap) for gap in view.gaps]
    return f"{view.text} " + " ".join(f"Gap {n}: {gap}." for n, gap in enumerate(gaps, start=1))


def fill_in_box(predict: Predict, text: str) -> Explorer:
    """A box for a sentence that holds [MASK], and the likeliest tokens for each gap. predict: as for `compute_fill`."""
    box = widgets.Text(
        value=text,
        description="sentence",
        tooltip=f"a sentence with {GAP} in place of a word; press Enter to ask the model",
        continuous_update=False,
        layout=widgets.Layout(width="98%"),
    )
    return bind(lambda text: compute_fill(predict, text), draw_fill, describe=describe_fill, text=box)
