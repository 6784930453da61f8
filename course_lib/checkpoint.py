"""Checkpoints of a run: what it takes to go on as if it had never been stopped.

A checkpoint is a folder `step_N` that is whole or absent: the model's own files (weights as safetensors), `state.pt`
(optimiser, random states and what else the run needs), and `checkpoint.json`, which holds the step, the held-out loss,
what the run is about, and the SHA-256 of every other file and of itself.
"""

import contextlib
import hashlib
import io
import json
import math
import pickle
import random
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from course_lib.files import (
    check_plain_names,
    new_folder,
    plain_files,
    read_text,
    remove_folder,
    remove_leftovers,
    sha256_of,
)

MANIFEST, STATE = "checkpoint.json", "state.pt"
KEYS, OWN_HASH = {"step", "score", "pinned", "about", "files"}, "sha256"  # of the manifest


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back, every file of it compared with its fingerprint. score: held-out loss, lower is better,
    where it was measured."""

    folder: Path
    step: int
    score: float | None
    about: dict
    state: dict


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in one folder: the last `keep`, the best by score, and those that are pinned.

    >>> import tempfile
    >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()), keep=1)
    >>> for step, score in ((10, 5.0), (20, 4.0), (30, 4.5), (40, 4.4)):
    ...     folder = checkpoints.save(step, {}, {"batches": step}, about={}, score=score)
    >>> checkpoints.steps(), checkpoints.latest().state, checkpoints.best().step
    ([20, 40], {'batches': 40}, 20)
    """

    folder: Path
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep}: the last checkpoint at least must stay")

    def save(
        self,
        step: int,
        files: Mapping[str, bytes],
        state: Mapping,
        *,
        about: Mapping,
        score: float | None = None,
        pinned: bool = False,
    ) -> Path:
        """Write `step_N`, then remove what is not to be kept. `state` holds tensors and plain values only, `about` what
        JSON can say.

        Raises OSError naming the checkpoint that is left where the disk is full or read-only; ValueError for a state
        that could not be read back, a score that is not finite, or a name that is no plain file name or a checkpoint's
        own.
        """
        check_plain_names(files)
        _check_not_own(files)
        with self.filling(step, state, about=about, score=score, pinned=pinned) as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)
        return self._path(step)

    @contextlib.contextmanager
    def filling(
        self, step: int, state: Mapping, *, about: Mapping, score: float | None = None, pinned: bool = False
    ) -> Iterator[Path]:
        """A folder to put a checkpoint's files into; otherwise as `save`, which puts in those that it is handed.

        Raises what `save` raises, for names when the block ends; there is no checkpoint of this step then.
        """
        if score is not None and not math.isfinite(score):
            raise ValueError(f"score is {score}: give a finite held-out loss, or None where it was not measured")
        facts, written = {"step": step, "score": score, "pinned": pinned, "about": dict(about)}, _state_bytes(state)
        json.dumps(facts)  # refuses what cannot be written before anything is
        try:
            remove_leftovers(self.folder)
            with new_folder(self._path(step)) as folder:
                yield folder
                _check_not_own(path.name for path in folder.iterdir())
                (folder / STATE).write_bytes(written)
                files = {path.name: sha256_of(path) for path in plain_files(folder)}
                manifest = json.loads(json.dumps(facts | {"files": files}))  # as it will be read back
                whole = manifest | {OWN_HASH: _hash_of_manifest(manifest)}
                (folder / MANIFEST).write_text(json.dumps(whole, indent=2), "utf-8")
        except OSError as error:
            left = f"step {self.steps()[-1]} is the last good one" if self.steps() else "none was written before"
            raise OSError(
                error.errno,
                f"the checkpoint of step {step} could not be written ({error.strerror}): make room or write elsewhere; "
                f"{left}",
                str(self.folder),
            ) from None
        self._prune(step)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, whole or damaged, in order."""
        found = (re.fullmatch(r"step_(\d+)", path.name) for path in self.folder.glob("step_*"))
        return sorted(int(match[1]) for match in found if match)

    def load(self, step: int) -> Checkpoint:
        """Raises ValueError for a checkpoint that is not there, damaged, or foreign, with what is wrong."""
        folder = self._path(step)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not there: the run has checkpoints of steps {self.steps()}")
        manifest = _manifest(folder)
        if manifest["step"] != step:
            raise ValueError(f"{folder} holds the checkpoint of step {manifest['step']}: it was renamed or copied here")
        contents = {}
        for name, wanted in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                raise ValueError(f"{path} is missing: the checkpoint is damaged")
            contents[name] = path.read_bytes()
            if _sha256(contents[name]) != wanted:
                raise ValueError(f"{path} is damaged: its content is not what was written")
        if STATE not in contents:
            raise ValueError(f"{folder} has no {STATE}: it is no checkpoint to go on from")
        state = _parse_state(contents[STATE])
        return Checkpoint(folder, manifest["step"], manifest["score"], manifest["about"], state)

    def latest(self) -> Checkpoint:
        """The newest checkpoint that is whole; each damaged one on the way is named in a warning.

        Raises ValueError if there is none.
        """
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except ValueError as error:
                warnings.warn(f"{error}; the checkpoint before it is used", stacklevel=2)
        if self.steps():
            raise ValueError(f"no checkpoint in {self.folder} is whole: start another run in another folder")
        raise ValueError(f"{self.folder} holds no checkpoint to go on from: start without --resume")

    def best(self) -> Checkpoint:
        """The checkpoint with the lowest score, of those that are whole.

        Raises ValueError if there is none with a score.
        """
        for step in sorted(self._scores(), key=lambda step: (self._scores()[step], step)):
            try:
                return self.load(step)
            except ValueError as error:
                warnings.warn(f"{error}; the next best checkpoint is used", stacklevel=2)
        raise ValueError(f"{self.folder} holds no checkpoint with a score: validate before saving")

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step}"

    def _scores(self) -> dict[int, float]:
        manifests = {step: _manifest_or_none(self._path(step)) for step in self.steps()}
        return {n: found["score"] for n, found in manifests.items() if found and found["score"] is not None}

    def _prune(self, now: int) -> None:
        """Only what lies behind step `now`: a run that went on from before a damaged checkpoint has not made up for it
        yet."""
        scores, past = self._scores(), [step for step in self.steps() if step <= now]
        kept = {*past[-self.keep :], *([min(scores, key=lambda n: (scores[n], n))] if scores else [])}
        for step in past:
            found = _manifest_or_none(self._path(step))
            if step not in kept and not (found and found["pinned"]):
                remove_folder(self._path(step))


def random_states() -> dict:
    """The state of every global random generator: torch's on each device, numpy's and Python's."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (what other libraries draw from)
    states = {"torch": torch.get_rng_state(), "numpy": [name, keys.tolist(), *rest], "python": random.getstate()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(states: Mapping) -> None:
    """Set them all again, those of a device that is not there left out.

    >>> before = random_states()
    >>> first = torch.rand(1)
    >>> restore_random_states(before)
    >>> torch.rand(1).equal(first)
    True
    """
    torch.set_rng_state(states["torch"])
    np.random.set_state(tuple(states["numpy"]))  # noqa: NPY002
    random.setstate(states["python"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def _check_not_own(names: Iterable[str]) -> None:
    if taken := [name for name in names if name in (MANIFEST, STATE)]:
        raise ValueError(f"{taken[0]!r} is what a checkpoint calls a file of its own: give the file another name")


def _manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{path} is missing: the folder is damaged, or no checkpoint of this course")
    try:
        manifest = json.loads(read_text(path))
        own_hash = manifest.pop(OWN_HASH, None)
        if manifest.keys() == KEYS and own_hash in (None, _hash_of_manifest(manifest)):  # None: of an earlier version
            return manifest
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(f"{path} is damaged, or not of this course")


def _manifest_or_none(folder: Path) -> dict | None:
    try:
        return _manifest(folder)
    except ValueError:
        return None


def _state_bytes(state: Mapping) -> bytes:
    """The content of a state's file, read back once."""
    buffer = io.BytesIO()
    try:
        torch.save(dict(state), buffer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"the state holds what cannot be written ({error}): leave that out") from None
    _parse_state(buffer.getvalue())
    return buffer.getvalue()


def _parse_state(content: bytes) -> dict:
    try:
        return torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words advise to load it all the same
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = named[1] if named else "of an unknown kind"
        raise ValueError(f"the state holds more than tensors and plain values ({what}): leave that out") from None


def _hash_of_manifest(manifest: Mapping) -> str:
    return _sha256(json.dumps(manifest, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
