"""One attempt of a call: take its tokens, run the tool where it wants to run, give the tokens back.

The tokens are held for exactly as long as the work that they admitted runs: a thread gives them back itself.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Coroutine
from contextvars import Context
from functools import partial
from time import perf_counter_ns
from typing import Any

import anyio

from ._breaker_guard import circuit_open, judged
from ._call import Call
from ._cancellation import failure_of
from ._drive import drive, own_error
from ._in_thread import attempt_in_thread, cancel_children, late_error
from ._mailbox import OpenScopes
from ._rate import RateLimit
from ._tokens import (
    DeadlinePassed,
    deadline_of,
    give_back,
    refund,
    refused,
    take_concurrency,
    take_rates,
    wanted_rates,
)

__all__ = ["attempt_once", "attempt_with", "contained"]


async def attempt_once(call: Call[Any]) -> BaseException | None:
    """Make one attempt; its value is on the call.

    Returns:
        None for a value, or the error: the tool's own, `CallTimeout`, `DeadlinePassed`, `CallRejected`.
    """
    breaker = call.bound.breaker
    if breaker is not None and breaker.refuses(call.bound.home.mailbox):
        return circuit_open(call, breaker)  # before it waits for anything
    held: list[Any] = []
    call.work = None
    try:
        await take_concurrency(call, held)
        wanted = wanted_rates(call)
        await take_rates(call, wanted)
    except BaseException as error:
        give_back(held)
        if isinstance(error, Exception):  # no token in time; or a cost function failed, in whatever way
            return refused(call, error)
        raise
    if call.deadline_at is not None and anyio.current_time() >= call.deadline_at:
        give_back(held)
        refund(wanted)
        return DeadlinePassed()
    return await attempt_with(call, held, wanted)


def attempt_with(
    call: Call[Any], held: list[Any], wanted: list[tuple[RateLimit, float]]
) -> Coroutine[Any, Any, BaseException | None]:
    """Make one attempt that has its tokens, and give them back."""
    bound = call.bound
    return judged(call, held, wanted, _run) if bound.breaker or bound.adaptive else _run(call, held, wanted)


async def _run(call: Call[Any], held: list[Any], rates: list[tuple[RateLimit, float]]) -> BaseException | None:
    """Run the tool where it wants to run, and give its tokens back."""
    if call.bound.in_thread:
        call.attempt_context = _context(call).copy()
        return await attempt_in_thread(call, call.attempt_context, held, rates)
    call.holds = call.bound.holds
    call.status = "running"
    began = perf_counter_ns()
    call.begun_ns = call.begun_ns or began
    try:
        return await _on_loop(call) if call.bound.execution.kind == "async" else _inline(call)
    finally:
        call.run_ns += perf_counter_ns() - began
        call.holds = ()
        give_back(held)


def _context(call: Call[Any]) -> Context:
    assert call.context is not None
    return call.context


async def _on_loop(call: Call[Any]) -> BaseException | None:
    """An async tool, in this task."""
    bound = call.bound
    context = call.attempt_context = _context(call).copy()  # what an attempt sets is not there in the next one
    timeout = bound.timeout
    if timeout is None and call.deadline_at is None:
        try:
            call.value = await drive(context.run(partial(bound.function, **call.inputs)), context, call.waits)
        except BaseException as error:  # noqa: BLE001
            return failure_of(error)
        return None
    timeout_at = math.inf if timeout is None else anyio.current_time() + timeout
    failed: BaseException | None = None
    scope = anyio.CancelScope(deadline=min(timeout_at, deadline_of(call)))
    try:
        with scope:
            try:
                call.value = await contained(call, context.run(partial(bound.function, **call.inputs)), context)
            except BaseException as error:  # noqa: BLE001
                failed = failure_of(error)
    except BaseException as error:  # noqa: BLE001  (what was left of a group, its cancellation taken out by the scope)
        failed = failure_of(error)
    # Outside the scope, where its own cancellation is gone; late is late, also where nothing was interrupted, or where
    # the tool made something else of the cancellation.
    ended_at = min(timeout_at, deadline_of(call)) + 1 if scope.cancel_called else anyio.current_time()
    late = late_error(call, ended_at, timeout_at, failed)
    if late is not None:
        call.value = None
        cancel_children(call)
    return late or failed


async def contained(call: Call[Any], awaitable: Awaitable[Any], context: Context) -> Any:
    """Await code of a tool's under a scope of ours, in ``context``: scopes that it leaves open end with it."""
    scopes = OpenScopes()
    try:
        return await drive(awaitable, context, call.waits)
    finally:
        if scopes.has_more():
            await call.bound.home.close_leaked(scopes, call)


def _inline(call: Call[Any]) -> BaseException | None:
    """A sync tool that is known to be quick, here and now."""
    timeout = call.bound.timeout
    timeout_at = math.inf if timeout is None else anyio.current_time() + timeout
    failed: BaseException | None = None
    try:
        call.attempt_context = _context(call).copy()
        call.value = call.attempt_context.run(partial(call.bound.function, **call.inputs))
    except BaseException as error:  # noqa: BLE001
        failed = failure_of(own_error(error))
    if timeout is None and call.deadline_at is None:
        return failed
    late = late_error(call, anyio.current_time(), timeout_at, failed)
    if late is not None:
        call.value = None
    return late or failed
