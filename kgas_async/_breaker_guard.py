"""The breaker on the path of a call: refusal before anything is waited for, a permit for each attempt; and who is told.

What was taken and not used is given back: a permit whose attempt has no result counts as none.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from ._breaker import BreakerMove, CircuitBreaker
from ._breaker_core import Permit
from ._call import Call
from ._errors import CallTimeout, CircuitOpen
from ._feedback import Feedback
from ._mailbox import cancels_pending
from ._offload import ReturnedError
from ._rate import RateLimit
from ._records import call_fields
from ._tokens import DeadlinePassed, give_back, refund

__all__ = ["circuit_open", "judged", "was_cancelled"]

_EVENTS = {"open": "breaker.opened", "half_open": "breaker.half_open", "closed": "breaker.closed"}


def circuit_open(call: Call[Any], breaker: CircuitBreaker) -> CircuitOpen:
    """The error of an attempt that the breaker refuses."""
    seconds = breaker.reject(call.bound.home.mailbox)
    when = "a probe is under way" if seconds is None else f"it is tried again in {seconds:.3g} s"
    return CircuitOpen(
        f"tool {call.tool_name!r} was not run: its circuit breaker is open, since calls keep failing; {when}",
        call_id=call.id,
        retry_after=seconds,
    )


async def judged(
    call: Call[Any],
    held: list[Any],
    wanted: list[tuple[RateLimit, float]],
    run: Callable[[Call[Any], list[Any], list[tuple[RateLimit, float]]], Awaitable[BaseException | None]],
) -> BaseException | None:
    """Run an attempt that has its tokens if the breaker lets it; tell breaker and adaptive limits how it ended.

    Returns:
        As ``run``; `CircuitOpen`, with the tokens given back; or what a user's function, which was to judge, raised.
    """
    breaker = call.bound.breaker
    admission = None
    if breaker is not None and (admission := _admit(call, breaker)) is None:
        give_back(held)
        refund(wanted)
        return circuit_open(call, breaker)
    feedback = Feedback(call) if call.bound.adaptive else None
    try:
        error = await run(call, held, wanted)
        if feedback is not None and (error is None or not was_cancelled(call)):
            error = feedback.ended(error)
        return error if admission is None else admission.judge(error)
    finally:
        if admission is not None:
            admission.end()


def _admit(call: Call[Any], breaker: CircuitBreaker) -> _Admission | None:
    """Leave for an attempt that has its tokens, without waiting; None where the breaker refuses."""
    permit, move = breaker.take(call.bound.home.mailbox)
    if move is not None:
        _tell(call, breaker, move)
    return None if permit is None else _Admission(call, breaker, permit)


class _Admission:
    """One attempt's leave of the breaker, while it runs: without a judgement it counts as none."""

    __slots__ = ("_began", "_breaker", "_call", "_how", "_ok", "_permit")

    def __init__(self, call: Call[Any], breaker: CircuitBreaker, permit: Permit) -> None:
        self._call = call
        self._breaker = breaker
        self._permit = permit
        self._ok: bool | None = None
        self._how = ""
        self._began = 0.0 if breaker.slow is None else anyio.current_time()

    def judge(self, error: BaseException | None) -> BaseException | None:
        """How the attempt ended; its error, or that of the user's function which was to judge it."""
        breaker = self._breaker
        self._ok = True
        if error is not None:
            try:
                self._ok, self._how = _verdict(self._call, breaker, error)
            except Exception as broken:  # noqa: BLE001  (a user's function in the policy)
                self._ok = None
                broken.__context__ = error
                return broken
        if self._ok and breaker.slow is not None and (seconds := _ran_for(self._call, self._began)) > breaker.slow:
            self._ok, self._how = False, f"slow, {seconds:.3g} s"  # also where it is an answer
        return error

    def end(self) -> None:
        """The attempt is over, whether or not it was judged."""
        move = self._breaker.settle(self._permit, self._call.bound.home.mailbox, ok=self._ok, how=self._how)
        if move is not None:
            _tell(self._call, self._breaker, move)


def _verdict(call: Call[Any], breaker: CircuitBreaker, error: BaseException) -> tuple[bool | None, str]:
    """What an error says: True for an answer, False for a failure, None for nothing."""
    work = call.work
    never_began = work is not None and not work.started_ns
    if never_began or was_cancelled(call):
        return None, ""
    if isinstance(error, DeadlinePassed):
        return False, "the deadline passed while it ran"
    if isinstance(error, CallTimeout) and error.call_id == call.id:
        return False, "CallTimeout"  # whatever errors `on` names: no answer is none
    if isinstance(error, ReturnedError):
        error = error.error
    counts = breaker.counts(error)
    return (None if counts is None else not counts), type(error).__name__


def was_cancelled(call: Call[Any]) -> bool:
    """Whether it was told to stop, by whomever: an error is what its tool has made of that."""
    if call.cancel_requested or anyio.current_effective_deadline() == -math.inf:
        return True
    pending = cancels_pending()  # asyncio's own
    return pending is not None and pending() > 0


def _ran_for(call: Call[Any], began: float) -> float:
    """Seconds that the attempt ran; of a sync tool without the wait for its thread."""
    work = call.work
    return anyio.current_time() - began if work is None else work.ended_at - work.started_at


def _tell(call: Call[Any], breaker: CircuitBreaker, move: BreakerMove) -> None:
    log = call.bound.home.log
    if log is not None:
        fields = call_fields(call, _EVENTS[move.state], None)
        log.emit(**fields, breaker=breaker.name or call.tool_name, why=move.why)
