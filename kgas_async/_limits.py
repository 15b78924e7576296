"""`ConcurrencyLimit`: at most so many calls at once, in all and of each key. Its counts belong to no event loop."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final

import anyio

from ._admission import Limit, Waiter, enter, leave
from ._clearing import Clearing
from ._errors import CallRejected, shown
from ._keyed import KeyedLine, check_key, key_of
from ._mailbox import Mailbox
from ._priority import Priority, check_priority
from ._suggest import suggests

__all__ = ["ConcurrencyLimit", "KeyTokens", "check_count", "check_seconds", "check_text", "named", "one_of"]

OPTIMISM: Final = 2  # nobody is turned away who would make it if tokens came so many times as fast as they lately did
_NORMAL: Final = int(Priority.NORMAL)


def check_count(what: str, value: object, least: int = 1) -> int:
    """A whole number of at least ``least``, or an error that names the parameter."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, not {value}")
    return value


def one_of(name: str, value: object, first: str, second: str) -> None:
    """Refuse what is neither of two words.

    Raises:
        ValueError: It names both.
    """
    if value not in (first, second):
        raise ValueError(f"{name}= is {first!r} or {second!r}, not {value!r}")


def check_text(what: str, value: object, *, empty: bool = False) -> str:
    """A string with something in it, or an error that names the parameter."""
    if not isinstance(value, str) or not (value or empty):
        raise TypeError(f"{what} is a {'' if empty else 'non-empty '}string, not {shown(value)}")
    return value


def check_seconds(what: str, value: object, *, zero: bool = True) -> float:
    """A finite number of seconds (or tokens), or an error that names the parameter."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:  # a whole number beyond all floats
        seconds = math.inf
    if math.isnan(seconds) or math.isinf(seconds):
        raise ValueError(f"{what} must be a finite number, not {value}; None is no limit")
    if seconds < 0 or (seconds == 0 and not zero):
        raise ValueError(f"{what} must be {'at least 0' if zero else 'above 0'}, not {value}")
    return seconds


class ConcurrencyLimit(Limit):
    """At most ``total`` calls at once, across all tools, managers and threads that it is given to.

    A token is held for exactly as long as the work that it admitted runs, also by an abandoned thread. Waiters are
    served by `Priority`, with keys in turns, first come first served. May be made at import and used in one event loop
    after another.

    Args:
        total: Tokens, at least 1. ``limit.total = n`` changes it: more wake waiters, fewer let those that run end.
        key: What tokens are counted apart by: the name of an input, or a function of the inputs (a mapping). Keys that
            wait take turns, so that a busy one does not starve the others.
        per_key: Tokens of one key at the most; ``total`` unless given.
        max_queue: How many may wait, of each key where there are keys. One more is rejected at once, and so is a call
            that would not get its token before its deadline if tokens came twice as fast as they lately did.
    """

    @suggests
    def __init__(
        self,
        total: int,
        *,
        key: str | Callable[[Mapping[str, Any]], Hashable] | None = None,
        per_key: int | None = None,
        max_queue: int | None = None,
    ) -> None:
        super().__init__(check_count("ConcurrencyLimit(total)", total))
        if key is not None:
            check_key("ConcurrencyLimit(key)", key)
            # Without a number of its own a key may have all that there are, also once the total has been changed.
            self._line = KeyedLine(
                sys.maxsize if per_key is None else check_count("ConcurrencyLimit(per_key)", per_key)
            )
            self.is_keyed = True
        elif per_key is not None:
            raise TypeError("ConcurrencyLimit(per_key) needs key=..., what the calls are told apart by")
        self._key, self._per_key = key, per_key
        self._max_queue = None
        if max_queue is not None:
            self._max_queue = check_count("ConcurrencyLimit(max_queue)", max_queue, 0)
            self._clearing = Clearing()
            self.refuses = True

    def __repr__(self) -> str:
        given = {"key": self._key, "per_key": self._per_key, "max_queue": self._max_queue}
        names = [f"{name}={named(value)}" for name, value in given.items() if value is not None]
        return f"ConcurrencyLimit({', '.join([str(self._total), *names])})"

    def __reduce__(self) -> tuple[object, ...]:
        # By its arguments: the tokens that are out belong to this process.
        given: dict[str, Any] = {"key": self._key, "per_key": self._per_key, "max_queue": self._max_queue}
        return (partial(type(self), **given), (self._total,))

    @property
    def total(self) -> int:
        """How many tokens there are; may be set, from any thread."""
        return self._total

    @total.setter
    def total(self, total: int) -> None:
        self._resize(check_count("ConcurrencyLimit.total", total))

    def acquire_nowait(self) -> bool:
        """Take a token if one is free; whether it did. From any thread."""
        try:
            self._spare.pop()
        except IndexError:
            return super().acquire_nowait()
        return True

    def release(self) -> None:
        """Give a token back, to whoever is next. From any thread, with any loop or none.

        Raises:
            RuntimeError: None was taken.
        """
        # Where nobody waits it is put by for the next without the lock, which would cost more than all the rest; the
        # deque is atomic. Whoever lines up or changes the total does so first and looks at the deque afterwards, and
        # here it is the other way round: so one of the two sees the other.
        spare = self._spare
        if not self._line.size and len(spare) < self._borrowed <= self._total:
            spare.append(None)
            if not self._line.size and self._borrowed <= self._total:
                return
            try:
                spare.pop()
            except IndexError:  # whoever came for it has it
                return
        super().release()

    @property
    def key(self) -> str | Callable[[Mapping[str, Any]], Hashable] | None:
        """What its tokens are counted apart by."""
        return self._key

    def of(self, inputs: Mapping[str, Any]) -> KeyTokens:
        """What a call with these inputs takes its token of.

        Raises:
            FunctionFailed: The key function raised, or gave what cannot be a key.
        """
        assert self._key is not None
        return KeyTokens(self, key_of(self, self._key, inputs))

    def for_key(self, key: Hashable) -> KeyTokens:
        """The tokens of one key, for code of your own: ``async with limit.for_key("example.org"):``.

        Without it ``async with limit`` takes a token that only ``total`` bounds.

        Raises:
            TypeError: The limit has no keys, or this cannot be one.
        """
        if self._key is None:
            raise TypeError(f"{self!r} has no keys: 'async with limit' takes a token of it")
        hash(key)
        return KeyTokens(self, key)

    def _give_key(self, key: Hashable) -> None:
        with self._lock:
            line = self._line
            assert isinstance(line, KeyedLine)
            if not line.has_given(key):
                raise RuntimeError(f"a token of key {key!r} was given back that was not taken")
            self._give_back(key)
            served = self._serve()
        self._wake(served)

    def _check_queue(self, waiter: Waiter) -> None:
        clearing = self._clearing
        if clearing is None:
            return
        line = self._line
        crowd = line.crowd(waiter)
        assert self._max_queue is not None
        if crowd >= self._max_queue:
            raise CallRejected(
                f"{crowd} wait for {self!r} already (max_queue); try again later, or raise max_queue",
                retry_after=clearing.seconds_for(1),
            )
        left = anyio.current_effective_deadline() - anyio.current_time()
        needed = line.ahead_of(waiter) + 1 - self._total  # as if all that run now ended at once
        seconds = clearing.seconds_for(needed)
        if seconds is not None and seconds / OPTIMISM > left > -math.inf:
            raise CallRejected(
                f"{line.ahead_of(waiter)} wait for {self!r} before it, which will take some {seconds:.3g} s, and "
                f"{left:.3g} s are left of its deadline",
                retry_after=seconds - left,
            )
        if not line.size:
            clearing.begin(waiter.mailbox.time)


class KeyTokens:
    """The tokens of one key of a `ConcurrencyLimit`; from `ConcurrencyLimit.for_key`.

    Attributes:
        key: Whose tokens they are.
    """

    __slots__ = ("_limit", "key")

    def __init__(self, limit: ConcurrencyLimit, key: Hashable) -> None:
        self._limit = limit
        self.key = key

    def __repr__(self) -> str:
        return f"{self._limit!r}.for_key({self.key!r})"

    @property
    def most(self) -> int:
        """How many tokens it may have at once."""
        limit = self._limit
        return limit._total if limit._per_key is None else min(limit._per_key, limit._total)

    def acquire_nowait(self) -> bool:
        """Take a token if one is free; whether it did. From any thread."""
        limit = self._limit
        with limit._lock:
            limit._settle()
            if limit._borrowed >= limit._total or not limit._has_room(self.key):
                return False
            limit._take(self.key)
            return True

    async def acquire(self, priority: int = _NORMAL) -> None:
        """Take a token, waiting in line for it. As `ConcurrencyLimit.acquire`."""
        if not self.acquire_nowait():
            await self.wait_for_token(Mailbox.here(), check_priority("acquire(priority)", priority))

    async def wait_for_token(self, mailbox: Mailbox, priority: int) -> None:
        """Take a token, waiting in line for it, on the loop of this mailbox; as of `acquire`."""
        await self._limit._wait(Waiter(mailbox, priority, self.key))

    def release(self) -> None:
        """Give a token back. From any thread, with any loop or none."""
        self._limit._give_key(self.key)

    async def __aenter__(self) -> None:
        await enter(self._limit, self)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        leave(self._limit, self, exc)


def named(value: object) -> str:
    """A function or class by its name, a tuple by those of its parts, anything else by its repr."""
    if type(value) is tuple:
        return f"({', '.join(map(named, value))}{',' if len(value) == 1 else ''})"
    return getattr(value, "__qualname__", repr(value))
