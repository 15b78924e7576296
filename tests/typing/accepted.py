"""Uses that a type checker must accept, with the types it must infer. Checked, never run; see tests/test_typing.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, assert_type

from kgas_async import (
    AdaptiveLimit,
    Batcher,
    Call,
    CallOptions,
    CallProgress,
    CallState,
    ConcurrencyLimit,
    Every,
    HealthReport,
    KGASTool,
    Lease,
    LimitStatistics,
    MemoryLimit,
    Outcome,
    OutcomeStream,
    Policy,
    Pool,
    Priority,
    RateLimit,
    RestartPolicy,
    Service,
    ServiceHealth,
    ServiceManager,
    ToolAdapter,
    current,
    exponential,
    progress,
    tool,
)


@tool
def load(path: Path) -> str:
    return path.read_text()


@tool(policy=Policy(timeout=5.0))
async def fetch(url: str, *, tries: int = 1) -> bytes:
    return b""


class Link(KGASTool):
    async def execute_async(self, *, path: Path, entities: list[str]) -> int:
        return len(entities)


def legacy(text: str) -> dict[str, int]:
    return {}


async def legacy_async(text: str) -> float:
    return 0.0


class LegacyObject:
    def execute(self, **inputs: object) -> dict[str, int]:
        return {}


adapted = ToolAdapter(legacy, offload="thread")
adapted_async = ToolAdapter(legacy_async)


async def inputs_and_results_are_inferred(manager: ServiceManager) -> None:
    assert_type(await manager.execute(load, path=Path("a")), str)
    assert_type(await manager.execute(fetch, url="a"), bytes)
    assert_type(await manager.execute(fetch, url="a", tries=2), bytes)
    assert_type(await manager.execute(Link(), path=Path("a"), entities=[]), int)
    assert_type(await manager.execute(adapted, text="a"), dict[str, int])
    assert_type(await manager.outcome(load, path=Path("a")), Outcome[str])
    assert_type((await manager.outcome(load, path=Path("a"))).unwrap(), str)
    assert_type(manager.submit(load, path=Path("a")), Call[str])
    assert_type(await manager.submit(load, path=Path("a")).result(), str)
    assert_type(await manager.execute(adapted_async, text="a"), float)
    assert_type(await manager.outcome(Link(), path=Path("a"), entities=[]), Outcome[int])
    assert_type(manager.submit(adapted, text="a"), Call[dict[str, int]])
    await manager.execute(ToolAdapter(LegacyObject(), params=["text"]), text="a")  # nobody knows its types
    await manager.execute(ToolAdapter(factory=LegacyObject, instances="per_thread", params=["text"]), text="a")


async def outcomes_of_a_map_are_inferred(manager: ServiceManager) -> None:
    async with manager.map(load, [{"path": Path("a")}]) as loaded:
        assert_type(loaded, OutcomeStream[str])
        async for outcome in loaded:
            assert_type(outcome, Outcome[str])
            assert_type(outcome.value, str | None)
            assert_type(outcome.unwrap(), str)
    async with manager.map(Link(), [], in_flight=3) as linked:
        assert_type(linked, OutcomeStream[int])
    async with manager.map(adapted, ["a"], arg="text") as counted:
        assert_type(counted, OutcomeStream[dict[str, int]])


async def inside_a_tool_the_manager_is_known() -> None:
    assert_type(current(), ServiceManager)
    assert_type(await current().execute(load, path=Path("a")), str)


async def a_copy_is_typed_like_its_original(manager: ServiceManager) -> None:
    assert_type(await manager.execute(Link().using(timeout=1.0), path=Path("a"), entities=[]), int)


async def calling_a_tool_is_calling_the_function() -> None:
    assert_type(load(Path("a")), str)
    assert_type(await fetch("a"), bytes)


def the_sync_door_is_typed() -> None:
    assert_type(Link().execute(path=Path("a"), entities=[]), int)
    assert_type(load.execute(path=Path("a")), str)
    assert_type(fetch.execute(url="a", tries=2), bytes)
    assert_type(adapted.execute(text="a"), dict[str, int])


async def results_of_gather_and_race_are_inferred(manager: ServiceManager) -> None:
    assert_type(await manager.gather({"a": load, "b": load}, {"path": Path("a")}), dict[str, str])
    assert_type(await manager.gather({"a": load}, {"path": Path("a")}, on_error="collect"), dict[str, Outcome[str]])
    assert_type(await manager.gather({"a": load}, {}, "collect"), dict[str, Outcome[str]])
    assert_type(await manager.race({"a": fetch, "b": fetch}, {"url": "a"}), Outcome[bytes])
    await manager.gather({"a": load, "b": Link()}, {"path": Path("a"), "entities": []})
    await manager.race({"a": load, "b": Link()}, {"path": Path("a"), "entities": []})


async def a_view_with_options_is_typed_like_the_manager(manager: ServiceManager) -> None:
    view = manager.options(name="nightly", replace=True)
    assert_type(view, CallOptions)
    assert_type(await view.execute(load, path=Path("a")), str)
    assert_type(await view.outcome(Link(), path=Path("a"), entities=[]), Outcome[int])
    assert_type(manager.find("nightly"), Call[Any] | None)
    assert_type(view.submit(fetch, url="a"), Call[bytes])


async def limits_and_priorities_are_typed(manager: ServiceManager) -> None:
    limit = ConcurrencyLimit(5, key="host", per_key=2, max_queue=10)
    limit.total = 6
    Policy(concurrency=[limit, AdaptiveLimit(1, 10, on=(OSError, ValueError)), MemoryLimit(1 << 30)], priority=5)
    Policy(concurrency=AdaptiveLimit(1, 10, on=lambda error: "503" in str(error)), priority=Priority.HIGH)
    Policy(rate=RateLimit(5, key=lambda inputs: inputs["host"]))
    async with limit, limit.for_key("a"), RateLimit(1, key="host").for_key("a"):
        assert_type(limit.statistics(), LimitStatistics)
    assert_type(await manager.options(priority=Priority.CRITICAL).execute(load, path=Path("a")), str)


async def events_of_a_call_are_typed(manager: ServiceManager) -> None:
    call = manager.submit(load, path=Path("a"))
    async for event in call.events():
        assert_type(event, CallProgress | CallState)
        match event:
            case CallProgress(done=done):
                assert_type(done, float)
            case CallState():
                assert_type(event.status, str)
    assert_type(call.progress, CallProgress | None)
    progress(1, 2.5, "half", anything=object())


@tool
def embed(texts: list[str]) -> list[float]:
    return [0.0 for _ in texts]


@tool
async def embed_some(texts: list[str]) -> list[float | Exception]:
    return [0.0 for _ in texts]


async def a_batcher_has_the_type_of_one_result(manager: ServiceManager) -> None:
    assert_type(Batcher(embed), Batcher[float])
    batcher = Batcher(embed_some, max_size=10)
    assert_type(batcher, Batcher[float])
    assert_type(await batcher(texts="a"), float)
    assert_type(await manager.execute(batcher.tool, texts="a"), float)
    assert_type(batcher.tool.execute(texts="a"), float)
    Every(60, load, {"path": Path("a")}, overlap=True)


@tool(offload="process", on_cancel="wait", max_memory=2**30)
def crunch(number: int) -> list[int]:
    return [number]


async def tools_in_processes_are_typed_as_in_threads() -> None:
    async with ServiceManager(processes=2) as manager:
        assert_type(await manager.execute(crunch, number=3), list[int])
        assert_type(manager.statistics().processes, int)
    assert_type(crunch(3), list[int])


class Session:
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...


async def connect(host: str = "") -> bytes:
    return host.encode()


@asynccontextmanager
async def connected() -> AsyncIterator[bytes]:
    yield b""


def load_model(name: str) -> list[float]:
    return [len(name)]


async def pools_have_the_type_of_their_resources() -> None:
    assert_type(Pool(connect, 3, timeout=None), Pool[bytes])
    assert_type(Pool(connected), Pool[bytes])
    assert_type(Pool(Session), Pool[Session])
    models = Pool(load_model, users=None, max_bytes=10, cost=len, close=list.clear)
    assert_type(models, Pool[list[float]])
    assert_type(models.acquire("small"), Lease[list[float]])
    async with models.acquire("small") as model:
        assert_type(model, list[float])
        models.drop(model)
    with models.acquire("small") as model:
        assert_type(model, list[float])
    assert_type(models.statistics().open, int)


class Restarted(Service):
    restart = RestartPolicy(3, per=60, wait=exponential(1.0), strategy="one_for_one", ill_after=3)
    health_every = 30.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


async def health_is_typed(manager: ServiceManager) -> None:
    report = await manager.health()
    assert_type(report, HealthReport)
    assert_type(report["db"], ServiceHealth)
    assert_type(report.ok, bool)
