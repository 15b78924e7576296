"""The path of a call where little bounds it, written flat: what an item of a large map costs.

A call without timeout, deadline and hooks is validated, takes its tokens, makes one attempt and ends. That is `_path`
in the same order, with what costs nothing where it is free: no coroutine but the tool's own until something waits, no
scope, one context. An attempt that fails and may be made again goes on there.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from contextvars import Context, copy_context
from functools import partial
from time import perf_counter_ns
from typing import Any, Final

from ._call import Call
from ._cancellation import is_failure
from ._context import current_call
from ._drive import as_coroutine, own_error, resume
from ._in_thread import account, hand_over, stop, taken
from ._mailbox import NativeCancels
from ._path import ended_by_tool, ending, note_run, perform_again, perform_fully
from ._rate import RateLimit, acquire_rates_nowait
from ._threads import Work
from ._tokens import give_back, refused, take_concurrency, take_rates, wanted_rates

__all__ = ["LINES_UP", "begin", "begin_admitted", "perform"]

LINES_UP: Final = 1

_set_current_call = current_call.set


async def perform(call: Call[Any]) -> None:
    """Run a registered call to its end.

    Cancellation: Passed on after the call has ended as ``cancelled`` and what it held was given back; a thread of
    its has the call's grace to end.
    """
    rest = begin(call, perf_counter_ns() if call.host_is_ours else 0)  # its task may begin long after it was made
    if rest is not None:
        await rest


def begin(call: Call[Any], now_ns: int = 0, lines_up: int = 0) -> Any:
    """Run a registered call as far as it goes without waiting.

    Args:
        now_ns: When it was made, unless just now.
        lines_up: `LINES_UP` where its caller can do something better than to wait for tokens in a coroutine.

    Returns:
        None if it has ended; else the rest, to be awaited. With ``lines_up``, for a call that needs nothing but its
        turn in lines: the tokens that it holds, a list; once it has them all `begin_admitted` goes on.
    """
    bound = call.bound
    if (
        not bound.flat
        or call.deadline_at is not None
        or call.cancel_requested
        or (bound.holds and call.parent is not None)  # whoever called it may hold what it wants
    ):
        return perform_fully(call)
    try:
        call.inputs = bound.check(call.inputs)
        call.attempt = 1
        if bound.gated:
            limit, rate = bound.lone_limit, bound.lone_rate
            if limit is not None and limit.acquire_nowait():
                call.holds = bound.limits
            elif rate is not None and rate.take_one_nowait(bound.home.mailbox):
                pass
            elif (rest := _admit(call, lines_up)) is not None:
                return rest
    except BaseException as error:
        if not _refused(call, error):
            raise
        return None
    call.begun_ns = now_ns or call.created_ns  # there was nothing to wait for
    return _in_thread(call) if bound.in_thread else _start(call)


def _admit(call: Call[Any], lines_up: int) -> Any:
    """Count the call and take its tokens if all are free; else what waits for the others, or those that were free."""
    bound = call.bound
    if bound.retry is not None and bound.retry.budget is not None:
        bound.retry.budget.count_call(bound.home.mailbox)
    wanted = wanted_rates(call) if bound.rates else []
    limits = bound.limits
    for number, limit in enumerate(limits):
        if not limit.acquire_nowait():
            held = list(limits[:number])
            may_line_up = lines_up and bound.lines_up and not call.around  # else it may wait for itself
            return held if may_line_up else _when_admitted(call, held, wanted)
    if wanted:
        if not acquire_rates_nowait(wanted, bound.home.mailbox):
            return _when_admitted(call, list(limits), wanted)
        call.paid = wanted
    call.holds = limits
    return None


async def _when_admitted(call: Call[Any], held: list[Any], wanted: list[tuple[RateLimit, float]]) -> None:
    """Wait for the tokens that were not free, then make the attempt."""
    call.status = "waiting"
    try:
        try:
            await take_concurrency(call, held)
            await take_rates(call, wanted)
            call.paid = wanted
        except BaseException:
            give_back(held)
            raise
    except BaseException as error:
        if not _refused(call, error):
            raise
        return
    rest = begin_admitted(call)
    if rest is not None:
        await rest


def begin_admitted(call: Call[Any]) -> Coroutine[Any, Any, None] | None:
    """As `begin`, for a call that has waited for its tokens and holds them all."""
    call.status = "running"
    call.holds = call.bound.limits
    call.begun_ns = perf_counter_ns()
    return _in_thread(call) if call.bound.in_thread else _start(call)


def _start(call: Call[Any]) -> Coroutine[Any, Any, None] | None:
    """Make the attempt of an async tool as far as it goes without waiting; what is left of it."""
    bound = call.bound
    context = native = None
    try:
        if bound.retry is not None and not call.host_is_ours:
            native = NativeCancels()
        context = copy_context()
        context.run(_set_current_call, call)
        if bound.is_coroutine_function:
            coroutine = bound.function(**call.inputs)  # runs no code yet
        else:
            coroutine = as_coroutine(context.run(partial(bound.function, **call.inputs)))
        try:
            step = context.run(coroutine.send, None)
        except StopIteration as stop:  # it never suspended, and there is nothing to drive
            call.value = stop.value
        else:
            return _resume(call, coroutine, context, step, native)
        _succeeded(call)
    except BaseException as raised:
        error = own_error(raised)
        call.context = context
        if _may_go_on(call, error):
            return perform_again(call, error, native)
        if not _ended(call, error):
            raise
    return None


async def _resume(call: Call[Any], coroutine: Any, context: Context, step: Any, native: NativeCancels | None) -> None:
    """Go on with an attempt whose tool has suspended."""
    rest = None
    try:
        host = call._host
        if host is not None:
            host.waits()
        call.value = await resume(coroutine, context, step)
        _succeeded(call)
    except BaseException as error:
        call.context = context
        if _may_go_on(call, error):
            rest = perform_again(call, error, native)
        elif not _ended(call, error):
            raise
    if rest is not None:  # not where the error is handled: it would be the context of those to come
        await rest


def _may_go_on(call: Call[Any], error: BaseException) -> bool:
    """Whether a call may have another attempt after this error; then it holds nothing any more."""
    if call.bound.retry is None or call.ended_ns or not is_failure(error):
        return False
    held, call.holds = call.holds, ()
    give_back(held)  # and not as of a call that has ended: whoever gets them is to begin while this one sleeps
    note_run(call)
    return True


def _succeeded(call: Call[Any]) -> None:
    ended = perf_counter_ns()
    call.run_ns = ended - call.begun_ns
    held = call.holds
    if held:
        call.holds = ()
        limit, host = call.bound.lone_limit, call._host
        if limit is not None and (host is None or host.on_release is None):
            limit.release()  # the common case: nobody wants to know
        else:
            _let_go(call, held)
    call.end("succeeded", None, ended)


async def _in_thread(call: Call[Any]) -> None:
    """Make the attempt of a sync tool."""
    context = native = rest = None
    try:
        if call.bound.retry is not None and not call.host_is_ours:
            native = NativeCancels()
        context = copy_context()
        context.run(_set_current_call, call)
        held, call.holds = call.holds, ()  # they are the thread's now
        call.begun_ns = 0  # when a thread takes it up
        work = hand_over(call, context, held, call.paid, timed=False)
        if isinstance(work, Work):
            try:
                await work.done.wait()
            except BaseException:
                await stop(call, work, call.paid)
                raise
            finally:
                call.holds = ()
                account(call, work)
            failed = taken(call, work)
        else:
            failed = work
        if failed is None:
            call.end("succeeded")
        else:  # whatever it is, SystemExit too: it was raised in a thread
            call.context = context
            if call.bound.retry is None:
                call.end(*ending(call, failed, None))
            else:
                rest = perform_again(call, failed, native)
    except BaseException as error:
        call.context = context
        if not _ended(call, error):
            raise
    if rest is not None:
        await rest


def _let_go(call: Call[Any], held: Sequence[Any]) -> None:
    host = call._host
    if host is not None and host.on_release is not None:
        host.on_release(held)
    else:
        give_back(held)


def _refused(call: Call[Any], error: BaseException) -> bool:
    """As `_ended`, of an error before the attempt."""
    return _ended(call, refused(call, error) if isinstance(error, Exception) else error)


def _ended(call: Call[Any], error: BaseException) -> bool:
    """End a call by an error; False for a cancellation that is to be passed on."""
    if call.holds:
        held, call.holds = call.holds, ()
        _let_go(call, held)
    if isinstance(error, Exception):
        note_run(call)
        call.end(*ending(call, error, None))
        return True
    return ended_by_tool(call, error)
