"""Limits on how many calls start per second: a token bucket, kept as one number.

Source: the generic cell rate algorithm (ITU-T I.371), whose state is the theoretical arrival time of the next token.
The state is under a plain lock and belongs to no loop; when another loop (another clock) comes, what is still owed is
carried over. Knows nothing of tools and calls.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from threading import Lock
from time import monotonic
from typing import Any, Final, TypeAlias
from weakref import WeakValueDictionary

import anyio.lowlevel

from ._admission import Waiter
from ._errors import CallRejected, text_of
from ._keyed import FunctionFailed, check_key, key_of
from ._limits import check_seconds, named
from ._mailbox import Mailbox
from ._matching import refuse_async
from ._rate_line import RateLine, RateStatistics
from ._suggest import suggests

__all__ = ["RateLimit", "RateStatistics", "acquire_rates"]

PATIENCE: Final = 4  # lines that one goes to for tokens of several limits before it keeps its places


class RateLimit:
    """At most ``rate`` starts per ``per`` seconds, with up to ``burst`` at once after a pause.

    In each window of T seconds at most ``rate / per * T + burst`` tokens are given out. Several may be stacked (per
    second and per minute): ``Policy(rate=[RateLimit(5), RateLimit(100, per=60, burst=20)])``; then tokens of all are
    taken at one moment. First come, first served. A timer that fires late costs no throughput: the next token is
    counted from when this one was due. May be made at import and used in one event loop after another.

    Args:
        rate: Tokens per ``per`` seconds, above 0.
        per: Seconds, above 0.
        burst: Tokens that may be taken at once, at least 1. The default of 1 spaces all calls evenly.
        cost: A function of the call's inputs (a mapping) that gives its tokens; 1 unless given. A call that costs
            more than ``burst`` can never start and is rejected.
        key: What has a rate of its own: the name of an input, or a function of the inputs. Memory is kept for keys
            whose tokens are not all back.

    Attributes:
        is_keyed: Whether it has a ``key``.
    """

    @suggests
    def __init__(
        self,
        rate: float,
        per: float = 1.0,
        burst: float = 1.0,
        cost: Callable[[Mapping[str, Any]], float] | None = None,
        *,
        key: str | Callable[[Mapping[str, Any]], Hashable] | None = None,
    ) -> None:
        self._rate = check_seconds("RateLimit(rate)", rate, zero=False)
        self._per = check_seconds("RateLimit(per)", per, zero=False)
        self._burst = check_seconds("RateLimit(burst)", burst)
        if self._burst < 1:
            raise ValueError(f"RateLimit(burst) must be at least 1, not {burst}: no call could ever start")
        if cost is not None and not callable(cost):
            raise TypeError(f"RateLimit(cost) must be a function of the inputs, not {cost!r}")
        refuse_async("RateLimit(cost)", cost)
        self.cost = cost
        self.is_keyed = key is not None
        self._buckets = None if key is None else _Buckets(self, key)
        self._interval = self._per / self._rate
        self._slack = (self._burst - 1) * self._interval  # how far ahead of now `_due` may be where one is to be taken
        self._due = -math.inf  # when the bucket would be full again, in the time of the clock below
        self._paused = -math.inf  # until when nothing is given, in the same time
        self._clock = 0  # a mailbox's serial
        self._seen = self._seen_real = 0.0  # the last look at that clock, and at the real one
        self._lock = Lock()
        self._line = RateLine(self._lock)
        self._taken = 0.0

    def __repr__(self) -> str:
        key = "" if self._buckets is None else f", key={named(self._buckets.key)}"
        return f"RateLimit({self._rate:g}, per={self._per:g}, burst={self._burst:g}{key})"

    def __reduce__(self) -> tuple[object, ...]:
        made: Any = type(self) if self._buckets is None else partial(type(self), key=self._buckets.key)
        return (made, (self._rate, self._per, self._burst, self.cost))

    @property
    def rate(self) -> float:
        """Tokens per ``per`` seconds."""
        return self._rate

    def statistics(self) -> RateStatistics:
        """How it stands now."""
        all_keys = self._buckets
        waiting, keys = (len(self._line), 0) if all_keys is None else (all_keys.waiting(), len(all_keys.kept))
        with self._lock:
            return RateStatistics(self._rate, self._per, self._burst, waiting, self._taken, keys)

    @property
    def key(self) -> str | Callable[[Mapping[str, Any]], Hashable] | None:
        """What has a rate of its own."""
        return None if self._buckets is None else self._buckets.key

    def of(self, inputs: Mapping[str, Any]) -> RateLimit:
        """What a call with these inputs takes its tokens of: the rate of its key. On a loop.

        Raises:
            FunctionFailed: The key function raised, or gave what cannot be a key.
        """
        buckets = self._buckets
        if buckets is None:
            return self
        bucket = buckets.get(key_of(self, buckets.key, inputs))
        buckets.forget_some(anyio.current_time(), Mailbox.here().serial)
        return bucket

    def for_key(self, key: Hashable) -> RateLimit:
        """The rate of one key, for code of your own: ``async with limit.for_key("example.org"):``.

        Raises:
            TypeError: The limit has no keys.
        """
        if self._buckets is None:
            raise TypeError(f"{self!r} has no keys: 'async with limit' takes a token of it")
        return self._buckets.get(key)

    def tokens(self, inputs: Mapping[str, Any]) -> float:
        """What a call with these inputs costs.

        Raises:
            CallRejected: More than ``burst``.
            FunctionFailed: The cost function raised, or gave no sensible number.
        """
        if self.cost is None:
            return 1.0
        try:
            tokens = check_seconds("what RateLimit(cost) returns", self.cost(inputs))
        except Exception as error:
            what = f"the cost function of its {self!r} failed, and the tool was not run"
            raise FunctionFailed(f"{what}: {type(error).__name__}: {text_of(error)}") from error
        return self._possible(tokens)

    def _possible(self, tokens: float) -> float:
        if tokens > self._burst:
            raise CallRejected(
                f"the call costs {tokens:g} tokens, {self!r} never holds more than {self._burst:g}: "
                f"split the call or raise burst"
            )
        return tokens

    def _delay(self, tokens: float, now: float, clock: int) -> float:
        """Seconds until ``tokens`` may be taken. Under the lock."""
        real = monotonic()
        if clock != self._clock:
            moved = now - self._seen - (real - self._seen_real)  # what is past on that clock stays past on this one
            self._due, self._paused = (at + moved for at in (self._due, self._paused))
            self._clock = clock
        self._seen, self._seen_real = now, real
        # The bucket holds burst tokens when due <= now.
        delay = max(self._due - now - (self._burst - tokens) * self._interval, self._paused - now)
        # The rounding of sums, and the nanosecond by which asyncio's timers fire early, are no delay: where no clock
        # moves meanwhile (virtual time), such a rest would be slept for without end.
        return delay if delay > max(2e-9, 4 * math.ulp(now)) else min(delay, 0.0)

    def _take(self, tokens: float, at: float) -> None:
        self._due = max(self._due, at) + tokens * self._interval
        self._taken += tokens

    def take_one_nowait(self, mailbox: Mailbox) -> bool:
        """As `acquire_rates_nowait`, of this limit, where no key is asked for; False says nothing."""
        now = mailbox.now()
        with self._lock:
            if self._clock != mailbox.serial or self._paused > now or self._line.waiters:
                return False
            due = self._due
            if due <= now:
                self._due = now + self._interval
            elif due - now <= self._slack:
                self._due = due + self._interval
            else:
                return False
            self._taken += 1.0
            if mailbox.now is not monotonic:  # else what was seen of both is as good as ever
                self._seen, self._seen_real = now, monotonic()
            return True

    async def _until_enough(self, waiter: Waiter, tokens: float, clock: int) -> float:
        """Wait until there are so many tokens for this one, which is first in the line; since when there are."""
        while True:
            now = anyio.current_time()
            with self._lock:
                waiter.event = waiter.mailbox.gate()  # for news from here on
                delay = self._delay(tokens, now, clock)
                if delay <= 0:
                    # What was due while we waited is taken as of then, or late timers would eat the rate.
                    return min(now, max(now - self._interval, now + delay))
            with anyio.move_on_after(delay):
                await waiter.event.wait()

    def pause(self, seconds: float) -> None:
        """Give no token for so many ``seconds``, since a server said so (Retry-After). On a loop.

        Raises:
            TypeError: The limit has keys: pause the rate of one, ``limit.for_key(key)``.
        """
        self._refuse_keyed()
        now = anyio.current_time()
        with self._lock:
            self._delay(0.0, now, Mailbox.here().serial)
            self._paused = max(self._paused, now + seconds)
            # One token is there at the end of the pause, and not a burst for a server that has just complained.
            self._due = max(self._due, now + seconds + (self._burst - 1) * self._interval)

    def refund(self, tokens: float = 1.0) -> None:
        """Give ``tokens`` back that were taken and not used.

        Raises:
            TypeError: The limit has keys: refund the rate of one, ``limit.for_key(key)``.
        """
        self._refuse_keyed()
        with self._lock:
            self._due -= tokens * self._interval
            self._taken -= tokens
        self._line.call_first()  # who sleeps until they would have been there without these

    def _refuse_keyed(self) -> None:
        if self.is_keyed:
            raise TypeError(f"{self!r} has a rate for each key: say whose, as in 'async with limit.for_key(key)'")

    async def acquire(self, tokens: float = 1.0) -> None:
        """Take tokens, waiting in line until they are there.

        Raises:
            CallRejected: More than ``burst``: that many are never there.
            ValueError: No sensible number.

        Cancellation: Leaves the line; nothing was taken.
        """
        self._refuse_keyed()
        await acquire_rates([(self, self._possible(check_seconds("acquire(tokens)", tokens)))])

    async def __aenter__(self) -> None:
        await anyio.lowlevel.checkpoint_if_cancelled()
        await self.acquire()

    async def __aexit__(self, *exc_info: object) -> None:
        return None


class _Bucket(RateLimit):
    """The rate of one key."""

    def __init__(self, parent: RateLimit, key: Hashable, keep: Callable[[_Bucket], None]) -> None:
        super().__init__(parent._rate, parent._per, parent._burst)
        self._parent = parent
        self.name = key
        self._keep = keep

    def __repr__(self) -> str:
        return f"{self._parent!r}.for_key({self.name!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (RateLimit.for_key, (self._parent, self.name))

    def _take(self, tokens: float, at: float) -> None:
        super()._take(tokens, at)
        self._keep(self)
        with self._parent._lock:
            self._parent._taken += tokens

    def pause(self, seconds: float) -> None:
        super().pause(seconds)
        self._keep(self)

    def refund(self, tokens: float = 1.0) -> None:
        super().refund(tokens)
        with self._parent._lock:
            self._parent._taken -= tokens

    def is_as_new(self, now: float, clock: int) -> bool:
        """Whether a fresh one would give the same."""
        with self._lock:
            return not self._line and self._delay(self._burst, now, clock) <= 0


class _Buckets:
    """The buckets of a limit's keys. One that is as new is forgotten, but not while anybody has it in hand."""

    LOOKED_AT: Final = 2  # each time one is asked for: more than are added, so that memory follows use

    def __init__(self, limit: RateLimit, key: str | Callable[[Mapping[str, Any]], Hashable]) -> None:
        check_key("RateLimit(key)", key)
        self.key, self._limit = key, limit
        self._lock = Lock()
        self._known: WeakValueDictionary[Hashable, _Bucket] = WeakValueDictionary()
        self.kept: OrderedDict[Hashable, _Bucket] = OrderedDict()  # those of which tokens were taken

    def get(self, key: Hashable) -> _Bucket:
        with self._lock:
            bucket = self._known.get(key)
            if bucket is None:
                bucket = self._known[key] = _Bucket(self._limit, key, self._keep)
            return bucket

    def _keep(self, bucket: _Bucket) -> None:
        with self._lock:
            self.kept[bucket.name] = bucket

    def waiting(self) -> int:
        with self._lock:
            return sum(len(bucket._line) for bucket in self._known.values())

    def forget_some(self, now: float, clock: int) -> None:
        for _ in range(self.LOOKED_AT):
            with self._lock:
                if not self.kept:
                    return
                _, bucket = self.kept.popitem(last=False)
            if not bucket.is_as_new(now, clock):  # asked after it is out: who takes a token meanwhile keeps it
                self._keep(bucket)


Places: TypeAlias = list[tuple[RateLimit, Waiter]]


def acquire_rates_nowait(wanted: Sequence[tuple[RateLimit, float]], mailbox: Mailbox) -> bool:
    """Take from all limits at this moment if all have enough and nobody waits; whether it did. On that loop."""
    now = mailbox.now()
    return _blocking(wanted, now, mailbox.serial, [], now)[0] is None


def _blocking(
    wanted: Sequence[tuple[RateLimit, float]], now: float, clock: int, mine: Places, due: float
) -> tuple[RateLimit | None, float]:
    """Take all and give None, or the limit to wait for and for how long. `mine` is where we are in line."""
    worst: RateLimit | None = None
    longest = -1.0
    locked: list[RateLimit] = []
    try:
        for limit, tokens in sorted(wanted, key=lambda pair: id(pair[0])) if len(wanted) > 1 else wanted:
            limit._lock.acquire()
            locked.append(limit)
            delay = limit._delay(tokens, now, clock)
            if delay <= 0:
                line = limit._line
                if not line or any(one is limit and line.is_first(waiter) for one, waiter in mine):
                    continue
                delay = 0.0
            if delay > longest:
                worst, longest = limit, delay
        if worst is None:
            for limit, tokens in wanted:
                limit._take(tokens, due)
        return worst, longest
    finally:
        for limit in locked:
            limit._lock.release()


async def acquire_rates(wanted: Sequence[tuple[RateLimit, float]]) -> None:
    """Take tokens of all limits at one moment, waiting in the line of whichever is furthest from having them.

    Who goes from line to line leaves each, so that nobody in it waits for a limit that he does not need; but for one
    whom others in both lines would keep going for good: from some time on it keeps its place, in one order of limits.

    Cancellation: Leaves the lines; nothing was taken.
    """
    mailbox = Mailbox.here()
    clock, due = mailbox.serial, mailbox.now()
    places: Places = []
    blocker, _ = _blocking(wanted, due, clock, places, due)
    moves = 0
    try:
        while blocker is not None:
            waiter = Waiter(mailbox)
            tokens = next(tokens for limit, tokens in wanted if limit is blocker)
            blocker._line.join(waiter)
            places.append((blocker, waiter))
            await blocker._line.until_first(waiter)
            due = await blocker._until_enough(waiter, tokens, clock)
            blocker, _ = _blocking(wanted, anyio.current_time(), clock, places, due)
            moves += 1
            if moves < PATIENCE or any(id(blocker) <= id(limit) for limit, _ in places):
                _leave(places)
    finally:
        _leave(places)


def _leave(places: Places) -> None:
    while places:
        limit, waiter = places.pop()
        limit._line.leave(waiter)
