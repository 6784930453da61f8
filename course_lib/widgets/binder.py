"""What every explorer shares: controls bound to a picture, predictions, answers that wait for them, and a sweep."""

import html
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

import ipywidgets as widgets
import traitlets
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from course_lib.plots import hidden_words, png

DPI = 96  # for pictures that are drawn anew at every key press


class Explorer(widgets.VBox):
    """Controls, a banner for errors and a picture.

    controls: name to widget. value: what `compute` gave last, None after an error. image: the picture, empty after an
    error. banner: HTML, empty while all is well. words: what the picture shows, for screen readers.
    """

    def __init__(
        self,
        compute: Callable[..., Any],
        draw: Callable[[Any], Figure],
        describe: Callable[[Any], str],
        controls: dict[str, widgets.Widget],
    ) -> None:
        self.controls = controls
        self.value: Any = None
        self.banner, self.words, self.image = widgets.HTML(), widgets.HTML(), widgets.Image(format="png")
        self.image.layout.max_width = "100%"
        self._compute, self._draw, self._describe = compute, draw, describe
        for control in controls.values():
            if isinstance(control, widgets.Button):
                control.on_click(self.redraw)
            else:
                control.observe(self.redraw, names="value")
        self.redraw()
        super().__init__([*controls.values(), self.banner, self.image, self.words])

    def redraw(self, _change: Any = None) -> None:
        """Compute and draw with what the controls say now; an error shows as a banner in place of the picture."""
        try:
            self.value = None
            values = {name: control.value for name, control in self.controls.items() if hasattr(control, "value")}
            value = self._compute(**values)
            picture, words = png(self._draw(value), DPI), self._describe(value)
        except Exception as error:  # noqa: BLE001 a callback has no other place to show its error
            self.banner.value = error_banner(error)
            self.image.value, self.image.layout.display = b"", "none"  # no old picture beside new settings
            self.words.value = ""
            return
        self.value, self.banner.value = value, ""
        self.image.value, self.image.layout.display = picture, None
        self.words.value = hidden_words(words, live=True)


def bind(
    compute: Callable[..., Any],
    draw: Callable[[Any], Figure],
    *,
    describe: Callable[[Any], str] | None = None,
    **controls: widgets.Widget,
) -> Explorer:
    """Redraw `draw(compute(**values))` whenever a control moves or a button is pressed.

    describe: the picture in words, for readers who cannot see it. Controls are named as `compute` names its arguments.
    Raises ValueError for a control without a description or a tooltip, which it needs to be found without eyes.

    >>> from course_lib.plots import draw_shares
    >>> slider = widgets.FloatSlider(0.2, min=0, max=1, description="share", tooltip="share of hidden tokens")
    >>> box = bind(lambda share: {"context": 1 - share, "hidden": share}, draw_shares, share=slider)
    >>> slider.value = 0.5
    >>> box.value, box.banner.value
    ({'context': 0.5, 'hidden': 0.5}, '')
    """
    for name, control in controls.items():
        if not (getattr(control, "description", "") and getattr(control, "tooltip", "")):
            raise ValueError(f"control {name!r} has no description or no tooltip: give both, for readers without eyes")
    return Explorer(compute, draw, describe or (lambda _value: "A figure, redrawn when a control moves."), controls)


def error_banner(error: BaseException) -> str:
    """HTML that says what went wrong: the message, and folded below it the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = (
        f"{PurePath(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line}" if frames else "unknown"
    )
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "  # whose message says what to do
    return (
        '<div role="alert" style="border-left:4px solid #D55E00;padding:4px 10px;background:#fff3ec;color:#222">'
        f"<b>{html.escape(kind)}</b>{html.escape(str(error))}"
        f"<details><summary>where</summary><pre>{html.escape(where)}</pre></details></div>"
    )


def guess(question: str, options: Sequence[tuple[str, Any] | str]) -> widgets.RadioButtons:
    """A prediction among options, (words, value) or words alone; its `value` is None until the learner has chosen.

    >>> guess("Of a hundred tokens, how many are hidden?", [("about 15", 15), ("about 12", 12)]).value
    """
    return widgets.RadioButtons(
        options=list(options),
        index=None,
        description="My guess",
        tooltip=question,
        layout=widgets.Layout(width="max-content", max_width="100%"),
    )


class NumberGuess(widgets.HBox):
    """A prediction as a number: `value` is None until the learner has typed one."""

    value = traitlets.Float(None, allow_none=True)

    def __init__(self, question: str, low: float, high: float, step: float, unit: str) -> None:
        self.box = widgets.BoundedFloatText(
            value=low, min=low, max=high, step=step, description="My guess", tooltip=question
        )
        self.button = widgets.Button(description="That is my guess", tooltip=f"commit my guess: {question}")
        self.said = widgets.HTML(f"{html.escape(unit)} (from {low:g} to {high:g})")
        self._unit = unit
        self.box.observe(self._commit, names="value")
        self.button.on_click(self._commit)
        super().__init__([self.box, self.button, self.said])

    def _commit(self, _change: Any) -> None:
        self.value = float(self.box.value)
        self.said.value = f'<span role="status">noted: {self.value:g} {html.escape(self._unit)}</span>'


def guess_number(question: str, *, low: float, high: float, step: float = 0.1, unit: str = "") -> NumberGuess:
    """A prediction as a number from `low` to `high`; its `value` is None until the learner has typed or confirmed one.

    Raises ValueError unless low < high.
    """
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}: give low < high")
    return NumberGuess(question, low, high, step, unit)


def compare(guessed: Any, answer: str, result: Any = None, *, near: float | None = None) -> "Answer":
    """The answer to a prediction: folded until there is one, then open, and beside it how good the guess was. It
    follows the guess: it opens where it stands when the learner chooses, also after Run All.

    guessed: a guess's widget, or its value. result: what was measured, to judge the guess by: the option that is right,
    a list of them, or a number. near: a number's distance that still counts as right (default: a tenth of the result).

    >>> print(compare(12, "12.1 are hidden.", 12.1).data)
    **Compare.** You guessed 12, and that is right. 12.1 are hidden.
    """
    return Answer(guessed, answer, result, near)


class Answer:
    """What `compare` gives. `data` is the Markdown that fits the guess of this moment; a notebook shows it, and writes
    it anew in the same place whenever the guess changes."""

    def __init__(self, guessed: Any, answer: str, result: Any = None, near: float | None = None) -> None:
        self.guessed, self.answer, self.result, self.near = guessed, answer, result, near

    @property
    def data(self) -> str:
        value, said = self.guessed, str(self.guessed)
        if isinstance(self.guessed, widgets.Widget):
            value = self.guessed.value
            said = getattr(self.guessed, "label", None) or (f"{value:g}" if isinstance(value, float) else str(value))
        if value is None:
            return f"<details><summary>Guess first, or unfold the answer</summary>\n\n{self.answer}\n\n</details>"
        return f"**Compare.** You guessed {said}{_verdict(value, self.result, self.near)}. {self.answer}"

    def _ipython_display_(self) -> None:
        handle = display(Markdown(self.data), display_id=True)
        if isinstance(self.guessed, widgets.Widget):
            self.guessed.observe(lambda _change: handle.update(Markdown(self.data)), names="value")


def _verdict(value: Any, result: Any, near: float | None) -> str:
    if result is None:
        return ""
    if isinstance(result, (list, tuple, set)):
        return _verdict(value, value if value in result else object(), near)
    is_number = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (value, result))
    if not is_number:
        return ", and that is right" if value == result else ", and it came out otherwise"
    distance = abs(value - result)
    near = abs(result) / 10 if near is None else near
    if distance <= near:
        return ", and that is right"
    side = "too low" if value < result else "too high"
    return f", which is near but {side}" if distance <= 3 * near else f", which is {side}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markdown:
    """A table for a notebook; cells are shown as text.

    Raises ValueError for a row of another length than the header.

    >>> print(table(["objective", "loss"], [["causal", 4.5]]).data)
    | objective | loss |
    |---|---|
    | causal | 4.5 |
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {row} has {len(row)} cells and the header {len(header)}: give one each")
    lines = [header, ["---"] * len(header), *rows]
    written = (["---" if cell == "---" else str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return Markdown(
        "\n".join(
            "|" + "|".join(cells) + "|" if "---" in cells else "| " + " | ".join(cells) + " |" for cells in written
        )
    )


def sweep(box: widgets.Box) -> int:
    """Set every control to its lowest and highest value and back to one between them (a selector to every option, a
    button pressed); the number of settings tried. Each costs a redraw.

    Raises AssertionError, with the control, its value and the banner's words, if an error shows at any of them.
    """
    count = 0
    for name, control in box.controls.items():
        if isinstance(control, widgets.Button):
            control.click()
            count += 1
            _assert_well(box, name, "pressed")
            continue
        before = control.value
        for setting in (*(other for other in _settings(control) if other != before), before):
            control.value = setting
            count += 1
            _assert_well(box, name, setting)
    return count


def _assert_well(box: widgets.Box, name: str, setting: Any) -> None:
    if box.banner.value:
        raise AssertionError(f"{name}={setting!r} shows an error: {box.banner.value}")


def _settings(control: widgets.Widget) -> Iterator[Any]:
    if isinstance(control, (widgets.Dropdown, widgets.ToggleButtons, widgets.RadioButtons, widgets.SelectionSlider)):
        yield from (option[1] if isinstance(option, tuple) else option for option in control.options)
    elif isinstance(control, (widgets.Checkbox, widgets.ToggleButton)):
        yield from (False, True)
    elif hasattr(control, "min") and hasattr(control, "max"):
        is_log = isinstance(control, widgets.FloatLogSlider)
        low, middle, high = (
            control.base**place if is_log else place
            for place in (control.min, (control.min + control.max) / 2, control.max)
        )
        yield from (low, high)
        if control.value in (low, high):  # else it comes back to a value between them
            yield int(middle) if isinstance(control.value, int) else middle
