"""A Toolbox served over MCP, looked at by the SDK's own client: both transports, both eras of the protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

pytest.importorskip("mcp_types")

from mcp import Client, MCPError, StdioServerParameters

from kgas_async import (
    ConcurrencyLimit,
    ManagerClosed,
    MemorySink,
    Service,
    ServiceManager,
    ToolAdapter,
    Toolbox,
    tool,
)
from kgas_async.export.mcp import http_app, serve_http, serve_stdio
from kgas_async.testing import assert_clean

from .mcp_programs import toolbox

ROOT = Path(__file__).parent.parent
ERAS = ["legacy", "auto"]  # the handshake until 2025-11-25; 2026-07-28, where the client finds it

pytestmark = [
    pytest.mark.real_time,
    # The SDK's client leaves generators of httpx2 to the garbage collector, which trio says.
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]

Connect = Callable[..., AbstractAsyncContextManager[Client]]


def backend_name(anyio_backend: Any) -> str:
    return anyio_backend if isinstance(anyio_backend, str) else anyio_backend[0]


@asynccontextmanager
async def over_http(
    tools: Toolbox = toolbox, *, mode: str = "auto", manager: ServiceManager | None = None, **options: Any
) -> AsyncIterator[Client]:
    async with manager or ServiceManager(log=None) as running, anyio.create_task_group() as tasks:
        url = await tasks.start(partial(serve_http, running, tools, port=0, **options))
        async with Client(url, mode=mode) as client:
            yield client
        assert not running.calls
        tasks.cancel_scope.cancel()


@pytest.fixture(params=["http", "stdio"])
def connect(request: pytest.FixtureRequest, anyio_backend: Any, tmp_path: Path) -> Connect:
    if request.param == "http":
        return partial(over_http, name="under test", version="1.2", instructions="Be quick.")
    arguments = [
        "-W",
        "error",
        "-m",
        "tests.mcp_programs",
        "serve",
        backend_name(anyio_backend),
        str(tmp_path / "e.jsonl"),
    ]
    server = StdioServerParameters(command=sys.executable, args=arguments, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT)
    return lambda *, mode: Client(server, mode=mode)


@pytest.mark.parametrize("mode", ERAS)
async def test_a_client_lists_and_calls(connect: Connect, mode: str) -> None:
    async with connect(mode=mode) as client:
        info = client.server_info
        assert info is not None
        assert (info.name, info.version, client.instructions) == ("under test", "1.2", "Be quick.")
        tools = {one.name: one for one in (await client.list_tools()).tools}
        assert list(tools) == list(toolbox)
        assert tools["add"].description == "Add two numbers."
        assert tools["add"].input_schema == toolbox["add"].input_schema()
        assert tools["add"].output_schema == {
            "type": "object", "properties": {"result": {"type": "integer"}}, "required": ["result"],
        }  # fmt: skip
        assert tools["author_of"].output_schema == toolbox["author_of"].output_schema()
        assert tools["loose"].output_schema is None

        added = await client.call_tool("add", {"a": "2"})
        assert (added.structured_content, added.content[0].text) == ({"result": 3}, "3")


@pytest.mark.parametrize("mode", ERAS)
async def test_arguments_are_coerced_and_results_are_json(connect: Connect, mode: str) -> None:
    arguments = {
        "path": "/tmp/a", "kind": "book", "author": {"name": "A", "born": "1815-12-10"}, "pair": [1, "2026-11-21"],
    }  # fmt: skip
    async with connect(mode=mode) as client:
        types = await client.call_tool("types_of", arguments)
        assert types.structured_content == {
            "none": None, "path": "PosixPath", "kind": "Kind", "author": "Author", "pair": "date",
        }  # fmt: skip
        author = await client.call_tool("author_of", {"name": "Ada"})
        assert author.structured_content == {"name": "Ada", "born": "1815-12-10"}
        assert json.loads(author.content[0].text) == author.structured_content
        assert (await client.call_tool("nothing")).structured_content == {"result": None}
        assert (await client.call_tool("loose", {"text": "ü"})).structured_content == {"result": {"text": "ü"}}


@pytest.mark.parametrize("mode", ERAS)
async def test_errors_are_answers_with_their_message(connect: Connect, mode: str) -> None:
    async with connect(mode=mode) as client:
        wrong = await client.call_tool(
            "types_of", {"path": 1, "kind": "book", "author": {"name": "A", "born": "x"}, "pair": [1], "more": 1}
        )
        assert wrong.is_error
        text = wrong.content[0].text
        assert "invalid inputs for tool 'types_of'" in text
        assert "author.born: " in text
        about = (wrong.meta or {})["kgas-async/error"]
        assert about["type"] == "InvalidInputs"
        assert {one["field"] for one in about["errors"]} == {"path", "author.born", "pair.1", "more"}

        failed = await client.call_tool("boom", {"text": "x"})
        assert failed.is_error
        assert "ValueError: boom: x" in failed.content[0].text
        unsendable = await client.call_tool("unsendable")
        assert unsendable.is_error
        text = unsendable.content[0].text
        assert "the result of tool 'unsendable' cannot be given as JSON" in text

        with pytest.raises(MCPError, match="no tool is named 'ad'; there are: add, "):
            await client.call_tool("ad", {})
        assert not (await client.call_tool("add", {"a": 1})).is_error  # it goes on


@pytest.mark.parametrize("mode", ERAS)
async def test_a_client_watches_progress(connect: Connect, mode: str) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        seen.append((done, total, message))

    async with connect(mode=mode) as client:
        counted = await client.call_tool("count", {"to": 3}, progress_callback=on_progress)
        await anyio.lowlevel.checkpoint()  # the client has started a task for each
        assert counted.structured_content == {"result": 3}
        assert sorted(seen) == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]  # the client's tasks race
        seen.clear()
        await client.call_tool("count_async", {"to": 3}, progress_callback=on_progress)
        await anyio.lowlevel.checkpoint()
        assert sorted(seen) == [(1, None, None), (2, None, None), (3, None, None)]
        seen.clear()
        await client.call_tool("count", {"to": 3})
        assert seen == []


@pytest.mark.parametrize("mode", ERAS)
async def test_calls_are_the_managers_with_limits_and_evidence(mode: str) -> None:
    running = peak = 0

    @tool
    async def busy() -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await anyio.sleep(0.01)
        running -= 1

    sink = MemorySink()
    manager = ServiceManager(evidence=sink, log=None)
    limited = Toolbox(busy.using(concurrency=ConcurrencyLimit(2)))
    async with over_http(limited, mode=mode, manager=manager) as client, anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(client.call_tool, "busy")
    assert peak == 2
    ended = [record["event"] for record in sink.records if record.get("tool") == "busy"]
    assert ended.count("call.succeeded") == 8
    assert_clean(manager)


async def test_services_of_the_tools_are_started() -> None:
    class Store(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            yield

        def get(self) -> str:
            self.ensure_running()
            return "got"

    store = Store()

    def get() -> str:
        return store.get()

    class Getter(ToolAdapter[..., str]):
        requires = (store,)  # type: ignore[assignment]

    async with over_http(Toolbox(Getter(get))) as client:
        assert (await client.call_tool("get")).structured_content == {"result": "got"}


async def test_a_result_without_a_schema_is_refused_before_it_is_served() -> None:
    class Live: ...

    @tool
    def gives() -> Live:
        return Live()

    async with ServiceManager(log=None) as manager:
        with pytest.raises(TypeError, match="tool 'gives': no JSON Schema can be made of its result"):
            await serve_stdio(manager, Toolbox(gives))
        with pytest.raises(TypeError, match=r"is a Toolbox\(\.\.\.\)"):
            await serve_http(manager, {"add": toolbox["add"]})  # type: ignore[arg-type]


async def test_a_manager_that_is_not_open_serves_nothing() -> None:
    with pytest.raises(ManagerClosed):
        await serve_http(ServiceManager(log=None), toolbox, port=0)


async def test_a_taken_port_is_said() -> None:
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        url = await tasks.start(partial(serve_http, manager, toolbox, port=0))
        port = int(url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(OSError, match="in use"):
            await serve_http(manager, toolbox, port=port)
        tasks.cancel_scope.cancel()


async def test_an_address_that_others_reach_needs_names() -> None:
    async with ServiceManager(log=None) as manager:
        with pytest.raises(ValueError, match="allowed_hosts"):
            await serve_http(manager, toolbox, host="0.0.0.0", port=0)


async def test_trio_without_hypercorn_is_refused_with_the_mend(
    anyio_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend_name(anyio_backend) != "trio":
        pytest.skip("asyncio has uvicorn, which the SDK brings")
    monkeypatch.setitem(sys.modules, "hypercorn.trio", None)
    async with ServiceManager(log=None) as manager:
        with pytest.raises(RuntimeError, match=r"needs Hypercorn, .*; install the extra `mcp`: "):
            await serve_http(manager, toolbox, port=0)


async def request(port: int, head: str, body: str = "") -> str:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(f"{head}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = b""
        with anyio.fail_after(5):
            while True:
                try:
                    answer += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return answer.decode()


LIST = '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'
JSON = "Content-Type: application/json\r\nAccept: application/json, text/event-stream"


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: localhost:1", "", 404),
        ("PUT /mcp HTTP/1.1\r\nHost: localhost:1", "", 405),
        (f"POST /mcp HTTP/1.1\r\nHost: evil.example:80\r\n{JSON}", LIST, 421),
        (f"POST /mcp HTTP/1.1\r\nHost: localhost:1\r\nOrigin: http://evil.example\r\n{JSON}", LIST, 403),
        (f"POST /mcp HTTP/1.1\r\nHost: localhost:1\r\n{JSON}", "no json", 400),
        (f"POST /mcp HTTP/1.1\r\nHost: localhost:1\r\nMcp-Session-Id: nobody\r\n{JSON}", LIST, 404),
    ],
    ids=["path", "method", "host", "origin", "body", "session"],
)
async def test_what_is_no_request_of_ours_is_refused(head: str, body: str, status: int) -> None:
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        url = await tasks.start(partial(serve_http, manager, toolbox, port=0))
        answer = await request(int(url.rpartition(":")[2].partition("/")[0]), head, body)
        assert answer.startswith(f"HTTP/1.1 {status} ")
        tasks.cancel_scope.cancel()


async def test_an_app_for_a_server_of_ones_own() -> None:
    answers: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        answers.append(message)

    async with ServiceManager(log=None) as manager:
        async with http_app(manager, toolbox, path="/tools") as app:
            await app({"type": "http", "path": "/mcp", "headers": [], "method": "GET"}, receive, send)
            assert answers[0]["status"] == 404
        await app({"type": "http", "path": "/tools", "headers": [], "method": "GET"}, receive, send)
        assert answers[-2]["status"] == 503
        with pytest.raises(RuntimeError, match="over http"):
            await app({"type": "websocket", "path": "/tools"}, receive, send)


async def test_errors_in_the_block_of_an_app_come_plain() -> None:
    async with ServiceManager(log=None) as manager:
        with pytest.raises(ValueError, match=r"^mine$"):
            async with http_app(manager, toolbox):
                raise ValueError("mine")


async def test_an_error_of_the_http_server_comes_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: object) -> None:
        raise OSError("broken")

    monkeypatch.setattr("kgas_async.export.mcp.http_server", lambda backend: broken)
    async with ServiceManager(log=None) as manager:
        with pytest.raises(OSError, match=r"^broken$"):
            await serve_http(manager, toolbox, port=0)


def test_without_the_sdk_the_mend_is_said_and_the_package_does_not_import_it() -> None:
    program = (
        "import importlib.util, sys; real = importlib.util.find_spec; import kgas_async; "
        "assert not {'mcp', 'mcp_types'} & sys.modules.keys(); "
        "importlib.util.find_spec = lambda name, *rest: None if name == 'mcp_types' else real(name, *rest); "
        "import kgas_async.export.mcp"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ModuleNotFoundError: kgas_async.export.mcp needs the MCP SDK; install the extra `mcp`: " in done.stderr
