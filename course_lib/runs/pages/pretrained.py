"""The page of a pre-training: its curve from record.jsonl, and what its model writes, or fills in."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from course_lib.evaluation import mean_interval, uniform_loss
from course_lib.generation import complete, fill_in
from course_lib.model import Decoder, LanguageModel
from course_lib.plots import draw_curves
from course_lib.pretrained import load_model
from course_lib.records import Record
from course_lib.runs.finetuning.tuned import TEMPERATURE, TOKENIZER, TOP_P
from course_lib.runs.pages.elements import SIZE, code, picture, quotes, section, table, words
from course_lib.runs.pages.parts import SILENT, files, hashes, machine
from course_lib.runtime import seeded
from course_lib.tokenizer import Tokenizer, load_tokenizer

BEGINNINGS = ("", "this film", "the worst")  # of what a decoder writes on
GAP = "this is one of the [MASK] films i have ever seen."
APART = ("command", "date", "commit", "machine", "tokenizer_sha256", "corpus_sha256", "begins_with_sha256", "config")


@dataclass(frozen=True)
class _Run:
    """A finished pre-training, as its folder holds it."""

    folder: Path

    @cached_property
    def record(self) -> Record:
        return Record(self.folder / "record.jsonl")

    @cached_property
    def sittings(self) -> list[dict]:
        return self.record.provenance()

    @cached_property
    def about(self) -> Mapping:
        return self.sittings[0] if self.sittings else {}

    @cached_property
    def held_out(self) -> list[tuple[int, float]]:
        return self.record.values("held_out")

    @cached_property
    def best(self) -> tuple[int, float]:
        return min(self.held_out, key=lambda pair: pair[1])

    @cached_property
    def model(self) -> LanguageModel:
        return load_model(self.folder / "model")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder / "model" / TOKENIZER)

    @property
    def steps(self) -> int:
        return max(step for step, _ in self.held_out)

    @property
    def tokens_per_step(self) -> int | None:
        sizes = [self.about.get(name) for name in ("row_length", "batch_size", "accumulate")]
        return None if None in sizes else math.prod(sizes)


def pretrained_sections(folder: Path) -> tuple[str, list[str]]:
    """Title and sections. Raises FileNotFoundError or ValueError where a file of the run is missing or damaged."""
    run = _Run(folder)
    kind = "decoder" if isinstance(run.model, Decoder) else type(run.model).__name__.lower()
    title = f"{kind} of {run.model.n_parameters():,} parameters, pre-trained ({run.about.get('objective', SILENT)})"
    shown = [_settings(run), _data(run), _losses(run), *_probe(run), _writes(run), files(folder), _use(run)]
    return title[:1].upper() + title[1:], shown


def _settings(run: _Run) -> str:
    about = run.about
    size = [[name.replace("_", " "), str(value)] for name, value in vars(run.model.config).items()]
    settings = [[name.replace("_", " "), str(value)] for name, value in about.items() if name not in APART]
    rows = [["", ""],
            ["dates", ", ".join(dict.fromkeys(one["date"] for one in run.sittings if "date" in one)) or SILENT],
            ["commit", about.get("commit", SILENT)],
            ["machine", machine(about.get("machine", {}))]]  # fmt: skip
    times = f"In {len(run.sittings)} sitting{'s' * (len(run.sittings) != 1)}."
    begun = code(about["command"]) if "command" in about else words("The folder does not say with which command.")
    return section("What was run", begun, words(times), table(rows + settings), table([["model", ""], *size]))


def _data(run: _Run) -> str:
    about = run.about
    text = f"sha256 of the text: {hashes(about.get('corpus_sha256'))}."
    tokens = f"sha256 of the tokenizer: {about.get('tokenizer_sha256', SILENT)}."
    first = about.get("begins_with_sha256")
    begun = f"It began with a model whose weights have sha256 {first}." if first else ""
    read = f"{run.steps:,} steps"
    if run.tokens_per_step:
        read += f" of {run.tokens_per_step:,} tokens: {run.steps * run.tokens_per_step:,} read in all"
    held = about.get("held_out_batches")
    out = f"The held-out loss is measured on {held} batches of rows at most, of documents that are not trained on"
    where = f"{out} (or, of a text without further documents, on its last twentieth)." if held else ""
    return section("The data and its split", words(text, tokens, begun), words(f"{read}.", where))


def _losses(run: _Run) -> str:
    (_, before), (step, lowest) = run.held_out[0], run.best
    guess = uniform_loss(run.tokenizer.vocabulary)
    rows = [["held-out loss, nats a target", ""],
            ["before the first step", f"{before:.3f}"],
            [f"at its best, step {step:,}", f"{lowest:.3f}"],
            ["perplexity then", f"{math.exp(min(lowest, 700)):,.1f}"],
            ["a model that knows nothing", f"{guess:.3f}"]]  # fmt: skip
    curves = {"training": _columns(_all(run, "loss"))} | {"held out": _columns(run.held_out)}
    figure = draw_curves({name: curve for name, curve in curves.items() if curve}, {"held out": curves["held out"]},
                         references={"knows nothing": guess}, xlabel="step", ylabel="loss (nats a target)",
                         kinds=None, size=SIZE)  # fmt: skip
    alt = f"Training and held-out loss by step. Held out: {before:.3f} at first, {lowest:.3f} at step {step:,}."
    once = "One run with one seed: these losses carry no interval."
    rates = _columns(_all(run, "rate"))
    more = ""
    if rates:
        top = max(rates[1])
        said = f"Learning rate by step, at most {top:.3g}."
        more = picture(draw_curves({"rate": rates}, xlabel="step", ylabel="learning rate", size=(SIZE[0], 2.6)), said)
    return section("What it learned", table(rows), words(once), picture(figure, alt), more)


def _probe(run: _Run) -> Iterator[str]:
    """What a frozen probe on sentiment found before and after, where the run has asked for it."""
    found: dict[tuple[int, int], list[float]] = {}
    for row in run.record.rows():
        if row["metric"].startswith("probe_"):
            found.setdefault((int(row["metric"].removeprefix("probe_")), row["step"]), []).append(row["value"])
    if not found:
        yield section("What it has learned of sentiment", words("The run did not ask a probe: see `course finetune`."))
        return
    rows = [
        [f"{labels:,} labels", f"{step:,}", f"{mean_interval(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"]
        for (labels, step), values in sorted(found.items())
    ]
    note = "Accuracy of a probe on frozen features, mean over samples of labels, with its 95% interval."
    yield section("What it has learned of sentiment", table([["", "step", "accuracy"], *rows], note))


def _writes(run: _Run) -> str:
    if isinstance(run.model, Decoder):
        room = run.model.config.max_len
        how = {"temperature": TEMPERATURE, "top_p": TOP_P}
        written = [
            complete(run.model, run.tokenizer, text, max_new_tokens=min(40, room // 2), generator=seeded(0, n), **how)
            for n, text in enumerate(BEGINNINGS)
        ]
        pairs = [(f"behind {text!r}" if text else "by itself", more) for text, more in
                 zip(BEGINNINGS, written, strict=True)]  # fmt: skip
        return section(f"What it writes (temperature {TEMPERATURE}, nucleus {TOP_P}, seed 0)", quotes(pairs))
    if run.about.get("objective") != "masked":
        return section("What it writes", words("A model of this kind does not write by itself."))
    rows = [["token", "probability"], *([token, f"{share:.3f}"] for token, share in _filled(run))]
    return section("What it fills in", words(GAP), table(rows))


def _filled(run: _Run) -> list[tuple[str, float]]:
    return [(token.strip(), share) for token, share in fill_in(run.model, run.tokenizer, GAP)[0]]


def _use(run: _Run) -> str:
    folder = run.folder / "model"
    where = shlex.quote(str(run.folder))
    base = f"course finetune --source imdb --labels 100 --base {where} --out TUNED"
    auto = "AutoModelForCausalLM" if isinstance(run.model, Decoder) else "AutoModelForMaskedLM"
    ours = f"from course_lib.pretrained import load_model\n\nmodel = load_model({str(folder)!r})"
    theirs = (
        f"from transformers import {auto}, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r}, local_files_only=True)\n"
        f"model = {auto}.from_pretrained({str(folder)!r}, local_files_only=True)"
    )
    return section("Use it", words("As the base of a classifier:"), code(base), words("In Python:"), code(ours),
                   words("In transformers:"), code(theirs))  # fmt: skip


def _all(run: _Run, metric: str) -> list[tuple[int, float]]:
    return sorted((row["step"], row["value"]) for row in run.record.rows() if row["metric"] == metric)


def _columns(pairs: list[tuple[int, float]]) -> tuple[list[int], list[float]] | None:
    return ([step for step, _ in pairs], [value for _, value in pairs]) if pairs else None
