"""Shared workers over one lazy source: bounded, ordered within a window, endable at any moment.

A worker takes the next unit of work, runs it to its end, and takes another; no task per item. Workers are hired only
while others are suspended. What a unit is, and what is done with it, subclasses say (`_map`, `_run`). Knows the
manager only as the `Employer` protocol.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from time import perf_counter_ns
from typing import Any, Final, Generic, TypeVar

import anyio
import anyio.lowlevel

from ._call import Call
from ._cancellation import breakdown_between, breakdown_of, failure_in
from ._employer import Employer
from ._errors import ManagerClosed, PipelineError, counted, shown
from ._host import Host
from ._limits import check_count
from ._mailbox import Gate, absorb_own_cancel, cancels_pending
from ._order import held_here
from ._outcome import Outcome
from ._report import Progress
from ._source import close_source, closed_for_open_scope, length_of, open_source
from ._staff import Staff
from ._waiting import wait_until

__all__ = ["Crew"]

T = TypeVar("T")

_PULL: Final = object()
YIELD_NS: Final = 1_000_000  # of units that end without suspending, after which a worker lets others run


class Crew(Staff, Generic[T]):
    """Workers, their source, and the outcomes that wait to be taken.

    Args:
        source: Items; pulled only when a worker is free and the window has room.
        in_flight: Workers at the most.
        window: How far the source may be ahead of what was taken.
        parent: The call that this is a part of, if it was started inside one.

    Attributes:
        around: What the code that started it, and waits for it, has entered by ``async with``.
    """

    def __init__(
        self,
        home: Employer,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        in_flight: int,
        ordered: bool,
        window: int | None,
        on_error: str | float,
        on_progress: Callable[[Progress], object] | None,
        parent: Call[Any] | None = None,
    ) -> None:
        super().__init__(home, in_flight, length_of(source), on_error, on_progress)
        self.parent = parent
        self.around = held_here()
        self.window = 4 * in_flight if window is None else check_count("ordered_window", window)
        self._ordered = ordered
        self._iterator, self._async_iterator = open_source(source)
        self._puller: Host | None = None  # the worker that waits for an async source
        self._laid_aside: list[tuple[int, Any]] = []  # the item that came just as its puller was told to stop
        self.exhausted = False
        self.taken = 0  # by the consumer
        self.pulled = 0
        self.open = 0  # source items pulled whose outcome is not there yet
        self.over = False  # no worker will do anything any more
        self.draining = False  # told to pull no more
        self.drained = False  # that was before the end of the source, as far as anybody knows
        self.reason = ""  # why it was cut
        self.breakdown: BaseException | None = None  # what ended the session in one of its workers
        self.error: BaseException | None = None  # raised where the next outcome is taken
        self.last_error: BaseException | None = None  # raised after the last outcome
        self._ready: dict[int, Outcome[T]] = {}
        self._queue: deque[Outcome[T]] = deque()
        self._consumers: list[Gate] = []  # waiting for an outcome
        self.on_outcome: Callable[[Outcome[T]], object] | None = None  # takes them as they come; then nobody waits
        self._hosts: set[Host] = set()
        self.left = anyio.Event()  # the last worker is gone
        self.last_ended_ns = 0  # when the last call of any worker ended

    # --- for the manager and the public stream

    def start(self) -> None:
        """Hire the first worker."""
        self._hire()
        self.home.keep_crew(self)

    def drain(self) -> None:
        """Pull no more; what is in flight ends, and the outcomes end with it."""
        if not self.draining:
            self.draining = True
            self.drained = not (self.exhausted or self.pulled == self.total)  # one that gave more does not know
        self.exhausted = True
        if self._puller is not None:
            self._puller.cancel()  # nobody knows how long the source would have taken
        self._wake_all()

    def cut(self, reason: str) -> None:
        """Cancel what is in flight. Who takes the outcomes is told, unless the source had ended."""
        self.reason = reason
        if not self.exhausted:
            why = f": {reason}" if reason else ""
            self.last_error = PipelineError(
                f"cancelled after {counted(self.pulled, 'item')}, before the end of the source{why}"
            )
        self.stop()

    def stop(self) -> None:
        """Cancel what is in flight."""
        self.stopped = self.exhausted = True
        for host in list(self._hosts):
            host.cancel()
        self._wake_all()

    async def close(self) -> None:
        """Stop and wait for the workers; a thread has its call's grace, an async source's clean-up the manager's.

        Cancellation: Waited out; asyncio's own is raised again afterwards.
        """
        self.stop()
        native = await wait_until(self.left)
        self.home.drop_crew(self)
        await close_source(self._iterator, self._async_iterator, self.home.grace)
        if native is not None:
            raise native

    def next_ready(self) -> Outcome[T] | None:
        """The next outcome if it is there already."""
        taken = self.taken
        if self._ordered:
            outcome = self._ready.pop(taken, None)
        else:
            outcome = self._queue.popleft() if self._queue else None
        if outcome is not None:
            self.taken = taken + 1
            if self._parked and self.pulled - taken >= self.window:  # there was no room for another item
                self._wake_parked()
        return outcome

    async def next(self) -> Outcome[T]:
        """The next outcome; `StopAsyncIteration` after the last."""
        while True:
            if self.has_cancelled or self.over:  # what cancelled the others may be about to cancel us: then only that
                await anyio.lowlevel.checkpoint_if_cancelled()
            if self.error is not None:
                raise self._raised()
            outcome = self.next_ready()
            if outcome is not None:
                return outcome
            if self.over:
                await self.finished()
                last, self.last_error = self.last_error, None
                raise last or StopAsyncIteration
            self._consumers.append(gate := self.home.mailbox.gate())
            try:
                await gate.wait()
            finally:
                if not gate.is_set():
                    self._consumers.remove(gate)

    async def finished(self) -> None:
        """Called once all outcomes were taken; what is left to do for the run as a whole."""

    def _raised(self) -> BaseException:
        assert self.error is not None
        error, self.error = self.error, StopAsyncIteration()  # what comes after it
        self.over = True
        self.stop()
        return error

    # --- for subclasses

    @abstractmethod
    def process(self, host: Host, unit: Any) -> Awaitable[None] | None:
        """Run one unit: None if it has ended, else the rest of it."""

    def take(self) -> Any:
        """The next unit, or None where there is none now."""
        return self.next_item()

    def _is_wanted(self) -> bool:
        return not self.over  # also a live reader, which goes on after that, says that there is room again

    def park_until(self) -> float:
        """Until when a worker without work may sleep (loop time)."""
        return float("inf")

    def next_item(self) -> Any:
        """The next ``(index, item)`` of the source, None where there is none or no room for one."""
        if self.exhausted or self.pulled - self.taken >= self.window:
            return self._laid_aside.pop() if self._laid_aside else None
        if self._iterator is None:
            return None if self._puller is not None else _PULL
        try:
            item = next(self._iterator)
        except StopIteration:
            self.exhausted = True
            return None
        except BaseException as error:  # noqa: BLE001  (raised again, or the user's source)
            self._source_failed(error)
            return None
        return self._counted(item)

    def _counted(self, item: Any) -> tuple[int, Any]:
        self.pulled += 1
        self.open += 1
        return self.pulled - 1, item

    def deliver(self, index: int, outcome: Outcome[T]) -> None:
        """An item of the source has its outcome."""
        self.open -= 1
        self.done += 1
        if outcome.status != "succeeded":
            self.count_failure(outcome)
        if self._ordered:
            self._ready[index] = outcome
        else:
            self._queue.append(outcome)
        if index == self.taken or not self._ordered:
            if self.on_outcome is None:
                self._wake_consumers()
            else:
                while self.error is None and (ready := self.next_ready()) is not None:
                    self.on_outcome(ready)
        if self._on_progress is not None:
            self.tell_progress()

    def is_delivered(self, index: int) -> bool:
        """Whether an item has its outcome, asked before anybody could have taken it."""
        return index in self._ready or any(outcome.index == index for outcome in self._queue)

    def fail(self, error: BaseException) -> None:
        """End the whole: cancel what is in flight; the error is raised where outcomes are taken."""
        if self.error is None:
            self.error = error
        self.stop()

    def _source_failed(self, error: BaseException) -> None:
        """What was pulled goes on to its end; the error is raised after the last outcome. Others are raised at once."""
        raised = failure_in(error)
        if raised is None:
            raise error
        self.exhausted = True
        failure = PipelineError(f"the source of items raised after {counted(self.pulled, 'item')}: {shown(raised)}")
        failure.__cause__ = raised
        self.last_error = failure

    # --- workers

    def _wake_consumers(self) -> None:
        while self._consumers:
            self._consumers.pop().set()

    def _wake_all(self) -> None:
        self._wake_all_parked()
        self._wake_consumers()

    async def _work(self) -> None:
        self._came()
        host = Host(owned=True, on_wait=self.wake_one, on_release=self.on_release)
        self._hosts.add(host)
        try:
            while not (self.over or self.stopped):
                with anyio.CancelScope() as scope:
                    host.enter(scope)
                    try:
                        await self._serve(host)
                    finally:
                        if host.scopes.has_more():
                            await self._close_leaked(host)
        except BaseException as error:
            if (broken := breakdown_between(error)) is None:
                raise
            self.break_down(broken)
        finally:
            self._hosts.discard(host)
            self._workers -= 1
            if self._workers == 0:
                try:
                    self._finish()
                finally:
                    self.left.set()

    def break_down(self, error: BaseException) -> None:
        """An exit in the user's code, or an error that nobody foresaw: the whole session ends with it."""
        self.breakdown = self.breakdown or error
        self.home.crash(error)

    def lose(self, host: Host, unit: Any, error: BaseException) -> None:
        """A unit was left by such an error: what of it is open, and nobody else will end, is to be ended."""

    def end_open(self) -> None:
        """The last worker is gone: give outcomes to items that are nobody's now."""

    def _finish(self) -> None:
        try:
            self.end_open()
        except BaseException as error:  # noqa: BLE001
            self.break_down(breakdown_of(error) or error)
        if not self.over:
            self.over = True
            if self.last_error is None and not self.stopped and (self.open or not self.exhausted):
                self.last_error = ManagerClosed("the manager was cancelled while outcomes were still to come")
        self._wake_all()

    async def _serve(self, host: Host) -> None:
        """Units one after another, until there are no more, or until this scope was cancelled for one of them."""
        yielded_ns = perf_counter_ns()
        log = self.home.log
        pending = cancels_pending()
        while not self.stopped:
            unit = self.take()
            if unit is _PULL:
                unit = await self._pull(host)
                if unit is None and not host.was_cancelled:
                    unit = self.take()  # the source has ended, and what waited for more of it may have become a unit
            if unit is None:
                if self.exhausted and not self.open and self._puller is None:  # who pulls may yet be given one
                    self.over = True
                    self._wake_all()
                    return
                await self._park(self.park_until())
                continue
            try:
                rest = self.process(host, unit)
                if rest is not None:
                    await rest
            except BaseException as error:
                if (broken := breakdown_of(error)) is None:
                    raise
                self.lose(host, unit, broken)
                self.break_down(broken)
                return
            if host.was_cancelled:
                return
            if host.scopes.has_more():
                await self._close_leaked(host)
            if pending is not None and pending():
                await absorb_own_cancel()
            if host.has_waited:
                host.has_waited = False
                yielded_ns = self.last_ended_ns
            elif self.last_ended_ns - yielded_ns > YIELD_NS:
                await anyio.lowlevel.checkpoint()
                yielded_ns = self.last_ended_ns
            else:
                continue
            if log is not None and log.behind:
                await log.caught_up()

    async def _close_leaked(self, host: Host) -> None:
        """A tool has left scopes open; what runs in them may take a grace to end, in which others can work."""
        self.wake_one()
        await self.home.close_leaked(host.scopes)

    async def _pull(self, host: Host) -> Any:
        """The next item of an async source; one worker at a time."""
        assert self._async_iterator is not None
        self._puller = host
        try:
            item = await self._async_iterator.__anext__()
            if host.scopes.has_more():
                raise await closed_for_open_scope(self._async_iterator)
        except StopAsyncIteration:
            self.exhausted, self.drained = True, False
            return None
        except BaseException as error:  # noqa: BLE001
            self._source_failed(error)  # else the next look would find an ended source, and nobody would miss the rest
            return None
        finally:
            self._puller = None
            if self._parked:
                self._wake_parked()
        pulled = self._counted(item)
        if host.was_cancelled and not self.stopped:  # drained: what came all the same ends, in a scope of its own
            self._laid_aside.append(pulled)
            return None
        return pulled
