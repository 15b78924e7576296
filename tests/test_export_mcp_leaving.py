"""Clients that cancel, vanish or stop, and servers that end, with calls under way: nothing hangs, nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

pytest.importorskip("mcp_types")

from mcp import Client, MCPError, StdioServerParameters

from kgas_async import MemorySink, Service, ServiceManager, current
from kgas_async.export.mcp import serve_http
from kgas_async.testing import assert_clean

from .mcp_programs import toolbox
from .test_export_mcp import ERAS, ROOT, backend_name

pytestmark = [pytest.mark.real_time, pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")]

GONE = "the MCP client has gone, or has taken its request back"


def cancelled(sink: MemorySink) -> list[tuple[str, str]]:
    return [(one["tool"], one["reason"]) for one in sink.records if one["event"] == "call.cancelled"]


@asynccontextmanager
async def served(sink: MemorySink) -> AsyncIterator[tuple[ServiceManager, str]]:
    async with ServiceManager(evidence=sink, log=None) as manager, anyio.create_task_group() as tasks:
        url = await tasks.start(partial(serve_http, manager, toolbox, port=0))
        yield manager, url
        tasks.cancel_scope.cancel()
    assert_clean(manager)


async def until_calls(manager: ServiceManager, number: int) -> None:
    with anyio.fail_after(10):
        while len(manager.calls) != number:  # noqa: ASYNC110  (other processes bring and take them)
            await anyio.sleep(0.005)


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("name", ["wait", "spin"])
async def test_a_client_that_cancels_over_http_cancels_the_call(mode: str, name: str) -> None:
    sink = MemorySink()
    async with served(sink) as (manager, url), Client(url, mode=mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, name, {"seconds": 60})
            tasks.start_soon(client.call_tool, "wait", {"seconds": 0})
            await until_calls(manager, 1)
            tasks.cancel_scope.cancel()
        await until_calls(manager, 0)
        assert not (await client.call_tool("add", {"a": 1})).is_error
    # In 2026 a client takes a request back by closing the response, and cannot say why.
    assert cancelled(sink) == [(name, "the MCP client cancelled it: caller cancelled" if mode == "legacy" else GONE)]


@pytest.mark.parametrize("mode", ERAS)
async def test_a_client_that_is_killed_cancels_its_calls_over_http(mode: str) -> None:
    sink = MemorySink()
    async with served(sink) as (manager, url):
        command = [sys.executable, "-m", "tests.mcp_programs", "call", url, mode, "wait"]
        async with await anyio.open_process(command, cwd=ROOT, stdout=None, stderr=subprocess.DEVNULL) as client:
            await until_calls(manager, 1)
            client.kill()
            await client.wait()
        await until_calls(manager, 0)
    assert cancelled(sink) == [("wait", GONE)]


@pytest.mark.parametrize("mode", ERAS)
async def test_a_call_that_somebody_else_cancels_is_an_answer(mode: str) -> None:
    answers = []
    sink = MemorySink()
    async with served(sink) as (manager, url), Client(url, mode=mode) as client:

        async def ask() -> None:
            answers.append(await client.call_tool("wait", {"seconds": 60}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until_calls(manager, 1)
            (call_id,) = manager.calls
            await manager.cancel(call_id, "an operator said so")
    assert answers[0].is_error
    assert "an operator said so" in answers[0].content[0].text
    assert cancelled(sink) == [("wait", "an operator said so")]


@pytest.mark.parametrize("mode", ERAS)
async def test_a_server_that_ends_cancels_its_calls_and_tells_its_clients(mode: str) -> None:
    sink = MemorySink()
    heard: list[Any] = []

    async def ask(client: Client) -> None:
        try:
            heard.append(await client.call_tool("wait", {"seconds": 60}))
        except MCPError as error:
            heard.append(error)

    async with ServiceManager(evidence=sink, log=None) as manager, anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def serve(*, task_status: anyio.abc.TaskStatus[str]) -> None:
            with scope:
                await serve_http(manager, toolbox, port=0, task_status=task_status)
            assert not manager.calls

        url = await tasks.start(serve)
        with anyio.fail_after(15):
            async with Client(url, mode=mode) as client, anyio.create_task_group() as asking:
                asking.start_soon(ask, client)
                await until_calls(manager, 1)
                scope.cancel()
    assert len(heard) == 1
    assert isinstance(heard[0], MCPError) or heard[0].is_error
    assert [tool for tool, _ in cancelled(sink)] == ["wait"]
    assert_clean(manager)


@pytest.mark.parametrize("mode", ERAS)
async def test_a_manager_that_drains_answers_what_is_open_and_ends_the_server(mode: str) -> None:
    answers = []
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        url = await tasks.start(partial(serve_http, manager, toolbox, port=0))
        async with Client(url, mode=mode) as client:

            async def ask() -> None:
                answers.append(await client.call_tool("wait", {"seconds": 0.2}))

            async with anyio.create_task_group() as asking:
                asking.start_soon(ask)
                await until_calls(manager, 1)
                asking.start_soon(manager.drain)
                await until_calls(manager, 0)
        # serve_http ends by itself, and so does the task group
    assert answers[0].structured_content == {"result": "waited"}


class Wire:
    """The other end of a server's stdio, line by line."""

    def __init__(self, process: anyio.abc.Process, stdout: int) -> None:
        self.process = process
        self._stdout = stdout  # a pipe of our own: closing AnyIO's end of one does not close it at once on asyncio
        self._received = b""

    async def send(self, **message: Any) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        with anyio.fail_after(20):
            while b"\n" not in self._received:
                await anyio.wait_readable(self._stdout)
                self._received += os.read(self._stdout, 65536)
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def close_stdout(self) -> None:
        if self._stdout >= 0:
            os.close(self._stdout)
            self._stdout = -1

    async def call(self, request_id: int, name: str, **arguments: Any) -> None:
        await self.send(id=request_id, method="tools/call", params={"name": name, "arguments": arguments})


@asynccontextmanager
async def wired(anyio_backend: Any, evidence: Path) -> AsyncIterator[Wire]:
    """A server over stdio that has shaken hands."""
    command = [
        sys.executable, "-W", "error", "-m", "tests.mcp_programs", "serve", backend_name(anyio_backend), str(evidence),
    ]  # fmt: skip
    reader, writer = os.pipe()
    async with await anyio.open_process(command, cwd=ROOT, stdout=writer, stderr=None) as process:
        os.close(writer)
        wire = Wire(process, reader)
        await wire.send(
            id=0, method="initialize",
            params={
                "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
            },
        )  # fmt: skip
        assert (await wire.receive())["result"]["serverInfo"]["name"] == "under test"
        await wire.send(method="notifications/initialized")
        try:
            yield wire
        finally:
            wire.close_stdout()
            if process.returncode is None:
                process.kill()


async def ended(wire: Wire) -> int:
    with anyio.fail_after(10):
        return await wire.process.wait()


def ends_of_calls(evidence: Path) -> list[tuple[str, str | None]]:
    records = [json.loads(line) for line in evidence.read_text().splitlines()]
    assert records[-1]["event"] == "session.ended"
    return [(one["event"], one.get("reason")) for one in records if one.get("tool") and one["event"] != "call.started"]


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("name", ["wait", "spin"])
async def test_the_sdks_client_cancels_over_stdio(anyio_backend: Any, tmp_path: Path, mode: str, name: str) -> None:
    evidence = tmp_path / "e.jsonl"
    arguments = ["-m", "tests.mcp_programs", "serve", backend_name(anyio_backend), str(evidence)]
    server = StdioServerParameters(command=sys.executable, args=arguments, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT)

    def is_recorded(event: str) -> bool:
        return any(f'"{event}"' in line and f'"{name}"' in line for line in evidence.read_text().splitlines())

    async def until_recorded(event: str) -> None:
        with anyio.fail_after(20):
            while not is_recorded(event):  # noqa: ASYNC110  (another process writes it)
                await anyio.sleep(0.01)

    async with Client(server, mode=mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, name, {"seconds": 60})
            await until_recorded("call.started")
            tasks.cancel_scope.cancel()
        await until_recorded("call.cancelled")
        assert not (await client.call_tool("add", {"a": 1})).is_error
    assert ("call.cancelled", "the MCP client cancelled it: caller cancelled") in ends_of_calls(evidence)


async def test_stdio_cancelled_request_cancels_the_call(anyio_backend: Any, tmp_path: Path) -> None:
    async with wired(anyio_backend, tmp_path / "e.jsonl") as wire:
        await wire.call(1, "wait", seconds=60)
        await wire.call(2, "add", a=1)
        assert (await wire.receive())["id"] == 2
        await wire.send(method="notifications/cancelled", params={"requestId": 1, "reason": "enough"})
        await wire.send(method="notifications/cancelled", params={"requestId": 77})  # unknown: ignored
        await wire.call(3, "add", a=2)
        assert (await wire.receive())["id"] == 3  # a cancelled request is not answered
        assert wire.process.stdin is not None
        await wire.process.stdin.aclose()
        assert await ended(wire) == 0
    assert ("call.cancelled", "the MCP client cancelled it: enough") in ends_of_calls(tmp_path / "e.jsonl")


async def test_stdio_client_that_vanishes_cancels_its_calls_and_ends_the_server(
    anyio_backend: Any, tmp_path: Path
) -> None:
    async with wired(anyio_backend, tmp_path / "e.jsonl") as wire:
        await wire.call(1, "wait", seconds=60)
        await wire.call(2, "spin", seconds=60)
        await wire.call(3, "add", a=1)
        await wire.receive()
        assert wire.process.stdin is not None
        await wire.process.stdin.aclose()
        assert await ended(wire) == 0
    assert sorted(ends_of_calls(tmp_path / "e.jsonl")) == [
        ("call.cancelled", GONE), ("call.cancelled", GONE), ("call.succeeded", None),
    ]  # fmt: skip


async def test_stdio_client_that_does_not_read_any_more_ends_the_server(anyio_backend: Any, tmp_path: Path) -> None:
    async with wired(anyio_backend, tmp_path / "e.jsonl") as wire:
        await wire.call(1, "wait", seconds=60)
        wire.close_stdout()
        await wire.call(2, "add", a=1)
        assert await ended(wire) == 0
    assert ("call.cancelled", GONE) in ends_of_calls(tmp_path / "e.jsonl")


async def test_stdio_lines_that_are_no_messages_are_passed_over(anyio_backend: Any, tmp_path: Path) -> None:
    async with wired(anyio_backend, tmp_path / "e.jsonl") as wire:
        assert wire.process.stdin is not None
        for line in (
            b"no json\n",
            b"\n",
            b'{"jsonrpc": "2.0"}\n',
            b'{"jsonrpc": "2.0", "id": 1, "method": "no/such"}\n',
        ):
            await wire.process.stdin.send(line)
        assert (await wire.receive())["error"]["code"] == -32601
        await wire.send(id=2, method="tools/call", params={"name": "add", "arguments": [1]})
        assert (await wire.receive())["error"]["code"] == -32602
        await wire.call(3, "boom", text="x" * 200_000)  # longer than a pipe holds, both ways
        answer = await wire.receive()
        assert answer["result"]["isError"]
        assert len(answer["result"]["content"][0]["text"]) > 200_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_stdio_server_drains_at_a_signal_while_the_client_is_silent(
    anyio_backend: Any, tmp_path: Path, number: signal.Signals
) -> None:
    async with wired(anyio_backend, tmp_path / "e.jsonl") as wire:
        await wire.call(1, "wait", seconds=0.5)
        await wire.call(2, "add", a=1)
        assert (await wire.receive())["id"] == 2
        os.kill(wire.process.pid, number)
        assert (await wire.receive())["result"]["structuredContent"] == {"result": "waited"}
        code = await ended(wire)  # with stdin open all the while
    assert code == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert [event for event, _ in ends_of_calls(tmp_path / "e.jsonl")] == ["call.succeeded", "call.succeeded"]


async def test_stdio_is_cancelled_at_once(anyio_backend: Any, tmp_path: Path) -> None:
    async with wired(anyio_backend, tmp_path / "e.jsonl") as wire:
        await wire.call(1, "wait", seconds=60)
        await wire.call(2, "add", a=1)
        await wire.receive()
        os.kill(wire.process.pid, signal.SIGINT)
        await anyio.sleep(0.1)
        os.kill(wire.process.pid, signal.SIGINT)  # the second one cancels
        assert await ended(wire) != 0
    assert "call.cancelled" in [event for event, _ in ends_of_calls(tmp_path / "e.jsonl")]


async def test_the_sdks_stdio_client_leaves_nothing(anyio_backend: Any, tmp_path: Path) -> None:
    arguments = ["-m", "tests.mcp_programs", "serve", backend_name(anyio_backend), str(tmp_path / "e.jsonl")]
    server = StdioServerParameters(command=sys.executable, args=arguments, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT)
    async with Client(server) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "wait", {"seconds": 60})
        assert not (await client.call_tool("add", {"a": 1})).is_error
        tasks.cancel_scope.cancel()
    assert ("call.cancelled", "the MCP client cancelled it: caller cancelled") in ends_of_calls(tmp_path / "e.jsonl")


@pytest.mark.parametrize("how", ["normally", "by-an-error"])
async def test_a_server_ends_with_its_manager(how: str) -> None:
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:  # outlives the manager
            manager = ServiceManager(log=None, grace=0.1)
            try:
                async with manager:
                    url = await tasks.start(partial(serve_http, manager, toolbox, port=0))
                    tasks.start_soon(ask_in_vain, url)
                    await until_calls(manager, 1)
                    if how == "by-an-error":
                        raise ValueError("of the body")
            except ValueError:
                assert how == "by-an-error"
            assert_clean(manager)


async def ask_in_vain(url: str) -> None:
    async with Client(url) as client:
        with suppress(MCPError):  # the connection was closed
            assert (await client.call_tool("wait", {"seconds": 60})).is_error


async def test_a_server_may_be_a_service() -> None:
    class Web(Service):
        url = ""

        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            async with anyio.create_task_group() as tasks:
                self.url = await tasks.start(partial(serve_http, current(), toolbox, port=0))
                yield
                tasks.cancel_scope.cancel()

    web = Web()
    with anyio.fail_after(10):
        async with ServiceManager(web, log=None) as manager, Client(web.url) as client:
            assert not (await client.call_tool("add", {"a": 1})).is_error
    assert_clean(manager)
