"""The tokens of an attempt: taken in the one order, concurrency before rate, and given back.

Bounded by the call's deadline; what a call's own chain already holds is refused instead of waited for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from threading import Lock
from time import perf_counter_ns
from typing import Any
from weakref import WeakKeyDictionary

import anyio

from ._call import Call
from ._errors import CallRejected
from ._limits import ConcurrencyLimit
from ._rate import CostFailed, RateLimit, acquire_rates, acquire_rates_nowait

__all__ = [
    "DeadlinePassed",
    "deadline_of",
    "give_back",
    "refund",
    "refuse_own_chain",
    "take_concurrency",
    "take_now",
    "take_rates",
    "wanted_rates",
]


class DeadlinePassed(Exception):
    """The call's deadline passed, before or while the tool ran."""

    def __init__(self, cause: BaseException | None = None) -> None:
        super().__init__("the deadline has passed")
        self.cause = cause


def give_back(held: Sequence[ConcurrencyLimit]) -> None:
    for limit in reversed(held):
        limit.release()


async def take_concurrency(call: Call[Any], held: list[ConcurrencyLimit]) -> None:
    """Take the tokens that follow those in ``held``, and add them to it."""
    if call.parent is not None and call.bound.holds:
        _refuse_deadlock(call)
    mailbox = call.bound.home.mailbox
    for limit in call.bound.limits[len(held) :]:
        if not limit.acquire_nowait():
            began = perf_counter_ns()
            call.waits()
            try:
                if call.deadline_at is None:  # a scope costs more than the rest
                    await limit.wait_for_token(mailbox)
                else:
                    with anyio.CancelScope(deadline=deadline_of(call)) as scope:
                        await limit.wait_for_token(mailbox)
                    if scope.cancelled_caught:
                        raise DeadlinePassed
            finally:
                call.wait_concurrency_ns += perf_counter_ns() - began
        held.append(limit)


def refuse_own_chain(call: Call[Any]) -> CallRejected | None:
    """The error of a call that would wait for one that it is nested in, were it to wait for tokens of its limits."""
    if call.parent is None or not call.bound.holds:
        return None
    try:
        _refuse_deadlock(call)
    except CallRejected as refused:
        return refused
    return None


def _refuse_deadlock(call: Call[Any]) -> None:
    """Refuse what a call of its own chain holds, and what others have taken in the other order."""
    ancestor = call.parent
    while ancestor is not None:
        for held in ancestor.holds:
            for wanted in call.bound.holds:
                if wanted is held:
                    raise CallRejected(_own_chain(call, ancestor, held))
                if (others := _taken_against(held, wanted, (ancestor.tool_name, call.tool_name))) is not None:
                    raise CallRejected(_other_order(call, ancestor, held, wanted, others))
        ancestor = ancestor.parent


def _own_chain(call: Call[Any], ancestor: Call[Any], limit: ConcurrencyLimit) -> str:
    if limit not in call.bound.limits:
        return (
            f"tool {call.tool_name!r} has one instance in one thread (instances='dedicated'), which waits for this "
            f"call: they would wait for each other; call the object itself in there"
        )
    if ancestor.tool_name == call.tool_name:
        mend = "take the limit from the inner call: tool.using(concurrency=None)"
        if limit not in call.bound.limits[:-1] and call.bound.execution.serial:
            mend = "instances='serial' is one call at a time: call the object itself"
        return (
            f"tool {call.tool_name!r} calls itself, wanting a token of {limit!r}, one of which it holds while "
            f"it waits; it would wait for itself; {mend}"
        )
    return (
        f"tool {call.tool_name!r} wants a token of {limit!r}, which tool {ancestor.tool_name!r} holds while it waits "
        f"for this call: they would wait for each other; give the two tools limits of their own"
    )


def _other_order(
    call: Call[Any], ancestor: Call[Any], held: ConcurrencyLimit, wanted: ConcurrencyLimit, others: tuple[str, str]
) -> str:
    return (
        f"tool {call.tool_name!r} wants a token of {wanted!r} while tool {ancestor.tool_name!r}, which it is nested "
        f"in, holds one of {held!r}; tools {others[0]!r} and {others[1]!r} have taken them in the other order, so that "
        f"all could wait for each other: keep to one order, or give the tools limits of their own"
    )


# Which limits were wanted while another was held, and by which tools; of all managers, as the limits are.
_wanted_after: WeakKeyDictionary[ConcurrencyLimit, WeakKeyDictionary[ConcurrencyLimit, tuple[str, str]]]
_wanted_after = WeakKeyDictionary()
_lock = Lock()


def _taken_against(held: ConcurrencyLimit, wanted: ConcurrencyLimit, tools: tuple[str, str]) -> tuple[str, str] | None:
    """The tools that took ``held`` while they held ``wanted``, at once or in steps; else this order is remembered."""
    with _lock:
        after = _wanted_after.setdefault(held, WeakKeyDictionary())
        if wanted in after:
            return None
        reached, left = {wanted}, [wanted]
        while left:
            for limit, others in _wanted_after.get(left.pop(), {}).items():
                if limit is held:
                    return others
                if limit not in reached:
                    reached.add(limit)
                    left.append(limit)
        after[wanted] = tools
        return None


def take_now(call: Call[Any]) -> tuple[list[ConcurrencyLimit], list[tuple[RateLimit, float]]] | None:
    """All tokens of an attempt, if they are there without waiting; None too where a cost function raises."""
    held: list[ConcurrencyLimit] = []
    for limit in call.bound.limits:
        if not limit.acquire_nowait():
            give_back(held)
            return None
        held.append(limit)
    try:
        wanted = wanted_rates(call)
    except (CallRejected, CostFailed):
        wanted = None
    if wanted is None or (wanted and not acquire_rates_nowait(wanted)):
        give_back(held)
        return None
    return held, wanted


def wanted_rates(call: Call[Any]) -> list[tuple[RateLimit, float]]:
    """What the call costs of each of its rate limits.

    Raises:
        CallRejected, CostFailed: As of `RateLimit.tokens`.
    """
    return [(limit, limit.tokens(call.inputs)) for limit in call.bound.rates]


async def take_rates(call: Call[Any], wanted: list[tuple[RateLimit, float]]) -> None:
    if wanted and not acquire_rates_nowait(wanted):
        began = perf_counter_ns()
        call.waits()
        try:
            with anyio.CancelScope(deadline=deadline_of(call)) as scope:
                await acquire_rates(wanted)
        finally:
            call.wait_rate_ns += perf_counter_ns() - began
        if scope.cancelled_caught:
            raise DeadlinePassed


def deadline_of(call: Call[Any]) -> float:
    return math.inf if call.deadline_at is None else call.deadline_at


def refund(rates: Sequence[tuple[RateLimit, float]]) -> None:
    for limit, tokens in rates:
        limit.refund(tokens)
