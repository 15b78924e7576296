"""The thread beside an event loop: notices when the loop does not tick, and says where it hangs.

A tick is a callback posted to the loop's mailbox: an idle loop wakes up and answers, a blocked one does not. The same
thread does what is to be done now and then (samples). Which call blocks is read from the loop's stack, so that calls
pay nothing for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter_ns
from types import FrameType
from typing import Any, Final, NamedTuple

from ._context import current_call
from ._mailbox import Gate, Mailbox, context_in
from ._threads import Signal, current_ident, start_daemon

__all__ = ["Look", "Watchdog", "look_at"]

TICKS_PER_STALL: Final = 4  # a stall is noticed at the latest a quarter of its limit late
FRAMES_KEPT: Final = 30
_PACKAGE: Final = __name__.rpartition(".")[0]
# Where a frame's `call` is the call that runs in it.
_PATH: Final = tuple(f"{_PACKAGE}.{module}" for module in ("_flat", "_path", "_attempt", "_in_thread"))


class Look(NamedTuple):
    """What a thread does at one moment.

    Attributes:
        call: The call that it runs, if that can be told.
        stack: Where it is: ``file:line function``, the innermost last; from the tool's own code on if there is a call.
    """

    call: Any
    stack: tuple[str, ...]


def look_at(ident: int) -> Look:
    """Look at another thread, which runs an event loop. Empty if it is gone."""
    frame: FrameType | None = sys._current_frames().get(ident)
    stack: list[str] = []
    call: Any = None
    while frame is not None:
        context = context_in(frame)
        if context is not None:  # a task that the tool has started: its context is the call's
            found: Any = context.get(current_call)
            call = None if found is None or found.has_ended else found
            break
        module = str(frame.f_globals.get("__name__"))
        if module in _PATH:
            found = frame.f_locals.get("call")
            if found is not None and not found.has_ended:
                call = found
                break
        if len(stack) < FRAMES_KEPT and (not stack or not module.startswith(_PACKAGE)):
            code = frame.f_code
            stack.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return Look(call, tuple(reversed(stack)))


class Watchdog:
    """Watches the loop that it is made on, from a reserved thread, until it is closed.

    Args:
        mailbox: Of the loop.
        stall_s: Seconds without a tick that are a stall; None: nothing is watched.
        on_stall: Called in the watchdog's thread, once per stall: where the loop hangs, and for how long it does now.
        on_end: Called there after the end of a stall: for how long it has lasted at least.
        on_turn: Called there now and then, at least every ``turn_s``; the last time with True.
        turn_s: Seconds.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        stall_s: float | None,
        on_stall: Callable[[Look, int], object],
        on_end: Callable[[int], object],
        on_turn: Callable[[bool], object],
        turn_s: float | None,
    ) -> None:
        self._mailbox = mailbox
        self._ident = current_ident()
        self._stall_s = stall_s
        self._on_stall = on_stall
        self._on_end = on_end
        self._on_turn = on_turn
        waits = [] if stall_s is None else [stall_s / TICKS_PER_STALL]
        self._wait_s = min(waits if turn_s is None else [*waits, turn_s])
        self._stop = Signal()
        self._answered = Signal()
        self._answered_ns = 0
        self._ended = mailbox.gate()
        start_daemon(self._run, "kgas-watchdog")

    def close(self) -> Gate:
        """Have the thread end; the gate opens when it has done its last turn. On the loop."""
        self._stop.set()
        return self._ended

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._on_turn(False)
                if self._stall_s is not None and not self._tick(self._stall_s):
                    return  # the loop has ended, without leaving its manager
                self._stop.wait(self._wait_s)
            self._on_turn(True)
        finally:
            self._mailbox.put(self._ended.set)

    def _tick(self, stall_s: float) -> bool:
        """Post to the loop and wait for the answer. False if there is no loop any more."""
        self._answered.clear()
        posted_ns = perf_counter_ns()
        if not self._mailbox.put(self._answer):
            return False
        noticed = False
        if not self._answered.wait(stall_s):
            noticed = True
            self._on_stall(look_at(self._ident), perf_counter_ns() - posted_ns)
            while not self._answered.wait(self._wait_s):
                self._on_turn(False)
                if self._ident not in sys._current_frames():
                    return False
        lasted_ns = self._answered_ns - posted_ns
        if not noticed and lasted_ns > stall_s * 1e9:  # this thread could not run either: one held the interpreter
            noticed = True
            self._on_stall(Look(None, ()), lasted_ns)
        if noticed:
            self._on_end(lasted_ns)
        return True

    def _answer(self) -> None:
        self._answered_ns = perf_counter_ns()
        self._answered.set()
