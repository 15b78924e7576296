"""Evidence in a file: chained lines, one writer, segments, and heads that say how each ends.

docs/explanation-evidence-format.md says what is in the files.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal, NoReturn
from weakref import WeakSet

from . import _disk
from ._chain import GENESIS, Head, hash_of, head_path, segment_path
from ._errors import EvidenceError, counted
from ._mistaken import is_journal
from ._records import SCHEMA, line_of, render_call, render_fields, rfc3339
from ._segments import gap_after, head_of, in_the_way, segments_of
from ._suggest import suggests
from ._verify import Segment

__all__ = ["JsonlSink"]

AT_ONCE: Final = 512  # lines of one write: more are no faster, since they leave the processor's cache
_open_sinks: WeakSet[JsonlSink] = WeakSet()


def _leave_to_parent() -> None:
    """In a process that was forked: the files are its parent's, who has the lock, and seals the log when it ends."""
    for sink in list(_open_sinks):
        sink._forget()


os.register_at_fork(after_in_child=_leave_to_parent)


class JsonlSink:
    """A file of canonical JSON lines (RFC 8785), one record each, with the SHA-256 of the one before. Never truncated.

    An existing log is checked and continued. Beside it is a small file, ``.head``, that says how it ends.

    Args:
        path: The file; its folder must exist. Relative to the working directory of now.
        max_bytes: From this size on it goes on in another file, ``path.2``, ``path.3``; None: it grows.
        fsync: Whether each batch is on the disk itself before the next, so that a power cut takes no more than a batch.

    Raises:
        EvidenceError: The file cannot be opened for writing, another session writes to it, or it is no whole log.
    """

    @suggests
    def __init__(
        self, path: str | os.PathLike[str], *, max_bytes: int | None = None, fsync: bool = False
    ) -> None:  # fmt: skip
        if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1):
            raise ValueError(f"max_bytes= is a number of bytes above 0, or None, not {max_bytes!r}")
        if not isinstance(fsync, bool):
            raise TypeError(f"fsync= is True or False, not {fsync!r}")
        self.path = Path(path).absolute()  # a tool may change the working directory
        self.max_bytes = max_bytes
        self.fsync = fsync
        self._locked: int | None = None  # the first segment, which has the lock
        self._file: int | None = None  # the last one
        self._plain = True
        self._failed = False
        self._is_parents = False
        self._number = 1
        self._first = self._last = GENESIS
        self._records = self._bytes = 0

    def __repr__(self) -> str:
        return f"JsonlSink({str(self.path)!r})"

    # --- opening

    @property
    def is_open(self) -> bool:
        """Whether it has its file, and the lock on it."""
        return self._file is not None

    def open(self) -> None:
        """Open the log for this writer alone; what a crash has torn stays in it and is noted."""
        if self._file is not None:
            return
        self._failed = self._is_parents = False
        try:
            self._open()
            _open_sinks.add(self)
        except (OSError, ValueError) as error:  # a ValueError is of a path that no file can have
            self._release()
            why = error.strerror if isinstance(error, OSError) else error
            self._refuse(f"{why}; give another evidence= path", error)
        except BaseException:
            self._release()
            raise

    def _refuse(self, why: str, cause: BaseException | None = None) -> NoReturn:
        raise EvidenceError(f"evidence cannot be written to {str(self.path)!r}: {why}") from cause

    def _open(self) -> None:
        if is_journal(self.path):  # asked first: to open and close one gives its lock back, if this process has it
            self._refuse("it is a journal; give another evidence= path")
        self._locked = self._file = _disk.open_file(self.path)
        self._plain = _disk.is_plain(self._locked)
        if not self._plain:  # a pipe, a terminal: chained, and that is all that can be done
            self._number, self._first, self._last, self._records, self._bytes = 1, GENESIS, GENESIS, 0, 0
            return
        if not _disk.lock(self._locked):
            self._refuse("another session writes to it; give each its own evidence= path")
        if not _disk.is_same(self._locked, self.path):
            self._refuse("it was replaced while it was opened; try again")
        paths = list(segments_of(self.path))
        last = paths[-1]
        gap = gap_after(self.path, len(paths))
        if gap is not None:
            self._refuse(f"{gap}; restore it, or give another evidence= path")
        foreign = in_the_way(self.path, len(paths)) if self.max_bytes is not None else None
        if foreign is not None:
            self._refuse(
                f"{foreign.name} has the name of its next segment, and is none of it; move that away, or give another "
                f"evidence= path"
            )
        self._number = len(paths)
        if len(paths) > 1:
            self._file = _disk.open_file(last)
        head, wrong = head_of(last)
        size = _disk.size_of(self._file)
        if head is None and wrong is None and size == 0 and self._number == 1:
            self._first = self._last = GENESIS
            self._records = self._bytes = 0
            self._write_head("open")
            return
        segment = self._checked(last, head, wrong)
        if self._number > 1:
            self._end_before(paths[-2], segment)
        self._continue(segment, head, size)

    def _checked(self, path: Path, head: Head | None, wrong: str | None) -> Segment:
        """The last segment, read; or say why it is not continued. Nothing was changed yet."""
        segment = Segment(path, GENESIS if self._number == 1 else None if head is None else head.previous, head)
        segment.scan()
        found = segment.problem
        mend = "it is left as it is: check it by 'kgas-async evidence verify', and give another evidence= path"
        if found is not None and found.kind in ("schema", "format"):
            self._refuse(
                f"in {path.name}, line {found.line}, {found.reason}; move it away, or give another evidence= path"
            )
        is_torn = found is not None and found.kind == "torn" and head is not None and head.state == "open"
        if found is not None and not (is_torn and head is not None and segment.records >= head.records):
            self._refuse(f"{path.name} is not whole, line {found.line} is {found.kind}: {found.reason}; {mend}")
        if head is None:
            why = wrong or f"{head_path(path).name} is missing, and with it how the log ends"
            self._refuse(f"{why}; restore that file, or give another evidence= path")
        if head.segment != self._number or (self._number == 1 and head.previous != GENESIS):
            self._refuse(f"{head_path(path).name} is of another segment; {mend}")
        return segment

    def _end_before(self, path: Path, following: Segment) -> None:
        """See that it follows the segment before, and say there that it goes on, if a kill has prevented that."""
        head, _ = head_of(path)
        if head is None or (head.state == "continued" and head.last == following.previous):
            return
        segment = Segment(path, head.previous, head)
        segment.scan()
        if segment.problem is not None or segment.last != following.previous or head.state != "open":
            self._refuse(
                f"{path.name} is not whole: check it by 'kgas-async evidence verify', and give another evidence= path"
            )
        ended = Head("continued", head.segment, head.previous, segment.records, segment.size, segment.last)
        _disk.replace(head_path(path), ended.line(), synced=self.fsync)

    def _continue(self, segment: Segment, head: Head | None, size: int) -> None:
        assert head is not None
        self._first, self._last, self._records, self._bytes = head.previous, segment.last, segment.records, size
        torn = segment.tail
        if head.state == "open" and (size or self._number > 1):
            is_open_line = segment.unended or (torn and not torn.endswith(b"\n"))
            self._recover(b"\n" if is_open_line else b"", torn)
        self._write_head("open")

    def _recover(self, newline: bytes, torn: bytes) -> None:
        """Close what the session before has left, and have a record say so."""
        torn += newline if torn else b""
        note: dict[str, Any] = {"event": "evidence.recovered", "schema": SCHEMA, "time": rfc3339(time.time_ns())}
        note.update(torn_bytes=len(torn), torn_sha256=hash_of(torn))
        self._append(newline, [self._chained(note)])  # here, whatever its size: it belongs behind what was torn
        what = f"; {counted(len(torn), 'torn byte')} are kept in it, and noted" if torn else ""
        logging.getLogger("kgas_async").warning("evidence %s was not closed by its last session%s", self.path, what)

    # --- writing

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records."""
        self._ready()
        self._put(b"", [self._chained(record) for record in records])

    def write_entries(self, entries: Sequence[Any], first: int, session: str, anchor_ns: int) -> None:
        """Write what was appended to a session's log, without a mapping per record."""
        self._ready()
        last = self._last.encode()
        for begin in range(0, len(entries), AT_ONCE):
            lines = []
            for seq, entry in enumerate(entries[begin : begin + AT_ONCE], first + begin):
                if entry.__class__ is dict:
                    line = render_fields(entry, seq, session, anchor_ns, last)
                else:
                    line = render_call(entry, seq, anchor_ns, last)
                last = sha256(line).hexdigest().encode()
                lines.append(line)
            self._last = last.decode()
            self._put(b"", lines)

    def _chained(self, record: Mapping[str, Any]) -> bytes:
        line = line_of(record, self._last)
        self._last = hash_of(line)
        return line

    def _ready(self) -> None:
        if self._is_parents:
            raise EvidenceError(
                f"{self!r} was opened by another process, of which this one is a fork; give this one its own evidence="
            )
        if self._file is None:
            self.open()
        if self._failed:
            raise EvidenceError(f"{self!r} has failed and takes no further records; open it again")

    def _put(self, before: bytes, lines: list[bytes]) -> None:
        """Write whole lines. After an error nothing more is written, for what is there is not known."""
        try:
            if self.max_bytes is not None and self._plain:
                while lines:
                    fitting = self._fitting(lines)
                    if fitting == 0:
                        self._rotate(lines[0])
                    self._append(before, lines[:fitting])
                    before, lines = b"", lines[fitting:]
            else:
                self._append(before, lines)
        except BaseException:
            self._failed = True
            raise

    def _append(self, before: bytes, lines: list[bytes]) -> None:
        if not lines:
            return
        assert self._file is not None
        data = before + b"\n".join(lines) + b"\n"
        _disk.write(self._file, data)
        self._records += len(lines)
        self._bytes += len(data)
        if self.fsync and self._plain:
            _disk.sync(self._file)

    # --- segments

    def _fitting(self, lines: list[bytes]) -> int:
        """How many of the lines belong into this segment; into an empty one, at least one."""
        assert self.max_bytes is not None
        room = self.max_bytes - self._bytes
        for number, line in enumerate(lines):
            room -= len(line) + 1
            if room < 0:
                return number if number or self._records else 1
        return len(lines)

    def _rotate(self, line: bytes) -> None:
        """Close this segment and begin the next, of which this is the first line."""
        rendered, self._last = self._last, _previous_of(line)
        self._next_segment()
        self._last = rendered

    def _next_segment(self) -> None:
        """Begin it, its head first: a segment without one would be a log whose head is missing.

        Only then does the one before say that it goes on: one that says so and has no next one has lost it.
        """
        path, ended = self._head_path, self._head("continued")
        self._number += 1
        self._first = self._last
        self._records = self._bytes = 0
        self._write_head("open")
        before, self._file = self._file, _disk.open_file(segment_path(self.path, self._number), new=True)
        try:
            _disk.replace(path, ended.line(), synced=self.fsync)
        finally:
            if before is not None and before != self._locked:
                _disk.close(before)

    @property
    def _head_path(self) -> Path:
        return head_path(segment_path(self.path, self._number))

    def _head(self, state: Literal["open", "continued", "sealed"]) -> Head:
        return Head(state, self._number, self._first, self._records, self._bytes, self._last)

    def _write_head(self, state: Literal["open", "sealed"]) -> None:
        _disk.replace(self._head_path, self._head(state).line(), synced=self.fsync)

    # --- the end

    def close(self) -> None:
        """Seal the log and close it; one that has failed is closed as it is, so that the failure shows."""
        if self._file is None:
            return
        try:
            if self._plain and not self._failed:
                self._write_head("sealed")
        except BaseException:
            self._release()
            raise
        failed = self._release()
        if failed is not None:  # some file systems say only now that they could not write
            raise failed

    def _forget(self) -> None:
        """Be closed and touch nothing; the lock would live as long as this process has the file open."""
        self._is_parents = self._file is not None
        self._plain = False  # no unlocking: it is one lock for both
        self._release()

    def _release(self) -> OSError | None:
        """Close the files and give the lock free; the error of one that could not be closed."""
        files, locked = {self._file, self._locked}, self._locked
        self._file = self._locked = None
        failed: OSError | None = None
        if locked is not None and self._plain:
            with suppress(OSError):
                _disk.unlock(locked)
        for file in files:
            if file is not None:
                try:
                    _disk.close(file)
                except OSError as error:
                    failed = error
        return failed


def _previous_of(line: bytes) -> str:
    """The hash that a line of ours has of the one before."""
    previous: str = json.loads(line)["previous_sha256"]
    return previous
