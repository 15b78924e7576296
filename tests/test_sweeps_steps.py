"""The session is cancelled at each step that its tools and sources make in the manager's own workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import Phase, Pipeline, ServiceManager, current, tool

from .loops import virtual
from .sweep_world import World, async_source


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


class Striker:
    """Cancels a scope at the n-th of the steps that are told to it."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.scope = anyio.CancelScope()

    async def step(self) -> None:
        self.left -= 1
        if self.left == -1:
            self.scope.cancel()
        await checkpoint()


class Session:
    """Tools that tell their steps, used in one of several ways."""

    def __init__(self, world: World, striker: Striker) -> None:
        self.world = world

        @tool
        async def steps(x: int) -> int:
            await striker.step()
            await striker.step()
            return x

        @tool
        async def split(steps: int) -> AsyncIterator[int]:
            async def elements() -> AsyncIterator[int]:
                for n in range(3):
                    await striker.step()
                    yield n

            return elements()

        @tool
        async def merged(parts: list[int]) -> int:
            await striker.step()
            return sum(parts)

        @tool
        async def outer(x: int) -> int:
            async with current().map(steps, async_source(world, x), in_flight=2) as outcomes:
                return sum([outcome.unwrap() async for outcome in outcomes])

        self.steps, self.outer = steps, outer
        self.pipeline = Pipeline(
            "p",
            Phase("steps", steps),
            Phase("split", split, expand="element"),
            Phase("again", steps.using(name="again"), bind={"x": "element"}),
            Phase("merged", merged, bind={"parts": "again"}, collect="element"),
            Phase("all", merged.using(name="all"), bind={"parts": "merged"}, collect=True),
            item=["x"],
        )

    async def map(self, manager: ServiceManager) -> None:
        async with manager.map(self.steps, async_source(self.world, 5), in_flight=2) as outcomes:
            assert [outcome.unwrap() async for outcome in outcomes] == list(range(5))

    async def run(self, manager: ServiceManager) -> None:
        report = await manager.run(self.pipeline, async_source(self.world, 3), in_flight=2)
        assert report.results == {"all": 9}

    async def nested(self, manager: ServiceManager) -> None:
        assert await manager.execute(self.outer, x=3) == 3


@pytest.mark.parametrize("use", [Session.map, Session.run, Session.nested])
async def test_cancelling_the_session_at_each_step_of_its_tools(use: Any, tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(1_000):
        striker = Striker(number)
        with striker.scope:
            async with world.manager() as manager:
                await use(Session(world, striker), manager)
        world.check(number)
        if striker.left >= 0:
            assert number > 5
            return
    pytest.fail("it never ended")
