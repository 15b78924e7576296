"""What a session keeps on record, from its opening to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._errors import EvidenceError
from ._evidence import EvidenceLog

__all__ = ["Recording"]


class Recording:
    """Opens and closes a session's evidence.

    Args:
        session: The session; its ``log`` is set.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def open(self, sinks: Sequence[Any], quiet: Sequence[Any]) -> None:
        """Keep evidence: ``sinks`` get every record, ``quiet`` ones what they want."""
        session = self._session
        if sinks or quiet:
            session.log = EvidenceLog(
                sinks, quiet, session.session, session.mailbox, session.calls_open, self._evidence_failed
            )
            session.log.emit("session.started")

    async def close(self, error: BaseException | None) -> None:
        """Say how the session ended, and have everything written."""
        session = self._session
        log = session.log
        if log is None:
            return
        error = session.pending or error
        status = "succeeded" if error is None and not session.is_cancelled else "cancelled"
        log.emit(
            "session.ended",
            calls=session.calls_made,
            abandoned=session.left.ids() or None,
            status="failed" if isinstance(error, Exception) else status,
        )
        await log.begin_close().wait()

    def _evidence_failed(self, error: EvidenceError) -> None:
        """A sink failed, which the log has said: stop, or go on without it, as ``on_sink_error`` says."""
        session = self._session
        if session.on_sink_error == "stop" and not session.is_closed:
            session.crash(error)
        elif session.on_sink_error == "stop" and session.pending is None:
            session.pending = error
