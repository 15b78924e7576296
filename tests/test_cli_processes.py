"""`kgas-async run` as a process: signals, threads that tools leave behind, terminals."""

from __future__ import annotations

import json
import signal
import time
import tomllib
from pathlib import Path
from textwrap import dedent

import pytest

from .programs import LOOPS, PATIENCE_S, ROOT, Program
from .test_evidence import check_whole, ends, named

on_every_loop = pytest.mark.parametrize("loop", LOOPS)

MINE = """
import itertools, threading, time
import anyio
from kgas_async import Phase, Pipeline, check_cancelled, tool

@tool
async def nap(x: int) -> int:
    await anyio.sleep(0.02)
    return x

@tool
def sleepy(x: int) -> int:
    time.sleep(0.02)
    return x

@tool
async def total(xs: list[int]) -> int:
    return sum(xs)

@tool
def deaf(x: int) -> int:
    time.sleep(60)
    return x

@tool
def leaky(x: int) -> int:
    threading.Thread(target=time.sleep, args=[60], name="leaked").start()
    return x

def endless():
    for x in itertools.count():
        if x == 10:
            print("ready", flush=True)
        yield {"x": x}

def one():
    print("ready", flush=True)
    return [{"x": 1}]

def slow_to_open():
    print("ready", flush=True)
    time.sleep(60)

def odd_names():
    return [{"x": "caf\\xe9 \\udc80 \\u2603"}]

@tool
async def echo(x: str) -> list[dict]:
    return [{"name": x}]

@tool
async def refuse(x: str) -> None:
    raise LookupError(x)

@tool
async def flat(rows: list[list[dict]]) -> list[dict]:
    return [row for some in rows for row in some]

steady = Pipeline("steady", Phase("nap", nap), Phase("sleep", sleepy, bind={"x": "nap"}),
                  Phase("sum", total, collect=True, bind={"xs": "sleep"}), item=["x"], source=endless)
stuck = Pipeline("stuck", Phase("deaf", deaf), item=["x"], source=one)
leaking = Pipeline("leaking", Phase("leaky", leaky), item=["x"], source=one)
unopened = Pipeline("unopened", Phase("nap", nap), item=["x"], source=slow_to_open)
odd = Pipeline("odd", Phase("echo", echo), Phase("flat", flat, collect=True, bind={"rows": "echo"}),
               item=["x"], key="x", source=odd_names)
odd_failure = Pipeline("odd_failure", Phase("refuse", refuse), item=["x"], key="x", source=odd_names)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def command(name: str, loop: str = "asyncio", *more: str) -> list[str]:
    return ["-m", "kgas_async", "run", f"mine:{name}", "--backend", loop, "--evidence", "run.jsonl", *more]


def report_of(program: Program) -> str:
    return program.errors().splitlines()[-2]


@on_every_loop
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_drains_and_reports(folder: Path, loop: str, number: signal.Signals, code: int) -> None:
    with Program(command=command("steady", loop), cwd=folder) as program:
        program.until("ready")
        program.kill(number)
        assert program.code() == code
        assert program.rest() == []  # no sum: run-level phases do not start
        errors = program.errors().splitlines()
        assert errors[-1] == "evidence: run.jsonl"
        assert "Traceback" not in program.errors()
    records = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    check_whole(records)
    assert {record["status"] for record in ends(records)} == {"succeeded"}
    items = len(named(records, "call.succeeded")) // 2
    assert errors[-3].endswith(" succeeded; phase 'sum' was not begun")
    words = errors[-3].replace(";", "").split()
    assert (int(words[1]), int(words[words.index("succeeded") - 1])) == (items, items)
    ended = f"interrupted by {number.name}: what was in flight has ended, the rest of the source was not begun"
    assert errors[-2] == ended
    assert sum("succeeded" in line for line in errors) == 1  # told once


@on_every_loop
def test_the_second_signal_cancels(folder: Path, loop: str) -> None:
    (folder / "mine.py").write_text(MINE.replace("time.sleep(60)\n    return x", "while True: check_cancelled()"))
    with Program(command=command("stuck", loop), cwd=folder) as program:
        program.until("ready")
        wait_for(folder, "call.started")
        for _ in range(2):
            program.kill()
            time.sleep(0.1)
        assert program.code() == 130
        assert "Traceback" not in program.errors()
    records = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    check_whole(records)
    assert [record["status"] for record in ends(records)] == ["cancelled"]


@on_every_loop
def test_what_is_left_after_the_grace_is_cancelled_and_counted(folder: Path, loop: str) -> None:
    (folder / "mine.py").write_text(MINE.replace("time.sleep(60)\n    return x", "while True: check_cancelled()"))
    with Program(command=command("stuck", loop, "--grace", "0.3"), cwd=folder) as program:
        program.until("ready")
        wait_for(folder, "call.started")
        program.kill()
        assert program.code() == 130
        report, interrupted = program.errors().splitlines()[-3:-1]
        assert report.endswith("0 succeeded, 1 cancelled")
        assert interrupted.startswith("interrupted by SIGINT: what was in flight had 0.3 s (--grace) to end")


@on_every_loop
def test_after_the_second_signal_it_says_what_it_has(folder: Path, loop: str) -> None:
    more = """
    @tool
    async def some(x: int) -> int:
        if x < 5:
            return x
        if x == 8:
            print("ready", flush=True)
        await anyio.sleep_forever()

    half_done = Pipeline("half_done", Phase("some", some), item=["x"], source=lambda: [{"x": x} for x in range(9)])
    """
    (folder / "mine.py").write_text(MINE + dedent(more))
    with Program(command=command("half_done", loop, "--grace", "60"), cwd=folder) as program:
        program.until("ready")
        program.kill()
        wait_for(folder, "session.signal")
        program.kill()
        assert program.code() == 130
        errors = program.errors().splitlines()
        assert "half_done: 9 items in " in errors[-3]
        assert errors[-3].endswith("5 succeeded, 4 cancelled")
        assert errors[-2] == "interrupted by SIGINT: what was in flight was cancelled"
        assert "Traceback" not in program.errors()


def test_the_third_signal_ends_the_process_at_once(folder: Path) -> None:
    with Program(command=command("stuck"), cwd=folder) as program:
        program.until("ready")
        wait_for(folder, "call.started")
        for _ in range(3):
            program.kill()
            time.sleep(0.1)
        began = time.monotonic()
        assert program.code() == 130
        assert time.monotonic() - began < 3


def wait_for(folder: Path, event: str) -> None:
    until = time.monotonic() + 20
    while event not in ((folder / "run.jsonl").read_text() if (folder / "run.jsonl").exists() else ""):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_ctrl_c_before_the_session_is_130_too(folder: Path) -> None:
    with Program(command=command("unopened"), cwd=folder) as program:
        program.until("ready")
        program.kill()
        assert program.code() == 130
        assert "Traceback" not in program.errors()


def test_a_thread_that_a_legacy_tool_leaves_does_not_keep_the_process(folder: Path) -> None:
    began = time.monotonic()
    with Program(command=command("leaking"), cwd=folder) as program:
        assert program.code() == 0
        assert time.monotonic() - began < 20
        assert "1 succeeded" in report_of(program)
        assert program.rest() == ["ready"]
    check_whole([json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()])


def test_a_thread_left_behind_does_not_keep_a_process_that_could_not_start(folder: Path) -> None:
    more = """
    def leaking_source():
        threading.Thread(target=time.sleep, args=[60]).start()
        raise OSError("no")

    bad = Pipeline("bad", Phase("nap", nap), item=["x"], source=leaking_source)
    """
    (folder / "mine.py").write_text(MINE + dedent(more))
    with Program(command=command("bad"), cwd=folder) as program:
        assert program.code() == 2


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_cannot_be_shown_are_shown_escaped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    with Program(command=command("odd"), cwd=folder) as program:
        out = "\n".join(program.rest())
        assert program.code() == 0, program.errors()
        assert "\\udc80" in out
        assert ("\\xe9" in out) == ("\\u2603" in out) == (encoding == "ascii")
    with Program(command=command("odd_failure"), cwd=folder) as program:
        assert program.code() == 1
        assert "failed: caf" in program.errors()
        assert "Traceback" not in program.errors()


def test_the_module_and_the_command_are_the_same(folder: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["kgas-async"].partition(":")
    script = f"import sys; from {module} import {function}; sys.exit({function}())"  # as installers write it
    for start in (["-m", "kgas_async"], ["-c", script]):
        with Program(command=[*start, "run", "--help"], cwd=folder) as program:
            assert any("Run a pipeline over its source" in line for line in program.rest())
            assert program.code() == 0


LEFT = """
import time
from kgas_async import Phase, Pipeline, Policy, Retry, tool

@tool(on_cancel="abandon", policy=Policy(timeout=0.2, retry=Retry(attempts=2, on=TimeoutError, while_running=True)))
def left_behind(x: int) -> int:
    if x < 3:
        time.sleep(60)
    return x

@tool
def deaf(x: int) -> int:
    print("ready", flush=True)
    time.sleep(60)
    return x

late = Pipeline("late", Phase("only", left_behind), item=["x"], source=lambda: [{"x": x} for x in range(4)])
stuck = Pipeline("stuck", Phase("deaf", deaf), item=["x"], source=lambda: [{"x": 1}])
"""


@on_every_loop
def test_threads_that_are_left_behind_are_told(folder: Path, loop: str) -> None:
    (folder / "mine.py").write_text(LEFT)
    with Program(command=command("late", loop, "--json"), cwd=folder) as program:
        assert program.code() == 1
        assert json.loads("\n".join(program.rest()))["abandoned"] == {"left_behind": 6}
        told = "abandoned: 6 threads still ran when the run ended: 6 of left_behind; this process ends without waiting"
        assert f"{told} for them\n" in program.errors()
    with Program(command=command("stuck", loop, "--grace", "0.1"), cwd=folder) as program:
        program.until("ready")
        program.kill()
        assert program.code() == 130
        told = "abandoned: 1 thread still ran when the run ended: 1 of deaf; this process ends without waiting for it\n"
        assert told in program.errors()


def test_where_no_thread_is_left_none_is_told(folder: Path) -> None:
    with Program(command=command("odd_failure", "asyncio", "--json"), cwd=folder) as program:
        assert program.code() == 1
        assert json.loads("\n".join(program.rest()))["abandoned"] == {}
        assert "abandoned" not in program.errors()


AT_THE_END = """
import time
from pathlib import Path
from kgas_async import Phase, Pipeline, tool

@tool
def work(x: int) -> int:
    if x == 2:
        Path("ready").touch()
        time.sleep(0.5)
    return x

@tool
async def total(xs: list[int]) -> int:
    return sum(xs)

def some():
    yield from some_of_it()

def some_of_it():
    return [{"x": x} for x in range(3)]

async def some_async():
    for item in some_of_it():
        yield item

sources = {"generator": some, "list": some_of_it, "async": some_async}
for name, source in sources.items():
    globals()[name] = Pipeline(name, Phase("work", work), item=["x"], source=source)
    globals()[f"{name}_summed"] = Pipeline(name, Phase("work", work),
        Phase("sum", total, collect=True, bind={"xs": "work"}), item=["x"], key="x", source=source)
"""


def wait_for_file(path: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


@on_every_loop
@pytest.mark.parametrize("source", ["generator", "list", "async"])
def test_a_signal_after_the_end_of_the_source_says_so(folder: Path, loop: str, source: str) -> None:
    (folder / "mine.py").write_text(AT_THE_END)
    with Program(command=command(source, loop, "--json"), cwd=folder) as program:
        wait_for_file(folder / "ready")
        program.kill()
        assert program.code() == 130
        found = json.loads("\n".join(program.rest()))
        assert (found["drained"], found["not_begun"], found["items"]["succeeded"]) == (False, [], 3)
        told = "interrupted by SIGINT: what was in flight has ended, the source was at its end\n"
        assert told in program.errors()


def test_run_level_phases_that_a_signal_has_kept_from_beginning_are_named(folder: Path) -> None:
    (folder / "mine.py").write_text(AT_THE_END)
    line = command("list_summed", "asyncio", "--json", "--journal", "run.db")
    with Program(command=line, cwd=folder) as program:
        wait_for_file(folder / "ready")
        program.kill()
        assert program.code() == 130
        found = json.loads("\n".join(program.rest()))
        assert (found["drained"], found["not_begun"], found["results"]) == (False, ["sum"], {})
        assert "3 succeeded; phase 'sum' was not begun\n" in program.errors()
        assert "the source was at its end, but what runs once per run was not begun\n" in program.errors()
    with Program(command=line, cwd=folder) as program:
        assert program.code() == 0
        assert json.loads("\n".join(program.rest()))["results"] == {"sum": 3}
