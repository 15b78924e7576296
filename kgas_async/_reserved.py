"""Threads that run no tools: sync health checks, and what pools make, check and close.

However many tools hang, these are free; and what hangs here keeps no tool waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Final, Protocol

from ._context import current_work
from ._errors import shown
from ._left import LeftBehind
from ._mailbox import Mailbox
from ._threads import ThreadPool, Work
from ._waiting import wait_until

__all__ = ["Reserved"]

SLOTS: Final = 32  # at once; they are started as needed


class Owner(Protocol):
    """The session."""

    session: str
    mailbox: Mailbox
    left: LeftBehind


class Reserved:
    """The reserved threads of one session.

    Attributes:
        pools: All of them, closed with the session.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._shared = ThreadPool(SLOTS, f"kgas-{owner.session}-reserved")
        self.pools = [self._shared]

    def single(self, name: str) -> ThreadPool:
        """A thread of its own, for what is bound to one; given back by `end`."""
        pool = ThreadPool(1, f"kgas-{self._owner.session}-{name}")
        self.pools.append(pool)
        return pool

    async def end(self, pool: ThreadPool) -> None:
        """Let a single thread end, which has nothing left to do.

        Cancellation: Waited out.
        """
        native = await wait_until(pool.close(self._owner.mailbox))
        self.pools.remove(pool)
        if native is not None:
            raise native

    async def run(
        self,
        function: Callable[[], Any],
        service: str,
        *,
        pool: ThreadPool | None = None,
        on_left: Callable[[Work], object] | None = None,
        on_late: Callable[[Any], object] | None = None,
    ) -> Any:
        """Call ``function`` in a reserved thread.

        Args:
            function: What to call.
            service: For whom, as in the evidence.
            pool: Its thread, if it has one of its own.
            on_left: Told of the work when its thread was left to itself.
            on_late: Given, in that thread, the value that came when nobody waited any more.

        Returns:
            What it returned.

        Raises:
            Exception: What it raised.
            RuntimeError: That was an exit, or another `BaseException`: it is an error of this work alone.

        Cancellation: Leaves the thread to itself at once, on record; unstarted work never starts.
        """
        pool = pool or self._shared
        work = Work(function, copy_context(), self._owner.mailbox)
        work.context.run(current_work.set, work)
        if on_late is not None:
            late = on_late
            work.on_end = lambda: late(work.value) if work.abandoned and work.error is None else None
        pool.submit(work)
        try:
            await work.done.wait()
        except BaseException:
            work.abort()
            if work.done.is_set() or not work.withdraw():
                await self._give_up(work, service, on_left, on_late)
            raise
        if isinstance(work.error, Exception):
            raise work.error
        if work.error is not None:
            raise RuntimeError(f"{shown(work.error)} in a thread of service {service!r}") from work.error
        return work.value

    async def _give_up(
        self,
        work: Work,
        service: str,
        on_left: Callable[[Work], object] | None,
        on_late: Callable[[Any], object] | None,
    ) -> None:
        """Leave a thread to itself that has begun; or take its value, where it has ended just now."""
        assert work.pool is not None
        if not work.done.is_set() and work.pool.abandon(work):
            self._owner.left.add_errand(service, work)
            if on_left is not None:
                on_left(work)
            return
        await wait_until(work.done)  # its end is under way
        if on_late is not None and work.error is None:
            on_late(work.value)
