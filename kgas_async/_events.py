"""What a call tells while it runs: progress, from any thread, and its states; for any number of readers.

Costs nothing to calls that nobody watches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final
from weakref import ref

import anyio
import anyio.lowlevel

from ._mailbox import Mailbox
from ._threads import current_ident

__all__ = ["EVENTS_KEPT", "CallEvents", "CallProgress", "CallState", "Feed"]

EVENTS_KEPT: Final = 256  # for a reader that does not keep up; the oldest go first


@dataclass(frozen=True, slots=True)
class CallProgress:
    """How far a call is, by its tool's own account: what it gave to `progress`.

    Attributes:
        done, total, message, data: As given.
        attempt: In which attempt, from 1.
        elapsed_s: Seconds since the call was made.
    """

    done: float
    total: float | None
    message: str
    data: Mapping[str, Any]
    attempt: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class CallState:
    """What a call has come to.

    Attributes:
        status: As of `Call`.
        attempt: The attempt that it is at, or was at last.
        elapsed_s: Seconds since the call was made.
    """

    status: str
    attempt: int
    elapsed_s: float


class Feed:
    """Hands the events of one call to its readers. Made on the loop; progress comes from any thread."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._loop_thread = current_ident()
        self._lock = Lock()
        self._readers: tuple[ref[CallEvents], ...] = ()
        self._is_waking = False

    def add(self, reader: CallEvents) -> None:
        """Have a reader told from now on; until it is forgotten."""
        with self._lock:
            self._readers = (*(one for one in self._readers if one() is not None), ref(reader))

    def publish(self, event: CallProgress | CallState, *, last: bool = False) -> None:
        """Tell the readers. Never waits for them."""
        with self._lock:
            readers = [reader for one in self._readers if (reader := one()) is not None]
            for reader in readers:
                reader.take(event, last=last)
        if not readers:
            return
        if current_ident() == self._loop_thread:
            self._wake()
        elif not self._is_waking:
            self._is_waking = True
            self._mailbox.put(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        for one in self._readers:
            reader = one()
            if reader is not None:
                reader.wake()


class CallEvents:
    """An async iterator over what a call tells, from `Call.events`; ends with the call."""

    def __init__(self, first: list[CallProgress | CallState], *, has_ended: bool) -> None:
        self._events: deque[CallProgress | CallState] = deque(first, EVENTS_KEPT)
        self._has_ended = has_ended
        self._news: anyio.Event | None = None

    def __aiter__(self) -> CallEvents:
        return self

    async def __anext__(self) -> CallProgress | CallState:
        """The next event.

        Cancellation: Takes nothing.
        """
        while not self._events:
            if self._has_ended:
                raise StopAsyncIteration
            news = self._news = self._news or anyio.Event()
            await news.wait()
        if self._has_ended:
            # What cancelled the call may be about to cancel us: then that is what we are told, and nothing else.
            await anyio.lowlevel.checkpoint_if_cancelled()
        return self._events.popleft()

    def next_kept(self) -> CallProgress | CallState | None:
        """What is still kept of a call that has ended, one after another, also when its loop is gone; then None."""
        return self._events.popleft() if self._events else None

    def take(self, event: CallProgress | CallState, *, last: bool) -> None:
        """For the feed, in any thread."""
        if self._has_ended:
            return  # a thread that was left behind
        self._has_ended = last
        events = self._events
        if events and isinstance(event, CallState) and isinstance(events[-1], CallState):
            events[-1] = event  # nobody has seen that one, and it is over
        else:
            events.append(event)

    def wake(self) -> None:
        """For the feed, on the loop."""
        news, self._news = self._news, None
        if news is not None:
            news.set()
