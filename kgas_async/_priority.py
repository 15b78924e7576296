"""Who is next among those who wait: by priority, first come first served inside one, and nobody starves.

Pure bookkeeping: whoever calls holds a lock. Knows nothing of tokens, events and loops.

Source: the rule against starvation is that of ``writes_starved`` in Linux's deadline I/O scheduler: the preferred
queue goes first, but a queue that waits is passed over only so many times.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import IntEnum
from typing import Any, Final

__all__ = ["AGEING", "Priority", "PriorityLine", "check_priority", "priority_of"]

AGEING: Final = 8  # how often a line is passed over, for each other line that waits, until it is next


class Priority(IntEnum):
    """Whose turn it is among calls that wait for a token; the whole numbers from 0 to 9 are priorities too.

    The higher goes first; first come, first served inside one. Calls of one priority that wait are passed over at most
    8 times for each other priority that waits, then one of them is next: a steady stream of CRITICAL calls lets
    one LOW call through after every eighth.
    """

    LOW = 0
    NORMAL = 3
    HIGH = 6
    CRITICAL = 9


def check_priority(what: str, value: object) -> int:
    """A priority as a plain number.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a Priority or a whole number, not {value!r}")
    if not Priority.LOW <= value <= Priority.CRITICAL:
        raise ValueError(
            f"{what} must be from {int(Priority.LOW)} (Priority.LOW) to {int(Priority.CRITICAL)} (Priority.CRITICAL), "
            f"not {value}"
        )
    return int(value)


def priority_of(call: Any) -> int:
    """By `options`, else by its policy, else that of the call that it is nested in, else `Priority.NORMAL`."""
    while call is not None:
        given: int | None = call.bound.priority if call.given_priority is None else call.given_priority
        if given is not None:
            return given
        call = call.parent
    return int(Priority.NORMAL)


class _Level:
    """Those who wait at one priority, and when (in grants) one of them was last served."""

    __slots__ = ("since", "waiters")

    def __init__(self, since: int) -> None:
        self.since = since
        self.waiters: OrderedDict[Any, None] = OrderedDict()


class PriorityLine:
    """Waiters, each with a ``priority``. All operations are O(1): there are ten levels."""

    __slots__ = ("_grants", "_levels", "size")

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}  # those at which somebody waits
        self._grants = 0
        self.size = 0

    def push(self, waiter: Any) -> None:
        """Join the line."""
        level = self._levels.get(waiter.priority)
        if level is None:
            level = self._levels[waiter.priority] = _Level(self._grants)
        level.waiters[waiter] = None
        self.size += 1

    def pop(self) -> Any:
        """Whose turn it is, or None. They leave the line."""
        levels = self._levels
        if not levels:
            return None
        priority = next(iter(levels)) if len(levels) == 1 else self._next()
        level = levels[priority]
        waiter, _ = level.waiters.popitem(last=False)
        self.size -= 1
        self._grants = level.since = self._grants + 1
        if not level.waiters:
            del levels[priority]
        return waiter

    def _next(self) -> int:
        levels = self._levels
        longest = min(levels, key=lambda priority: levels[priority].since)
        if self._grants - levels[longest].since >= AGEING * (len(levels) - 1):
            return longest
        return max(levels)

    def remove(self, waiter: Any) -> None:
        """Leave the line, if still in it."""
        level = self._levels.get(waiter.priority)
        if level is None or waiter not in level.waiters:
            return
        del level.waiters[waiter]
        self.size -= 1
        if not level.waiters:
            del self._levels[waiter.priority]

    def ahead_of(self, waiter: Any) -> int:
        """How many would be served before this newcomer, whoever joins later and ageing apart."""
        return sum(len(level.waiters) for priority, level in self._levels.items() if priority >= waiter.priority)

    def crowd(self, waiter: Any) -> int:
        """How many wait in the queue that ``max_queue`` bounds for this newcomer: here all."""
        return self.size
