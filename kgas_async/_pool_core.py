"""Which resource of a pool goes to whom, which are made, checked and closed: decisions, which take the time.

Knows neither tasks nor threads. After each step `orders` says what is to be done with which resource.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Entry", "PoolBounds", "PoolCore", "PoolStatistics", "Waiter"]

Order = Literal["make", "check", "close"]


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A pool at one moment.

    Attributes:
        size: Resources that there may be.
        open: Those that there are, with those being made and being closed: what ``size`` bounds.
        idle: Those that nobody uses.
        in_use: Those that somebody uses.
        users: How many use one; more than ``in_use`` where they are shared.
        waiting: Who waits for one.
        peak: The most that were ever open at once.
        bytes: What the open ones take, by the pool's ``cost``.
        made: Resources that were made.
        served: How often one was had.
        wait_s: Seconds that those had waited, added up.
        failed: Resources that could not be made.
        timed_out: How often nobody could be served in time.
        dropped: Those closed because they were broken, by their user or by their check.
        evicted: Those closed because of their age, their uses, their idleness, or for the room that they took.
    """

    size: int
    open: int
    idle: int
    in_use: int
    users: int
    waiting: int
    peak: int
    bytes: int
    made: int
    served: int
    wait_s: float
    failed: int
    timed_out: int
    dropped: int
    evicted: int


@dataclass(frozen=True, slots=True)
class PoolBounds:
    """What a pool keeps to; see `Pool`."""

    size: int
    users: int | None = 1
    max_age: float = math.inf
    max_uses: float = math.inf
    max_idle: float = math.inf
    max_bytes: float = math.inf
    checks: bool = False


class Entry:
    """One resource, from the decision to make it until it is closed.

    Attributes:
        state: ``making``, ``ready``, ``checking``, ``closing``, ``gone``.
        users: How many use it.
        uses: How many ever did.
        was_made: It was, and ``value`` is it.
        is_doubtful: An error left the hands of its last user, and it was kept all the same.
        is_broken: It goes to nobody any more.
    """

    def __init__(self, key: Hashable, cost: int) -> None:
        self.key = key
        self.cost = cost
        self.state: Literal["making", "ready", "checking", "closing", "gone"] = "making"
        self.value: Any = None
        self.made_at = 0.0
        self.idle_since = 0.0
        self.turn = 0  # tells what was used last where a coarse clock does not
        self.users = 0
        self.uses = 0
        self.was_made = False
        self.is_doubtful = False
        self.is_broken = False
        self.kept: Any = None  # what whoever obeys the orders keeps with it


class Waiter:
    """Somebody who wants a resource; has it (``entry``), or an error, when ``on_settled`` is called."""

    def __init__(
        self, key: Hashable, since: float, until: float, on_settled: Callable[[], object], cost: int = 0
    ) -> None:
        self.key = key
        self.cost = cost
        self.since = since
        self.until = until
        self.on_settled = on_settled
        self.coming: Entry | None = None  # that is made or checked because of it
        self.entry: Entry | None = None
        self.error: BaseException | None = None


class PoolCore:
    """The resources of one pool, and the line of those who wait; first come, first served."""

    def __init__(self, bounds: PoolBounds, name: str = "") -> None:
        self.bounds = bounds
        self.name = name
        self.entries: list[Entry] = []
        self.waiting: list[Waiter] = []
        self.orders: deque[tuple[Order, Entry]] = deque()
        self.is_over = False
        self._is_blocked = False  # somebody in the line waits for room, and so do all behind
        self.peak = self.made_total = self.served = self.failed_total = self._turns = 0
        self.timed_out = self.dropped = self.evicted = 0
        self.wait_s = 0.0

    # --- those who want one

    def ask(self, waiter: Waiter) -> None:
        """Serve a waiter, or put it into the line."""
        self.waiting.append(waiter)
        if not self._is_blocked:  # all before it have one coming
            self._serve(waiter.since, len(self.waiting) - 1)

    def withdraw(self, waiter: Waiter, now: float) -> None:
        """It does not want one any more; what it was given goes to the next."""
        if waiter.entry is not None:
            self.release(waiter.entry, now)
        elif waiter in self.waiting:
            self.waiting.remove(waiter)
            self._serve(now)

    def release(self, entry: Entry, now: float, *, broken: bool = False, doubtful: bool = False) -> None:
        """A user gives it back."""
        entry.users -= 1
        if entry.state == "gone":
            return
        entry.is_doubtful = entry.is_doubtful or doubtful
        if broken:
            self.drop(entry)
        if not entry.users and entry.state == "ready":
            entry.idle_since = now
            self._turns += 1
            entry.turn = self._turns
            self._close_if_spent(entry, now)
        self._serve(now)

    def drop(self, entry: Entry) -> None:
        """It is broken: nobody gets it any more, and it is closed when nobody uses it."""
        if not entry.is_broken:
            entry.is_broken = True
            self.dropped += 1
        if not entry.users and entry.state == "ready":
            self._close(entry)

    # --- what became of orders

    def made(self, entry: Entry, value: Any, now: float) -> None:
        """It was made."""
        entry.value, entry.was_made = value, True
        entry.made_at = entry.idle_since = now
        entry.state = "ready"
        self.made_total += 1
        if self.is_over:
            self._close(entry)
        self._serve(now)

    def failed(self, entry: Entry, error: BaseException, now: float) -> None:
        """It could not be made: who has it made gets the error, and its place is free."""
        self.failed_total += 1
        self._remove(entry)
        for number, waiter in enumerate([one for one in self.waiting if one.coming is entry]):
            self._settle(waiter, error=error if not number else _another(error))
        self._serve(now)

    def checked(self, entry: Entry, now: float, *, ok: bool) -> None:
        """It was checked before it is handed out."""
        if entry.state != "checking":
            return
        entry.state = "ready"
        if ok:
            entry.is_doubtful = False
            entry.idle_since = now
        else:
            self.drop(entry)
        if self.is_over and entry.state == "ready":
            self._close(entry)
        self._serve(now)

    def gone(self, entry: Entry, now: float) -> None:
        """It was closed, or has ended on its own: its place is free."""
        self._remove(entry)
        self._serve(now)

    # --- time

    def tick(self, now: float) -> None:
        """Do what is due."""
        for waiter in [one for one in self.waiting if one.until <= now]:
            self.timed_out += 1
            self._settle(waiter, error=TimeoutError(self._why_not(waiter)))
        for entry in list(self.entries):
            if not entry.users and entry.state == "ready":
                self._close_if_spent(entry, now)
        self._serve(now)

    def next_due(self) -> float:
        """When `tick` has something to do."""
        entries = min((self._due(entry) for entry in self.entries), default=math.inf)
        return min(entries, min((waiter.until for waiter in self.waiting), default=math.inf))

    def _due(self, entry: Entry) -> float:
        if entry.users or entry.state != "ready":
            return math.inf
        return min(entry.idle_since + self.bounds.max_idle, entry.made_at + self.bounds.max_age)

    def close(self, error: Callable[[], BaseException]) -> None:
        """Serve nobody any more; close what nobody uses, and the rest when it is given back."""
        self.is_over = True
        for waiter in list(self.waiting):
            self._settle(waiter, error=error())
        for entry in list(self.entries):
            if entry.state == "making" or (entry.state == "ready" and not entry.users):
                self._close(entry)

    # --- inside

    def _serve(self, now: float, index: int = 0) -> None:
        """Serve the line in its order, as far as it goes; who has one coming holds nobody up."""
        self._is_blocked = False
        while index < len(self.waiting):
            waiter = self.waiting[index]
            has_one_coming = waiter.coming is not None and waiter.coming.state in ("making", "checking")
            entry = self._ready_for(waiter.key, now)
            if entry is not None and self._needs_check(entry, now):
                if not has_one_coming:
                    entry.state = "checking"
                    self.orders.append(("check", entry))
                    waiter.coming, has_one_coming = entry, True
                entry = None
            if entry is not None:
                entry.users += 1
                entry.uses += 1
                self.served += 1
                self.wait_s += now - waiter.since
                self._settle(waiter, entry=entry)
                continue
            if not has_one_coming:
                waiter.coming = self._coming_for(waiter)
                if waiter.coming is None:
                    self._is_blocked = True
                    return
            index += 1

    def _ready_for(self, key: Hashable, now: float) -> Entry | None:
        """One that can be had now: one that others use where they share, else the one that was used last."""
        found = None
        for entry in list(self.entries):
            if entry.state != "ready" or entry.is_broken or entry.key != key or entry.uses >= self.bounds.max_uses:
                continue
            if not entry.users:
                if self._close_if_spent(entry, now):
                    continue
            elif self.bounds.users is not None and entry.users >= self.bounds.users:
                continue
            if found is None or (entry.users > 0, entry.idle_since) > (found.users > 0, found.idle_since):
                found = entry
        return found

    def _needs_check(self, entry: Entry, now: float) -> bool:
        """One just made, or just given back in order, needs none."""
        if not self.bounds.checks or entry.users or not entry.uses:
            return False
        return entry.is_doubtful or entry.idle_since < now

    def _coming_for(self, waiter: Waiter) -> Entry | None:
        """One that is being made or checked and will have room for another user, or a new one if there is room."""
        if self.bounds.users != 1:
            for entry in self.entries:
                if entry.key == waiter.key and entry.state in ("making", "checking"):
                    wanted = 0 if self.bounds.users is None else sum(1 for one in self.waiting if one.coming is entry)
                    if self.bounds.users is None or wanted < self.bounds.users:
                        return entry
        if not self._has_room(waiter.cost):
            return None
        entry = Entry(waiter.key, waiter.cost)
        self.entries.append(entry)
        self.peak = max(self.peak, len(self.entries))
        self.orders.append(("make", entry))
        return entry

    def _has_room(self, cost: int) -> bool:
        """Whether there is room for one more now; else idle ones are closed for it, the longest unused first."""
        bounds = self.bounds
        if len(self.entries) < bounds.size and self._bytes() + cost <= bounds.max_bytes:
            return True
        staying = [entry for entry in self.entries if entry.state != "closing"]
        idle = sorted(
            (entry for entry in staying if entry.state == "ready" and not entry.users),
            key=lambda one: (one.idle_since, one.turn),
        )
        count, taken = len(staying), sum(entry.cost for entry in staying)
        leaving = []
        while count >= bounds.size or taken + cost > bounds.max_bytes:
            if not idle:
                return False  # somebody has to give one back first
            leaving.append(idle.pop(0))
            count, taken = count - 1, taken - leaving[-1].cost
        for entry in leaving:
            self.evicted += 1
            self._close(entry)
        return False

    def _close_if_spent(self, entry: Entry, now: float) -> bool:
        """Close an unused one that is over its time or its uses, or that nobody is to get any more."""
        bounds = self.bounds
        is_spent = now >= self._due(entry) or entry.uses >= bounds.max_uses
        if entry.is_broken or self.is_over or is_spent:
            if is_spent and not entry.is_broken:
                self.evicted += 1
            self._close(entry)
            return True
        return False

    def _close(self, entry: Entry) -> None:
        entry.state = "closing"
        self.orders.append(("close", entry))

    def _remove(self, entry: Entry) -> None:
        entry.state = "gone"
        if entry in self.entries:
            self.entries.remove(entry)

    def _settle(self, waiter: Waiter, *, entry: Entry | None = None, error: BaseException | None = None) -> None:
        self.waiting.remove(waiter)
        waiter.entry, waiter.error, waiter.coming = entry, error, None
        waiter.on_settled()

    def _bytes(self) -> int:
        return sum(entry.cost for entry in self.entries)

    def _why_not(self, waiter: Waiter) -> str:
        now = self.statistics()
        making = sum(1 for entry in self.entries if entry.state == "making")
        stand = f"{now.in_use} of {now.size} are in use, {making} are being made, {now.waiting} wait"
        return f"{self.name}: none within {waiter.until - waiter.since:g} s: {stand}"

    def statistics(self) -> PoolStatistics:
        """How it stands."""
        entries = list(self.entries)
        return PoolStatistics(
            size=self.bounds.size,
            open=len(entries),
            idle=sum(1 for entry in entries if entry.state == "ready" and not entry.users),
            in_use=sum(1 for entry in entries if entry.users),
            users=sum(entry.users for entry in entries),
            waiting=len(self.waiting),
            peak=self.peak,
            bytes=self._bytes(),
            made=self.made_total,
            served=self.served,
            wait_s=self.wait_s,
            failed=self.failed_total,
            timed_out=self.timed_out,
            dropped=self.dropped,
            evicted=self.evicted,
        )


def _another(error: BaseException) -> BaseException:
    """The error for one more of those who share it: each adds notes and a traceback of its own."""
    try:
        copied = copy.copy(error)
    except Exception:  # noqa: BLE001  (one that cannot be copied)
        return error
    copied.__cause__ = error.__cause__
    return copied
