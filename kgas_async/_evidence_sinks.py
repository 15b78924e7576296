"""Where evidence goes: a file of JSON lines, memory, the user's structlog. The one door to structlog."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import structlog

from ._context import current_call
from ._errors import EvidenceError
from ._jsonl import JsonlSink

__all__ = [
    "MemorySink",
    "StructlogSink",
    "as_sinks",
    "bind_fields",
    "bound_fields",
    "call_context",
    "open_sinks",
]


class MemorySink:
    """Keeps records in ``records``, a list of dicts in order: for tests and notebooks. Grows with the calls."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"MemorySink({len(self.records)} records)"

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep these records."""
        self.records.extend(dict(record) for record in records)

    def close(self) -> None:
        """Nothing to do."""


_QUIET = (
    *("call.started", "call.succeeded", "call.cancelled", "call.reused", "session.started", "session.ended"),
    *("block.succeeded", "block.cancelled", "resource.sampled"),
)
_ERRORS = (
    "failed",
    "crashed",
    "rejected",
    "timed_out",
    "opened",
    "stalled",
    "slow",
    "abandoned",
    "fell_back",
    "code_changed",
)


class StructlogSink:
    """Emits events through the user's own structlog configuration; never configures it.

    Args:
        level: ``"events"``: failures, retries, services, runs; ``"calls"``: every end of a call too.
    """

    def __init__(self, level: str = "events") -> None:
        self._level = level
        self._logger: Any = structlog.get_logger("kgas_async")

    def __repr__(self) -> str:
        return f"StructlogSink({self._level!r})"

    def wants(self, event: str) -> bool:
        """Whether it emits this event."""
        return event not in _QUIET if self._level == "events" else event != "call.started"

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Emit them, each in a copy of its call's context, so that what was bound there is in the line."""
        for record in records:
            event = record["event"]
            fields = {name: value for name, value in record.items() if name not in ("event", "schema", "plan")}
            if "stack" in fields:
                fields["stack"] = "\n".join(fields["stack"])  # structlog's renderers take it for text
            suffix = event.rpartition(".")[2]
            is_bad = suffix in _ERRORS or record.get("status") == "ill"
            say = self._logger.warning if is_bad else self._logger.info
            call = getattr(record, "call", None)
            context = None if call is None else call.attempt_context or call.context
            if context is None:
                say(event, **fields)
            else:
                context.copy().run(say, event, **fields)

    def close(self) -> None:
        """Nothing to do."""


def call_context(logger: Any, method: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: adds session, run, pipeline, phase, item, tool, call and attempt to a tool's own lines.

    Works in async tools and in worker threads, and costs nothing to calls that do not log. Outside of calls it adds
    nothing. Fields that the line has already are kept.

    Args:
        logger, method, event_dict: As structlog gives them.

    Returns:
        The ``event_dict``.
    """
    call = current_call.get()
    if call is not None:
        found = {
            "session": call.session_id,
            "run": call.run_id,
            "pipeline": call.pipeline,
            "phase": call.phase,
            "item": call.placed.item,
            "tool": call.tool_name,
            "call": call.id,
            "attempt": call.attempt,
            "call_name": call.given_name,
        }
        for name, value in found.items():
            if value is not None:
                event_dict.setdefault(name, value)
    return event_dict


def bound_fields() -> dict[str, Any]:
    """What structlog's context variables hold in this context."""
    return structlog.contextvars.get_contextvars()


def bind_fields(fields: Mapping[str, Any]) -> None:
    """Bind fields to structlog's context variables in this context."""
    structlog.contextvars.bind_contextvars(**fields)


def open_sinks(sinks: Sequence[Any]) -> None:
    """Open those that are files, all or none.

    Raises:
        EvidenceError: One cannot be opened, or is open: two sessions that write by one sink break its chain.
    """
    opened: list[JsonlSink] = []
    try:
        for sink in sinks:
            if isinstance(sink, JsonlSink):
                if sink.is_open:
                    raise EvidenceError(f"{sink!r} is in use; give each session its own path, and each only once")
                sink.open()
                opened.append(sink)
    except BaseException:
        for sink in opened:
            sink.close()
        raise


def as_sinks(evidence: Any) -> list[Any]:
    """What ``evidence=`` may be, as a list of sinks: None, a path, a sink, or a list of them."""
    if evidence is None:
        return []
    if isinstance(evidence, (str, os.PathLike)):
        return [JsonlSink(evidence)]
    if hasattr(evidence, "write") and hasattr(evidence, "close") and not isinstance(evidence, type):
        return [evidence]
    if isinstance(evidence, (list, tuple)):
        return [sink for one in evidence for sink in as_sinks(one)]
    raise TypeError(f"evidence= is a path, a sink (write, close) or a list of them, not {evidence!r}")
