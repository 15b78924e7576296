"""The journal: its rows beside ``executemany`` of the same rows, and what an item of a pipeline costs with one."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio

from kgas_async import Journal, ServiceManager
from kgas_async._journal_file import _TABLES, PUT, JournalFile, Row
from kgas_async._journal_writer import JournalWriter
from kgas_async._mailbox import Mailbox

from .cases import LINE
from .measure import Case

MANY = 2048  # rows in one transaction of the baseline, as many as the journal's own have at the most


def rows(count: int) -> list[Row]:
    value = b'{"title":"A paper","entities":["Ada","Charles"],"score":0.25}'
    return [Row(f"paper-{number}", "", "entities", 1, number.to_bytes(16, "big"), value) for number in range(count)]


def executemany(count: int, *, durable: bool) -> float:
    """Seconds per row: the same rows into the same table, the plain way."""
    given = [row.checked() for row in rows(count)]
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(f"{folder}/plain.db")) as database:
        database.isolation_level = None
        database.executescript(_TABLES)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        began = perf_counter()
        for first in range(0, count, MANY):
            database.execute("BEGIN")
            database.executemany(PUT, given[first : first + MANY])
            database.execute("COMMIT")
        return (perf_counter() - began) / count


async def journaled(count: int, durable: bool) -> float:
    """Seconds per row, through the journal's thread until all are committed."""
    given = rows(count)
    with tempfile.TemporaryDirectory() as folder:
        file = JournalFile(f"{folder}/run.db", durable=durable)
        writer = JournalWriter(file, Mailbox.here(), lambda: None, lambda error: None)
        await writer.start(lambda: file.open("bench", "run"))
        began = perf_counter()
        for row in given:
            writer.put(row)
        assert await writer.settled() is None
        seconds = perf_counter() - began
        await writer.close("ended")
    return seconds / count


def row_cases(loop: str, where: dict[str, Any], count: int, *, durable: bool) -> list[Case]:
    """The journal's rows beside the plain way."""
    how = "FULL" if durable else "NORMAL"
    return [
        Case(f"executemany ({how})", partial(executemany, count, durable=durable)),
        Case(f"the journal ({loop}, {how})", lambda: anyio.run(journaled, count, durable, **where), 2.0),
    ]


async def through(items: int, how: str) -> float:
    """Seconds per item of three phases: without a journal, with a new one, or all from it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.db"
        async with ServiceManager(log=None) as manager:
            if how == "resumed":
                await manager.run(LINE, ({"x": x} for x in range(items)), journal=path)
            began = perf_counter()
            report = await manager.run(
                LINE, ({"x": x} for x in range(items)), journal=None if how == "without" else Journal(path)
            )
            seconds = perf_counter() - began
            assert report.succeeded == items
            assert report.reused == (items if how == "resumed" else 0)
    return seconds / items


def item_cases(loop: str, where: dict[str, Any], items: int) -> list[Case]:
    """An item of three phases that do nothing."""
    return [
        Case(f"{how} ({loop})", partial(anyio.run, through, items, how, **where))
        for how in ("without", "with a journal", "resumed")
    ]
