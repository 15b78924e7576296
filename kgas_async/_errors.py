"""Every error of the package, in one tree.

Knows nothing but what an error carries. Errors say what was wrong, where, and the mend; the tool's own exception is
the ``__cause__``. Cancellation is not here: it is never wrapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

__all__ = [
    "CallAborted",
    "CallCancelled",
    "CallError",
    "CallFailed",
    "CallRejected",
    "CallSkipped",
    "CallTimeout",
    "CircuitOpen",
    "EvidenceError",
    "InvalidInputs",
    "JournalError",
    "KgasAsyncError",
    "LoadError",
    "ManagerClosed",
    "PipelineError",
    "ServiceCrashed",
    "ServiceError",
    "ServiceNotRunning",
    "ServiceStartFailed",
    "UnknownTool",
    "add_note",
    "counted",
    "shown",
    "text_of",
]


def text_of(error: BaseException) -> str:
    """Its message; of an error that cannot give one (a ``__str__`` that raises) what is the matter."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  (the user's code)
        return f"(its __str__ raised {type(broken).__name__})"


def shown(value: object) -> str:
    """Its repr; of a value that cannot give one (a ``__repr__`` that raises) what is the matter."""
    try:
        return repr(value)
    except Exception as broken:  # noqa: BLE001  (the user's code)
        return f"(a {type(value).__name__} whose __repr__ raised {type(broken).__name__})"


def add_note(error: BaseException, note: str) -> None:
    """Note something on a tool's exception; not on one that takes no attributes (a frozen dataclass)."""
    with suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def counted(count: int, thing: str) -> str:
    """``"1 item"``, ``"2 items"``."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


class KgasAsyncError(Exception):
    """The root of all errors that kgas_async raises, but for misuse (``TypeError``, ``ValueError``)."""


class CallError(KgasAsyncError):
    """A call that did not give a value.

    Attributes:
        tool: The name of the tool.
        call_id: The call's id, as in the evidence.
        attempts: How many attempts were begun.
    """

    def __init__(self, message: str, *, tool: str = "", call_id: str = "", attempts: int = 0) -> None:
        super().__init__(message)
        self.tool = tool
        self.call_id = call_id
        self.attempts = attempts


class InvalidInputs(CallError):
    """The inputs do not fit the tool's signature; nothing was run and nothing is retried.

    Attributes:
        errors: One mapping per wrong field: ``field``, ``type``, ``message`` (and ``value``, which the evidence
            leaves out).
    """

    def __init__(
        self, message: str, *, tool: str = "", call_id: str = "", errors: Sequence[dict[str, Any]] = ()
    ) -> None:
        super().__init__(message, tool=tool, call_id=call_id)
        self.errors = list(errors)


class CallFailed(CallError):
    """The tool raised (``__cause__`` is what it raised), or returned what ``error_when`` calls an error.

    Attributes:
        result: What the tool returned, where an error was returned and not raised.
    """

    def __init__(
        self, message: str, *, tool: str = "", call_id: str = "", attempts: int = 0, result: object = None
    ) -> None:
        super().__init__(message, tool=tool, call_id=call_id, attempts=attempts)
        self.result = result


class CallTimeout(CallError, TimeoutError):
    """The timeout of an attempt or the deadline of the call has passed. A value that came later was thrown away."""


class CallCancelled(CallError):
    """For those who wait for a call that somebody else cancelled.

    Attributes:
        reason: What was given to ``Call.cancel`` or ``manager.cancel``.
    """

    def __init__(self, message: str, *, tool: str = "", call_id: str = "", attempts: int = 0, reason: str = "") -> None:
        super().__init__(message, tool=tool, call_id=call_id, attempts=attempts)
        self.reason = reason


class CallSkipped(CallError):
    """The call was not made, since something that it depends on failed or was skipped."""


class CallRejected(CallError):
    """The call was refused without running: there is no room for it now.

    Attributes:
        retry_after: Seconds after which it may fit, or None where nobody knows.
    """

    def __init__(
        self, message: str, *, tool: str = "", call_id: str = "", attempts: int = 0, retry_after: float | None = None
    ) -> None:
        super().__init__(message, tool=tool, call_id=call_id, attempts=attempts)
        self.retry_after = retry_after


class CircuitOpen(CallRejected):
    """The call was refused without running: what it calls keeps failing (``Policy(breaker=...)``).

    ``retry_after`` is the seconds until its circuit breaker lets probes through, None while one is under way. Where
    attempts of this call were among those that failed, the last of their errors is the ``__cause__``.
    """


class CallAborted(BaseException):
    """Raised by ``check_cancelled()`` in a sync tool whose call was cancelled or has timed out.

    A ``BaseException``, so that ``except Exception`` in legacy code does not eat it.
    """


class UnknownTool(KgasAsyncError, KeyError):
    """No tool has that name; the message lists those that there are."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ServiceError(KgasAsyncError):
    """Something about a service.

    Attributes:
        service: The name of the service.
    """

    def __init__(self, message: str, *, service: str = "") -> None:
        super().__init__(message)
        self.service = service


class ServiceStartFailed(ServiceError):
    """A service did not start; those that had started were stopped again. The reason is the ``__cause__``."""


class ServiceCrashed(ServiceError):
    """A running service ended by an exception (the ``__cause__``) or ended by itself.

    It is what ends the session; or the failure of an attempt that used the service, and of calls that need one which is
    gone for good.
    """


class ServiceNotRunning(ServiceError):
    """A tool or a caller uses a service that no running manager holds."""


class ManagerClosed(ServiceError):
    """The manager is draining, closed or not opened; new calls are refused."""


class PipelineError(KgasAsyncError):
    """A pipeline's source, key or item is at fault.

    Attributes:
        report: Where a run ended by it, the ``RunReport`` of what had finished until then, else None.
    """

    def __init__(self, message: str, *, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class EvidenceError(KgasAsyncError):
    """The evidence cannot be written."""


class JournalError(KgasAsyncError):
    """A journal cannot be opened, read or written, or a value cannot be kept in it; the file is as it was.

    Attributes:
        path: The journal's file.
        report: Where a run ended by it, the ``RunReport`` of what had finished until then, else None.
    """

    def __init__(self, message: str, *, path: str = "", report: Any = None) -> None:
        super().__init__(message)
        self.path = path
        self.report = report


class LoadError(KgasAsyncError):
    """A pipeline or tool named on the command line cannot be loaded."""
