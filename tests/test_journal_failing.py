"""A journal that cannot be written any more ends the run: what was reported as succeeded is in it, and it resumes."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from kgas_async import Journal, JournalError, Phase, Pipeline, ServiceManager, tool
from kgas_async._journal_file import JournalFile
from kgas_async._journal_inspect import prune

from .loops import chosen
from .programs import Program

ran: Counter[str] = Counter()


@tool
async def first(name: str) -> str:
    ran["first " + name] += 1
    return name * 2


@tool
def second(first: str) -> list[str]:
    ran["second " + first] += 1
    return list(first)


@tool
async def third(letter: str) -> str:
    await anyio.lowlevel.checkpoint()
    return letter.upper()


@tool
async def joined(letters: list[str]) -> str:
    return "".join(letters)


@tool
async def total(wholes: list[str]) -> int:
    return len("".join(wholes))


PIPELINE = Pipeline(
    "failing",
    Phase("first", first),
    Phase("second", second, expand="letter"),
    Phase("third", third),
    Phase("joined", joined, bind={"letters": "third"}, collect="letter"),
    Phase("total", total, bind={"wholes": "joined"}, collect=True),
    item=["name"],
    key="name",
)


def items(count: int = 12) -> list[dict[str, str]]:
    return [{"name": f"n{number}"} for number in range(count)]


def held(path: Path) -> set[str]:
    """The items whose last phase is in the journal."""
    file = JournalFile(str(path))
    file.open(None)
    try:
        return {row[0] for row in file.database.execute("SELECT item FROM results WHERE phase='joined'")}
    finally:
        file.break_off()


async def run(path: Any, **options: Any) -> Any:
    async with ServiceManager(log=None) as manager:
        return await manager.run(PIPELINE, items(), journal=path, keep="all", **options)


async def tried_run(path: Path, in_flight: int) -> tuple[Any, JournalError | None]:
    try:
        return await run(path, in_flight=in_flight), None
    except JournalError as error:
        return error.report, error


async def resumes(path: Path) -> None:
    """All is there in the end, and what the journal held was not run again."""
    before = held(path)
    ran.clear()
    report = await run(path)
    assert report.ok
    assert report.results == {"total": sum(2 * len(one["name"]) for one in items())}
    assert [one.value for one in report.outcomes] == [(one["name"] * 2).upper() for one in items()]
    assert not {f"first {name}" for name in before} & ran.keys()


FAULTS = {
    "full": sqlite3.OperationalError("database or disk is full"),
    "foreign": MemoryError(),
}


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, what: str, number: int, error: BaseException) -> Iterator[list[int]]:
    """From the n-th time on, a step of the file's work fails; how often it was tried."""
    real = getattr(JournalFile, what)
    tried = [0]

    def step(self: JournalFile, *args: Any, **kwargs: Any) -> Any:
        tried[0] += 1
        if tried[0] >= number:
            raise error
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(JournalFile, what, step)
        yield tried


@pytest.mark.parametrize("in_flight", [1, 5])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("what", ["commit", "write", "begin", "recorded"])
async def test_whatever_fails_whenever_no_success_is_without_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, fault: str, in_flight: int
) -> None:
    number = 1
    while True:
        path = tmp_path / f"run{number}.db"
        with failing(monkeypatch, what, number, FAULTS[fault]) as tried:
            report, error = await tried_run(path, in_flight)
        if error is None:
            assert tried[0] < number
            break
        assert error.path == str(path)
        assert report.total < 12 or not report.ok
        assert {one.key for one in report.outcomes if one.ok} <= held(path)
        assert len({one.key for one in report.outcomes}) == len(report.outcomes)
        await resumes(path)
        number += 1 + number // 2
    assert number > 2


async def test_a_run_cannot_begin_where_its_journal_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.db"
    ran.clear()
    with failing(monkeypatch, "_begin_run", 1, FAULTS["full"]), pytest.raises(JournalError, match="the disk is full"):
        await run(path)
    assert not ran
    await resumes(path)


FILLING = """
import json
from tests.test_journal_failing import PIPELINE, items
from kgas_async import Journal
SIZE = 400

async def main():
    async with ServiceManager(log=None) as manager:
        try:
            report = await manager.run(PIPELINE, items(SIZE), journal=Journal(sys.argv[1], durable=True), keep="all")
            say("done", report.succeeded)
        except JournalError as error:
            say("error", error)
            report = error.report
    say(json.dumps([one.key for one in report.outcomes if one.ok] if report is not None else []))
run(main)
"""


def fills(folder: Path, loop: str) -> None:
    """It fills, which is said, and what was reported is there."""
    path = folder / "run.db"
    with Program(FILLING, str(path), loop=loop) as program:
        said = program.rest()
    assert said[0].startswith("error journal"), said
    assert "full" in said[0] or "I/O" in said[0]
    assert set(json.loads(said[1])) <= held(path)


def _mounted(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("loop", chosen())
def test_a_disk_that_fills_in_mid_run(tmp_path: Path, loop: str) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if not shutil.which("mount") or not _mounted(folder):
        pytest.skip("no file system can be mounted here")
    try:
        fills(folder, loop)
        kept = tmp_path / "kept"
        shutil.copytree(folder, kept)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    with Program(FILLING, str(kept / "run.db"), loop=loop) as program:  # there is room again
        assert program.line() == "done 400"


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
"""


@pytest.mark.parametrize("loop", chosen())
def test_writes_that_come_to_nothing(tmp_path: Path, loop: str) -> None:
    path = tmp_path / "run.db"
    with Program(LIMITED + FILLING, str(path), loop=loop) as program:
        said = program.rest()
    assert said[0].startswith("error journal"), said
    with Program(FILLING, str(path), loop=loop) as program:
        assert program.line() == "done 400"


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.003, 0.01, 0.02])
async def test_a_cancelled_run_loses_nothing(tmp_path: Path, after_s: float) -> None:
    path = tmp_path / "run.db"
    async with ServiceManager(log=None) as manager:
        with anyio.move_on_after(after_s):
            await manager.run(PIPELINE, items(), journal=path)
        if path.exists():
            assert (await manager.run(PIPELINE, items(), journal=path)).ok  # its lock was given back
    if path.exists():
        await resumes(path)


async def test_what_a_cancelled_run_reports_is_in_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with ServiceManager(log=None) as manager:
        async with manager.stream(PIPELINE, items(), journal=Journal(path, durable=True)) as outcomes:
            seen = [await anext(aiter(outcomes)) for _ in range(3)]
        assert {one.key for one in seen} <= held(path)


@tool
async def undecodable(text: str) -> str:
    raise ValueError(f"cannot read {text}")


async def test_an_error_that_no_encoding_has_is_that_items_alone(tmp_path: Path) -> None:
    pipeline = Pipeline("bad", Phase("undecodable", undecodable), item=["text"], key="text")
    async with ServiceManager(log=None) as manager:
        for retry in ("all", "none"):
            report = await manager.run(
                pipeline, [{"text": "caf\udce9"}], journal=tmp_path / "run.db", retry=retry, keep="all"
            )
            assert [(one.key, one.status) for one in report.outcomes] == [("caf\udce9", "failed")]
    assert prune(str(tmp_path / "run.db"), item="caf\udce9") == (0, 1)
