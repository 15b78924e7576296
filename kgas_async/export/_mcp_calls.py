"""The tools of a `Toolbox` as the handlers of an MCP server: each request to call one is a call of the manager.

Knows the SDK's low-level server, which speaks the protocol, and a manager. It knows no transport: those bring the
requests here, and say when a client has gone.
"""

from __future__ import annotations

from typing import Any, Final

import anyio
import anyio.lowlevel
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from kgas_async._call import Call
from kgas_async._errors import KgasAsyncError, UnknownTool
from kgas_async._manager import ServiceManager
from kgas_async._outcome import Outcome
from kgas_async._policy_checks import services_of
from kgas_async._tool import Toolbox

from ._mcp_progress import relay_progress
from ._mcp_shapes import as_error, as_result, describe, is_wrapped

__all__ = ["CLIENT_LEFT", "ServedTools"]

CLIENT_LEFT: Final = "kgas_async.client_left"  # key of an ASGI scope: an event that is set when its exchange is over
STEPS_TO_HEAR_WHY: Final = 5  # of the event loop, within which a notification follows the cancellation that it caused
GONE: Final = "the MCP client has gone, or has taken its request back"


class ServedTools:
    """A toolbox and a manager behind an MCP server.

    Args:
        manager: What runs the calls; open.
        toolbox: What is offered.
        name, version, instructions: What the client is told of the server.

    Raises:
        TypeError: A tool's result is annotated with what JSON cannot hold.
    """

    def __init__(
        self, manager: ServiceManager, toolbox: Toolbox, *, name: str, version: str, instructions: str | None
    ) -> None:
        if not isinstance(toolbox, Toolbox):
            raise TypeError(f"what is served is a Toolbox(...), not {toolbox!r}")
        self.manager = manager
        self.toolbox = toolbox
        tools = zip(toolbox.values(), toolbox.schemas(), strict=True)
        self._described = {tool.name: describe(tool, schema["parameters"]) for tool, schema in tools}
        self._wrapped = {name for name, tool in toolbox.items() if is_wrapped(tool.output_schema())}
        self._open: dict[Call[Any], object] = {}  # with what its request is called
        self._leaving: list[Call[Any]] = []  # cancelled, nobody waits for them, and perhaps not ended
        self._reasons: dict[object, str] = {}
        schemas = {name: one.input_schema for name, one in self._described.items()}
        self.server: Server[Any] = Server(
            name,
            version=version,
            instructions=instructions,
            get_tool_input_schema=schemas.get,  # else it lists the tools at each call
            on_list_tools=self._list,
            on_call_tool=self._call,
        )
        self.server.add_notification_handler(
            "notifications/cancelled", types.CancelledNotificationParams, self._hear_why
        )

    def cancel_all(self, reason: str) -> None:
        """Cancel the calls that clients wait for; those get the reason as an answer."""
        for call in list(self._open):
            call.cancel(reason)

    async def wait_until_idle(self) -> None:
        """Wait until the calls that clients wait for have ended."""
        while unended := [call for call in self._open if not call.has_ended]:
            await unended[0].wait()

    async def wait_for_cancelled(self) -> None:
        """Wait until the calls that were cancelled have ended; their grace is the limit."""
        for call in (*self._open, *self._leaving):
            await call.wait()

    @property
    def services(self) -> list[Any]:
        """What the tools require."""
        return [service for tool in self.toolbox.values() for service in services_of(tool)]

    async def _list(
        self, context: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=list(self._described.values()))

    async def _call(
        self, context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            tool = self.toolbox[params.name]
        except UnknownTool as error:  # an error of the protocol, as its specification has it
            raise MCPError(types.INVALID_PARAMS, str(error)) from None
        try:
            call = self.manager.submit(tool, **(params.arguments or {}))
        except (KgasAsyncError, TypeError, ValueError) as error:
            return as_error(error)
        outcome = await self._outcome(context, call)
        if outcome.error is not None:
            return as_error(outcome.error)
        try:
            value = tool.signature.result_as_json(outcome.value)
            return as_result(self._described[tool.name], value, wrapped=tool.name in self._wrapped)
        except TypeError as error:
            return as_error(error)

    async def _outcome(self, context: ServerRequestContext[Any], call: Call[Any]) -> Outcome[Any]:
        key = _request_key(context, context.request_id)
        self._open[call] = key
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_when_left, context, call)
                if "progress_token" in (context.meta or {}):
                    await relay_progress(call, context.session.report_progress)
                await call.wait()
                tasks.cancel_scope.cancel()
        except BaseException:
            # Either the client has cancelled, and the notification that says why comes right behind, or it is gone.
            with anyio.CancelScope(shield=True):
                for _ in range(STEPS_TO_HEAR_WHY):
                    if key not in self._reasons:
                        await anyio.lowlevel.checkpoint()
            call.cancel(self._reasons.get(key, GONE))
            self._leaving = [one for one in (*self._leaving, call) if not one.has_ended]
            raise
        finally:
            del self._open[call]
            self._reasons.pop(key, None)
        return call.to_outcome()

    async def _hear_why(self, context: ServerRequestContext[Any], params: types.CancelledNotificationParams) -> None:
        key = _request_key(context, params.request_id)
        if key in self._open.values():
            why = f": {params.reason}" if params.reason else ""
            self._reasons[key] = f"the MCP client cancelled it{why}"


def _request_key(context: ServerRequestContext[Any], request_id: types.RequestId | None) -> object:
    """What a request is called by its client; over stdio there is only one."""
    session = None if context.request is None else context.request.headers.get("mcp-session-id")
    return session, str(request_id)


async def _cancel_when_left(context: ServerRequestContext[Any], call: Call[Any]) -> None:
    left = None if context.request is None else context.request.scope.get(CLIENT_LEFT)
    if left is not None:
        await left.wait()
        call.cancel(GONE)
