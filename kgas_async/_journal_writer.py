"""The thread that has a journal's file: reads what is asked for, writes what comes, and commits as soon as it can.

Group commit without a timer: what comes during one commit is in the next. The loop never waits for the disk; it is told
by callbacks. After an error nothing more is written, and everybody who waits is told.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from ._errors import JournalError, shown
from ._journal_file import Ended, JournalFile, Row, error_of
from ._mailbox import Mailbox
from ._threads import JOIN_S, Signal, start_daemon
from ._waiting import wait_until

__all__ = ["JournalWriter"]

MANY: Final = 2048  # entries in one transaction, at the most
HIGH_WATER: Final = 10_000  # rows that are not written yet above which no new work is begun
HIGH_BYTES: Final = 64 << 20  # the same, in bytes of their values


class _Ask:
    """Something to be done in the thread, whose result goes to a callback on the loop."""

    __slots__ = ("function", "told")

    def __init__(self, function: Callable[[], Any], told: Callable[[Any, BaseException | None], object]) -> None:
        self.function = function
        self.told = told


class _Mark:
    """Tells a callback on the loop once all that was put before it is committed."""

    __slots__ = ("told",)

    def __init__(self, told: Callable[[BaseException | None], object]) -> None:
        self.told = told


class JournalWriter:
    """See the module. Made and used on the loop.

    Args:
        file: The journal's.
        mailbox: Of the loop.
        on_room: Called on the loop when there is room again after `is_behind`.
        on_error: Called on the loop with what went wrong, once.
    """

    def __init__(
        self,
        file: JournalFile,
        mailbox: Mailbox,
        on_room: Callable[[], object],
        on_error: Callable[[JournalError], object],
    ) -> None:
        self.file = file
        self.error: JournalError | None = None
        self.commits = 0
        self.is_behind = False
        self._mailbox = mailbox
        self._on_room = on_room
        self._on_error = on_error
        self._queue: deque[Any] = deque()
        self._put = self._written = 0  # bytes of values: the first on the loop alone, the second in the thread alone
        self._awake = False  # the thread has been told, and has not looked since
        self._wake = Signal()
        self._answers: deque[Callable[[], object]] = deque()
        self._thread: Any = None

    async def start(self, first: Callable[[], Any]) -> Any:
        """Start the thread, and have it do something first, such as to open the file.

        Raises:
            JournalError: What that raised.

        Cancellation: Waited out: it is short.
        """
        done = self._mailbox.gate()
        found: list[Any] = []

        def told(value: Any, error: BaseException | None) -> None:
            found[:] = [value, error]
            done.set()

        self._thread = start_daemon(self._run, "kgas-journal")
        self.ask(first, told)
        native = await wait_until(done)
        if native is not None:
            raise native
        value, error = found
        if error is not None:
            raise error
        return value

    def ask(self, function: Callable[[], Any], told: Callable[[Any, BaseException | None], object]) -> None:
        """Have something done in the thread; ``told`` gets the result, or the error, on the loop."""
        self._mailbox.add_busy(1)
        self._queue.append(_Ask(function, told))
        self._arouse()

    def put(self, row: Row) -> None:
        """Have a row written."""
        self._queue.append(row)
        self._put += len(row.value)
        if len(self._queue) > HIGH_WATER or self._put - self._written > HIGH_BYTES:
            self.is_behind = True
        self._arouse()

    def put_item(self, item: str, ended: Ended) -> None:
        """Have it written how an item ended."""
        self._queue.append((item, ended))

    def mark(self, told: Callable[[BaseException | None], object]) -> None:
        """Have ``told`` called on the loop once all that was put until now is committed, or cannot be."""
        self._mailbox.add_busy(1)
        self._queue.append(_Mark(told))
        self._arouse()

    def _arouse(self) -> None:
        if not self._awake:
            self._awake = True
            self._wake.set()

    def wait_here(self, seconds: float) -> None:
        """Wait, while the loop stands still, until all that was put has its answers, and call those."""
        arrived = Signal()
        self._queue.append(arrived)
        self._arouse()
        arrived.wait(seconds)
        self._tell()

    async def settled(self) -> JournalError | None:
        """Wait until all that was put is committed; or what went wrong.

        Cancellation: Stops waiting.
        """
        done = self._mailbox.gate()
        self.mark(lambda error: done.set())
        await done.wait()
        return self.error

    async def close(self, status: str) -> JournalError | None:
        """Commit what there is, and close the file; what went wrong, then or before.

        Cancellation: Waited out; asyncio's own is raised again.
        """
        if self._thread is None:
            return self.error
        done = self._mailbox.gate()
        self.ask(partial(self.file.close, status), lambda value, error: done.set())
        self._queue.append(None)
        self._arouse()
        native = await wait_until(done)
        self._thread.join(JOIN_S)
        if native is not None:
            raise native
        return self.error

    # --- in the thread

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            self._awake = False  # before looking: what comes later wakes it again
            while self._queue:
                entries = [self._queue.popleft() for _ in range(min(len(self._queue), MANY))]
                self._serve(entries)
                self._post()
                if entries[-1] is None:
                    return

    def _serve(self, entries: Sequence[Any]) -> None:
        """Write what is to be written in one transaction, and answer; questions are answered before the commit."""
        rows = [entry for entry in entries if entry.__class__ is Row]
        items = [entry for entry in entries if entry.__class__ is tuple]
        wrote = bool(rows or items)
        if wrote:
            self._done(partial(self._commit, rows, items))
        for entry in entries:
            if entry.__class__ is _Ask:
                self._answers.append(partial(self._answered, entry, *self._done(entry.function)))
            elif entry.__class__ is _Mark:
                self._answers.append(partial(self._marked, entry, self.error))
            elif entry.__class__ is Signal:
                entry.set()
        if wrote:
            self._written += sum(len(row.value) for row in rows)
            if self.is_behind and self._has_room():
                self.is_behind = False
                self._answers.append(self._on_room)

    def _has_room(self) -> bool:
        return len(self._queue) < HIGH_WATER // 2 and self._put - self._written < HIGH_BYTES // 2

    def _commit(self, rows: Sequence[Row], items: Sequence[tuple[str, Ended]]) -> None:
        self.file.begin()
        self.file.write(rows, items)
        self.file.commit()
        self.commits += 1

    def _done(self, function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """What it gives, or what is wrong; nothing is done any more once something is."""
        if self.error is not None:
            return None, self.error
        try:
            return function(), None
        except BaseException as error:  # noqa: BLE001  (the thread must live, and tell)
            self.error = self._as_error(error)
            self.file.break_off()
            self._answers.append(partial(self._on_error, self.error))
            return None, self.error

    def _as_error(self, error: BaseException) -> JournalError:
        if isinstance(error, JournalError):
            return error
        if isinstance(error, (sqlite3.Error, OSError)):
            return error_of(self.file.path, error)
        failure = JournalError(f"journal {self.file.path!r}: {shown(error)}", path=self.file.path)
        failure.__cause__ = error
        return failure

    def _post(self) -> None:
        if self._answers:
            self._mailbox.put(self._tell)

    # --- on the loop

    def _tell(self) -> None:
        answers = self._answers
        while answers:
            try:
                answer = answers.popleft()
            except IndexError:
                return
            answer()

    def _answered(self, ask: _Ask, value: Any, error: BaseException | None) -> None:
        self._mailbox.add_busy(-1)
        ask.told(value, error)

    def _marked(self, mark: _Mark, error: BaseException | None) -> None:
        self._mailbox.add_busy(-1)
        mark.told(error)
