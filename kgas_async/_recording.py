"""What a session keeps on record, from its opening to its end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ._errors import EvidenceError
from ._evidence import EvidenceLog, TracingLog
from ._monitor import Attached
from ._system import cpus

__all__ = ["Recording"]


class Recording:
    """Opens and closes a session's evidence, and has its monitor, if there is one, watch meanwhile.

    Args:
        session: The session; its ``log`` is set.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._attached: Attached | None = None

    def open(self, sinks: Sequence[Any], quiet: Sequence[Any]) -> None:
        """Keep evidence: ``sinks`` get every record, ``quiet`` ones what they want."""
        session = self._session
        monitor = session.monitor
        if sinks or quiet or monitor is not None:
            receiver = None if monitor is None else monitor._ledger
            make = EvidenceLog if session.tracing is None else partial(TracingLog, session.tracing)
            session.log = make(
                sinks, quiet, session.session, session.mailbox, session.calls_open, self._evidence_failed, receiver
            )
            session.log.emit(
                "session.started", cpus=cpus(), threads=session.pool.slots, processes=session.processes.slots
            )
        if monitor is not None:
            self._attached = monitor._attach(session.log, session.mailbox)

    async def close(self, error: BaseException | None) -> None:
        """Say how the session ended, and have everything written."""
        session = self._session
        log = session.log
        if log is None:
            return
        if self._attached is not None:
            await self._attached.close()
        error = session.pending or error
        status = "succeeded" if error is None and not session.is_cancelled else "cancelled"
        log.emit(
            "session.ended",
            calls=session.calls_made,
            abandoned=session.left.ids() or None,
            status="failed" if isinstance(error, Exception) else status,
        )
        await log.begin_close().wait()
        log.join()

    def _evidence_failed(self, error: EvidenceError) -> None:
        """A sink failed, which the log has said: stop, or go on without it, as ``on_sink_error`` says."""
        session = self._session
        if session.on_sink_error == "stop" and not session.is_closed:
            session.crash(error)
        elif session.on_sink_error == "stop" and session.pending is None:
            session.pending = error
