"""The check of chapter 4's split: equal texts stay together, whatever else is in the list, and in every process."""

import builtins
import itertools
import math
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from course_lib.checks.report import Wrong
from course_lib.checks.reviews import LeakFreeSplit, copies_of, on_two_sides, order_with_copies, reviews, sides_of
from course_lib.data import identity, normalize

SHARES = (0.25, 0.05, 0.6)
DEVIATIONS = 5  # one right split in two million lands so far from its share


def split_reference(texts: Sequence[str], test_share: float) -> list[bool]:
    return [int(identity(text)[:12], 16) < test_share * 16**12 for text in texts]


def verify_leak_free_split(function: LeakFreeSplit) -> str:
    """Run it on many lists. Raises Wrong or NotAttempted; says what was verified."""
    judge_list(function)
    judge_places(function)
    judge_other_texts(function)
    judge_twins(function)
    judge_other_process(function)
    sides = {share: sides_of(function, reviews(), share) for share in (*SHARES, 0.0, 1.0)}
    judge_rule(sides[0.6])
    judge_shares({share: sum(found) for share, found in sides.items()})
    return (
        f"{len(reviews())} texts; equal ones stay together, {len(TWINS)} ways of writing included; no text moves when "
        f"others come, go or change places, or when hash() is salted anew; shares of {', '.join(map(str, SHARES))}, "
        "none and all"
    )


# --- one judge for each promise ---------------------------------------------------------------------------------------


def judge_list(function: LeakFreeSplit) -> None:
    """Raises Wrong unless there is an answer for each row, not always the same one."""
    texts = copies_of(order_with_copies())
    sides = sides_of(function, texts, 0.6)
    if len(set(sides)) == 1:
        cause = "no text is test" if not sides[0] else "every text is test"
        raise Wrong(f"With a test_share of 0.6 {cause}: what is compared with what, and does it lie from 0 to 1?",
                    wanted=f"about {0.6 * len(set(texts)):.0f} of {len(set(texts))} distinct texts",
                    given=f"{'all' if sides[0] else 'none'} of them")  # fmt: skip
    sides_of(function, [], 0.6)
    sides_of(function, ["", " \n"], 0.6)


def judge_places(function: LeakFreeSplit) -> None:
    """Raises Wrong where chance or the place in the list decides, or copies of one text are on two sides."""
    order = order_with_copies()
    texts = copies_of(order)
    sides = sides_of(function, texts, 0.25)
    apart = on_two_sides(texts, sides)
    leak = {"leaks": f"{len(apart)} of 200 texts that occur twice are both trained on and tested"}
    if sides_of(function, texts, 0.25) != sides:
        raise Wrong("Two calls with the same list give two splits: it is drawn anew each time. The text alone should "
                    "decide, so that a text stays where it is.", **leak)  # fmt: skip
    moved = copies_of((7 * place + 5) % len(reviews()) for place in order)
    if sides_of(function, moved, 0.25) == sides:
        raise Wrong(_place_cause(sides, apart), **leak)
    if apart:
        raise Wrong("Equal texts land on two sides: what decides is not the text.", text=ascii(apart[0]), **leak)


def _place_cause(sides: list[bool], apart: list[str]) -> str:
    """Of a split that gives the same for other texts."""
    runs = [(side, len(list(run))) for side, run in itertools.groupby(sides)]
    head = "The place in the list decides, not the text: other texts in the same places get the same split. "
    if not apart:
        return f"{head}Copies stay together, but a text moves when one is added before it."
    if len(runs) <= 3:
        return f"{head}A stretch of the list is test, so that copies elsewhere in the list are trained on."
    if len(set(runs[1:-1])) <= 2:
        return f"{head}It is every so many rows, and copies fall on both sides."
    return f"{head}It is drawn row by row; a fixed seed repeats the draw and does not look at the texts."


def judge_other_texts(function: LeakFreeSplit) -> None:
    """Raises Wrong where a text moves because of the others in the list."""
    texts = list(dict.fromkeys(copies_of(order_with_copies())))
    before = dict(zip(texts, sides_of(function, texts, 0.25), strict=True))
    lists = {
        "the same texts in the reverse order": [texts[::-1]],
        "fewer texts": [texts[: len(texts) // 2]],
        "more texts": [[*reviews()[1::5], *texts]],
        "each text in a list of its own": [[text] for text in texts[:30]],
    }
    for title, others in lists.items():
        after = [pair for other in others for pair in zip(other, sides_of(function, other, 0.25), strict=True)]
        moved = [text for text, side in after if before.get(text, side) != side]
        if moved:
            cause = (
                "A text's side depends on where it stands in the list: the text alone should decide."
                if title.endswith("order")
                else "A text's side depends on the other texts: sorting, counting or drawing from the whole list does "
                "that. Collect more reviews, and what was tested is trained on."
            )
            count = f"{len(moved)} of {len(before.keys() & {text for text, _ in after})} texts change sides"
            raise Wrong(cause, change=title, text=ascii(moved[0]), given=count)


Pair = tuple[str, str]
SPACES = "Spaces at the ends, several in a row, tabs and line breaks should not matter."
TWINS: dict[str, tuple[Callable[[str], Pair], str]] = {
    "capitals": (lambda text: (text, text.upper()), "Capitals and small letters make one text."),
    "title case": (lambda text: (text, text.title()), "Capitals and small letters make one text."),
    "a space at each end": (lambda text: (text, f" {text} "), SPACES),
    "a line break at the end": (lambda text: (text, f"{text}\n"), SPACES),
    "two spaces for one": (lambda text: (text, text.replace(" ", "  ")), SPACES),
    "a line break for a space": (lambda text: (text, text.replace(" ", "\n", 1)), SPACES),
    "a tab for a space": (lambda text: (text, text.replace(" ", "\t", 1)), SPACES),
    "a no-break space": (lambda text: (text, text.replace(" ", "\u00a0", 1)), SPACES),
    "an accent that stands alone": (
        lambda text: (text, unicodedata.normalize("NFD", text)),
        "é can be one sign or two (e and an accent), and looks the same: Unicode's normal forms make one of both.",
    ),
    "a ligature": (
        lambda text: (text, text.replace("fi", "\ufb01")),
        "NFC and NFD keep a ligature apart from its letters: NFKC (compatibility, the K) makes them one.",
    ),
    "wide letters": (
        lambda text: (text, chr(ord(text[0]) + 0xFEE0) + text[1:]),
        "NFC and NFD keep wide letters apart from the usual ones: NFKC (compatibility, the K) makes them one.",
    ),
    "capitals that NFKC makes": (
        lambda text: (f"{text}\u2122", f"{text}TM"),
        "NFKC makes capitals of some signs (the trade mark becomes TM): what comes first, NFKC or lower case?",
    ),
}


def judge_twins(function: LeakFreeSplit) -> None:
    """Raises Wrong where one text, written in two ways, is on two sides."""
    for way, (write, cause) in TWINS.items():
        pairs = [pair for pair in map(write, reviews()[::19]) if pair[0] != pair[1]]
        first, second = (sides_of(function, part, 0.6) for part in zip(*pairs, strict=True))
        apart = [pair for pair, a, b in zip(pairs, first, second, strict=True) if a != b]
        if apart:
            leak = f"{len(apart)} of {len(pairs)} pairs are on two sides"
            raise Wrong(f"Two ways of writing are taken for two texts. {cause}", way=way,
                        texts=" and ".join(map(ascii, apart[0])), wanted="one side for both", given=leak)  # fmt: skip


def judge_other_process(function: LeakFreeSplit) -> None:
    """Raises Wrong where Python's hash of a text decides.

    Each process salts it anew. Instead of a second process (the function may live in a notebook), hash() gives every
    text the same number here, for texts that were never seen before, lest the function keeps what it once found.
    """
    texts = [f"{text} Once more." for text in reviews()[::7]]
    with one_hash_for_all_texts():
        elsewhere = sides_of(function, texts, 0.6)
    here = sides_of(function, texts, 0.6)
    if here != elsewhere or len(set(elsewhere)) == 1 or _follows_hash(texts, here, 0.6):
        raise Wrong(
            "Python's hash() decides. For texts it is salted anew in each process (PYTHONHASHSEED), so that after a "
            "restart other texts are test, and those of today are trained on. A checksum or a digest of the text's "
            "bytes is the same everywhere.",
            wanted="the same split in every process",
            given="another one wherever hash() gives other numbers",
        )


@contextmanager
def one_hash_for_all_texts() -> Iterator[None]:
    """hash(), for this thread, as if all texts and bytes were one; numbers keep theirs, as they do in every process."""
    usual, thread = builtins.hash, threading.get_ident()

    def stand_in(value: object, /) -> int:
        return 0 if threading.get_ident() == thread and _is_salted(value) else usual(value)

    builtins.hash = stand_in
    try:
        yield
    finally:
        builtins.hash = usual


def _is_salted(value: object) -> bool:
    return isinstance(value, str | bytes) or (isinstance(value, tuple | frozenset) and any(map(_is_salted, value)))


def _follows_hash(texts: Sequence[str], sides: list[bool], share: float) -> bool:
    """Whether text.__hash__(), which nobody can stand in for, explains it."""
    for write, number, size in itertools.product(
        (str, str.lower, normalize), (int, abs), (10, 100, 1000, 10_000, 10**6, 2**16, 2**31, 2**32, 2**63, 2**64)
    ):
        numbers = [number(write(text).__hash__()) % size for text in texts]
        if sides == [place < share * size for place in numbers]:
            return True
    return False


FEATURES: dict[str, Callable[[str], Any]] = {
    "how many characters it has": lambda text: len(normalize(text)),
    "how many words it has": lambda text: len(text.split()),
    "its first letter": lambda text: text[0],
    "its last letter": lambda text: text[-1],
}


def judge_rule(sides: Sequence[bool]) -> None:
    """Raises Wrong where something decides that many texts share, so that the test texts are of another kind."""
    for said, feature in FEATURES.items():
        groups = defaultdict(set)
        for text, side in zip(reviews(), sides, strict=True):
            groups[feature(text)].add(side)
        if all(len(found) == 1 for found in groups.values()):
            raise Wrong(f"What decides about a text is {said}: the texts that are tested are then of another kind than "
                        "those that are trained on.", given=f"texts that agree in it are on one side, all "
                        f"{len(reviews())}")  # fmt: skip


def judge_shares(counts: dict[float, int]) -> None:
    """Raises Wrong unless about test_share of the texts are test."""
    n = len(reviews())
    for share, count in counts.items():
        reach = DEVIATIONS * math.sqrt(n * share * (1 - share))
        if abs(count - n * share) > reach:
            wanted = f"{n * share:.0f} of {n}" + (f", {reach:.0f} more or less" if reach else "")
            raise Wrong(_share_cause(counts), test_share=share, wanted=wanted, given=f"{count} of {n}")


def _share_cause(counts: dict[float, int]) -> str:
    n = len(reviews())

    def follows(rule: Callable[[float], float], shares: Iterable[float] = SHARES) -> bool:
        return all(abs(counts[share] / n - rule(share)) < 0.04 for share in shares)

    if follows(lambda share: 1 - share):
        return "The sides are exchanged: True should say test, and test_share be the share of True."
    if len({counts[share] for share in SHARES}) == 1:
        if counts[0.0] == counts[0.25]:
            return "test_share is ignored: whatever it is, the same texts are test."
        return "Every test_share from 0.05 to 0.6 gives the same: is it compared with a number that goes beyond 1?"
    if follows(lambda share: share):
        return (
            "About right, but for the ends: a share of 0 means no text at all, and 1 means all. < or <=, and how many "
            "steps are there?"
        )
    if any(follows(lambda share, cut=cut: cut(10 * share) / 10) for cut in (math.floor, math.ceil, round)):
        return "The share is rounded to tenths: take more steps than ten."
    if follows(lambda share: 1 / round(1 / share)):
        return "One in so many texts is test, a whole number of them: 0.6 is not one in 2."
    return (
        "Too many or too few: are the numbers that are compared spread evenly, and is the share taken of all of them?"
    )
