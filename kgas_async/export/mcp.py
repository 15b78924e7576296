"""The Model Context Protocol, both ways: a `Toolbox` served to MCP clients, tools of MCP servers as `KGASTool` objects.

Each call that a client makes is a call of a manager, so limits, policy, evidence, cancellation and draining are the
manager's. Needs the extra ``mcp``. Knows managers, toolboxes and the official SDK.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskStatus

if importlib.util.find_spec("mcp_types") is None:  # which the SDK brings from its version 2 on
    from kgas_async._suggest import extra_hint

    raise ModuleNotFoundError(f"kgas_async.export.mcp needs the MCP SDK; {extra_hint('mcp')}", name="mcp")

from kgas_async._manager import ServiceManager
from kgas_async._tool import Toolbox

from ._mcp_client import McpToolError, McpToolSource, mcp_tools
from ._mcp_http import ASGIApp, bind, http_server, running_server, security, web_app
from ._mcp_serving import serving
from ._mcp_stdio import wire_of_stdio

__all__ = ["McpToolError", "McpToolSource", "http_app", "mcp_tools", "serve_http", "serve_stdio"]


async def serve_stdio(
    manager: ServiceManager,
    toolbox: Toolbox,
    *,
    name: str = "kgas-async",
    version: str = "",
    instructions: str | None = None,
) -> None:
    """Serve the tools to the program that started this one, over stdin and stdout, until it closes stdin.

    While it serves, what is printed goes to stderr, and nothing can be read from stdin. The services of the tools are
    started unless they run. When the manager drains, open requests are answered first.

    Args:
        manager: Runs each request as a call.
        toolbox: What is offered.
        name, version, instructions: What the client is told of this server.

    Raises:
        TypeError: A tool's result is annotated with what JSON cannot hold; it names the tool.
        ManagerClosed, ServiceStartFailed: It did not begin.

    Cancellation: Ends it at once, with the calls that clients wait for.
    """
    failed: Exception | None = None
    async with serving(manager, toolbox, name=name, version=version, instructions=instructions) as one:
        server = one.tools.server
        async with wire_of_stdio() as (receive, send), anyio.create_task_group() as tasks:

            async def stop() -> None:
                await one.wait_for_stop()
                tasks.cancel_scope.cancel()

            tasks.start_soon(stop)
            try:
                await server.run(receive, send, server.create_initialization_options())
            except Exception as error:  # noqa: BLE001  (raised again below, where no task group puts it into a group)
                failed = error
            tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed


@asynccontextmanager
async def http_app(
    manager: ServiceManager,
    toolbox: Toolbox,
    *,
    path: str = "/mcp",
    allowed_hosts: Sequence[str] | None = None,
    allowed_origins: Sequence[str] | None = None,
    name: str = "kgas-async",
    version: str = "",
    instructions: str | None = None,
) -> AsyncIterator[ASGIApp]:
    """An ASGI application for an HTTP server of your own, under asyncio or trio; open while the block runs.

    Args:
        manager, toolbox, name, version, instructions: As in `serve_stdio`.
        path: Where it answers; all else is 404.
        allowed_hosts: The ``Host`` headers that are answered, ``:*`` for any port; those of the loopback unless given.
        allowed_origins: The ``Origin`` headers that are answered; those of the hosts unless given.

    Returns:
        An async context manager that gives the application.

    Raises:
        TypeError, ManagerClosed, ServiceStartFailed: As in `serve_stdio`.

    Cancellation: As leaving it: requests under way are cancelled, and so are their calls.
    """
    settings = security(None, allowed_hosts, allowed_origins)
    failed: Exception | None = None
    async with serving(manager, toolbox, name=name, version=version, instructions=instructions) as one:
        async with web_app(one, path, settings) as app:
            try:
                yield app
            except Exception as error:  # noqa: BLE001  (raised again below, where no task group puts it into a group)
                failed = error
        if failed is not None:
            raise failed


async def serve_http(
    manager: ServiceManager,
    toolbox: Toolbox,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    path: str = "/mcp",
    allowed_hosts: Sequence[str] | None = None,
    allowed_origins: Sequence[str] | None = None,
    name: str = "kgas-async",
    version: str = "",
    instructions: str | None = None,
    task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the tools over streamable HTTP until it is cancelled or the manager drains.

    It asks nobody who they are; beyond this machine put it behind something that does. Under asyncio uvicorn serves,
    under trio Hypercorn.

    Args:
        manager, toolbox, name, version, instructions: As in `serve_stdio`.
        host, port: Where to listen; port 0 is any free one.
        path: Where it answers; all else is 404.
        allowed_hosts, allowed_origins: As in `http_app`; needed where ``host`` is not of the loopback.
        task_status: ``url = await tasks.start(serve_http, manager, toolbox)`` gives the address once it listens.

    Raises:
        OSError: The address is taken.
        ValueError: Others can reach ``host``, and ``allowed_hosts`` is not given.
        RuntimeError: There is no HTTP server for this event loop.
        TypeError, ManagerClosed, ServiceStartFailed: As in `serve_stdio`.

    Cancellation: Ends it, with the calls that clients wait for; connections have a second to close.
    """
    settings = security(host, allowed_hosts, allowed_origins)
    async with serving(manager, toolbox, name=name, version=version, instructions=instructions) as one:
        serve = http_server(one.backend)
        listener, address = bind(host, port)
        async with running_server(serve, listener, web_app(one, path, settings)):
            task_status.started(address + path)
            await one.wait_for_stop()
