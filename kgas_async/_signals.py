"""SIGINT, SIGTERM and SIGHUP as events of a session, instead of exceptions that land between any two bytecodes.

A plain Ctrl-C under trio is raised wherever the main thread happens to be and breaks tokens; under asyncio it cancels
the main task. Received here it only calls back on the loop.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from ._mailbox import Mailbox
from ._threads import is_main_thread

__all__ = ["SignalWatch"]

_LOOPS_OWN = ("asyncio.runners", "anyio._backends._asyncio", "trio._core._ki")


class SignalWatch:
    """Receives SIGINT (and SIGTERM and SIGHUP) while it is open.

    Args:
        mailbox: Of the loop.
        on_signal: Called on the loop with the signal's number and how many there have been.
        all_signals: Take SIGTERM and SIGHUP too, and end the process at the third signal. A signal that is ignored
            (``nohup``, a job in the background of a script) stays so.
    """

    def __init__(self, mailbox: Mailbox, on_signal: Callable[[int, int], None], *, all_signals: bool) -> None:
        self._mailbox = mailbox
        self._on_signal = on_signal
        self._all = all_signals
        self._count = 0
        self._previous: dict[int, Any] = {}
        self._undelivered: list[tuple[int, int]] = []

    def open(self) -> None:
        """Take over, where this is the main thread and nobody but Python or the event loop has the signal."""
        if not is_main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if self._all else (signal.SIGINT,):
            handler = signal.getsignal(number)
            if handler is signal.SIG_IGN:  # by whoever started us: nohup, or a shell for what is in the background
                continue
            if self._all or _is_default(handler):
                self._previous[number] = handler
                signal.signal(number, self._handle)

    def close(self) -> int | None:
        """Give them back, in the main thread, to whoever had them.

        Returns:
            The number of a signal that came too late for the loop to call back, if there was one.
        """
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
        self._previous.clear()
        late, self._undelivered = self._undelivered, []
        return late[0][0] if late else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Runs in the main thread between any two bytecodes: it only counts and posts.
        self._count += 1
        if self._all and self._count >= 3:
            os._exit(128 + number)
        self._undelivered.append((number, self._count))
        self._mailbox.put(self._deliver)

    def _deliver(self) -> None:
        if self._undelivered:
            self._on_signal(*self._undelivered.pop(0))


def _is_default(handler: Any) -> bool:
    """Python's own handler, or the one that the event loop's runner has installed in its place."""
    if handler is signal.default_int_handler:
        return True
    function = getattr(handler, "func", handler)  # asyncio's Runner installs a partial
    return getattr(function, "__module__", None) in _LOOPS_OWN
