"""Run by torchrun: `course` with a command, whose ranks wait at some batches until they may go on.

gated.py GATES NUMBERS COMMAND...    At batch n of NUMBERS (7,12) each rank leaves the file GATES/at_n_RANK_of_WORLD and
                                     waits for GATES/go_n
"""

import sys
import time
from pathlib import Path

from course_lib import cli
from course_lib.data import PretrainingDataset
from course_lib.parallel import rank, world


def wait_at(folder, numbers):
    batch = PretrainingDataset.batch

    def gated(self, number):
        if number in numbers:
            (folder / f"at_{number}_{rank()}_of_{world()}").touch()
            while not (folder / f"go_{number}").exists():
                time.sleep(0.02)
        return batch(self, number)

    PretrainingDataset.batch = gated


if __name__ == "__main__":
    wait_at(Path(sys.argv[1]), {int(number) for number in sys.argv[2].split(",") if number})
    sys.exit(cli.main(sys.argv[3:]))
