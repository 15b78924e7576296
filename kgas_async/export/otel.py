"""Calls as OpenTelemetry spans, and tools' own spans below those of their calls. Needs the extra ``otel``.

Spans are made of evidence, so that calls cost what they cost with any sink. Their ids are made of the ids in the
evidence: whoever knows a call knows its span before that ends, in another thread or process too.

Source: OpenTelemetry specification, "Tracing API" and "Context".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from kgas_async._reading import ENDS, Begins, unix_us
from kgas_async._suggest import extra_hint

try:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, Status, StatusCode

    from ._otel_context import CallContext, span_context
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"kgas_async.export.otel needs {missing.name}; {extra_hint('otel')}", name=missing.name
    ) from missing

__all__ = ["CallContext", "OtelSink", "span_context"]

FLUSH_MS: Final = 5_000
ERRORS: Final = ("failed", "timed_out", "rejected")
EVENTS: Final = ("call.retried", "call.hedged", "call.fell_back", "call.slow")
EVENTS_KEPT: Final = 128  # of one call, as the SDK's own limit


class OtelSink:
    """A sink of evidence that makes a span of each session, run and call as it ends.

    One session is one trace. A call's parent is its run, where it is that of a phase, else the call that it is nested
    in, else the session. Waits, item, attempt and status are attributes (``kgas.*``); retries are events of the span. A
    call that ran in a batch, or has another call's value, has a link to that call.

    Args:
        processor: What spans are given to, such as ``BatchSpanProcessor(OTLPSpanExporter())``, which may be that of
            your tracer provider too. It is flushed when the session ends, and not shut down.
        resource: What describes your service; unless given, as ``OTEL_SERVICE_NAME`` and
            ``OTEL_RESOURCE_ATTRIBUTES`` say.

    Raises:
        TypeError: The processor is none.
    """

    def __init__(self, processor: SpanProcessor, resource: Resource | None = None) -> None:
        if not isinstance(processor, SpanProcessor):
            raise TypeError(
                f"OtelSink takes a SpanProcessor, not {processor!r}; of an exporter make one: "
                f"BatchSpanProcessor(exporter)"
            )
        self._processor = processor
        self._resource = Resource.create() if resource is None else resource
        self._scope = InstrumentationScope("kgas_async", _version())
        self._began: dict[str, Mapping[str, Any]] = {}  # sessions and runs that have not ended
        self._events: dict[str, list[Event]] = {}  # of calls that have not ended
        self._begins = Begins()

    def __repr__(self) -> str:
        return f"OtelSink({type(self._processor).__name__})"

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Give spans of what has ended, by these records, to the processor."""
        for record in records:
            event: str = record["event"]
            if event in ENDS:
                self._processor.on_end(self._call(record))
            elif event == "call.started":
                self._begins.announced(record)
            elif event in EVENTS:
                kept = self._events.setdefault(record["call_id"], [])
                if len(kept) < EVENTS_KEPT:
                    kept.append(_event(record))
            elif event in ("run.started", "session.started"):
                self._began[record.get("run_id", record["session_id"])] = record
            elif event in ("run.ended", "session.ended"):
                self._processor.on_end(self._whole(record))

    def close(self) -> None:
        """Have the processor send what it holds back.

        Raises:
            TimeoutError: It could not; the session says so as of any sink that fails.
        """
        self._began.clear()
        self._events.clear()
        self._begins = Begins()
        if self._processor.force_flush(FLUSH_MS) is False:
            raise TimeoutError(f"spans could not be sent within {FLUSH_MS // 1000} s; the rest of them may be lost")

    def _call(self, end: Mapping[str, Any]) -> ReadableSpan:
        session = end["session_id"]
        ended = unix_us(end["time"])
        attributes = {f"kgas.{name}": end[name] for name in _KEPT if name in end}
        attributes |= {f"kgas.wait.{name}_us": length for name, length in end["wait_us"].items()}
        events = self._events.pop(end["call_id"], [])
        status = Status()
        if end["status"] in ERRORS:
            error = end.get("error", {})
            status = Status(StatusCode.ERROR, error.get("message") or error.get("type") or end["status"])
            exception = {f"exception.{name}": error[name] for name in ("type", "message") if name in error}
            events.append(Event("exception", exception, ended * 1000))
        run = self._began.get(end.get("run_id", ""), {})
        outer, is_phase = end.get("parent_id"), "phase" in end and end.get("parent_id") == run.get("parent_id")
        return self._span(
            end["phase"] if is_phase else end["tool"],
            span_context(session, end["call_id"]),
            span_context(session, end.get("run_id") if is_phase or outer is None else outer),
            (self._begins.of(end), ended),
            attributes,
            events=events,
            links=[Link(span_context(session, end[name])) for name in ("batch_id", "reused_from") if name in end],
            status=status,
        )

    def _whole(self, end: Mapping[str, Any]) -> ReadableSpan:
        """Of a run or a session."""
        session = end["session_id"]
        own = end.get("run_id", session)
        began = self._began.pop(own, end)
        names = ("pipeline", "items", "failed", "cancelled", "skipped", "calls", "status", "run_id")
        is_run = "run_id" in end
        return self._span(
            end["pipeline"] if is_run else "session",
            span_context(session, own),
            span_context(session, began.get("parent_id")) if is_run else None,
            (unix_us(began["time"]), unix_us(end["time"])),
            {"kgas.session_id": session, **{f"kgas.{name}": end[name] for name in names if name in end}},
            status=Status(StatusCode.ERROR) if end.get("status") == "failed" else Status(),
        )

    def _span(
        self,
        name: str,
        own: SpanContext,
        parent: SpanContext | None,
        times_us: tuple[int, int],
        attributes: Mapping[str, Any],
        **more: Any,
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            context=own,
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            start_time=times_us[0] * 1000,
            end_time=times_us[1] * 1000,
            instrumentation_scope=self._scope,
            **more,
        )


_KEPT: Final = (
    "tool", "version", "call_id", "call_name", "run_id", "pipeline", "phase", "item", "attempt", "status", "run_us",
    "cpu_us", "rss_peak_bytes", "batch_size", "abandoned", "answered_by", "reason",
    "inputs_sha256", "output_sha256",
)  # fmt: skip


def _event(record: Mapping[str, Any]) -> Event:
    attributes = {f"kgas.{name}": record[name] for name in ("attempt", "delay_us", "fallback") if name in record}
    attributes |= {f"exception.{name}": text for name, text in record.get("error", {}).items() if isinstance(text, str)}
    return Event(record["event"].removeprefix("call."), attributes, unix_us(record["time"]) * 1000)


def _version() -> str:
    try:
        return version("kgas-async")
    except PackageNotFoundError:  # sources that are not installed
        return ""
