"""What all limits on calls at once have in common: tokens, their count, and a line of those who wait.

The count is under a plain lock and belongs to no event loop; a token is given back by whoever ends the work, a thread
included, even when the loop has ended. Only waiters know their loop. Knows nothing of tools and calls, but for what is
in the context.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import count
from threading import Lock
from types import TracebackType
from typing import Any, Final, TypeAlias

import anyio
import anyio.lowlevel

from ._clearing import Clearing
from ._keyed import NO_KEY, KeyedLine
from ._mailbox import Mailbox
from ._order import call_here, hold, is_reentry, let_go, waits_in_vain
from ._priority import Priority, PriorityLine, check_priority, priority_of

__all__ = ["Limit", "LimitStatistics", "Waiter", "enter", "leave"]

_NORMAL: Final = int(Priority.NORMAL)

News: TypeAlias = deque[tuple[str, dict[str, Any]]]

_NO_NEWS: Final[News] = deque(maxlen=0)
_serials = count(1)


@dataclass(frozen=True, slots=True)
class LimitStatistics:
    """A limit at one moment.

    Attributes:
        total: Tokens there are.
        borrowed: Tokens in use.
        waiting: Waiters for one.
        peak: The most that were ever in use at once.
        keys: Keys that hold tokens or wait; 0 for a limit without ``key``.
    """

    total: int
    borrowed: int
    waiting: int
    peak: int
    keys: int = 0


class Waiter:
    """Somebody in some loop who waits for a token."""

    __slots__ = ("event", "granted", "has_left", "key", "mailbox", "passed_over", "priority")

    def __init__(self, mailbox: Mailbox, priority: int = _NORMAL, key: Hashable = NO_KEY) -> None:
        self.mailbox = mailbox
        self.event = mailbox.gate()
        self.priority = priority
        self.key = key
        self.granted = False
        self.has_left = False  # it was cancelled
        self.passed_over = False  # its loop had ended

    def wake(self) -> bool:
        """From any thread. False where its loop has ended: the token goes to the next."""
        if self.mailbox.is_running_here():
            self.event.set()  # on its loop already: no hand-over between threads
            return True
        return self.mailbox.put(self.event.set)


class Limit:
    """What all limits on calls at once have in common: tokens, a count, and a line of waiters by priority.

    Whenever the lock is free and somebody waits who could have a token, all tokens are out: so whoever finds one free
    overtakes nobody, but for a thread that comes at the very moment at which another puts one by.

    Attributes:
        serial: The order in which the limits of one policy are taken, by all alike.
        is_keyed: Whether a call takes its token of what `ConcurrencyLimit.of` gives.
        refuses: Whether it may turn somebody away instead of letting them wait.
        is_reentrant: Whether a call that is nested in one that holds a token gets another without waiting.
        news: What is to be recorded, as events and their fields, the newest; of length 0 where nothing ever is.
    """

    is_keyed = False
    is_reentrant = False
    refuses = False

    def __init__(self, total: int) -> None:
        self._total = total
        self._borrowed = 0  # those in `_spare` too
        self._spare: deque[None] = deque()  # see `ConcurrencyLimit.release`; empty where a limit knows nothing of it
        self._lock = Lock()
        self._line: PriorityLine | KeyedLine = PriorityLine()
        self._peak = 0
        self._clearing: Clearing | None = None
        self.news: News = _NO_NEWS
        self.serial = next(_serials)

    @property
    def total(self) -> int:
        """How many tokens there are."""
        return self._total

    @property
    def borrowed(self) -> int:
        """How many tokens are out."""
        return self._borrowed - len(self._spare)

    def statistics(self) -> LimitStatistics:
        """How it stands now."""
        with self._lock:
            keys = self._line.keys if isinstance(self._line, KeyedLine) else 0
            return LimitStatistics(self._total, self.borrowed, self._line.size, self._peak, keys)

    def acquire_nowait(self) -> bool:
        """Take a token if one is free; whether it did. From any thread."""
        with self._lock:
            self._settle()
            borrowed = self._borrowed
            if borrowed >= self._total:
                return False
            self._borrowed = borrowed = borrowed + 1
            if borrowed > self._peak:
                self._peak = borrowed
            return True

    async def acquire(self, priority: int = _NORMAL) -> None:
        """Take a token, waiting in line for it.

        Args:
            priority: A `Priority`, or a whole number from 0 to 9.

        Raises:
            CallRejected: Too many wait already, or it could not be had in time (``max_queue``).

        Cancellation: Leaves the line; a token that was granted at the same moment goes to the next.
        """
        if not self.acquire_nowait():
            await self.wait_for_token(Mailbox.here(), check_priority("acquire(priority)", priority))

    async def wait_for_token(self, mailbox: Mailbox, priority: int) -> None:
        """Take a token, waiting in line for it, on the loop of this mailbox; as of `acquire`."""
        await self._wait(Waiter(mailbox, priority))

    def of(self, inputs: Mapping[str, Any]) -> Any:
        """What a call with these inputs takes its token of."""
        return self

    def join(self) -> None:
        """Take a token that may be one more than there are, for one whose own chain of calls was admitted."""
        with self._lock:
            self._borrowed += 1
            self._peak = max(self._peak, self._borrowed)

    async def _wait(self, waiter: Waiter) -> None:
        if self.line_up(waiter):
            return
        try:
            await self._stand(waiter)
        except BaseException:
            self.step_out(waiter)
            raise

    def line_up(self, waiter: Waiter) -> bool:
        """Join the line; True where a token is free after all, which it has then."""
        with self._lock:
            self._settle()
            if self._borrowed < self._total and self._has_room(waiter.key):  # given back meanwhile
                self._take(waiter.key)
                return True
            self._check_queue(waiter)
            self._line.push(waiter)
            if not self._spare:
                return False
            self._settle()  # what was given back since, by a thread that saw nobody in line
            served = self._serve()
        self._wake(served)
        return False

    def step_out(self, waiter: Waiter) -> None:
        """Leave the line; a token that was granted meanwhile goes to the next."""
        if waiter.passed_over:  # collected as garbage, whenever that is: this thread may have the lock just then
            return
        with self._lock:
            granted = waiter.granted
            waiter.has_left = True
            if not granted:
                self._line.remove(waiter)
        if granted:
            self._give(waiter.key)

    async def _stand(self, waiter: Waiter) -> None:
        """Wait in line."""
        await waiter.event.wait()

    def release(self) -> None:
        """Give a token back, to whoever is next. From any thread, with any loop or none.

        Raises:
            RuntimeError: None was taken.
        """
        with self._lock:
            if self.borrowed <= 0:
                raise RuntimeError("a token was given back that was not taken")
            self._borrowed -= 1
            self._settle()
            if not self._line.size:
                return
            served = self._serve()
        self._wake(served)

    # --- under the lock

    def _settle(self) -> None:
        """Count the spare tokens as free."""
        while self._spare:
            try:
                self._spare.pop()
            except IndexError:  # somebody has just taken it
                return
            self._borrowed -= 1

    def _has_room(self, key: Hashable) -> bool:
        return key is NO_KEY or not isinstance(self._line, KeyedLine) or self._line.has_room(key)

    def _take(self, key: Hashable) -> None:
        self._borrowed += 1
        self._peak = max(self._peak, self._borrowed)
        if key is not NO_KEY and isinstance(self._line, KeyedLine):
            self._line.take(key)

    def _give_back(self, key: Hashable) -> None:
        self._borrowed -= 1
        if key is not NO_KEY and isinstance(self._line, KeyedLine):
            self._line.give(key)

    def _check_queue(self, waiter: Waiter) -> None:
        """
        Raises:
            CallRejected: This one may not wait.
        """

    def _serve(self) -> list[Waiter]:
        """Hand the free tokens to those whose turn it is; they are to be woken without the lock."""
        served: list[Waiter] = []
        while self._borrowed < self._total and (waiter := self._line.pop()) is not None:
            waiter.granted = True
            self._borrowed += 1
            served.append(waiter)
            if self._clearing is not None:
                self._clearing.note_grant(waiter.mailbox.time)
        self._peak = max(self._peak, self._borrowed)
        return served

    # --- without it

    def _wake(self, served: list[Waiter]) -> None:
        while served:
            waiter = served.pop()
            if waiter.wake():
                continue
            with self._lock:  # its loop has ended; either it has given the token on when it was cancelled, or we do
                if waiter.has_left:
                    continue
                waiter.granted = False
                waiter.passed_over = True
                self._give_back(waiter.key)
                served += self._serve()

    def _give(self, key: Hashable) -> None:
        """Give back a token of this key."""
        with self._lock:
            self._give_back(key)
            served = self._serve()
        self._wake(served)

    def _resize(self, total: int) -> None:
        """From now on there are so many tokens; those that are out stay out."""
        with self._lock:
            self._total = total  # first: whoever puts a token by looks at it afterwards
            self._settle()
            served = self._serve()
        self._wake(served)

    async def __aenter__(self) -> None:
        await enter(self, self)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        leave(self, self, exc)

    def _left(self, began: float, clock: Callable[[], float], error: BaseException | None) -> None:
        """Code that held a token by ``async with`` has ended, so."""


async def enter(limit: Limit, door: Any) -> None:
    """What ``async with`` does: take a token of the limit at its door (the limit, or one key of it).

    Raises:
        RuntimeError: It would wait for itself, or the order is against one that was seen.
        CallRejected: As of `Limit.acquire`.
    """
    await anyio.lowlevel.checkpoint_if_cancelled()
    mailbox = Mailbox.here()
    task = mailbox.task()
    if is_reentry(limit, task):
        limit.join()
    elif not door.acquire_nowait():
        call = call_here()
        if waits_in_vain(call, limit, door):
            raise RuntimeError(
                f"tool {call.tool_name!r} enters {limit!r}, which the code that waits for its call has entered: they "
                f"would wait for each other; leave out one of the two, or use two limits"
            )
        await door.acquire(priority_of(call))
    hold(limit, door, task, mailbox.time())


def leave(limit: Limit, door: Any, error: BaseException | None) -> None:
    """The other end of `enter`."""
    mailbox = Mailbox.here()
    held = let_go(limit, mailbox.task())
    try:
        if held is not None:
            limit._left(held.began, mailbox.time, error)
    finally:
        door.release()  # also where a user's function, which was to judge the error, raises
