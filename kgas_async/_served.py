"""Calls whose services may crash: attempts that are made when these run, and ended when one of them crashes."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from ._call import Call
from ._errors import ServiceCrashed

__all__ = ["attempt_served", "interrupt"]


class Interruption:
    """A service that a call uses has crashed.

    Attributes:
        error: The failure of the present attempt.
        over: The attempt has ended.
    """

    __slots__ = ("error", "over")

    def __init__(self, error: ServiceCrashed) -> None:
        self.error = error
        self.over = anyio.Event()


def interrupt(call: Call[Any], error: ServiceCrashed) -> Callable[[], Awaitable[object]] | None:
    """End an attempt that has begun by this error, which the policy may retry. On the loop.

    A call that is not `supervised` has one attempt: the call ends. What has not begun waits for the service then.

    Returns:
        How to wait until the attempt has ended; None where none was interrupted.
    """
    host = call._host
    is_its_turn = host is not None and host.call is call
    if call.ended_ns or call.cancel_requested:
        return None
    if call.attempt_scope is not None:
        if call.crash is None:
            call.crash = Interruption(error)
            call.attempt_scope.cancel()
        interruption: Interruption = call.crash
        return interruption.over.wait
    if call.attempt and host is not None and is_its_turn and _has_one_attempt(call):
        if call.crash is None:
            call.crash = Interruption(error)
            host.cancel()
        return call.wait
    if call.deadline_at is None:
        call.deadline_at = math.inf  # no limit, but no short path either: it does not wait
    return None


def _has_one_attempt(call: Call[Any]) -> bool:
    """Whether it is in the one attempt that it has, or in one after which there is no session to make another."""
    if call.bound.supervised:
        return call.bound.flat and call.deadline_at is None  # it took the short path
    return call.status == "running"


async def attempt_served(
    call: Call[Any], make: Callable[[Call[Any]], Awaitable[BaseException | None]]
) -> BaseException | None:
    """Have ``make`` make one attempt, once its services run. Taken where the session survives a crash.

    Returns:
        As `attempt_once`; or `ServiceCrashed` where a service crashed meanwhile, or is gone.
    """
    while True:
        call.crash = None
        if (unserved := await call.bound.home.until_served(call)) is not None:
            return unserved
        error: BaseException | None = None
        scope = call.attempt_scope = anyio.CancelScope()
        try:
            with scope:
                error = await make(call)
        finally:
            call.attempt_scope = None
            crash = call.crash
            if crash is not None:
                crash.over.set()
        if crash is None or (error is None and not scope.cancelled_caught):
            return error
        call.grace_end = None  # the clock of this interruption, not of a cancellation to come
        for child in list(call.children or ()):
            child.cancel("a service of the call that it is nested in has crashed")
        if _has_begun(call):
            failure: ServiceCrashed = crash.error
            failure.__context__ = error
            return failure
        # It had but waited for tokens or for a thread: it has not used the service, and waits for it now.


def _has_begun(call: Call[Any]) -> bool:
    return call.status == "running" and (call.work is None or call.work.started_ns != 0)
