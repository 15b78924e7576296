"""A pipeline with threads, processes, expansions and batches that is killed at a chosen moment; for test_journal_crash.

`main` is what a child process runs. Each tool notes what it begins; at the end it says what came of each item.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import anyio

from kgas_async import Journal, Phase, Pipeline, RunReport, ServiceManager, ToolAdapter, tool
from kgas_async._journal_file import JournalFile

ITEMS = 20
LOG = "KGAS_TEST_LOG"
_begun = itertools.count(1)
_die_at_tool = 0


def note(phase: str, item: str, place: str = "") -> None:
    """A tool begins; maybe it is the last thing that this process does."""
    path = os.environ.get(LOG)
    if path is not None:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(log, f"{phase}|{item}|{place}\n".encode())
        os.close(log)
    if next(_begun) == _die_at_tool:
        die()


def die() -> None:
    """As by the machine: no clean-up of any kind."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def where(piece: str) -> tuple[str, str]:
    item, _, place = piece.partition(":")
    return item, place


@tool
def load(name: str) -> str:
    note("load", name)
    return f"{name}={'x' * (int(name[1:]) % 5)}"


@tool
def pieces(load: str) -> Iterator[str]:
    name, _, text = load.partition("=")
    note("pieces", name)
    for number in range(len(text)):
        yield f"{name}:{number}"


def hashed(piece: str) -> str:
    note("hashed", *where(piece))
    return sha256(piece.encode()).hexdigest()[:8]


@tool
async def scored(pieces: list[str], hashes: list[str]) -> list[tuple[str, int] | Exception]:
    for piece in pieces:
        note("scored", *where(piece))
    await anyio.sleep(0.001)
    return [(one, int(one, 16) % 97) for one in hashes]


@tool
async def merged(load: str, scores: list[tuple[str, int]]) -> dict[str, int]:
    note("merged", load.partition("=")[0])
    return dict(scores)


@tool
async def odd(merged: dict[str, int], name: str) -> int:
    note("odd", name)
    return sum(merged.values())


@tool
def marked(name: str) -> str:
    note("marked", name)
    return f"mark of {name}"


@tool
async def total(sums: list[dict[str, int]]) -> int:
    note("total", "", "<run>")
    return sum(sum(one.values()) for one in sums)


PIPELINE = Pipeline(
    "crash",
    Phase("load", load),
    Phase("pieces", pieces, expand="piece"),
    Phase("hashed", ToolAdapter(hashed, offload="process")),
    Phase("scored", scored, bind={"pieces": "piece", "hashes": "hashed"}, batch=4),
    Phase("merged", merged, bind={"scores": "scored"}, collect="piece"),
    Phase("odd", odd, when=lambda merged: len(merged) % 2 == 1),
    Phase("marked", marked, after="merged"),
    Phase("total", total, bind={"sums": "merged"}, collect=True),
    item=["name"],
    key="name",
)


def source() -> list[dict[str, str]]:
    return [{"name": f"i{number}"} for number in range(ITEMS)]


def shown(report: RunReport) -> str:
    """What a user sees, as text that does not depend on what was reused."""
    rows = [[one.key, one.status, one.value] for one in report.outcomes]
    return json.dumps([rows, report.results, {phase: str(error) for phase, error in report.errors.items()}])


async def outcome(journal: Any, threads: int = 4) -> RunReport:
    async with ServiceManager(log=None, threads=threads, processes=2) as manager:
        return await manager.run(PIPELINE, source(), journal=journal, keep="all", in_flight=8)


def arm(moment: str) -> None:
    """Have this process killed at a moment: before or after a commit, as a tool begins, after a while."""
    global _die_at_tool
    kind, _, number = moment.partition(":")
    if kind in ("before", "after"):
        _die_at_commit(kind, int(number))
    elif kind == "tool":
        _die_at_tool = int(number)
    elif kind == "time":
        threading.Timer(float(number), die).start()
    elif kind == "group":
        threading.Timer(float(number), lambda: os.killpg(0, signal.SIGKILL)).start()


def _die_at_commit(kind: str, number: int) -> None:
    commit = JournalFile.commit
    commits = itertools.count(1)

    def counted(self: JournalFile) -> None:
        is_last = next(commits) == number
        if is_last and kind == "before":  # all is written, and nothing is committed
            die()
        commit(self)
        if is_last:
            die()

    JournalFile.commit = counted  # type: ignore[method-assign]


async def streamed(journal: Any) -> None:
    """Say the key of each outcome as it comes."""
    async with (
        ServiceManager(log=None, processes=2) as manager,
        manager.stream(PIPELINE, source(), journal=journal, in_flight=8, ordered=False) as outcomes,
    ):
        async for one in outcomes:
            os.write(1, f"{one.key}\n".encode())


def main(loop: str, journal: str, log: str, moment: str) -> None:
    """What a child process does; it may never come to its end."""
    os.environ[LOG] = log
    arm(moment)
    kept = Journal(journal, durable=moment == "durable")
    options = {"use_uvloop": True} if loop == "uvloop" else {}
    run = functools.partial(anyio.run, backend="trio" if loop == "trio" else "asyncio", backend_options=options)
    if moment == "streamed":
        run(streamed, kept)
    else:
        sys.stdout.write(shown(run(outcome, kept)) + "\n")
    sys.stdout.flush()
    os._exit(0)
