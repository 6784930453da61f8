"""The training lab: a small model trained live from sliders, the curves of earlier runs kept for comparison."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import ipywidgets as widgets

from course_lib import plots
from course_lib.data import Packed
from course_lib.layers import TransformerConfig
from course_lib.vocabulary import Vocabulary
from course_lib.widgets.binder import DPI, error_banner
from course_lib.widgets.lab_bench import Bench
from course_lib.widgets.lab_runs import AXES, LabRun, LabSettings, describe_runs, draw_runs

REST = 0.25  # seconds without a drawing behind each; at least
RESTS = 4  # times as long as a drawing takes, so that a busy machine trains rather than draws
BATCH_SIZES = (4, 8, 16, 32, 64)


class TrainingLab(widgets.VBox):
    """Sliders, Start, Stop and Clear over the curves of the last runs of a masked model on packed rows.

    controls: name to widget, as for `sweep`. banner: what went wrong with the last run, empty while all is well.
    status: where it stands. image, words: the curves. bench: what trains. defaults: what the sliders begin with, and
    what `train_now` takes where it is told nothing else. config: the model's dimensions, without dropout.
    Raises ValueError for a model with dropout or too short for the rows, or defaults that no run can be made of.
    """

    def __init__(
        self,
        packed: Packed,
        vocabulary: Vocabulary,
        *,
        defaults: LabSettings | None = None,
        config: TransformerConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.bench = Bench(packed, vocabulary, self._follow, config=config, seed=seed)
        self.defaults = defaults or LabSettings(batch_size=min(32, len(packed.ids_NT)))
        self.bench.experiment(self.defaults)
        self.uniform = math.log(self.bench.config.vocab_size)
        self._drawing, self._draw_after, self._refusal = threading.Lock(), 0.0, ""
        self.banner, self.status, self.words = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.image = widgets.Image(format="png")
        self.image.layout.max_width = "100%"
        self.controls = _sliders(self.defaults, len(packed.ids_NT)) | _buttons()
        self._sliders = {field.name: self.controls[field.name] for field in fields(LabSettings)}
        for slider in self._sliders.values():
            slider.observe(self._say_plan, names="value")
        for name, action in {"start": self.start, "stop": self.stop, "clear": self.clear}.items():
            self.controls[name].on_click(lambda _button, action=action: action())
        self.controls["axis"].observe(lambda _change: self._show(), names="value")
        self._say_plan()
        self._show(words=True)
        buttons = widgets.HBox([self.controls[name] for name in ("start", "stop", "clear")])
        below = [self.status, self.banner, self.controls["axis"], self.image, self.words]
        super().__init__([*self._sliders.values(), buttons, *below])

    @property
    def runs(self) -> list[LabRun]:
        """What was trained, as data: settings, a StepRecord for each step, and how it ended."""
        return self.bench.runs

    def start(self) -> bool:
        """Begin a run with what the sliders say, in a thread; whether one began. While one is training none does."""
        try:
            settings = LabSettings(**{name: slider.value for name, slider in self._sliders.items()})
            has_begun = self.bench.start(settings)
        except Exception as error:  # noqa: BLE001 a callback has no other place to show its error
            self.banner.value = error_banner(error)
            self.status.value = "Nothing was started."
            return False
        if not has_begun:
            self._refusal = " One run at a time: press Stop first, or wait."
            self.status.value += self._refusal
        return has_begun

    def train_now(self, **settings: Any) -> LabRun:
        """A whole run, here and now, with the lab's defaults and these settings instead; the notebook waits for it.

        Raises RuntimeError while another run is training, TypeError for an unknown setting, and whatever the training
        raised: the run's steps so far are kept, and the banner says it too.
        """
        return self.bench.run_now(LabSettings(**{**asdict(self.defaults), **settings}))

    def stop(self) -> None:
        """Ask the run in the thread to end after the step that it is taking. Does not wait for it."""
        self.bench.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no run is training, `timeout` seconds at most; whether that is so."""
        return self.bench.wait(timeout)

    def clear(self) -> None:
        """Stop, and forget all runs."""
        self.stop()
        if not self.wait(10):
            self.status.value = "The last step takes long: press Clear once more."
            return
        self.bench.clear()
        self.banner.value = ""
        self._say_plan()
        self._show(words=True)

    def close(self) -> None:
        """Stop, and take the lab off the page."""
        if hasattr(self, "bench"):  # it has none where it was refused, and is closed all the same
            self.stop()
        super().close()

    def picture(self) -> plots.Picture:
        """The curves as they are now, as a figure that stays in a notebook without a kernel."""
        figure = draw_runs(self.runs, uniform=self.uniform, axis=self.controls["axis"].value)
        return plots.show(figure, alt=describe_runs(self.runs, uniform=self.uniform))

    def _follow(self, run: LabRun) -> None:
        """Show where a run stands: at its beginning and its end, and now and then between them."""
        is_between = bool(run.records) and run.state == "training"
        if is_between and time.monotonic() < self._draw_after:
            return
        if not is_between:
            self.banner.value, self._refusal = error_banner(run.error) if run.error else "", ""
        loss = "" if run.loss is None else f", loss {run.loss:.2f}"
        done = f"Run {run.number}, {run.state}: step {len(run.records)} of {run.settings.steps}{loss}."
        self.status.value = done + self._refusal
        self._show(words=not is_between)  # a screen reader is to hear of beginnings and ends only

    def _show(self, *, words: bool = False) -> None:
        """Draw all runs. words: say them anew too."""
        began = time.monotonic()
        try:
            with self._drawing:  # the thread draws, and so does a click on the axis
                runs = list(self.runs)
                self.image.value = plots.png(
                    draw_runs(runs, uniform=self.uniform, axis=self.controls["axis"].value), DPI
                )
                if words:
                    self.words.value = plots.hidden_words(describe_runs(runs, uniform=self.uniform), live=True)
        except Exception as error:  # noqa: BLE001 neither a thread nor a callback can show it elsewhere
            self.banner.value = error_banner(error)
        now = time.monotonic()
        self._draw_after = now + max(REST, RESTS * (now - began))

    def _say_plan(self, _change: Any = None) -> None:
        """What Start would do, unless a run has the word."""
        if self.bench.is_training:
            return
        steps, size = (self._sliders[name].value for name in ("steps", "batch_size"))
        tokens, length = steps * size * self.bench.row_length, self.bench.row_length
        self.status.value = f"Start trains {steps} steps of {size} rows of {length} tokens: {tokens:,} tokens."


def _sliders(begin: LabSettings, n_rows: int) -> dict[str, widgets.Widget]:
    sizes = sorted({begin.batch_size, *(size for size in BATCH_SIZES if size <= n_rows)})
    exponent = math.log10(begin.peak_rate)

    def slider(kind: Callable[..., Any], value: Any, description: str, tooltip: str, **more: Any) -> widgets.Widget:
        return kind(value=value, description=description, tooltip=tooltip, **more)

    return {
        "peak_rate": slider(
            widgets.FloatLogSlider, begin.peak_rate, "peak rate", "the learning rate behind the warm-up",
            min=min(-5, exponent), max=max(0, exponent), step=0.1, readout_format=".1e",
        ),
        "warmup": slider(
            widgets.IntSlider, begin.warmup, "warm-up", "steps over which the rate rises to its peak",
            min=0, max=max(100, begin.warmup), step=5,
        ),
        "batch_size": slider(widgets.SelectionSlider, begin.batch_size, "batch", "rows per step", options=sizes),
        "mask_prob": slider(
            widgets.FloatSlider, begin.mask_prob, "mask prob.", "share of the tokens that are asked about",
            min=min(0.05, begin.mask_prob), max=max(0.75, begin.mask_prob), step=0.05,
        ),
        "steps": slider(
            widgets.IntSlider, begin.steps, "steps", "how many steps a run takes",
            min=min(20, begin.steps), max=max(600, begin.steps), step=20,
        ),
    }  # fmt: skip


def _buttons() -> dict[str, widgets.Widget]:
    tooltips = {
        "start": "train a new model with these settings",
        "stop": "end the run after the step that it is taking",
        "clear": "forget all runs",
    }
    buttons = {name: widgets.Button(description=name.capitalize(), tooltip=tip) for name, tip in tooltips.items()}
    axis = widgets.ToggleButtons(
        options=list(AXES), description="x axis", tooltip="over what the loss is drawn: tokens read, or steps"
    )
    return buttons | {"axis": axis}
