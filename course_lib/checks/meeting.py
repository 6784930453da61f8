"""Ranks of a data-parallel step as threads of this process, which meet wherever all of them call `total`.

No rank waits for one that will not come: where one has come back, or is still at work when time is up, those that wait
are let go, and what each had done by then can be read off.
"""

import numbers
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from course_lib.checks.report import described

Total = Callable[[float], float]


class Stranded(BaseException):  # so that no `except Exception` of a learner's swallows it
    """Raised where a rank waits in `total` and one of the others will not come."""


class Meeting:
    """What happens when every rank does its work.

    By rank: what came `back`, the `errors`, its `calls` of total; whether it `has_left` (has come back or failed)
    before time was up, and `is_stranded` (was let go where it waited).
    """

    patience = 5.0  # seconds; a step of the checks takes some hundredths of one

    def __init__(self, world: int) -> None:
        self.world = world
        self.back: list[Any] = [None] * world
        self.errors: list[BaseException | None] = [None] * world
        self.has_left, self.is_waiting, self.is_stranded = ([False] * world for _ in range(3))
        self._handed: list[list[float]] = [[] for _ in range(world)]  # to each call of total
        self._is_over = False
        self._changed = threading.Condition()

    @property
    def calls(self) -> list[int]:
        return [len(handed) for handed in self._handed]

    def hold(self, work: Callable[[int, Total], Any]) -> "Meeting":
        """Do work(rank, total) for all ranks. One rank alone works in the caller's thread, where Stop reaches it."""
        if self.world == 1:
            self._attend(work, 0)
            return self
        threads = [threading.Thread(target=self._attend, args=(work, rank), daemon=True) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + self.patience
        try:
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
        finally:
            with self._changed:
                hung = [not left and not waits for left, waits in zip(self.has_left, self.is_waiting, strict=True)]
                self._is_over = True
                self._changed.notify_all()
        for thread, is_hung in zip(threads, hung, strict=True):
            thread.join(0.0 if is_hung else self.patience)
        return self

    def total(self, rank: int, value: float) -> float:
        """The sum of what all ranks hand in at their calls of the same number."""
        if not isinstance(value, (numbers.Real, Tensor)) or (isinstance(value, Tensor) and value.numel() != 1):
            given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else described(value)
            raise TypeError(f"total adds up one number of each rank, and was given {given}")
        value = float(value.detach() if isinstance(value, Tensor) else value)
        with self._changed:
            self._handed[rank].append(value)
            turn = len(self._handed[rank])
            self._changed.notify_all()
            self.is_waiting[rank] = True
            self._changed.wait_for(lambda: self._are_here(turn) or self._is_hopeless(turn))
            self.is_waiting[rank] = False
            if not self._are_here(turn):
                self.is_stranded[rank] = True
                raise Stranded
            return sum(handed[turn - 1] for handed in self._handed)

    def _are_here(self, turn: int) -> bool:
        return min(self.calls) >= turn

    def _is_hopeless(self, turn: int) -> bool:
        is_missed = any(left and calls < turn for left, calls in zip(self.has_left, self.calls, strict=True))
        return is_missed or self._is_over

    def _attend(self, work: Callable[[int, Total], Any], rank: int) -> None:
        back, error = None, None
        try:
            back = work(rank, partial(self.total, rank))
        except BaseException as raised:  # noqa: BLE001 a thread that fails would only print it
            error = raised
        with self._changed:
            self.back[rank], self.errors[rank] = back, error
            self.has_left[rank] = not self._is_over
            self._changed.notify_all()
