"""Corrupting a batch of 64 rows of 512 real tokens, on one thread: ours beside transformers' collator, and beside plain
Python loops over tokens (those that the tests take for the truth). Prints a table; a ratio compares two columns of one
run, and says more than the milliseconds do.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import oracles

from course_lib.data import course_tokenizer, pack, reviews_of
from course_lib.objectives import infilled, masked, span_corrupted
from course_lib.runtime import seeded, threads
from course_lib.tokenizer import Tokenizer

ROWS, LENGTH = 64, 512
REPEATS = 40
ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")


def real_rows(tokenizer: Tokenizer) -> torch.Tensor:
    texts = [review.text for review in reviews_of("dev", "imdb")]
    return pack(tokenizer.encode_all(texts), LENGTH, vocabulary=tokenizer.vocabulary).ids_NT[:ROWS]


def padded(rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def spans_between_special_tokens(row: list[int], is_ordinary: list[bool], draw: Callable) -> list[tuple[int, int]]:
    """Spans drawn over the ordinary tokens of a row, as places of the row; a special token inside cuts one in two."""
    place = [position for position, token in enumerate(row) if is_ordinary[token]] + [len(row)]
    spans = []
    for start, stop in draw(len(place) - 1):
        begin = place[start]
        for n in range(start, stop):
            if n + 1 == stop or place[n + 1] != place[n] + 1:
                spans.append((begin, place[n] + 1))
                begin = place[n + 1]
        if start == stop:
            spans.append((begin, begin))
    return spans


def span_corrupted_in_loops(
    ids_BT: torch.Tensor, is_ordinary: list[bool], sentinels: tuple[int, ...], rng: random.Random, split: Callable
):
    def draw(n):
        return oracles.draw_t5_spans(n, 0.15, 3.0, rng, split)

    shown, targets = [], []
    for row in ids_BT.tolist():
        spans = spans_between_special_tokens(row, is_ordinary, draw)
        example = oracles.corrupt_spans(row, spans, sentinels)
        shown.append(example[0])
        targets.append(example[1])
    return padded(shown), padded(targets)


def infilled_in_loops(ids_BT: torch.Tensor, is_ordinary: list[bool], mask_id: int, rng: random.Random):
    shown = []
    for row in ids_BT.tolist():
        spans = spans_between_special_tokens(row, is_ordinary, lambda n: oracles.draw_bart_spans(n, 0.3, 3.0, rng))
        shown.append(oracles.infill(row, spans, mask_id))
    return padded(shown), ids_BT.clone()


def fastest(*actions: Callable[[], object]) -> list[float]:
    """Seconds of the quickest of several calls each, in turn, so that a busy moment hits all alike."""
    best = [float("inf")] * len(actions)
    for _ in range(REPEATS):
        for n, action in enumerate(actions):
            start = time.perf_counter()
            action()
            best[n] = min(best[n], time.perf_counter() - start)
    return best


def main() -> None:
    tokenizer = course_tokenizer()
    vocabulary, ids_BT = tokenizer.vocabulary, real_rows(tokenizer)
    assert ids_BT.shape == (ROWS, LENGTH)
    is_ordinary = vocabulary.is_ordinary_V.tolist()
    examples = [{"input_ids": row} for row in ids_BT.tolist()]
    is_special_BT = ~vocabulary.is_ordinary_V[ids_BT]
    peer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, **{f"{role}_token": f"[{role.upper()}]" for role in ROLES}
    )
    collator = DataCollatorForLanguageModeling(peer, mlm_probability=0.15, seed=0)
    collator(examples)  # makes its generator
    generator, rng = seeded(0), random.Random(0)

    def ours(function: Callable) -> Callable:
        return lambda: function(ids_BT, vocabulary, generator=generator)

    def in_loops(split: Callable) -> Callable:
        return lambda: span_corrupted_in_loops(ids_BT, is_ordinary, vocabulary.sentinels, rng, split)

    by_shuffling, by_sample = oracles.split_by_shuffling, oracles.split_randomly
    rows = [
        ("masked", "transformers, a list of examples", 20, ours(masked), lambda: collator(examples)),
        ("masked", "transformers, one tensor", 8, ours(masked), lambda: collator.torch_mask_tokens(ids_BT.clone())),
        (
            "masked",
            "the same, special tokens marked beforehand",
            None,
            ours(masked),
            lambda: collator.torch_mask_tokens(ids_BT.clone(), special_tokens_mask=is_special_BT),
        ),
        ("span_corrupted", "T5's steps, a Python loop over tokens", 10, ours(span_corrupted), in_loops(by_shuffling)),
        ("span_corrupted", "the same, cuts drawn by random.sample", None, ours(span_corrupted), in_loops(by_sample)),
        (
            "infilled",
            "BART's steps, a Python loop over tokens",
            10,
            ours(infilled),
            lambda: infilled_in_loops(ids_BT, is_ordinary, vocabulary.mask, rng),
        ),
    ]
    print(f"{ROWS} x {LENGTH} tokens of real reviews, one thread, the quickest of {REPEATS} calls each\n")
    print(f"{'ours':15} {'beside':43} {'ours':>9} {'theirs':>10} {'ours, tokens/s':>15} {'ratio':>7} {'wanted':>7}")
    with threads(1):
        for name, beside, wanted, mine, theirs in rows:
            mine_s, theirs_s = fastest(mine, theirs)
            print(
                f"{name:15} {beside:43} {mine_s * 1e3:6.2f} ms {theirs_s * 1e3:7.2f} ms "
                f"{ROWS * LENGTH / mine_s:13.3g}   {theirs_s / mine_s:6.1f}x {f'{wanted}x' if wanted else '-':>6}"
            )


if __name__ == "__main__":
    main()
