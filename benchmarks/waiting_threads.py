"""How long torch's threads spin while they wait for each other: the course's setting beside GNU's default.

Steps of a small model on all cores, while nothing else runs and while one more process wants a core. The settings take
turns, in new processes, since a process reads the setting once. Linux only: other systems do not read it.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from course_lib.data import PretrainingDataset, course_tokenizer, training_rows
from course_lib.layers import TransformerConfig
from course_lib.model import Decoder
from course_lib.runtime import describe_machine
from course_lib.training import new_model, train

MEASURE = "import waiting_threads; waiting_threads.measure()"
PROGRAMS = {
    "the course's": MEASURE,
    "default": f"import torch; {MEASURE}",
}  # torch reads the setting when it is imported
STEPS, ROUNDS, ROW = 20, 3, 64
HERE = Path(__file__).parent
BUSY = [sys.executable, "-c", "while True: pass"]


def main() -> None:
    print(describe_machine())
    for busy in (False, True):
        company = subprocess.Popen(BUSY) if busy else None
        try:
            found = [{name: steps_a_second(program) for name, program in PROGRAMS.items()} for _ in range(ROUNDS)]
        finally:
            if company:
                company.kill()
        ratios = [one["the course's"] / one["default"] for one in found]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        beside = "beside a busy process" if busy else "alone"
        print(f"{beside}: {statistics.median(ratios):.2f}x the steps a second of the default ({span})")


def steps_a_second(program: str) -> float:
    """Of a process of its own, without what this one has set."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=HERE, env=environment, check=True, stdout=subprocess.PIPE)
    return float(done.stdout)


def measure() -> None:
    vocabulary = course_tokenizer().vocabulary
    config = TransformerConfig(vocabulary.size, d_model=64, n_layers=2, n_heads=4, d_ff=256, max_len=ROW)
    dataset = PretrainingDataset(training_rows(ROW, documents=200), vocabulary, "causal", batch_size=8)
    steps = train(new_model(Decoder, config), dataset, steps=STEPS + 2, rate=lambda step: 1e-3)
    next(steps), next(steps)  # warm up
    began = time.perf_counter()
    for _ in steps:
        pass
    print(STEPS / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
