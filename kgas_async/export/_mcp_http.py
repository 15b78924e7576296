"""MCP over streamable HTTP: the ASGI application, and the HTTP server that runs it on this event loop.

The SDK's sessions speak the protocol. uvicorn runs under asyncio only, so under trio it is Hypercorn. Knows requests
and sockets; it knows no tools.
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import anyio
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings

from kgas_async._suggest import extra_hint

from ._mcp_calls import CLIENT_LEFT
from ._mcp_serving import Serving

__all__ = ["ASGIApp", "Server", "bind", "http_server", "running_server", "security", "web_app"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

SECONDS_TO_CLOSE = 1.0  # for connections to end by themselves, when the sessions have ended


def security(
    host: str | None, allowed_hosts: Sequence[str] | None, allowed_origins: Sequence[str] | None
) -> TransportSecuritySettings:
    """Which ``Host`` and ``Origin`` headers are answered: else any web page could have a browser call the tools.

    Raises:
        ValueError: The names of an address that others reach are not known.
    """
    if allowed_hosts is None:
        if host is not None and not _is_loopback(host):
            raise ValueError(
                f"host={host!r} is reached from elsewhere: say by which names, allowed_hosts=['tools.example.org:*'], "
                f"and see that strangers cannot call the tools: this server asks nobody who they are"
            )
        allowed_hosts = ["127.0.0.1:*", "localhost:*", "[::1]:*"]
    if allowed_origins is None:
        allowed_origins = [f"{scheme}://{name}" for name in allowed_hosts for scheme in ("http", "https")]
    return TransportSecuritySettings(allowed_hosts=list(allowed_hosts), allowed_origins=list(allowed_origins))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@asynccontextmanager
async def web_app(one: Serving, path: str, settings: TransportSecuritySettings) -> AsyncIterator[ASGIApp]:
    """The application while it is open: its sessions are ended on leaving, and what is then asked gets a 503."""
    sessions = StreamableHTTPSessionManager(one.tools.server, security_settings=settings)
    is_open = True

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] != "http":
            raise RuntimeError(f"MCP is served over http, not {scope['type']}")
        elif scope["path"].rstrip("/") != path.rstrip("/"):
            await _refuse(send, 404)
        elif not is_open:
            await _refuse(send, 503)
        else:
            left = scope[CLIENT_LEFT] = anyio.Event()
            try:
                await sessions.handle_request(scope, receive, send)
            finally:
                left.set()

    with _no_watcher():
        async with sessions.run():
            try:
                yield app
            finally:
                is_open = False
                one.tools.cancel_all("the MCP server ends")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        asked = (await receive())["type"]
        await send({"type": f"{asked}.complete"})
        if asked == "lifespan.shutdown":
            return


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@contextmanager
def _no_watcher() -> Iterator[None]:
    """Keep sse-starlette from starting a task that polls for uvicorn's end as long as the loop lives: nobody owns it.

    We end the streams ourselves.
    """
    try:
        state = importlib.import_module("sse_starlette.sse")._get_shutdown_state()
    except (ImportError, AttributeError):  # another version: then the task is there, and harmless
        yield
        return
    before, state.watcher_started = state.watcher_started, True
    try:
        yield
    finally:
        state.watcher_started = before


def bind(host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket, and the address that it is reached by.

    Raises:
        OSError: The address is not ours or is taken.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(100)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    shown = f"[{host}]" if ":" in host else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}"


Server: TypeAlias = Callable[[ASGIApp, socket.socket, anyio.Event], Awaitable[None]]


def http_server(backend: str) -> Server:
    """What serves an application on a listening socket until an event is set, then closes what is left in a second.

    It is not to be cancelled: set the event, and wait.

    Raises:
        RuntimeError: There is none for this event loop.
    """
    if backend != "trio":
        return _run_uvicorn
    try:
        importlib.import_module("hypercorn.trio")
    except ImportError:
        raise RuntimeError(
            f"under trio, MCP over HTTP needs Hypercorn, since uvicorn runs on asyncio only; {extra_hint('mcp')}, "
            f"or run under asyncio"
        ) from None
    return _run_hypercorn


@asynccontextmanager
async def running_server(
    serve: Server, listener: socket.socket, app: AbstractAsyncContextManager[ASGIApp]
) -> AsyncIterator[None]:
    """Serve an application while it is open; then its sessions end first, and the connections after them.

    Raises:
        Exception: The server's own, which ends the block.
    """
    stop = anyio.Event()
    failed: list[Exception] = []
    with listener:
        async with anyio.create_task_group() as tasks:

            async def run(opened: ASGIApp) -> None:
                try:
                    with anyio.CancelScope(shield=True):
                        await serve(opened, listener, stop)
                except Exception as error:  # noqa: BLE001  (raised again below, alone)
                    failed.append(error)
                tasks.cancel_scope.cancel()

            try:
                async with app as opened:
                    tasks.start_soon(run, opened)
                    yield
            finally:
                stop.set()
    if failed:
        raise failed[0]


async def _run_uvicorn(app: ASGIApp, listener: socket.socket, stop: anyio.Event) -> None:
    uvicorn = importlib.import_module("uvicorn")
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SECONDS_TO_CLOSE,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # signals are the manager's
    async with anyio.create_task_group() as tasks:

        async def stop_it() -> None:
            await stop.wait()
            server.should_exit = True

        tasks.start_soon(stop_it)
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


async def _run_hypercorn(app: ASGIApp, listener: socket.socket, stop: anyio.Event) -> None:
    config = importlib.import_module("hypercorn.config").Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = SECONDS_TO_CLOSE
    serve = importlib.import_module("hypercorn.trio").serve
    await serve(app, config, shutdown_trigger=stop.wait, mode="asgi")
