"""A service that does as it is told, and remembers what happened to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from kgas_async._service import Service

__all__ = ["FakeService"]


class FakeService(Service):
    """For tests of what uses services.

    Args:
        name: Its name.
        requires: What it requires.
        start_s: Seconds that its start takes.
        stop_s: Seconds that its stop takes.
        start_error: Raised by its start.
        stop_error: Raised by its stop.
        log: A list that all services of a test may share: ``(name, "started")`` and ``(name, "stopped")`` are
            appended, also those of a failing stop.

    Attributes:
        log: The list.
        uses: How often `use` was called.
    """

    def __init__(
        self,
        name: str = "fake",
        *,
        requires: Sequence[Any] = (),
        start_s: float = 0.0,
        stop_s: float = 0.0,
        start_error: BaseException | None = None,
        stop_error: BaseException | None = None,
        log: list[tuple[str, str]] | None = None,
    ) -> None:
        self.name = name
        self._required = tuple(requires)
        self._start_s = start_s
        self._stop_s = stop_s
        self._start_error = start_error
        self._stop_error = stop_error
        self._crash: anyio.Event | None = None
        self._crash_error: BaseException = RuntimeError("told to crash")
        self.log = [] if log is None else log
        self.uses = 0

    @property
    def requires(self) -> tuple[Any, ...]:
        """As given."""
        return self._required

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start, wait, stop, as told.

        Raises:
            BaseException: ``start_error``, ``stop_error``, or what `crash` was given.

        Cancellation: Ends a start as any service's; a stop is shielded.
        """
        await anyio.sleep(self._start_s)
        if self._start_error is not None:
            raise self._start_error
        self._crash = anyio.Event()
        self.log.append((self.name, "started"))
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._crash_when_told)
                yield
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(deadline=anyio.current_time() + self._stop_s + 1, shield=True):
                await anyio.sleep(self._stop_s)
            self.log.append((self.name, "stopped"))
            if self._stop_error is not None:
                raise self._stop_error

    async def _crash_when_told(self) -> None:
        assert self._crash is not None
        await self._crash.wait()
        raise self._crash_error

    def crash(self, error: BaseException | None = None) -> None:
        """Crash, while running, with this error."""
        self.ensure_running()
        assert self._crash is not None
        self._crash_error = error or self._crash_error
        self._crash.set()

    def use(self) -> int:
        """What tools call; counts.

        Raises:
            ServiceNotRunning: It is not running.
        """
        self.ensure_running()
        self.uses += 1
        return self.uses
