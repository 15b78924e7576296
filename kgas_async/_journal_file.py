"""The file of a journal: an SQLite database that one process at a time has open. Used from one thread.

What is in it is either whole or refused: each row has a checksum, a file is made under another name and appears
complete, and nothing is written to a file that is not this pipeline's journal of this schema. Knows rows, no calls.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote
from zlib import crc32

from ._disk import drop, is_locked, name_new, take
from ._errors import JournalError
from ._mistaken import APPLICATION, HEADER, header_of, instead_of_journal

__all__ = ["NEW", "RUN_PLACE", "Ended", "JournalFile", "Recorded", "Row", "Source", "as_text", "error_of"]

SCHEMA: Final = 1
CHECKED_WHOLE: Final = 1 << 26  # bytes up to which a file is checked from end to end as it is opened: under a second
NEW: Final = "new"  # how an item ended that came, and of which nobody knows yet how it ends
RUN_PLACE: Final = "<run>"  # of what runs once per run, under the key ""

_TABLES = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE runs(run INTEGER PRIMARY KEY, run_id TEXT, started REAL, ended REAL, status TEXT);
CREATE TABLE sources(source INTEGER PRIMARY KEY, phase TEXT, tool TEXT, version TEXT, codec TEXT, code TEXT,
    run INTEGER, UNIQUE(phase, tool, version, codec, code));
CREATE TABLE items(item TEXT PRIMARY KEY, run INTEGER, status TEXT, phase TEXT, error TEXT, crc INTEGER) WITHOUT ROWID;
CREATE TABLE results(item TEXT, place TEXT, phase TEXT, source INTEGER, inputs BLOB, value BLOB, crc INTEGER,
    UNIQUE(item, place, phase));
"""
PUT: Final = "INSERT OR REPLACE INTO results VALUES(?,?,?,?,?,?,?)"
_PUT_ITEM: Final = "INSERT OR REPLACE INTO items VALUES(?,?,?,?,?,?)"


class Source(NamedTuple):
    """Who gave a value: a phase's tool, how its values are encoded, and the fingerprint of its function."""

    phase: str
    tool: str
    version: str
    codec: str
    code: str


class Row(NamedTuple):
    """What one phase gave for one item, or for the element at a place below it (``"3/0"``), or for the whole run."""

    item: str
    place: str
    phase: str
    source: int
    inputs: bytes
    value: bytes

    def checked(self) -> tuple[Any, ...]:
        """As it is written: with its checksum."""
        item, place, phase, source, inputs, value = self
        crc = crc32(f"{item}\0{place}\0{phase}\0{source}".encode("utf-8", "surrogatepass"))
        return item, place, phase, source, inputs, value, crc32(value, crc32(inputs, crc))


class Ended(NamedTuple):
    """How an item ended."""

    status: str
    phase: str | None
    error: str | None


class Recorded(NamedTuple):
    """What there is of an item.

    Attributes:
        item: Its key.
        times: How often its key has come in this run before.
        ended: How it ended the last time that it did.
        rows: What its phases gave, by place and phase.
    """

    item: str
    times: int
    ended: Ended | None
    rows: dict[tuple[str, str], Row]


def _checksum(*parts: object) -> int:
    return crc32("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"))


def as_text(key: str) -> str:
    """SQLite takes no lone surrogates, which undecodable file names are made of."""
    return key if key.isascii() else key.encode("utf-8", "backslashreplace").decode()


def error_of(path: str, error: BaseException) -> JournalError:
    """What SQLite or the system says, with what it means for the journal."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror  # without the path, whose words say nothing
    if "locked" in text or "busy" in text:
        why = "another run, or another program, has it open: one run at a time writes to a journal"
    elif "full" in text:
        why = f"the disk is full ({text}); what was committed is kept: make room and run again"
    elif not Path(path).parent.is_dir():
        why = f"there is no folder {str(Path(path).parent)!r}; make it first"
    elif "readonly" in text or not _is_writable(path):
        why = "it cannot be written to; give it, and its folder, write permission"
    elif "malformed" in text or "not a database" in text or "corrupt" in text:
        why = instead_of_journal(Path(path)) or f"it is damaged ({text}); restore a copy, or begin a new journal"
    else:
        why = text
    failure = JournalError(f"journal {path!r}: {why}", path=path)
    failure.__cause__ = error
    return failure


def _is_writable(path: str) -> bool:
    """Whether a journal can be there: SQLite keeps its log of what is new beside it."""
    return all(os.access(one, os.W_OK) for one in (Path(path).parent, path) if os.path.lexists(one))


def _peek(path: str) -> None:
    """Look by its header whether a file may be a journal: a full disk may have left it whole only with its log.

    Raises:
        JournalError: It is none, or of another schema.
        sqlite3.Error, OSError: It is no database, or cannot be read.
    """
    header = header_of(path)
    if 0 < len(header) < HEADER:
        raise sqlite3.DatabaseError("file is not a database")
    if not header and is_locked(Path(path)):  # evidence is empty when its session begins
        raise JournalError(f"{path!r} is evidence that a session writes; give the journal another file", path=path)
    if not header:
        raise JournalError(f"journal {path!r} is empty, so it is none; remove it to begin anew", path=path)
    application, schema = (int.from_bytes(header[at : at + 4], "big") for at in (68, 60))
    if application != APPLICATION:
        raise JournalError(f"{path!r} is a database, but no journal of kgas_async; give another file", path=path)
    if schema != SCHEMA:
        why = f"has schema {schema}, and this version of kgas_async writes schema {SCHEMA}; resume it with the version"
        raise JournalError(f"journal {path!r} {why} that made it, or begin a new journal", path=path)


def _check_place(path: str) -> None:
    """
    Raises:
        JournalError: What lies there is no file, such as a pipe, which would be waited for; or the log of a journal
            that was removed, which SQLite would put into a new one.
    """
    if os.path.lexists(path) and not Path(path).is_file():
        raise JournalError(f"journal {path!r} is no file; give it the path of one, or of none in a folder", path=path)
    log = f"{path}-wal"
    is_left = os.path.lexists(log)  # asked first, since who makes a journal now makes its log after it
    if is_left and not os.path.lexists(path):
        raise JournalError(
            f"{log!r} is of a journal {path!r} that was cut off and is not there any more; put that back, or remove "
            f"this one too, to begin anew",
            path=path,
        )


class JournalFile:
    """See the module.

    Args:
        path: The file; made if it is not there.
        durable: Each commit survives a power loss, and not only a killed process.
    """

    def __init__(self, path: str, *, durable: bool = False) -> None:
        self.path = path
        self.durable = durable
        self.run = 0
        self.is_fresh = False  # nothing was in it when it was opened
        self._database: sqlite3.Connection | None = None

    def open(self, pipeline: str | None, run_id: str | None = None, first: Callable[[], object] | None = None) -> None:
        """Open it for this pipeline; for a run, which is counted, if one is given.

        Args:
            pipeline: Its name; None for any.
            run_id: Of the run.
            first: What else there is to do as the run begins: both are there, or neither.

        Raises:
            JournalError: Another run has it, it is no journal of this pipeline, it is damaged or cannot be written.
        """
        try:
            _check_place(self.path)
            if run_id is not None and not os.path.lexists(self.path):
                self._create(str(pipeline))
            if not take(self.path, self):  # before it is looked into, which would give back the locks that it has
                raise sqlite3.OperationalError("database is locked")
            _peek(self.path)
            self._database = self._connected()
            self._check(pipeline)
            if run_id is not None:
                self._begin_run(run_id, first)
        except (sqlite3.Error, OSError) as error:
            self.break_off()
            raise error_of(self.path, error) from error
        except JournalError:
            self.break_off()
            raise

    def _create(self, pipeline: str) -> None:
        """Make the file under another name, and give it its own once it is whole: nobody ever sees half of one."""
        made = f"{self.path}.{secrets.token_hex(6)}.new"
        try:
            with closing(sqlite3.connect(f"file:{quote(made)}?mode=rwc", uri=True, isolation_level=None)) as database:
                database.execute("PRAGMA locking_mode=EXCLUSIVE")  # else WAL wants memory that is shared
                database.execute(f"PRAGMA application_id={APPLICATION}")
                database.execute(f"PRAGMA user_version={SCHEMA}")
                database.executescript(f"BEGIN;{_TABLES}COMMIT;")
                database.execute("INSERT INTO meta VALUES('pipeline', ?)", (as_text(pipeline),))
                database.execute("PRAGMA journal_mode=WAL")
            with suppress(FileExistsError):  # another run was faster: its file is as good
                name_new(Path(made), Path(self.path))
        finally:
            for name in (made, f"{made}-journal", f"{made}-wal", f"{made}-shm"):
                with suppress(FileNotFoundError):
                    Path(name).unlink()

    def _connected(self) -> sqlite3.Connection:
        database = sqlite3.connect(f"file:{quote(self.path)}?mode=rw", uri=True, isolation_level=None, timeout=0)
        try:
            database.execute("PRAGMA locking_mode=EXCLUSIVE")  # a lock of the system's, which ends with the process
            database.execute(f"PRAGMA synchronous={'FULL' if self.durable else 'NORMAL'}")
            database.execute("PRAGMA temp_store=FILE")
            database.execute("BEGIN IMMEDIATE")
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database

    def _check(self, pipeline: str | None) -> None:
        database = self.database
        size = database.execute("PRAGMA page_size").fetchone()[0]
        if Path(self.path).stat().st_size % size:
            raise sqlite3.DatabaseError("malformed: it has been cut off within a page")
        if Path(self.path).stat().st_size <= CHECKED_WHOLE:
            found = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(f"malformed: {found}")
        row = database.execute("SELECT value FROM meta WHERE name='pipeline'").fetchone()
        if row is None:
            raise sqlite3.DatabaseError("malformed: it names no pipeline")
        self.pipeline = str(row[0])
        if pipeline is not None and self.pipeline != as_text(pipeline):
            raise JournalError(
                f"journal {self.path!r} is of pipeline {self.pipeline!r}, not of {pipeline!r}; give each pipeline a "
                f"journal of its own",
                path=self.path,
            )
        self.is_fresh = not database.execute("SELECT 1 FROM results UNION ALL SELECT 1 FROM items LIMIT 1").fetchone()

    def _begin_run(self, run_id: str, first: Callable[[], object] | None) -> None:
        database = self.database
        # What has come in this run: in a temporary file, since there may be many, and of no use to another run.
        database.execute("CREATE TEMP TABLE claims(item TEXT PRIMARY KEY, times INTEGER) WITHOUT ROWID")
        database.execute("BEGIN IMMEDIATE")  # a run that is refused, or killed here, is not the latest one
        added = database.execute("INSERT INTO runs(run_id, started) VALUES(?, ?)", (run_id, time.time()))
        assert added.lastrowid is not None
        self.run = added.lastrowid
        if first is not None:
            first()
        database.execute("COMMIT")

    @property
    def database(self) -> sqlite3.Connection:
        """The open connection."""
        assert self._database is not None
        return self._database

    # --- who gave what

    def sources(self, *, with_values: bool) -> dict[int, Source]:
        """All that have ever given a value, by number; or only those of which there is one, which takes longer."""
        those = " WHERE source IN (SELECT source FROM results)" if with_values else ""
        found = self.database.execute(f"SELECT source, phase, tool, version, codec, code FROM sources{those}")
        return {number: Source(*rest) for number, *rest in found}

    def number_of(self, source: Source) -> int:
        """The number of one who is about to give values in this run."""
        insert = (
            "INSERT INTO sources(phase, tool, version, codec, code, run) VALUES(?,?,?,?,?,?) "
            "ON CONFLICT(phase, tool, version, codec, code) DO UPDATE SET run = excluded.run"
        )
        self.database.execute(insert, (*source, self.run))
        select = "SELECT source FROM sources WHERE phase=? AND tool=? AND version=? AND codec=? AND code=?"
        return int(self.database.execute(select, source).fetchone()[0])

    # --- reading

    def recorded(self, item: str, *, numbers: bool = False) -> Recorded:
        """What there is of an item, which has come in this run.

        Args:
            item: Its key.
            numbers: Whether an item whose key has come before is another one, with a number at its key.

        Raises:
            JournalError: A row is damaged.
        """
        times = self._claimed(as_text(item))
        if times and numbers:
            item, times = f"{item}#{times}", 0
        if self.is_fresh or times:
            return Recorded(item, times, None, {})
        key, item = item, as_text(item)
        found = self.database.execute("SELECT * FROM items WHERE item=?", (item,)).fetchone()
        ended = None
        if found is not None:
            if found[-1] != _checksum(*found[:-1]):
                raise self._damaged(f"how item {item!r} ended")
            ended = None if found[2] == NEW else Ended(*found[2:5])
        return Recorded(key, times, ended, {(row.place, row.phase): row for row in self.rows(item)})

    def _claimed(self, item: str) -> int:
        database = self.database
        upsert = "INSERT INTO claims VALUES(?, 0) ON CONFLICT(item) DO UPDATE SET times = times + 1"
        database.execute(upsert, (item,))
        return int(database.execute("SELECT times FROM claims WHERE item=?", (item,)).fetchone()[0])

    def rows(self, item: str) -> Iterator[Row]:
        """The rows of an item.

        Raises:
            JournalError: One is damaged.
        """
        for *fields, crc in self.database.execute("SELECT * FROM results WHERE item=?", (item,)):
            row = Row(*fields)
            if row.checked()[-1] != crc:
                raise self._damaged(f"what phase {row.phase!r} gave for item {item!r}")
            yield row

    def _damaged(self, what: str) -> JournalError:
        return JournalError(
            f"journal {self.path!r} is damaged: {what} is not as it was written; restore a copy, or begin a new one",
            path=self.path,
        )

    # --- writing

    def begin(self) -> None:
        """Begin a transaction."""
        self.database.execute("BEGIN IMMEDIATE")

    def write(self, rows: Sequence[Row], items: Iterable[tuple[str, Ended]]) -> None:
        """Write rows, and how items ended."""
        database = self.database
        if rows:
            database.executemany(PUT, [_checked(row) for row in rows])
        ended = [
            (as_text(item), self.run, how.status, how.phase, how.error and as_text(how.error)) for item, how in items
        ]
        if ended:
            database.executemany(_PUT_ITEM, [(*one, _checksum(*one)) for one in ended])

    def commit(self) -> None:
        """What was written is there for good; with ``durable`` also if the power fails now."""
        self.database.execute("COMMIT")

    def close(self, status: str | None = None) -> None:
        """Close it; for a run with how it ended.

        Raises:
            JournalError: That could not be written.
        """
        try:
            if status is not None:
                self.database.execute("UPDATE runs SET ended=?, status=? WHERE run=?", (time.time(), status, self.run))
        except sqlite3.Error as error:
            raise error_of(self.path, error) from error
        finally:
            self.break_off()

    def break_off(self) -> None:
        """Close it as it is, without what is not committed."""
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                if database.in_transaction:
                    database.rollback()
            database.close()
        drop(self)


def _checked(row: Row) -> tuple[Any, ...]:
    return (Row(as_text(row[0]), *row[1:]) if not row[0].isascii() else row).checked()
