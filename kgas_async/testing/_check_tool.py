"""A conformance check for tools: what a manager relies on, tried on one tool."""

from __future__ import annotations

import pickle
from typing import Any

from kgas_async._errors import CallError, InvalidInputs
from kgas_async._evidence_sinks import MemorySink
from kgas_async._manager import ServiceManager
from kgas_async._policy_checks import services_of
from kgas_async._tool import KGASTool

from ._clean import assert_clean
from ._sweep import sweep

__all__ = ["check_tool"]

UNKNOWN = "no_tool_has_such_an_input"
_ENDS = tuple(f"call.{status}" for status in ("succeeded", "failed", "timed_out", "cancelled", "rejected"))


async def check_tool(tool: KGASTool, /, *, pickles: bool = False, sweeps: bool = True, **inputs: Any) -> Any:
    """Try a tool out: its schemas can be made, it runs, refuses what it should, and can be cancelled anywhere.

    Runs the tool many times (once per suspension point that it has), so give it inputs that do no harm.

    Args:
        tool: The tool; its services are started.
        pickles: Whether it must survive pickling.
        sweeps: Whether to cancel it at every suspension point.
        inputs: Inputs for which it gives a value.

    Returns:
        The value.

    Raises:
        AssertionError: With what was wrong.

    Cancellation: Cancels the run in progress and waits for its end.
    """
    schema = tool.input_schema()
    assert schema.get("type") == "object", f"the input schema of {tool.name!r} is no object: {schema}"
    tool.output_schema()
    if pickles:
        copy = pickle.loads(pickle.dumps(tool))  # our own bytes
        assert copy.name == tool.name, f"{tool.name!r} comes out of pickle as {copy.name!r}"
    await _refuses_unknown(tool, inputs)
    value = await _runs(tool, inputs)
    if sweeps:
        await sweep(lambda: _once(tool, inputs))
    return value


async def _runs(tool: KGASTool, inputs: dict[str, Any]) -> Any:
    sink = MemorySink()
    manager = ServiceManager(*services_of(tool), evidence=sink, log=None)
    value: Any = None
    async with manager:
        value = await manager.execute(tool, **inputs)
    assert_clean(manager)
    # Not those of calls that are nested in it, which may be its own again; nor the end of an abandoned thread.
    ends = [
        record
        for record in sink.records
        if record.get("tool") == tool.name and record["event"] in _ENDS and "parent_id" not in record
    ]
    assert len(ends) == 1, f"one call of {tool.name!r} has {len(ends)} ends in the evidence"
    return value


async def _refuses_unknown(tool: KGASTool, inputs: dict[str, Any]) -> None:
    async with ServiceManager(*services_of(tool), log=None) as manager:
        try:
            await manager.execute(tool, **inputs, **{UNKNOWN: 1})
        except InvalidInputs:
            return
        except CallError as error:
            raise AssertionError(f"{tool.name!r} fails on an unknown input instead of refusing it: {error}") from error
    raise AssertionError(f"{tool.name!r} takes an unknown input")


async def _once(tool: KGASTool, inputs: dict[str, Any]) -> None:
    manager = ServiceManager(*services_of(tool), log=None, grace=1.0)
    try:
        async with manager:
            await manager.execute(tool, **inputs)
    finally:
        assert_clean(manager)
