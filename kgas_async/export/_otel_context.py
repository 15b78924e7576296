"""The context of OpenTelemetry in which a call's span is the current one.

OpenTelemetry imports this while it is being imported itself: what needs its tracing is imported where it is used.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext

from kgas_async._context import current_call

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

__all__ = ["CallContext", "span_context"]

ATTACHED_IN: Final = "kgas-async-call"  # the key in a context that says in which call it was attached


def span_context(session_id: str, own_id: str | None = None) -> SpanContext:
    """The span of a session, or of a run or call in it, by the ids that the evidence has.

    Args:
        session_id: Makes the trace id.
        own_id: The ``run_id`` or ``call_id``, which makes the span id; unless given it is the session's own span.
    """
    from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415

    trace_id = int.from_bytes(sha256(session_id.encode()).digest()[:16], "big")
    span_id = int.from_bytes(sha256(f"span {own_id or session_id}".encode()).digest()[:8], "big")
    return SpanContext(trace_id or 1, span_id or 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class CallContext(ContextVarsRuntimeContext):
    """The context of OpenTelemetry, in which a span that a tool makes is below that of its call.

    OpenTelemetry takes it where the environment says ``OTEL_PYTHON_CONTEXT=kgas_async``; in worker threads and
    processes too. It costs nothing to calls that make no spans: the call's span is looked up when somebody asks for the
    current one.
    """

    def attach(self, context: Context) -> Any:
        """Make a context the current one, of this call.

        Returns:
            A token for ``detach``.
        """
        call = current_call.get()
        if call is not None and context.get(ATTACHED_IN) != call.id:
            context = Context({**context, ATTACHED_IN: call.id})
        return super().attach(context)

    def get_current(self) -> Context:
        """The current context; where none was attached in this very call, with the call's span as the current one."""
        context = super().get_current()
        call = current_call.get()
        if call is None or context.get(ATTACHED_IN) == call.id:
            return context
        from opentelemetry.trace import NonRecordingSpan, set_span_in_context  # noqa: PLC0415

        return set_span_in_context(NonRecordingSpan(span_context(call.session_id, call.id)), context)
