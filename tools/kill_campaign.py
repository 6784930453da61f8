"""Kill a pre-training run at random moments, go on each time, and compare what comes out with a run that was left in
peace: `python tools/kill_campaign.py --kills 25 --seed 0`.

Each sitting is a real process of `course pretrain`, ended by SIGKILL: some while they train, some as soon as a
checkpoint is being written.
"""

import argparse
import random
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from course_lib import data
from course_lib.checkpoint import Checkpoints
from course_lib.files import write_atomically
from course_lib.records import Record

SAVE_EVERY = 4  # steps between checkpoints
COURSE = (sys.executable, "-c", "import sys; from course_lib.cli import main; sys.exit(main())")
OPTIONS = shlex.split(
    "decoder --device cpu --dtype float32 --width 16 --layers 2 --dropout 0.1 --row-length 32 "
    f"--batch-size 4 --rate 0.01 --save-every {SAVE_EVERY}"
)
PATIENCE = 600  # seconds without a new checkpoint after which something is wrong


@dataclass
class Tally:
    """What a campaign has seen. while_writing: kills that left a checkpoint half written,
    or half removed, under its hidden name."""

    kills: int = 0
    resumed: int = 0
    while_writing: int = 0
    corrupt: int = 0
    same_weights: bool = False
    same_curve: bool = False

    @property
    def is_clean(self) -> bool:
        return self.corrupt == 0 and self.same_weights and self.same_curve

    def __str__(self) -> str:
        rows = {
            "kills": self.kills,
            "of these amid a checkpoint's files": self.while_writing,
            "resumed from a checkpoint": self.resumed,
            "corrupt files": self.corrupt,
            "weights equal to the undisturbed run's": "to the bit" if self.same_weights else "NO",
            "losses equal to the undisturbed run's": "to the bit" if self.same_curve else "NO",
        }
        return "\n".join(f"{what:<42} {value}" for what, value in rows.items())


def campaign(folder, kills, seed, command=COURSE, tell=print) -> Tally:
    """Run it: both runs, and the corpus that they read, go to `folder`."""
    folder, chance, tally = Path(folder), random.Random(seed), Tally()
    corpus = write_corpus(folder / "corpus.txt")
    tokens = 32 * 4 * SAVE_EVERY * (3 * kills + 4)
    arguments = [*command, "pretrain", *OPTIONS, "--text", str(corpus), "--tokens", str(tokens), "--out"]
    calm, stormy = folder / "undisturbed", folder / "killed"
    finish([*arguments, str(calm)], folder / "undisturbed.log")
    is_done = False
    while not is_done:
        resuming = bool(Checkpoints(stormy).steps())
        tally.resumed += resuming
        sitting = [*arguments, str(stormy), *["--resume"][:resuming]]
        if tally.kills == kills:
            finish(sitting, folder / "killed.log")
            break
        before = half_written(stormy)
        with (folder / "killed.log").open("ab") as log:
            process = subprocess.Popen(sitting, stdout=log, stderr=log)
        is_done = not kill_at_random(process, stormy, chance)
        tally.kills += not is_done
        tally.while_writing += bool(half_written(stormy) - before)
        tally.corrupt += count_corrupt(stormy)
        tell(f"kill {tally.kills}: {reached(stormy)} steps are safe")
    tally.corrupt += count_corrupt(stormy)
    tally.same_weights = weights(stormy) == weights(calm)
    tally.same_curve = curve(stormy) == curve(calm)
    return tally


def write_corpus(path):
    """Real reviews, enough for some hundred rows."""
    texts = [" ".join(review.text.split()) for review in data.reviews_of("train", "imdb")[:60]]
    return write_atomically(path, "\n\n".join(texts))


def kill_at_random(process, folder, chance) -> bool:
    """Wait for none to two checkpoints more, then a moment, or until the next one is begun; then SIGKILL. False if the
    process ended by itself."""
    wanted = reached(folder) + SAVE_EVERY * chance.choice((0, 1, 1, 2))
    while_writing, moment = chance.random() < 0.5, chance.uniform(0, 0.1)
    leftovers = half_written(folder)

    def is_time():
        return reached(folder) >= wanted and (not while_writing or half_written(folder) - leftovers)

    began = time.monotonic()
    while process.poll() is None and not is_time():
        if time.monotonic() - began > PATIENCE:
            process.kill()
            raise TimeoutError(f"{folder} came to no new checkpoint in {PATIENCE} s")
        time.sleep(0.002)
    time.sleep(moment / 10 if while_writing else moment)
    process.kill()
    code = process.wait()
    if code > 0:
        raise RuntimeError(f"the run failed by itself with code {code}: see {folder.parent / 'killed.log'}")
    return code < 0


def finish(arguments, log):
    with log.open("ab") as file:
        if subprocess.run(arguments, stdout=file, stderr=file).returncode:
            raise RuntimeError(f"the run failed: see {log}")


def reached(folder) -> int:
    """The step of the newest checkpoint, -1 before the first."""
    return max(Checkpoints(folder).steps(), default=-1)


def half_written(folder) -> set[Path]:
    """Checkpoints that are being written or removed, or were when their process was killed."""
    return set(folder.glob(".step_*.partial"))


def count_corrupt(folder) -> int:
    """Checkpoints that are not whole, and a curve that cannot be read."""
    corrupt, checkpoints = 0, Checkpoints(folder)
    readers = [lambda step=step: checkpoints.load(step) for step in checkpoints.steps()]
    if (folder / "record.jsonl").exists():
        readers.append(Record(folder / "record.jsonl").rows)
    for read in readers:
        try:
            read()
        except ValueError as error:
            print(error, file=sys.stderr)
            corrupt += 1
    return corrupt


def weights(folder) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def curve(folder):
    """Every measurement but the durations, in order of its step."""
    rows = Record(folder / "record.jsonl").rows()
    return sorted((row["step"], row["metric"], row["value"]) for row in rows if row["metric"] != "seconds")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", help="where the runs go (default: a temporary folder)")
    parser.add_argument("--command", default=shlex.join(COURSE), help="what stands for `course`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        tally = campaign(options.folder or temporary, options.kills, options.seed, shlex.split(options.command))
    print(tally)
    return 0 if tally.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
