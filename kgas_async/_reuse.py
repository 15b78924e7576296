"""Reusing results: calls with the same inputs take what is kept, or what the one of them that runs is about to give.

A flight is what those calls share that came while one of them, its leader, runs. Each ends by itself: who waits has
its own deadline and cancellation, and takes the leader's place where that came to an end of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final, Literal

import anyio

from ._attempt import contained
from ._breaker_guard import was_cancelled
from ._cache import Cache, KeyFailed, MemoryStore
from ._call import Call
from ._cancellation import hook_failure
from ._errors import CallError, shown
from ._mailbox import Gate
from ._records import call_fields, error_fields
from ._tokens import (
    DeadlinePassed,
    chain_of,
    deadline_of,
    refuse_own_chain,
    wants_what_is_held,
    with_defaults,
)

__all__ = ["FlightFailed", "reused_or_run"]

Run = Callable[[Call[Any]], Awaitable[BaseException | None]]

STORE_S: Final = 5.0  # seconds that a store has to answer
ATTEMPTS: Final = ("timeout", "retry", "hedge_after", "fallback")  # what a policy says of them
_MISSING: Final[Any] = object()


class FlightFailed(Exception):
    """The call that this one waited for has failed: how, and the error to be raised here."""

    def __init__(self, status: str, error: BaseException | None) -> None:
        super().__init__(status)
        self.status = status
        self.error = error


class Flight:
    """Calls with the same inputs while one of them runs.

    Attributes:
        leader: The one that runs.
        waiting: The others, and where each waits.
        end: What those who wait are to do: take its value or its failure, run by themselves; None while it runs.
        value: That value. Who made the leader's call may do with that what it wants before they come to it: a pipeline
            lets go of what it expands.
        is_own_end: Whether it is coming to an end that is its own, its deadline's.
    """

    __slots__ = ("end", "flights", "is_own_end", "leader", "slot", "value", "waiting")

    def __init__(self, leader: Call[Any], flights: dict[Any, Flight], slot: Any) -> None:
        self.leader = leader
        self.waiting: dict[Call[Any], Gate] = {}
        self.end: Literal["value", "failure", "alone"] | None = None
        self.value: Any = None
        self.is_own_end = False
        self.flights = flights
        self.slot = slot
        flights[slot] = self

    def lead(self, call: Call[Any]) -> None:
        """This call runs; its end is the flight's, or another takes its place."""
        self.leader = call
        self.is_own_end = False
        call.on_end = partial(self._ended, call.on_end)

    def _ended(self, before: Callable[[Any], object] | None, call: Call[Any]) -> None:
        if call.ok:
            self.value = call.value
            readable = not isinstance(call.value, (Iterator, AsyncIterator))
            self._land("value" if readable else "alone")
        elif call.status in ("failed", "timed_out") and not self.is_own_end:
            self._land("failure")
        else:
            self.pass_on()
        if before is not None:
            before(call)

    def _land(self, end: Literal["value", "failure", "alone"]) -> None:
        self.end = end
        del self.flights[self.slot]
        for gate in self.waiting.values():
            gate.set()

    def send_off(self, call: Call[Any]) -> None:
        """One of those who wait is to run by itself, whatever becomes of the others."""
        gate = self.waiting.pop(call, None)
        if gate is not None:
            gate.set()

    def pass_on(self) -> None:
        """The leader has no result to share: the next one runs, if there is one."""
        if not self.waiting:
            del self.flights[self.slot]
            return
        call = next(iter(self.waiting))
        self.leader = call
        self.waiting.pop(call).set()


async def reused_or_run(call: Call[Any], cache: Cache, run: Run) -> BaseException | None:
    """Take a value that is there, or that another call is about to give; else run.

    Returns:
        None for a value (``call.reused`` says whether the tool was not run for it); or the error.
    """
    bound = call.bound
    home = bound.home
    try:
        inputs = call.inputs if cache.key is None else with_defaults(call)
        key = cache.key_of(bound.name, bound.version, inputs)
    except KeyFailed as error:
        return error
    store = cache.store
    is_kept = cache.ttl is None or cache.ttl > 0
    if is_kept and isinstance(store, MemoryStore):
        value = store.get_nowait(key, _MISSING, home.mailbox)
        if value is not _MISSING:
            _hit(call, cache, value)
            return None
    flights = bound.state.flights
    flight = flights.get((id(cache), key))
    if flight is None:
        flight = Flight(call, flights, (id(cache), key))
        flight.lead(call)
    elif _waits_for_itself(call, flight):
        return await run(call)
    else:
        refused = refuse_own_chain(call)
        if refused is not None:
            return refused
        ended = await _waited(call, flight)
        if ended is not None:
            return ended
        if flight.end == "value":
            _shared(call, cache, flight)
            return None
        if flight.end == "failure" and _tries_alike(call, flight.leader):
            return _failed_with(call, flight.leader)
        if flight.end is not None or flight.leader is not call:
            return await run(call)
        flight.lead(call)
    return await _led(call, cache, key, flight, run, is_kept=is_kept)


async def _led(
    call: Call[Any], cache: Cache, key: str, flight: Flight, run: Run, *, is_kept: bool
) -> BaseException | None:
    store = cache.store
    is_foreign = is_kept and not isinstance(store, MemoryStore)
    if is_foreign:
        value = await _asked(call, cache, "get", key, _MISSING)
        if value is not _MISSING:
            _hit(call, cache, value)
            return None
    cache.count("misses")
    error = await run(call)
    if error is not None:
        flight.is_own_end = isinstance(error, DeadlinePassed) or was_cancelled(call)
        return error
    value = call.value
    if not is_kept or call.answered_by is not None or isinstance(value, (Iterator, AsyncIterator)):
        return None
    if isinstance(store, MemoryStore):
        store.set_nowait(key, value, cache.ttl, call.bound.home.mailbox)
    else:
        await _asked(call, cache, "set", key, value, cache.ttl)
    return None


def _hit(call: Call[Any], cache: Cache, value: Any) -> None:
    cache.count("hits")
    call.value = value
    call.reused = True


def _shared(call: Call[Any], cache: Cache, flight: Flight) -> None:
    leader = flight.leader
    cache.count("shared")
    call.value = flight.value
    call.answered_by = leader.answered_by
    call.reused = True
    call.reused_from = leader.id


def _tries_alike(call: Call[Any], leader: Call[Any]) -> bool:
    """Whether its own attempts would have been the same: copies of a tool may have other policies."""
    mine, others = call.bound.policy, leader.bound.policy
    return mine is others or all(getattr(mine, field) == getattr(others, field) for field in ATTEMPTS)


def _failed_with(call: Call[Any], leader: Call[Any]) -> FlightFailed:
    error = copy.copy(leader.error)
    if isinstance(error, CallError) and leader.error is not None:
        error.call_id = call.id
        error.__cause__ = leader.error.__cause__
    return FlightFailed(leader.status, error)


async def _waited(call: Call[Any], flight: Flight) -> BaseException | None:
    """Wait for the flight's end, or until it is this call's turn to lead."""
    home = call.bound.home
    gate = flight.waiting[call] = home.mailbox.gate()
    home.cache_waits[call] = flight
    call.waits()
    arrived = False
    try:
        deadline = deadline_of(call)
        if deadline == math.inf:
            await gate.wait()
        else:
            with anyio.CancelScope(deadline=deadline) as scope:
                await gate.wait()
            if scope.cancelled_caught:
                return DeadlinePassed()
        arrived = True
    finally:
        del home.cache_waits[call]
        flight.waiting.pop(call, None)
        if not arrived and flight.leader is call:
            flight.pass_on()
    return None


def _waits_for_itself(call: Call[Any], flight: Flight) -> bool:
    """Whether the flight's leader waits for a call that this one is nested in, by whatever flights and nested calls.

    Or for a token that one of those holds, or code that waits for it.
    """
    if call.parent is None and not call.around:
        return False
    home = call.bound.home
    mine = set(chain_of(call.parent))
    seen = {flight}
    reached = [flight]
    while reached:
        leader = reached.pop().leader.serial
        if leader in mine:
            return True
        for waiter, other in home.cache_waits.items():
            if other not in seen and leader in chain_of(waiter):
                seen.add(other)
                reached.append(other)
    leaders = {one.leader.serial for one in seen}
    return any(
        one.status == "waiting" and one.bound.limits and wants_what_is_held(one, call) and leaders & set(chain_of(one))
        for one in home.calls_open.values()
    )


async def _asked(call: Call[Any], cache: Cache, what: Literal["get", "set"], *args: Any) -> Any:
    """Have the store do something; what goes wrong is on record, and costs the call nothing."""
    assert call.context is not None
    failed: BaseException | None = None
    call.waits()
    with anyio.CancelScope(deadline=min(deadline_of(call), anyio.current_time() + STORE_S)) as scope:
        try:
            return await contained(call, getattr(cache.store, what)(*args), call.context)
        except BaseException as raised:  # the user's store
            failed = hook_failure(raised, "its store", owned=call.host_is_ours)
            if failed is None:
                raise
    if scope.cancelled_caught:
        failed = TimeoutError(f"its store did not answer within {STORE_S:g} s")
    assert failed is not None
    cache.count("errors")
    log = call.bound.home.log
    if log is not None:
        fields = call_fields(call, "cache.failed", None)
        tracing = call.bound.home.tracing
        error = error_fields(failed, frozenset() if tracing is None else tracing.secrets(call))
        log.emit(**fields, store=shown(cache.store), operation=what, error=error)
    return _MISSING
