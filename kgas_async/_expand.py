"""The elements of an expanded result: pulled lazily, and where the iterator was made.

A list is walked on the loop. An iterator that a sync tool made in a worker thread is pulled in a worker thread, a few
elements at a time, since its code is the tool's; each visit holds the tool's concurrency tokens. An async iterator is
awaited. All of it runs in a context that knows the call, so that `current()` and log lines work in it, and each time
for as long as the tool's timeout allows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextvars import Context, copy_context
from functools import partial
from time import perf_counter
from typing import Any, Final

import anyio

from ._call import Call
from ._context import current_call
from ._drive import drive
from ._errors import CallTimeout, shown
from ._in_thread import in_thread_of
from ._mailbox import OpenScopes
from ._source import closed_for_open_scope
from ._tokens import give_back, take_again

__all__ = ["Elements", "close_all"]

PULL_MANY: Final = 64  # elements per visit to a thread, at the most
_CONTAINERS: Final = (list, tuple, set, frozenset, deque, range)
PULL_S: Final = 0.005  # seconds per visit, so that the first elements are not held up by slow ones


class _Visit:
    """What a thread has pulled. Not the buffer itself: an abandoned thread goes on to pull."""

    def __init__(self) -> None:
        self.elements: list[Any] = []
        self.error: Exception | None = None
        self.is_last = self.is_late = False


class Elements:
    """The elements of one result.

    Attributes:
        buffer: Pulled ones that nobody has taken.
        exhausted: No more will come from the iterator.
        pulling: Somebody is pulling.
    """

    def __init__(
        self, iterable: Iterable[Any] | None, asynchronous: AsyncIterator[Any] | None, call: Call[Any]
    ) -> None:
        self._async = asynchronous
        self._call = call
        # Iterating over a container runs no code of the tool; what merely has a length may read a disk.
        self._direct = call.bound.execution.kind != "thread" or isinstance(iterable, _CONTAINERS)
        self._iterable = iterable
        self._iterator = iter(iterable) if iterable is not None and self._direct else None
        self._context = None if isinstance(iterable, _CONTAINERS) else _context_of(call)
        self._error: Exception | None = None
        self.buffer: deque[Any] = deque()
        self.exhausted = False
        self.pulling = False

    @property
    def inputs(self) -> Any:
        """What the call was given."""
        return self._call.inputs

    @classmethod
    def of(cls, result: Any, call: Call[Any], phase: str) -> Elements:
        """From a phase's result.

        Raises:
            TypeError: It is a string, a mapping, or no iterable.
        """
        if isinstance(result, (str, bytes, Mapping)):
            kind = type(result).__name__
            raise TypeError(f"phase {phase!r} expands its result, which must be an iterable of elements, not a {kind}")
        if hasattr(result, "__aiter__"):
            return cls(None, result.__aiter__(), call)
        if not isinstance(result, Iterable):
            kind = type(result).__name__
            raise TypeError(f"phase {phase!r} expands its result, which must be an iterable, not {kind}")
        return cls(result, None, call)

    @property
    def is_ready(self) -> bool:
        """Whether `next` can be asked now."""
        return bool(self.buffer) or (self._iterator is not None and self._direct and not self.exhausted)

    def next(self) -> Any:
        """The next element; `StopIteration` after the last."""
        if self.buffer:
            return self.buffer.popleft()
        assert self._iterator is not None
        return next(self._iterator) if self._context is None else self._context.run(next, self._iterator)

    async def pull(self) -> None:
        """Get at least one element into the buffer, or find that there is none.

        Raises:
            CallTimeout: It did not come within the tool's timeout.

        Cancellation: A thread that is pulling has its call's grace to end.
        """
        if self._error is not None:
            raise self._error
        if self.exhausted or self.buffer:
            return
        if self._async is not None:
            try:
                self.buffer.append(await self._next_of(self._async))
            except StopAsyncIteration:
                self.exhausted = True
            return
        if self._direct:
            return
        visit = _Visit()
        if not await self._visit(partial(self._pull_some, visit)) or visit.is_late:
            self._error = self._too_late()
        else:
            self._error, self.exhausted = visit.error, visit.is_last
        self.buffer.extend(visit.elements)
        if self._error is not None and not self.buffer:
            raise self._error

    async def _next_of(self, asynchronous: AsyncIterator[Any]) -> Any:
        """The next of an async iterator, which runs here: its code is the tool's, so it holds the tool's tokens."""
        assert self._context is not None
        call = self._call
        held: list[Any] = []
        try:
            await take_again(call, held)
            call.holds = call.bound.holds
            if call.bound.timeout is None:
                return await self._step_of(asynchronous, self._context)
            element = None
            with anyio.move_on_after(call.bound.timeout) as scope:
                element = await self._step_of(asynchronous, self._context)
            if scope.cancel_called:  # late is late
                raise self._too_late()
            return element
        finally:
            call.holds = ()
            give_back(held)

    async def _step_of(self, asynchronous: AsyncIterator[Any], context: Context) -> Any:
        scopes = OpenScopes()
        element = await drive(asynchronous.__anext__(), context)
        if scopes.has_more():
            raise await closed_for_open_scope(asynchronous)
        return element

    def _too_late(self) -> CallTimeout:
        call = self._call
        return CallTimeout(
            f"the next element of tool {call.tool_name!r} did not come within its timeout of {call.bound.timeout:g} s",
            tool=call.tool_name,
            call_id=call.id,
            attempts=call.attempt,
        )

    async def _visit(self, function: Any) -> bool:
        return await in_thread_of(self._call, function, _context_of(self._call))

    def _pull_some(self, visit: _Visit) -> None:
        """In a worker thread. What came before an error is kept."""
        began = perf_counter()
        timeout = self._call.bound.timeout
        try:
            if self._iterator is None:
                assert self._iterable is not None
                self._iterator = iter(self._iterable)
            for element in self._iterator:
                passed = perf_counter() - began
                if timeout is not None and passed > timeout:
                    visit.is_late = True
                    return
                visit.elements.append(element)
                if len(visit.elements) >= PULL_MANY or passed > PULL_S:
                    return
        except Exception as error:  # noqa: BLE001  (the tool's; raised where elements are taken)
            visit.error = error
        except BaseException as error:  # noqa: BLE001  (SystemExit too is this call's failure, not the session's)
            visit.error = RuntimeError(shown(error))
            visit.error.__cause__ = error
        else:
            visit.is_last = True

    async def close(self) -> None:
        """Have a generator that is left early run its ``finally``, where it was made; in the manager's grace.

        Cancellation: Waited out within the grace.
        """
        source: Any = self._async if self._async is not None else self._iterator
        closing = getattr(source, "aclose" if self._async is not None else "close", None)
        if closing is None or self._context is None or self.exhausted:
            return
        self.exhausted = True
        home = self._call.bound.home
        with anyio.CancelScope(deadline=home.grace_until(), shield=True):
            if self._async is not None:
                await drive(closing(), self._context)
            elif self._direct:
                self._context.run(closing)
            elif getattr(source, "gi_running", False) or home.pool_of(self._call.bound).is_closed:
                pass  # an abandoned thread is still in it, or the manager was left before the run
            else:
                await self._visit(closing)


async def close_all(left: list[Elements]) -> None:
    """Close those that were left early, also where one of them raises."""
    errors: list[Exception] = []
    while left:
        try:
            await left.pop().close()
        except Exception as error:  # noqa: BLE001  (the user's)
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ExceptionGroup("generators raised as they were closed", errors)


def _context_of(call: Call[Any]) -> Context:
    """A context in which code of this call's tool runs once the call has ended."""
    context = copy_context()
    context.run(current_call.set, call)
    return context
