"""An attempt of a sync tool: in a thread of the manager's, which holds the tokens and gives them back itself.

Or in the worker process that the thread has: what differs there is in `_in_process`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from time import perf_counter_ns
from typing import Any

import anyio

from ._call import Call
from ._context import current_work
from ._errors import CallAborted, CallTimeout
from ._in_process import killed, note_usage, told_of_building, work_for
from ._offload import refuse_coroutine
from ._rate import RateLimit
from ._threads import Work
from ._tokens import DeadlinePassed, deadline_of, give_back, refund, refused, take_again
from ._waiting import wait_until

__all__ = [
    "account",
    "attempt_in_thread",
    "cancel_children",
    "hand_over",
    "in_thread_of",
    "late_error",
    "stop",
    "taken",
]

_set_current_work = current_work.set


async def attempt_in_thread(
    call: Call[Any], context: Context, held: Sequence[Any], rates: Sequence[tuple[RateLimit, float]]
) -> BaseException | None:
    """A sync tool, in a thread of the manager's, or in the worker process that it has; it gives the tokens back.

    Returns:
        As `attempt_once`.
    """
    bound = call.bound
    bounded = bound.timeout is not None or call.deadline_at is not None
    work = hand_over(call, context, held, rates, timed=bounded or bound.is_judged_by_time)
    if not isinstance(work, Work):
        return work
    timed_out = False
    try:
        if bounded:
            timed_out = await _wait_bounded(call, work, deadline_of(call))
        else:
            await work.done.wait()
    except BaseException:
        await stop(call, work, rates)
        raise
    finally:
        call.holds = ()
        account(call, work)
    if work.withdrawn:
        refund(rates)
        return DeadlinePassed()
    return _thread_result(call, work, timed_out=timed_out)


async def in_thread_of(call: Call[Any], function: Callable[[], object], context: Context) -> bool:
    """Run more of a tool's code for a call that has ended, under the same tokens and timeout; raises what it raises.

    Returns:
        Whether it ended in time; if not, its thread may be abandoned, as of an attempt.

    Cancellation: As of an attempt: unstarted work never starts, running work has its grace, then is abandoned.
    """
    held: list[Any] = []
    try:
        await take_again(call, held)
    except BaseException:
        give_back(held)
        raise
    home = call.bound.home
    work = Work(function, context, home.mailbox)
    context.run(_set_current_work, work)
    work.on_end = partial(give_back, held)
    work.is_timed = call.bound.timeout is not None
    call.holds = call.bound.holds
    late = False
    try:
        home.pool_of(call.bound).submit(work)
    except BaseException:
        call.holds = ()
        give_back(held)
        raise
    try:
        if call.bound.timeout is None:
            await work.done.wait()
        else:
            late = await _wait_bounded(call, work, math.inf)
    except BaseException:
        call.grace_end = None  # the clock of this cancellation, not of the call
        await stop(call, work, [])
        raise
    finally:
        call.holds = ()
    if work.error is not None and not late:
        raise work.error
    return not late


def taken(call: Call[Any], work: Work) -> BaseException | None:
    """Take what a thread gave: the value, or the error is returned."""
    if work.error is not None:
        return work.error
    try:
        call.value = refuse_coroutine(work.value, call.bound.function)
    except TypeError as disguised:
        return disguised
    return None


def hand_over(
    call: Call[Any], context: Context, held: Sequence[Any], rates: Sequence[tuple[RateLimit, float]], *, timed: bool
) -> Work | BaseException:
    """Give a sync tool's call, and its tokens, to a thread or to the worker process that one has.

    Returns:
        The work, or why there is none: an error as of `attempt_once`; then the tokens were given back.
    """
    bound = call.bound
    home, remote = bound.home, bound.remote
    if remote is None and (full := home.left.refusal(home.max_abandoned)) is not None:
        give_back(held)
        refund(rates)
        return refused(call, full)
    call.holds = bound.holds
    call.status = "running"
    try:
        if remote is None:
            work = Work(bound.function, context, home.mailbox, call.inputs)
        else:
            work = work_for(call, partial(bound.function, **call.inputs), context)
        call.work = work
        context.run(_set_current_work, work)
        work.is_timed = timed
        if held:
            work.on_end = partial(give_back, held)
        work.submitted_ns = perf_counter_ns()
        bound.state.thread_starts += remote is None
        home.pool_of(bound).submit(work)
        call.waits()
    except Exception as error:  # noqa: BLE001  (no thread can be started for it)
        call.holds = ()
        give_back(held)
        refund(rates)
        return error
    return work


def account(call: Call[Any], work: Work) -> None:
    """How long it waited for its thread, and ran."""
    now = perf_counter_ns()
    call.wait_thread_ns += (work.started_ns or now) - work.submitted_ns
    if work.started_ns:
        call.begun_ns = call.begun_ns or work.started_ns
        call.run_ns += (work.ended_ns or now) - work.started_ns
    if call.bound.remote is not None:
        note_usage(call, work)


async def _wait_bounded(call: Call[Any], work: Work, deadline: float) -> bool:
    """Wait for a thread under timeout and deadline. Whether they passed before its end."""
    bound = call.bound
    scope = anyio.CancelScope(deadline=deadline)
    if bound.timeout is not None:
        timeout = bound.timeout

        def begin() -> None:  # the timeout runs from when a thread has taken the call up: waiting for one is no fault
            scope.deadline = min(scope.deadline, anyio.current_time() + timeout)

        work.on_begin = begin
        if work.started_ns:
            begin()
    with scope:
        await work.done.wait()
    if work.ended_ns:  # the loop may hear of it only now: whether it was in time, `ended_at` says
        await work.done.wait()
        return False
    work.abort()
    cancel_children(call)
    if work.withdraw():
        work.give_back()
        return True
    if bound.execution.kill:
        await _kill(call, work)
        return True
    if bound.execution.abandon and _abandon(call, work):
        return True
    await work.done.wait()  # a timeout alone waits for the thread; cancellation ends this wait
    return True


def _thread_result(call: Call[Any], work: Work, *, timed_out: bool) -> BaseException | None:
    error = work.error
    if call.bound.timeout is not None or call.deadline_at is not None:
        timeout = call.bound.timeout
        timeout_at = math.inf if timeout is None else work.started_at + timeout
        ended_at = work.ended_at
        if timed_out:
            ended_at = max(ended_at, min(timeout_at, deadline_of(call)) + 1)
        late = late_error(call, ended_at, timeout_at, None if isinstance(error, CallAborted) else error)
        if late is not None:
            return late
    return taken(call, work)


def cancel_children(call: Call[Any]) -> None:
    for child in list(call.children or ()):
        child.cancel("the call that it is nested in was cancelled or has timed out")


def _abandon(call: Call[Any], work: Work) -> bool:
    """Leave a running thread to itself. False if it has just ended."""
    assert work.pool is not None
    if not work.pool.abandon(work):
        return False
    call.abandoned = True
    call.bound.home.left.add(call, work)
    return True


async def stop(call: Call[Any], work: Work, rates: Sequence[tuple[RateLimit, float]]) -> None:
    """End the work of a cancelled call: unstarted work never starts, running work has its grace."""
    work.abort()
    cancel_children(call)
    if work.done.is_set() or work.abandoned:
        return
    if work.withdraw():
        work.give_back()
        refund(rates)
        return
    if call.bound.execution.abandon and _abandon(call, work):
        return
    native = None
    if not call.bound.execution.kill:
        native = await wait_until(work.done, call.grace_deadline())
    await _kill(call, work, native)


async def _kill(call: Call[Any], work: Work, native: BaseException | None = None) -> None:
    """Kill the worker of a work that nobody waits for any more, if it has one; what is left then is abandoned."""
    later = await killed(work)
    if not work.done.is_set():
        _abandon(call, work)
    native = native or later
    if native is not None:
        raise native


def _timeout(call: Call[Any]) -> CallTimeout:
    return CallTimeout(
        f"tool {call.tool_name!r} did not end within its timeout of {call.bound.timeout:g} s"
        f"{told_of_building(call.work)}",
        tool=call.tool_name,
        call_id=call.id,
        attempts=call.attempt,
    )


def late_error(
    call: Call[Any], ended_at: float, timeout_at: float, cause: BaseException | None
) -> BaseException | None:
    """The error of an attempt that ended too late, if it did."""
    if ended_at > timeout_at and timeout_at <= deadline_of(call):
        late = _timeout(call)
        late.__cause__ = cause
        return late
    deadline = deadline_of(call)
    # A nested call's timeout may be what is left of this deadline, and clocks are as coarse as a millisecond (uvloop).
    is_late = ended_at >= deadline if isinstance(cause, CallTimeout) else ended_at > deadline
    return DeadlinePassed(cause) if is_late else None
