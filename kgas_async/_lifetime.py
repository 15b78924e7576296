"""One `async with` of a manager: opening it, its signals, leaving it with just what is to be raised."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import anyio

from ._mailbox import NativeCancels
from ._session import Session
from ._signals import SignalWatch
from ._waiting import wait_until

__all__ = ["Lifetime"]


class Lifetime:
    """Enters and leaves a session's task group in the task of the ``async with``.

    Args:
        session: The session.
        signals: Whether the first signal drains, and SIGTERM and SIGHUP count.
    """

    def __init__(self, session: Session, *, signals: bool) -> None:
        self._session = session
        self._signals = signals
        self.signal: int | None = None  # the latest that came
        self._watch = SignalWatch(session.mailbox, self._on_signal, all_signals=signals)

    async def open(self, services: Sequence[Any]) -> None:
        """Take the signals and start the services; leaves again where that fails."""
        session = self._session
        self._watch.open()
        await session.task_group.__aenter__()
        try:
            await session.hosting.start_all(services)
        except BaseException as error:
            if await self.leave(type(error), error, error.__traceback__):
                # Only a session that was cancelled takes its cancellation in, and that has something to raise.
                raise AssertionError("a session that did not open must raise") from None
            raise

    async def leave(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        """Close the session, in a task of its own, and raise what is to be raised: never a group around one error.

        Cancellation: Waited out, as is asyncio's own; raised again afterwards.
        """
        session = self._session
        session.task_group.start_soon(self._close, exc)
        native = await wait_until(session.closed)
        native_cancels = NativeCancels()
        swallowed = False
        try:
            swallowed = bool(await session.task_group.__aexit__(exc_type, exc, tb))
        except BaseExceptionGroup as group:
            # The task group wraps what the body raised; our own tasks raise nothing. It comes out as it was, and goes
            # before a scope's cancellation, which will come again.
            rest = group.split(anyio.get_cancelled_exc_class())[1]
            native = native or native_cancels.swallowed()
            if session.pending is None and native is None:
                alone: list[BaseException] = [] if rest is None else list(rest.exceptions)
                if group is exc or len(alone) != 1:
                    raise
                if _is_same(alone[0], exc):
                    return False
                raise alone[0] from alone[0].__cause__
        finally:
            late = self._watch.close()
            self.signal = late or self.signal
            if late is not None and session.pending is None:
                session.pending = _interrupt(late)
            if isinstance(session.pending, (KeyboardInterrupt, SystemExit)):  # goes before any cancellation
                raise _before(session.pending, exc)
        if native is not None:
            raise native
        if session.pending is not None:
            raise _before(session.pending, exc)
        return swallowed

    async def _close(self, exc: BaseException | None) -> None:
        await self._session.close(exc)

    def _on_signal(self, number: int, count: int) -> None:
        session = self._session
        interrupt = _interrupt(number)
        self.signal = number
        if session.log is not None:
            session.log.emit("session.signal", signal=signal.Signals(number).name, count=count)
        if self._signals and count == 1:
            session.pending = interrupt
            session.begin_drain()
            if not session.is_closed and not session.closed.is_set():
                session.task_group.start_soon(session.drain)
        else:
            session.crash(interrupt)


def _interrupt(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _before(error: BaseException, body: BaseException | None) -> BaseException:
    """The error that ended a session, with what the body raised behind it; the error's own reason stays its cause."""
    if isinstance(body, Exception):
        if error.__cause__ is None:
            error.__cause__ = body
        else:
            error.__context__ = body
            error.add_note(f"the body of the 'async with' was left by {body!r}")
    return error


def _is_same(one: BaseException, other: BaseException | None) -> bool:
    """Whether it is that exception; a group of the body's comes out of a trio nursery as a copy of itself."""
    if isinstance(one, BaseExceptionGroup) and isinstance(other, BaseExceptionGroup):
        pairs = zip(one.exceptions, other.exceptions, strict=False)
        return len(one.exceptions) == len(other.exceptions) and all(_is_same(inner, of) for inner, of in pairs)
    return one is other
