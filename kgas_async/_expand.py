"""The elements of an expanded result: pulled lazily, and where the iterator was made.

A list is walked on the loop. An iterator that a sync tool made in a worker thread is pulled in a worker thread, a few
elements at a time, since its code is the tool's. An async iterator is awaited.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sized
from contextvars import copy_context
from time import perf_counter
from typing import Any, Final

from ._bound import Bound, Home
from ._mailbox import wait_until
from ._threads import Work

__all__ = ["Elements"]

PULL_MANY: Final = 64  # elements per visit to a thread, at the most
PULL_S: Final = 0.005  # seconds per visit, so that the first elements are not held up by slow ones


class Elements:
    """The elements of one result.

    Attributes:
        buffer: Pulled ones that nobody has taken.
        exhausted: No more will come from the iterator.
        pulling: Somebody is pulling.
    """

    def __init__(self, iterator: Iterator[Any] | None, asynchronous: AsyncIterator[Any] | None, bound: Bound) -> None:
        self._iterator = iterator
        self._async = asynchronous
        self._bound = bound
        self._direct = asynchronous is None and bound.execution.kind != "thread"
        self.buffer: deque[Any] = deque()
        self.exhausted = False
        self.pulling = False

    @classmethod
    def of(cls, result: Any, bound: Bound, phase: str) -> Elements:
        """From a phase's result.

        Raises:
            TypeError: It is a string, a mapping, or no iterable.
        """
        if isinstance(result, (str, bytes, Mapping)):
            kind = type(result).__name__
            raise TypeError(f"phase {phase!r} expands its result, which must be an iterable of elements, not a {kind}")
        if hasattr(result, "__aiter__"):
            return cls(None, result.__aiter__(), bound)
        if not isinstance(result, Iterable):
            raise TypeError(
                f"phase {phase!r} expands its result, which must be an iterable, not {type(result).__name__}"
            )
        elements = cls(iter(result), None, bound)
        if isinstance(result, Sized):  # a container: iterating over it runs no code of the tool
            elements._direct = True
        return elements

    @property
    def is_ready(self) -> bool:
        """Whether `next` can be asked now."""
        return bool(self.buffer) or (self._direct and not self.exhausted)

    def next(self) -> Any:
        """The next element; `StopIteration` after the last."""
        if self.buffer:
            return self.buffer.popleft()
        assert self._iterator is not None
        return next(self._iterator)

    async def pull(self, home: Home) -> None:
        """Get at least one element into the buffer, or find that there is none."""
        if self._direct or self.exhausted or self.buffer:
            return
        if self._async is not None:
            try:
                self.buffer.append(await self._async.__anext__())
            except StopAsyncIteration:
                self.exhausted = True
            return
        work = Work(self._pull_some, copy_context(), home.mailbox)
        home.pool_of(self._bound).submit(work)
        try:
            await work.done.wait()
        except BaseException:
            if not work.withdraw():
                await wait_until(work.done, home.grace_until())
            raise
        if work.error is not None:
            raise work.error
        self.buffer.extend(work.value)

    def _pull_some(self) -> list[Any]:
        """In a worker thread."""
        assert self._iterator is not None
        some: list[Any] = []
        until = perf_counter() + PULL_S
        for element in self._iterator:
            some.append(element)
            if len(some) >= PULL_MANY or perf_counter() > until:
                return some
        self.exhausted = True
        return some
