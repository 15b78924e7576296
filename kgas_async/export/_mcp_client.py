"""The tools of an MCP server as `KGASTool`s: their schema as it is, their calls as requests to the server.

Knows the SDK's client and JSON Schema. What cancels a call of ours makes the SDK send ``notifications/cancelled`` (over
the HTTP of 2026-07-28: close the response); progress that comes back is the tool's progress.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from inspect import Parameter
from typing import Any, Self, TypeAlias

import anyio.lowlevel
import mcp_types as types
from jsonschema.exceptions import SchemaError
from jsonschema.exceptions import ValidationError as Misfit
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from mcp import Client, ClientSession, StdioServerParameters
from pydantic_core import PydanticSerializationError, to_jsonable_python
from referencing import Registry
from referencing.exceptions import Unresolvable

from kgas_async._errors import InvalidInputs, ServiceNotRunning
from kgas_async._service import Service
from kgas_async._signature import Signature
from kgas_async._tool import KGASTool, Toolbox

from ._mcp_progress import progress_here

__all__ = ["McpToolError", "McpToolSource", "RemoteTool", "mcp_tools"]

Peer: TypeAlias = Client | ClientSession


class McpToolError(Exception):
    """A tool of an MCP server answered with an error; its text is the message.

    Attributes:
        result: The whole answer.
    """

    def __init__(self, message: str, result: types.CallToolResult) -> None:
        super().__init__(message)
        self.result = result


class RemoteSignature(Signature):
    """Inputs that a JSON Schema of somebody else's describes: checked by it, and not coerced."""

    def __init__(self, tool: str, described: types.Tool) -> None:
        properties = described.input_schema.get("properties", {})
        super().__init__(tool, dict.fromkeys(properties, Any), described.input_schema.get("required", ()))
        self._described = described
        self._gives = described.output_schema or {}

    def renamed(self, tool: str, returns: Any = Parameter.empty) -> Self:
        """The same inputs, and the server's result unless another is given."""
        other = super().renamed(tool, returns)
        if returns is not Parameter.empty:
            other._gives = Signature.output_schema(other)
        return other

    def checker(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """What makes JSON of the inputs and checks it; what a schema that is broken means, only the server knows."""
        validator = _validator(self._described.input_schema)

        def check(inputs: Mapping[str, Any]) -> dict[str, Any]:
            arguments = self._as_json(inputs)
            if validator is not None:
                try:
                    misfits = list(validator.iter_errors(arguments))
                except (Unresolvable, RecursionError):
                    return arguments
                if misfits:
                    raise self._misfit([_entry(one) for one in misfits])
            return arguments

        return check

    def validate(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as JSON.

        Raises:
            InvalidInputs: With tool and fields.
        """
        return self.checker()(inputs)

    def _as_json(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        arguments = {}
        for name, value in inputs.items():
            try:
                arguments[name] = to_jsonable_python(value)
                # What cannot be written would not fail this call alone: it is the end of the connection.
                json.dumps({name: arguments[name]}, ensure_ascii=False, allow_nan=False).encode()
            except (PydanticSerializationError, ValueError) as error:
                entry = {
                    "field": name,
                    "type": "json",
                    "message": f"no JSON can be made of it: {error}",
                    "value": value,
                }
                raise self._misfit([entry]) from None
        return arguments

    def _misfit(self, errors: list[dict[str, Any]]) -> InvalidInputs:
        lines = "; ".join(f"{one['field']}: {one['message']}" if one["field"] else one["message"] for one in errors)
        return InvalidInputs(f"invalid inputs for tool {self.tool!r}: {lines}", tool=self.tool, errors=errors)

    def input_schema(self) -> dict[str, Any]:
        """As the server gave it."""
        return deepcopy(self._described.input_schema)

    def output_schema(self) -> dict[str, Any]:
        """As the server gave it, unless its result is mapped; an empty one if it gave none."""
        return deepcopy(self._gives)


def _validator(schema: dict[str, Any]) -> Validator | None:
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError:
        return None
    return kind(schema, registry=Registry())  # an empty registry: nothing is fetched from anywhere


def _entry(one: Misfit) -> dict[str, Any]:
    place = [str(part) for part in one.absolute_path]
    message = one.message if len(one.message) <= 200 else one.message[:197] + "..."
    if one.validator == "required" and isinstance(one.validator_value, list) and isinstance(one.instance, dict):
        missing = [name for name in one.validator_value if f"{name!r} is a required" in one.message]
        return {"field": ".".join([*place, *missing[:1]]), "type": "missing", "message": "missing", "value": None}
    return {"field": ".".join(place), "type": str(one.validator), "message": message, "value": one.instance}


class _Connected:
    """A session that somebody else has opened, and closes."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.session = peer.session if isinstance(peer, Client) else peer


class RemoteTool(KGASTool):
    """One tool of an MCP server; see `mcp_tools`.

    Its value is the structured content of the answer, else its text, else its blocks as a list.
    """

    _names_inputs = False

    def __init__(self, source: Any, described: types.Tool, prefix: str = "") -> None:
        self._source = source
        self._described = described
        self.name = prefix + described.name
        self.description = described.description or described.title or ""
        hints = described.annotations
        self.idempotent = hints is not None and bool(hints.idempotent_hint or hints.read_only_hint)

    @property
    def requires(self) -> tuple[Any, ...]:
        """The service that holds the session, if one does."""
        return (self._source,) if isinstance(self._source, Service) else ()

    def _read_signature(self) -> Signature:
        return RemoteSignature(self.name, self._described)

    def _origin(self) -> object:
        source = self._source
        return source if isinstance(source, Service) else source.session, self._described.name

    async def execute_async(self, /, **inputs: Any) -> Any:
        """The request to the server, without policy, limits and evidence.

        Raises:
            McpToolError: The server's tool failed.
            mcp.MCPError: The server refused the request, or is gone.

        Cancellation: The server is told.
        """
        peer: Peer = self._source.peer
        result = await peer.call_tool(self._described.name, inputs, progress_callback=progress_here())
        await anyio.lowlevel.checkpoint()  # the session has started a task for each progress: those go first
        return _value(result)


def _value(result: types.CallToolResult) -> Any:
    texts = [block.text for block in result.content if isinstance(block, types.TextContent)]
    if result.is_error:
        raise McpToolError("\n".join(texts) or "the tool gave an error without a text", result)
    if result.structured_content is not None:
        return result.structured_content
    if len(texts) == len(result.content):
        return "\n".join(texts)
    return [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]


async def mcp_tools(peer: Peer, *, prefix: str = "") -> Toolbox:
    """The tools that a connected MCP server has now, as tools of ours.

    Args:
        peer: The SDK's ``Client`` or ``ClientSession``, open and initialised; it must stay so while the tools are used.
        prefix: Put before each name, so that the tools of several servers can be in one manager.

    Returns:
        A toolbox; ``tool.using(timeout=...)`` gives a policy, which a server does not.

    Raises:
        mcp.MCPError: The server does not answer, or has no tools.

    Cancellation: Passed on.
    """
    return await _list(_Connected(peer), prefix)


async def _list(source: Any, prefix: str) -> Toolbox:
    peer: Peer = source.peer
    session = peer.session if isinstance(peer, Client) else peer
    tools: list[RemoteTool] = []
    cursor = None
    while True:
        page = await session.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
        tools += [RemoteTool(source, described, prefix) for described in page.tools]
        if page.next_cursor is None or page.next_cursor == cursor:
            return Toolbox(*tools)
        cursor = page.next_cursor


class McpToolSource(Service):
    """A service that is connected to an MCP server while it runs, and has its tools.

    Args:
        server: A URL (streamable HTTP), the SDK's ``StdioServerParameters`` (a program to start), or a function that
            makes an SDK ``Client``; it is called at each start.
        prefix: As in `mcp_tools`.
        name: In messages and evidence.
    """

    def __init__(
        self, server: str | StdioServerParameters | Callable[[], Client], *, prefix: str = "", name: str = "mcp"
    ) -> None:
        if not isinstance(server, str | StdioServerParameters) and not callable(server):
            raise TypeError(f"an MCP server is a URL, StdioServerParameters, or what makes a Client; not {server!r}")
        self.name = name
        self._server = server
        self._prefix = prefix
        self._client: Client | None = None
        self._toolbox: Toolbox | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect, list the tools; disconnect.

        Cancellation: Ends the connection.
        """
        server = self._server
        client = Client(server) if isinstance(server, str | StdioServerParameters) else server()
        async with client:
            self._client = client
            self._toolbox = await _list(self, self._prefix)
            try:
                yield
            finally:
                self._client = self._toolbox = None

    async def health(self) -> None:
        """Raise when the server does not list its tools.

        Cancellation: Stops waiting for the answer.
        """
        await self.peer.list_tools(cache_mode="bypass")

    @property
    def peer(self) -> Client:
        """The connected client.

        Raises:
            ServiceNotRunning: It is not connected.
        """
        if self._client is None:
            raise self._not_connected()
        return self._client

    @property
    def toolbox(self) -> Toolbox:
        """The tools that the server had when the service was started.

        Raises:
            ServiceNotRunning: It is not connected.
        """
        if self._toolbox is None:
            raise self._not_connected()
        return self._toolbox

    def _not_connected(self) -> ServiceNotRunning:
        try:
            self.ensure_running()
        except ServiceNotRunning as error:
            return error
        return ServiceNotRunning(f"service {self.name!r} has lost its connection, and is ending", service=self.name)
