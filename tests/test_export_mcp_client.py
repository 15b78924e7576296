"""The tools of MCP servers as tools of ours: schema, errors, cancellation; by a session or a service."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp_types")

import mcp_types as types
from mcp import Client, MCPError, StdioServerParameters
from mcp.server.lowlevel import Server

from kgas_async import (
    CallFailed,
    CallProgress,
    CallTimeout,
    InvalidInputs,
    MemorySink,
    Phase,
    Pipeline,
    ServiceManager,
    ServiceNotRunning,
    ServiceStartFailed,
    ToolAdapter,
    Toolbox,
    tool,
)
from kgas_async.export.mcp import McpToolError, McpToolSource, mcp_tools, serve_http
from kgas_async.testing import assert_clean

from .mcp_programs import Kind, toolbox
from .test_export_mcp import ERAS, ROOT, backend_name

pytestmark = [pytest.mark.real_time, pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")]


@asynccontextmanager
async def served(sink: MemorySink | None = None) -> AsyncIterator[tuple[ServiceManager, str]]:
    """A server of ours, with its manager."""
    async with ServiceManager(log=None, evidence=sink) as manager, anyio.create_task_group() as tasks:
        yield manager, await tasks.start(partial(serve_http, manager, toolbox, port=0))
        tasks.cancel_scope.cancel()


def ends(sink: MemorySink, name: str) -> list[str]:
    return [one["event"] for one in sink.records if one.get("tool") == name and one["event"] != "call.started"]


def own_server(anyio_backend: Any, tmp_path: Path) -> StdioServerParameters:
    arguments = ["-m", "tests.mcp_programs", "serve", backend_name(anyio_backend), str(tmp_path / "e.jsonl")]
    return StdioServerParameters(command=sys.executable, args=arguments, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT)


SEARCH = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "minLength": 2},
        "max-results": {"type": "integer"},
        "where": {"$ref": "#/$defs/Place"},
    },
    "required": ["query"],
    "$defs": {"Place": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}},
    "x-of-theirs": True,
}


class Foreign:
    """An MCP server that is none of ours, in this process."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.cancelled = anyio.Event()
        self.began = anyio.Event()
        self.server: Server[Any] = Server("foreign", on_list_tools=self._list, on_call_tool=self._call)

    async def _list(self, context: Any, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        pages = {
            None: types.Tool(name="search", description="Line one\nline two", input_schema=SEARCH),
            "2": types.Tool(
                name="slow", input_schema={"type": "object"}, annotations=types.ToolAnnotations(read_only_hint=True)
            ),
            "3": types.Tool(name="odd", input_schema={"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}),
        }
        cursor = params.cursor if params is not None else None
        following = {None: "2", "2": "3", "3": None}[cursor]
        return types.ListToolsResult(tools=[pages[cursor]], next_cursor=following)

    async def _call(self, context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        self.asked.append(params.arguments or {})
        if params.name == "slow":
            self.began.set()
            try:
                await anyio.sleep(60)
            except anyio.get_cancelled_exc_class():
                self.cancelled.set()
                raise
        if params.arguments == {"query": "fail"}:
            return types.CallToolResult(content=[types.TextContent(type="text", text="no luck")], is_error=True)
        if params.arguments == {"query": "picture"}:
            picture = types.ImageContent(type="image", data="AAAA", mime_type="image/png")
            return types.CallToolResult(content=[types.TextContent(type="text", text="see"), picture])
        if params.arguments == {"query": "refuse"}:
            raise MCPError(-32000, "not today")
        return types.CallToolResult(
            content=[types.TextContent(type="text", text="a"), types.TextContent(type="text", text="b")]
        )


@asynccontextmanager
async def foreign(mode: str = "auto", **options: Any) -> AsyncIterator[tuple[Foreign, Toolbox, ServiceManager]]:
    server = Foreign()
    async with Client(server.server, mode=mode) as client, ServiceManager(log=None) as manager:
        yield server, await mcp_tools(client, **options), manager
    assert_clean(manager)


async def test_tools_come_with_name_description_and_schema_as_they_are() -> None:
    async with foreign() as (_, tools, _manager):
        assert list(tools) == ["search", "slow", "odd"]  # of three pages
        assert tools["search"].description == "Line one\nline two"
        assert tools["search"].input_schema() == SEARCH
        assert tools.schemas("search")[0]["parameters"] == SEARCH
        assert tools["search"].output_schema() == {}
        assert [one.idempotent for one in tools.values()] == [False, True, False]


async def test_a_wrapped_tool_keeps_the_servers_schema() -> None:
    async with foreign() as (server, tools, manager):
        find = ToolAdapter(tools["search"], name="find", returns=str)
        assert find.input_schema() == SEARCH
        assert (find.output_schema(), ToolAdapter(tools["slow"], name="b").output_schema()) == ({"type": "string"}, {})
        with pytest.raises(InvalidInputs, match="tool 'find'"):
            await manager.execute(find, query=3)
        assert await manager.execute(find, query="xy") == "a\nb"
        assert server.asked == [{"query": "xy"}]


@pytest.mark.parametrize("mode", ERAS)
async def test_values_are_text_blocks_or_structured_content(mode: str) -> None:
    async with foreign(mode) as (_, tools, manager):
        assert await manager.execute(tools["search"], query="xy") == "a\nb"
        blocks = await manager.execute(tools["search"], query="picture")
        assert [block["type"] for block in blocks] == ["text", "image"]
        assert manager.statistics().tools["search"].succeeded == 2
    async with served() as (manager, url), Client(url, mode=mode) as client:
        remote = await mcp_tools(client, prefix="far.")
        assert await manager.execute(remote["far.add"], a=2) == {"result": 3}
        assert await manager.execute(remote["far.author_of"], name="Ada") == {"name": "Ada", "born": "1815-12-10"}


async def test_python_values_are_sent_as_json() -> None:
    async with served() as (manager, url), Client(url) as client:
        remote = await mcp_tools(client, prefix="far.")
        types_of = await manager.execute(
            remote["far.types_of"],
            path=Path("/tmp"),
            kind=Kind.BOOK,
            author={"name": "A", "born": dt.date(1815, 12, 10)},
            pair=(1, dt.date(2026, 1, 1)),
        )
        assert types_of["author"] == "Author"


async def test_wrong_inputs_are_refused_here_with_their_places() -> None:
    async with foreign() as (server, tools, manager):
        with pytest.raises(InvalidInputs, match="invalid inputs for tool 'search': ") as caught:
            await manager.execute(tools["search"], **{"max-results": "x", "where": {}})
        assert {(one["field"], one["type"]) for one in caught.value.errors} == {
            ("query", "missing"), ("max-results", "type"), ("where.path", "missing"),
        }  # fmt: skip
        with pytest.raises(InvalidInputs, match="query: no JSON can be made of it"):
            await manager.execute(tools["search"], query=object())
        assert server.asked == []
        # What this side cannot check, here a schema that is somewhere else, is for the server to judge.
        assert await manager.execute(tools["odd"], a=1, b=[2]) == "a\nb"
        assert await tools["search"].validate_inputs(query=Path("xy")) == {"query": "xy"}


async def test_errors_of_the_server_are_failures_of_the_call() -> None:
    async with foreign() as (_, tools, manager):
        with pytest.raises(CallFailed, match="no luck") as caught:
            await manager.execute(tools["search"], query="fail")
        assert isinstance(caught.value.__cause__, McpToolError)
        assert caught.value.__cause__.result.is_error
        with pytest.raises(CallFailed, match="not today") as caught:
            await manager.execute(tools["search"], query="refuse")
        assert isinstance(caught.value.__cause__, MCPError)
        again = tools["search"].using(retry=2)
        assert (await manager.outcome(again, query="fail")).attempts == 2


@pytest.mark.parametrize("mode", ERAS)
async def test_a_cancelled_call_is_cancelled_at_the_server(mode: str) -> None:
    async with foreign(mode) as (server, tools, manager):
        call = manager.submit(tools["slow"])
        await server.began.wait()
        assert await manager.cancel(call.id, "enough")
        with anyio.fail_after(5):
            await server.cancelled.wait()
    async with foreign(mode) as (server, tools, manager):
        with pytest.raises(CallTimeout):
            await manager.execute(tools["slow"].using(timeout=0.05))
        with anyio.fail_after(5):
            await server.cancelled.wait()


@pytest.mark.parametrize("mode", ERAS)
async def test_cancellation_goes_over_http_into_the_other_manager(mode: str) -> None:
    sink = MemorySink()
    async with served(sink) as (far, url), Client(url, mode=mode) as client, ServiceManager(log=None) as near:
        remote = await mcp_tools(client)
        call = near.submit(remote["wait"], seconds=60)
        with anyio.fail_after(10):
            while not far.calls:  # noqa: ASYNC110  (it is beyond a socket)
                await anyio.sleep(0.005)
            await near.cancel(call.id)
            while far.calls:  # noqa: ASYNC110
                await anyio.sleep(0.005)
    assert ends(sink, "wait") == ["call.cancelled"]


@pytest.mark.parametrize("mode", ERAS)
async def test_progress_of_the_other_side_is_progress_here(mode: str) -> None:
    async with served() as (_, url), Client(url, mode=mode) as client, ServiceManager(log=None) as near:
        call = near.submit((await mcp_tools(client))["count"], to=5)
        seen = [event async for event in call.events() if isinstance(event, CallProgress)]
        assert [event.done for event in seen] == sorted({event.done for event in seen})  # none out of order
        assert (seen[-1].done, seen[-1].total, seen[-1].message) == (5, 5, "step 5")
        assert call.progress == seen[-1]


async def test_tools_of_two_servers_with_one_name_need_a_prefix() -> None:
    async with Client(Foreign().server) as one, Client(Foreign().server) as two, ServiceManager(log=None) as manager:
        first, second, renamed = await mcp_tools(one), await mcp_tools(two), await mcp_tools(two, prefix="two.")
        await manager.execute(first["search"], query="xy")
        with pytest.raises(ValueError, match="two different tools are named 'search'"):
            await manager.execute(second["search"], query="xy")
        await manager.execute(renamed["two.search"], query="xy")
        await manager.execute((await mcp_tools(one))["search"], query="xy")  # listed again it is the same tool


async def test_a_remote_tool_is_a_phase() -> None:
    @tool
    def shout(found: str) -> str:
        return found.upper()

    async with foreign() as (_, tools, manager):
        pipeline = Pipeline("p", Phase("found", tools["search"]), Phase("loud", shout), item=["query"])
        report = await manager.run(pipeline, [{"query": "xy"}, {"query": "x"}], keep="all")
        assert [one.value for one in report.outcomes] == ["A\nB", None]
        assert isinstance(report.outcomes[1].error, InvalidInputs)


async def test_a_service_holds_the_connection(anyio_backend: Any, tmp_path: Path) -> None:
    source = McpToolSource(own_server(anyio_backend, tmp_path), prefix="far.", name="library")
    with pytest.raises(ServiceNotRunning, match="'library' is not running"):
        _ = source.toolbox
    async with ServiceManager(source, log=None) as manager:
        add = source.toolbox["far.add"]
        assert add.requires == (source,)
        assert await manager.execute(add, a=1) == {"result": 2}
        await source.health()
    assert_clean(manager)
    async with ServiceManager(log=None) as manager:
        with pytest.raises(ServiceNotRunning, match="library"):
            await manager.execute(add, a=1)


async def test_a_service_can_be_started_again() -> None:
    source = McpToolSource(lambda: Client(Foreign().server))
    for _ in range(2):
        async with ServiceManager(source, log=None) as manager:
            assert await manager.execute(source.toolbox["search"], query="xy") == "a\nb"
            first = source.toolbox["search"]
    async with ServiceManager(source, log=None) as manager:
        assert await manager.execute(first, query="xy") == "a\nb"  # a tool of an earlier time, by the new connection


async def test_a_server_that_is_not_there_fails_the_start() -> None:
    source = McpToolSource(StdioServerParameters(command=sys.executable, args=["-c", "pass"]), name="gone")
    with anyio.fail_after(20), pytest.raises(ServiceStartFailed, match="gone"):
        async with ServiceManager(source, log=None):
            raise AssertionError("it must not start")
    with pytest.raises(TypeError, match="an MCP server is a URL"):
        McpToolSource(7)  # type: ignore[arg-type]


async def test_a_server_that_dies_under_way_fails_the_calls(anyio_backend: Any, tmp_path: Path) -> None:
    source = McpToolSource(own_server(anyio_backend, tmp_path))
    with anyio.fail_after(20):
        async with ServiceManager(source, log=None) as manager:
            with pytest.raises(CallFailed, match="Connection closed"):
                await manager.execute(source.toolbox["die"])
            assert not (await manager.outcome(source.toolbox["add"], a=1)).ok
            with pytest.raises(MCPError):
                await source.health()
    assert_clean(manager)


async def test_a_plain_session_will_do() -> None:
    async with Client(Foreign().server) as client, ServiceManager(log=None) as manager:
        assert await manager.execute((await mcp_tools(client.session))["search"], query="xy") == "a\nb"


async def test_tools_of_a_server_can_be_served_again() -> None:
    """A gateway: limits and evidence of its own before the tools of another server."""
    far_sink = MemorySink()
    async with served(far_sink) as (far, far_url), Client(far_url) as to_far:
        tools = await mcp_tools(to_far)
        async with ServiceManager(log=None) as near, anyio.create_task_group() as tasks:
            url = await tasks.start(partial(serve_http, near, tools, port=0))
            async with Client(url) as client:
                listed = {one.name: one for one in (await client.list_tools()).tools}
                assert listed["add"].input_schema == toolbox["add"].input_schema()
                assert (await client.call_tool("add", {"a": 1})).structured_content == {"result": 2}
                wrong = await client.call_tool("add", {"b": 1})
                assert wrong.is_error
                assert "a: missing" in wrong.content[0].text
                with anyio.move_on_after(0.3):
                    await client.call_tool("wait", {"seconds": 60})
                with anyio.fail_after(5):
                    while far.calls or near.calls:  # noqa: ASYNC110
                        await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
    assert ends(far_sink, "wait") == ["call.cancelled"]
