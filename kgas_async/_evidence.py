"""The record of what happened: a buffer that costs an append, and a thread that writes it to sinks in batches.

Emitting is synchronous and never awaits, so it works in a cancelled scope and on any loop. Ended calls are appended as
they are; the writer's thread renders them (`_records`). Knows calls only by the attributes that it renders.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, Final, Protocol

import anyio

from ._errors import EvidenceError, text_of
from ._jsonl import JsonlSink
from ._mailbox import Mailbox
from ._records import Record, call_fields
from ._threads import JOIN_S, Signal, start_daemon
from ._tracing import Tracing

__all__ = ["EvidenceLog", "Sink", "TracingLog"]

BATCH: Final = 512  # records after which the writer is woken before its delay is over
DELAY_S: Final = 0.05  # the longest that a record waits for the writer
ERROR_EVERY_S: Final = 0.005  # errors are written at once, but not more often than so
HIGH_WATER: Final = 10_000  # unwritten records above which no new call is admitted


class Sink(Protocol):
    """Where records go. Both methods are called in the writer's thread, one at a time."""

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take records, in order. An error here is a failed sink: see ``on_sink_error``."""

    def close(self) -> None:
        """No more records will come."""


class Receiver(Protocol):
    """Takes what was appended as it is, ended calls and fields of events, before it is rendered."""

    def take(self, entries: Sequence[Any]) -> Sequence[dict[str, Any]]:
        """Take entries, in order, each once, in one thread at a time.

        Returns:
            Fields of events to be recorded after them, with ``at_ns``.
        """
        ...


class EvidenceLog:
    """The evidence of one session.

    Args:
        sinks: Those that get every record.
        quiet: Those that get only what their ``wants(event)`` says, such as the structlog sink.
        session: The session's id.
        mailbox: Of the manager's loop.
        open_calls: The manager's register of open calls, read when the writer flushes.
        on_failure: Called on the loop with the error of a sink that failed.
        receiver: What gets every entry, mostly in the writer's thread.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        quiet: Sequence[Any],
        session: str,
        mailbox: Mailbox,
        open_calls: dict[int, Any],
        on_failure: Callable[[EvidenceError], None],
        receiver: Receiver | None = None,
    ) -> None:
        self.session = session
        self.buffer: deque[Any] = deque()
        self.wants_calls = bool(sinks) or receiver is not None or any(sink.wants("call.succeeded") for sink in quiet)
        self.announces = bool(sinks)
        self._sinks = list(sinks)
        self._quiet = list(quiet)
        self._mailbox = mailbox
        self._open_calls = open_calls
        self._on_failure = on_failure
        self._receiver = receiver
        self._ahead = 0  # entries at the buffer's head that the receiver has and the writer has not
        self._handing = Lock()
        self._seq = 0
        self.armed = False
        self._wake = Signal()
        self._full = Signal()
        self._urgent = False
        self._flushed_at = 0.0
        self._closing = False
        self._started = False
        self._writer: Any = None
        self._lock = Lock()
        self._waiters: list[anyio.Event] = []
        self._closed: anyio.Event | None = None
        # One anchor for both clocks: records carry the monotonic one, a wall clock that jumps does not reorder them.
        self._anchor_ns = time.time_ns() - time.perf_counter_ns()

    @property
    def behind(self) -> bool:
        """Whether the writer lags so far that no new call may be admitted: until it has caught up, if some wait."""
        return len(self.buffer) > HIGH_WATER or bool(self._waiters)

    def append(self, entry: Any) -> None:
        """Take an ended call or a record's fields. Never blocks."""
        self.buffer.append(entry)
        if not self.armed:
            self.arm()
        elif len(self.buffer) == BATCH:
            self._full.set()

    def hurry(self) -> None:
        """Have what was appended written at once: it is an error, and the process may not live for long."""
        if not self._urgent:
            self._urgent = True
            self._full.set()

    def emit(self, event: str, **fields: Any) -> None:
        """Take a record that is not a call's end."""
        fields["event"] = event
        fields["at_ns"] = time.perf_counter_ns()
        self.append(fields)
        if fields.get("error") is not None:
            self.hurry()

    def retried(self, call: Any, error: BaseException, delay: float) -> None:
        """An attempt failed and another will follow."""
        fields = call_fields(call, "call.retried", error)
        fields["delay_us"] = int(delay * 1e6)
        self.emit(**fields)

    def arm(self) -> None:
        """See to it that the writer flushes within its delay: something was appended, or a call has begun."""
        self.armed = True
        if not self._started:
            self._started = True
            self._writer = start_daemon(self._write_loop, "kgas-evidence")
        self._wake.set()

    async def caught_up(self) -> None:
        """Wait until the writer has caught up.

        Cancellation: Stops waiting; the records stay.
        """
        event = anyio.Event()
        with self._lock:
            if not self.behind:
                return
            self._waiters.append(event)
        self._mailbox.add_busy(1)
        try:
            await event.wait()
        finally:
            self._mailbox.add_busy(-1)

    def begin_close(self) -> anyio.Event:
        """Have everything written and the sinks closed; the event is set then. On the loop."""
        if self._closed is None:
            self._closed = anyio.Event()
            self._closing = True
            if self._started:
                self._mailbox.add_busy(1)
                self._wake.set()
                self._full.set()
            else:
                self._close_sinks()
                self._closed.set()
        return self._closed

    def join(self) -> None:
        """After the close: wait for the writer's thread, which only has to return."""
        if self._writer is not None:
            self._writer.join(JOIN_S)

    def _write_loop(self) -> None:
        while True:
            self._wake.wait()
            if not self._closing:
                self._full.wait(DELAY_S)
                if self._urgent:
                    early = self._flushed_at + ERROR_EVERY_S - time.monotonic()
                    if early > 0 and len(self.buffer) < BATCH:
                        time.sleep(early)
            self._wake.clear()
            self._full.clear()
            self._urgent = False
            self.armed = False  # before draining: a later append makes its own wake-up
            closing = self._closing
            self._flush()
            self._flushed_at = time.monotonic()
            if closing and not self.buffer:
                self._close_sinks()
                self._mailbox.put(self._has_closed)
                return
            if closing:
                self._wake.set()

    def _has_closed(self) -> None:
        self._mailbox.add_busy(-1)
        assert self._closed is not None
        self._closed.set()

    def _flush(self) -> None:
        """Write what there is; calls that are still open get their ``call.started`` first."""
        entries: list[Any] = []
        buffer = self.buffer
        if not self._seq and buffer:
            entries = self._popped(1)  # the session's start, also before calls that have begun meanwhile
        if self.announces:
            for call in self.open_now():
                if not call.announced and not call.ended_ns:
                    call.announced = True
                    entries.append(call_fields(call, "call.started", None) | {"at_ns": call.created_ns})
        entries += self._popped(4 * BATCH)
        if entries:
            self._write(entries)
        if buffer:
            self._wake.set()
            self._full.set()
        if self._waiters and len(buffer) < HIGH_WATER // 2:
            with self._lock:
                waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                self._mailbox.put(waiter.set)

    def _popped(self, count: int) -> list[Any]:
        """The next entries, at most so many; the receiver has them too then, and its own are among them."""
        buffer = self.buffer
        with self._handing:
            entries = [buffer.popleft() for _ in range(min(len(buffer), count))]
            known = min(self._ahead, len(entries))
            self._ahead -= known
            return entries + self._handed(entries[known:])

    def take_in(self) -> None:
        """Have the receiver take what was appended and is not yet written. From any thread."""
        with self._handing:
            while True:
                try:
                    entries = list(self.buffer)
                except RuntimeError:  # another thread appended meanwhile
                    continue
                break
            new = entries[self._ahead :]
            self._ahead = len(entries)
            own = self._handed(new)
        for fields in own:
            self.append(fields)

    def _handed(self, entries: list[Any]) -> list[Any]:
        if self._receiver is None or not entries:
            return []
        try:
            return list(self._receiver.take(entries))
        except Exception as error:  # noqa: BLE001  (the writer's thread must live; said as of a sink)
            receiver, self._receiver = self._receiver, None
            self._fail(receiver, error)
            return []

    def open_now(self) -> list[Any]:
        """The calls that have not ended, oldest first. From any thread."""
        while True:
            try:
                return list(self._open_calls.values())
            except RuntimeError:  # the loop's thread changed it meanwhile
                continue

    def _write(self, entries: list[Any]) -> None:
        first = self._seq + 1
        self._seq += len(entries)
        anchor = self._anchor_ns
        for sink in list(self._sinks):
            try:
                if isinstance(sink, JsonlSink) and type(sink).write is JsonlSink.write:
                    sink.write_entries(entries, first, self.session, anchor)  # without a mapping per record
                else:
                    sink.write(
                        [Record.of(entry, seq, self.session, anchor) for seq, entry in enumerate(entries, first)]
                    )
            except BaseException as error:  # noqa: BLE001  (a failed sink, also by SystemExit: this thread must live)
                self._drop(self._sinks, sink, error)
        for sink in list(self._quiet):
            try:
                wanted = [
                    Record.of(entry, seq, self.session, anchor)
                    for seq, entry in enumerate(entries, first)
                    if sink.wants(entry["event"] if entry.__class__ is dict else "call." + entry.status)
                ]
                if wanted:
                    sink.write(wanted)
            except BaseException as error:  # noqa: BLE001
                self._drop(self._quiet, sink, error)

    def _drop(self, sinks: list[Any], sink: Any, error: BaseException) -> None:
        sinks.remove(sink)
        with suppress(BaseException):  # what is said is why it failed
            sink.close()
        self._fail(sink, error)

    def _fail(self, sink: Any, error: BaseException) -> None:
        """Say that a sink is out, by those that are left, and tell the session."""
        failure = EvidenceError(f"evidence sink {sink!r} failed and gets no further records: {text_of(error)}")
        failure.__cause__ = error
        if not self._quiet:  # never silent, also where nothing goes to structlog
            logging.getLogger("kgas_async").error("%s", failure)
        # From this thread, so that it is written even if this was the last batch.
        self.emit("evidence.failed", error={"type": "EvidenceError", "message": str(failure)})
        self._mailbox.put(lambda: self._on_failure(failure))

    def _close_sinks(self) -> None:
        for sinks in (self._sinks, self._quiet):  # the quiet ones last: they say what is wrong with the others
            while sinks:
                sink = sinks.pop(0)
                try:
                    sink.close()
                except BaseException as error:  # noqa: BLE001
                    self._fail(sink, error)
                    self._flush()


class TracingLog(EvidenceLog):
    """One that notes digests or values of each ended call."""

    def __init__(self, tracing: Tracing, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._tracing = tracing

    def append(self, entry: Any) -> None:
        """Take an ended call, its values while they are what they were, or a record's fields."""
        if entry.__class__ is not dict:
            entry.noted = self._tracing.of_end(entry)
        super().append(entry)
