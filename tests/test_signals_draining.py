"""`signals=True`: the first SIGINT or SIGTERM drains, the second cancels, the third ends the process."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from .programs import LOOPS, Program
from .test_evidence import check_whole, ends, named, only
from .test_signals import evidence

on_every_loop = pytest.mark.parametrize("loop", LOOPS)

DRAINS = """
    pulled = begun = ended = 0

    def source():
        global pulled
        while True:
            pulled += 1
            yield {"x": pulled}

    @tool
    async def work(x: int) -> int:
        global begun, ended
        begun += 1
        if begun == 20:
            say("ready")
        await anyio.sleep(0.1)
        ended += 1
        return x

    @tool
    def work_in_thread(y: int) -> int:
        time.sleep(0.01)
        return y

    @tool
    async def once(ys: list[int]) -> None:
        say("a run-level phase ran")

    pipeline = Pipeline(
        "p", Phase("one", work), Phase("two", work_in_thread, bind={"y": "one"}),
        Phase("last", once, collect=True, bind={"ys": "two"}), item=["x"],
    )

    async def a_run(manager):
        report = await manager.run(pipeline, source(), in_flight=8)
        say("ok", report.drained, report.total == report.succeeded == pulled, report.results)

    async def a_map(manager):
        async with manager.map(work, source(), in_flight=8) as outcomes:
            statuses = [outcome.status async for outcome in outcomes]
        say("ok", set(statuses) == {"succeeded"}, len(statuses) == pulled)

    async def main(way):
        async with ServiceManager(evidence="evidence.jsonl", log=None, signals=True) as manager:
            await way(manager)
            say("in flight ended:", begun == ended)
            try:
                await manager.execute(work, x=1)
            except ManagerClosed as closed:
                say(closed)
            say("the body ended")

    raised(main, {"run": a_run, "map": a_map}[sys.argv[1]])
    say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


@on_every_loop
@pytest.mark.parametrize("way", ["run", "map"])
def test_the_first_signal_drains(tmp_path: Path, loop: str, way: str) -> None:
    with Program(DRAINS, way, loop=loop, cwd=tmp_path) as program:
        program.until("ready")
        program.kill()
        assert program.rest() == [
            "ok True True {}" if way == "run" else "ok True True",
            "in flight ended: True",
            "the manager is draining; no new calls are admitted",
            "the body ended",
            "raised KeyboardInterrupt()",
            "True",
        ]
    records = evidence(tmp_path)
    check_whole(records)
    assert {record["status"] for record in ends(records)} == {"succeeded"}
    signalled = only(named(records, "session.signal"))
    assert (signalled["signal"], signalled["count"]) == ("SIGINT", 1)


@on_every_loop
@pytest.mark.parametrize(
    ("numbers", "raised"),
    [
        ((signal.SIGINT, signal.SIGINT), "KeyboardInterrupt()"),
        ((signal.SIGTERM, signal.SIGTERM), "SystemExit(143)"),
        ((signal.SIGINT, signal.SIGTERM), "SystemExit(143)"),
    ],
)
def test_the_second_signal_cancels(
    tmp_path: Path, loop: str, numbers: tuple[signal.Signals, signal.Signals], raised: str
) -> None:
    code = """
    async def main():
        async with ServiceManager(evidence="evidence.jsonl", log=None, signals=True, grace=30) as manager:
            manager.submit(polite)
            call = manager.submit(forever)
            await anyio.sleep(0.05)
            say("ready")
            while not manager._session.is_draining:
                await anyio.sleep(0.01)
            await anyio.sleep(0.1)
            say("draining", len(manager.calls))
            await call.wait()

    raised(main)
    """
    with Program(code, loop=loop, cwd=tmp_path) as program:
        program.until("ready")
        program.kill(numbers[0])
        assert program.line() == "draining 2"
        began = time.monotonic()
        program.kill(numbers[1])
        assert program.rest() == [f"raised {raised}"]
        assert time.monotonic() - began < 10  # and not the grace
    records = evidence(tmp_path)
    check_whole(records)
    assert [record["status"] for record in ends(records)] == ["cancelled", "cancelled"]
    assert [record["count"] for record in named(records, "session.signal")] == [1, 2]


STUCK = {
    "a thread": "await manager.execute(deaf)",
    "the event loop": "time.sleep(60)",
    "threads that are joined": "await manager.outcome(left_behind.using(timeout=0.05))",
}


@on_every_loop
@pytest.mark.parametrize(
    ("where", "number"), [*zip(STUCK, (signal.SIGINT, signal.SIGINT, signal.SIGTERM), strict=True)], ids=STUCK
)
def test_the_third_signal_ends_the_process_at_once(loop: str, where: str, number: signal.Signals) -> None:
    code = f"""
    async def main():
        async with ServiceManager(log=None, signals=True, grace=60, abandoned="join") as manager:
            say("ready")
            {STUCK[where]}

    raised(main)
    """
    with Program(code, loop=loop) as program:
        program.until("ready")
        time.sleep(0.1)
        for _ in range(2):
            program.kill(number)
            time.sleep(0.1)
        assert program.process.poll() is None
        began = time.monotonic()
        program.kill(number)
        assert program.code() == 128 + number
        assert time.monotonic() - began < 2
        assert program.rest() == []


@on_every_loop
def test_sigterm_drains_and_ends_as_system_exit_143(loop: str) -> None:
    code = """
    async def main():
        async with ServiceManager(log=None, signals=True) as manager:
            call = manager.submit(deaf, seconds=0.2)
            await anyio.sleep(0.05)
            say("ready")
            say((await call.outcome()).status)

    run(main)
    """
    with Program(code, loop=loop) as program:
        program.until("ready")
        program.kill(signal.SIGTERM)
        assert program.rest() == ["succeeded"]
        assert program.code() == 143
