"""Hedging: a second attempt beside one that is slow; the first value counts, and the other attempt is cancelled.

Each of the two runs in a task of its own, under a task group that ends with the attempt: what a slow one costs is paid
only where a hedge is asked for. To the rest of the path an attempt is the call, with a state of its own (`Attempt`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import anyio

from ._attempt import attempt_once, attempt_with
from ._call import Call
from ._context import current_call
from ._errors import CallRejected
from ._host import Host
from ._mailbox import Gate, OpenScopes, is_self_inflicted
from ._rate import RateLimit
from ._records import call_fields
from ._tokens import give_back, refund, take_now

__all__ = ["hedged"]

Tokens = tuple[list[Any], list[tuple[RateLimit, float]]]


class Attempt(Call[Any]):
    """One of two attempts of a call that run at once.

    Attributes:
        whole: The call. What identifies an attempt, and whether it is to stop, is the call's.
        scope: What cancels it alone.
        failed: The error that it ended with.
        is_over: Whether it has ended, or nothing of it counts any more.
        is_lost: Whether the other one was faster.
    """

    def __init__(self, whole: Call[Any], on_start: Any) -> None:
        self.__dict__.update(whole.__dict__)
        self.whole = whole
        self.scope = anyio.CancelScope()
        self.failed: BaseException | None = None
        self.is_over = False
        self.is_lost = False
        self._on_start = on_start
        self._host = Host(owned=True)
        self._done = self._feed = self.on_end = self.work = self.children = None
        self.value = None
        self.abandoned = self.waited = False
        self.holds = ()
        self.begun_ns = self.run_ns = 0
        self.wait_concurrency_ns = self.wait_rate_ns = self.wait_thread_ns = 0
        self.cpu_ns = self.rss_peak = None
        assert whole.context is not None
        self.context = whole.context.copy()
        self.context.run(current_call.set, self)  # what its tool calls is nested in this attempt

    @property
    def status(self) -> str:
        """The call's."""
        return self.whole.status

    @status.setter
    def status(self, status: str) -> None:
        if status == "running":
            self.whole.status = status
            self._on_start()

    @property
    def cancel_requested(self) -> bool:
        """Whether the call was told to stop, or the other attempt was faster."""
        return self.is_lost or self.whole.cancel_requested

    @cancel_requested.setter
    def cancel_requested(self, requested: bool) -> None:
        self.whole.cancel_requested = requested

    @property
    def ended_ns(self) -> int:
        """Not 0 once nothing of it counts any more."""
        return self.whole.ended_ns or int(self.is_over)

    @ended_ns.setter
    def ended_ns(self, at_ns: int) -> None:
        self.whole.ended_ns = at_ns

    def cancel(self, reason: str = "") -> bool:
        """Cancel the call."""
        return self.whole.cancel(reason)

    def lose(self) -> None:
        """The other one was faster."""
        self.is_lost = True
        self.scope.cancel()

    def note_progress(self, done: float, total: float | None, message: str, data: Mapping[str, Any]) -> None:
        """As of the call."""
        if not self.ended_ns:
            self.whole.note_progress(done, total, message, data)


class _Race:
    """Up to two attempts at once."""

    def __init__(self, call: Call[Any]) -> None:
        self.call = call
        self.attempts: list[Attempt] = []
        self.started_at = math.inf
        self.winner: Attempt | None = None
        self.last: Attempt | None = None  # that ended with an error
        self.unused: Tokens | None = None  # of an attempt whose task has not begun
        self.raised: BaseException | None = None  # not to be returned
        self._gate: Gate | None = None  # where the call waits for news

    def add(self) -> Attempt:
        attempt = Attempt(self.call, self._started)
        self.attempts.append(attempt)
        return attempt

    def _started(self) -> None:
        if self.started_at == math.inf:
            self.started_at = anyio.current_time()
            self._tell()

    def _tell(self) -> None:
        if self._gate is not None:
            self._gate.set()

    @property
    def is_over(self) -> bool:
        return self.winner is not None or self.raised is not None or all(one.is_over for one in self.attempts)

    async def run(self, attempt: Attempt) -> None:
        """An attempt, in a task of its own."""
        tokens, self.unused = self.unused, None
        with attempt.scope:
            try:
                scopes = OpenScopes()
                try:
                    attempt.failed = await (attempt_once(attempt) if tokens is None else attempt_with(attempt, *tokens))
                finally:
                    if scopes.has_more():
                        await self.call.bound.home.close_leaked(scopes, attempt)
                if attempt.failed is not None:
                    self.last = attempt if self.last is None or not _is_refusal(attempt) else self.last
                elif self.winner is None:
                    self.winner = attempt
            except anyio.get_cancelled_exc_class() as error:
                if not is_self_inflicted(owned=True):
                    raise
                self.raised = error
            except BaseException as error:  # noqa: BLE001  (raised again in the call's task)
                self.raised = error
        attempt.is_over = True
        self._tell()

    async def until_over(self, deadline: float = math.inf) -> bool:
        """Wait for the end, until ``deadline`` (loop time), or until the first has started; whether it is over."""
        started = self.started_at
        while not self.is_over and self.started_at == started:
            gate = self._gate = self.call.bound.home.mailbox.gate()
            if deadline == math.inf:
                await gate.wait()
                continue
            with anyio.CancelScope(deadline=deadline) as scope:
                await gate.wait()
            if scope.cancelled_caught:
                break
        return self.is_over

    def settle(self) -> None:
        """Put on the call what came of the attempts."""
        call = self.call
        call.waited = True
        if self.unused is not None:
            _give_back(self.unused)
        for attempt in self.attempts:
            attempt.is_over = True
            call.begun_ns = call.begun_ns or attempt.begun_ns
            call.run_ns += attempt.run_ns
            call.wait_concurrency_ns += attempt.wait_concurrency_ns
            call.wait_rate_ns += attempt.wait_rate_ns
            call.wait_thread_ns += attempt.wait_thread_ns
            call.abandoned = call.abandoned or attempt.abandoned
            if attempt.cpu_ns is not None:
                call.cpu_ns = (call.cpu_ns or 0) + attempt.cpu_ns
            if attempt.rss_peak is not None:
                call.rss_peak = max(call.rss_peak or 0, attempt.rss_peak)
            for child in list(attempt.children or ()):
                if attempt.is_lost:
                    child.cancel("the attempt that it is nested in was slower than another")
                else:
                    child.parent = call  # with which it ends
                    call.children = call.children or set()
                    call.children.add(child)
            if call.work is None or not call.work.abandoned or call.work.ended_ns:
                call.work = attempt.work or call.work

    def result(self) -> BaseException | None:
        """None for a value, which is on the call then; or the error of the one that failed last."""
        call = self.call
        winner = self.winner
        if winner is not None:
            call.value, call.attempt_context = winner.value, winner.attempt_context
            if len(self.attempts) > 1:
                call.winner = winner.attempt
            return None
        assert self.last is not None
        call.attempt_context = self.last.attempt_context
        return self.last.failed


async def hedged(call: Call[Any]) -> BaseException | None:
    """Make one attempt, and a second one beside it where that has no value ``hedge_after`` seconds after its start.

    Returns:
        As of one attempt.

    Cancellation: Reaches both.
    """
    race = _Race(call)
    seconds = call.bound.hedge_after
    assert seconds is not None
    call.waits()
    call.work = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(race.run, race.add())
            is_over = await race.until_over()  # or started
            if not is_over and not await race.until_over(race.started_at + seconds):
                tokens = _tokens(call)
                if tokens is not None:
                    race.unused = tokens
                    _begin_second(race, tasks)
                await race.until_over()
            for attempt in race.attempts:
                if attempt is not race.winner and not attempt.is_over:
                    attempt.lose()
    finally:
        race.settle()
    if race.raised is not None and (race.winner is None or isinstance(race.raised, (KeyboardInterrupt, SystemExit))):
        raise race.raised
    return race.result()


def _tokens(call: Call[Any]) -> Tokens | None:
    """The tokens of a second attempt, if they are there now."""
    bound = call.bound
    mailbox = bound.home.mailbox
    if bound.breaker is not None and bound.breaker.refuses(mailbox):
        return None
    tokens = take_now(call)
    budget = None if bound.retry is None else bound.retry.budget
    if tokens is not None and budget is not None and not budget.take_retry(mailbox):
        _give_back(tokens)
        return None
    return tokens


def _give_back(tokens: Tokens) -> None:
    held, rates = tokens
    give_back(held)
    refund(rates)


def _is_refusal(attempt: Attempt) -> bool:
    """Whether it did not even run: then the error of the other one says more."""
    return isinstance(attempt.failed, CallRejected) and attempt.failed.call_id == attempt.id


def _begin_second(race: _Race, tasks: Any) -> None:
    call = race.call
    call.attempt += 1
    attempt = race.add()
    log = call.bound.home.log
    if log is not None:
        log.emit(**call_fields(call, "call.hedged", None))
    tasks.start_soon(race.run, attempt)
