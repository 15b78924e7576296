"""What JSON and UTF-8 have no form for, in results, errors, progress and inputs: said, and not the end of the wire.

One text that is no valid Unicode, such as the name of a file that cannot be decoded, would otherwise end a server over
stdio with all that its client waits for.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

pytest.importorskip("mcp_types")

import mcp_types as types
from mcp import Client, MCPError
from mcp.server.lowlevel import Server

from kgas_async import InvalidInputs, ServiceCrashed, ServiceManager, ServiceNotRunning, Toolbox, progress, tool
from kgas_async.export.mcp import McpToolSource, mcp_tools

from .mcp_programs import UNDECODABLE
from .test_export_mcp import ERAS, Connect, connect, over_http  # noqa: F401  (a fixture)
from .test_export_mcp_client import own_server

pytestmark = [pytest.mark.real_time, pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")]


@pytest.mark.parametrize("mode", ERAS)
async def test_text_that_is_no_unicode_is_escaped_and_ends_nothing(connect: Connect, mode: str) -> None:  # noqa: F811
    told: list[str | None] = []

    async def hear(done: float, total: float | None, message: str | None) -> None:
        told.append(message)

    async with connect(mode=mode) as client:
        names = await client.call_tool("undecodable", {"how": "result"}, progress_callback=hear)
        assert names.structured_content == {"result": ["a", r"b\udcff"]}
        assert names.content[0].text == r'["a", "b\\udcff"]'
        failed = await client.call_tool("undecodable", {"how": "error"})
        assert failed.is_error
        assert r"no such file: b\udcff" in failed.content[0].text
        assert (await client.call_tool("add", {"a": 1})).structured_content == {"result": 2}
    assert told == [r"b\udcff"]


async def test_a_message_of_progress_may_be_anything() -> None:
    @tool
    async def tells() -> None:
        progress(1, 2, 5)  # type: ignore[arg-type]
        await anyio.lowlevel.checkpoint()

    told: list[str | None] = []

    async def hear(done: float, total: float | None, message: str | None) -> None:
        told.append(message)

    async with over_http(Toolbox(tells)) as client:
        assert not (await client.call_tool("tells", progress_callback=hear)).is_error
    assert told == ["5"]


@tool
def share(of: float) -> float:
    return math.nan if of == 0 else 1 / of


@tool
def shares() -> dict[str, float | None]:
    return {"a": 1.0, "b": math.inf, "c": None}


@tool
def anything():  # type: ignore[no-untyped-def]
    return {"values": [1.0, math.nan]}


@tool
def within(top: float = math.inf) -> bool:
    return math.isinf(top)


@pytest.mark.parametrize("mode", ERAS)
async def test_numbers_that_are_not_finite_are_null_where_that_fits_and_else_an_error(mode: str) -> None:
    async with over_http(Toolbox(share, shares, anything, within), mode=mode) as client:
        assert (await client.call_tool("share", {"of": 2})).structured_content == {"result": 0.5}
        wrong = await client.call_tool("share", {"of": 0})
        assert wrong.is_error
        text = wrong.content[0].text
        assert "the result of tool 'share' cannot be given as JSON: it has a number that is not finite" in text
        assert "annotated as float | None" in text

        gaps = await client.call_tool("shares")
        assert gaps.structured_content == {"a": 1.0, "b": None, "c": None}
        loose = await client.call_tool("anything")
        assert loose.structured_content == {"result": {"values": [1.0, None]}}
        assert loose.content[0].text == '{"values": [1.0, null]}'

        (described,) = [one for one in (await client.list_tools()).tools if one.name == "within"]
        assert "default" not in described.input_schema["properties"]["top"]  # where null is none of its values
        assert (await client.call_tool("within")).structured_content == {"result": True}


async def test_inputs_that_cannot_be_sent_fail_their_call_and_not_the_connection() -> None:
    async with over_http() as client, ServiceManager(log=None) as manager:
        tools = await mcp_tools(client)
        for wrong in ({"text": UNDECODABLE}, {"text": [math.nan]}):
            with pytest.raises(InvalidInputs, match="text: no JSON can be made of it") as caught:
                await manager.execute(tools["loose"], **wrong)
            assert caught.value.errors[0]["field"] == "text"
        assert await manager.execute(tools["loose"], text="ü") == {"result": {"text": "ü"}}


STRANGE: dict[str, dict[str, Any]] = {
    "itself": {"type": "object", "$ref": "#"},
    "pattern": {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
    "words": {"type": "object", "properties": {"self": {"type": "integer"}, "tool": {}, "a b": {}, "class": {}}},
}


class Odd:
    """A server with tools that are hard to describe."""

    def __init__(self) -> None:
        self.server: Server[Any] = Server("odd", on_list_tools=self._list, on_call_tool=self._call)

    async def _list(self, context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name=name, input_schema=one) for name, one in STRANGE.items()])

    async def _call(self, context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[], structured_content=params.arguments or {})


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("itself", {"a": 1}),  # which means nothing, and whose check would never end
        ("pattern", {"a": "b"}),
        ("words", {"self": 1, "tool": 2, "a b": 3, "class": 4}),
    ],
)
async def test_what_a_strange_schema_means_only_its_server_knows(name: str, inputs: dict[str, Any]) -> None:
    async with Client(Odd().server, mode="legacy") as client, ServiceManager(log=None) as manager:
        tools = await mcp_tools(client)
        assert await manager.execute(tools[name], **inputs) == inputs


async def test_a_source_whose_connection_is_lost_says_so_until_it_has_ended(anyio_backend: Any, tmp_path: Any) -> None:
    source = McpToolSource(own_server(anyio_backend, tmp_path))
    with suppress(ServiceCrashed):  # it takes the session down, unless that is left before
        async with ServiceManager(source, log=None) as manager:
            add = source.toolbox["add"]
            with pytest.raises(MCPError):
                # Behind the checks of `execute`: what the session cannot write is its end.
                await source.peer.call_tool("loose", {"text": UNDECODABLE})
            with pytest.raises(ServiceNotRunning, match="service 'mcp' "), anyio.fail_after(10):
                while source.toolbox:
                    await anyio.lowlevel.checkpoint()
            with pytest.raises(ServiceNotRunning, match="service 'mcp' "):
                await source.health()
            outcome = await manager.outcome(add, a=1)
            assert isinstance(outcome.error, ServiceCrashed) or isinstance(outcome.error.__cause__, ServiceNotRunning)
