"""Lists of short reviews for the check of chapter 4's split, some of them twice, and the sides that a split gives."""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from course_lib.checks.report import Wrong, described, invoke

LeakFreeSplit = Callable[..., list[bool]]


@cache
def reviews() -> tuple[str, ...]:
    """3,000 distinct short reviews."""
    kinds = (
        "Gripping Slow Honest Tired Bright Clumsy Warm Noisy Bold Empty Funny Odd Vivid Quiet Keen Just Lazy Plain "
        "Rough Zany"
    )
    things = (
        "café story|naïve comedy|first film|cliché|romantic fiasco|thriller|drama|finale|musical|remake of a remake"
    )
    verdicts = (
        "I stayed|we left early|see it twice|never again|I cried|my fiancé slept|it finds its feet|half an hour too "
        "long|the cast saves it|what a waste of a ticket|bring a friend|the book is better|good|not bad|no"
    )
    made = itertools.product(kinds.split(), things.split("|"), verdicts.split("|"))
    return tuple(f"{kind} {thing}: {verdict}" for kind, thing, verdict in made)


@cache
def order_with_copies() -> tuple[int, ...]:
    """Places among the reviews, in no order, 200 of them twice."""
    places = [*range(0, 3000, 5), *range(0, 1000, 5)]
    random.Random(4).shuffle(places)
    return tuple(places)


def copies_of(places: Iterable[int]) -> list[str]:
    """The reviews at these places, each an object of its own."""
    return [reviews()[place][:3] + reviews()[place][3:] for place in places]


def sides_of(function: LeakFreeSplit, texts: Sequence[str], share: float, **evidence: Any) -> list[bool]:
    """Which texts are test. Raises Wrong unless that is a list of as many bools."""
    shown = {"texts": f"{len(texts)} texts, such as {list(texts[:2])}", "test_share": share}
    handed_over = list(texts)
    given = invoke(function, handed_over, share, shown=shown)
    if handed_over != list(texts):
        raise Wrong("The list of texts was changed in place: the caller still needs it in its order.", **shown)
    evidence = shown | evidence
    if not isinstance(given, list):
        raise Wrong(_kind_cause(given, texts), **evidence, given=described(given))
    if len(given) != len(texts):
        raise Wrong(
            _length_cause(given, texts), **evidence, wanted=f"{len(texts)} bools", given=f"{len(given)} elements"
        )
    if odd := [side for side in given if not isinstance(side, bool | np.bool_)]:
        hint = " A comparison gives a bool." if odd[0] in (0, 1) else ""
        raise Wrong(f"Each element should be True (test) or False: one is {type(odd[0]).__name__}.{hint}",
                    **evidence, given=described(odd[0]))  # fmt: skip
    return list(map(bool, given))


def _kind_cause(given: Any, texts: Sequence[str]) -> str:
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, list) for part in given):
        return "That is a pair of lists, as for train and test. Give back one list: True or False for each text."
    hint = ": .tolist() makes it one" if hasattr(given, "tolist") else ""
    return f"Give back a list, True or False for each text: that is {type(given).__name__}{hint}."


def _length_cause(given: list, texts: Sequence[str]) -> str:
    if len(given) == len(set(texts)):
        return (
            "There is one answer for each distinct text: a set, or a dict, has dropped the rows that occur twice. Each "
            "row wants its answer; equal rows get the same."
        )
    if given and isinstance(given[0], str):
        return "The list holds texts: wanted is True or False for each text, in their order."
    if given and all(isinstance(place, int) and not isinstance(place, bool) for place in given):
        return "The list holds the places of texts: wanted is True or False for each text, in their order."
    return "One bool for each text is wanted, in their order."


def on_two_sides(texts: Sequence[str], sides: Sequence[bool]) -> list[str]:
    """The texts that are both test and not."""
    found = defaultdict(set)
    for text, side in zip(texts, sides, strict=True):
        found[text].add(side)
    return [text for text, both in found.items() if len(both) == 2]
