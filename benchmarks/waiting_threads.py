"""How long torch's threads spin while they wait for each other: a short while beside GNU's default.

Steps of a small model on all cores, while nothing else runs and while one more process wants a core. The settings take
turns, in new processes, since a process reads the setting once. Linux only: other systems do not read it.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from course_lib.data import PretrainingDataset, course_tokenizer, training_rows
from course_lib.layers import TransformerConfig
from course_lib.model import Decoder
from course_lib.runtime import describe_machine
from course_lib.training import new_model, train

SETTINGS = {"short": {"GOMP_SPINCOUNT": "1000"}, "default": {}}
STEPS, ROUNDS, ROW = 20, 3, 64
HERE = Path(__file__).parent
BUSY = [sys.executable, "-c", "while True: pass"]


def main() -> None:
    print(describe_machine())
    for busy in (False, True):
        company = subprocess.Popen(BUSY) if busy else None
        try:
            found = [{name: steps_a_second(setting) for name, setting in SETTINGS.items()} for _ in range(ROUNDS)]
        finally:
            if company:
                company.kill()
        ratios = [one["short"] / one["default"] for one in found]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        beside = "beside a busy process" if busy else "alone"
        print(f"{beside}: {statistics.median(ratios):.2f}x the steps a second of the default ({span})")


def steps_a_second(setting: Mapping[str, str]) -> float:
    """Of a process of its own."""
    command = [sys.executable, "-c", "import waiting_threads; waiting_threads.measure()"]
    done = subprocess.run(command, cwd=HERE, env=os.environ | setting, check=True, stdout=subprocess.PIPE)
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
