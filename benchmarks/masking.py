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
from course_lib.objectives import Batch, infilled, masked, restore_spans, span_corrupted
from course_lib.runtime import seeded, threads
from course_lib.tokenizer import Tokenizer
from course_lib.vocabulary import IGNORE_INDEX, Vocabulary

ROWS, LENGTH = 64, 512
TURNS = 15
ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")


def real_rows(tokenizer: Tokenizer) -> torch.Tensor:
    texts = [review.text for review in reviews_of("dev", "imdb")]
    return pack(tokenizer.encode_all(texts), LENGTH, vocabulary=tokenizer.vocabulary).ids_NT[:ROWS]


def checked_rows(ids_BT: torch.Tensor, size: int, refused: set[int]) -> list[list[int]]:
    """The rows, if every id is of the vocabulary and none is refused: ours looks at that too."""
    rows = ids_BT.tolist()
    for row in rows:
        for token in row:
            if not 0 <= token < size or token in refused:
                raise ValueError(token)
    return rows


def batch_of(shown: list[list[int]], targets: list[list[int]], vocabulary: Vocabulary) -> Batch:
    """What ours returns: padded rows, labels, what the decoder reads, who may be attended to."""
    width, target_width = max(map(len, shown)), max(map(len, targets))
    shown = [row + [vocabulary.pad] * (width - len(row)) for row in shown]
    targets = [row + [vocabulary.pad] * (target_width - len(row)) for row in targets]
    return Batch(
        torch.tensor(shown),
        torch.tensor([[IGNORE_INDEX if token == vocabulary.pad else token for token in row] for row in targets]),
        torch.tensor([[[token != vocabulary.pad for token in row]] for row in shown]),
        decoder_input_ids_BS=torch.tensor([[vocabulary.bos, *row[:-1]] for row in targets]),
    )


def spans_between_special_tokens(row: list[int], is_ordinary: list[bool], draw: Callable) -> list[tuple[int, int]]:
    """Spans drawn over the ordinary tokens of a row, as places of the row; a special token inside cuts one in two."""
    place = [position for position, token in enumerate(row) if is_ordinary[token]]
    place.append(place[-1] + 1)
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


def span_corrupted_in_loops(ids_BT: torch.Tensor, vocabulary: Vocabulary, rng: random.Random, split: Callable) -> Batch:
    def draw(n):
        return oracles.draw_t5_spans(n, 0.15, 3.0, rng, split)

    is_ordinary = vocabulary.is_ordinary_V.tolist()
    shown, targets = [], []
    for row in checked_rows(ids_BT, vocabulary.size, set(vocabulary.sentinels)):
        spans = spans_between_special_tokens(row, is_ordinary, draw)
        example = oracles.corrupt_spans(row, spans, vocabulary.sentinels)
        shown.append(example[0])
        targets.append(example[1])
    return batch_of(shown, targets, vocabulary)


def infilled_in_loops(ids_BT: torch.Tensor, vocabulary: Vocabulary, rng: random.Random) -> Batch:
    def draw(n):
        return oracles.draw_bart_spans(n, 0.3, 3.0, rng)

    is_ordinary = vocabulary.is_ordinary_V.tolist()
    rows = checked_rows(ids_BT, vocabulary.size, set())
    shown = [oracles.infill(row, spans_between_special_tokens(row, is_ordinary, draw), vocabulary.mask) for row in rows]
    return batch_of(shown, rows, vocabulary)


def fastest(*actions: Callable[[], object]) -> list[float]:
    """Seconds of the quickest of several calls each. They take turns, so that a busy moment hits all alike, of three
    calls in a row, for batch follows batch."""
    best = [float("inf")] * len(actions)
    for _ in range(TURNS):
        for n, action in enumerate(actions):
            for _ in range(3):
                start = time.perf_counter()
                action()
                best[n] = min(best[n], time.perf_counter() - start)
    return best


def main() -> None:
    tokenizer = course_tokenizer()
    vocabulary, ids_BT = tokenizer.vocabulary, real_rows(tokenizer)
    assert ids_BT.shape == (ROWS, LENGTH)
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
        return lambda: span_corrupted_in_loops(ids_BT, vocabulary, rng, split)

    loop = in_loops(oracles.split_by_shuffling)()
    assert restore_spans(loop.input_ids_BT, loop.labels_BL, vocabulary) == ids_BT.tolist()  # the loops do the work

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
        ("span_corrupted", "the same, cuts drawn by random.sample", 10, ours(span_corrupted), in_loops(by_sample)),
        (
            "infilled",
            "BART's steps, a Python loop over tokens",
            10,
            ours(infilled),
            lambda: infilled_in_loops(ids_BT, vocabulary, rng),
        ),
    ]
    print(f"{ROWS} x {LENGTH} tokens of real reviews, one thread, the quickest of {3 * TURNS} calls each\n")
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
