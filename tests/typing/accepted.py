"""Uses that a type checker must accept, with the types it must infer. Checked, never run; see tests/test_typing.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

from kgas_async import (
    AdaptiveLimit,
    Batcher,
    Call,
    CallOptions,
    CallProgress,
    CallState,
    ConcurrencyLimit,
    Every,
    KGASTool,
    LimitStatistics,
    MemoryLimit,
    Outcome,
    OutcomeStream,
    Policy,
    Priority,
    RateLimit,
    ServiceManager,
    ToolAdapter,
    current,
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
