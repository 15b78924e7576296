"""The capabilities of rows.md that work now (1 to 5 and 8), each with what used to be wrong there."""

from __future__ import annotations

import functools
import sqlite3
import threading
import time
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from kgas_async import CallFailed, InvalidInputs, KGASTool, Policy, ServiceManager, ToolAdapter, tool
from kgas_async.testing import assert_clean


class Upper(KGASTool):
    """Row 1: the contract."""

    def __init__(self) -> None:
        self.cleaned: list[str] = []

    async def execute_async(self, *, text: str, wait_s: float = 0.0) -> str:
        await anyio.sleep(wait_s)
        return text.upper()

    async def cleanup_resources(self, call: Any) -> None:
        await anyio.sleep(0.01)  # would be cancelled again if it were not shielded
        self.cleaned.append(call.id)


async def test_row_1_inputs_reach_the_tool_by_name_coerced_and_checked() -> None:
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(Upper(), text="a", wait_s="0") == "A"  # type: ignore[arg-type]
        with pytest.raises(InvalidInputs, match="wait_s") as caught:
            await manager.execute(Upper(), text="a", wait_s="soon")  # type: ignore[arg-type]
    assert caught.value.tool == "Upper"
    assert caught.value.errors[0]["field"] == "wait_s"


async def test_row_1_cleanup_after_a_cancellation_completes() -> None:
    upper = Upper()
    manager = ServiceManager(log=None)
    async with manager:
        with anyio.move_on_after(0.01):
            await manager.execute(upper, text="a", wait_s=60)
    assert len(upper.cleaned) == 1
    assert_clean(manager)


def test_row_1_the_sync_door_runs_it_where_no_loop_runs() -> None:
    assert Upper().execute(text="a") == "A"


def shout(text: str, *, times: int = 1) -> str:
    return text.upper() * times


class Legacy:
    """What people have: ``execute`` with keywords."""

    def execute(self, **kwargs: Any) -> dict[str, Any]:
        if kwargs["text"] == "bad":
            return {"status": "error", "message": "bad text"}
        return {"status": "ok", "text": kwargs["text"], "thread": threading.get_ident()}


@pytest.mark.parametrize(
    "adapted",
    [
        tool(shout),
        ToolAdapter(shout),
        ToolAdapter(functools.partial(shout, times=1), name="shout"),
        ToolAdapter(Legacy(), params=["text"], returns=lambda found: found["text"].upper()),
        ToolAdapter(factory=Legacy, params=["text"], returns=lambda found: found["text"].upper()),
    ],
    ids=["tool", "function", "partial", "object", "factory"],
)
async def test_row_2_any_sync_function_or_object_is_an_async_tool(adapted: KGASTool) -> None:
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(adapted, text="a") == "A"


class OnItsThread:
    """Row 3: an SQLite connection inside refuses every thread but the one that made it."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.connection = sqlite3.connect(":memory:")
        self.connection.execute("create table t (x)")

    def execute(self, x: int) -> int:
        self.connection.execute("insert into t values (?)", (x,))
        return int(self.connection.execute("select count(*) from t").fetchone()[0])

    def __del__(self) -> None:
        self.connection.close()  # in its own thread, or this raises


async def test_row_3_a_dedicated_instance_lives_in_one_thread() -> None:
    OnItsThread.made = 0
    adapted = ToolAdapter(factory=OnItsThread, instances="dedicated")
    async with ServiceManager(log=None) as manager, manager.map(adapted, range(50), arg="x") as outcomes:
        counts = [outcome.unwrap() async for outcome in outcomes]
    assert sorted(counts) == list(range(1, 51))
    assert OnItsThread.made == 1


async def test_row_3_per_thread_instances_are_never_shared_between_threads() -> None:
    OnItsThread.made = 0
    adapted = ToolAdapter(factory=OnItsThread, instances="per_thread")
    async with ServiceManager(log=None, threads=3) as manager, manager.map(adapted, range(50), arg="x") as outcomes:
        counts = [outcome.unwrap() async for outcome in outcomes]
    assert len(counts) == 50
    assert 1 <= OnItsThread.made <= 3


async def test_row_3_a_serial_instance_is_called_once_at_a_time() -> None:
    inside = peak = 0

    class Fragile:
        def execute(self, x: int) -> int:
            nonlocal inside, peak
            inside += 1
            peak = max(peak, inside)
            time.sleep(0.001)
            inside -= 1
            return x

    adapted = ToolAdapter(Fragile(), instances="serial")
    async with ServiceManager(log=None) as manager, manager.map(adapted, range(30), arg="x") as outcomes:
        assert [outcome.unwrap() async for outcome in outcomes] == list(range(30))
    assert peak == 1


async def test_row_4_an_error_that_was_returned_is_a_failure() -> None:
    adapted = ToolAdapter(
        Legacy(),
        params=["text"],
        error_when=lambda found: found["message"] if found["status"] == "error" else None,
    )
    async with ServiceManager(log=None) as manager:
        assert (await manager.execute(adapted, text="good"))["status"] == "ok"
        with pytest.raises(CallFailed, match="bad text") as caught:
            await manager.execute(adapted, text="bad")
        statistics = manager.statistics().tools[adapted.name]
    assert caught.value.result == {"status": "error", "message": "bad text"}
    assert (statistics.succeeded, statistics.failed) == (1, 1)


class Request(BaseModel):
    text: str
    limit: int = 3


class Extractor:
    def extract(self, request: Request) -> list[str]:
        return request.text.split()[: request.limit]


async def test_row_5_the_method_and_the_shapes_are_told() -> None:
    adapted = ToolAdapter(Extractor(), method="extract", inputs=Request, returns=len)
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(adapted, text="a b c d") == 3
        assert await manager.execute(adapted, text="a b c d", limit=2) == 2


async def test_row_8_keyword_arguments_and_threads_that_end_with_the_manager() -> None:
    before = threading.active_count()
    async with ServiceManager(log=None, threads=4) as manager:
        async with manager.map(tool(shout), ({"text": "a", "times": n} for n in range(20))) as outcomes:
            assert [outcome.unwrap() async for outcome in outcomes] == ["A" * n for n in range(20)]
        assert manager.statistics().threads <= 4
    assert_clean(manager)
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:  # a thread that has left takes a moment
        time.sleep(0.001)  # noqa: ASYNC251
    assert threading.active_count() <= before


class Hostile:
    """What legacy code does to those who call it."""

    def execute(self, what: str) -> str:
        if what == "exit":
            raise SystemExit(3)
        if what == "interrupt":
            raise KeyboardInterrupt
        if what == "stop":
            raise StopIteration
        if what == "thread":
            threading.Thread(target=time.sleep, args=(0.01,), daemon=True).start()
        return what


@pytest.mark.parametrize("policy", [Policy(), Policy(timeout=5.0, concurrency=3)], ids=["plain", "bounded"])
async def test_a_hostile_tool_fails_its_own_call_only(policy: Policy) -> None:
    wishes = ["fine", "exit", "interrupt", "stop", "thread", "fine"]
    adapted = ToolAdapter(Hostile(), policy=policy)
    async with ServiceManager(log=None) as manager, manager.map(adapted, wishes, arg="what") as outcomes:
        seen = [outcome async for outcome in outcomes]
    failed = ["succeeded", "failed", "failed", "failed", "succeeded", "succeeded"]
    assert [outcome.status for outcome in seen] == failed
    assert [type(outcome.error.__cause__) for outcome in seen[1:4] if outcome.error] == [
        SystemExit,
        KeyboardInterrupt,
        StopIteration,
    ]
