"""`kgas-async status`, and the board behind it: the same of a run at work, of one that has ended, of a killed one."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner

from kgas_async import (
    CallFailed,
    CircuitBreaker,
    JsonlSink,
    MemorySink,
    PerformanceMonitor,
    Phase,
    Pipeline,
    Policy,
    Retry,
    ServiceManager,
    _board_file,
    tool,
)
from kgas_async._board import Board
from kgas_async._board_file import BoardFile
from kgas_async._cli import app
from kgas_async._cli_picture import items_text, lines_of
from kgas_async._errors import EvidenceError
from kgas_async._picture import ItemsSeen
from kgas_async._reading import EvidenceFile
from kgas_async._segments import segments_of

from .programs import Program
from .terminal import Terminal


@tool(policy=Policy(concurrency=3))
def load(x: int) -> int:
    return x


@tool(policy=Policy(retry=Retry(attempts=2, on=ConnectionError, wait=0)))
async def parse(load: int) -> int:
    if load % 5 == 3:
        raise ConnectionError(f"no page {load}")
    return load


@tool
async def total(parse: list[int]) -> int:
    return sum(parse)


papers = Pipeline(
    "papers", Phase("load", load), Phase("parse", parse), Phase("total", total, collect=True), item=["x"], key="x"
)


async def recorded(path: Path, count: int = 20) -> Board:
    """Run it, with a board that watches and a file that is written."""
    board = Board()
    monitor = PerformanceMonitor(sample_every=None, stall=None)
    monitor._ledger = board
    async with ServiceManager(evidence=path, monitor=monitor, log=None) as manager:
        await manager.run(papers, [{"x": x} for x in range(count)])
    return board


def status(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["status", *arguments])
    assert result.exit_code == code, result.output
    return result.output


async def test_the_file_gives_the_picture_that_the_session_gave(tmp_path: Path) -> None:
    board = await recorded(tmp_path / "run.jsonl")
    live = board.picture(time.perf_counter_ns())
    file = BoardFile(tmp_path / "run.jsonl")
    file.read_on()
    read = file.picture()
    assert live.state == read.state == "ended"
    assert live.items == read.items or abs((live.items.rate or 0) - (read.items.rate or 0)) < 1
    assert (read.items.done, read.items.failed, read.items.total) == (20, 4, 20)
    for one, other in zip(live.phases, read.phases, strict=True):
        for name in ("name", "tool", "level", "done", "failed", "skipped", "total", "in_flight", "retries"):
            assert getattr(one, name) == getattr(other, name), name
        assert set(one.waits) - set(other.waits) == set() or one.tool == "load"  # waits below a microsecond
    assert [(one.where, one.type, one.count) for one in read.failures] == [("parse", "ConnectionError", 4)]
    assert [(one.where, one.type, one.count) for one in live.failures] == [("parse", "ConnectionError", 4)]
    assert live.retries == read.retries == 4
    assert live.calls == read.calls == 41


async def test_a_part_of_the_file_shows_the_run_at_work(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    await recorded(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:12]) + lines[12][:40])  # a record that is just being written
    file = BoardFile(path)
    file.read_on()
    assert file.unreadable == 0
    done = sum(one.done for one in file.board._phases(file.board._run, (), is_live=False))  # type: ignore[union-attr]
    with path.open("ab") as rest:
        rest.write(lines[12][40:] + b"".join(lines[13:]))
    file.read_on()
    assert file.picture().state == "ended"
    assert sum(one.done for one in file.picture().phases) == 41 > done


async def test_it_says_how_a_run_has_ended(tmp_path: Path) -> None:
    path = str(tmp_path / "run.jsonl")
    await recorded(Path(path))
    said = status(path, code=1).splitlines()
    assert said[0].startswith("papers ended: 20 of 20 items, 4 failed, ")
    assert said[2].split()[:3] == ["phase", "done", "failed"]
    assert [line.split()[:2] for line in said[3:6]] == [["load", "20/20"], ["parse", "20/20"], ["total", "1/1"]]
    assert re.match(r"parse: ConnectionError x4 \(item (3|8|13|18), ", said[-1])  # on trio any may be the last
    found = json.loads(status(path, "--json", code=1))
    assert (found["state"], found["pipeline"], found["items"]["failed"]) == ("ended", "papers", 4)
    assert [phase["name"] for phase in found["phases"]] == ["load", "parse", "total"]


@tool
async def parts(x: int) -> list[int]:
    return list(range(x))


@tool
async def holds(x: int) -> int:
    if x == 4:
        await anyio.sleep_forever()
    return x


@pytest.mark.real_time  # waits for what a thread writes
async def test_of_a_second_run_at_work_only_its_own_items_are_counted_and_no_elements(tmp_path: Path) -> None:
    never = Phase("load", load, bind={"x": "part"}, when=lambda x: 1 / 0)
    pipeline = Pipeline(
        "papers", Phase("parts", parts, expand="part"), never, Phase("holds", holds), item=["x"], key="x"
    )
    file = BoardFile(tmp_path / "run.jsonl")
    async with ServiceManager(evidence=file.path, log=None) as manager:
        await manager.run(pipeline, [{"x": x} for x in range(4)])
        async with manager.stream(pipeline, [{"x": x} for x in (2, 3, 4)]) as outcomes:
            for _ in range(2):
                await anext(outcomes)
            picture = None
            with anyio.fail_after(30):
                while picture is None or picture.items.total != 3 or picture.items.done < 2:
                    await anyio.sleep(0.01)
                    file.read_on()
                    with suppress(EvidenceError):  # nothing is written yet
                        picture = file.picture()
            assert (picture.items.done, picture.items.total, picture.items.is_exact) == (2, 3, False)
            assert [(one.name, one.done) for one in picture.phases[:3]] == [("parts", 3), ("load", 0), ("holds", 2)]


async def test_it_is_about_the_latest_session_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    await recorded(path)
    await recorded(path, 3)
    assert status(str(path)).startswith("papers ended: 3 of 3 items, ")


async def test_calls_outside_of_runs_are_shown_by_tool(tmp_path: Path) -> None:
    async with ServiceManager(evidence=tmp_path / "run.jsonl", log=None) as manager:
        await manager.execute(load, x=1)
    said = status(str(tmp_path / "run.jsonl")).splitlines()
    assert said[0].startswith("session ")
    assert "ended: 1 call, " in said[0]
    assert any(line.startswith("load") for line in said[1:])


@tool
async def last_one_fails(load: int) -> int:
    if load < 9:
        await anyio.sleep_forever()
    raise LookupError(load)


async def test_what_was_cancelled_is_told_apart_from_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    board = Board()
    monitor = PerformanceMonitor(sample_every=None, stall=None)
    monitor._ledger = board
    pipeline = Pipeline("papers", Phase("load", load), Phase("last", last_one_fails), item=["x"], key="x")
    with pytest.raises(CallFailed):
        async with ServiceManager(evidence=path, monitor=monitor, log=None) as manager:
            await manager.run(pipeline, [{"x": x} for x in range(10)], on_error="raise")
    file = BoardFile(path)
    file.read_on()
    for picture in (board.picture(time.perf_counter_ns()), file.picture()):
        items, phase = picture.items, picture.phases[1]
        assert (items.done, items.failed, items.cancelled, items.is_exact) == (10, 1, 9, True)
        assert (phase.failed, phase.cancelled) == (1, phase.done - 1)  # on trio some may be cancelled before it
        assert [(one.where, one.count) for one in picture.failures] == [("last (last_one_fails)", 1)]
    said = status(str(path), code=1)
    assert "10 of 10 items, 1 failed, 9 cancelled" in said
    assert "cancelled" in said.splitlines()[2].split()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for cut, is_exact in (("run.ended", False), ("nothing", True)):  # killed just before; of an older version
        for record in records:
            record.pop("cancelled", None)
        path.write_text("".join(json.dumps(record) + "\n" for record in records if record["event"] != cut))
        found = json.loads(status(str(path), "--json", code=1))["items"]
        assert (found["failed"], found["is_exact"]) == (1, is_exact)
        assert found["cancelled"] in ([0] if is_exact else range(1, 10))  # without those of which no call had begun


async def test_breakers_and_what_failed_outside_of_calls_are_shown(tmp_path: Path) -> None:
    @tool(policy=Policy(breaker=CircuitBreaker(2, name="api")))
    async def ask(x: int) -> int:
        raise TimeoutError("no answer")

    path = tmp_path / "run.jsonl"
    pipeline = Pipeline("asking", Phase("ask", ask), item=["x"], key="x")
    async with ServiceManager(evidence=path, log=None) as manager:
        await manager.run(pipeline, [{"x": 1}, {"x": 2}, {"y": 3}, {"x": 4}], in_flight=1)
    found = json.loads(status(str(path), "--json", code=1))
    assert [(one["name"], one["state"]) for one in found["breakers"]] == [("api", "open")]
    assert {(one["where"], one["type"]) for one in found["failures"]} >= {
        ("ask", "TimeoutError"),
        ("ask", "CircuitOpen"),
    }
    assert "breaker api: open for " in status(str(path), code=1)


@pytest.mark.parametrize(
    ("items", "elapsed_s", "said"),
    [
        (ItemsSeen(50, 5, 0, 200, 10.0, 15.0), 5.0, "50 of 200 items, 5 failed, 10/s, 5.0 s, 15 s left"),
        (ItemsSeen(1, 0, 0, None, 0.25, None), 4.0, "1 item, 0.25/s, 4.0 s"),
        (ItemsSeen(0, 0, 0, 1), 61.0, "0 of 1 item, 61 s"),
        (ItemsSeen(9, 1, 0, 9, cancelled=6), 2.0, "9 of 9 items, 1 failed, 6 cancelled, 2.0 s"),
        (
            ItemsSeen(9, 0, 0, 99, 0.01, 9000.0, is_exact=False),
            900.0,
            "about 9 of 99 items, 0.01/s, 15:00 min, 2:30 h left",
        ),
    ],
)
def test_how_far_it_is_in_words(items: ItemsSeen, elapsed_s: float, said: str) -> None:
    assert items_text(items, elapsed_s) == said


@pytest.mark.parametrize("width", [1, 7, 20, 40, 59, 60, 80, 160, 500])
async def test_no_line_is_wider_than_it_may_be(tmp_path: Path, width: int) -> None:
    board = await recorded(tmp_path / "run.jsonl")
    assert all(line.cell_len <= width for line in lines_of(board.picture(time.perf_counter_ns()), width))


async def test_what_a_damaged_event_lacks_tells_nothing() -> None:
    board = Board()
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.run(papers, [{"x": 3}])
    events = ["session.signal", "run.ended", "breaker.opened", "limit.changed", "loop.stalled", "thread.abandoned"]
    events += ["service.crashed", "resource.sampled", "call.started", "run.started", "evidence.failed", "nonsense"]
    for event in events:
        board.note({"event": event, "at_ns": 1})
    assert board.picture(2).state == "running"


def test_what_is_no_number_is_not_shown_and_what_is_no_name_is_shown_as_text() -> None:
    board = Board()
    board.note({"event": "service.health", "at_ns": 1, "service": None, "status": "ill"})
    board.note({"event": "breaker.opened", "at_ns": 1, "breaker": None, "why": None})
    board.note({"event": "loop.stalled", "at_ns": 1, "tool": 7, "stalled_us": float("inf")})
    board.note({"event": "loop.stalled", "at_ns": 1, "tool": 7, "stalled_us": 1_000_000})
    board.note({"event": "thread.abandoned", "at_ns": 1, "tool": [1], "call_id": "c"})
    board.note({"event": "limit.paused", "at_ns": 1, "limit": "memory", "used_bytes": {"a": 1}, "max_bytes": 2})
    board.note({"event": "limit.changed", "at_ns": 1, "limit": "adaptive", "total": [3]})
    picture = board.picture(2)
    assert (picture.limits, picture.stalls.longest_s, picture.stalls.count) == ((), 1.0, 1)
    assert lines_of(picture, 80)
    json.dumps(picture.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("event", "damage"),
    [("call.failed", {"error": 7}), ("call.retried", {"error": 1.5}),
     ("call.retried", {"wait_us": {"retry": []}}), ("run.started", {"plan": ["load", "parse"]}),
     ("run.started", {"plan": [{"phase": "load"}]})],
)  # fmt: skip
async def test_a_record_that_was_damaged_is_no_reason_to_fail(
    tmp_path: Path, event: str, damage: dict[str, Any]
) -> None:
    path = tmp_path / "run.jsonl"
    await recorded(path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    changed = next(record for record in records if record["event"] == event)
    changed |= damage
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = json.loads(status(str(path), "--json", code=1))
    assert found["state"] == "ended"
    shown = CliRunner().invoke(app, ["evidence", "show", str(path)])
    assert shown.exit_code == 0, shown.output


async def test_what_came_into_a_segment_after_it_was_read_comes_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.jsonl"
    async with ServiceManager(evidence=JsonlSink(path, max_bytes=3000), log=None) as manager:
        await manager.run(papers, [{"x": x} for x in range(20)])
    names = list(segments_of(path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))

    def while_it_is_written(path: Path) -> Iterator[Path]:
        yield path
        path.write_bytes(b"".join(lines))  # as if the writer did it just now
        yield from names[1:]

    monkeypatch.setattr(_board_file, "segments_of", while_it_is_written)
    assert [record["seq"] for record in BoardFile(path)._new()] == list(range(1, len(list(EvidenceFile(path))) + 1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        (b"", "has no record of evidence"),
        (b"# some notes\n", "has no record of evidence"),
        (b'{"event":"call.succeeded","schema":1,"time":"2020-01-01T00:00:00Z"}\n', "evidence of schema 1"),
    ],
)
def test_2_where_there_is_no_evidence(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert said in status(str(path), code=2)
    with pytest.raises(EvidenceError):
        BoardFile(path).read_on()


MINE = """
import itertools, time
import anyio
from kgas_async import Phase, Pipeline, tool

@tool
async def nap(x: int) -> int:
    await anyio.sleep(0.05)
    return x

@tool
def deaf(nap: int) -> int:
    time.sleep(60 if nap > 5 else 0)

def endless():
    return ({"x": x} for x in itertools.count())

stuck = Pipeline("stuck", Phase("nap", nap), Phase("deaf", deaf), item=["x"], source=endless)
"""


def started(folder: Path) -> Program:
    (folder / "mine.py").write_text(MINE)
    return Program(command=["-m", "kgas_async", "run", "mine:stuck", "--evidence", "run.jsonl"], cwd=folder)


def until_at_work(path: Path) -> dict[str, Any]:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if path.exists() and path.stat().st_size:
            result = CliRunner().invoke(app, ["status", str(path), "--json"])
            found = json.loads(result.stdout) if result.exit_code == 0 else {}
            six = found and found["items"]["done"] == 6  # the others are stuck
            if six and any(one["tool"] == "deaf" for one in found["in_flight"]):
                return found
        time.sleep(0.05)
    raise AssertionError("it never was at work")


def test_of_a_run_at_work_and_of_one_that_was_killed_it_says_what_is_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with started(tmp_path) as program:
        found = until_at_work(path)
        assert found["state"] == "running"
        assert "deaf" in {one["tool"] for one in found["in_flight"]}
        program.kill(signal.SIGKILL)
        assert program.code() == -signal.SIGKILL
    said = status(str(path), code=3)
    assert said.startswith("stuck was killed: about 6 items")
    assert re.search(r"in flight when it was killed: .*deaf \d+", said)
    assert json.loads(status(str(path), "--json", code=3))["state"] == "killed"


@pytest.mark.parametrize("painted", [False, True])
def test_it_follows_a_run_to_its_end(tmp_path: Path, painted: bool) -> None:
    path = tmp_path / "run.jsonl"
    follow = ["-m", "kgas_async", "status", "run.jsonl", "--follow"]
    with started(tmp_path) as program:
        until_at_work(path)
        if painted:
            with Terminal(follow, cwd=tmp_path) as terminal:
                terminal.until("running")
                program.kill(signal.SIGKILL)
                assert terminal.code() == 3
                assert terminal.screen()[0].startswith("stuck was killed")
        else:
            with Program(command=[*follow, "--json"], cwd=tmp_path) as other:
                assert json.loads(other.line())["state"] == "running"
                program.kill(signal.SIGKILL)
                assert json.loads(other.rest()[-1])["state"] == "killed"
                assert other.code() == 3


def test_a_dumb_terminal_follows_by_lines(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        until_at_work(tmp_path / "run.jsonl")
        with Terminal(["-m", "kgas_async", "status", "run.jsonl", "--follow"], cwd=tmp_path, TERM="dumb") as terminal:
            terminal.until("stuck running")
            program.kill(signal.SIGKILL)
            assert terminal.code() == 3
            assert b"\x1b" not in terminal.shown.replace(b"\x1b[999;1H", b"")
            assert b"stuck was killed" in terminal.shown


def test_ctrl_c_ends_the_following_and_leaves_the_terminal_and_the_run_alone(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        until_at_work(tmp_path / "run.jsonl")
        with Terminal(["-m", "kgas_async", "status", "run.jsonl", "--follow"], cwd=tmp_path) as terminal:
            terminal.until("running")
            terminal.kill()
            assert terminal.code() == 130
            assert b"\x1b[?25l" not in terminal.shown
            assert b"Traceback" not in terminal.shown
        assert program.process.poll() is None
        program.kill(signal.SIGKILL)


def test_a_reader_that_goes_ends_the_following(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        until_at_work(tmp_path / "run.jsonl")
        with Program(command=["-m", "kgas_async", "status", "run.jsonl", "--follow"], cwd=tmp_path) as other:
            assert other.line().startswith("stuck running")
            assert other.process.stdout is not None
            os.close(os.dup(other.process.stdout.fileno()))
            other.process.stdout.close()
            assert other.code() == 0
            assert other.errors() == ""
            other.process.stdout = open(os.devnull)  # noqa: SIM115, PTH123  (for who closes it)
        program.kill(signal.SIGKILL)
