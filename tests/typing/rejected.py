"""Uses that a type checker must reject: each line that ends in the mark, and no other. Checked, never run."""

from __future__ import annotations

from pathlib import Path

from kgas_async import (
    AdaptiveLimit,
    Batcher,
    ConcurrencyLimit,
    Every,
    KGASTool,
    Outcome,
    Policy,
    Pool,
    RateLimit,
    RestartPolicy,
    Retry,
    ServiceManager,
    ToolAdapter,
    tool,
)


@tool
def load(path: Path) -> str:
    return path.read_text()


@tool
async def fetch(url: str, *, tries: int = 1) -> bytes:
    return b""


class Link(KGASTool):
    async def execute_async(self, *, path: Path, entities: list[str]) -> int:
        return len(entities)


def legacy(text: str) -> dict[str, int]:
    return {}


adapted = ToolAdapter(legacy)


async def inputs(manager: ServiceManager) -> None:
    await manager.execute(load, wrong_name=1)  # rejected
    await manager.execute(load)  # rejected
    await manager.execute(load, path=3)  # rejected
    await manager.execute(fetch, url="a", tries="2")  # rejected
    await manager.execute(Link(), path=Path("a"), entities="b")  # rejected
    await manager.outcome(load, wrong_name=1)  # rejected
    manager.submit(load, wrong_name=1)  # rejected
    await manager.execute(Path.read_text, self=Path("a"))  # rejected
    await manager.execute(Link(), path=Path("a"))  # rejected
    await manager.execute(Link(), path=Path("a"), entities=[], wrong_name=1)  # rejected
    await manager.execute(adapted, txt="a")  # rejected
    await manager.execute(adapted, text=1)  # rejected
    await manager.outcome(fetch)  # rejected
    manager.submit(fetch, url=1)  # rejected
    async with manager.map(legacy, []):  # rejected
        pass
    async with manager.map(load, [], inflight=3):  # rejected
        pass
    async for _ in manager.map(load, []):  # rejected
        pass
    with manager.map(load, []):  # rejected
        pass
    await manager.map(load, [])  # rejected


async def options(manager: ServiceManager) -> None:
    await manager.options(name="a").execute(load)  # rejected
    await manager.options(name="a").outcome(load, path=3)  # rejected
    manager.options(name="a").submit(load, wrong_name=1)  # rejected
    manager.options(priority="HIGH")  # rejected
    manager.options(urgency=1)  # rejected
    manager.options("a")  # rejected


def limits() -> None:
    Policy(concurrency=RateLimit(1))  # rejected
    Policy(rate=ConcurrencyLimit(1))  # rejected
    Policy(priority="HIGH")  # rejected
    ConcurrencyLimit(3, "host")  # rejected
    AdaptiveLimit(1)  # rejected


async def services() -> None:
    Batcher(fetch, max_size="10")  # rejected
    Batcher(load, size=10)  # rejected
    Batcher(legacy)  # rejected
    Every(60, legacy)  # rejected
    Every("60", fetch, {"url": "a"})  # rejected


async def together(manager: ServiceManager) -> None:
    await manager.gather({"a": legacy}, {"text": "a"})  # rejected
    await manager.gather({"a": adapted}, {"text": "a"}, on_error=0.5)  # rejected
    words: dict[str, str] = await manager.gather({"a": adapted}, {"text": "a"})  # rejected
    counts: dict[str, int] = await manager.gather({"a": fetch}, {"url": "a"}, on_error="collect")  # rejected
    won: Outcome[int] = await manager.race({"a": fetch}, {"url": "a"})  # rejected
    await manager.race([fetch], {"url": "a"})  # rejected
    print(words, counts, won)


async def results(manager: ServiceManager) -> None:
    number: int = await manager.execute(load, path=Path("a"))  # rejected
    text: str = await manager.execute(Link(), path=Path("a"), entities=[])  # rejected
    outcome: Outcome[int] = await manager.outcome(load, path=Path("a"))  # rejected
    print(number, text, outcome)
    async with manager.map(load, []) as outcomes:
        async for one in outcomes:
            counted: Outcome[int] = one  # rejected
            print(counted)


def policies() -> None:
    Policy(time_out=3.0)  # rejected
    Policy(5)  # rejected
    Retry(attempt=3)  # rejected
    Retry(on=BaseException)  # rejected
    ServiceManager(evidense="x")  # rejected
    Policy(breaker="5")  # rejected
    Policy(cache="1 h")  # rejected
    Policy(hedge_after="1 s")  # rejected
    Policy(circuit=None)  # rejected
    Policy(timeout="3")  # rejected
    Policy(concurrency=2.5)  # rejected
    ServiceManager(processes="2")  # rejected
    tool(offload="processes")  # rejected


def plain_calls() -> None:
    load(3)  # rejected
    load.execute(wrong_name=1)  # rejected
    Link().execute(path=Path("a"))  # rejected
    Link().execute(path=3, entities=[])  # rejected
    adapted.execute(text=3)  # rejected
    fetch(3)  # rejected


async def pools_and_restarts() -> None:
    Pool(str, sise=3)  # rejected
    Pool(str, drop_on="all")  # rejected
    RestartPolicy(strategy="all")  # rejected
    ServiceManager(on_crash="log")  # rejected
    async with Pool(str).acquire() as text:
        number: int = text  # rejected
        print(number)
