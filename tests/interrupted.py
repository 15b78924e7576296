"""A program for test_interrupts: sessions full of mixed work, one after another, each ended by a Ctrl-C from outside.

It says "ready" in each session, and after it, as JSON, what was found wrong.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil

from kgas_async import (
    ConcurrencyLimit,
    ManagerClosed,
    Phase,
    Pipeline,
    RateLimit,
    Retry,
    ServiceManager,
    ToolAdapter,
    check_cancelled,
    current,
    tool,
)
from kgas_async._context import current_call
from kgas_async.testing import assert_clean

# Made at import and used in one loop after another.
SHARED = ConcurrencyLimit(3)
FEW = ConcurrencyLimit(2)
RATE = RateLimit(2000, burst=20)


class Inside:
    """How many calls are inside the tools of one limit, counted by the tools themselves."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.peak = 0
        self.begun: set[str] = set()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        call: Any = current_call.get()
        with self.lock:
            self.now += 1
            self.peak = max(self.peak, self.now)
            self.begun.add(call.id)
        try:
            yield
        finally:
            with self.lock:
                self.now -= 1


of_shared, of_few, of_none = Inside(), Inside(), Inside()


@tool
async def quick(x: int) -> int:
    with of_shared():
        await anyio.sleep(0.001 * (x % 3))
    return x


@tool
def blocks(x: int) -> int:
    with of_shared():
        time.sleep(0.002)
    return x


@tool(on_cancel="abandon")
def late(x: int) -> int:
    with of_few():
        time.sleep(0.003 * (x % 5))
    return x


@tool
def polite(x: int) -> int:
    with of_none():
        for _ in range(x % 20):
            check_cancelled()
            time.sleep(0.001)
    return x


@tool
async def outer(x: int) -> int:
    with of_none():
        return await current().execute(BLOCKS, x=x) + x


@tool
def through_the_door(x: int) -> int:
    with of_none():
        return QUICK.execute(x=x)


@tool
async def flaky(x: int) -> int:
    with of_none():
        if x % 3:
            raise OSError(x)
    return x


class Legacy:
    def execute(self, x: int) -> int:
        with of_none():
            time.sleep(0.001)
        return x


QUICK = quick.using(concurrency=SHARED, rate=RATE)
BLOCKS = blocks.using(concurrency=SHARED)
MIXED = [
    QUICK, BLOCKS, late.using(concurrency=FEW, timeout=0.006), polite, outer, through_the_door,
    flaky.using(retry=Retry(3, on=OSError, wait=0.001)), polite.using(timeout=0.01, name="polite, bounded"),
    ToolAdapter(factory=Legacy, params=["x"], instances="dedicated", name="dedicated"),
    ToolAdapter(factory=Legacy, params=["x"], instances="serial", name="serial"),
]  # fmt: skip


@tool
async def split(x: int) -> list[int]:
    return list(range(x % 4))


@tool
async def add(parts: list[int]) -> int:
    return sum(parts)


PIPELINE = Pipeline(
    "p", Phase("split", split, expand="part"), Phase("each", BLOCKS, bind={"x": "part"}),
    Phase("sum", add, collect="part", bind={"parts": "each"}), item=["x"],
)  # fmt: skip


async def a_map(manager: ServiceManager, which: Any) -> None:
    async with manager.map(which, itertools.count(), arg="x", in_flight=5) as outcomes:
        async for _ in outcomes:
            pass


async def a_run(manager: ServiceManager) -> None:
    await manager.run(PIPELINE, ({"x": x} for x in itertools.count()), in_flight=5)


async def inner_managers(managers: list[ServiceManager]) -> None:
    while True:
        manager = ServiceManager(log=None, threads=2)
        managers.append(manager)
        async with manager:
            await manager.execute(BLOCKS, x=1)
            manager.submit(QUICK, x=2)


async def work(number: int, file: Path, managers: list[ServiceManager]) -> None:
    signals = number % 3 == 1
    manager = ServiceManager(evidence=file, log=None, signals=signals, threads=8)
    managers.append(manager)
    async with manager:
        print("ready", flush=True)
        try:
            async with anyio.create_task_group() as tasks:
                for which in MIXED:
                    tasks.start_soon(a_map, manager, which)
                tasks.start_soon(a_run, manager)
                if number % 3 == 2:
                    tasks.start_soon(inner_managers, managers)
        except* ManagerClosed:  # what began after the drain
            assert signals


def patiently(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 3
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()


def wrong_in_evidence(file: Path, left: int) -> Iterator[str]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    if [record["seq"] for record in records] != list(range(1, len(records) + 1)):
        yield "the evidence has gaps"
    ended = Counter(one["call_id"] for one in records if one["event"].startswith("call.") and "status" in one)
    if records[-1]["event"] not in ("session.ended", "thread.ended"):
        yield f"the evidence ends with {records[-1]}"
    last = next(record for record in records if record["event"] == "session.ended")
    calls = last["calls"]
    if len(last.get("abandoned", ())) < left:
        yield f"{left} threads were left, and {last} does not name them"
    if len(ended) != calls or set(ended.values()) - {1}:
        yield f"{calls} calls, {len(ended)} ends, {ended.most_common(1)}"
    started = {record["call_id"] for record in records if record["event"] == "call.started"}
    session = records[0]["session_id"]
    begun = {one for inside in (of_shared, of_few, of_none) for one in inside.begun if one.startswith(session)}
    if (begun | started) - set(ended):
        yield f"{len((begun | started) - set(ended))} calls have begun and have no end"


def wrong(raised: BaseException | None, managers: list[ServiceManager], file: Path) -> Iterator[str]:
    if type(raised) is not KeyboardInterrupt:
        yield f"it raised {raised!r}"
    if not patiently(lambda: threading.active_count() == 1):
        yield f"threads: {[thread.name for thread in threading.enumerate()]}"
    # Abandoned threads have ended by now, but where the loop had ended before them nobody was told.
    left = sum(len(manager._last_session.left) for manager in managers if manager._last_session is not None)
    try:
        assert_clean(SHARED, FEW, RATE)
        assert_clean(*managers, abandoned=left)
    except AssertionError as error:
        yield str(error)
    if of_shared.peak > 3 or of_few.peak > 2:
        yield f"{of_shared.peak} were inside under limit 3, {of_few.peak} under limit 2"
    if of_shared.now or of_few.now or of_none.now:
        yield "some are still inside"
    if children := psutil.Process().children():
        yield f"processes: {children}"
    yield from wrong_in_evidence(file, left)


def main(loop: str, rounds: int) -> None:
    for number in range(rounds):
        managers: list[ServiceManager] = []
        raised: BaseException | None = None
        for inside in (of_shared, of_few, of_none):
            inside.begun.clear()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "evidence.jsonl"
            try:
                anyio.run(
                    work, number, file, managers,
                    backend="trio" if loop == "trio" else "asyncio",
                    backend_options={"use_uvloop": True} if loop == "uvloop" else {},
                )  # fmt: skip
            except BaseException as error:  # noqa: BLE001
                raised = error
            begun = sum(len(inside.begun) for inside in (of_shared, of_few, of_none))
            print(json.dumps({"wrong": list(wrong(raised, managers, file)), "begun": begun}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
