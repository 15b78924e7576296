"""`Call`: one execution of one tool on one set of inputs, up to its one end. The path that it takes is `_path`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from functools import partial
from time import perf_counter_ns
from typing import Any, Generic, TypeVar, cast

import anyio
import anyio.lowlevel

from ._bound import Bound
from ._errors import CallCancelled
from ._events import CallEvents, CallProgress, CallState, Feed
from ._host import Host
from ._limits import check_text
from ._outcome import SUCCESSES, Outcome
from ._threads import Work
from ._tool import KGASTool
from ._waiting import wait_until

__all__ = ["Call", "wait_for_end"]

R = TypeVar("R")


class Call(Generic[R]):
    """One execution of one tool on one set of inputs.

    Attributes:
        inputs: What it runs on, by name.
        status: ``waiting`` or ``running``, then how it ended: ``succeeded``, ``failed``, ``timed_out``,
            ``cancelled``, ``rejected``, ``skipped``, ``reused``.
        attempt: The number of the current attempt, from 1; 0 before the first.
        progress: The latest that its tool has told by `progress`, or None.
        reason: Why it was cancelled.
    """

    # Class attributes as defaults: most calls never set most of them, and making a call must cost little.
    status = "running"
    value: Any = None
    error: BaseException | None = None
    reason = ""
    attempt = 0
    progress: CallProgress | None = None
    parent: Any = None
    item: str | None = None
    batch_id: str | None = None  # the call that ran it together with others
    batch_size = 0  # how many it ran together
    index = -1
    work: Work | None = None
    abandoned = False
    cancel_requested = False
    is_submitted = False  # whoever made it goes on by itself
    announced = False  # has a call.started in the evidence
    deadline_at: float | None = None
    begun_ns = ended_ns = run_ns = 0
    answered_by: str | None = None  # the fallback whose value it has
    recorded = False  # it was not made: a journal has its value
    reused = False  # its value is that of another call,
    reused_from: str | None = None  # of this one, where it waited for it
    is_cleaned_up = False  # its tool was told that it had failed
    noted: dict[str, Any] | None = None  # what is on record of its values, where anything is
    winner = 0  # the number of the attempt that gave the value, where two ran at once
    waited = False  # any of the following is above 0
    wait_concurrency_ns = wait_rate_ns = wait_retry_ns = wait_thread_ns = 0
    cpu_ns: int | None = None  # of its worker process, where it ran in one
    rss_peak: int | None = None  # the same, in bytes
    wait_service_ns = 0
    grace_end: float | None = None
    last_error: BaseException | None = None
    children: set[Any] | None = None
    holds: tuple[Any, ...] = ()
    around: tuple[Any, ...] = ()  # what the code that waits for it has entered by ``async with``
    paid: Sequence[tuple[Any, float]] = ()  # rate limits and what was taken of them
    replaces: tuple[Any, ...] = ()  # calls to be waited for before it begins
    given_name: str | None = None
    given_priority: int | None = None
    context: Context | None = None
    attempt_context: Context | None = None  # of the latest attempt, where it is not the call's: what the tool bound
    on_end: Callable[[Any], object] | None = None
    crash: Any = None  # the `Interruption` of its present attempt
    attempt_scope: anyio.CancelScope | None = None  # where a crash ends the attempt, and not the call
    _host: Host | None = None
    _done: anyio.Event | None = None
    _feed: Feed | None = None

    def __init__(self, bound: Bound, serial: int, inputs: Mapping[str, Any]) -> None:
        self.bound = bound
        self.serial = serial
        self.inputs = inputs
        self.created_ns = perf_counter_ns()

    def __repr__(self) -> str:
        return f"<Call {self.id} of {self.name!r}: {self.status}>"

    @property
    def id(self) -> str:
        """As in the evidence: the session's id and a number."""
        return f"{self.bound.home.session}-{self.serial}"

    @property
    def session_id(self) -> str:
        """The id of the session that owns it, also after its manager was left."""
        return self.bound.home.session

    @property
    def name(self) -> str:
        """The name that ``manager.options(name=...)`` gave it, else the tool's."""
        return self.given_name or self.bound.name

    @property
    def tool_name(self) -> str:
        """The name of the tool."""
        return self.bound.name

    @property
    def tool(self) -> KGASTool:
        """The tool."""
        return self.bound.tool

    @property
    def manager(self) -> Any:
        """The manager that owns the call."""
        return self.bound.home.manager

    @property
    def aborted(self) -> bool:
        """Whether the call was told to stop."""
        return self.cancel_requested

    @property
    def placed(self) -> Call[Any]:
        """The call of a phase that it is, or is nested in; else the outermost. Its are pipeline, phase and item."""
        call: Call[Any] = self
        while call.bound.run_id is None and call.parent is not None:
            call = call.parent
        return call

    @property
    def pipeline(self) -> str | None:
        """The name of the pipeline it belongs to, by itself or by the call that it is nested in."""
        return self.placed.bound.pipeline

    @property
    def phase(self) -> str | None:
        """The name of the phase it belongs to, by itself or by the call that it is nested in."""
        return self.placed.bound.phase

    @property
    def run_id(self) -> str | None:
        """The id of the run it belongs to, by itself or by the call that it is nested in."""
        return self.placed.bound.run_id

    def waits(self) -> None:
        """To be called before waiting for a token, a thread, a delay."""
        self.waited = True
        if self._host is not None:
            self._host.waits()

    @property
    def host_is_ours(self) -> bool:
        """Whether it runs in a task of the manager's, and not in its caller's."""
        return self._host is not None and self._host.owned

    def grace_deadline(self) -> float:
        """Until when what is left of a cancelled call may run, in loop time; counted from the first asking."""
        if self.grace_end is None:
            home = self.bound.home
            grace = home.grace if self.bound.grace is None else self.bound.grace
            self.grace_end = min(anyio.current_time() + grace, home.closing_at)
        return self.grace_end

    @property
    def has_ended(self) -> bool:
        """Whether it has its final status."""
        return self.ended_ns != 0

    @property
    def ok(self) -> bool:
        """Whether it has ended with a value."""
        return self.status in SUCCESSES

    @property
    def started(self) -> float | None:
        """Seconds between the making of the call and the begin of its first attempt; None before that."""
        return (self.begun_ns - self.created_ns) / 1e9 if self.begun_ns else None

    @property
    def duration(self) -> float:
        """Seconds since the call was made, or until it ended."""
        return ((self.ended_ns or perf_counter_ns()) - self.created_ns) / 1e9

    @property
    def wait_ns(self) -> int:
        """Nanoseconds spent waiting for limits, retries, a thread and services that are started again."""
        waits = self.wait_concurrency_ns + self.wait_rate_ns + self.wait_retry_ns + self.wait_thread_ns
        return waits + self.wait_service_ns

    def cancel(self, reason: str = "") -> bool:
        """Cancel this call alone. From any thread.

        An async tool stops at its next checkpoint, a sync one at its next ``check_cancelled()``; one that never
        looks is waited for as its ``on_cancel`` says.

        Args:
            reason: Goes into evidence and into `CallCancelled.reason`.

        Returns:
            False if it had ended.

        Raises:
            TypeError: The reason is no string; nothing was cancelled.
        """
        check_text("the reason of a cancellation", reason, empty=True)
        if self.ended_ns:
            return False
        mailbox = self.bound.home.mailbox
        if not mailbox.is_here():
            return mailbox.put(partial(self.cancel, reason))
        if not self.cancel_requested:
            self.cancel_requested = True
            self.reason = reason
        host = self._host
        # Checked before it is applied: a shared worker's scope must not be cancelled for a call it has left.
        if host is not None and host.call is self:
            host.cancel()
        return True

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the call has ended, however; never ends it. On the manager's event loop.

        Args:
            timeout: Seconds to wait at the most.

        Returns:
            Whether it has ended.

        Cancellation: Leaves the call running.
        """
        if not self.ended_ns:
            self.bound.home.mailbox.check_here("waiting for a call")
            if self._done is None:
                self._done = anyio.Event()
            with anyio.move_on_after(timeout):
                await self._done.wait()
        if self.status == "cancelled":
            # What cancelled the call may be about to cancel us: then that is what we are told, and nothing else.
            await anyio.lowlevel.checkpoint_if_cancelled()
        return self.ended_ns != 0

    async def result(self) -> R:
        """Wait for the end and give the value.

        Raises:
            CallError: The call's; `CallCancelled` if somebody cancelled it.

        Cancellation: Leaves the call running.
        """
        await self.wait()
        return self.unwrap()

    async def outcome(self) -> Outcome[R]:
        """Wait for the end and give the outcome; raises nothing but the caller's own cancellation. As of `wait`."""
        await self.wait()
        return self.to_outcome()

    def events(self) -> CallEvents:
        """What the call tells from now on: ``async for event in call.events()``. On the manager's event loop.

        Any number of readers; each begins with the latest progress and state. One that does not keep up gets the
        newest 256, and of states that follow each other the last.

        Returns:
            An async iterator over `CallProgress` and `CallState`; the call's final state is the last.

        Raises:
            RuntimeError: The call has not ended, and this is not the thread of its manager's event loop.
        """
        first: list[CallProgress | CallState] = [] if self.progress is None else [self.progress]
        events = CallEvents([*first, self._state()], has_ended=self.has_ended)
        if not self.ended_ns:
            self.bound.home.mailbox.check_here("reading the events of a call")
            if self._feed is None:
                self._feed = Feed(self.bound.home.mailbox)
                self.__class__ = cast(Any, WatchedCall)  # so that the others pay nothing for it
            self._feed.add(events)
        return events

    def _state(self) -> CallState:
        attempt = self.attempt or int(self.status == "running")  # a plain call gets its number a moment later
        return CallState(self.status, attempt, self.duration)

    def note_progress(self, done: float, total: float | None, message: str, data: Mapping[str, Any]) -> None:
        """What `progress` does inside this call. From any thread."""
        if self.ended_ns:
            return  # a thread that was left behind
        event = self.progress = CallProgress(done, total, message, data, self.attempt, self.duration)
        if self._feed is not None:
            self._feed.publish(event)

    def unwrap(self) -> R:
        """The value of a call that has ended, or its error raised."""
        if self.status in SUCCESSES:
            result: R = self.value
            return result
        raise self.error or self.cancelled_error()

    def cancelled_error(self) -> CallCancelled:
        """The error for those who wait for this cancelled call."""
        why = f": {self.reason}" if self.reason else ""
        self.error = CallCancelled(
            f"call {self.id} of tool {self.tool_name!r} was cancelled{why}",
            tool=self.tool_name,
            call_id=self.id,
            attempts=self.attempt,
            reason=self.reason,
        )
        return self.error

    def to_outcome(self) -> Outcome[R]:
        """The outcome of a call that has ended."""
        if self.status == "cancelled" and self.error is None:
            self.cancelled_error()
        wait_ns = self.wait_ns if self.waited else 0
        return Outcome(
            self.status,
            self.value,
            self.error,
            self.item,
            self.index,
            self.answered_by or self.bound.name,
            self.attempt,
            wait_ns,
            self.run_ns,
        )

    def end(self, status: str, error: BaseException | None = None, at_ns: int = 0) -> None:
        """Give the call its final status, once: off the register, into statistics and evidence."""
        if self.ended_ns:
            return
        self.ended_ns = at_ns or perf_counter_ns()
        self.status = status
        if error is not None:
            self.error = error
        bound = self.bound
        home = bound.home
        del home.calls_open[self.serial]
        state = bound.state
        state.ended[status] += 1
        state.run_ns += self.run_ns
        log = home.log
        if log is not None and (log.wants_calls or status not in ("succeeded", "cancelled", "reused")):
            log.append(self)
            if error is not None and status != "cancelled":
                log.hurry()
        if self.context is not None and status in SUCCESSES:
            self.context = self.attempt_context = None  # it refers to the call: both are freed at once
        if self._done is not None:
            self._done.set()
        if self.parent is not None and self.parent.children is not None:
            self.parent.children.discard(self)
        if self.on_end is not None:
            try:
                self.on_end(self)
            except BaseException as error:  # noqa: BLE001  (not the call's, which has ended)
                home.crash(error)


def _give_layout() -> None:
    """CPython makes an instance no dict while its attributes are among those that the first few of the class had."""
    names = "bound serial inputs created_ns item parent deadline_at index _host attempt status waited holds begun_ns "
    names += "value run_ns ended_ns error context work wait_concurrency_ns wait_thread_ns wait_rate_ns paid around "
    first: Call[Any] = object.__new__(Call)
    for name in (names + "noted on_end _done is_submitted").split():  # 29: 30, less one for each instance made before
        setattr(first, name, None)


_give_layout()


class WatchedCall(Call[R]):
    """A call that somebody reads the events of: it says when its status changes."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "status" and self._feed is not None:
            self._feed.publish(self._state(), last=self.has_ended)


async def wait_for_end(call: Call[Any], deadline: float) -> BaseException | None:
    """Wait for a call's end whatever cancels us; see `wait_until`."""
    if call.ended_ns:
        return None
    if call._done is None:
        call._done = anyio.Event()
    return await wait_until(call._done, deadline)
