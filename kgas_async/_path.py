"""The one path of a call: validate, tokens, timeout, run, retry, end, in the one order of the design.

`perform_fully` walks it in whatever task it is awaited in, under a cancel scope that its host holds. It raises nothing
but cancellation; how the call ended is on the call. `_flat` is the same path where little bounds a call, as far as its
first attempt succeeds; `perform_again` goes on where it has failed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import Context, copy_context
from time import perf_counter_ns
from typing import Any

import anyio
from pydantic import ValidationError

from ._alternatives import fall_back, may_fall_back
from ._attempt import attempt_once, contained
from ._call import Call
from ._cancellation import exit_in, parted
from ._cleanup import clean_up
from ._context import current_call
from ._errors import CallAborted, CallFailed, CallRejected, CallTimeout, InvalidInputs, add_note, text_of
from ._hedge import hedged
from ._keyed import FunctionFailed
from ._mailbox import NativeCancels, is_self_inflicted
from ._offload import ReturnedError
from ._resilience import Retry
from ._reuse import FlightFailed, reused_or_run
from ._served import attempt_served
from ._tokens import DeadlinePassed, deadline_of, pause_rates

__all__ = ["ended_by_tool", "ending", "note_run", "perform_again", "perform_fully"]


async def perform_fully(call: Call[Any]) -> None:
    bound = call.bound
    call.status = "waiting"
    try:
        if call.cancel_requested:
            call.end("cancelled")
            return
        if bound.deadline is not None:
            at = anyio.current_time() + bound.deadline
            call.deadline_at = at if call.deadline_at is None else min(at, call.deadline_at)
        call.context = copy_context()
        call.context.run(current_call.set, call)
        error = await _after_replaced(call) if call.replaces else None
        error = error or await _validated(call)
        if error is None:
            run = _tried if bound.fallbacks else _attempts
            error = await (run(call) if bound.cache is None else reused_or_run(call, bound.cache, run))
        await _end(call, error)
    except BaseException as error:
        if not await _broke_off(call, error):
            raise


async def perform_again(call: Call[Any], failed: BaseException, native: NativeCancels | None) -> None:
    """Go on with a call that has a retry and whose first attempt, made on the flat path, has failed.

    Args:
        call: It holds nothing any more.
        failed: How.
        native: Made before that attempt, where its task is not ours.
    """
    call.status = "waiting"
    try:
        call.attempt_context, call.context = call.context, copy_context()
        call.context.run(current_call.set, call)
        retry = call.bound.retry
        assert retry is not None
        await _end(call, await _retried(call, retry, native, failed))
    except BaseException as error:
        if not await _broke_off(call, error):
            raise


async def _end(call: Call[Any], error: BaseException | None) -> None:
    """End a call whose last attempt, or what came before it, had this error."""
    if error is None:
        call.end("reused" if call.reused else "succeeded")
        return
    status, ended = ending(call, error, call.last_error)
    native = await clean_up(call, ended)
    call.end(status, ended)
    if native is not None:
        raise native


async def _broke_off(call: Call[Any], error: BaseException) -> bool:
    """End a call that something else than its attempts' errors came out of. Whether nothing is to be raised."""
    _cancel_children(call)
    if call.ended_ns:
        return False
    native = None
    try:
        native = await clean_up(call, error)
    finally:
        is_tools_own = ended_by_tool(call, error)
    if native is not None:
        raise native from error
    return is_tools_own


async def _after_replaced(call: Call[Any]) -> BaseException | None:
    """Wait until those that it replaces have ended."""
    call.waits()
    with anyio.CancelScope(deadline=deadline_of(call)) as scope:
        for replaced in call.replaces:
            await replaced.wait()
    call.replaces = ()
    return DeadlinePassed() if scope.cancelled_caught else None


async def _validated(call: Call[Any]) -> BaseException | None:
    bound = call.bound
    try:
        if not bound.validates:
            call.inputs = bound.check(call.inputs)
        else:
            if not isinstance(call.inputs, Mapping):
                return bound.signature.no_mapping(call.inputs)
            call.waits()
            with anyio.CancelScope(deadline=deadline_of(call)) as scope:
                call.inputs = await contained(call, bound.hooks.validate_inputs(**call.inputs), _context(call))
            if scope.cancelled_caught:
                return DeadlinePassed()
            if bound.home.tracing is not None:
                call.inputs = bound.home.tracing.seen(call.inputs)
    except Exception as error:  # noqa: BLE001
        return error
    return None


def _context(call: Call[Any]) -> Context:
    assert call.context is not None
    return call.context


async def _tried(call: Call[Any]) -> BaseException | None:
    """Attempts, then fallbacks, until one gives a value (None); or the call's error."""
    error = await _attempts(call)
    if error is None or not may_fall_back(call, error):
        return error
    native = await clean_up(call, error)  # before others are called: it may hold what they need
    if native is not None:
        raise native from error
    call.is_cleaned_up = True
    call.grace_end = None  # a later cancellation has its own
    return await fall_back(call, error)


async def _attempts(call: Call[Any]) -> BaseException | None:
    """Attempts until one succeeds (None) or the last one's error."""
    retry = call.bound.retry
    if retry is None:
        return await _attempt(call)
    native = None if call.host_is_ours else NativeCancels()
    if retry.budget is not None:
        retry.budget.count_call(call.bound.home.mailbox)
    return await _retried(call, retry, native, await _attempt(call))


async def _attempt(call: Call[Any]) -> BaseException | None:
    """One attempt, or a hedged one."""
    call.attempt += 1
    make = attempt_once if call.bound.hedge_after is None else hedged
    return await (attempt_served(call, make) if call.bound.supervised else make(call))


async def _retried(
    call: Call[Any], retry: Retry, native: NativeCancels | None, error: BaseException | None
) -> BaseException | None:
    """Further attempts, after a first that ended so, until one succeeds (None) or the last one's error."""
    bound = call.bound
    tries = 0  # a hedged one is one
    while True:
        tries += 1
        if error is None or isinstance(error, (DeadlinePassed, FunctionFailed)):
            return error
        if _is_own_rejection(call, error) or call.cancel_requested:
            return error
        if native is not None and (lost := native.swallowed()) is not None:
            raise lost from error  # the tool has made this error of it
        asked = _as_seen_by_retry(call, error)
        if call.work is not None and call.work.abandoned and not call.work.ended_ns and not retry.while_running:
            if tries < retry.attempts:
                error.add_note(
                    "not tried again: its abandoned thread still runs, and two at once surprise most tools; "
                    "Retry(..., while_running=True) tries all the same"
                )
            return error
        left = None if call.deadline_at is None else call.deadline_at - anyio.current_time()
        try:
            delay, told = retry.delay(tries, asked, left=left, draw=bound.home.random)
        except Exception as broken:  # noqa: BLE001  (a user's function in the policy)
            broken.__context__ = error
            return broken
        if told is not None:  # for all callers, also where this call ends
            pause_rates(call, told)
        if delay is None:
            return error
        if retry.budget is not None and not retry.budget.take_retry(bound.home.mailbox):
            add_note(error, f"not tried again: the retries of its {retry.budget!r} are used up")
            return error
        call.last_error, call.crash = asked, None
        bound.state.retried += 1
        if bound.home.log is not None:
            bound.home.log.retried(call, asked, delay)
        slept = perf_counter_ns()
        call.status = "waiting"
        call.waits()
        await anyio.sleep(delay)
        call.wait_retry_ns += perf_counter_ns() - slept
        error = await _attempt(call)


def _is_own_rejection(call: Call[Any], error: BaseException) -> bool:
    """Whether this call itself was refused, and not what its tool wanted: another call, a token of a limit."""
    return isinstance(error, CallRejected) and error.call_id == call.id


def _as_seen_by_retry(call: Call[Any], error: BaseException) -> BaseException:
    if isinstance(error, ReturnedError):
        return error.error
    return error


def _is_cancelled(call: Call[Any]) -> bool:
    """Whether the call was told to stop, by whomever: what its tool makes of that is no failure."""
    return call.cancel_requested or anyio.current_effective_deadline() == -math.inf


def ending(call: Call[Any], error: BaseException, last: BaseException | None) -> tuple[str, BaseException]:
    """How the call ends after this error, unless it was cancelled and its tool has made an error of that."""
    if call.crash is not None and not isinstance(error, DeadlinePassed):
        return _failure(call, call.crash.error, last)
    status, ended = _failure(call, error, last)
    if status == "failed" and call.attempt and _is_cancelled(call):
        status, cause = "cancelled", ended.__cause__
        ended = call.cancelled_error()
        ended.__cause__ = cause
    return status, ended


def _failure(call: Call[Any], error: BaseException, last: BaseException | None) -> tuple[str, BaseException]:
    """How the call ends after this error: the status and the error that is raised."""
    known: dict[str, Any] = {"tool": call.tool_name, "call_id": call.id, "attempts": call.attempt}
    if isinstance(error, ValidationError) and not call.attempt:
        error = call.bound.signature.invalid(error)
    if isinstance(error, InvalidInputs) and not call.attempt:
        error.tool, error.call_id = call.tool_name, call.id
        return "failed", error
    if isinstance(error, DeadlinePassed):
        what = f"tool {call.tool_name!r} did not end within its deadline of {_given_deadline(call)}"
        if call.bound.execution.serial and call.bound.home.left.holds(call.bound.state):
            what += "; its one instance (instances='serial') is held by an abandoned thread that has not ended"
        timeout = CallTimeout(what, **known)
        timeout.__cause__ = error.cause or last
        return "timed_out", timeout
    if isinstance(error, CallTimeout) and error.call_id == call.id:
        error.attempts = call.attempt
        if error.__cause__ is None:
            error.__cause__ = last
        return "timed_out", error
    if isinstance(error, CallRejected) and _is_own_rejection(call, error):
        error.tool, error.attempts = call.tool_name, call.attempt
        if error.__cause__ is None:
            error.__cause__ = last
        return "rejected", error
    if isinstance(error, FlightFailed):
        return error.status, error.error or error
    if isinstance(error, ReturnedError):
        failed = CallFailed(f"tool {call.tool_name!r} returned an error: {error}", result=error.result, **known)
        failed.__cause__ = error.error if error.was_exception else None
        _annotate(error.error, call)
        return "failed", failed
    if isinstance(error, FunctionFailed):
        failed = CallFailed(f"tool {call.tool_name!r}: {error}", **known)
        failed.__cause__ = error.__cause__
        return "failed", failed
    text = text_of(error)
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    failed = CallFailed(f"tool {call.tool_name!r} failed: {what}", **known)
    failed.__cause__ = error
    _annotate(error, call)
    return "failed", failed


def _given_deadline(call: Call[Any]) -> str:
    return "the call that it is nested in" if call.bound.deadline is None else f"{call.bound.deadline:g} s"


def _annotate(error: BaseException, call: Call[Any]) -> None:
    place = [f"tool {call.tool_name!r}"]
    if call.phase is not None:
        place.append(f"phase {call.phase!r}")
    if call.placed.item is not None:
        place.append(f"item {call.placed.item!r}")
    place.append(f"attempt {call.attempt}")
    add_note(error, "in " + ", ".join(place))


def ended_by_tool(call: Call[Any], error: BaseException) -> bool:
    """End a call that a `BaseException` left. True if it was the tool's own doing, so that nothing is to be raised."""
    note_run(call)
    _cancel_children(call)
    if (leaving := exit_in(error)) is not None:
        # On the loop's own thread this is meant for the whole session, not for one call.
        call.end("failed", _failure(call, leaving, None)[1])
        call.bound.home.crash(leaving)
        return True
    if isinstance(error, (CallAborted, GeneratorExit)):
        if isinstance(error, CallAborted) and not call.cancel_requested and call.crash is None:
            call.end("failed", _failure(call, error, None)[1])
        _end_cancelled(call)
        return isinstance(error, CallAborted)
    cancellation, rest = parted(error)
    if cancellation is None or is_self_inflicted(owned=call.host_is_ours):
        call.end(*ending(call, error, None))
        return True
    if rest is not None:
        call.cancelled_error().__cause__ = rest
    _end_cancelled(call)
    if cancellation is not error:
        raise cancellation  # bare: a scope would let the rest of the group out
    return False


def _end_cancelled(call: Call[Any]) -> None:
    """It was told to stop: by whoever cancelled it, or since a service that it uses has crashed."""
    if call.crash is not None:
        call.end("failed", _failure(call, call.crash.error, None)[1])
    else:
        call.end("cancelled")


def note_run(call: Call[Any]) -> None:
    """How long it ran, where nobody has said it yet."""
    if call.begun_ns and not call.run_ns:
        call.run_ns = perf_counter_ns() - call.begun_ns


def _cancel_children(call: Call[Any]) -> None:
    for child in list(call.children or ()):
        child.cancel("the call that it is nested in has ended")
