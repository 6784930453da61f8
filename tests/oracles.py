"""Slow and obvious: what the corruptions and masks must do, token by token in plain Python, and how far a count may
stray from its expectation. Nothing here looks at how the library does it.

Rows are lists of ids without padding; a span is (start, stop) in places of the row.
"""

import math
import random
from collections.abc import Callable, Hashable, Sequence

from scipy import stats

IGNORE = -100
FAR_TAIL = 1e-5  # a true law is refused in one of 100,000 seeds; the seeds are fixed


# ---------------------------------------------------------------- how far a count may stray


def within_binomial(successes: int, trials: int, probability: float) -> bool:
    """Whether so many successes are believable."""
    if probability in (0.0, 1.0):
        return successes == trials * probability
    return stats.binomtest(successes, trials, probability).pvalue > FAR_TAIL


def fits(counts: Sequence[float], expected: Sequence[float]) -> bool:
    """Chi-square: whether the counts are believable where so many are expected in each class, at least 5."""
    assert len(counts) == len(expected) > 1
    assert min(expected) >= 5
    assert math.isclose(sum(counts), sum(expected), rel_tol=1e-6)
    return stats.chisquare(counts, expected, sum_check=False).pvalue > FAR_TAIL


def same_distribution(some: Sequence[Hashable], others: Sequence[Hashable]) -> bool:
    """Chi-square on two samples: whether both can come from one distribution. Rare outcomes are one class."""
    outcomes = sorted(set(some) | set(others), key=repr)
    table = [(some.count(outcome), others.count(outcome)) for outcome in outcomes]
    common = [pair for pair in table if sum(pair) >= 20]
    rare = [sum(column) for column in zip(*[pair for pair in table if sum(pair) < 20], strict=True)]
    if rare and sum(rare) >= 20:
        common.append(tuple(rare))
    assert len(common) > 1
    return stats.chi2_contingency(common).pvalue > FAR_TAIL


# ---------------------------------------------------------------- masking


def role(original: int, shown: int, label: int, mask_id: int) -> str:
    """What happened to one token: 'untouched', 'hidden', 'swapped' or 'kept'. A swap that drew the same token reads
    as kept.

    Raises AssertionError for what no masking may do.
    """
    if label == IGNORE:
        assert shown == original, f"token {original} became {shown} without being asked about"
        return "untouched"
    assert label == original, f"token {original} is asked about as {label}"
    if shown == mask_id:
        return "hidden"
    return "kept" if shown == original else "swapped"


def roles(row: Sequence[int], shown: Sequence[int], labels: Sequence[int], mask_id: int) -> list[str]:
    return [role(*token, mask_id) for token in zip(row, shown, labels, strict=True)]


def words(row: Sequence[int], goes_on: Callable[[int], bool], special: set[int]) -> list[list[int]]:
    """The positions of each word. A special token is alone, and ends the word before it."""
    found: list[list[int]] = []
    for position, token in enumerate(row):
        is_open = position > 0 and row[position - 1] not in special
        if is_open and token not in special and goes_on(token):
            found[-1].append(position)
        else:
            found.append([position])
    return found


def share_of(n: int, density: float) -> int:
    """How many of n tokens a noise density removes: one at least and never all, but for 0 and 1."""
    wanted = round(n * density)
    return wanted if density in (0.0, 1.0) else min(max(wanted, 1), max(n - 1, 0))


# ---------------------------------------------------------------- spans


def corrupt_spans(
    row: Sequence[int], spans: Sequence[tuple[int, int]], sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """T5's input and target: each span becomes a sentinel, the target lists what each stood for, one more closes."""
    shown: list[int] = []
    target: list[int] = []
    position = 0
    for number, (start, stop) in enumerate(spans):
        while position < start:
            shown.append(row[position])
            position += 1
        shown.append(sentinels[number])
        target.append(sentinels[number])
        while position < stop:
            target.append(row[position])
            position += 1
    while position < len(row):
        shown.append(row[position])
        position += 1
    target.append(sentinels[len(spans)])
    return shown, target


def spans_of_target(target: Sequence[int], sentinels: Sequence[int]) -> dict[int, list[int]]:
    spans: dict[int, list[int]] = {}
    last = None
    for token in target:
        if token in sentinels:
            assert token not in spans, f"sentinel {token} stands twice"
            spans[token] = []
            last = token
        else:
            assert last is not None, f"token {token} stands before any sentinel"
            spans[last].append(token)
    return spans


def restore(shown: Sequence[int], target: Sequence[int], sentinels: Sequence[int]) -> list[int]:
    """The inverse of `corrupt_spans`."""
    spans = spans_of_target(target, sentinels)
    row: list[int] = []
    for token in shown:
        if token in sentinels:
            row.extend(spans.pop(token))
        else:
            row.append(token)
    assert list(spans.values()) == [[]], f"more than the closing sentinel is left: {spans}"
    return row


def spans_in(shown: Sequence[int], target: Sequence[int], sentinels: Sequence[int]) -> list[tuple[int, int]]:
    """Where the spans of a T5 example lie in its original row."""
    spans = spans_of_target(target, sentinels)
    found = []
    position = 0
    for token in shown:
        length = len(spans[token]) if token in sentinels else 1
        if token in sentinels:
            found.append((position, position + length))
        position += length
    return found


def infill(row: Sequence[int], spans: Sequence[tuple[int, int]], mask_id: int) -> list[int]:
    """BART's input: each span becomes one mask, and a span of length 0 puts one in between."""
    shown: list[int] = []
    position = 0
    for start, stop in spans:
        while position < start:
            shown.append(row[position])
            position += 1
        shown.append(mask_id)
        position = stop
    return shown + list(row[position:])


def infilled_spans(row: Sequence[int], shown: Sequence[int], mask_id: int) -> list[tuple[int, int]]:
    """Spans that explain an infilled row of distinct tokens. Between two kept tokens the first mask takes all that is
    missing there: which of several masks stands for what cannot be seen.

    Raises AssertionError where nothing explains it: a token lost without a mask, invented, or moved.
    """
    place = {token: position for position, token in enumerate(row)}
    assert len(place) == len(row), "tokens must be distinct"
    spans: list[tuple[int, int]] = []
    position = masks = 0
    for token in [*shown, None]:
        if token == mask_id:
            masks += 1
            continue
        following = len(row) if token is None else place[token]
        assert following >= position, f"token {token} moved to the right"
        assert masks > 0 or following == position, f"{row[position:following]} went away without a mask"
        spans += [(position, following)] * (masks > 0) + [(following, following)] * (masks - 1)
        position, masks = following + 1, 0
    return spans


# ---------------------------------------------------------------- whole corruptions, drawn and assembled in loops


def split_randomly(total: int, parts: int, rng: random.Random) -> list[int]:
    """`total` as a sum of so many positive parts, every way equally likely."""
    cuts = sorted(rng.sample(range(1, total), parts - 1)) if total > 1 else []
    return [stop - start for start, stop in zip([0, *cuts], [*cuts, total], strict=True)]


def split_by_shuffling(total: int, parts: int, rng: random.Random) -> list[int]:
    """The same by the steps of T5's own code: flag so many items as the first of a part, shuffle the flags, count."""
    is_first = [n < parts - 1 for n in range(total - 1)]
    rng.shuffle(is_first)
    lengths = [0]
    for begins in [False, *is_first]:
        if begins:
            lengths.append(0)
        lengths[-1] += 1
    return lengths


def draw_t5_spans(
    n: int, density: float, mean_span: float, rng: random.Random, split: Callable = split_randomly
) -> list[tuple[int, int]]:
    """Spans over n ordinary tokens as T5 draws them: kept and removed stretches alternate, kept first."""
    n_noise = share_of(n, density)
    if n_noise == 0:
        return []
    n_spans = min(max(round(n_noise / mean_span), 1), n_noise, max(n - n_noise, 1))
    kept = split(n - n_noise, n_spans, rng) if n > n_noise else [0]
    spans = []
    position = 0
    for keep, noise in zip(kept, split(n_noise, n_spans, rng), strict=True):
        spans.append((position + keep, position + keep + noise))
        position += keep + noise
    return spans


def poisson(mean: float, rng: random.Random) -> int:
    """Knuth's way: count uniform draws until their product falls below exp(-mean)."""
    count, product = 0, rng.random()
    while product > math.exp(-mean):
        count += 1
        product *= rng.random()
    return count


def draw_bart_spans(n: int, density: float, mean_span: float, rng: random.Random) -> list[tuple[int, int]]:
    """Spans over n ordinary tokens as BART draws them: Poisson lengths until the noise is covered, the last one cut;
    then spans, the one that was cut too, and kept tokens in any order."""
    n_noise = share_of(n, density)
    lengths: list[int] = []
    while sum(lengths) < n_noise:
        lengths.append(min(poisson(mean_span, rng), n_noise - sum(lengths)))
    slots = [*lengths, *[None] * (n - n_noise)]
    rng.shuffle(slots)
    spans = []
    position = 0
    for length in slots:
        if length is not None:
            spans.append((position, position + length))
        position += 1 if length is None else length
    return spans


# ---------------------------------------------------------------- who may attend to whom


def causal_visibility(length: int) -> list[list[bool]]:
    return [[key <= query for key in range(length)] for query in range(length)]


def prefix_visibility(prefix: int, length: int) -> list[list[bool]]:
    return [[key <= query or key < prefix for key in range(length)] for query in range(length)]


def permutation_visibility(
    order: Sequence[int], is_target: Sequence[bool]
) -> tuple[list[list[bool]], list[list[bool]]]:
    """XLNet's rule, for the content stream and for the query stream: a position sees the content of an earlier place in
    the order, where what is not predicted comes before all that is; a position that is not predicted sees all those
    that are not; the content stream sees itself, and the query of a target never its own content."""
    length = len(order)
    content = [[False] * length for _ in range(length)]
    query = [[False] * length for _ in range(length)]
    for q in range(length):
        for k in range(length):
            if not is_target[k]:
                sees = True
            elif not is_target[q]:
                sees = False
            else:
                sees = order[k] < order[q]
            query[q][k] = sees
            content[q][k] = sees or q == k
    return content, query


def reaches_itself(content: list[list[bool]], query: list[list[bool]], target: int) -> bool:
    """Whether a target's own content comes to its query through any number of layers."""
    reached = {k for k, sees in enumerate(query[target]) if sees}
    waiting = list(reached)
    while waiting:
        for k, sees in enumerate(content[waiting.pop()]):
            if sees and k not in reached:
                reached.add(k)
                waiting.append(k)
    return target in reached
