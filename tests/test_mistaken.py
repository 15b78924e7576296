"""Files that are given in the place of others: told for what they are, with the mend, and left as they are."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import anyio
import pytest
from typer.testing import CliRunner

from kgas_async import (
    EvidenceError,
    Journal,
    JournalError,
    JsonlSink,
    Phase,
    Pipeline,
    ServiceManager,
    tool,
    verify_evidence,
)
from kgas_async._board_file import BoardFile
from kgas_async._cli import app
from kgas_async._journal_file import JournalFile
from kgas_async._journal_file import error_of as journal_error
from kgas_async._mistaken import instead_of_evidence, instead_of_journal
from kgas_async._reading import EvidenceFile

from .programs import Program
from .test_cli_streams import piped
from .test_journal_file import OTHER, row

READERS = [
    ["evidence", "show"], ["evidence", "verify"], ["evidence", "lineage", "--item", "1"], ["status"],
    ["evidence", "export", "--format", "prov"], ["evidence", "export", "--format", "trace"], ["report", "--json"],
]  # fmt: skip
IS_JOURNAL = "'{}' is no evidence: it is a journal, which 'kgas-async journal show' reads; give the file that --eviden"
IS_HEAD = "'{}' is no evidence: it is the head of a log, which says how that ends; give the log itself, "


@tool
async def double(x: int) -> int:
    return 2 * x


numbers = Pipeline("numbers", Phase("doubled", double), item=["x"], key="x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")

    async def record() -> None:
        sink = JsonlSink(path / "run.jsonl", max_bytes=3000)
        async with ServiceManager(evidence=sink, log=None) as manager:
            await manager.run(numbers, [{"x": x} for x in range(20)], journal=path / "run.db")

    anyio.run(record)
    with closing(sqlite3.connect(path / "other.db")) as database:
        database.execute("CREATE TABLE mine(x)")
    (path / "notes.txt").write_text("not for you\n")
    return path


def error_of(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_what_reads_evidence_knows_a_journal_and_a_head(folder: Path, command: list[str]) -> None:
    before = {one: one.read_bytes() for one in folder.iterdir()}
    assert IS_JOURNAL.format(folder / "run.db") in error_of(*command, str(folder / "run.db"))
    for log in (folder / "run.jsonl", folder / "run.jsonl.2"):
        head = f"{log}.head"
        assert error_of(*command, head).endswith(IS_HEAD.format(head) + repr(str(log)))
    assert {one: one.read_bytes() for one in folder.iterdir()} == before


@pytest.mark.parametrize("command", [["journal", "show"], ["journal", "prune", "--failed"]], ids=" ".join)
def test_what_reads_a_journal_knows_evidence_and_a_head(folder: Path, command: list[str]) -> None:
    before = {one: one.read_bytes() for one in folder.iterdir()}
    log, head, notes = (str(folder / name) for name in ("run.jsonl", "run.jsonl.head", "notes.txt"))
    evidence = "it is evidence, which 'kgas-async evidence show' reads; give the file that --journal named"
    assert error_of(*command, log) == f"error: journal {log!r}: {evidence}"
    assert "it is the head of a log of evidence; give the file" in error_of(*command, head)
    assert "it is no journal, or its beginning is damaged; give the file" in error_of(*command, notes)
    assert "is a database, but no journal of kgas_async" in error_of(*command, str(folder / "other.db"))
    assert {one: one.read_bytes() for one in folder.iterdir()} == before


def test_it_is_told_through_a_pipe_too(folder: Path) -> None:
    for arguments in (["evidence", "verify", "run.jsonl.head"], ["journal", "show", "run.jsonl"]):
        result = piped(folder, *arguments)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)


async def test_it_is_told_in_python_too(folder: Path) -> None:
    for name in ("run.db", "run.jsonl.head"):
        with pytest.raises(EvidenceError, match="is no evidence"):
            await anyio.to_thread.run_sync(verify_evidence, folder / name)
    async with ServiceManager(log=None) as manager:
        with pytest.raises(JournalError, match="it is evidence, which"):
            await manager.run(numbers, [], journal=Journal(folder / "run.jsonl"))


def test_what_may_be_right_is_not_judged(folder: Path) -> None:
    (folder / "empty").touch()
    torn = folder / "torn"
    torn.write_bytes((folder / "run.jsonl").read_bytes()[:100])
    for path in (folder / "run.jsonl", folder / "empty", torn, folder / "nowhere", folder, Path("a\0b")):
        assert instead_of_evidence(path) is None
    for path in (folder / "run.db", folder / "other.db", folder / "empty", folder / "nowhere", folder, Path("a\0b")):
        assert instead_of_journal(path) is None
    damaged = folder / "damaged.db"
    content = (folder / "run.db").read_bytes()
    damaged.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert instead_of_journal(damaged) is None
    with pytest.raises(JournalError, match="damaged"):
        anyio.run(lambda: _resumed(damaged))


async def _resumed(path: Path) -> None:
    async with ServiceManager(log=None) as manager:
        await manager.run(numbers, [], journal=path)


def sink_opened(path: Path) -> None:
    sink = JsonlSink(path)
    sink.open()
    sink.close()


OPENERS: list[Callable[[Path], object]] = [
    verify_evidence,
    sink_opened,
    lambda path: list(EvidenceFile(path)),
    lambda path: BoardFile(path).read_on(),
]
OPENER_IDS = ["verify", "sink", "reader", "status"]


def opened(path: Path) -> JournalFile:
    journal = JournalFile(str(path))
    journal.open("papers", "run1")
    return journal


def check_lock(journal: JournalFile) -> None:
    """Another process does not get it, and it can be written to."""
    with Program(OTHER, journal.path) as other:
        assert "another run, or another program, has it open" in other.line()
    journal.begin()
    journal.write([row("more")], [])
    journal.commit()
    journal.close("ended")
    with Program(OTHER, journal.path) as other:
        assert other.line() == "open"


@pytest.mark.parametrize("open_evidence", OPENERS, ids=OPENER_IDS)
@pytest.mark.parametrize("name", ["run.db", "soft.db", "hard.db"])
def test_an_open_journal_given_for_evidence_keeps_its_lock(
    tmp_path: Path, name: str, open_evidence: Callable[[Path], object]
) -> None:
    journal = opened(tmp_path / "run.db")
    (tmp_path / "soft.db").symlink_to(tmp_path / "run.db")
    (tmp_path / "hard.db").hardlink_to(tmp_path / "run.db")
    with pytest.raises(EvidenceError, match="it is a journal"):
        open_evidence(tmp_path / name)
    check_lock(journal)


@pytest.mark.parametrize("open_evidence", OPENERS, ids=OPENER_IDS)
@pytest.mark.parametrize("name", ["log.head", "log.2"])
def test_an_open_journal_that_has_the_name_of_a_part_of_a_log_keeps_its_lock(
    tmp_path: Path, name: str, open_evidence: Callable[[Path], object]
) -> None:
    sink_opened(tmp_path / "log")
    (tmp_path / "log.2.head").touch()
    (tmp_path / name).unlink(missing_ok=True)
    journal = opened(tmp_path / name)
    with suppress(EvidenceError):
        open_evidence(tmp_path / "log")
    check_lock(journal)


def test_a_journal_that_turns_out_damaged_while_it_is_open_keeps_its_lock(tmp_path: Path) -> None:
    journal = opened(tmp_path / "run.db")
    assert "it is damaged" in str(journal_error(journal.path, sqlite3.DatabaseError("malformed")))
    check_lock(journal)


@pytest.mark.parametrize("open_evidence", OPENERS, ids=OPENER_IDS)
async def test_a_run_keeps_its_lock_when_a_tool_opens_its_journal_as_evidence(
    tmp_path: Path, open_evidence: Callable[[Path], object]
) -> None:
    path, said = tmp_path / "run.db", []

    @tool
    def open_it(x: int) -> int:
        with pytest.raises(EvidenceError, match="it is a journal"):
            open_evidence(path)
        with Program(OTHER, str(path)) as other:
            said.append(other.line())
        return x

    pipeline = Pipeline("papers", Phase("opened", open_it), item=["x"], key="x")
    async with ServiceManager(log=None) as manager:
        for _ in range(2):  # the second from what the first has written
            assert (await manager.run(pipeline, [{"x": 1}], journal=path)).ok
    assert len(said) == 1
    assert "another run, or another program, has it open" in said[0]


@pytest.mark.parametrize("is_open", [True, False])
def test_a_journal_in_the_place_of_a_segment_does_not_hide_that_this_is_lost(
    folder: Path, tmp_path: Path, is_open: bool
) -> None:
    log, head = tmp_path / "run.jsonl", tmp_path / "run.jsonl.head"
    for one in (log, head):
        one.write_bytes((folder / one.name).read_bytes())
    journal = opened(tmp_path / "run.jsonl.2")
    if not is_open:
        journal.close("ended")
    before = log.read_bytes(), head.read_bytes()
    for open_evidence in (sink_opened, lambda path: list(EvidenceFile(path))):
        with pytest.raises(EvidenceError, match=r"run\.jsonl goes on in run\.jsonl\.2, which is missing"):
            open_evidence(log)
    assert not verify_evidence(log).ok
    assert (log.read_bytes(), head.read_bytes()) == before
    journal.break_off()


def test_evidence_in_which_nothing_is_yet_is_not_called_a_file_to_be_removed(tmp_path: Path) -> None:
    with closing(JsonlSink(tmp_path / "run.jsonl")) as sink:
        sink.open()
        with pytest.raises(JournalError, match="is evidence that a session writes; give the journal another file"):
            opened(tmp_path / "run.jsonl")
    with pytest.raises(JournalError, match="is empty, so it is none; remove it"):  # nobody has it any more
        opened(tmp_path / "run.jsonl")
