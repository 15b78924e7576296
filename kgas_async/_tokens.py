"""The tokens of an attempt: taken in the one order, concurrency before rate, and given back.

Bounded by the call's deadline; what a call's own chain already holds is refused instead of waited for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

import anyio

from ._call import Call
from ._errors import CallRejected
from ._limits import ConcurrencyLimit
from ._rate import RateLimit, acquire_rates, acquire_rates_nowait

__all__ = ["DeadlinePassed", "deadline_of", "give_back", "refund", "take_concurrency", "take_rate"]


class DeadlinePassed(Exception):
    """The call's deadline passed, before or while the tool ran."""

    def __init__(self, cause: BaseException | None = None) -> None:
        super().__init__("the deadline has passed")
        self.cause = cause


def give_back(held: Sequence[ConcurrencyLimit]) -> None:
    for limit in reversed(held):
        limit.release()


async def take_concurrency(call: Call[Any], held: list[ConcurrencyLimit]) -> None:
    for limit in call.bound.limits:
        if call.parent is not None:
            _refuse_own_chain(call, limit)
        if not limit.acquire_nowait():
            began = perf_counter_ns()
            call.waits()
            try:
                with anyio.CancelScope(deadline=deadline_of(call)) as scope:
                    await limit.acquire()
            finally:
                call.wait_concurrency_ns += perf_counter_ns() - began
            if scope.cancelled_caught:
                raise DeadlinePassed
        held.append(limit)


def _refuse_own_chain(call: Call[Any], limit: ConcurrencyLimit) -> None:
    ancestor = call.parent
    while ancestor is not None:
        if limit in ancestor.holds and ancestor.name == call.name:
            mend = "take the limit from the inner call: tool.using(concurrency=None)"
            if limit is call.bound.state.serial:
                mend = "instances='serial' is one call at a time: call the object itself"
            raise CallRejected(
                f"tool {call.name!r} calls itself, wanting a token of {limit!r}, one of which it holds while it waits; "
                f"it would wait for itself; {mend}"
            )
        if limit in ancestor.holds:
            raise CallRejected(
                f"tool {call.name!r} wants a token of {limit!r}, which tool {ancestor.name!r} holds while it waits for "
                f"this call: they would wait for each other; give the two tools limits of their own"
            )
        ancestor = ancestor.parent


async def take_rate(call: Call[Any]) -> list[tuple[RateLimit, float]]:
    rates = call.bound.rates
    if not rates:
        return []
    wanted = [(limit, limit.tokens(call.inputs)) for limit in rates]
    if not acquire_rates_nowait(wanted):
        began = perf_counter_ns()
        call.waits()
        try:
            with anyio.CancelScope(deadline=deadline_of(call)) as scope:
                await acquire_rates(wanted)
        finally:
            call.wait_rate_ns += perf_counter_ns() - began
        if scope.cancelled_caught:
            raise DeadlinePassed
    return wanted


def deadline_of(call: Call[Any]) -> float:
    return math.inf if call.deadline_at is None else call.deadline_at


def refund(rates: list[tuple[RateLimit, float]]) -> None:
    for limit, tokens in rates:
        limit.refund(tokens)
