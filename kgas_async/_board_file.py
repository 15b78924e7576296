"""A board that is filled from an evidence file, as far as that is written; again and again, while a session writes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ._board import Board
from ._disk import is_locked
from ._errors import EvidenceError
from ._picture import Picture
from ._reading import ENDS, EvidenceFile, record_of_line, unix_us
from ._records import SCHEMA
from ._segments import segments_of

__all__ = ["BoardFile"]

BATCH: Final = 512
PLACES_KEPT: Final = 1000
_WAITS: Final = ("concurrency", "rate", "retry", "thread")


class BoardFile(EvidenceFile):
    """The board of the latest session in a log.

    Args:
        path: The file that ``--evidence`` named; its segments are read too.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.board: Board | None = None
        self._places: dict[Any, _Place] = {}
        self._tools: dict[tuple[str, str], str] = {}  # what a phase of a run has as its tool
        self._at: list[int] = []  # how far each segment was read

    def read_on(self) -> None:
        """Take what was written since the last time.

        Raises:
            EvidenceError: It cannot be read, or is no evidence.
        """
        batch: list[Any] = []
        if self.board is None:
            self._check_kind()
        for record in self._new():
            if record["event"] == "session.started":
                batch.clear()  # of another session, which is over
                self.board = Board()
                self._places.clear()
                self._tools.clear()
            if self.board is None:  # the log begins in the middle: the segments before are not there
                self.board = Board()
                self.board.began_ns = _ns(record)
            batch.append(self._entry(record))
            if len(batch) >= BATCH:
                self.board.take(batch)
                batch = []
        if self.board is None:
            raise EvidenceError(f"{str(self.path)!r} has no record of evidence; give the file that --evidence named")
        self.board.take(batch)

    def picture(self) -> Picture:
        """How the session stands; what it left in flight, where it was killed."""
        assert self.board is not None
        killed = not self.board.ended and not is_locked(self.path)
        if killed:
            self.read_on()  # it may just have ended
        return self.board.picture(time.time_ns(), killed=killed)

    def _new(self) -> Iterator[Mapping[str, Any]]:
        before = self.path
        try:
            for number, path in enumerate(segments_of(self.path)):
                if number:  # what was written there before the writer went on in this one, and after we had looked
                    yield from self._rest(before, number - 1)
                if number == len(self._at):
                    self._at.append(0)
                yield from self._rest(path, number)
                before = path
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise EvidenceError(f"evidence cannot be read from {str(self.path)!r}: {why}; give a file of it") from error

    def _rest(self, path: Path, number: int) -> Iterator[Mapping[str, Any]]:
        """The records of a segment that were not read yet."""
        with path.open("rb") as file:
            file.seek(self._at[number])
            for line in self._whole_lines(file, number):
                record = record_of_line(line)
                if record is None:
                    self.unreadable += bool(line.strip())
                elif record["schema"] != SCHEMA:
                    raise EvidenceError(
                        f"{str(path)!r}: evidence of schema {record['schema']!r}, and this reads schema "
                        f"{SCHEMA}; read it by the version that wrote it"
                    )
                else:
                    yield record

    def _whole_lines(self, file: Any, number: int) -> Iterator[bytes]:
        for line in file:
            if not line.endswith(b"\n"):
                return  # the rest of it is still to be written
            self._at[number] += len(line)
            yield line

    def _entry(self, record: Mapping[str, Any]) -> Any:
        event = record["event"]
        if event in ENDS:
            return _Recorded(self._place(record), record)
        if event == "run.started":
            with suppress(KeyError, TypeError):  # a plan that was damaged tells nothing
                for one in record.get("plan") or ():
                    self._tools[record["run_id"], one["phase"]] = one["tool"]
        return {**record, "at_ns": _ns(record)}

    def _place(self, record: Mapping[str, Any]) -> _Place:
        key = record["tool"], record.get("run_id"), record.get("phase")
        place = self._places.get(key)
        if place is None:
            if len(self._places) > PLACES_KEPT:
                self._places.clear()
            tool, run_id, phase = key
            nested = self._tools.get((str(run_id), str(phase)), tool) != tool
            place = _Place(tool, record.get("pipeline"), phase, run_id)
            if nested:  # a call in a phase's call: it is counted by its tool, and shown at that phase
                place = _Place(tool, None, None, None, place)
            self._places[key] = place
        return place


class _Place:
    """What `Bound` is to a call at work: what it is counted by."""

    __slots__ = ("name", "phase", "pipeline", "run_id", "shown")

    def __init__(
        self, name: str, pipeline: str | None, phase: str | None, run_id: str | None, shown: _Place | None = None
    ) -> None:
        self.name, self.pipeline, self.phase, self.run_id = name, pipeline, phase, run_id
        self.shown = shown or self


class _Placed:
    """Where a call is shown."""

    __slots__ = ("bound", "item")

    def __init__(self, bound: _Place, item: str | None) -> None:
        self.bound, self.item = bound, item


class _Recorded:
    """An ended call that was read again, with what the ledger asks of one."""

    cpu_ns: int | None = None

    def __init__(self, place: _Place, record: Mapping[str, Any]) -> None:
        self.bound = place
        self.id: str = record["call_id"]
        self.status: str = record["status"]
        self.run_ns: int = record["run_us"] * 1000
        self.begun_ns = int(record.get("attempt") or 0)  # whether it has begun is all that is asked
        waits = record["wait_us"]
        for kind in _WAITS:
            setattr(self, f"wait_{kind}_ns", waits.get(kind, 0) * 1000)
        self.wait_ns: int = sum(waits.values()) * 1000
        self.waited = self.wait_ns > 0
        self.abandoned = bool(record.get("abandoned"))
        self.batch_size = record.get("batch_size", 0)
        self.ended_ns = _ns(record)
        self.created_ns = self.ended_ns - self.run_ns - self.wait_ns
        self.error_fields: Mapping[str, Any] = record.get("error") or {}
        self.error = str(self.error_fields.get("type", "")) or None
        self.placed = _Placed(place.shown, record.get("item"))
        if isinstance(record.get("cpu_us"), int):
            self.cpu_ns = record["cpu_us"] * 1000


def _ns(record: Mapping[str, Any]) -> int:
    return unix_us(record["time"]) * 1000
