"""The MCP coroutines, cancelled at each suspension point in turn: no call, task, socket or descriptor is left."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio

pytest.importorskip("mcp_types")

from mcp import Client
from mcp.server.lowlevel import Server

from kgas_async import ServiceManager
from kgas_async.export._mcp_serving import serving
from kgas_async.export.mcp import McpToolSource, http_app, mcp_tools, serve_http, serve_stdio
from kgas_async.testing import assert_clean, sweep

from .mcp_programs import toolbox

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


class World:
    """Managers that were opened, and what must be as before when they were left."""

    def __init__(self) -> None:
        self.managers: list[ServiceManager] = []
        self.before = self._look()

    def manager(self) -> ServiceManager:
        self.managers.append(ServiceManager(log=None, grace=1.0))
        return self.managers[-1]

    def _look(self) -> tuple[int, list[str], os.stat_result, os.stat_result]:
        descriptors = [entry.name for entry in Path("/dev/fd").iterdir()]
        return len(anyio.get_running_tasks()), descriptors, os.fstat(0), os.fstat(1)

    async def check(self, point: int) -> None:
        for manager in self.managers:
            assert_clean(manager)
        with anyio.fail_after(5):
            while len(anyio.get_running_tasks()) > self.before[0]:  # noqa: ASYNC110  (uvicorn's tasks end on their own)
                await anyio.sleep(0.01)
        now = self._look()
        assert [entry.st_ino for entry in now[2:]] == [entry.st_ino for entry in self.before[2:]]
        assert len(now[1]) <= len(self.before[1]) + 1, f"point {point} left descriptors"


async def swept(world: World, make: Callable[[], Awaitable[object]], least: int = 3) -> None:
    modes: list[Any] = ["scope"] if sniffio.current_async_library() == "trio" else ["scope", "native"]
    for mode in modes:
        assert await sweep(make, check=world.check, mode=mode, timeout_s=60) >= least


@asynccontextmanager
async def server_of(world: World) -> AsyncIterator[Server[Any]]:
    """The SDK's server in this process, without a transport."""
    async with (
        world.manager() as manager,
        serving(manager, toolbox, name="swept", version="", instructions=None) as one,
    ):
        yield one.tools.server


async def test_serve_http() -> None:
    world = World()

    async def make() -> None:
        async with world.manager() as manager:
            with anyio.move_on_after(0.05):
                await serve_http(manager, toolbox, port=0)

    await swept(world, make)


async def test_http_app() -> None:
    world = World()

    async def make() -> None:
        async with world.manager() as manager, http_app(manager, toolbox):
            await anyio.lowlevel.checkpoint()

    await swept(world, make)


@pytest.fixture
def silent_client() -> Iterator[None]:
    """Pipes in place of descriptors 0 and 1, with somebody at the other end who says nothing."""
    kept = os.dup(0), os.dup(1)
    stdin, far_stdin = os.pipe()
    far_stdout, stdout = os.pipe()
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    yield
    os.dup2(kept[0], 0)
    os.dup2(kept[1], 1)
    for descriptor in (*kept, stdin, far_stdin, stdout, far_stdout):
        os.close(descriptor)


@pytest.mark.usefixtures("silent_client")
async def test_serve_stdio() -> None:
    world = World()

    async def make() -> None:
        async with world.manager() as manager:
            with anyio.move_on_after(0.05):
                await serve_stdio(manager, toolbox)

    await swept(world, make)
    async with world.manager() as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(serve_stdio, manager, toolbox)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="served already"):
            await serve_stdio(manager, toolbox)
        tasks.cancel_scope.cancel()


# By the handshake, so over streams: the SDK's direct connection of 2026 to a server in the same process makes an error
# "Connection closed" of a cancellation that reaches both of its ends.
async def test_a_remote_call() -> None:
    world = World()

    async def make() -> None:
        async with server_of(world) as server, Client(server, mode="legacy") as client, world.manager() as manager:
            tools = await mcp_tools(client)
            assert await manager.execute(tools["count_async"], to=3) == {"result": 3}
            assert await manager.execute(tools["add"], a=1) == {"result": 2}

    await swept(world, make, 10)


async def test_a_source() -> None:
    world = World()

    async def make() -> None:
        async with server_of(world) as server:
            source = McpToolSource(partial(Client, server, mode="legacy"))
            async with world.manager() as manager:
                await manager.start(source)
                await source.health()
                assert await manager.execute(source.toolbox["add"], a=1) == {"result": 2}

    await swept(world, make, 5)
