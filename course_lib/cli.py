"""The `course` command: arguments in, library calls out. What a command needs is imported when it runs."""

import argparse
import contextlib
import dataclasses
import functools
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from course_lib import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 something failed, 2 it could not be tried.

    Errors that the library raises on purpose, and those of the disk, become one line, not a traceback.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    options.given = given
    try:
        return options.run(options)
    except (ValueError, FileNotFoundError, FloatingPointError, OSError) as error:
        print(f"course {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="course", description="Pre-training and fine-tuning of language models, as a course you run."
    )
    parser.add_argument("--version", action="version", version=f"course {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    lab = commands.add_parser("lab", help="open the chapters in JupyterLab, on your copies under work/")
    lab.add_argument("chapter", nargs="?", metavar="NN", help="the chapter to open, such as 01 (default: the first)")
    lab.add_argument("--reset", metavar="NN", help="start this chapter over; your version is kept as a backup")
    lab.add_argument("--no-browser", action="store_true", help="only print the address")
    lab.add_argument("--port", type=_port, help="default: the first free one from 8888 on")
    lab.set_defaults(run=_lab)

    run = commands.add_parser("run", help="execute the chapters without a browser, and print a table")
    run.add_argument("chapters", nargs="*", metavar="NN", help="which ones (default: all)")
    run.set_defaults(run=_run)

    progress = commands.add_parser("progress", help="which exercises are done, in your copies under work/")
    progress.set_defaults(run=_progress)

    _add_pretrain(commands)
    _add_finetune(commands)
    _add_predict(commands)
    _add_report(commands)
    _add_export(commands)

    record = commands.add_parser("record", help="make a recorded run again, or go on with it where it was stopped")
    record.add_argument("name", metavar="NAME", help="the record, as in data/records/NAME.jsonl")
    record.set_defaults(run=_record)

    doctor = commands.add_parser("doctor", help="check this machine and this installation")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_pretrain(commands: argparse._SubParsersAction) -> None:
    pretrain = commands.add_parser(
        "pretrain", help="pre-train an encoder or a decoder on the packaged reviews, or on your own text"
    )
    pretrain.add_argument(
        "recipe", metavar="RECIPE", help="encoder (masked), decoder (causal), or encoder_longer (masked, with --from)"
    )
    pretrain.add_argument("--out", required=True, metavar="FOLDER", help="where checkpoints, curve and model go")
    pretrain.add_argument("--resume", action="store_true", help="go on with the run in --out where it was stopped")
    pretrain.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")
    pretrain.add_argument("--text", metavar="PATH", help="your own .txt, .csv (column text) or folder of .txt")
    pretrain.add_argument("--from", dest="begin_with", metavar="FOLDER", help="a model to go on training")
    pretrain.add_argument("--tokens", type=_count, metavar="N", help="tokens to read in all, such as 500k or 8M")
    pretrain.add_argument("--rate", type=float, dest="peak_rate", metavar="RATE", help="peak learning rate")
    pretrain.add_argument("--warmup", type=_count, metavar="STEPS", help="default: the recipe's, or a tenth of the run")
    pretrain.add_argument("--batch-size", type=_count, metavar="ROWS", help="rows in a batch")
    pretrain.add_argument("--row-length", type=_count, metavar="TOKENS", help="tokens in a row")
    pretrain.add_argument("--optimizer", help="muon or adamw")
    pretrain.add_argument("--dtype", help="float32, bfloat16 or float16 (default: what a measurement finds to pay)")
    pretrain.add_argument("--width", type=_count, metavar="CHANNELS", help="channels of the model")
    pretrain.add_argument("--layers", type=_count, metavar="N", help="blocks of the model")
    pretrain.add_argument("--dropout", type=float, metavar="SHARE", help="default: none")
    pretrain.add_argument("--seed", type=_count, help="of initialisation, order and corruption (default: 0)")
    pretrain.add_argument("--save-every", type=_count, metavar="STEPS", help="steps between checkpoints")
    pretrain.add_argument("--keep", type=_count, default=2, metavar="N", help="how many of the last checkpoints stay")
    pretrain.add_argument("--ranks", type=_count, metavar="N", help="train on N processes of this machine")
    pretrain.add_argument("--engine", help="how ranks share the model: ddp, each has all of it, or fsdp, each a part")
    pretrain.set_defaults(run=_pretrain)


def _add_finetune(commands: argparse._SubParsersAction) -> None:
    finetune = commands.add_parser(
        "finetune", help="fine-tune a classifier, or a decoder that follows instructions, and judge it"
    )
    finetune.add_argument("--out", required=True, metavar="FOLDER", help="where report, curves and adapter go")
    finetune.add_argument(
        "--data", metavar="PATH", help="your own .csv or .jsonl: text,label or instruction,input,output"
    )
    finetune.add_argument("--source", help="packaged reviews instead: imdb or rotten_tomatoes")
    finetune.add_argument(
        "--labels", type=_count, metavar="N", help="how many of these, half of each kind (default: 100)"
    )
    finetune.add_argument("--tests", type=_count, metavar="N", help="texts to test on, at most (packaged: 500)")
    finetune.add_argument("--base", help="minilm, encoder, decoder, or a folder with a model and its tokenizer.json")
    finetune.add_argument("--strategy", default="lora", help="full, lora, prefix, adapter or bitfit (default: lora)")
    finetune.add_argument("--rank", type=_count, help="of LoRA (default: 8)")
    finetune.add_argument("--rate", type=float, help="peak learning rate")
    finetune.add_argument("--epochs", type=_count, metavar="N", help="default: the more, the fewer the examples")
    finetune.add_argument("--batch-size", type=_count, metavar="N", help="examples in a batch (default: 16)")
    finetune.add_argument("--max-tokens", type=_count, metavar="N", help="how much of a text is read")
    finetune.add_argument("--pooling", help="mean, cls or last, of a classifier (default: mean, of a decoder last)")
    finetune.add_argument("--seed", type=_count, default=0, help="of sample, new parameters and order (default: 0)")
    finetune.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")
    finetune.set_defaults(run=_finetune)


def _add_predict(commands: argparse._SubParsersAction) -> None:
    predict = commands.add_parser("predict", help="let what `course finetune` made classify texts, or write")
    predict.add_argument("folder", metavar="FOLDER", help="what --out named")
    predict.add_argument("texts", nargs="*", metavar="TEXT", help="texts to classify, or instructions")
    predict.add_argument("--file", metavar="PATH", help="a .txt with one a line, or a .csv or .jsonl with a field text")
    predict.add_argument("--input", metavar="TEXT", help="what the instructions are about")
    predict.add_argument("--json", action="store_true", help="one JSON object a line, with all that is known")
    predict.add_argument(
        "--temperature", type=float, help="of writing: 0 is the likeliest token each time (default: 0.7)"
    )
    predict.add_argument("--seed", type=_count, help="of writing (default: 0)")
    predict.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")
    predict.set_defaults(run=_predict)


def _add_report(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser("report", help="write one page of HTML about a finished run, all from its folder")
    report.add_argument("folder", metavar="FOLDER", help="what --out named for `course pretrain` or `course finetune`")
    report.add_argument("--out", metavar="PAGE", help="the file to write (default: report.html in FOLDER)")
    report.set_defaults(run=_report)


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser("export", help="write a finished run as a folder that transformers and peft open")
    export.add_argument("folder", metavar="FOLDER", help="what --out named for `course pretrain` or `course finetune`")
    export.add_argument("out", metavar="OUT", help="an empty folder, or a new one")
    export.add_argument(
        "--no-merge", action="store_true", help="leave a LoRA beside its base, for peft (a prefix always lies there)"
    )
    export.set_defaults(run=_export)


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: give a number from 1 to 65535")
    return int(text)


def _count(text: str) -> int:
    """A whole number, also as 500k or 8M."""
    match = re.fullmatch(r"(\d+)([kKmM]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is no count: give a whole number, such as 64, 500k or 8M")
    return int(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2].lower()]


def _lab(options: argparse.Namespace) -> int:
    from course_lib import lab

    try:
        return lab.launch(options.chapter, reset=options.reset, browser=not options.no_browser, port=options.port)
    except RuntimeError as error:  # the server did not come up; its log says why
        raise ValueError(error) from None


def _run(options: argparse.Namespace) -> int:
    from course_lib import lab

    return lab.run_chapters(options.chapters)


def _progress(_options: argparse.Namespace) -> int:
    from course_lib import lab

    print(lab.progress_report())
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from course_lib import runs
    from course_lib.training import with_progress

    changes = {name: value for name in _PRETRAIN_OPTIONS if (value := getattr(options, name)) is not None}
    run = runs.recipe(options.recipe, **changes)
    if "RANK" in os.environ or options.ranks is not None:
        return _pretrain_on_ranks(options, run)
    if options.engine:
        raise ValueError(f"engine is {options.engine!r}: it is for ranks: give --ranks N too, or start with torchrun")
    began = time.perf_counter()
    with _interrupt_noted() as interrupted:
        records = runs.pretrain(
            run,
            options.out,
            resume=options.resume,
            device=options.device,
            keep=options.keep,
            should_stop=lambda: bool(interrupted),
        )
        done = list(with_progress(records, run.steps))
    if interrupted and done and done[-1].step < run.steps:
        print(f"Stopped after step {done[-1].step} of {run.steps}; a checkpoint is written.")
        print("Go on with the same command and --resume.")
        return 130
    print(runs.report(run, options.out, len(done), time.perf_counter() - began))
    return 0


def _pretrain_on_ranks(options: argparse.Namespace, run: Any) -> int:
    """Be a rank where torchrun says so, and start ranks otherwise."""
    try:
        from course_lib.parallel import leave
        from course_lib.runs import ranks
    except RuntimeError as error:  # this torch has no ranks
        raise ValueError(error) from None
    from torch.distributed.elastic.multiprocessing.errors import record

    how = {"engine": options.engine or "ddp", "resume": options.resume}
    if "RANK" in os.environ:
        as_rank = record(ranks.pretrain_as_rank)  # leaves its traceback to torchrun
        as_rank(run, options.out, keep=options.keep, device=options.device, **how)
        leave()
    ranks.check(run, options.out, count=options.ranks, device=options.device, **how)
    try:
        ranks.pretrain_on_ranks(options.given, count=options.ranks)
    except RuntimeError as error:
        print(f"course pretrain: {error}", file=sys.stderr)
        return 1
    return 0


_PRETRAIN_OPTIONS = (
    *("text", "begin_with", "tokens", "peak_rate", "warmup", "batch_size", "row_length", "optimizer", "dtype"),
    *("width", "layers", "dropout", "seed", "save_every"),
)


def _finetune(options: argparse.Namespace) -> int:
    from course_lib import runs

    run = runs.FineTune(**{field.name: getattr(options, field.name) for field in dataclasses.fields(runs.FineTune)})
    show = functools.partial(print, file=sys.stderr, flush=True)  # the report alone is what a pipe gets
    print(runs.finetune(run, options.out, device=options.device, progress=show))
    return 0


def _predict(options: argparse.Namespace) -> int:
    from course_lib import runs

    for line in runs.answer_lines(
        options.folder,
        options.texts,
        file=options.file,
        about=options.input,
        temperature=options.temperature,
        seed=options.seed,
        as_json=options.json,
        device=options.device,
    ):
        print(line)
    return 0


def _report(options: argparse.Namespace) -> int:
    from course_lib import runs

    print(f"written to {runs.write_page(options.folder, options.out)}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from course_lib import runs

    print(runs.export(options.folder, options.out, merge=not options.no_merge))
    return 0


@contextlib.contextmanager
def _interrupt_noted() -> Iterator[list[int]]:
    """The first Ctrl-C (or SIGTERM) is noted in the list and the step is finished; a second one stops at once."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)
        print("\nFinishing this step and writing a checkpoint; once more stops at once.", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _record(options: argparse.Namespace) -> int:
    from course_lib import runs

    print(f"written to {runs.record(options.name)}")
    return 0


def _doctor(_options: argparse.Namespace) -> int:
    from course_lib import doctor

    marks = []
    for finding in doctor.examine():
        print(f"{finding.mark:<8} {finding.subject:<10} {finding.words}", flush=True)
        marks.append(finding.mark)
    return int("missing" in marks)


if __name__ == "__main__":
    sys.exit(main())
