"""Keeping the memory of freed tensors for the next ones: steps beside glibc's default, which hands it back.

Fine-tuning of MiniLM and pre-training of the decoder. The settings take turns, in new processes, since none can go back
to the default. Linux with glibc only: elsewhere both are the same.
"""

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

HERE, ROUNDS, STEPS, SKIPPED = Path(__file__).parent, 3, 10, 3
ELSEWHERE = "here, sys.platform = sys.platform, 'elsewhere'; import course_lib.runtime; sys.platform = here; "
BEFORE = {"kept": "", "default": ELSEWHERE}  # elsewhere the library leaves the allocator alone


def main() -> None:
    found = {name: [] for name in BEFORE}
    for _, (name, before) in itertools.product(range(ROUNDS), BEFORE.items()):
        code = f"import sys, freed_memory; {before}freed_memory.measure()"
        done = subprocess.run([sys.executable, "-c", code], cwd=HERE, check=True, stdout=subprocess.PIPE, text=True)
        found[name].append([float(word) for word in done.stdout.split()])
    for what, kept, default in zip(
        ("MiniLM", "decoder"), *(zip(*found[name], strict=True) for name in BEFORE), strict=True
    ):
        ratios = [ours / theirs for ours, theirs in zip(kept, default, strict=True)]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{what}: a step takes {statistics.median(ratios):.2f} of the default's time ({span})")


def measure() -> None:
    """Print the median seconds of a step, of each model."""
    print(*(statistics.median(seconds(steps)) for steps in (fine_tuning(), pre_training())))


def seconds(steps: Iterator[object]) -> list[float]:
    took = []
    for _ in range(SKIPPED + STEPS):
        began = time.perf_counter()
        next(steps)
        took.append(time.perf_counter() - began)
    return took[SKIPPED:]


def fine_tuning() -> Iterator[None]:
    from course_lib.finetuning import Classifier
    from course_lib.optimizers import make_optimizer
    from course_lib.pretrained import load_minilm

    classifier = Classifier(load_minilm()[0]).train()
    optimizer, ids_BT = make_optimizer(classifier), torch.randint(1000, 30000, (16, 64))
    while True:
        logits_BC = classifier(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool))
        F.cross_entropy(logits_BC, torch.arange(16) % 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def pre_training() -> Iterator[object]:
    from course_lib.data import PretrainingDataset, course_tokenizer, training_rows
    from course_lib.pretrained import load_checkpoint
    from course_lib.training import train

    rows, vocabulary = training_rows(256, documents=200), course_tokenizer().vocabulary
    dataset = PretrainingDataset(rows, vocabulary, "causal", batch_size=8)
    return train(load_checkpoint("decoder"), dataset, steps=SKIPPED + STEPS, rate=1e-4)


if __name__ == "__main__":
    main()
