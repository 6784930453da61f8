"""Explorer: what a training step takes on one device and on many, for architectures that do not fit this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import ipywidgets as widgets
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course_lib.architectures import QUERY_AND_VALUE, Architecture
from course_lib.peft import Adapter, BitFit, Full, LoRA, Prefix, Strategy
from course_lib.planner import ENGINES, PRECISIONS, Plan, Seconds
from course_lib.plots import paint_stacks, stack_look, stacks_height
from course_lib.plots.theme import Canvas, in_theme, write
from course_lib.widgets.binder import Explorer, bind
from course_lib.widgets.units import bytes_words, count_words, in_unit, seconds_words

STRATEGIES = {  # the settings of their papers, as chapter 3 counts them
    "full": lambda layout: Full(),
    "LoRA, rank 8": lambda layout: LoRA(rank=8, targets=QUERY_AND_VALUE[layout]),
    "prefix of 16": lambda layout: Prefix(length=16, hidden=None),
    "adapter, 64 wide": lambda layout: Adapter(bottleneck=64),
    "BitFit": lambda layout: BitFit(),
}
CARDS_GIB = (24, 80)  # memory that a device may have
WITHIN = 3.0  # a card's line is drawn where it lies within this many times the longest bar
THIS, REFERENCE = "this plan", "full, 1 device"
RATES = {"flops_per_second": (1e9, 1e16), "bytes_per_second": (1e6, 1e13)}  # what the sliders reach
WIDE, SMALL = 8.6 * 72, 9.5  # points: of the picture, and of the letters of its table
LINE = 18.0  # of the table


def parts_of(plan: Plan) -> dict[str, float]:
    """Bytes on each device, by what they are for.

    >>> from course_lib.architectures import architecture
    >>> parts_of(Plan(architecture("GPT-2"), Full(), "fp32", batch_size=1, length=1024))["gradients"] == 4 * 124_439_808
    True
    """
    memory = plan.memory()
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser state": memory.optimizer,
        "kept for backward": memory.activations,
        "gathered weights": plan.gathered(),
    }


@dataclass(frozen=True)
class PlanView:
    """A plan beside full fine-tuning on one device without checkpointing: same model, number format and batch.

    architecture, strategy: their names. wanted: the length that was asked for, which the model may not have room for.
    """

    architecture: str
    strategy: str
    wanted: int
    plan: Plan
    reference: Plan
    flops_per_second: float
    bytes_per_second: float

    @cached_property
    def rows(self) -> dict[str, dict[str, float]]:
        """Bytes on a device, of the plan and of the reference."""
        return {THIS: parts_of(self.plan), REFERENCE: parts_of(self.reference)}

    @property
    def total(self) -> float:
        """Bytes on each device."""
        return sum(self.rows[THIS].values())

    @cached_property
    def seconds(self) -> Seconds:
        """Of a step."""
        return self.plan.seconds_per_step(self.flops_per_second, self.bytes_per_second)

    @property
    def tokens_per_second(self) -> tuple[float, float]:
        """Of all devices: where nothing is sent while something is computed, and where all of it is."""
        tokens = self.plan.tokens_per_step
        return tokens / self.seconds.total, tokens / self.seconds.overlapped


class PlanBench:
    """Architectures by name, and what their training takes.

    Raises ValueError without one.
    """

    def __init__(self, architectures: Mapping[str, Architecture]) -> None:
        if not architectures:
            raise ValueError("architectures are empty: give some, such as course_lib.architectures.ARCHITECTURES")
        self.architectures = dict(architectures)

    @property
    def first(self) -> str:
        """The first architecture that has biases, which BitFit needs; where none has, the first."""
        return next(
            (name for name, a in self.architectures.items() if a.layout != "llama"), next(iter(self.architectures))
        )

    @property
    def strategies(self) -> list[str]:
        """Those that some architecture can have: BitFit is left out where none has biases."""
        return [name for name in STRATEGIES if name != "BitFit" or self.architectures[self.first].layout != "llama"]

    def compute(
        self,
        architecture: str,
        strategy: str = "full",
        precision: str = "fp32",
        engine: str = "ddp",
        batch_size: int = 8,
        length: int = 256,
        devices: int = 1,
        accumulate: int = 1,
        checkpointing: bool = False,
        tera_flops: float = 1.0,
        giga_bytes: float = 1.0,
    ) -> PlanView:
        """length: shortened to what the model has room for, behind a prefix where there is one. tera_flops: 10^12
        floating-point operations that a device does in a second; giga_bytes: 10^9 bytes that it sends.

        Raises ValueError for a name that is not there, and what `Plan` raises, such as for BitFit without biases.
        """
        for what, name, known in (
            ("architecture", architecture, self.architectures),
            ("strategy", strategy, STRATEGIES),
        ):
            if name not in known:
                raise ValueError(f"{what} {name!r} is not there: choose one of {', '.join(known)}")
        model = self.architectures[architecture]
        made: Strategy = STRATEGIES[strategy](model.layout)
        room = model.max_len - (made.length if isinstance(made, Prefix) else 0)
        batch = (batch_size, max(1, min(length, room)))
        plan = Plan(model, made, precision, *batch, devices, engine, checkpointing, accumulate)
        return PlanView(
            architecture,
            strategy,
            length,
            plan,
            _reference(model, precision, *batch),
            1e12 * tera_flops,
            1e9 * giga_bytes,
        )


@lru_cache(maxsize=64)  # most controls leave it as it is
def _reference(model: Architecture, precision: str, batch_size: int, length: int) -> Plan:
    return Plan(model, Full(), precision, batch_size, length)


@in_theme
def draw_plan(view: PlanView) -> Figure:
    """Memory on one device as stacked bars, beside full fine-tuning on one device; below, both in numbers, and the
    arithmetic, the traffic and the time of a step. What kernels and the allocator take comes on top of the memory."""
    most = max(sum(parts.values()) for parts in view.rows.values())
    unit, name = in_unit(most)
    rows = {row: {part: size / unit for part, size in parts.items()} for row, parts in view.rows.items()}
    cards = {f"{gib} GiB": gib * 2**30 / unit for gib in CARDS_GIB if gib * 2**30 <= WITHIN * most}
    xlabel = f"memory on one device, {name}"
    bars = stacks_height(rows, cards, xlabel)
    figure = Figure(figsize=(WIDE / 72, (46 + 16 * len(CARDS_GIB) + bars - 16 * len(cards) + 172) / 72))
    top = 46 + 16.0 * (len(CARDS_GIB) - len(cards))  # so that the bars stand in one place
    write(figure, 8, 4, _title(view))
    write(figure, 8, 22, _length(view), bold=view.wanted != view.plan.length)
    paint_stacks(
        figure, rows, 0, top, WIDE - 8, xlabel=xlabel, references=cards, number=lambda size: bytes_words(size * unit)
    )
    _paint_table(Canvas(figure, 8, top + bars + 14), view)
    return figure


def _title(view: PlanView) -> str:
    plan = view.plan
    devices = "1 device" if plan.devices == 1 else f"{plan.devices:,} devices, {plan.engine.upper()}"
    checkpointed = ", checkpointed" if plan.checkpointing else ""
    return f"{view.architecture}, {view.strategy}, {plan.precision}, {devices}{checkpointed}"


def _length(view: PlanView) -> str:
    plan = view.plan
    batch = f"{plan.batch_size:,} x {plan.length:,} tokens on a device at a time"
    if view.wanted == plan.length:
        return batch
    behind = f", {plan.adapted.prefix} of them the prefix's" if plan.adapted.prefix else ""
    return f"{batch}: the model has {plan.architecture.max_len:,} positions{behind}"


def _paint_table(canvas: Canvas, view: PlanView) -> None:
    """The legend, with both rows in numbers; beside it, what a step takes."""
    names = [*view.rows[THIS], "fits at best into"]
    for n in range(len(names) - 1):
        canvas.add(Rectangle((0, LINE * (n + 1) - 6), 22, 12, **stack_look(n)))
    left, right = [(30.0, LINE * (n + 1), name) for n, name in enumerate(names)], []
    for x, (row, parts) in zip((210.0, 300.0), view.rows.items(), strict=True):
        words = [row, *map(bytes_words, parts.values()), _fits(sum(parts.values()))]
        right += [(x, LINE * n, cell) for n, cell in enumerate(words)]
    for n, (what, words) in enumerate(_numbers(view).items()):
        left += [(326.0, LINE * n, what), (436.0, LINE * n, words)]
    canvas.write_all(left, align=0, size=SMALL)
    canvas.write_all(right, align=1, size=SMALL)


def _fits(size: float) -> str:
    card = next((gib for gib in CARDS_GIB if size <= gib * 2**30), None)
    return f"{card} GiB" if card else f"not {CARDS_GIB[-1]} GiB"


def _numbers(view: PlanView) -> dict[str, str]:
    plan, seconds, sent = view.plan, view.seconds, view.plan.bytes_sent_per_step()
    n_trained = plan.adapted.n_trained
    slow, quick = map(count_words, view.tokens_per_second)
    return {
        "trained": f"{count_words(n_trained)} of {count_words(n_trained + plan.adapted.n_frozen)} parameters",
        "arithmetic": f"{count_words(plan.flops_per_token().total)}FLOP per token",
        "a step": f"{count_words(plan.tokens_per_step)} tokens of all devices",
        "computing": f"{seconds_words(seconds.computing)} a step",
        "sending": f"{bytes_words(sent)}, {seconds_words(seconds.sending)} a step" if sent else "nothing",
        "one after the other": f"{seconds_words(seconds.total)}, {slow} tokens/s",
        "at the same time": f"{seconds_words(seconds.overlapped)}, {quick} tokens/s",
    }


def describe_plan(view: PlanView) -> str:
    """The picture in words."""
    rows = [
        f"{row}: {', '.join(f'{part} {bytes_words(size)}' for part, size in parts.items() if size)}, in all "
        f"{bytes_words(sum(parts.values()))}"
        for row, parts in view.rows.items()
    ]
    numbers = ". ".join(f"{what.capitalize()}: {words}" for what, words in _numbers(view).items())
    return (
        f"{_title(view)}; {_length(view)}. Memory on one device, {'; '.join(rows)}. This plan fits at best into: "
        f"{_fits(view.total)}. {numbers}."
    )


def planner_explorer(
    architectures: Mapping[str, Architecture], *, flops_per_second: float, bytes_per_second: float
) -> Explorer:
    """Controls for everything in a plan. flops_per_second, bytes_per_second: where the sliders of the rates begin, such
    as what was measured on this machine.

    It begins with the first architecture that has biases; BitFit on one without shows the planner's refusal, and is
    left out of the list where no architecture has any. A length that a model has no room for is shortened, which the
    picture says. Raises ValueError for a rate that its slider does not reach.
    """
    for name, rate in {"flops_per_second": flops_per_second, "bytes_per_second": bytes_per_second}.items():
        low, high = RATES[name]
        if not low <= rate <= high:
            raise ValueError(f"{name} is {rate:g}: give one from {low:g} to {high:g}")
    bench = PlanBench(architectures)
    longest = max(a.max_len for a in bench.architectures.values())
    return bind(
        bench.compute,
        draw_plan,
        describe=describe_plan,
        architecture=_list("model", list(bench.architectures), bench.first, "the architecture that is trained"),
        strategy=_list("strategy", bench.strategies, "full", "what of it is trained"),
        precision=_list("precision", list(PRECISIONS), "fp32", "the number formats of weights and products"),
        engine=_list("engine", list(ENGINES), "ddp", "ddp: each device holds everything; fsdp: they divide it"),
        batch_size=_powers("batch size", 512, 8, "rows of one micro-batch on one device"),
        length=_powers("length", longest, min(256, longest), "tokens of a row", lowest=min(16, longest)),
        devices=_powers("devices", 1024, 1, "how many train together, each with data of its own"),
        accumulate=_powers("accumulate", 128, 1, "micro-batches of a step"),
        checkpointing=widgets.Checkbox(
            False, description="checkpointing", tooltip="keep each block's input alone, and compute the rest again"
        ),
        tera_flops=_rate("TFLOP/s", flops_per_second / 1e12, (-3, 4), "what a device reaches on these matrix products"),
        giga_bytes=_rate("GB/s", bytes_per_second / 1e9, (-3, 4), "what a device sends to others"),
    )


LOOK = {"layout": widgets.Layout(width="430px", max_width="100%"), "style": {"description_width": "90px"}}


def _list(description: str, options: list[str], value: str, tooltip: str) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, value=value, description=description, tooltip=tooltip, **LOOK)


def _powers(description: str, highest: int, value: int, tooltip: str, lowest: int = 1) -> widgets.SelectionSlider:
    """Powers of two, from the one at or below `lowest` up; it begins with the one at or below `value`."""
    lowest, value = (2 ** (count.bit_length() - 1) for count in (lowest, value))
    options = [(f"{2**n:,}", 2**n) for n in range(highest.bit_length()) if lowest <= 2**n]
    return widgets.SelectionSlider(options=options, value=value, description=description, tooltip=tooltip, **LOOK)


def _rate(description: str, value: float, reach: tuple[int, int], tooltip: str) -> widgets.FloatLogSlider:
    return widgets.FloatLogSlider(
        value=value, min=reach[0], max=reach[1], step=0.05, readout_format=".3g", description=description,
        tooltip=tooltip, **LOOK,
    )  # fmt: skip
