"""Uses that a type checker must accept, with the types it must infer. Checked, never run; see tests/test_typing.py."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from kgas_async import Call, KGASTool, Outcome, Policy, ServiceManager, ToolAdapter, tool


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


adapted = ToolAdapter(legacy, offload="thread")


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


async def a_copy_is_typed_like_its_original(manager: ServiceManager) -> None:
    assert_type(await manager.execute(Link().using(timeout=1.0), path=Path("a"), entities=[]), int)


async def calling_a_tool_is_calling_the_function() -> None:
    assert_type(load(Path("a")), str)
    assert_type(await fetch("a"), bytes)


def the_sync_door_is_typed() -> None:
    assert_type(Link().execute(path=Path("a"), entities=[]), int)
    assert_type(load.execute(path=Path("a")), str)
