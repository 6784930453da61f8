"""One text, every objective: what the model reads, what it must predict, who may attend to whom, how much is asked."""

from collections.abc import Sequence
from dataclasses import replace

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from course_lib import plots
from course_lib.data import OBJECTIVES
from course_lib.plots import TokenLayout, Visibility
from course_lib.tokenizer import Tokenizer
from course_lib.widgets.binder import Explorer, bind
from course_lib.widgets.tasks import DRAWS, ObjectiveView, compute_objective, encode

WIDTH = 8.5 * 72  # points
TASKS = ("causal", "masked", "permuted", "span", "infilled")
MEANINGS = {
    "causal": "predict each next token from what came before (GPT)",
    "prefix": "read a prefix both ways, then predict what follows (prefix LM)",
    "masked": "name the tokens that were chosen, hidden or not (BERT)",
    "permuted": "predict some tokens in a random order, here circled (XLNet)",
    "span": "say what each sentinel stands for (T5)",
    "infilled": "write the whole text again, gaps filled (BART)",
}


def draw_objective(view: ObjectiveView) -> Figure:
    """What is read over what is predicted, the matrices below, and how many targets a hundred tokens give."""
    layouts = _layouts(view, WIDTH - 16)
    cell = _cell(view.matrices, WIDTH - 16)
    tokens_high = sum(layout.height for layout in layouts) + 26
    high = 46 + tokens_high + max(matrix.size(cell)[1] for matrix in view.matrices) + 34
    figure = Figure(figsize=(WIDTH / 72, high / 72))
    plots.write(figure, 8, 2, f"{view.objective}: {MEANINGS[view.objective]}")
    asked = f"{view.targets_per_hundred:.0f} targets per hundred tokens of text (mean of {DRAWS} draws)"
    plots.write(figure, 8, 20, asked, bold=False)
    y = 46.0
    for layout in layouts:
        plots.paint_tokens(figure, layout, 8, y)
        y += layout.height
    plots.paint_token_legend(figure, _legend(layouts), 8, y - 4)
    y, x = y + 30, 8.0
    for matrix in view.matrices:
        plots.paint_visibility(figure, matrix, x, y, cell)
        x += matrix.size(cell)[0] + 16
    plots.paint_visibility_legend(figure, view.matrices, 8, high - 26)
    return figure


def describe_objective(view: ObjectiveView) -> str:
    """The picture in words."""
    rows = " ".join(f"{row.label}: {' '.join(t.strip() for t in row.tokens)}." for b in view.blocks for row in b)
    asked = f"{view.targets_per_hundred:.0f} targets per hundred tokens"
    return f"{view.objective}, {MEANINGS[view.objective]}. {asked}. {rows}"


def objective_explorer(text_or_ids: str | Sequence[int] | Tensor, tokenizer: Tokenizer) -> Explorer:
    """Controls for the objective, the share to mask or predict, the mean span and the seed; a text may be edited.

    Raises ValueError for ids outside the vocabulary.
    """
    is_text = isinstance(text_or_ids, str)
    fixed_T = None if is_text else torch.as_tensor(text_or_ids)
    if fixed_T is not None:
        tokenizer.vocabulary.check_ids(fixed_T)

    def compute(text: str = "", **settings: object) -> ObjectiveView:
        return compute_objective(encode(text, tokenizer) if fixed_T is None else fixed_T, tokenizer, **settings)

    return bind(compute, draw_objective, describe=describe_objective, **_controls(text_or_ids if is_text else None))


def five_tasks(text: str, tokenizer: Tokenizer, *, prob: float = 0.25, mean_span: float = 2.0, seed: int = 0) -> Figure:
    """One sentence, five tasks: what each objective made of the first SHOWN tokens of `text`.

    Raises ValueError for a text of fewer than 2 tokens.
    """
    ids_T = encode(text, tokenizer)
    views = [compute_objective(ids_T, tokenizer, task, prob=prob, mean_span=mean_span, seed=seed) for task in TASKS]
    return draw_tasks(views)


def draw_tasks(views: Sequence[ObjectiveView]) -> Figure:
    """Objectives one below the other: tokens on the left, small matrices without names on the right."""
    beside = 186.0
    layouts = [_layouts(view, WIDTH - beside - 40) for view in views]
    small = [[_small(matrix) for matrix in view.matrices] for view in views]
    cells = [min(6.0, (beside - 20) / sum(len(matrix.key_names) for matrix in matrices)) for matrices in small]
    heights = [
        36 + max(sum(layout.height for layout in blocks), *(8 + matrix.size(cell)[1] for matrix in matrices))
        for blocks, matrices, cell in zip(layouts, small, cells, strict=True)
    ]
    figure = Figure(figsize=(WIDTH / 72, (sum(heights) + 58) / 72))
    y = 4.0
    for view, blocks, matrices, cell, high in zip(views, layouts, small, cells, heights, strict=True):
        strip = Rectangle((0, 0), 5, high - 16, facecolor=plots.colour_of(view.objective))
        plots.Canvas(figure, 6, y).add(strip)
        plots.write(figure, 20, y, view.objective, size=12)
        after = 20 + plots.text_width(view.objective, size=12, bold=True) + 12
        plots.write(figure, after, y, MEANINGS[view.objective], bold=False)
        row, x = y + 24, WIDTH - beside
        for layout in blocks:
            plots.paint_tokens(figure, layout, 20, row)
            row += layout.height
        for matrix in matrices:
            plots.paint_visibility(figure, matrix, x, y + 22, cell)
            x += cell * len(matrix.key_names) + 12
        y += high
    plots.paint_token_legend(figure, _legend([layout for blocks in layouts for layout in blocks]), 6, y)
    plots.paint_visibility_legend(figure, [matrix for matrices in small for matrix in matrices], 4, y + 26)
    return figure


def _controls(text: str | None) -> dict[str, widgets.Widget]:
    controls: dict[str, widgets.Widget] = {}
    if text is not None:
        controls["text"] = widgets.Text(
            value=text,
            description="text",
            tooltip="your own sentence; press Enter to see it",
            continuous_update=False,
            layout=widgets.Layout(width="98%"),
        )
    controls["objective"] = widgets.ToggleButtons(
        options=list(OBJECTIVES),
        value="masked",
        description="objective",
        tooltip="what the model is asked to do",
        tooltips=[MEANINGS[name] for name in OBJECTIVES],
        style={"button_width": "6.5em"},
    )
    controls["prob"] = widgets.FloatSlider(
        value=0.15,
        min=0.0,
        max=1.0,
        step=0.05,
        description="share",
        tooltip="share of the tokens that is masked, removed or predicted",
    )
    controls["mean_span"] = widgets.FloatSlider(
        value=3.0,
        min=1.0,
        max=8.0,
        step=0.5,
        description="mean span",
        tooltip="mean length of a removed span in tokens",
    )
    controls["seed"] = widgets.IntSlider(
        value=0, min=0, max=20, description="seed", tooltip="which random draw to show"
    )
    return controls


def _cell(matrices: Sequence[Visibility], width: float) -> float:
    """The side of a cell, at most 15 points, at which the matrices fit beside each other."""
    names = sum(matrix.margins[0] + 20 for matrix in matrices)
    return min(15.0, (width - names) / sum(len(matrix.key_names) for matrix in matrices))


def _small(matrix: Visibility) -> Visibility:
    return replace(matrix, title=matrix.title.split(":")[0], is_target=None, named=False)


def _layouts(view: ObjectiveView, width: float) -> list[TokenLayout]:
    return [plots.lay_out_tokens(block, width, aligned=len(block) > 1) for block in view.blocks]


def _legend(layouts: Sequence[TokenLayout]) -> list[tuple[str, plots.Role]]:
    present = {role for layout in layouts for role in layout.roles}
    return [(role.meaning, role) for name, role in plots.ROLES.items() if name in present]
