"""Draw the README's pictures with the course's own functions: `python tools/make_pictures.py`.

Nothing is trained here: tokens are masked, records are read, a plan is computed. The same commit gives the same bytes
with the versions of constraints.txt, so a picture that changed in git changed for a reason.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from course_lib import plots, runs
from course_lib.architectures import ARCHITECTURES
from course_lib.data import course_tokenizer, pad, reviews_of
from course_lib.evaluation import mean_interval
from course_lib.files import write_atomically
from course_lib.plots.theme import BLUE, GREY, axes_at, in_theme, write
from course_lib.records import Record
from course_lib.widgets.masking import compute_masking, draw_masking
from course_lib.widgets.objectives import five_tasks
from course_lib.widgets.planning import PlanBench, draw_plan

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
SENTENCE = "The film starts slowly, but the last half hour is worth every minute of it."
SMALL = (5.6, 3.5)  # inches of a chapter's picture
PROBABILITIES = [n / 20 for n in range(1, 17)]  # where the animated slider stops
FRAME = 260  # milliseconds


def main() -> None:
    pictures: dict[str, Callable[[], bytes]] = {
        "00_start.png": lambda: png(hundred_labels()),
        "01_objectives.png": lambda: png(five_tasks(SENTENCE, course_tokenizer())),
        "02_loop.png": lambda: png(reading_pays()),
        "03_strategies.png": lambda: png(five_strategies()),
        "04_fine_tuning.png": lambda: png(label_efficiency()),
        "05_training.png": lambda: png(planned()),
        "06_capstone.png": lambda: png(another_text()),
        "slider.gif": moving_slider,
    }
    for name, draw in pictures.items():
        path = write_atomically(FOLDER / name, draw())
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


# --- a chapter each --------------------------------------------------------------------------------------------------


def hundred_labels() -> Figure:
    """Four ways to classify a sentence from a hundred labels, as recorded: all of each model is trained on."""
    record = Record(runs.RECORDS_FOLDER / "efficiency.jsonl")
    ways = {
        "bag of words": "bag of words",
        "random weights": "scratch",
        "the course's encoder": "encoder",
        "MiniLM": "MiniLM",
    }
    found = [
        mean_interval(
            [100 * value for step, value in record.values("accuracy", name=f"rotten_tomatoes, {name}") if step == 100]
        )
        for name in ways.values()
    ]
    return plots.draw_bars(
        list(ways), [i.value for i in found], [i.low for i in found], [i.high for i in found],
        references={"chance": 50.0}, xlabel="accuracy on sentences from 100 labels, %", number="{:.0f}", width=SMALL[0],
    )  # fmt: skip


def reading_pays() -> Figure:
    """What a simple classifier makes of the features of encoder and decoder while they read."""
    lines = {}
    for name in ("encoder", "decoder"):
        values = Record(runs.RECORDS_FOLDER / f"pretraining_{name}.jsonl").values("probe_500", name=name)
        steps = sorted({step for step, _ in values} - {0})
        millions = [step * runs.RECIPES[name].tokens_per_step / 1e6 for step in steps]
        lines[name] = (millions, [100 * float(np.mean([v for s, v in values if s == step])) for step in steps])
    words = Record(runs.RECORDS_FOLDER / "objectives.jsonl").values("probe_500", name="bag of words")
    return plots.draw_curves(
        lines, references={"bag of words": 100 * float(np.mean([v for _, v in words]))}, log_x=True, size=SMALL,
        xlabel="millions of tokens read", ylabel="accuracy of a probe, %",
    )  # fmt: skip


def five_strategies() -> Figure:
    """Accuracy of five strategies and a baseline against the number of labels."""
    record = Record(runs.RECORDS_FOLDER / "strategies.jsonl")
    lines = {}
    for name in ("full", "lora", "prefix", "adapter", "bitfit", "bag of words"):
        values = record.values("accuracy", name=name)
        labels = sorted({step for step, _ in values})
        lines[name] = (labels, [100 * float(np.mean([v for s, v in values if s == n])) for n in labels])
    return plots.draw_curves(lines, log_x=True, size=SMALL, xlabel="labels", ylabel="accuracy, %")


def label_efficiency() -> Figure:
    """Accuracy on whole reviews against the number of labels, with intervals."""
    record = Record(runs.RECORDS_FOLDER / "efficiency.jsonl")
    lines = {}
    for name in ("bag of words", "scratch", "encoder", "MiniLM"):
        values = record.values("accuracy", name=f"imdb, {name}")
        labels = [n for n in sorted({step for step, _ in values}) if sum(step == n for step, _ in values) > 1]
        spread = [mean_interval([100 * v for step, v in values if step == n]) for n in labels]
        lines[name] = plots.Series(labels, *([getattr(i, end) for i in spread] for end in ("value", "low", "high")))
    return plots.draw_curves(lines, log_x=True, kinds=None, size=SMALL, xlabel="labels", ylabel="accuracy, %")


def planned() -> Figure:
    """The memory of one of eight devices that fine-tune Llama-2-7B."""
    bench = PlanBench({"Llama-2-7B": ARCHITECTURES["Llama-2-7B"]})
    plan = bench.compute(
        "Llama-2-7B", precision="bf16 with fp32 master", batch_size=1, length=2048, devices=8, engine="fsdp",
        checkpointing=True, tera_flops=100.0, giga_bytes=50.0,
    )  # fmt: skip
    return draw_plan(plan)


def another_text() -> Figure:
    """What three ways of reading make of a text of another kind."""
    record = Record(runs.RECORDS_FOLDER / "own_text.jsonl")
    lines = {}
    for name in ("full", "LoRA", "from nothing"):
        values = [(tokens, nats) for tokens, nats in record.values("own_nats", name=name) if tokens]
        lines[name] = tuple(zip(*values, strict=True))
    before = dict(record.values("own_nats", name="full"))[0]
    return plots.draw_curves(
        lines, references={"before": before}, log_x=True, size=SMALL,
        xlabel="tokens read", ylabel="nats per token",
    )  # fmt: skip


# --- the animation ---------------------------------------------------------------------------------------------------


def moving_slider() -> bytes:
    """The mask probability explorer while its slider moves up and back, as a GIF that begins anew."""
    tokenizer = course_tokenizer()
    reviews = [review.text for review in reviews_of("dev", "imdb")[1:65]]
    input_ids_BT = pad(tokenizer.encode_all(reviews), tokenizer.vocabulary, length=128)
    up = [_frame(compute_masking(input_ids_BT, tokenizer, mask_prob=p), p) for p in PROBABILITIES]
    palette = up[len(up) // 2].quantize(48, dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in up]
    frames += frames[-2:0:-1]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=FRAME, loop=0, optimize=True)
    return buffer.getvalue()


def _frame(view: object, value: float) -> Image.Image:
    picture = _opened(draw_masking(view))
    handle = _opened(_slider("mask prob.", value, picture.width / 80))
    frame = Image.new("RGB", (picture.width, handle.height + picture.height), "white")
    frame.paste(handle, (0, 0))
    frame.paste(picture, (0, handle.height))
    return frame


@in_theme
def _slider(name: str, value: float, width: float) -> Figure:
    """A slider as notebooks show one: name, handle, value."""
    figure = Figure(figsize=(width, 0.55))
    write(figure, 20, 12, name, bold=False)
    axes = axes_at(figure, 110, 8, 330, 24)
    axes.set(xlim=(-0.02, 1.02), ylim=(-1, 1))
    axes.set_axis_off()
    axes.plot([0, 1], [0, 0], color=GREY, linewidth=3, alpha=0.5, solid_capstyle="round")
    axes.plot([0, value], [0, 0], color=BLUE, linewidth=3, solid_capstyle="round")
    axes.plot([value], [0], "o", color=BLUE, markersize=13)
    write(figure, 455, 12, f"{value:.2f}", bold=False)
    return figure


def _opened(figure: Figure) -> Image.Image:
    return Image.open(io.BytesIO(plots.png(figure, dpi=80))).convert("RGB")


def png(figure: Figure) -> bytes:
    """A figure as a small PNG."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(plots.png(figure))).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        buffer, "PNG", optimize=True
    )
    return buffer.getvalue()


if __name__ == "__main__":
    main()
