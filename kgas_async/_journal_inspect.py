"""What is in a journal, and forgetting parts of it: for the command line. Knows the file, no runs."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._errors import JournalError
from ._journal_file import RUN_PLACE, JournalFile, as_text, error_of
from ._suggest import KEYS_KEPT, nearest, nearest_key

__all__ = ["PhaseSummary", "RunSummary", "Summary", "prune", "summary"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run: seconds since the epoch, and how it ended; None where it was killed."""

    run_id: str
    started: float
    ended: float | None
    status: str | None


@dataclass(frozen=True, slots=True)
class PhaseSummary:
    """What is kept of one phase by one version of its tool."""

    phase: str
    tool: str
    version: str
    codec: str
    results: int
    size: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What is in a journal."""

    pipeline: str
    runs: list[RunSummary]
    items: dict[str, int]  # by how they ended
    phases: list[PhaseSummary]


def summary(path: str) -> Summary:
    """What is in the journal at this path.

    Raises:
        JournalError: It is none, or a run has it open.
    """
    file = _opened(path)
    try:
        database = file.database
        phases = database.execute(
            "SELECT phase, tool, version, codec, sum(results), sum(size) FROM sources JOIN (SELECT source, count(*) "
            "AS results, sum(length(value)) AS size FROM results GROUP BY source) USING (source) "
            "GROUP BY phase, tool, version, codec ORDER BY min(source)"
        )
        return Summary(
            file.pipeline,
            [
                RunSummary(*row)
                for row in database.execute("SELECT run_id, started, ended, status FROM runs ORDER BY run")
            ],
            dict(database.execute("SELECT status, count(*) FROM items GROUP BY status ORDER BY count(*) DESC")),
            [PhaseSummary(*row) for row in phases],
        )
    except sqlite3.Error as error:
        raise error_of(path, error) from error
    finally:
        file.break_off()


def _opened(path: str) -> JournalFile:
    if not Path(path).exists():
        raise JournalError(f"there is no journal {path!r}", path=path)
    file = JournalFile(path)
    file.open(None)
    return file


_FAILED = "SELECT item FROM items WHERE status IN ('failed', 'timed_out', 'rejected')"
# Also of those that never came to an end, of which there are only results.
_UNSEEN = (
    f"SELECT item FROM (SELECT item FROM items UNION SELECT item FROM results WHERE place != '{RUN_PLACE}') "
    "WHERE item NOT IN (SELECT item FROM items WHERE run = (SELECT max(run) FROM runs))"
)
# What the latest run would not use: another version of a tool, another codec, a phase that is gone.
_STALE = (
    "SELECT source FROM sources AS old WHERE NOT EXISTS (SELECT 1 FROM sources AS now WHERE "
    "now.run = (SELECT max(run) FROM runs) AND (now.phase, now.tool, now.version, now.codec) = "
    "(old.phase, old.tool, old.version, old.codec))"
)


def prune(
    path: str,
    *,
    phase: str | None = None,
    item: str | None = None,
    failed: bool = False,
    unseen: bool = False,
    stale: bool = False,
) -> tuple[int, int]:
    """Forget what is said, so that it runs again.

    Args:
        path: The journal.
        phase: All results of this phase.
        item: All of this item.
        failed: All of the items that failed.
        unseen: All of the items that did not come in the latest run, which must have come to its end.
        stale: What the latest run would not have used: results of other versions of tools, of phases that are gone.

    Returns:
        How many results and how many items were forgotten.

    Raises:
        JournalError: It is none, a run has it open, or there is no such phase or item.
    """
    file = _opened(path)
    database = file.database
    item = None if item is None else as_text(item)
    try:
        _check(file, phase, item, unseen=unseen)
        database.execute("BEGIN IMMEDIATE")
        results, items = _forget(
            file,
            (phase is not None, "phase", "?", (phase,)),
            (item is not None, "item", "?", (item,)),
            (failed, "item", _FAILED, ()),
            (unseen, "item", _UNSEEN, ()),
            (stale, "source", _STALE, ()),
        )
        database.execute("COMMIT")
        with suppress(sqlite3.Error):  # it wants room for a copy; what is free now is used again all the same
            database.execute("VACUUM")
        return results, items
    except sqlite3.Error as error:
        raise error_of(path, error) from error
    finally:
        file.break_off()


def _forget(file: JournalFile, *choices: tuple[bool, str, str, tuple[Any, ...]]) -> tuple[int, int]:
    """Delete what was chosen: whether it was, by which column, of which values, with which parameters."""
    results = items = 0
    for is_chosen, column, among, values in choices:
        if is_chosen:
            place = f" AND place != '{RUN_PLACE}'" if column == "item" else ""
            results += _deleted(file, f"DELETE FROM results WHERE {column} IN ({among}){place}", values)
            if column == "item":
                items += _deleted(file, f"DELETE FROM items WHERE item IN ({among})", values)
    return results, items


def _deleted(file: JournalFile, sql: str, values: tuple[Any, ...]) -> int:
    return file.database.execute(sql, values).rowcount


def _check(file: JournalFile, phase: str | None, item: str | None, *, unseen: bool) -> None:
    database = file.database
    if phase is not None:
        known = [row[0] for row in database.execute("SELECT phase FROM sources GROUP BY phase ORDER BY min(source)")]
        if phase not in known:
            raise JournalError(
                f"journal {file.path!r} has no phase {phase!r}; it has {', '.join(known) or 'none'}"
                f"{nearest(phase, known)}",
                path=file.path,
            )
    if item is not None:
        found = database.execute(
            "SELECT 1 FROM results WHERE item=? UNION SELECT 1 FROM items WHERE item=?", (item, item)
        )
        if found.fetchone() is None:
            rows = database.execute(
                "SELECT item FROM results WHERE place != ? UNION SELECT item FROM items LIMIT ?", (RUN_PLACE, KEYS_KEPT)
            )
            hint = nearest_key(item, (row[0] for row in rows))
            raise JournalError(f"journal {file.path!r} has no item {item!r}{hint}", path=file.path)
    if unseen:
        latest = database.execute("SELECT status FROM runs ORDER BY run DESC LIMIT 1").fetchone()
        if latest is None or latest[0] != "ended":
            raise JournalError(
                f"journal {file.path!r}: the latest run did not come to the end of its source, so nobody knows which "
                f"items do not come any more; run it to the end first",
                path=file.path,
            )
