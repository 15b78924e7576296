"""More sweeps: what is used without a call, what waits for calls, a manager that is measured; and that none is missing.

`SWEPT` says where each public coroutine is cancelled at each of its suspension points. A new one must be added there.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from anyio.lowlevel import checkpoint

import kgas_async
import kgas_async.testing
from kgas_async import CallCancelled, PerformanceMonitor, PipelineError, RateLimit
from kgas_async.testing import FakeService, assert_clean, check_service, check_tool, virtual_backends

from .sweep_world import World, async_source
from .test_sweeps import Thorough, double, forever, in_thread, swept, world  # noqa: F401  (a fixture)


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


# --- without a call


async def test_limits_that_are_taken_directly(world: World) -> None:  # noqa: F811
    rate = RateLimit(1, burst=1)

    async def hold(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with world.limit:
            task_status.started()
            await anyio.sleep(1)

    async def use() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(world.limit.total):
                await group.start(hold)
            async with world.limit:  # waits for one of them
                await checkpoint()
            await world.limit.acquire()
            world.limit.release()
            for _ in range(2):
                async with rate, world.rate:
                    await checkpoint()
            await rate.acquire()

    await swept(world, use, least=6)
    assert_clean(rate)


async def test_a_sync_tool_that_is_awaited_directly(world: World) -> None:  # noqa: F811
    async def use() -> None:
        assert await in_thread.execute_async(x=2) == 4
        assert await double.execute_async(x=2) == 4

    await swept(world, use, least=2)


# --- waiting for calls


async def test_waiting_for_calls_in_every_way(world: World) -> None:  # noqa: F811
    async def use() -> None:
        async with world.manager() as manager:
            endless = manager.submit(forever)
            assert await endless.wait(1) is False
            call = manager.submit(double, x=1)
            assert (await call.outcome()).value == 2
            assert await call.wait() is True
            assert (await manager.outcome(double, x=2)).value == 4
            assert (await manager.options(name="one").outcome(in_thread, x=2)).value == 4
            endless.cancel()
            with pytest.raises(CallCancelled):
                await endless.result()

    await swept(world, use, least=6)


async def test_outcomes_that_are_taken_several_at_a_time(world: World) -> None:  # noqa: F811
    async def use() -> None:
        async with world.manager() as manager, manager.map(double, async_source(world, 5), in_flight=2) as outcomes:
            values: list[Any] = []
            while some := await outcomes.take_some(2):
                values += [outcome.value for outcome in some]
            assert values == [0, 2, 4, 6, 8]

    await swept(world, use, least=4)


async def test_ending_maps_between_their_calls(world: World) -> None:  # noqa: F811
    async def slow_source() -> AsyncIterator[dict[str, int]]:
        async with aclosing(async_source(world, 10**9)) as numbers:
            async for inputs in numbers:
                await anyio.sleep(1)
                yield inputs

    async def use() -> None:
        async with world.manager() as manager, anyio.create_task_group() as group:

            async def consume() -> None:
                try:
                    async with manager.map(double, slow_source(), in_flight=2) as outcomes:
                        async for _ in outcomes:
                            pass
                except PipelineError:
                    return

            group.start_soon(consume)
            await anyio.sleep(1.5)
            assert await manager.cancel()
            group.start_soon(consume)
            await anyio.sleep(1.5)
            await manager.drain()

    await swept(world, use, least=4)


# --- a manager that is measured, and the testing kit itself


async def test_a_manager_with_a_monitor(world: World) -> None:  # noqa: F811
    monitor = PerformanceMonitor(slow=0.5)

    async def use() -> None:
        async with world.manager(monitor=monitor) as manager, monitor.track("all"):
            async with monitor.track("thorough"):
                await manager.execute(Thorough(world), x=1)
            await manager.execute(in_thread, x=1)

    await swept(world, use, least=8)
    report = monitor.report()
    assert {name: figures.running for name, figures in (report.tools | report.blocks).items()} == {
        "Thorough": 0, "in_thread": 0, "all": 0, "thorough": 0,
    }  # fmt: skip
    assert report.active == ()
    assert report.blocks["all"].cancelled > report.blocks["all"].succeeded > 0


async def test_checking_a_tool_and_a_service_that_does_as_it_is_told(world: World) -> None:  # noqa: F811
    async def use() -> None:
        log: list[tuple[str, str]] = []
        try:
            async with world.manager(FakeService(start_s=1, stop_s=1, log=log)):
                await check_tool(double, sweeps=False, x=1)
                await check_service(FakeService(start_s=1), sweeps=False)
        finally:
            assert [event for _, event in log] in ([], ["started"], ["started", "stopped"])

    await swept(world, use, least=4)


# --- that none is missing

CALLS: Final = "test_sweeps.py::test_an_async_call_with_every_policy"
NAMED: Final = "test_sweeps.py::test_named_calls_that_replace_each_other"
WAITING: Final = "test_sweeps_apart.py::test_waiting_for_calls_in_every_way"
LIMITS: Final = "test_sweeps_apart.py::test_limits_that_are_taken_directly"
BATCHES: Final = "test_sweeps.py::test_calls_that_are_coalesced"
SERVICES: Final = "test_sweeps.py::test_start_and_stop_of_services"
TOGETHER: Final = "test_sweeps.py::test_gather_and_race"
MAPS: Final = "test_sweeps.py::test_a_map"
RUNS: Final = "test_sweeps.py::test_a_run_and_a_stream_left_early"
ENDING: Final = "test_sweeps.py::test_draining_and_cancelling"
KIT: Final = "test_sweeps_apart.py::test_checking_a_tool_and_a_service_that_does_as_it_is_told"
DIRECT: Final = "test_sweeps_apart.py::test_a_sync_tool_that_is_awaited_directly"
ENTERED: Final = "test_sweeps_limits.py::test_code_that_enters_a_limit"
CACHED: Final = "test_sweeps_resilience.py::test_a_cache_with_calls_that_wait_for_one_flight"
ACQUIRED: Final = "test_sweeps_services.py::test_acquiring"
MCP_SOURCE: Final = "test_export_mcp_sweep.py::test_a_source"

SWEPT: Final = {
    "AdaptiveLimit.__aenter__": ENTERED,
    "AdaptiveLimit.__aexit__": ENTERED,
    "AdaptiveLimit.acquire": ENTERED,
    "AdaptiveLimit.wait_for_token": ENTERED,
    "BatchedTool.execute_async": BATCHES,
    "Batcher.__call__": BATCHES,
    "Batcher.running": BATCHES,
    "CacheStore.get": CACHED,
    "CacheStore.set": CACHED,
    "Call.outcome": WAITING,
    "Call.result": WAITING,
    "Call.wait": WAITING,
    "CallEvents.__anext__": "test_sweeps.py::test_reading_the_events_of_a_call",
    "CallOptions.execute": NAMED,
    "CallOptions.outcome": NAMED,
    "ConcurrencyLimit.__aenter__": LIMITS,
    "ConcurrencyLimit.__aexit__": LIMITS,
    "ConcurrencyLimit.acquire": LIMITS,
    "ConcurrencyLimit.wait_for_token": LIMITS,
    "Every.running": "test_sweeps.py::test_a_service_that_runs_a_tool_again_and_again",
    "FakeService.running": KIT,
    "KGASTool.cleanup_resources": CALLS,
    "KGASTool.execute_async": CALLS,
    "KGASTool.validate_inputs": CALLS,
    "KeyTokens.__aenter__": ENTERED,
    "KeyTokens.__aexit__": ENTERED,
    "KeyTokens.acquire": ENTERED,
    "KeyTokens.wait_for_token": ENTERED,
    "Lease.__aenter__": ACQUIRED,
    "Lease.__aexit__": ACQUIRED,
    "McpToolSource.health": MCP_SOURCE,
    "McpToolSource.running": MCP_SOURCE,
    "MemoryLimit.__aenter__": ENTERED,
    "MemoryLimit.__aexit__": ENTERED,
    "MemoryLimit.acquire": ENTERED,
    "MemoryLimit.wait_for_token": ENTERED,
    "MemoryStore.get": CACHED,
    "MemoryStore.set": CACHED,
    "OutcomeStream.__anext__": MAPS,
    "OutcomeStream.take_some": "test_sweeps_apart.py::test_outcomes_that_are_taken_several_at_a_time",
    "PerformanceMonitor.track": "test_sweeps_apart.py::test_a_manager_with_a_monitor",
    "Pool.health": "test_sweeps_services.py::test_asking_a_pool_for_its_health",
    "Pool.running": "test_sweeps_services.py::test_the_lifetime_of_a_pool_from_inside",
    "RateLimit.__aenter__": LIMITS,
    "RateLimit.__aexit__": LIMITS,
    "RateLimit.acquire": LIMITS,
    "Service.health": MCP_SOURCE,
    "Service.running": SERVICES,
    "ServiceManager.__aenter__": SERVICES,
    "ServiceManager.__aexit__": SERVICES,
    "ServiceManager.cancel": ENDING,
    "ServiceManager.drain": ENDING,
    "ServiceManager.execute": CALLS,
    "ServiceManager.gather": TOGETHER,
    "ServiceManager.health": "test_sweeps_services.py::test_health",
    "ServiceManager.map": MAPS,
    "ServiceManager.outcome": WAITING,
    "ServiceManager.race": TOGETHER,
    "ServiceManager.run": RUNS,
    "ServiceManager.start": "test_sweeps.py::test_a_start_of_services_that_fails",
    "ServiceManager.stream": RUNS,
    "ToolAdapter.execute_async": DIRECT,
    "check_service": "test_sweeps_services.py::test_checking_a_service",
    "check_tool": KIT,
    "http_app": "test_export_mcp_sweep.py::test_http_app",
    "mcp_tools": "test_export_mcp_sweep.py::test_a_remote_call",
    "serve_http": "test_export_mcp_sweep.py::test_serve_http",
    "serve_stdio": "test_export_mcp_sweep.py::test_serve_stdio",
    "sweep": "test_testing_sweep.py::test_who_sweeps_can_be_cancelled",
}


def public_things() -> Iterator[tuple[str, Any]]:
    mcp = pytest.importorskip("kgas_async.export.mcp")
    for module in (kgas_async, kgas_async.testing, mcp):
        yield from ((name, getattr(module, name)) for name in module.__all__)


def is_awaited(thing: Any) -> bool:
    """Whether it is a coroutine function, or gives what is for ``async with``."""
    plain = inspect.unwrap(thing)
    if inspect.iscoroutinefunction(thing) or inspect.isasyncgenfunction(plain):
        return True
    returns = str(getattr(plain, "__annotations__", {}).get("return", ""))
    return returns.partition("[")[0] in ("Opening", "Block")


def public_coroutines() -> Iterator[str]:
    seen: set[Callable[..., Any]] = set()
    for name, thing in sorted(public_things(), key=lambda pair: len(getattr(pair[1], "__mro__", ()))):
        if not inspect.isclass(thing):
            if inspect.isfunction(thing) and is_awaited(thing):
                yield name
            continue
        for attribute in dir(thing):
            method = getattr(thing, attribute)
            if attribute.startswith("_") and attribute not in ("__aenter__", "__aexit__", "__anext__", "__call__"):
                continue
            inherited = any(
                base is not thing and getattr(base, attribute, None) is method
                for base in thing.__mro__
                if base.__module__ == "kgas_async"  # a public one, where it is counted
            )
            if inspect.isfunction(method) and not inherited and is_awaited(method) and method not in seen:
                yield f"{name}.{attribute}"


def test_every_public_coroutine_is_swept() -> None:
    assert set(public_coroutines()) == set(SWEPT)


def test_the_sweeps_that_are_named_are_there() -> None:
    for file, name in (place.split("::") for place in set(SWEPT.values())):
        tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
        found = [one for one in tree.body if isinstance(one, ast.AsyncFunctionDef) and one.name == name]
        assert found, f"{file} has no {name}"
        calls = {ast.unparse(one.func) for one in ast.walk(found[0]) if isinstance(one, ast.Call)}
        assert calls & {"swept", "sweep"}, f"{name} sweeps nothing"
