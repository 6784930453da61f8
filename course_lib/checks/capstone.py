"""Checks of chapter 6: bits per byte, the share of n-grams already read, and the better of two models, or neither.

Each compares with the right value on cases where usual mistakes give others, and names the mistake that was made.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from course_lib.checks.report import Part, Wrong, call, described, number, report
from course_lib.evaluation import bits_per_byte as bits_of_nats
from course_lib.evaluation import paired_comparison

BitsPerByte = Callable[[float, int, str], float]
ShareRead = Callable[..., float]
PickBetter = Callable[..., str]
Texts = list[list[int]]


def bits_per_byte(function: BitsPerByte) -> BitsPerByte:
    """Check f(nats_per_token, n_tokens, text) -> bits for each byte of the text in UTF-8, as a plain float.
    Prints a verdict; gives back f if it is right, else the library's."""
    return report(Part("bits_per_byte", function, verify_bits_per_byte, bits_per_byte_reference))[0]


def share_read(function: ShareRead) -> ShareRead:
    """Check f(held_out, read, n) -> the share of all n-grams of the held-out texts (lists of ids) that stand in some
    text that was read, none of them across the border of two texts; 0.0 where there is no n-gram. Prints a verdict;
    gives back f if it is right, else the library's."""
    return report(Part("share_read", function, verify_share_read, share_read_reference))[0]


def pick_better(function: PickBetter) -> PickBetter:
    """Check f(is_right_a, is_right_b) -> "a", "b" or "neither", from bool arrays over the same texts: the better one
    where the 95% interval of the paired difference leaves no doubt. Prints a verdict; gives back f if it is right,
    else the library's."""
    return report(Part("pick_better", function, verify_pick_better, pick_better_reference))[0]


# ---------------------------------------------------------------- bits per byte


def bits_per_byte_reference(nats_per_token: float, n_tokens: int, text: str) -> float:
    return bits_of_nats(nats_per_token * n_tokens, len(text.encode()))


BITS_CASES = [
    (2.5, 40, "a good film, and long"),
    (math.log(2), 16, "zwölf Größen"),
    (3.1, 7, "映画 is 'film'"),
    (5, 3, "é"),
]
BITS_MISTAKES: dict[str, Callable[[float, int, str], float]] = {
    "That is nats per byte: a bit is ln 2 nats, so divide by ln 2.": lambda x, n, t: x * n / len(t.encode()),
    "Multiplied by ln 2: a nat is more than a bit, so that there are more bits than nats. Divide.": lambda x, n, t: (
        x * n * math.log(2) / len(t.encode())
    ),
    "That is bits per token: the loss of all tokens belongs to all bytes.": lambda x, n, t: x / math.log(2),
    "Divided by characters: ö is one character and two bytes. Compressors count bytes, and so does UTF-8.": (
        lambda x, n, t: x * n / math.log(2) / len(t)
    ),
    "The loss of a single token was divided by the bytes of all: multiply by the number of tokens.": lambda x, n, t: (
        x / math.log(2) / len(t.encode())
    ),
    "Divided by words: that is bits per word.": lambda x, n, t: x * n / math.log(2) / len(t.split()),
    "Divided by ln 10 instead of ln 2.": lambda x, n, t: x * n / math.log(10) / len(t.encode()),
    "Divided by 8 once too often: the loss is in bits once ln 2 is gone.": lambda x, n, t: (
        x * n / math.log(2) / len(t.encode()) / 8
    ),
}  # fmt: skip


def verify_bits_per_byte(function: BitsPerByte) -> str:
    """Raises Wrong or NotAttempted; says what was verified."""
    given = [
        number(call(function, nats_per_token=x, n_tokens=n, text=t), "The result", text=t) for x, n, t in BITS_CASES
    ]
    _judge_numbers(given, BITS_CASES, bits_per_byte_reference, BITS_MISTAKES, ("nats_per_token", "n_tokens", "text"))
    return f"{len(BITS_CASES)} texts, with letters of one, two and three bytes"


# ---------------------------------------------------------------- n-grams already read


def share_read_reference(held_out: Texts, read: Texts, n: int) -> float:
    seen = {gram for text in read for gram in _grams(text, n)}
    grams = [gram for text in held_out for gram in _grams(text, n)]
    return sum(gram in seen for gram in grams) / len(grams) if grams else 0.0


def _grams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[k : k + n]) for k in range(len(text) - n + 1)]


def _share(grams: Iterable[Any], seen: Iterable[Any]) -> float:
    grams, seen = list(grams), set(seen)
    return sum(gram in seen for gram in grams) / len(grams) if grams else 0.0


def _all(texts: Texts, n: int) -> list[tuple[int, ...]]:
    return [gram for text in texts for gram in _grams(text, n)]


def _joined(texts: Texts) -> list[int]:
    return [i for text in texts for i in text]


SHARE_CASES = [
    ([[1, 2, 3, 1, 2, 3, 1, 2], [9, 8, 4]], [[1, 2, 3, 7], [3, 1], [8, 4, 9, 5, 9, 8]], 2),
    ([[1, 2, 3, 4], [5, 6, 7], [2]], [[0, 1, 2, 3], [4, 5, 6], [7, 2, 1, 2, 3, 4]], 3),
    ([[4, 4, 5], [6]], [[4, 6], [5, 5]], 1),
    ([[3, 2, 1], [1]], [[1, 2, 3], [2, 1, 3]], 2),
    ([[1], []], [[1, 2]], 2),
    ([[n * n % 7 for n in range(60)], [n % 5 for n in range(40)]],
     [[n * n % 11 for n in range(90)], [0, 1, 2, 3, 4] * 3], 4),
]  # fmt: skip
SHARE_MISTAKES: dict[str, Callable[[Texts, Texts, int], float]] = {
    "n-grams run across the border of two texts: nobody wrote those. Make them text by text.": lambda h, r, n: _share(
        _grams(_joined(h), n), _grams(_joined(r), n)
    ),
    "n-grams of what was read run across the border of two texts: make them text by text.": lambda h, r, n: _share(
        _all(h, n), _grams(_joined(r), n)
    ),
    "n-grams of the held-out texts run across the border of two texts: make them text by text.": lambda h, r, n: _share(
        _grams(_joined(h), n), _all(r, n)
    ),
    "That is percent: a share lies between 0 and 1.": lambda h, r, n: 100 * share_read_reference(h, r, n),
    "Each kind of n-gram counts once: one that stands in the held-out texts five times should count five times.": (
        lambda h, r, n: _share(set(_all(h, n)), _all(r, n))
    ),
    "The question is turned round: of the n-grams that were read, how many are held out.": lambda h, r, n: _share(
        _all(r, n), _all(h, n)
    ),
    "That is the share of n-grams that are new: the question is how many are not.": lambda h, r, n: (
        1 - share_read_reference(h, r, n)
    ),
    "The order of the tokens in an n-gram was lost: a list or tuple keeps it, a set or a sorted one does not.": (
        lambda h, r, n: _share([tuple(sorted(g)) for g in _all(h, n)], [tuple(sorted(g)) for g in _all(r, n)])
    ),
    "The n-grams are one token too long.": lambda h, r, n: share_read_reference(h, r, n + 1),
    "The n-grams are one token too short.": lambda h, r, n: share_read_reference(h, r, n - 1),
    "The last n-gram of each text is left out: a text of T tokens has T - n + 1.": lambda h, r, n: _share(
        (g for t in h for g in _grams(t, n)[:-1]), (g for t in r for g in _grams(t, n)[:-1])
    ),
    "n-grams that do not overlap: there is one at every position, not one in n.": lambda h, r, n: _share(
        (g for t in h for g in _grams(t, n)[::n]), (g for t in r for g in _grams(t, n)[::n])
    ),
    "Single tokens are looked up, not n of them in a row.": lambda h, r, n: _share(_joined(h), _joined(r)),
    "Texts are averaged: a short text then weighs as much as a long one. Count all n-grams, and divide once.": (
        lambda h, r, n: float(np.mean([_share(_grams(t, n), _all(r, n)) for t in h if _grams(t, n)] or [0.0]))
    ),
}


def verify_share_read(function: ShareRead) -> str:
    """Raises Wrong or NotAttempted; says what was verified."""
    names = ("held_out", "read", "n")
    given = [
        number(call(function, **dict(zip(names, case, strict=True))), "The share", n=case[2]) for case in SHARE_CASES
    ]
    _judge_numbers(given, SHARE_CASES, share_read_reference, SHARE_MISTAKES, names)
    return f"{len(SHARE_CASES)} pairs of texts, with n-grams that repeat, cross a border, or are not there at all"


def _judge_numbers(
    given: Sequence[float],
    cases: Sequence[tuple],
    reference: Callable[..., float],
    mistakes: dict[str, Callable[..., float]],
    names: tuple[str, ...],
) -> None:
    """Raises Wrong unless all values are right, naming the mistake that gives all of them."""
    wanted = [reference(*case) for case in cases]
    wrong = [n for n, (a, b) in enumerate(zip(given, wanted, strict=True)) if not math.isclose(a, b, rel_tol=1e-6)]
    if not wrong:
        return
    causes = (cause for cause, mistaken in mistakes.items() if _agrees(given, [mistaken(*case) for case in cases]))
    first = wrong[0]
    shown = {name: str(value) for name, value in zip(names, cases[first], strict=True)}
    raise Wrong(
        next(causes, f"{len(wrong)} of {len(cases)} cases come out otherwise: work this one out by hand."),
        **shown,
        wanted=f"{wanted[first]:.4f}",
        given=f"{given[first]:.4f}",
    )


def _agrees(given: Sequence[float], mistaken: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for a, b in zip(given, mistaken, strict=True))


# ---------------------------------------------------------------- the better of two


def pick_better_reference(is_right_a: np.ndarray, is_right_b: np.ndarray) -> str:
    difference = paired_comparison(is_right_a, is_right_b).difference
    return "a" if difference.low > 0 else "b" if difference.high < 0 else "neither"


@dataclass(frozen=True)
class Duel:
    """How many texts both get right, a alone, b alone, and neither."""

    both: int
    only_a: int
    only_b: int
    none: int
    wanted: str

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """bool [N] of each, in a fixed order that is mixed."""
        cells = [(True, True)] * self.both + [(True, False)] * self.only_a
        cells += [(False, True)] * self.only_b + [(False, False)] * self.none
        order = np.random.default_rng(0).permutation(len(cells))
        a, b = np.array(cells).T
        return a[order], b[order]

    def in_words(self) -> str:
        return (
            f"{self.both} texts right by both, {self.only_a} by a alone, {self.only_b} by b alone, {self.none} by none"
        )


DUELS = [
    Duel(60, 40, 5, 20, "a"),
    Duel(60, 5, 40, 20, "b"),
    Duel(150, 12, 9, 29, "neither"),
    Duel(150, 9, 12, 29, "neither"),
    Duel(300, 30, 8, 262, "a"),  # settled by pairs, while the two intervals overlap
    Duel(300, 8, 30, 262, "b"),
    Duel(8, 3, 1, 3, "neither"),  # a large gap on few texts
    Duel(4, 1, 3, 7, "neither"),
    Duel(4800, 95, 25, 80, "a"),  # a small gap on many
    Duel(70, 0, 0, 30, "neither"),
    Duel(500, 9, 1, 490, "a"),
]


def _gap(duel: Duel) -> float:
    return (duel.only_a - duel.only_b) / (duel.both + duel.only_a + duel.only_b + duel.none)


def _by(gap: float, least: float) -> str:
    return "a" if gap > least else "b" if gap < -least else "neither"


def _unpaired(duel: Duel) -> str:
    n = duel.both + duel.only_a + duel.only_b + duel.none
    shares = [(duel.both + duel.only_a) / n, (duel.both + duel.only_b) / n]
    return _by(_gap(duel), sum(1.96 * math.sqrt(share * (1 - share) / n) for share in shares))


PICK_MISTAKES: dict[str, Callable[[Duel], str]] = {
    "The higher accuracy always wins, by however little: on other texts the order may be another. Ask the interval.": (
        lambda duel: _by(_gap(duel), 0.0)
    ),
    "a and b are exchanged.": lambda duel: {"a": "b", "b": "a"}.get(duel.wanted, "neither"),
    "Two intervals that overlap are taken for no difference. Both models saw the same texts: what both get right or "
    "wrong tells nothing, and the interval of the difference is the narrower one.": _unpaired,
    "b never wins: the interval of a - b may lie below 0 as well.": lambda duel: (
        "a" if duel.wanted == "a" else "neither"
    ),
    "a never wins: the interval of a - b may lie above 0 as well.": lambda duel: (
        "b" if duel.wanted == "b" else "neither"
    ),
    "There is always a winner: where the interval holds 0, give back neither.": lambda duel: (
        "a" if duel.wanted == "a" else "b"
    ),
    "It never says that one is better.": lambda duel: "neither",
}
FIXED_GAP = (
    "A gap of fixed size decides, whatever the number of texts: the same gap is luck on 15 texts and settled on 5,000."
)


def verify_pick_better(function: PickBetter) -> str:
    """Raises Wrong or NotAttempted; says what was verified."""
    given = []
    for duel in DUELS:
        a, b = duel.answers()
        answer = call(function, is_right_a=a, is_right_b=b)
        if not isinstance(answer, str) or answer not in ("a", "b", "neither"):
            raise Wrong('Give back "a", "b" or "neither".', texts=duel.in_words(), given=described(answer))
        given.append(answer)
    for duel, answer in zip(DUELS, given, strict=True):
        if answer != duel.wanted:
            raise Wrong(_cause(given), texts=duel.in_words(), wanted=duel.wanted, given=answer)
    return f"{len(DUELS)} pairs of models, on 15 to 5,000 texts"


def _cause(given: list[str]) -> str:
    for cause, mistaken in PICK_MISTAKES.items():
        if given == [mistaken(duel) for duel in DUELS]:
            return cause
    if any(given == [_by(_gap(duel), gap) for duel in DUELS] for gap in (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)):
        return FIXED_GAP
    return "Look at the texts on which only one of the two is right: are they enough to tell?"
