"""Tools, results and errors in the shapes of MCP.

Structured results are objects there (until 2025-11-25), so any other result is the field ``result`` of one. Knows
tools and schemas, and nothing of requests.
"""

from __future__ import annotations

import json
from typing import Any, Final

import mcp_types as types

from kgas_async._errors import CallError, CallRejected, InvalidInputs, text_of
from kgas_async._tool import KGASTool

__all__ = ["ERROR_KEY", "as_error", "as_result", "describe", "is_wrapped"]

ERROR_KEY: Final = "kgas-async/error"  # in the _meta of a result that is an error


def is_wrapped(output_schema: dict[str, Any]) -> bool:
    """Whether a result of this schema must be put into an object: it is not sure to be one."""
    return output_schema.get("type") != "object"


def describe(tool: KGASTool, input_schema: dict[str, Any]) -> types.Tool:
    """What a client is told of a tool.

    Raises:
        TypeError: JSON has no form for its result.
    """
    output = tool.output_schema()
    if not output:
        tool.signature.check_result_has_json()
    if output and is_wrapped(output):
        definitions = (
            {"$defs": output.pop("$defs")} if "$defs" in output else {}
        )  # their references count from the root
        output = {"type": "object", "properties": {"result": output}, "required": ["result"], **definitions}
    return types.Tool(
        name=tool.name,
        description=tool.description or None,
        input_schema=input_schema,
        output_schema=output or None,
        annotations=types.ToolAnnotations(idempotent_hint=True) if tool.idempotent else None,
    )


def as_result(value: Any, *, wrapped: bool) -> types.CallToolResult:
    """A value that JSON can hold, as structured content and as text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)], structured_content={"result": value} if wrapped else value
    )


def as_error(error: BaseException) -> types.CallToolResult:
    """An error as the result of a tool, which models see and can mend, with its type and the wrong fields."""
    about: dict[str, Any] = {"type": type(error).__name__}
    if isinstance(error, CallError) and error.call_id:
        about["call_id"] = error.call_id
    if isinstance(error, InvalidInputs):
        about["errors"] = [{key: one[key] for key in ("field", "type", "message")} for one in error.errors]
    if isinstance(error, CallRejected) and error.retry_after is not None:
        about["retry_after"] = error.retry_after
    text = text_of(error) or type(error).__name__
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)], is_error=True, _meta={ERROR_KEY: about}
    )
