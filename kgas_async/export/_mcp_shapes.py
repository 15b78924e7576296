"""Tools, results and errors in the shapes of MCP.

Structured results are objects there (until 2025-11-25), so any other result is the field ``result`` of one. Knows
tools and schemas, and nothing of requests.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

import mcp_types as types
from jsonschema.validators import validator_for

from kgas_async._errors import CallError, CallRejected, InvalidInputs, text_of
from kgas_async._records import valid_unicode
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


def as_result(described: types.Tool, value: Any, *, wrapped: bool) -> types.CallToolResult:
    """A tool's value, which `Signature.result_as_json` has made, as structured content and as text.

    Text that is no valid Unicode is escaped, since one such character would be the end of the connection. A number that
    is not finite is null where the schema of the result lets it be.

    Raises:
        TypeError: It does not.
    """
    try:
        text = _dumped(value)
    except ValueError:
        value = _finite(valid_unicode(value))
        schema = described.output_schema
        if schema is not None and not validator_for(schema)(schema).is_valid({"result": value} if wrapped else value):
            raise TypeError(
                f"the result of tool {described.name!r} cannot be given as JSON: it has a number that is not finite "
                f"(NaN, Infinity), for which JSON has no form; return None in its place, annotated as float | None"
            ) from None
        text = _dumped(value)
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=value if isinstance(value, str) else text)],
        structured_content={"result": value} if wrapped else value,
    )


def _dumped(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()
    return text


def _finite(value: Any) -> Any:
    """The value with None for the numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_error(error: BaseException) -> types.CallToolResult:
    """An error as the result of a tool, which models see and can mend, with its type and the wrong fields."""
    about: dict[str, Any] = {"type": type(error).__name__}
    if isinstance(error, CallError) and error.call_id:
        about["call_id"] = error.call_id
    if isinstance(error, InvalidInputs):
        about["errors"] = [{key: one[key] for key in ("field", "type", "message")} for one in error.errors]
    if isinstance(error, CallRejected) and error.retry_after is not None:
        about["retry_after"] = error.retry_after
    text = valid_unicode(text_of(error)) or type(error).__name__
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)], is_error=True, _meta={ERROR_KEY: valid_unicode(about)}
    )
